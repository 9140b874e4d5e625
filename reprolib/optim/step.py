"""What every optimizer here does around its step: open the local model, refuse what cannot be right, count skips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature import LocalModel, expand
from reprolib.curvature.model import Pair
from reprolib.errors import InvalidInput, SkippedStep

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


class SkippedSteps:
    """Counts the steps that changed nothing, without waiting for the device; the optimizers inherit it.

    A step is *sound* or not by a 0-d bool tensor. On the CPU, where looking costs nothing, and elsewhere in the steps that
    also check other invariants (``look``), an unsound one is reported at once; in between it is only counted.
    """

    _skipped: Tensor | int = 0

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


def free_to_look(t: Tensor) -> bool:
    """Whether reading a number from the device of ``t`` costs no wait."""
    return t.device.type == "cpu"


def chosen(sound: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    """``new`` where the step is sound, else ``old``; ``None``: it is known to be."""
    return new if sound is None else torch.where(sound, new, old)
