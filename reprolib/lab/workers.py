"""Who trains the runs of a campaign: this process, or several side by side that may be killed.

Both take a run, say when it has ended, and leave it in the folder of the runs: finished, or as a checkpoint.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from reprolib.errors import ReprolibError
from reprolib.lab import plugins
from reprolib.lab.execute import continued
from reprolib.lab.run import Run

PATIENCE = 10.0  # seconds that a worker gets to leave by itself


class WorkerKilled(ReprolibError):
    """The process that trained a run is gone."""


@dataclass(frozen=True)
class Ended:
    """A run that its trainer has done with: it is finished, its time was over, or there was an error."""

    run: Run
    finished: bool = False
    error: Exception | None = None


class Here:
    """This process, with the threads that torch has."""

    def __init__(self, device: str, keep: Path):
        self._how = device, keep
        self._given: tuple[Run, float] | None = None

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self._given = None

    @property
    def idle(self) -> bool:
        """Whether it could take a run."""
        return self._given is None

    def start(self, run: Run, seconds: float = math.inf) -> None:
        """Take a run, for at most so many seconds."""
        self._given = run, seconds

    def wait(self) -> Ended:
        """Train what was taken."""
        assert self._given is not None
        run, seconds = self._given
        try:
            return Ended(run, continued(run, *self._how, deadline=_after(seconds)) is not None)
        except Exception as error:
            return Ended(run, error=error)
        finally:
            self._given = None


class Workers:
    """Processes that train a run at a time, one thread each. One that is killed loses its run, and is replaced.

    They come from a server that has imported everything once, and leave when this process does, however it ends.
    """

    def __init__(self, number: int, device: str, keep: Path):
        self._number, self._how = number, (device, keep)
        served = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            _serve()
        self._processes: dict[connection.Connection, Any] = {}
        self._trained: dict[connection.Connection, Run] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send all of them away; those that train lose what came after their last checkpoints."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        for channel in self._processes:
            channel.close()
        self._processes.clear()
        self._trained.clear()

    @property
    def idle(self) -> bool:
        """Whether one of them could take a run."""
        return len(self._trained) < self._number

    def start(self, run: Run, seconds: float = math.inf) -> None:
        """Give a run to one that is idle, for at most so many seconds."""
        channel = next((c for c in self._processes if c not in self._trained), None) or self._hired()
        self._trained[channel] = run
        with suppress(OSError):  # if it was killed while it had nothing to do, `wait` will notice
            channel.send((run, seconds))

    def wait(self) -> Ended:
        """The next run that one of them has done with."""
        (channel, *_) = connection.wait(list(self._trained))
        assert isinstance(channel, connection.Connection)
        run = self._trained.pop(channel)
        try:
            return Ended(run, *channel.recv())
        except (EOFError, OSError):
            process = self._processes.pop(channel)
            channel.close()
            process.join()
            code = process.exitcode
            how = f"by signal {-code} (out of memory?)" if code < 0 else f"with status {code}, see above"
            return Ended(run, error=WorkerKilled(f"its worker ended {how}"))

    def _hired(self) -> connection.Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, *self._how, self._number, plugins.known()), daemon=True
        )
        process.start()
        theirs.close()
        self._processes[ours] = process
        return ours


def _serve() -> None:
    """Start the server with the modules that this process has, whatever lies in the working directory."""
    from multiprocessing import forkserver

    here = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        forkserver.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(orders: connection.Connection, device: str, keep: Path, number: int, known: Any) -> None:
    """What a worker does: it trains the runs that come, until it is sent away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has sent the orders
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and does not leave half a file
    Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            run, seconds = orders.recv()
        except (EOFError, OSError):
            return
        finished, error = False, None
        try:
            deadline = _after(seconds)
            history = continued(run, device, keep, threads=1, known=known, workers=number, deadline=deadline)
            finished = history is not None
        except Exception as raised:
            error = ReprolibError(told(raised))  # not every exception can be sent
        orders.send((finished, error))


def _leave_with_parent() -> None:
    """A worker without anybody who waits for it would train on for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def told(error: Exception) -> str:
    """What our own errors say; of others, which are bugs, also where they come from."""
    return str(error) if isinstance(error, ReprolibError) else "".join(traceback.format_exception(error)).rstrip()
