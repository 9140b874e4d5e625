"""What a step costs in gradients, counted in matrix products, so that methods can be compared on any machine."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from reprolib.lab.methods import method, take_step
from reprolib.lab.run import Run
from reprolib.tasks.task import Problem

_KNOWN: dict[tuple[Any, ...], float] = {}  # learning rates and the like do not change which products a step takes


def gradients_per_step(run: Run, problem: Problem) -> float:
    """Floating-point operations in the matrix products and convolutions of one step, over those of one gradient.

    Counted on a copy of the network and the first batch; the random state stays as it is. What a step does elementwise is
    not in it (METHODS, "cost unit"): the seconds of a history are there for that.
    """
    known = (run.task, run.method, run.batch_size, *(o for o in run.options if not isinstance(o[1], float)))
    if known in _KNOWN:
        return _KNOWN[known]
    net = deepcopy(problem.net)
    x, y = problem.batches.x[: run.batch_size], problem.batches.y[: run.batch_size]
    closure, loss = replace(problem, net=net).pair(x, y)
    params = list(net.parameters())
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        gradient = count(lambda: torch.autograd.grad(loss(closure()).mean(), params))
        optimizer, _ = method(run.method).build(params, run.epochs, **dict(run.options))
        step = count(lambda: take_step(optimizer, closure, loss))
    _KNOWN[known] = step / gradient
    return _KNOWN[known]


def count(f: Callable[[], Any]) -> int:
    """Floating-point operations of ``f`` in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()
