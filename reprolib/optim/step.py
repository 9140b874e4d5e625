"""What every optimizer here does around its step: open the local model, refuse what cannot be right, count skips."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature import LocalModel, expand
from reprolib.errors import InvalidInput, SkippedStep

Closure = Callable[[], Tensor]
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


def skipped(optimizer: torch.optim.Optimizer, why: str) -> None:
    """Report a step that changed nothing (``optimizer.skipped`` counts them)."""
    optimizer.skipped += 1  # type: ignore[attr-defined]
    warnings.warn(f"{type(optimizer).__name__} skipped a step: {why}", SkippedStep, stacklevel=5)
