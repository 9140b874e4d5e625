"""What a terminal shows while runs are executed: runs done, the epoch and loss of those under way, the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from reprolib.lab.files import written

PLAIN_EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Finished runs are lines; on a terminal a bar below them says how far the others are, elsewhere a line now and then.

    Trainers of any process write how far they are into the folder of the runs (``Store.progress``).
    """

    def __init__(self, runs: Path, stream: TextIO | None = None, *, every: float | None = None):
        self.runs, self.stream, self._every = runs, stream or sys.stderr, every
        self.terminal = self.stream.isatty() and find_spec("tqdm") is not None
        # Of somebody who was killed, as long as nobody writes them again. Times are compared with themselves only: those
        # of files may lie some milliseconds, on a network drive minutes, away from this process's clock.
        self._left_behind = {path: written(path) for path in self.runs.glob("*.progress")}
        self._bar = None

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the bar up to date while the block runs."""
        over = Event()
        thread = Thread(target=self._watch, args=(over,), daemon=True)
        if self.terminal:
            from tqdm import tqdm

            self._bar = tqdm(bar_format="{desc}", file=self.stream, leave=False)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def status(self) -> str:
        """``epoch 3/20, loss 0.41, 2 min left`` for each run under way."""
        return "   ".join(self._of(path) for path in sorted(self.runs.glob("*.progress")))

    def _of(self, path: Path) -> str:
        try:
            epoch, epochs, loss, wall = path.read_text(encoding="utf-8").split()
            if path in self._left_behind and self._left_behind[path] == written(path):
                return ""
        except (OSError, ValueError):
            return ""  # just finished
        left = float(wall) / int(epoch) * (int(epochs) - int(epoch))
        return f"{path.stem[:6]}: epoch {epoch}/{epochs}, loss {loss}, {duration(left)} left"

    def _watch(self, over: Event) -> None:
        shown = ""
        while not over.wait(0.5 if self.terminal else self._every or PLAIN_EVERY):
            status = self.status()
            if self._bar is not None:
                self._bar.set_description_str(status)
            elif status and status != shown:
                print(status, flush=True)
            shown = status


def duration(seconds: float) -> str:
    """For people.

    >>> duration(40), duration(400), duration(40000)
    ('40 s', '7 min', '11.1 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
