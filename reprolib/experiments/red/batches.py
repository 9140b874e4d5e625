"""RED with small batches, and the memory layer: RED's Figure 7. Does it collapse below one sample per class?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from reprolib.experiments.red.protocol import SEEDS, Figures
from reprolib.lab.plan import Plan
from reprolib.lab.run import Run
from reprolib.records.record import REPORTED, Record

METHOD = "red-sgd"
BATCHES = (4, 8, 16, 32, 64, 128, 256)
MEMORY = "-with-memory"
COLLAPSE = 0.7  # of the accuracy at the largest batch


@dataclass(frozen=True)
class Size:
    """A task (there is one with memory, too), its number of classes, and how it is trained."""

    task: str
    classes: int
    epochs: int
    train_size: int | None = None
    test_size: int | None = None
    batches: tuple[int, ...] = BATCHES
    seeds: tuple[int, ...] = SEEDS


SIZES = {
    "smoke": {
        "cifar10": Size("digits-convnet", 10, 2, batches=(4, 16, 256), train_size=512, seeds=(0,)),
        "cifar100": Size("digits-convnet", 10, 2, batches=(4, 16, 256), train_size=512, seeds=(0,)),
    },
    "desk": {
        "cifar10": Size("cifar10-convnet", 10, 5, 4000, 5000),
        "cifar100": Size("cifar100-convnet", 100, 5, 4000, 5000),
    },
    "paper": {
        "cifar10": Size("cifar10-vgg11", 10, 100),
        "cifar100": Size("cifar100-vgg19", 100, 100),
    },
}


def small_batches(scale: str, name: str) -> Plan:
    """Every batch size on all seeds, without memory and with."""
    size = SIZES[scale][name]
    histories = yield [
        Run.of(
            METHOD,
            task=size.task + kind,
            seed=seed,
            epochs=size.epochs,
            batch_size=batch,
            train_size=size.train_size,
            test_size=size.test_size,
        )
        for kind in ("", MEMORY)
        for batch in size.batches
        for seed in size.seeds
    ]
    return {REPORTED: histories}, {"classes": {size.task: size.classes}}


def with_batch(record: Record) -> pd.DataFrame:
    """The record's table with columns ``batch`` and ``memory`` (bool); ``task`` is the one without."""
    batches = {k: r["specification"]["batch_size"] for k, r in record.runs.items()}
    table = record.table
    memory = table["task"].str.endswith(MEMORY)
    return table.assign(batch=table["key"].map(batches), memory=memory, task=table["task"].str.removesuffix(MEMORY))


def accuracies(record: Record) -> pd.DataFrame:
    """Final test accuracy and seconds per epoch, by task, memory, batch and seed; 0 for a run that did not end well."""
    table = with_batch(record)
    ended = table["key"].map({k: r["status"] == "finished" for k, r in record.runs.items()})
    last = table.assign(ended=ended).groupby(["task", "memory", "batch", "seed"]).last()
    return pd.DataFrame(
        {"accuracy": last["test_accuracy"].where(last["ended"], 0.0), "seconds": last["seconds"] / last["epoch"]}
    )


def judged(record: Record) -> list[dict[str, str]]:
    """Claims red-c20 and red-c21."""
    seen, accuracy = Figures(record), accuracies(record)["accuracy"]
    rows = seen.drawn("fig7")
    for task, classes in record.notes["classes"].items():
        plain, memory = (accuracy[task, kind].unstack("batch") for kind in (False, True))  # (seed, batch)
        batches = list(plain.columns)
        large, small = max(batches), [b for b in batches if b < classes]
        enough = [b for b in batches if b >= classes]
        rows += [
            seen.by_seed(
                "red-c20",
                "RED collapses when the batch is smaller than the number of classes",
                task,
                f"accuracy below {COLLAPSE:g} × that at B = {large} for each B < {classes}, and for no other B",
                [
                    all(plain[b][s] < COLLAPSE * plain[large][s] for b in small)
                    and all(plain[b][s] >= COLLAPSE * plain[large][s] for b in enough)
                    for s in seen.seeds
                ],
            ),
            seen.by_seed(
                "red-c21",
                "the memory layer restores most of what is lost",
                task,
                f"where B < {classes} loses accuracy against B = {large}, memory brings back at least half of it",
                [restored(plain.loc[s, small], memory.loc[s, small], plain[large][s]) for s in seen.seeds],
            ),
        ]
    return rows


def restored(plain: pd.Series, memory: pd.Series, large: float) -> bool | None:
    """Whether memory brings back half of what each small batch loses against the largest; ``None`` if none loses."""
    lost = large - plain
    return bool((memory - plain >= 0.5 * lost)[lost > 0].all()) if (lost > 0).any() else None
