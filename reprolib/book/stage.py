"""Gather what the book is made of under ``build/src``: pages without code, with the ledger of claims filled in, and
executed chapters tidied for reading.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from reprolib.book.layout import Layout


def stage(layout: Layout, executed: dict[str, Path]) -> Path:
    """Write the source tree of the book anew; its folder."""
    import nbformat

    target = layout.build / "src"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(layout.pages, target / "book", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    ledger = target / "book" / "claims.md"
    if ledger.exists():
        from reprolib.book.ledger import filled  # needs the records

        ledger.write_text(filled(ledger.read_text(encoding="utf-8"), layout), encoding="utf-8")
    for chapter, path in executed.items():
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("papermill", None)
        for cell in notebook.cells:
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
        staged = target / "notebooks" / f"{chapter}.ipynb"
        staged.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, staged)
    return target
