"""What an epoch of RED takes beside one of SGD and RMSProp, on the paper's four networks: the seconds of RED's Table 3.

The four methods are trained in turns, for a few steps, so that they meet the same machine.
"""

from __future__ import annotations

from reprolib.experiments.column import Column
from reprolib.experiments.red.protocol import BASELINES, PAIRS, Figures, seeds
from reprolib.lab.methods import method
from reprolib.lab.plan import Plan
from reprolib.records.record import REPORTED, Record

NAME = "red/seconds"
CHAPTER = "red/benchmark"  # that shows it
DENSE, CONVOLUTIONAL = "dense", "convolutional"
COLUMNS = {
    "smoke": {
        DENSE: (Column("digits-classifier", 2, 256), Column("digits-autoencoder", 2, 256)),
        CONVOLUTIONAL: (Column("digits-convnet", 2, 256), Column("digits-convnet-with-batch-norm", 2, 256)),
    },
    "night": {
        DENSE: tuple(
            Column(name, 2, 256, train_size=12_800, test_size=100) for name in ("mnist-classifier", "mnist-autoencoder")
        ),
        CONVOLUTIONAL: tuple(
            Column(name, 2, 256, train_size=768, test_size=100) for name in ("cifar10-vgg11", "cifar100-vgg19")
        ),
    },
}


def plan(scale: str) -> Plan:
    """Task by task and seed by seed, each RED next to its baseline."""
    columns = [column for kind in COLUMNS[scale].values() for column in kind]
    histories = yield [
        run
        for column in columns
        for seed in seeds(scale)
        for pair in PAIRS
        for name in pair
        for run in column.runs(name, [seed], BASELINES.get(name))
    ]
    kinds = {column.task: kind for kind, columns in COLUMNS[scale].items() for column in columns}
    return {REPORTED: histories}, {"kinds": kinds}


def verdicts(record: Record) -> list[dict[str, str]]:
    """Claim red-tab3-time: each task by itself, and the dense ones against the convolutional ones."""
    seen, kinds = Figures(record), record.notes["kinds"]
    ratios = {red: seen.ratio_of_seconds(red, baseline) for red, baseline in PAIRS}  # by task and seed

    def of(red: str, kind: str, seed: int) -> list[float]:
        return [ratios[red][task][seed] for task in seen.tasks if kinds[task] == kind]

    return [row for task in seen.tasks for row in seen.affordable(task)] + [
        seen.by_seed(
            "red-tab3-time",
            f"{method(red).label} is cheaper on dense tasks than on convolutional ones",
            task,
            "its seconds over the baseline's are below those of each convolutional task",
            [ratios[red][task][s] < min(of(red, CONVOLUTIONAL, s)) for s in seen.seeds],
        )
        for task in seen.tasks
        if kinds[task] == DENSE
        for red, _ in PAIRS
    ]
