"""Packages of a campaign: finished runs and checkpoints in one archive, cut into files that travel."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reprolib.errors import RecordError
from reprolib.lab.files import replaced
from reprolib.lab.run import Run

FILES, SIZE = 8, 16 * 2**20


def portable(run: Run) -> Run:
    """``run`` without its last weights: those of many large networks would not fit into a package."""
    return replace(run, keeps_end=False)


def pack(runs: Path, out: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Write finished runs and checkpoints, if there are any, to ``out``; those that do not fit are left out, largest first."""
    finished = sorted(runs.glob("*.json"))
    checkpoints = sorted(runs.glob("*.pt"), key=lambda path: path.stat().st_size)
    if not finished and not checkpoints:
        return []
    out.mkdir(parents=True, exist_ok=True)
    while True:
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
                for path in [*finished, *checkpoints]:
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
