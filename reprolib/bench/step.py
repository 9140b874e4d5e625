"""What a whole step costs: time and memory as ratios to one gradient of the same network and batch.

Where the steps of a method are not alike, as with a summary or a test of the damping now and then, a whole period of them
is measured, and the mean of its steps is reported; it begins after the first step, which has no momentum yet. Every round
begins in the same state, so that all do the same work. Beside the time stands what it would be if only matrix products
took time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import Tensor

from reprolib.bench.harness import NETWORKS, Bench, Costs, clock, peak_memory, take_turns
from reprolib.errors import SkippedStep, UnknownName
from reprolib.lab.cost import count, period
from reprolib.optim import RED, Adler, CurveBall, NewtonCG, NewtonSummary

SELECTION = ("lenet", "mlp", "vgg11")
GOALS: dict[str, tuple[float, ...]] = {  # time in gradients, one for each of the selection: set before, not enforced
    "red-sgd": (1.55, 1.75, 1.75),
    "adler": (1.5, 1.9, 1.95),
    "curveball": (1.95, 2.7, 2.8),
    "summary": (3.7, 4.5, 6.5),
}
# as large as so many batches: what a summary sees, and the data of the global gradient
BATCHES = {"summary": 10, "csdd": 20}
FURTHER = {"summary": "summary", "csdd": "full"}
PARTS = ("global", "cg", "tries")  # of a step of NewtonCG: the global gradient, CG, the lengths that are tried
COLUMNS = (
    *("network", "method", "steps", "seconds", "time", "spread", "memory", "products"),
    *(f"share_{part}" for part in PARTS),
    *("iterations", "tries", "threads"),
)


class Timed(NewtonCG):
    """NewtonCG with a clock: ``log`` has the seconds of the ``PARTS`` of each step."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.log: list[dict[str, float]] = []
        self.since = 0.0  # the end of the last part

    def step(self, *arguments: Any, **further: Any) -> Tensor:  # type: ignore[override]
        """A step as ever, with a new entry of the log."""
        self.log.append(dict.fromkeys(PARTS, 0.0))
        return super().step(*arguments, **further)

    def _global(self, *arguments: Any) -> Any:
        self._lap()
        found = super()._global(*arguments)
        self._lap("global")
        return found

    def _length(self, *arguments: Any) -> Any:
        self._lap("cg")  # what lies between the other two
        found = super()._length(*arguments)
        self._lap("tries")
        return found

    def _lap(self, part: str | None = None) -> None:
        now = clock(str(self.param_groups[0]["params"][0].device))
        if part:
            self.log[-1][part] = now - self.since
        self.since = now


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "red-sgd": RED,
    "adler": Adler,
    "curveball": CurveBall,
    "summary": NewtonSummary,
    "csdd": Timed,
}


class Steps:
    """A period of steps of a method, on a copy of the network and the first ``batch`` samples of ``data``.

    The optimizer has its default options, without the check of an invariant in every hundredth step.
    """

    def __init__(self, name: str, data: Bench, batch: int):
        self.net = deepcopy(data.net)
        parts = [Bench(self.net, x, y) for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True)]
        self.batch, self.further = parts[0], dict[str, Any]()
        if name in BATCHES:  # batch by batch, as the lab's methods have it
            chosen = parts[-BATCHES[name] :]
            self.further = {FURTHER[name]: [(part.closure, part.loss) for part in chosen]}
        self.optimizer = OPTIMIZERS[name](self.batch.params, check_every=10**9)
        self.steps = period(self.optimizer)
        if self.steps > 1:
            self._step()
        self._start = deepcopy((self.net.state_dict(), self.optimizer.state_dict()))
        self._step()  # the first one also checks itself

    def reset(self) -> None:
        """Back to the beginning of the period."""
        weights, state = self._start
        self.net.load_state_dict(weights)
        self.optimizer.load_state_dict(deepcopy(state))

    def __call__(self) -> None:
        """The period."""
        for _ in range(self.steps):
            self._step()

    def _step(self) -> None:
        self.optimizer.step(self.batch.closure, self.batch.loss, **self.further)


def measure(
    name: str, *, device: str = "cpu", rounds: int = 7, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """A row for the gradient of network ``name`` and for a step of each method.

    ``steps`` are those of a period; ``seconds``, ``time`` and ``spread`` (the largest minus the smallest, both in gradients)
    are of one step, their mean; ``memory`` is the peak and ``products`` the counted matrix products, in gradients too. Of
    NewtonCG there are also the shares that its parts have in the time, and how many CG ``iterations`` and ``tries`` of a
    length they took.
    """
    if name not in NETWORKS:
        raise UnknownName.among("network", name, NETWORKS)
    size = NETWORKS[name][1]
    data = Bench.of(name, device, batches=max(BATCHES.values()))
    batch = data.first(size)
    products, memory = count(batch.gradient), peak_memory(batch.gradient, device)
    rows: list[dict[str, Any]] = [{"method": "gradient", "steps": 1, "memory": 1.0, "products": 1.0}]
    todo: list[Steps] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStep)
        for method in OPTIMIZERS:
            say(f"{name}: trying {method}")
            steps = Steps(method, data, size)
            steps.reset()
            counted = count(steps) / steps.steps / products
            peak = peak_memory(steps, device, steps.reset) / memory
            rows.append({"method": method, "steps": steps.steps, "memory": peak, "products": counted})
            todo.append(steps)
        calls: list[Callable[[], Any]] = [batch.gradient, *todo]
        before: list[Callable[[], Any]] = [lambda: None, *(steps.reset for steps in todo)]
        taken = take_turns(calls, device, rounds, lambda line: say(f"{name}: {line}"), before)
    unit = median(taken[0])
    for row, seconds in zip(rows, taken, strict=True):
        each = [s / row["steps"] for s in seconds]
        row |= {"network": name, "seconds": median(each), "time": median(each) / unit}
        row |= {"spread": (max(each) - min(each)) / unit, "threads": torch.get_num_threads()}
    cg: Timed = todo[-1].optimizer
    for part in PARTS:
        shares = [laps[part] / s for laps, s in zip(cg.log[-rounds:], taken[-1], strict=True)]
        rows[-1][f"share_{part}"] = median(shares)
    rows[-1] |= {what: int(cg.diagnostics[what]) for what in ("iterations", "tries")}
    return rows


def goal(method: str, network: str) -> float | None:
    """The time that a step should take at most, if there is such a goal."""
    if method not in GOALS or network not in SELECTION:
        return None
    return GOALS[method][SELECTION.index(network)]


def costs(rows: list[dict[str, Any]], device: str, rounds: int, minutes: float) -> Costs:
    """The rows with their provenance; ``minutes`` of processor time is what they took."""
    return Costs.of(rows, device, rounds, minutes, columns=COLUMNS, also=(), batches=BATCHES)
