"""What works: the tables of operations and networks that the tests have asked, in counts and sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from reprolib.records.record import folder
from reprolib.show import words

OPERATIONS, NETWORKS = "pytorch-operations", "networks"


@dataclass(frozen=True)
class Works:
    """A table with columns ``is`` (right, refused, unknown, …) and ``answered by`` (tape, reverse), and how it was made."""

    table: pd.DataFrame
    about: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> Works:
        """The table that is published under ``name``."""
        path = folder() / name
        table = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False)
        return cls(table, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))

    @cached_property
    def asked(self) -> pd.DataFrame:
        """The rows of which there is a right answer to compare with."""
        return self.table[~self.table["is"].isin(["unknown", "not here"])]

    def count(self, kind: str, by: str | None = None) -> int:
        """How many are ``kind``; of those that ``by`` has answered."""
        rows = self.asked[self.asked["is"] == kind]
        return len(rows if by is None else rows[rows["answered by"] == by])

    def of(self, kind: str, by: str | None = None, name: str = "operation") -> list[str]:
        """Their names."""
        rows = self.asked[self.asked["is"] == kind]
        return list((rows if by is None else rows[rows["answered by"] == by])[name])

    @property
    def silent(self) -> int:
        """How many give a wrong number, or an error that is not ours, or none in time."""
        return sum(self.count(kind) for kind in ("wrong", "leaked", "late"))


def by_answer(works: Works) -> pd.DataFrame:
    """Who answers, how many, which (the first few)."""
    rows = {
        "recorded by the tape": works.of("right", "tape"),
        "handed over to reverse mode": works.of("right", "reverse"),
        "refused, by name": works.of("refused"),
        "wrong, or an error that is not ours": works.of("wrong") + works.of("leaked") + works.of("late"),
    }
    table = {
        what: {"operations": len(names), "for example": ", ".join(names[:: max(1, len(names) // 6)][:6])}
        for what, names in rows.items()
    }
    return pd.DataFrame.from_dict(table, orient="index")


def by_library(works: Works) -> pd.DataFrame:
    """How many networks of each library are right, and which."""
    rows = {}
    for library, part in works.asked.groupby("library", sort=False):
        right = part[part["is"] == "right"]
        rows[library] = {"right": f"{len(right)} of {len(part)}", "networks": ", ".join(part["network"])}
    return pd.DataFrame.from_dict(rows, orient="index")


def numbers(operations: Works, networks: Works) -> dict[str, Any]:
    """What the page's sentences glue."""
    right = operations.count("right")
    return {
        "entries": len(operations.asked),
        "right": right,
        "recorded": operations.count("right", "tape"),
        "handed": operations.count("right", "reverse"),
        "refused": operations.count("refused"),
        "silent": words.number(operations.silent) if operations.silent else "none",
        "unknown": len(operations.table) - len(operations.asked),
        "networks": len(networks.asked),
        "networks right": networks.count("right"),
        "networks handed": words.number(networks.count("right", "reverse"))
        if networks.count("right", "reverse")
        else "none",
        "torch": operations.about["torch"],
        "libraries": words.listed(f"{name} {networks.about[name]}" for name in ("torchvision", "timm", "transformers")),
    }
