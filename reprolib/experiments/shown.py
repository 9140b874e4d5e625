"""What a chapter shows of an experiment: its best record, and the one that is computed while the page is built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from reprolib.experiments import conduct
from reprolib.lab.execute import execute
from reprolib.lab.store import runs_folder
from reprolib.records.record import Record
from reprolib.show import report


@dataclass(frozen=True)
class Shown:
    """``live`` was conducted now, at the scale of the page; ``best`` is the record of the largest scale that has one."""

    live: Record
    best: Record

    def origin(self, chapter: str) -> None:
        """Display where both are from, and the command that makes ``chapter`` at their scales again.

        For the captions of figures, ``{glue}`` has the conditions of both, under the experiment's name and ``NAME live``.
        """
        from IPython.display import Markdown, display

        again = f"make book SCALE={self.best.scale} ONLY={chapter}"
        line = f"*Shown, `{self.best.name}`:* " + report.origin(self.best, again)
        if self.live.scale != self.best.scale:
            line += f" · computed again at scale {self.live.scale} while this page was built"
        display(Markdown(line))
        report.value(self.best.name, report.conditions(self.best))
        report.value(f"{self.live.name} live", report.conditions(self.live))


def device() -> str:
    """Where a chapter's experiments train: ``$REPROLIB_DEVICE``, which ``make book DEVICE=cuda`` sets, or the processor."""
    return os.environ.get("REPROLIB_DEVICE") or "cpu"


def show(name: str, scale: str) -> Shown:
    """Conduct experiment ``name`` at ``scale``, above smoke with what is kept of earlier runs, and load the best record.

    What is conducted above smoke scale becomes a record.
    """
    live = conduct(name, scale, partial(execute, device=device(), keep=None if scale == "smoke" else runs_folder()))
    if scale != "smoke":
        live.save()
    return Shown(live, Record.load(name))
