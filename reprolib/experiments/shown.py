"""What a chapter shows of an experiment: its best record, and the one that is computed while the page is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from reprolib.bench.seconds import timed
from reprolib.experiments import conduct, verdicts_of
from reprolib.lab.execute import execute
from reprolib.lab.store import runs_folder
from reprolib.records.record import Record, joined
from reprolib.show import report


@dataclass(frozen=True)
class Shown:
    """``live`` was conducted now, at the scale of the page; ``record`` is that of the largest scale that has one."""

    live: Record
    record: Record

    @cached_property
    def best(self) -> Record:
        """The record, its seconds those of equal work: steps times what one costs, where that has been measured."""
        return timed(self.record)

    @property
    def verdicts(self) -> list[dict[str, str]]:
        """What the best record says of the papers' claims."""
        return verdicts_of(self.record)

    def origin(self, chapter: str) -> None:
        """Display where both are from, and the command that makes ``chapter`` at their scales again.

        For the captions of figures, ``{glue}`` has the conditions of both, under the experiment's name and ``NAME live``.
        """
        from IPython.display import Markdown, display

        again = f"make book SCALE={self.record.scale} ONLY={chapter}"
        line = f"*Shown, `{self.record.name}`:* " + report.origin(self.record, again)
        if self.live.scale != self.record.scale:
            line += f" · computed again at scale {self.live.scale} while this page was built"
        display(Markdown(line))
        report.value(self.best.name, report.conditions(self.best))
        report.value(f"{self.live.name} live", report.conditions(self.live))


@dataclass(frozen=True)
class Columns:
    """Experiments that a figure shows side by side, each from its own best record; ``live`` and ``best`` have all their runs."""

    name: str
    parts: tuple[Shown, ...]

    @cached_property
    def live(self) -> Record:
        """What was conducted now."""
        return joined(self.name, [part.live for part in self.parts])

    @cached_property
    def best(self) -> Record:
        """The best records."""
        return joined(self.name, [part.best for part in self.parts])

    @property
    def verdicts(self) -> list[dict[str, str]]:
        """What the best records say of the papers' claims."""
        return [row for part in self.parts for row in part.verdicts]

    def origin(self, chapter: str) -> None:
        """As :meth:`Shown.origin`, a line for each; for captions ``{glue}`` has the conditions of all under ``name``."""
        for part in self.parts:
            part.origin(chapter)
        report.value(self.name, report.conditions(*(part.best for part in self.parts)))
        report.value(f"{self.name} live", report.conditions(*(part.live for part in self.parts)))


def columns(name: str, tasks: Sequence[str], scale: str) -> Columns:
    """The experiments ``NAME-TASK``, or ``NAME/TASK`` if ``name`` is that of a paper, as :func:`show` shows each of them."""
    link = "-" if "/" in name else "/"
    return Columns(name, tuple(show(f"{name}{link}{task}", scale) for task in tasks))


def provenance(*results: Shown) -> None:
    """Display at a chapter's foot where its results are from: a line an experiment, with the command that makes it again.

    What was conducted while the page was built stands behind it.
    """
    from IPython.display import Markdown, display

    lines = []
    for result in results:
        best, live = result.record, result.live
        line = f"- `{best.name}`: " + report.origin(best, f"reprolib run {best.name} --scale {best.scale}")
        lines.append(line + f" · also at scale {live.scale}, just now" * (live.scale != best.scale))
    display(Markdown("\n".join(lines)))


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
