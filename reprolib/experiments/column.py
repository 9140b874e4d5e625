"""A column of a comparison: one task, how long it is trained on how much at one scale, and how baselines are tuned for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from reprolib.lab import tuning
from reprolib.lab.plan import Plan
from reprolib.lab.run import Run

Options = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """What the runs of a task have in common."""

    task: str
    epochs: int
    batch_size: int
    _: KW_ONLY
    train_size: int | None = None
    test_size: int | None = None
    held_out: int = 0  # training samples that tuning keeps for validation
    steps: Sequence[float] = ()  # learning rates that tuning tries
    decays: Sequence[float] = ()  # d of τ_n = τ0 dⁿ that it tries, per epoch of the paper; none: the rate is constant
    paper_epochs: int = 0
    tuned_fraction: float = 0.2  # of the epochs that a trial trains
    fields_of: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # single methods: what their runs have else

    @property
    def tuning_epochs(self) -> int:
        """How long a trial trains."""
        return max(1, round(self.tuned_fraction * self.epochs))

    def decay(self, d: float) -> float:
        """The paper's ``d`` per epoch, translated to this training's length with the same total decay."""
        return d ** (self.paper_epochs / self.epochs)

    def runs(self, name: str, seeds: Sequence[int], options: Options | None = None, **more: Any) -> list[Run]:
        """One run of method ``name`` per seed; ``more`` are other fields of the runs."""
        of_all = {"task": self.task, "epochs": self.epochs, "batch_size": self.batch_size, "options": options or {}}
        of_all |= {"train_size": self.train_size, "test_size": self.test_size}
        return [Run.of(name, seed=seed, **{**of_all, **self.fields_of.get(name, {}), **more}) for seed in seeds]

    def beside_defaults(self, own: Sequence[Run], defaults: Mapping[str, Options], seeds: Sequence[int]) -> Plan:
        """The histories of ``own`` runs, and those of the methods of ``defaults``, which have these options and no tuning."""
        default = [run for name, options in defaults.items() for run in self.runs(name, seeds, options)]
        histories = yield [*own, *default]
        return histories[: len(own)], histories[len(own) :]

    def tuned(
        self,
        name: str,
        seeds: Sequence[int],
        *,
        halving: bool = False,
        decays: bool = True,
        options: Options | None = None,
    ) -> Plan:
        """Tune method ``name`` and run what was chosen: the tuning's result, with the histories under ``histories``.

        Args:
            name: the method.
            seeds: of the runs with what was chosen.
            halving: see :func:`reprolib.lab.tuning.tune`.
            decays: whether a decay d is chosen, too, where the column has some.
            options: of the method, in all runs.
        """
        decaying = decays and bool(self.decays)

        def with_decays(tried: Options) -> list[Options]:
            return [tried | {"decay": self.decay(d)} for d in self.decays] if decaying else [tried]

        first = [{"lr": lr} | ({"decay": 1.0} if decaying else {}) | (options or {}) for lr in self.steps]
        found = yield from tuning.tune(
            lambda tried, epochs: self.trial(name, tried, epochs),
            first,
            self.tuning_epochs,
            with_decays,
            halving=halving,
        )
        return found | {"histories": (yield self.runs(name, seeds, found["options"]))}

    def trial(self, name: str, options: Options, epochs: int) -> Run:
        """The run that tries ``options`` for so many epochs."""
        return self.runs(name, [tuning.SEED], options, stop_after=epochs, held_out=self.held_out)[0]
