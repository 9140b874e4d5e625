"""What RED costs: claims that no experiment judges alone, but several of their records together, or a benchmark.

Table 3 compares tasks with each other, and each task has a record of its own. Theorem 1 and the recurrence for Hd speak of
memory, which tests do not measure: the benchmark ``curvature-cost`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import nn

from reprolib.bench.harness import Costs
from reprolib.experiments.red.protocol import PAIRS, Figures, row
from reprolib.lab.methods import method
from reprolib.records.record import Record, folder
from reprolib.records.scale import SCALES
from reprolib.records.verdict import by_seed, over_cases
from reprolib.tasks import task

Rows = list[dict[str, str]]
COST = "curvature-cost.cpu"  # the record of `reprolib bench curvature`
TOLERANCE = 0.05  # of a ratio of memories
# claim, what it says, quantity and library of the benchmark, what the paper counts in gradients
MEMORY = (
    ("red-thm1-memory", "curvature with everything stored", "curvature", "reprolib", 2),
    ("red-thm1-memory", "curvature with recomputation", "curvature-recompute", "reprolib", 1),
    ("red-hvpcost-memory", "Hd by double backward", "hessian-product", "torch", 3),
)


def verdicts(judged: Sequence[tuple[Record, Rows]]) -> Rows:
    """Rows as those of an experiment, and their ``scale``; ``judged`` are the records with what each says alone."""
    timed = [record for record, rows in judged if any(found["claim"] == "red-tab3-time" for found in rows)]
    path = folder() / COST
    costs = [Costs.load(path)] if Costs.exists(path) else []
    return dense_is_cheaper(timed) + [found for of in costs for found in memory(of)]


def dense_is_cheaper(records: Sequence[Record]) -> Rows:
    """Claim red-tab3-time: on each dense task an epoch of RED adds less to the baseline's than on any convolutional one."""
    ratios = {name: table for record in records for name, table in seconds(record).items()}
    convolutional = [name for name in ratios if convolves(name)]
    scale = min((record.scale for record in records), key=SCALES.index, default="")
    if not convolutional:
        return []

    def holds(name: str, red: str) -> list[bool]:
        """In each seed that all of them have."""
        side_by_side = pd.concat([ratios[other][red] for other in (name, *convolutional)], axis=1, join="inner")
        return (side_by_side.iloc[:, 0] < side_by_side.iloc[:, 1:].min(axis=1)).tolist()

    return [
        row(
            "red-tab3-time",
            f"an epoch of {method(red).label} is cheaper than on convolutional tasks",
            name,
            "its seconds, in those of the baseline's, are fewer than on each convolutional task",
            by_seed(holds(name, red)),
        )
        | {"scale": scale}
        for name in ratios
        if name not in convolutional
        for red, _ in PAIRS
    ]


def seconds(record: Record) -> dict[str, pd.DataFrame]:
    """Of each task: seconds of an epoch in those of the baseline's, by seed and method."""
    seen = Figures(record)
    table = pd.DataFrame({red: seen.ratio_of_seconds(red, baseline) for red, baseline in PAIRS})
    return {name: table.loc[name] for name in seen.tasks}


def convolves(name: str) -> bool:
    """Whether the network of a task has convolutions."""
    return any(isinstance(m, nn.Conv2d) for m in task(name).network().modules())


def memory(costs: Costs) -> Rows:
    """Claims red-thm1-memory and red-hvpcost-memory, over the networks of the benchmark."""
    found = []
    for claim, what, quantity, library, count in MEMORY:
        table = costs.table[(costs.table["quantity"] == quantity) & (costs.table["library"] == library)]
        peaks = table["memory"].dropna()
        if len(peaks):
            limit = count + TOLERANCE
            statement = f"{what} takes the memory of {count} gradient{'s' * (count != 1)}"
            criterion = f"peak memory ≤ {limit:g} × a gradient's on each of {len(peaks)} networks"
            found.append(row(claim, statement, "", criterion, over_cases((peaks <= limit).tolist())) | {"scale": ""})
    return found
