"""When must a chapter be executed again? When anything that its results depend on has changed.

The key of an execution is the SHA-256 of: the chapter's source, all of ``reprolib``, the published records and claims, the
locked versions, the Python version, the scale and the device. It lies beside the executed notebook.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from reprolib.book.layout import Layout


def digest(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the names (relative to ``root``) and contents of files; one that is missing counts as missing."""
    total = hashlib.sha256()
    for path in sorted(set(files)):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def environment_key(layout: Layout) -> str:
    """The part of the key that all chapters share."""
    files = [
        *(layout.root / "reprolib").rglob("*.py"),
        *(p for p in (layout.pages / "records").rglob("*") if p.is_file()),
        layout.pages / "claims.yaml",
        layout.root / "constraints.txt",
    ]
    return digest(layout.root, files) + " python " + platform.python_version()


def chapter_key(layout: Layout, chapter: str, scale: str, environment: str, device: str = "cpu") -> str:
    """The key of one chapter at one scale on one device."""
    source = digest(layout.root, [layout.source(chapter)])
    return hashlib.sha256(f"{source} {scale} {device} {environment}".encode()).hexdigest()


@dataclass(frozen=True)
class Stamp:
    """What is known of an execution: its key, how long it took, when it ended (UTC)."""

    key: str
    seconds: float
    finished: str

    @staticmethod
    def beside(executed: Path) -> Path:
        """The stamp's file for an executed notebook."""
        return executed.with_suffix(".json")

    @classmethod
    def read(cls, executed: Path) -> Stamp | None:
        """The stamp of an executed notebook, or None where either is missing or unreadable."""
        try:
            stamp = cls(**json.loads(cls.beside(executed).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return stamp if executed.is_file() else None

    def write(self, executed: Path) -> None:
        """Store the stamp beside its notebook."""
        self.beside(executed).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
