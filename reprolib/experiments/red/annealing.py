"""RAn against RED: RED's Figure 3. ℓ runs through 1, ½, 2 again and again; does the loss rise at 2, and where does it end?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reprolib.experiments.red.protocol import COLUMNS, RED_METHODS, Figures, seeds
from reprolib.lab.methods import RAN, method
from reprolib.lab.plan import Plan
from reprolib.lab.train import History
from reprolib.records.record import REPORTED, Record
from reprolib.show.slices import loss_along
from reprolib.tasks import task

CYCLES = {"smoke": (2, 5, 1), "desk": (2, 5, 1), "paper": (5, 13, 2)}  # epochs at ℓ = 1, ½, 2
BARRIER = 0.1  # of the larger of the losses at the two ends
POINTS = 21  # on a segment
SAMPLES = 1000  # whose loss is computed there


def annealing(scale: str, name: str) -> Plan:
    """RED and RAn from the same weights, with the same batches; then the loss on the segments between their ends.

    A campaign does not carry weights from machine to machine, so its record has no segments.
    """
    column, options = COLUMNS[scale][name], {"schedule": "ran", "cycle": CYCLES[scale]}
    red = [run for name in RED_METHODS for run in column.runs(name, seeds(scale))]
    ran = [run for name in RED_METHODS for run in column.runs(name, seeds(scale), options)]
    histories = yield [*red, *ran]
    pairs = zip(histories[: len(red)], histories[len(red) :], strict=True)
    segments = [segment(a, b) for a, b in pairs if a.end and b.end]
    return {REPORTED: histories}, {"segments": segments}


def segment(a: History, b: History) -> dict[str, Any]:
    """The training loss on the segment from the last weights of ``a`` to those of ``b``, and its barrier.

    The barrier is the highest loss over the larger of the two at the ends, minus 1. Batch-norm uses the statistics of the
    samples, which are the first of the training set, not augmented.
    """
    assert a.end is not None and b.end is not None
    run = a.run
    problem = task(run.task).build(
        run.seed, batch_size=SAMPLES, train_size=run.train_size, test_size=1, dtype=getattr(torch, run.dtype)
    )
    problem.net.load_state_dict(b.end)
    other = [p.detach().clone() for p in problem.net.parameters()]
    problem.net.load_state_dict(a.end)
    params = list(problem.net.parameters())
    direction = [p.detach() - q for p, q in zip(params, other, strict=True)]  # slices step against their direction
    ts = torch.linspace(0, 1, POINTS).tolist()
    closure, loss = problem.pair(problem.batches.x[:SAMPLES], problem.batches.y[:SAMPLES])
    losses = loss_along(closure, loss, params, direction, ts).tolist()
    height = max(losses) / max(losses[0], losses[-1]) - 1
    where = {"task": run.task, "method": run.method, "seed": run.seed}
    return where | {"t": ts, "loss": [round(x, 6) for x in losses], "barrier": round(height, 6)}


def phases(cycle: Sequence[int], epochs: int) -> list[tuple[int, int, float]]:
    """(first epoch, last epoch, ℓ) of the phases of RAn, epochs from 1; the last phase may be cut short.

    >>> phases((2, 5, 1), 9)
    [(1, 2, 1.0), (3, 7, 0.5), (8, 8, 2.0), (9, 9, 1.0)]
    """
    found, start = [], 1
    while start <= epochs:
        for length, ell in zip(cycle, RAN, strict=True):
            if start <= epochs:
                found.append((start, min(start + length - 1, epochs), ell))
            start += length
    return found


def changes(losses: Sequence[float], cycle: Sequence[int]) -> list[tuple[float, float]]:
    """(ℓ, change) of each phase: the mean loss of its last epoch minus that of the epoch before it.

    ``losses`` are the epochs' means. The first phase has no epoch before it, its own first one stands in.
    """
    return [
        (ell, losses[last - 1] - losses[max(first - 2, 0)])
        for first, last, ell in phases(cycle, len(losses))
        if last > 1
    ]


def cycle_of(record: Record) -> Sequence[int]:
    """Epochs of RAn's phases in a record."""
    return next(r["specification"]["options"]["cycle"] for r in record.runs.values() if _anneals(r))


def _anneals(run: dict[str, Any]) -> bool:
    return "schedule" in run["specification"]["options"]


def split(record: Record) -> tuple[Record, Record]:
    """The runs of RED, and those of RAn, as records of their own."""

    def part(annealed: bool) -> Record:
        chosen = {k: r for k, r in record.runs.items() if _anneals(r) == annealed}
        rows = record.rows[record.rows["key"].isin(list(chosen))]
        return Record(record.name, record.scale, rows, chosen, record.notes, record.judged_by)

    return part(False), part(True)


def judged(record: Record, left_open: Sequence[str] = ()) -> list[dict[str, str]]:
    """Claims red-c07 to red-c09, each seed by itself; of the methods that are ``left_open`` the paper says nothing certain."""
    _, annealed = split(record)
    seen, rows = Figures(annealed), Figures(record).drawn("fig3")
    for name in seen.tasks:
        for red in RED_METHODS:
            label = method(red).label
            of_seed = [
                changes(seen.run(name, red, s)["epoch_loss"].dropna().tolist(), cycle_of(record)) for s in seen.seeds
            ]
            rises = [[c > 0 for ell, c in seed if ell == 2] for seed in of_seed]
            falls = [[c for ell, c in seed if ell == 0.5] for seed in of_seed]
            holds = [[c for ell, c in seed if ell == 1] for seed in of_seed]
            rows += [
                seen.by_seed(
                    "red-c07",
                    f"with {label} hyperexploration raises the training loss",
                    name,
                    "it rises in at least 90 % of the phases with ℓ = 2, and falls in the mean of those with ℓ = ½",
                    [sum(r) >= 0.9 * len(r) and sum(f) < 0 for r, f in zip(rises, falls, strict=True)],
                ),
                seen.by_seed(
                    "red-c08",
                    f"with {label} ℓ = 1 does not raise the training loss",
                    name,
                    "its mean change over the phases with ℓ = 1 is at most 0",
                    [sum(h) <= 0 for h in holds],
                ),
            ]
            barriers = [s["barrier"] for s in record.notes["segments"] if (s["task"], s["method"]) == (name, red)]
            if barriers:
                rows.append(
                    seen.by_seed(
                        "red-c09",
                        f"{label} with and without annealing end in different basins",
                        name,
                        f"on the segment between the ends the training loss rises more than {100 * BARRIER:g} % above both",
                        [None if red in left_open else b > BARRIER for b in barriers],
                    )
                )
    return rows
