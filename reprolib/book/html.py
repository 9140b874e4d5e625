"""Build the static book strictly and put it in the place of the old one only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from reprolib.book import redirects
from reprolib.book.cache import digest
from reprolib.book.layout import Layout
from reprolib.book.stage import stage
from reprolib.errors import InvalidInput

WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL|SEVERE)\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def book_key(layout: Layout, executed: dict[str, Path]) -> str:
    """SHA-256 of everything that the HTML is made from."""
    files = [
        *executed.values(),
        *(layout.source(chapter) for chapter in executed),
        *(p for p in layout.pages.rglob("*") if p.is_file()),
        *(layout.root / "reprolib").rglob("*.py"),  # the ledger's verdicts are computed
        *(layout.root / name for name in ("_config.yml", "_toc.yml", "constraints.txt")),
    ]
    return digest(layout.root, files)


def first_page(layout: Layout) -> Path:
    """The page that a reader opens first."""
    return layout.html / "index.html"


def build(layout: Layout, executed: dict[str, Path], *, force: bool = False) -> Path:
    """Build the book from executed chapters; its first page.

    Nothing is done when nothing changed. Pages are always written all together, because a number shown on one page may come
    from another. A build that fails or warns leaves the book of before as it was.

    Raises:
        InvalidInput: Sphinx warned or failed; the lines that say so are printed before.
    """
    key_file, key = layout.build / "html.key", book_key(layout, executed)
    if not force and first_page(layout).exists() and key_file.exists() and key_file.read_text() == key:
        print("book: nothing changed", flush=True)
        return first_page(layout)
    began = time.monotonic()
    print(f"book: building the pages of {len(executed)} chapters ...", flush=True)
    source, fresh = stage(layout, executed), layout.build / "next"
    shutil.rmtree(fresh, ignore_errors=True)
    command = [
        *(sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)),
        *("--config", str(layout.root / "_config.yml"), "--toc", str(layout.root / "_toc.yml")),
        *("--path-output", str(fresh), "-W", "-n", "--keep-going"),
    ]
    environment = {**os.environ, "REPROLIB_BOOK_ROOT": str(layout.root), "NO_COLOR": "1"}
    environment.pop("PYTHONWARNINGS", None)
    result = subprocess.run(
        command, cwd=layout.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = layout.build / "html.log"
    log.write_text(COLOUR.sub("", result.stdout), encoding="utf-8")
    built = fresh / "_build" / "html"
    if result.returncode or not (built / "index.html").exists():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if WARNING.search(line)]
        for line in lines or result.stdout.splitlines()[-20:]:
            print("  " + readable(line, source), flush=True)
        raise InvalidInput(
            f"the book was not built: {len(lines)} warnings (a strict build allows none); "
            f"the book of before is untouched, the whole log is {log.relative_to(layout.root)}"
        )
    redirects.write(built)
    swap(built, layout.html)
    key_file.write_text(key)
    shutil.rmtree(fresh, ignore_errors=True)
    print(f"book: built in {time.monotonic() - began:.0f} s", flush=True)
    return first_page(layout)


def readable(line: str, source: Path) -> str:
    """A warning with the place named as an author knows it: the chapter's source, the cell (prose counts) and its line.

    >>> readable("/x/src/notebooks/red/derivation.ipynb:40008: WARNING: undefined label", Path("/x/src"))
    'notebooks/red/derivation.md, cell 4 line 8: WARNING: undefined label'
    """

    def place(found: re.Match[str]) -> str:
        cell, row = divmod(int(found[2]), 10000)
        return f"{found[1]}.md, cell {cell} line {row}:"

    return re.sub(r"^(notebooks/\S+)\.ipynb:(\d{5,}):", place, line.replace(f"{source}{os.sep}", ""))


def swap(fresh: Path, place: Path) -> None:
    """Put the folder ``fresh`` at ``place``; whatever was there goes only once the new one is in."""
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        fresh.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
