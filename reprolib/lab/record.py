"""Records: published results, one table (CSV) and one provenance file (JSON) per experiment and scale.

The table has one row per logged point of each run, under the run's ``key``; the JSON has each run's specification, first
losses and environment under that key, so the columns ``task``, ``method`` and ``seed`` are filled in when it is read. A record is read by name; the best scale that has one is the default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reprolib.errors import RecordError, UnknownName
from reprolib.lab.run import Run
from reprolib.lab.train import History

SCALES = ("smoke", "desk", "paper")
FORMAT = 1
DESCRIPTION = ("task", "method", "seed")  # columns that come from the runs' specifications


def folder() -> Path:
    """Where records lie: ``$REPROLIB_RECORDS``, or ``book/records`` of the source tree."""
    return Path(os.environ.get("REPROLIB_RECORDS") or Path(__file__).resolve().parents[2] / "book" / "records")


def published(where: Path | None = None) -> list[tuple[str, str]]:
    """Name and scale of every record (a benchmark in the same folder has a device where these have their scale)."""
    stems = [path.stem.rpartition(".") for path in sorted((where or folder()).glob("*.json"))]
    return [(name, scale) for name, _, scale in stems if scale in SCALES]


@dataclass
class Record:
    """The result of an experiment at a scale. ``notes`` is what the experiment itself wants to keep (selections, say)."""

    name: str
    scale: str
    table: pd.DataFrame
    runs: dict[str, dict[str, Any]]
    notes: dict[str, Any]

    @classmethod
    def of(cls, name: str, scale: str, histories: Iterable[History], notes: dict[str, Any] | None = None) -> Record:
        """The record of ``histories``; the run's task, method and seed become columns."""
        check_scale(scale)
        histories = list(histories)
        table = pd.concat([h.table.assign(key=h.run.key) for h in histories], ignore_index=True)
        runs = {
            h.run.key: {
                "specification": h.run.specification,
                "first_losses": h.first_losses,
                "skipped": h.skipped,
                "diverged": h.diverged,
                "wall_seconds": round(h.wall_seconds, 2),
                "environment": h.environment,
            }
            for h in histories
        }
        return cls(name, scale, _described(table, runs), runs, notes or {})

    def save(self, where: Path | None = None) -> Path:
        """Write both files; each appears whole or not at all. Returns the path of the JSON."""
        where = where or folder()
        where.mkdir(parents=True, exist_ok=True)
        csv, meta = _paths(where, self.name, self.scale)
        table = self.table.drop(columns=list(DESCRIPTION))
        write(csv, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        content = {"format": FORMAT, "name": self.name, "scale": self.scale, "notes": self.notes, "runs": self.runs}
        write(meta, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return meta

    @classmethod
    def load(cls, name: str, scale: str | None = None, where: Path | None = None) -> Record:
        """Read a record; without ``scale`` the largest one that there is.

        Raises:
            RecordError: no such record, or one that this code did not write or whose runs it would do differently.
        """
        where = where or folder()
        if scale is None:
            found = [s for s in SCALES if all(p.exists() for p in _paths(where, name, s))]
            if not found:
                raise RecordError(f"no record of {name!r} in {where}: make one with `reprolib run {name} --scale desk`")
            scale = found[-1]
        check_scale(scale)
        csv, meta = _paths(where, name, scale)
        try:
            table, content = pd.read_csv(csv), json.loads(meta.read_text(encoding="utf-8"))
            runs, notes, form = content["runs"], content["notes"], content["format"]
        except FileNotFoundError as error:
            raise RecordError(
                f"no {scale} record of {name!r}: make one with `reprolib run {name} --scale {scale}`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"the {scale} record of {name!r} is damaged ({error}): make it again") from error
        if form != FORMAT:
            raise RecordError(
                f"the {scale} record of {name!r} has format {form}, this code reads {FORMAT}: make it again"
            )
        if set(table["key"]) != set(runs):
            raise RecordError(f"the {scale} record of {name!r}: its table and its provenance name different runs")
        return cls(name, scale, _described(table, runs), runs, notes)

    def stale(self) -> list[str]:
        """Keys of the runs that today's code would specify differently (a task or method has a new version)."""
        return [key for key, run in self.runs.items() if run_of(run["specification"]).key != key]

    @property
    def made(self) -> dict[str, Any]:
        """Scale, dates, devices, threads and minutes of process time, for the line under a chapter's title."""
        environments = [run["environment"] for run in self.runs.values()]
        minutes = self.table.groupby("key")["seconds"].max().sum() / 60

        def all_of(key: str) -> list[Any]:
            return sorted({e[key] for e in environments})

        return {
            "scale": self.scale,
            "dates": all_of("date"),
            "devices": all_of("device"),
            "threads": all_of("threads"),
            "commits": all_of("commit"),
            "minutes": minutes,
            "runs": len(self.runs),
        }


def _described(table: pd.DataFrame, runs: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """``table`` with the key and what it stands for in front."""
    values = table.drop(columns=["key"])
    for name in reversed(DESCRIPTION):
        values.insert(0, name, [runs[key]["specification"][name] for key in table["key"]])
    values.insert(0, "key", table["key"])
    return values


def run_of(specification: dict[str, Any]) -> Run:
    """The run of a specification, with the versions of today."""
    fields = {k: v for k, v in specification.items() if k != "versions"}
    fields["options"] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["options"].items()}
    return Run.of(**fields)


def check_scale(scale: str) -> str:
    """``scale`` if it is one of smoke, desk, paper."""
    if scale not in SCALES:
        raise UnknownName.among("scale", scale, SCALES)
    return scale


def _paths(where: Path, name: str, scale: str) -> tuple[Path, Path]:
    return where / f"{name}.{scale}.csv", where / f"{name}.{scale}.json"


def write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
