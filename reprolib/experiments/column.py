"""A column of a comparison: one task, and how long it is trained on how much at one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    train_size: int | None = field(default=None, kw_only=True)
    test_size: int | None = field(default=None, kw_only=True)
    held_out: int = field(default=0, kw_only=True)  # training samples that tuning keeps for validation

    def runs(self, name: str, seeds: Sequence[int], options: Options | None = None, **more: Any) -> list[Run]:
        """One run per seed; ``more`` are other fields of the runs."""
        fields = {"task": self.task, "epochs": self.epochs, "batch_size": self.batch_size, "options": options or {}}
        fields |= {"train_size": self.train_size, "test_size": self.test_size}
        return [Run.of(name, seed=seed, **(fields | more)) for seed in seeds]

    def beside_defaults(self, own: Sequence[Run], defaults: Mapping[str, Options], seeds: Sequence[int]) -> Plan:
        """The histories of ``own`` runs, and those of the methods of ``defaults`` as their libraries have them."""
        default = [run for name, options in defaults.items() for run in self.runs(name, seeds, options)]
        histories = yield [*own, *default]
        return histories[: len(own)], histories[len(own) :]

    def trial(self, name: str, options: Options, epochs: int) -> Run:
        """The run that tries ``options`` for so many epochs."""
        return self.runs(name, [tuning.SEED], options, stop_after=epochs, held_out=self.held_out)[0]

    def at_best_rate(self, name: str, rates: Sequence[float], epochs: int, seeds: Sequence[int]) -> Plan:
        """Try each constant learning rate for so many epochs, and run the best: the tuning's result, and ``histories``."""
        first = [{"lr": lr} for lr in rates]
        found = yield from tuning.tune(lambda o, n: self.trial(name, o, n), first, epochs, halving=False)
        return found | {"histories": (yield self.runs(name, seeds, found["options"]))}
