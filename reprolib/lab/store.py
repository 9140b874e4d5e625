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
from pickle import UnpicklingError
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
            content = json.loads(self._history(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._unusable(run, f"it cannot be read ({error})", say)
        try:
            if (found := content.pop("format")) != FORMAT:
                return self._unusable(run, f"it has format {found}, this code reads {FORMAT}", say)
            if (found := content.pop("specification")) != (wanted := as_json(run.specification)):
                names = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
                return self._unusable(run, f"it is of another specification (see its {', '.join(names)})", say)
            history = History(run, pd.DataFrame(content.pop("table")), **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return self._unusable(run, f"it is not what this code writes ({type(error).__name__}: {error})", say)
        if run.keeps_end:
            try:
                history.end = torch.load(self.end(run), map_location="cpu", weights_only=True)
            except FileNotFoundError:
                return self._unusable(run, "its last weights were not kept", say)
            except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
                return self._unusable(run, f"its last weights cannot be read ({error})", say)
        return history

    def _unusable(self, run: Run, why: str, say: Callable[[str], None]) -> None:
        if (line := f"{self._history(run)} is there and not used: {why}") not in self._said:
            self._said.add(line)
            say(line)

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


def as_json(x: Any) -> Any:
    """``x`` as it comes back from a JSON file (tuples are lists there)."""
    return json.loads(json.dumps(x))
