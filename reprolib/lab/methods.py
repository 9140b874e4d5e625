"""Methods by name: how to build the optimizer and its schedule, and how to take one step with either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from reprolib.errors import UnknownName
from reprolib.optim import RED, ran_schedule, red_schedule

Step = dict[str, Tensor]  # what a step reports: "loss" (with the L² term) and "step" (the length that multiplies d)


@dataclass(frozen=True)
class Method:
    """A training method. ``version`` is raised whenever its behaviour changes."""

    name: str
    label: str  # for legends; its colour is in figures.COLOURS
    build: Callable[..., tuple[torch.optim.Optimizer, LRScheduler]]  # (params, epochs, **options)
    options: frozenset[str]
    version: int = 1

    def check(self, options: dict[str, Any]) -> None:
        """Raise :class:`UnknownName` for an option that the method does not have."""
        for name in options:
            if name not in self.options:
                raise UnknownName.among(f"option of {self.name}", name, self.options)


def _sgd(params: Iterable[Tensor], epochs: int, *, lr: float, decay: float = 1.0, weight_decay: float = 1e-7):
    optimizer = torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)
    return optimizer, ExponentialLR(optimizer, decay)


def _rmsprop(
    params: Iterable[Tensor],
    epochs: int,
    *,
    lr: float,
    decay: float = 1.0,
    beta2: float = 0.999,
    weight_decay: float = 1e-7,
):
    # Algorithm 3 with r = 1: RMSProp with bias correction, which is Adam without its first moment
    optimizer = torch.optim.Adam(params, lr=lr, betas=(0.0, beta2), eps=1e-8, weight_decay=weight_decay)
    return optimizer, ExponentialLR(optimizer, decay)


def _red(params: Iterable[Tensor], epochs: int, *, schedule: str = "red", **options: Any):
    optimizer = RED(params, **options)
    if schedule == "red":
        return optimizer, red_schedule(optimizer, epochs)
    if schedule == "ran":
        return optimizer, ran_schedule(optimizer)
    if schedule == "constant":
        return optimizer, ExponentialLR(optimizer, 1.0)
    raise UnknownName.among("schedule", schedule, ("red", "ran", "constant"))


_RED_OPTIONS = frozenset(
    [
        "schedule",
        "lr",
        "beta1",
        "beta2",
        "beta3",
        "eps",
        "weight_decay",
        "clamp",
        "factor",
        "absolute",
        "backend",
        "check_every",
    ]
)
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", "SGD, tuned", _sgd, frozenset({"lr", "decay", "weight_decay"})),
        Method("rmsprop", "RMSProp, tuned", _rmsprop, frozenset({"lr", "decay", "beta2", "weight_decay"})),
        Method("red-sgd", "RED-SGD", _red, _RED_OPTIONS),
        Method("red-rmsprop", "RED-RMSProp", lambda p, n, **o: _red(p, n, preconditioner="rmsprop", **o), _RED_OPTIONS),
    )
}


def method(name: str) -> Method:
    """The method called ``name``."""
    if name not in METHODS:
        raise UnknownName.among("method", name, METHODS)
    return METHODS[name]


def take_step(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]
) -> Step:
    """One step of any method on one batch."""
    if hasattr(optimizer, "diagnostics"):
        optimizer.step(closure, loss)  # type: ignore[call-overload]
        return {"loss": optimizer.diagnostics["objective"], "step": optimizer.diagnostics["step"]}
    group = optimizer.param_groups[0]
    l2 = sum(0.5 * group["weight_decay"] * p.detach().square().sum() for p in group["params"])
    optimizer.zero_grad(set_to_none=True)
    mean = loss(closure()).mean()
    mean.backward()
    optimizer.step()
    return {"loss": mean.detach() + l2, "step": torch.as_tensor(group["lr"], dtype=mean.dtype)}
