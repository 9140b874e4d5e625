"""The campaign: the experiments of the queue one after the other, as long as it takes or as long as somebody lends a machine.

    python -m reprolib.experiments.campaign [--device cpu] [--workers 2]
    python -m reprolib.experiments.campaign --device cuda --minutes 9 --out DIR [--from DIR]

continues the runs of ``book/queue.yaml`` from their last checkpoints, whatever stopped it before, and writes the record of
each experiment once it is complete. On a machine that is only lent, ``--minutes`` stops in time and ``--out`` leaves a package
instead of records, at most 8 files of at most 16 MiB, from which the next call continues (``--from``) and ``reprolib records
import DIR`` makes records. It needs torch, numpy and pandas only (and pyyaml for the queue, unless ``--only`` names what to
do). An epoch is the unit: it should take less than the minutes given.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from reprolib.errors import InvalidInput, ReprolibError
from reprolib.experiments.package import pack, unpack
from reprolib.experiments.queue import Entry, chosen, listing
from reprolib.experiments.work import Work
from reprolib.lab import plugins
from reprolib.lab.device import check_device
from reprolib.lab.progress import Progress
from reprolib.lab.store import Store, runs_folder
from reprolib.lab.workers import Here, Workers
from reprolib.records.record import folder

MARGIN = 20.0  # seconds kept for the last checkpoint and for packing
STATUS_EVERY = 600.0  # seconds between two lines about the runs under way, in a log


def campaign(
    entries: Sequence[Entry],
    *,
    minutes: float | None = None,
    out: Path | None = None,
    source: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
    keep: Path | None = None,
    others: Sequence[Entry] = (),
    say: Callable[[str], None] = print,
) -> bool:
    """Work down the list; whether all of it is finished.

    Args:
        entries: what to do, in this order; a worker that has nothing to do in one begins with the next.
        minutes: wall time; without, until the list is finished.
        out: folder for the package of finished runs and checkpoints (what it had of an earlier package is replaced);
            without, records are written.
        source: folder with the package of an earlier call, to continue from.
        device: where to train; TF32 stays as it is set, and is in the record.
        workers: processes that train side by side, one thread each; 1 trains here, with the threads that torch has.
        keep: folder of the runs; default as for ``reprolib run``.
        others: what is left to a device of another kind, which is said.
        say: gets a line per run.

    Raises:
        InvalidInput: minutes, workers or device that cannot be.
        ReprolibError: something was passed over; everything else is finished.
    """
    if minutes is not None and not minutes > 0:
        raise InvalidInput(f"minutes = {minutes}: give a positive number")
    if workers < 1:
        raise InvalidInput(f"workers = {workers}: give at least 1")
    check_device(device)
    if others:
        say(f"left to a device of another kind: {', '.join(f'{entry} ({entry.device})' for entry in others)}")
    if not entries:
        say("nothing to do")
        return True
    store = Store(keep or runs_folder())
    say(f"runs are kept in {store.folder}" + ("" if out else f", records written to {folder()}"))
    if source:
        say(f"continuing with {unpack(source, store.folder)} files from {source}")
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes - min(MARGIN, 6 * minutes)
    work = Work(entries, store, say, recording=out is None)
    try:
        with Here(device, store.folder) if workers == 1 else Workers(workers, device, store.folder) as trainers:
            finished = work.done(trainers, end)
    finally:
        for path in pack(store.folder, out, say) if out else ():
            say(f"wrote {path.name}, {path.stat().st_size / 2**20:.1f} MiB")
    if not finished:
        say("time is over")
    elif work.passed:
        raise ReprolibError(f"finished but for {', '.join(map(str, work.passed))}: see above")
    else:
        say("the list is finished")
    return finished


def parser() -> argparse.ArgumentParser:
    """The options, for this module's own command line and for ``reprolib campaign``."""
    p = Parser("reprolib campaign", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", default=device, help=f"cpu, cuda, cuda:1, ... ({device})")
    p.add_argument("--workers", type=int, default=1, help="processes side by side, one thread each (1: this one)")
    p.add_argument("--minutes", type=float, help="stop in this time (when the list is finished)")
    p.add_argument("--out", type=Path, help="leave a package in this folder, and write no records")
    p.add_argument("--from", dest="source", type=Path, help="folder of the package to continue")
    p.add_argument("--keep", type=Path, help="folder of the runs ($REPROLIB_RUNS or build/runs)")
    p.add_argument("--queue", type=Path, help="the list (book/queue.yaml)")
    only = "do this instead of the list, or its part of the list"
    p.add_argument("--only", action="append", default=[], metavar="EXPERIMENT[:SCALE]", help=only)
    named = os.environ.get("REPROLIB_IMPORT", "").split()
    p.add_argument("--import", dest="plugins", action="append", default=named, metavar="MODULE", help="a plug-in")
    p.add_argument("--list", dest="listing", action="store_true", help="say what is done and what is left; do nothing")
    return p


class Parser(argparse.ArgumentParser):
    """Whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Instead of the usage and an exit."""
        raise InvalidInput(f"{message}: see `{self.prog} --help`")


def main(words: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        ReprolibError: something was passed over, or could not be done at all.
    """
    options = vars(parser().parse_args(words))
    plugins.load_from_here(*options.pop("plugins"))
    entries, others = chosen(options.pop("only"), check_device(options["device"]), options.pop("queue"))
    store = Store(options["keep"] or runs_folder())
    if options.pop("listing"):
        print("\n".join(listing([*entries, *others], store)))
        return
    progress = Progress(store.folder, every=STATUS_EVERY)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: send the workers away, pack
    try:
        with progress.shown():
            campaign(entries, others=others, **options, say=progress.say)
    except KeyboardInterrupt:
        print("stopped: the same command continues")
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    try:
        main()
    except ReprolibError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
