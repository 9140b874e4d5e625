"""Files that are whole or not there, whatever kills the writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place, once it is safely on disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def checkout() -> Path | None:
    """The source tree that this package lies in; an installed package has none."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "book" / "records").is_dir() else None


def write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replaced(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def written(path: Path) -> int | None:
    """When the file was last written, by the clock of its drive; ``None`` if it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _sync(folder: Path) -> None:
    """Make a rename last; not every system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
