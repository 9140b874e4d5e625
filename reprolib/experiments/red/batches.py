"""RED with small batches, and the memory layer: RED's Figure 7. Does it collapse below one sample per class?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from reprolib.experiments.red.protocol import SEEDS, Figures
from reprolib.lab.cost import count
from reprolib.lab.plan import Plan
from reprolib.lab.run import Run
from reprolib.records.record import REPORTED, Record
from reprolib.tasks import task

METHOD = "red-sgd"
BATCHES = (4, 8, 16, 32, 64, 128, 256)
MEMORY = "-with-memory"
COLLAPSE = 0.7  # of the accuracy at the largest batch
SMALL_FACTOR, MOSTLY = (
    1.5,
    0.9,
)  # of the time without memory, where so much of a step's products are not the last layer's


@dataclass(frozen=True)
class Size:
    """A task (there is one with memory, too), its number of classes, and how it is trained."""

    task: str
    classes: int
    epochs: int | None
    train_size: int | None = None
    test_size: int | None = None
    updates: int | None = None  # instead of epochs: as many with every batch size
    batches: tuple[int, ...] = BATCHES
    seeds: tuple[int, ...] = SEEDS

    def epochs_at(self, batch: int) -> int:
        """How long a run with this batch size trains."""
        return self.epochs or self.updates * batch // self.train_size  # type: ignore[operator]


_SMOKE: dict[str, Any] = {"epochs": 2, "train_size": 512, "batches": (4, 16, 256), "seeds": (0,)}
_DESK: dict[str, Any] = {"epochs": 5, "train_size": 4000, "test_size": 5000}
_NIGHT: dict[str, Any] = {
    "epochs": None,
    "train_size": 5120,
    "test_size": 2000,
    "updates": 5120,
}  # B epochs: whole batches
SIZES = {
    "smoke": {"cifar10": Size("digits-convnet", 10, **_SMOKE), "cifar100": Size("digits-convnet", 10, **_SMOKE)},
    "desk": {"cifar10": Size("cifar10-convnet", 10, **_DESK), "cifar100": Size("cifar100-convnet", 100, **_DESK)},
    "night": {"cifar10": Size("cifar10-convnet", 10, **_NIGHT), "cifar100": Size("cifar100-convnet", 100, **_NIGHT)},
    "paper": {"cifar10": Size("cifar10-vgg11", 10, 100), "cifar100": Size("cifar100-vgg19", 100, 100)},
}


def small_batches(scale: str, name: str) -> Plan:
    """Every batch size on all seeds, without memory and with."""
    size = SIZES[scale][name]
    histories = yield [
        Run.of(
            METHOD,
            task=size.task + kind,
            seed=seed,
            epochs=size.epochs_at(batch),
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
    """Claims red-c20, red-c21 and red-c32."""
    seen, table, found = Figures(record), with_batch(record), accuracies(record)
    accuracy, seconds = found["accuracy"], found["seconds"]
    rows = seen.drawn("fig7")
    for name, classes in record.notes["classes"].items():
        plain, memory = (accuracy[name, kind].unstack("batch") for kind in (False, True))  # (seed, batch)
        slower = (seconds[name, True] / seconds[name, False]).unstack("batch")
        batches = list(plain.columns)
        large, small = max(batches), [b for b in batches if b < classes]
        enough = [b for b in batches if b >= classes]
        light = [b for b in batches if share_of_features(name, b) >= MOSTLY]

        def told(holds: bool | None, seed: int, name: str = name, large: int = large) -> bool | None:
            chosen = (table["task"] == name) & ~table["memory"] & (table["batch"] == large) & (table["seed"] == seed)
            return seen.told(holds, [], [table[chosen]])

        rows += [
            seen.by_seed(
                "red-c20",
                "RED collapses when the batch is smaller than the number of classes",
                name,
                f"accuracy below {COLLAPSE:g} × that at B = {large} for each B < {classes}, and for no other B",
                [
                    told(
                        all(plain[b][s] < COLLAPSE * plain[large][s] for b in small)
                        and all(plain[b][s] >= COLLAPSE * plain[large][s] for b in enough),
                        s,
                    )
                    for s in seen.seeds
                ],
            ),
            seen.by_seed(
                "red-c21",
                "the memory layer restores most of what is lost",
                name,
                f"where B < {classes} loses accuracy against B = {large}, memory brings back at least half of it",
                [told(restored(plain.loc[s, small], memory.loc[s, small], plain[large][s]), s) for s in seen.seeds],
            ),
            seen.by_seed(
                "red-c32",
                "the memory layer costs a small factor",
                name,
                f"at each B at which the last layer has at most {1 - MOSTLY:.0%} of the products, an epoch with memory takes "
                f"≤ {SMALL_FACTOR:g} × the seconds of one without",
                [bool((slower.loc[s, light] <= SMALL_FACTOR).all()) if light else None for s in seen.seeds],
            ),
        ]
    return rows


def share_of_features(name: str, batch: int) -> float:
    """Which share of the products of a forward pass with memory all layers but the last have, at this batch size.

    >>> share_of_features("cifar10-vgg11", 4) > 0.9 > share_of_features("cifar10-convnet", 4)
    True
    """
    shape = (1, 8, 8) if task(name).dataset == "digits" else (3, 32, 32)
    with torch.device("meta"):  # its structure is enough
        net = task(name).network()
        assert isinstance(net, nn.Sequential)
        head = net[-1]
        assert isinstance(head, nn.Linear)
        features = count(lambda: net[:-1](torch.empty(batch, *shape)))
        last = count(lambda: head(torch.empty(task(name + MEMORY).memory, head.in_features)))
    return features / (features + last)


def restored(plain: pd.Series, memory: pd.Series, large: float) -> bool | None:
    """Whether memory brings back half of what each small batch loses against the largest; ``None`` if none loses."""
    lost = large - plain
    return bool((memory - plain >= 0.5 * lost)[lost > 0].all()) if (lost > 0).any() else None
