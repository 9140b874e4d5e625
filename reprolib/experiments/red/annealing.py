"""RAn against RED: RED's Figure 3. ℓ runs through 1, ½, 2 again and again; does the loss rise at 2, and where does it end?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from reprolib.experiments.red.protocol import ENDS, RED_METHODS, Figures, column_of, seeds
from reprolib.lab.methods import RAN, method
from reprolib.lab.plan import Plan
from reprolib.lab.train import History
from reprolib.records.record import REPORTED, Record
from reprolib.show.slices import loss_along
from reprolib.tasks import task

CYCLES = {"smoke": (1, 3, 1), "desk": (2, 5, 1), "night": (5, 13, 2), "paper": (5, 13, 2)}  # epochs at ℓ = 1, ½, 2
LENGTHS = {"night": 58}  # epochs, where they are not the column's: two cycles and all but the last phase of a third
CONTROLLED = ("smoke", "night")  # scales whose last phase is at ℓ = ½, with a control beside it
OTHER_ORDER = 100  # its batches are those of the seed plus this
BARRIER = 0.1  # of the larger of the losses at the two ends
RAN_END, CONTROL_END = "RAn", "RED, other batches"  # where a segment leads
POINTS = 21  # on a segment
SAMPLES = 1000  # whose loss is computed there


def annealing(scale: str, name: str) -> Plan:
    """RED and RAn from the same weights, with the same batches; then the loss on the segments between their ends.

    The control is RED again, from the same weights with batches in another order: two runs that differ in nothing else may
    end in different basins, too. Where weights are not kept there are no segments.
    """
    column = column_of(scale, name)
    column = replace(column, epochs=LENGTHS.get(scale, column.epochs), fields_of=ENDS)
    annealed = {"schedule": "ran", "cycle": CYCLES[scale]}
    red, ran = ([run for m in RED_METHODS for run in column.runs(m, seeds(scale), o)] for o in ({}, annealed))
    control = [replace(run, batch_seed=run.seed + OTHER_ORDER) for run in red] if scale in CONTROLLED else []
    histories = yield [*red, *ran, *control]
    n, segments = len(red), []
    for kind, others in ((RAN_END, histories[n : 2 * n]), (CONTROL_END, histories[2 * n :])):
        pairs = zip(histories[: len(others)], others, strict=True)
        segments += [segment(a, b) | {"to": kind} for a, b in pairs if a.end and b.end]
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


def held(losses: Sequence[float], cycle: Sequence[int]) -> list[float]:
    """Change over each phase at ℓ = 1 that follows one at ℓ = 2, against the epoch before that: where no peak was yet.

    >>> held([9.0, 4.0, 6.0, 5.0, 3.0], (1, 1, 1))
    [1.0]
    """
    parts = phases(cycle, len(losses))
    return [
        losses[last - 1] - losses[parts[i - 1][0] - 2]
        for i, (_, last, ell) in enumerate(parts)
        if i and ell == 1  # its predecessor is at ℓ = 2
    ]


def cycle_of(record: Record) -> Sequence[int]:
    """Epochs of RAn's phases in a record."""
    return next(r["specification"]["options"]["cycle"] for r in record.runs.values() if _anneals(r))


def _anneals(run: dict[str, Any]) -> bool:
    return "schedule" in run["specification"]["options"]


def split(record: Record) -> tuple[Record, Record]:
    """The runs of RED, and those of RAn, as records of their own; the control is in neither."""

    def part(annealed: bool) -> Record:
        chosen = {
            k: r for k, r in record.runs.items() if _anneals(r) == annealed and "batch_seed" not in r["specification"]
        }
        rows = record.rows[record.rows["key"].isin(list(chosen))]
        return Record(record.name, record.scale, rows, chosen, record.notes, record.judged_by)

    return part(False), part(True)


def settled(record: Record) -> bool:
    """Whether the last phase of RAn is one at ℓ = ½, so that nothing has just raised its end."""
    epochs = {r["specification"]["epochs"] for r in record.runs.values() if _anneals(r)}
    return all(phases(cycle_of(record), n)[-1][2] == 0.5 for n in epochs)


def judged(record: Record, left_open: Sequence[str] = ()) -> list[dict[str, str]]:
    """Claims red-c07 to red-c09, each seed by itself; of the methods that are ``left_open`` the paper says nothing certain."""
    plain, annealed = (Figures(part) for part in split(record))
    (name,), cycle, rows = annealed.tasks, cycle_of(record), Figures(record).drawn("fig3")
    barriers = {(s["method"], s["seed"], s.get("to", RAN_END)): s["barrier"] for s in record.notes["segments"]}

    def by_seed(red: str, holds: Callable[[str, int], bool | None]) -> list[bool | None]:
        """Where RED has learned, and RAn has begun to."""
        begun = [annealed.begun(annealed.run(name, red, s)) for s in annealed.seeds]
        told = [plain.told(holds(red, s), [plain.run(name, red, s)]) for s in annealed.seeds]
        return [answer if ok else None for answer, ok in zip(told, begun, strict=True)]

    def losses(red: str, seed: int) -> list[float]:
        return annealed.run(name, red, seed)["epoch_loss"].dropna().tolist()

    def elsewhere(red: str, seed: int) -> bool | None:
        ran, control = (barriers.get((red, seed, to)) for to in (RAN_END, CONTROL_END))
        if ran is None or control is None or red in left_open or not settled(record):
            return None
        return ran > max(BARRIER, control)

    for red in RED_METHODS:
        label = method(red).label
        rows += [
            annealed.by_seed(
                "red-c07",
                f"with {label} hyperexploration raises the training loss",
                name,
                "it rises in at least 90 % of the phases with ℓ = 2, and falls in the mean of those with ℓ = ½",
                by_seed(red, lambda *run: raised(losses(*run), cycle) and lowered(losses(*run), cycle)),
            ),
            annealed.by_seed(
                "red-c08",
                f"with {label} ℓ = 1 does not raise the training loss",
                name,
                "over the phases with ℓ = 1 it does not rise in the mean, against the level before the ℓ = 2 that precedes",
                by_seed(red, lambda *run: not_raised(losses(*run), cycle)),
            ),
        ]
        if any(key[0] == red for key in barriers):
            rows.append(
                annealed.by_seed(
                    "red-c09",
                    f"{label} with and without annealing end in different basins",
                    name,
                    f"on the segment between the ends, RAn's after ℓ = ½, the training loss rises more than "
                    f"{100 * BARRIER:g} % above both, and more than on that to RED's end with other batches",
                    by_seed(red, elsewhere),
                )
            )
    return rows


def raised(losses: Sequence[float], cycle: Sequence[int]) -> bool | None:
    """Whether the loss rises in at least nine of ten phases with ℓ = 2; ``None`` if there is none."""
    rises = [c > 0 for ell, c in changes(losses, cycle) if ell == 2]
    return sum(rises) >= 0.9 * len(rises) if rises else None


def lowered(losses: Sequence[float], cycle: Sequence[int]) -> bool:
    """Whether it falls over the phases with ℓ = ½, in the mean."""
    return sum(c for ell, c in changes(losses, cycle) if ell == 0.5) < 0


def not_raised(losses: Sequence[float], cycle: Sequence[int]) -> bool | None:
    """Whether it does not rise over the phases with ℓ = 1, in the mean; ``None`` if none follows one with ℓ = 2."""
    later = held(losses, cycle)
    return sum(later) <= 0 if later else None
