"""What a step costs in gradients, counted in matrix products, so that methods can be compared on any machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from reprolib.errors import SkippedStep
from reprolib.lab.methods import further_data, method, take_step
from reprolib.lab.run import Run
from reprolib.optim import RED, CurveBall, NewtonSummary
from reprolib.tasks.task import Problem

# whose steps do not all cost the same: after how many of them the costs repeat
PERIODS: dict[type, Callable[[dict[str, Any]], int]] = {
    NewtonSummary: lambda options: options["period"],
    RED: lambda options: options["every"],
    CurveBall: lambda options: options["every"] * (options["test_every"] if options["auto_damping"] else 1),
}
Closure = Callable[[], Tensor]
Loss = Callable[[Tensor], Tensor]
_KNOWN: dict[tuple[Any, ...], float] = {}  # rates that are not zero do not change which products a step takes


def gradients_per_step(run: Run, problem: Problem) -> float:
    """Floating-point operations in the matrix products and convolutions of one step, over those of one gradient.

    Counted on a copy of the network and the first batch; the random state stays as it is. Methods in ``PERIODS``: the mean
    over a whole period. What a step does elementwise is not in it (METHODS, "cost unit"): the seconds of a history are there
    for that.
    """
    options = ((name, bool(v) if isinstance(v, float) else v) for name, v in run.options)
    # a summary's batch is never larger than the data
    known = (run.task, run.method, run.batch_size, len(problem.batches.x), *options)
    if known in _KNOWN:
        return _KNOWN[known]
    copy = replace(problem, net=deepcopy(problem.net))
    with apart(copy) as (closure, loss, params):
        gradient = count(lambda: torch.autograd.grad(loss(closure()).mean(), params))
        optimizer, _ = method(run.method).build(params, run.epochs, **dict(run.options))
        further = further_data(optimizer, copy, 0)
        step = per_step(optimizer, lambda: take_step(optimizer, closure, loss, **further))
    _KNOWN[known] = step / gradient
    return _KNOWN[known]


@contextmanager
def apart(problem: Problem) -> Iterator[tuple[Closure, Loss, list[Tensor]]]:
    """Closure and loss of the first batch, and the parameters; the random state comes back as it was."""
    x, y = problem.batches.x[: problem.batches.size], problem.batches.y[: problem.batches.size]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield (*problem.pair(x, y), list(problem.net.parameters()))


def per_step(optimizer: torch.optim.Optimizer, step: Callable[[], Any]) -> float:
    """Operations of one ``step`` of ``optimizer``, which is new: of its first, or the mean over a period."""
    if type(optimizer) not in PERIODS:
        return count(step)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the products are the same, and nothing can diverge
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStep)
        step()  # the first one has no momentum yet
        steps = period(optimizer)
        return count(lambda: [step() for _ in range(steps)]) / steps


def period(optimizer: torch.optim.Optimizer) -> int:
    """After how many steps their costs repeat."""
    of = PERIODS.get(type(optimizer))
    return of(optimizer.param_groups[0]) if of else 1


def count(f: Callable[[], Any]) -> int:
    """Floating-point operations of ``f`` in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()
