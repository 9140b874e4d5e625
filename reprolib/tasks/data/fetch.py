"""Download the absent files of a data set; nothing appears in the data folder before it is complete and verified."""

from __future__ import annotations

import logging
import os
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from reprolib.errors import DataError
from reprolib.tasks.data.catalog import Entry, File, Remote
from reprolib.tasks.data.store import data_folder, entry, missing, read

TIMEOUT = 30.0  # seconds without an answer


def fetch(name: str, *, folder: str | os.PathLike | None = None, progress: bool | None = None) -> list[Path]:
    """Download what is absent of a data set and return the paths of the new files.

    Args:
        name: see `load`.
        folder: the data folder, made if need be; None: see `load`.
        progress: show a progress bar (tqdm); None: if standard error is a terminal.

    Raises:
        UnknownName: no such data set.
        DataError: no network, an HTTP error, a wrong checksum, a full disk. The data folder is then as it was.
    """
    which, place = entry(name), data_folder(folder)
    absent = missing(which, place)
    if not absent:
        return []
    progress = sys.stderr.isatty() if progress is None else progress
    try:
        place.mkdir(parents=True, exist_ok=True)
        # in the data folder itself, so that the last step is a rename on one file system
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=place) as scratch:
            if which.archive is not None:
                archive = _retrieve(which, which.archive, Path(scratch), progress)
                arrived = _extract(which, absent, archive, Path(scratch))
            else:
                arrived = [_retrieve(which, _remote(which, file), Path(scratch), progress) for file in absent]
            for file, path in zip(absent, arrived, strict=True):
                _verify(which, file, path)
            for file, path in zip(absent, arrived, strict=True):
                (place / file.path).parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)  # pooch makes files that only their owner can read
                os.replace(path, place / file.path)
    except OSError as error:
        raise DataError(f"cannot write {name} into {place}: {error}") from error
    return [place / file.path for file in absent]


def _remote(which: Entry, file: File) -> Remote:
    remote = file.remote or which.archive
    assert remote is not None, f"catalogue: {file.path} has no address"
    return remote


def _retrieve(which: Entry, remote: Remote, scratch: Path, progress: bool) -> Path:
    """Download one file into ``scratch``."""
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise DataError(f"downloading {which.name} needs pooch: pip install 'reprolib[data]'") from error
    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # else it prints hashes of files in scratch, which help nobody
    try:
        return Path(
            pooch.retrieve(
                remote.url,
                known_hash=None if remote.md5 is None else f"md5:{remote.md5}",
                fname=remote.url.rpartition("/")[2],
                path=scratch,
                downloader=pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT),
            )
        )
    except Exception as error:  # requests', urllib3's and pooch's many classes; all mean: it did not arrive
        raise DataError(
            f"cannot download {which.name} from {remote.url}: {_reason(error)}; try again later, or put its files into the "
            "data folder yourself (`reprolib data where`); `digits` needs no download"
        ) from error
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    """The innermost cause in one line: requests wraps 'Connection refused' in four layers."""
    inner = getattr(error.args[0], "reason", None) if error.args else None  # urllib3's MaxRetryError has one
    text = " ".join(str(inner or error).split())
    return f"{type(inner or error).__name__}: {text[:200]}"


def _extract(which: Entry, absent: list[File], archive: Path, scratch: Path) -> list[Path]:
    """Copy the absent files, and no other member, out of the .tar.gz, to names in ``scratch`` that the archive cannot choose."""
    arrived = [scratch / f"{number}-{file.name}" for number, file in enumerate(absent)]
    try:
        with tarfile.open(archive) as tar:
            for file, path in zip(absent, arrived, strict=True):
                member = tar.extractfile(file.path)
                if member is None:
                    raise KeyError(f"{file.path} is not a file")
                with member, path.open("wb") as out:
                    while block := member.read(1 << 20):
                        out.write(block)
    except (KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"the archive {archive.name} of {which.name} is not the expected one: {error}") from error
    return arrived


def _verify(which: Entry, file: File, path: Path) -> None:
    try:
        read(which, file, path)
    except DataError as error:
        address = _remote(which, file).url
        raise DataError(f"what {address} sends was not kept: {file.name} {error.__cause__}") from error
