"""Train runs together that differ only in seed, learning rate, its decay and weight decay, as one vectorised program.

Parameters, gradients and the state of the optimizer have a leading axis of members: (M, ...). Where a weight moves by the
learning rate times a function of its own past gradients, one optimizer serves all members. It works with lr = 1 on
tensors Δ that are zero before its step, and then

    θₘ ← θₘ + ηₘ Δₘ      with the gradient ∇Jₘ(θₘ) + λₘ θₘ

(decoupled weight decay: θₘ ← θₘ + ηₘ (Δₘ − λₘ θₘ) with the gradient of the loss alone). That is each member's own run up
to the order of its sums.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from reprolib.errors import InvalidInput
from reprolib.lab.methods import DESCENT, method
from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.train import History, Training, clock
from reprolib.tasks import task

OWN = ("lr", "decay", "weight_decay")  # options in which members may differ


def train_together(runs: Sequence[Run], device: str | torch.device = "cpu", *, download: bool = True) -> list[History]:
    """The histories of ``runs``, in their order, each as `train` has it up to rounding.

    A member's ``seconds`` are its share of the time, and its environment says how many were ``together``. One that
    diverges ends there and disturbs nobody.

    Raises:
        InvalidInput: runs that differ in more than seed and ``OWN``, or that have an `obstacle`.
    """
    ensemble = Ensemble(runs, device, download=download)
    while not ensemble.over:
        ensemble.advance()
    histories = [member.history() for member in ensemble.members]
    for history in histories:
        history.environment |= environment(device) | {"workers": 1, "together": len(runs)}
    return histories


def ensembles(runs: Sequence[Run], largest: int | None = None) -> list[list[Run]]:
    """``runs`` in groups that can be trained together, at most ``largest`` in each; those that cannot are alone."""
    groups: dict[str, list[Run]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(f"{i} alone" if obstacle(run) else _common(run), []).append(run)
    sizes = [(group, largest or len(group)) for group in groups.values()]
    return [group[i : i + size] for group, size in sizes for i in range(0, len(group), size)]


def obstacle(run: Run) -> str | None:
    """Why ``run`` cannot be trained with others, if so."""
    if not method(run.method).separable:
        return f"the step of {run.method} is not the learning rate times a function of each weight's own gradients"
    if task(run.task).memory:
        return f"the network of {run.task} has a memory: each member would need its own"
    with torch.device("meta"):  # its structure is enough
        net = task(run.task).network()
    found = {type(m).__name__ for m in net.modules() if isinstance(m, _NormBase | _DropoutNd)}
    if found:
        return f"the network of {run.task} has {', '.join(sorted(found))}: statistics or random numbers of one member"
    return None


class Ensemble:
    """Runs under way together. Its ``members`` are ordinary trainings whose parameters are views of the stacked ones."""

    def __init__(self, runs: Sequence[Run], device: str | torch.device = "cpu", *, download: bool = True):
        _check(runs)
        self.members = [Training(run, device, download=download) for run in runs]
        self.epoch, first = 0, self.members[0]
        self.device, self.problem = first.device, first.problem
        for member in self.members[1:]:
            _share_data(member, first)
        nets = [member.problem.net for member in self.members]
        self.params = {name: p.detach() for name, p in stack_module_state(nets)[0].items()}
        for i, net in enumerate(nets):
            for name, p in net.named_parameters():
                p.data = self.params[name][i]
        self.updates = [torch.zeros_like(p) for p in self.params.values()]
        options = dict(runs[0].options) | {"lr": 1.0, "decay": 1.0, "weight_decay": 0.0}
        self.optimizer, _ = first.method.build(self.updates, runs[0].epochs, **options)
        self.same_batches = len({run.seed for run in runs}) == 1
        axis = None if self.same_batches else 0
        self.gradient = vmap(grad_and_value(self._loss), in_dims=(0, axis, axis))
        self.lr = self._of_each("lr")
        self.weight_decay = self._of_each("weight_decay")
        self.decays = bool(self.weight_decay.any())  # looked at once, here

    @property
    def over(self) -> bool:
        """Whether no member has anything left to train."""
        return all(member.over for member in self.members)

    def advance(self) -> None:
        """Train one epoch, then evaluate each member."""
        start = clock(self.device)
        steps = zip(*(self.step(x, y) for x, y in self.batches(self.epoch)), strict=True)
        losses, downhill = (torch.stack(part, 1).tolist() for part in steps)
        seconds = (clock(self.device) - start) / len(self.members)
        for member, row, descents, lr in zip(self.members, losses, downhill, self.lr.tolist(), strict=True):
            if not member.over:
                _record(member, row, descents, lr, seconds)
            member.optimizer.param_groups[0]["lr"] *= member.scheduler.gamma  # type: ignore[attr-defined]
        self.lr = self._of_each("lr")
        self.epoch += 1

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches x (M, B, ...), y (M, B) of the members' own orders; (B, ...) and (B,) where all have the same."""
        if self.same_batches:
            yield from self.problem.batches.epoch(epoch)
            return
        for pairs in zip(*(member.problem.batches.epoch(epoch) for member in self.members), strict=True):
            xs, ys = zip(*pairs, strict=True)
            yield torch.stack(xs), torch.stack(ys)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every member: their losses (M,) before it, the L² term included, and whether it went downhill (M,).

        Nothing waits for the device.
        """
        decoupled = self.members[0].method.decoupled
        gradients, losses = self.gradient(self.params, x, y)
        if self.decays and not decoupled:
            losses = losses + 0.5 * self.weight_decay * sum(p.square().flatten(1).sum(1) for p in self.params.values())
        for (name, p), update in zip(self.params.items(), self.updates, strict=True):
            update.zero_()
            update.grad = gradients[name]
            if self.decays and not decoupled:
                update.grad = update.grad + _along(self.weight_decay, p) * p
        self.optimizer.step()
        slopes: Any = sum(torch.sum((u.grad * u).flatten(1), 1) for u in self.updates)  # type: ignore[operator, misc]
        for p, update in zip(self.params.values(), self.updates, strict=True):
            if self.decays and decoupled:
                update -= _along(self.weight_decay, p) * p
            p.addcmul_(_along(self.lr, p), update)
        return losses, (slopes <= 0).to(losses)

    def _loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of one member."""
        outputs = functional_call(self.problem.net, params, (self.problem.inputs(x),))
        return self.problem.losses(outputs, x, y, self.problem.task.smoothing).mean()

    def _of_each(self, option: str) -> Tensor:
        """An option of each member (M,), from its optimizer, which knows the default."""
        values = [member.optimizer.param_groups[0][option] for member in self.members]
        return torch.tensor(values, dtype=self.updates[0].dtype, device=self.device)


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise InvalidInput("there are no runs to train")
    for run in runs:
        if why := obstacle(run):
            raise InvalidInput(f"{why}: use `train`")
        if _common(run) != _common(runs[0]):
            raise InvalidInput(
                f"runs that are trained together differ in their seeds and in {', '.join(OWN)}, these in more: group them "
                "with `ensembles`"
            )


def _common(run: Run) -> str:
    """What members have in common."""
    specification: dict[str, Any] = run.specification
    del specification["seed"]
    specification["options"] = {k: v for k, v in specification["options"].items() if k not in OWN}
    return json.dumps(specification, sort_keys=True)


def _share_data(member: Training, first: Training) -> None:
    """Let a member read the images of the first one: they are the same, only the order is its own."""
    batches = copy(member.problem.batches)
    batches.x, batches.y = first.problem.batches.x, first.problem.batches.y
    member.problem = replace(member.problem, batches=batches, held_out=first.problem.held_out)


def _record(member: Training, losses: list[float], descents: list[float], lr: float, seconds: float) -> None:
    """An epoch in a member's log, as `Training.advance` puts it there."""
    until = next((i for i, loss in enumerate(losses, start=1) if not math.isfinite(loss)), len(losses))
    wall = lambda: time.perf_counter() - member.began  # noqa: E731
    values = {"loss": losses[:until], "step": [lr] * until, DESCENT: descents[:until]}
    member.log.add(values, seconds, member.price.of(until, {}), wall, member.problem.evaluate)


def _along(of_each: Tensor, p: Tensor) -> Tensor:
    """(M,) as (M, 1, ...), so that it multiplies p (M, ...)."""
    return of_each.view(-1, *[1] * (p.dim() - 1))
