"""How fast methods train: steps per second, alone, and several runs one after the other or as one ensemble.

The candidates take turns in one process, as in `bench`: the medians over the rounds are reported, absolute and in steps
of SGD on the same task.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reprolib.bench.harness import Costs, take_turns
from reprolib.errors import InvalidInput, SkippedStep
from reprolib.lab.ensemble import Ensemble
from reprolib.lab.methods import take_step
from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.train import Training

TASKS = ("digits-classifier", "mnist-lenet5", "mnist-autoencoder")
OPTIONS: dict[str, dict[str, Any]] = {"sgd": {"lr": 0.01}, "red-sgd": {}}
COLUMNS = ("task", "method", "how", "members", "batch_size", "seconds", "per_second", "time", "spread", "threads")


def measure(
    name: str,
    *,
    device: str = "cpu",
    rounds: int = 7,
    steps: int = 50,
    members: int = 8,
    batch_size: int = 100,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """A row per candidate on task ``name``.

    ``seconds`` are those of one step of one run and ``per_second`` its inverse; ``time`` and ``spread`` (the largest minus
    the smallest) are ``seconds`` in steps of SGD alone. Loading the batches is part of a step.
    """
    if min(rounds, steps, members, batch_size) < 1:
        raise InvalidInput(f"{rounds=}, {steps=}, {members=}, {batch_size=}: give at least 1")

    def run(method: str, seed: int = 0) -> Run:
        return Run.of(method, task=name, epochs=1, batch_size=batch_size, seed=seed, options=OPTIONS[method])

    several = [run("sgd", seed) for seed in range(members)]
    candidates: list[tuple[str, str, int, Callable[[], Any]]] = [
        (method, "alone", 1, separate([run(method)], device, steps)) for method in OPTIONS
    ]
    candidates += [
        ("sgd", "separate", members, separate(several, device, steps)),
        ("sgd", "together", members, together(several, device, steps)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStep)
        for _, _, _, go in candidates:
            go()  # what is only done once is not measured
        taken = take_turns([go for *_, go in candidates], device, rounds, lambda line: say(f"{name}: {line}"))
    rows = []
    unit = median(taken[0]) / steps
    for (method, how, m, _), seconds in zip(candidates, taken, strict=True):
        each = [s / (steps * m) for s in seconds]
        row = {"task": name, "method": method, "how": how, "members": m, "batch_size": batch_size}
        row |= {"seconds": median(each), "per_second": 1 / median(each)}
        row |= {"time": median(each) / unit, "spread": (max(each) - min(each)) / unit}
        rows.append(row | {"threads": torch.get_num_threads()})
    return rows


def separate(runs: Sequence[Run], device: str, steps: int) -> Callable[[], None]:
    """So many steps of each run, one run after the other; each call goes on where the last one ended."""
    trainings = [Training(run, device) for run in runs]
    streams = [_endless(training.problem.batches.epoch) for training in trainings]

    def go() -> None:
        for training, stream in zip(trainings, streams, strict=True):
            for x, y in islice(stream, steps):
                take_step(training.optimizer, *training.problem.pair(x, y))

    return go


def together(runs: Sequence[Run], device: str, steps: int) -> Callable[[], None]:
    """The same steps as an ensemble."""
    ensemble = Ensemble(runs, device)
    stream = _endless(ensemble.batches)

    def go() -> None:
        for x, y in islice(stream, steps):
            ensemble.step(x, y)

    return go


def _endless(epoch: Callable[[int], Iterator[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    for number in count():
        yield from epoch(number)


def costs(rows: list[dict[str, Any]], device: str, minutes: float, **settings: int) -> Costs:
    """The rows with their provenance; ``minutes`` of processor time is what they took."""
    about = {"environment": environment(device), "minutes": round(minutes, 1), **settings}
    return Costs(pd.DataFrame(rows, columns=list(COLUMNS)), about)
