"""What every optimizer here does around its step: open the local model, refuse what cannot be right, count skips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature import LocalModel, expand
from reprolib.curvature.network import Pair
from reprolib.errors import InvalidInput, SkippedStep

PER_GROUP = {"lr", "weight_decay"}  # options that groups may have of their own
Closure = Callable[[], Tensor] | Sequence[Pair]  # or the (closure, loss) pairs of micro-batches
Loss = Callable[[Tensor], Tensor]


def open_model(
    optimizer: torch.optim.Optimizer,
    closure: Closure | None,
    loss: Loss | None,
    *,
    curvature: str,
    backend: str,
    engine: dict[str, Any],
    check: bool,
) -> LocalModel:
    """The local model of the loss at the parameters of ``optimizer`` (all groups, in order).

    ``engine`` are options of the backend, as :func:`~reprolib.curvature.expand` has them.
    """
    name = type(optimizer).__name__
    if closure is None:
        raise InvalidInput(
            f"{name}.step needs a closure: opt.step(lambda: net(x), lambda out: F.cross_entropy(out, y, reduction='none')). "
            "Gradient scalers and loops that call step() bare cannot be used"
        )
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if torch.is_autocast_enabled(params[0].device.type):
        raise InvalidInput(f"{name} does not run under autocast: second derivatives need the full precision")
    return expand(closure, loss, params, curvature, backend, check=check, **engine)


def open_gradient(
    optimizer: torch.optim.Optimizer, closure: Closure | None, loss: Loss | None, *, check: bool
) -> LocalModel:
    """The same where nothing but the gradient will be asked for: an ordinary training step's, and it frees the pass."""
    return open_model(optimizer, closure, loss, curvature="hessian", backend="autodiff", engine={}, check=check)


class LocalModelOptimizer(torch.optim.Optimizer):
    """What the optimizers here share: groups, when to check, and steps that change nothing.

    A step is *sound* or not by a 0-d bool tensor. On the CPU, where looking costs nothing, and elsewhere in the steps that
    also check other invariants (``look``), an unsound one is reported at once; in between it is only counted. The
    ``diagnostics`` of the last step are detached 0-d tensors on the device.
    """

    _calls = 0  # of step(), sound or not: decides when to check
    _skipped: Tensor | int = 0

    def __init__(self, params: Iterable[Any], options: dict[str, Any]):
        super().__init__(params, options)
        self.diagnostics: dict[str, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("diagnostics", {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group, with its own ``lr`` and ``weight_decay``; one local model serves all, so the rest is shared."""
        own = {k for k in param_group if k in self.defaults and param_group[k] != self.defaults[k]} - PER_GROUP
        if own:
            raise InvalidInput(
                f"{', '.join(sorted(own))} cannot differ between groups: only {', '.join(sorted(PER_GROUP))} can"
            )
        super().add_param_group(param_group)

    def _checks(self) -> bool:
        """Whether this step checks the ⟨g, d⟩ invariant; the first one does."""
        self._calls += 1
        return (self._calls - 1) % self.param_groups[0]["check_every"] == 0

    def _parameters(self) -> tuple[list[Tensor], list[float]]:
        """All parameters in the order of the groups, and the weight decay λ of each."""
        groups = self.param_groups
        return [p for g in groups for p in g["params"]], [g["weight_decay"] for g in groups for _ in g["params"]]

    @property
    def skipped(self) -> int:
        """How many steps changed nothing because they were non-finite or undefined (waits for the device)."""
        return int(self._skipped)

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._skipped = count

    def _admit(self, sound: Tensor, look: bool, why: Callable[[], str]) -> bool:
        """Count an unsound step; whether to go on, with updates masked by :func:`chosen` unless somebody looked."""
        self._skipped = self._skipped + sound.logical_not()
        if look and not bool(sound):
            warnings.warn(f"{type(self).__name__} skipped a step: {why()}", SkippedStep, stacklevel=5)
            return False
        return True


def refuse_negative(**values: float | None) -> None:
    """Raise :class:`InvalidInput` for the first value that is negative or NaN; ``None`` is none."""
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise InvalidInput(f"{name} = {value}: it cannot be negative")


def refuse_no_period(**periods: float) -> None:
    """Raise :class:`InvalidInput` for the first value that is no whole number of steps, at least one."""
    for name, period in periods.items():
        if not period >= 1 or period % 1:
            raise InvalidInput(f"{name} = {period}: give at least 1, a whole number")


def free_to_look(t: Tensor) -> bool:
    """Whether reading a number from the device of ``t`` costs no wait."""
    return t.device.type == "cpu"


def chosen(sound: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    """``new`` where the step is sound, else ``old``; ``None``: it is known to be."""
    return new if sound is None else torch.where(sound, new, old)
