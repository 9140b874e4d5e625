"""The campaign: the paper-scale experiments one after the other, in pieces as long as somebody lends a GPU.

    python -m reprolib.experiments.campaign --minutes 9 --out DIR [--from DIR] [--device cuda]

continues the runs of the priority list from their last checkpoints, stops in time, and leaves in DIR at most 8 files of at
most 16 MiB, from which the next call continues (``--from``) and ``reprolib records import DIR`` makes records. It needs torch,
numpy and pandas only. An epoch is the unit: it should take less than the minutes given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from reprolib.errors import DataError, InvalidInput, RecordError, ReprolibError
from reprolib.experiments import module
from reprolib.lab.execute import line
from reprolib.lab.files import replaced
from reprolib.lab.plan import follow
from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.store import Store, runs_folder
from reprolib.lab.train import History, train

PRIORITY = [  # in the order in which a GPU's time is best spent
    ("red/mnist", "paper"),
    ("red/autoencoder", "paper"),
    ("red/cifar10", "paper"),
    ("red/averaging", "paper"),
    ("red/annealing-cifar10", "paper"),
    ("red/annealing-cifar100", "paper"),
    ("red/batches-cifar10", "paper"),
    ("red/batches-cifar100", "paper"),
    ("red/momentum", "paper"),
    ("red/regularisation", "paper"),
    ("red/comparison-cifar10", "paper"),
    ("red/comparison-autoencoder", "paper"),
    ("red/cifar100", "paper"),
    ("red/hyperconvergence", "paper"),
    ("red/beyond-resnet18", "paper"),
    ("red/beyond-vit", "paper"),
    ("red/beyond-gpt", "paper"),
    ("compare/first-look", "paper"),
]
FILES, SIZE = 8, 16 * 2**20
MARGIN = 20.0  # seconds kept for the last checkpoint and for packing

Say = Callable[[str], None]


class OutOfTime(Exception):
    """The minutes are over."""


def campaign(
    out: Path,
    *,
    minutes: float,
    source: Path | None = None,
    device: str = "cpu",
    keep: Path | None = None,
    priority: Sequence[tuple[str, str]] = PRIORITY,
    say: Say = print,
) -> bool:
    """Work down the list for some minutes; whether it is finished.

    Args:
        out: folder for the package of finished runs and checkpoints; what it had of an earlier package is replaced.
        minutes: wall time.
        source: folder with the package of an earlier call, to continue from.
        device: where to train; TF32 stays as it is set, and is in the record.
        keep: folder of the runs; default as for ``reprolib run``.
        priority: (experiment, scale) pairs.
        say: gets a line per run.
    """
    if minutes <= 0:
        raise InvalidInput(f"minutes = {minutes}: give a positive number")
    store = Store(keep or runs_folder())
    if source:
        say(f"continuing with {unpack(source, store.folder)} files from {source}")
    end = time.monotonic() + 60 * minutes - min(MARGIN, 6 * minutes)
    finished, passed = False, []
    try:
        for name, scale in priority:
            say(f"{name} at {scale}")
            try:
                follow(module(name).plan(scale), lambda runs: _done(runs, device, store, end, say))
            except DataError as error:
                say(f"passed over: {error}")
                passed.append(name)
        finished = not passed
        say("the list is finished" if finished else f"finished but for {', '.join(passed)}")
    except OutOfTime:
        say("time is over")
    finally:
        for path in pack(store.folder, out, say):
            say(f"wrote {path.name}, {path.stat().st_size / 2**20:.1f} MiB")
    return finished


def _done(runs: Sequence[Run], device: str, store: Store, end: float, say: Say) -> list[History]:
    """The histories of ``runs``, those that are missing trained one by one until the time is over."""
    found = []
    for run in map(portable, runs):
        history = store.read(run)
        if history is None:
            if time.monotonic() >= end:
                raise OutOfTime
            store.folder.mkdir(parents=True, exist_ok=True)
            made_in = environment(device)
            history = train(run, device, checkpoint=store.checkpoint(run), deadline=lambda: time.monotonic() >= end)
            if history is None:
                raise OutOfTime
            history.environment = made_in
            store.write(history)
            say(line(history))
        found.append(history)
    return found


def portable(run: Run) -> Run:
    """``run`` without its last weights: those of many large networks would not fit into a package."""
    return replace(run, keeps_end=False)


# ---- packages: one archive, cut into files that travel


def pack(runs: Path, out: Path, say: Say = print) -> list[Path]:
    """Write finished runs and checkpoints to ``out``; checkpoints that do not fit are left out, largest first."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = sorted(runs.glob("*.pt"), key=lambda path: path.stat().st_size)
    while True:
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
                for path in [*sorted(runs.glob("*.json")), *checkpoints]:
                    tar.add(path, path.name)
            size = archive.tell()
            if size <= FILES * SIZE:
                archive.seek(0)
                return _cut(archive.read(), out)
        if not checkpoints:
            raise RecordError(
                f"the finished runs alone are {size / 2**20:.0f} MiB: import what is there and start afresh"
            )
        say(f"checkpoint {checkpoints.pop().stem} does not fit: its run will start again")


def _cut(data: bytes, out: Path) -> list[Path]:
    pieces = [data[i : i + SIZE] for i in range(0, len(data), SIZE)]
    paths = [out / f"campaign-{i + 1}-of-{len(pieces)}.part" for i in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        with replaced(path) as partial:
            partial.write_bytes(piece)
    for old in set(out.glob("campaign-*.part")) - set(paths):
        old.unlink()
    return paths


def unpack(source: Path, runs: Path) -> int:
    """Put the files of a package into the folder of runs, unless they are there already; how many.

    Raises:
        RecordError: there is no package, or not all of it.
    """
    parts = sorted(source.glob("campaign-*.part"))
    if not parts:
        raise RecordError(f"no campaign-*.part in {source}: is it the folder that --out named?")
    expected = int(parts[0].stem.rpartition("-")[2])
    if len(parts) != expected:
        raise RecordError(f"{len(parts)} of {expected} parts are in {source}: copy all of them")
    runs.mkdir(parents=True, exist_ok=True)
    count = 0
    with tempfile.TemporaryFile() as archive:
        for part in parts:
            archive.write(part.read_bytes())
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive, mode="r:gz") as tar:
                for member in tar:
                    count += _taken(tar, member, runs)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise RecordError(f"the package in {source} is damaged: {error}") from error
    return count


def _taken(tar: tarfile.TarFile, member: tarfile.TarInfo, runs: Path) -> bool:
    """Put a file of the package in its place, unless a finished run or a newer checkpoint is there."""
    name = Path(member.name)
    if not member.isfile() or name.name != member.name or name.suffix not in (".json", ".pt"):
        return False
    target = runs / name
    if target.with_suffix(".json").exists() or (target.exists() and target.stat().st_mtime >= member.mtime):
        return False
    file = tar.extractfile(member)
    assert file is not None
    with replaced(target) as partial:
        partial.write_bytes(file.read())
        os.utime(partial, (member.mtime, member.mtime))
    return True


def parser() -> argparse.ArgumentParser:
    """The options, for this module's own command line and for ``reprolib campaign``."""
    p = argparse.ArgumentParser("reprolib campaign", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--minutes", type=float, required=True, help="stop in this time")
    p.add_argument("--out", type=Path, required=True, help="folder for the package")
    p.add_argument("--from", dest="source", type=Path, help="folder of the package to continue")
    p.add_argument("--keep", type=Path, help="folder of the runs (build/runs)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--only", action="append", metavar="EXPERIMENT:SCALE", help="instead of the priority list")
    return p


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    options = vars(parser().parse_args(words))
    only = options.pop("only")
    if only:
        options["priority"] = [tuple(item.rpartition(":")[::2]) for item in only]
    campaign(options.pop("out"), **options)


if __name__ == "__main__":
    try:
        main()
    except ReprolibError as error:
        sys.exit(f"error: {error}")
