"""The runs that are done, one file each under its key, and the checkpoints of those under way.

A file appears whole or not at all, and its run is locked while somebody trains it, so any number of processes may share
the folder: nobody's run is lost, and none is trained twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from reprolib.lab.files import checkout, replaced, write
from reprolib.lab.run import Run
from reprolib.lab.train import History

FORMAT = 2


def runs_folder() -> Path:
    """Where runs are kept: ``$REPROLIB_RUNS``, ``build/runs`` of the source tree, or of an installed package here."""
    if chosen := os.environ.get("REPROLIB_RUNS"):
        return Path(chosen)
    root = checkout()
    return root / "build" / "runs" if root else Path.cwd() / "reprolib-runs"


class Store:
    """A folder of runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._said: set[str] = set()

    def read(self, run: Run, say: Callable[[str], None] = lambda line: None) -> History | None:
        """The history of ``run``, if it is here, whole, and of this specification (with its end, if it keeps that).

        ``say`` gets a line, once, if there is one that cannot be used, so that nobody trains again without knowing why.
        """
        try:
            return self._read(run)
        except _Unusable as error:
            if (line := f"{self._history(run)} is there and not used: {error}") not in self._said:
                self._said.add(line)
                say(line)
            return None

    def _read(self, run: Run) -> History | None:
        try:
            content = json.loads(self._history(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _Unusable(f"it cannot be read ({error})") from error
        try:
            if (found := content.pop("format")) != FORMAT:
                raise _Unusable(f"it has format {found}, this code reads {FORMAT}")
            if (found := content.pop("specification")) != (wanted := as_json(run.specification)):
                names = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
                raise _Unusable(f"it is of another specification (see its {', '.join(names)})")
            history = History(run, pd.DataFrame(content.pop("table")), **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _Unusable(f"it is not what this code writes ({type(error).__name__}: {error})") from error
        if run.keeps_end:
            try:
                history.end = torch.load(self.end(run), map_location="cpu", weights_only=True)
            except FileNotFoundError as error:
                raise _Unusable("its last weights were not kept") from error
            except Exception as error:  # an unpickler that meets other bytes raises whatever they lead it to
                raise _Unusable(f"its last weights cannot be read ({error})") from error
        return history

    def write(self, history: History) -> None:
        """Keep a history; the run's checkpoint has served."""
        content: dict[str, Any] = {"format": FORMAT, "specification": history.run.specification}
        content |= {f.name: getattr(history, f.name) for f in fields(history) if f.name not in ("run", "table", "end")}
        if history.end is not None:
            with replaced(self.end(history.run)) as partial:
                torch.save(history.end, partial)
        write(self._history(history.run), json.dumps(content | {"table": history.table.to_dict("list")}))
        self.checkpoint(history.run).unlink(missing_ok=True)
        self.progress(history.run).unlink(missing_ok=True)

    def checkpoint(self, run: Run) -> Path:
        """Where the checkpoint of ``run`` is."""
        return self.folder / f"{run.key}.pt"

    def end(self, run: Run) -> Path:
        """Where the last weights of ``run`` are, if it keeps them."""
        return self.folder / f"{run.key}.end"

    def progress(self, run: Run) -> Path:
        """Where its trainer says how far it is."""
        return self.folder / f"{run.key}.progress"

    def lock(self, run: Run) -> FileLock:
        """Held by whoever trains ``run``; the system frees it when that process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{run.key}.lock")

    def _history(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"


class _Unusable(Exception):
    """Why a file under the key of a run is not its history."""


def as_json(x: Any) -> Any:
    """``x`` as it comes back from a JSON file (tuples are lists there)."""
    return json.loads(json.dumps(x))
