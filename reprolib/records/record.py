"""Records: published results, one table (CSV) and one provenance file (JSON) per experiment and scale.

They lie under ``<experiment>/<scale>``. The table has one row per logged point of each run, under the run's ``key``; the JSON
has under that key each run's specification, status, first losses, environment and *role*: ``reported``, ``default`` (a
baseline that nobody tuned, beside the tuned one) or ``trial`` (of the tuning; only its last row is kept). Whatever was
tried is there, diverged and failed runs too. A record is read by name; the best scale that has one is the default.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from reprolib.errors import RecordError
from reprolib.lab.files import checkout, write
from reprolib.lab.run import Run
from reprolib.lab.train import FINISHED, History
from reprolib.records.claims import digest, source
from reprolib.records.scale import SCALES, check_scale

REPORTED, DEFAULT, TRIAL = ROLES = ("reported", "default", "trial")
FORMAT = 2
DESCRIPTION = ("task", "method", "seed")  # columns that come from the runs' specifications


def folder() -> Path:
    """Where records lie: ``$REPROLIB_RECORDS``, ``book/records`` of the source tree, or of an installed package here."""
    if chosen := os.environ.get("REPROLIB_RECORDS"):
        return Path(chosen)
    root = checkout()
    return root / "book" / "records" if root else Path.cwd() / "reprolib-records"


def published(where: Path | None = None) -> list[tuple[str, str]]:
    """Name and scale of every record."""
    where = where or folder()
    found = [path.relative_to(where).with_suffix("") for path in sorted(where.glob("*/*/*.json"))]
    return [(path.parent.as_posix(), path.name) for path in found if path.name in SCALES]


@dataclass
class Record:
    """The result of an experiment at a scale. ``notes`` is what the experiment itself wants to keep (selections, say)."""

    name: str
    scale: str
    rows: pd.DataFrame  # of all runs; see table
    runs: dict[str, dict[str, Any]]
    notes: dict[str, Any]
    judged_by: str = ""  # digest of the claims file by which it was judged when it was made

    @classmethod
    def of(
        cls,
        name: str,
        scale: str,
        histories: Sequence[History] | Mapping[str, Sequence[History]],
        notes: dict[str, Any] | None = None,
    ) -> Record:
        """The record of ``histories``, by role (or all reported)."""
        check_scale(scale)
        by_role = histories if isinstance(histories, Mapping) else {REPORTED: histories}
        tables, runs = [], {}
        for role in ROLES:  # a run with two roles has the first
            for h in by_role.get(role, ()):
                if h.run.key not in runs:
                    table = h.table.tail(1) if role == TRIAL else h.table
                    tables += [table.assign(key=h.run.key)] if len(table) else []
                    runs[h.run.key] = _kept(h, role)
        return cls(name, scale, pd.concat(tables, ignore_index=True), runs, notes or {}, _digest())

    @property
    def table(self) -> pd.DataFrame:
        """The rows of the reported runs, with task, method and seed."""
        return self.of_role(REPORTED)

    def of_role(self, role: str) -> pd.DataFrame:
        """The rows of the runs with that role, their key and what it stands for in front."""
        rows = self.rows[[self.runs[key]["role"] == role for key in self.rows["key"]]].reset_index(drop=True)
        values = rows.drop(columns=["key"])
        for name in reversed(DESCRIPTION):
            values.insert(0, name, [self.runs[key]["specification"][name] for key in rows["key"]])
        values.insert(0, "key", rows["key"])
        return values

    def history(self, run: Run) -> History | None:
        """What the record knows of ``run``: of a trial the last row only, of none its last weights."""
        if run.key not in self.runs:
            return None
        table = self.rows[self.rows["key"] == run.key].drop(columns=["key"]).reset_index(drop=True)
        kept = {
            name: self.runs[run.key][name] for name in ("first_losses", "status", "reason", "skipped", "environment")
        }
        return History(run, table, **kept)

    @property
    def statuses(self) -> Counter[str]:
        """How many runs finished, diverged, failed, in all roles."""
        return Counter(run["status"] for run in self.runs.values())

    def save(self, where: Path | None = None, *, merge: bool = False) -> Path:
        """Write both files; each appears whole or not at all. Returns the path of the JSON.

        With ``merge``, runs of the record that is there and that this one does not have stay: several machines may each
        bring a part, at the same time.
        """
        csv, meta = _paths(where or folder(), self.name, self.scale)
        csv.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(meta.with_suffix(".lock")):
            whole = self._with(Record.load(self.name, self.scale, where)) if merge and meta.exists() else self
            write(csv, whole.rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
            write(meta, json.dumps(whole._content(), indent=1, ensure_ascii=False) + "\n")
        return meta

    @classmethod
    def load(cls, name: str, scale: str | None = None, where: Path | None = None) -> Record:
        """Read a record; without ``scale`` the largest one that there is.

        Raises:
            RecordError: no such record, or one that this code did not write or whose runs are not what their keys say.
        """
        where = where or folder()
        if scale is None:
            found = [s for s in SCALES if all(p.exists() for p in _paths(where, name, s))]
            if not found:
                raise RecordError(f"no record of {name!r} in {where}: make one with `reprolib run {name} --scale desk`")
            scale = found[-1]
        check_scale(scale)
        csv, meta = _paths(where, name, scale)
        what = f"the {scale} record of {name!r}"
        try:
            rows, content = pd.read_csv(csv), json.loads(meta.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise RecordError(f"{what} has format {content['format']}, this code reads {FORMAT}: make it again")
            environments = content["environments"]
            runs = {k: run | {"environment": environments[run["environment"]]} for k, run in content["runs"].items()}
            record = cls(name, scale, rows, runs, content["notes"], content["claims"])
        except FileNotFoundError as error:
            raise RecordError(
                f"no {scale} record of {name!r}: make one with `reprolib run {name} --scale {scale}`"
            ) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RecordError(f"{what} is damaged ({error}): make it again") from error
        if not set(rows["key"]) <= set(runs):
            raise RecordError(f"{what}: its table has runs without provenance")
        for key, run in runs.items():
            if Run.key_of(run["specification"]) != key:
                raise RecordError(f"{what}: run {key} is not what its specification says; somebody changed one of them")
        return record

    def stale(self) -> list[str]:
        """Keys of the runs that today's code would specify differently (a task or method has a new version)."""
        return [key for key, run in self.runs.items() if run_of(run["specification"]).key != key]

    @property
    def made(self) -> dict[str, Any]:
        """Scale, dates, devices, threads and minutes of process time, for the line under a chapter's title."""
        environments = [run["environment"] for run in self.runs.values()]
        seconds = self.rows.groupby("key")["seconds"].max()
        trial = pd.Series({key: run["role"] == TRIAL for key, run in self.runs.items()})

        def all_of(name: str) -> list[Any]:
            return sorted({e[name] for e in environments})

        return {
            "scale": self.scale,
            "dates": all_of("date"),
            "devices": all_of("device"),
            "threads": all_of("threads"),
            "commits": all_of("commit"),
            "minutes": seconds[~trial.reindex(seconds.index)].sum() / 60,
            "tuning_minutes": seconds[trial.reindex(seconds.index)].sum() / 60,
            "runs": len(self.runs),
            "ended_early": len(self.runs) - self.statuses[FINISHED],
            "trials_ended_early": sum(r["role"] == TRIAL and r["status"] != FINISHED for r in self.runs.values()),
        }

    def _with(self, other: Record) -> Record:
        """This record, and the runs of ``other`` that it does not have."""
        more = other.rows[~other.rows["key"].isin(list(self.runs))]
        runs = self.runs | {k: r for k, r in other.runs.items() if k not in self.runs}
        rows = pd.concat([self.rows, more], ignore_index=True)
        return Record(self.name, self.scale, rows, runs, other.notes | self.notes, self.judged_by)

    def _content(self) -> dict[str, Any]:
        environments: list[dict[str, Any]] = []
        runs = {}
        for key, run in self.runs.items():
            if run["environment"] not in environments:
                environments.append(run["environment"])
            runs[key] = run | {"environment": environments.index(run["environment"])}
        head = {"format": FORMAT, "name": self.name, "scale": self.scale, "claims": self.judged_by}
        return head | {"notes": self.notes, "environments": environments, "runs": runs}


def joined(name: str, records: Sequence[Record]) -> Record:
    """Records of several experiments as one, for figures that show them side by side; its scale names all of theirs.

    Of their notes, lists are chained and mappings merged.
    """
    whole, *others = records
    notes = dict(whole.notes)
    for other in others:
        whole = whole._with(other)
        for key, value in other.notes.items():
            notes[key] = (
                value if key not in notes else notes[key] | value if isinstance(value, dict) else notes[key] + value
            )
    return Record(name, " and ".join(dict.fromkeys(r.scale for r in records)), whole.rows, whole.runs, notes)


def differences(a: Record, b: Record) -> list[str]:
    """What two records of an experiment disagree about: runs that only one has, other ends, other losses."""
    found = [f"{key} is only in {x.scale}" for x, y in ((a, b), (b, a)) for key in x.runs if key not in y.runs]
    last = [r.rows.groupby("key").last() for r in (a, b)]
    for key in (key for key in a.runs if key in b.runs):
        x, y = a.runs[key], b.runs[key]
        if x["status"] != y["status"]:
            found.append(f"{key}: {x['status']} and {y['status']}")
        for column in ("loss", "test_loss"):
            p, q = (table[column].get(key, math.nan) for table in last)
            if not (math.isclose(p, q, rel_tol=1e-5) or (math.isnan(p) and math.isnan(q))):  # tables have six digits
                found.append(f"{key}: {column} {p:.6g} and {q:.6g}")
    return found


def run_of(specification: dict[str, Any]) -> Run:
    """The run of a specification, with the versions of today."""
    fields = {k: v for k, v in specification.items() if k != "versions"}
    fields["options"] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["options"].items()}
    return Run.of(**fields)


def _kept(h: History, role: str) -> dict[str, Any]:
    """What the JSON keeps of a history."""
    last = h.table["iteration"].max()
    return {
        "role": role,
        "specification": h.run.specification,
        "status": h.status,
        "reason": h.reason,
        "iterations": 0 if pd.isna(last) else int(last),
        "last_finite_loss": h.last_finite_loss,
        "first_losses": h.first_losses,
        "skipped": h.skipped,
        "environment": h.environment,
    }


def _digest() -> str:
    """Of the claims file, where there is one (an installed package has none)."""
    return digest() if source().exists() else ""


def _paths(where: Path, name: str, scale: str) -> tuple[Path, Path]:
    return where / name / f"{scale}.csv", where / name / f"{scale}.json"
