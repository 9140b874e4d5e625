"""Read a chapter's source as a notebook, set its scale, say where a cell stands in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reprolib.errors import InvalidInput

SCALE_LINE = re.compile(r"""^scale\s*=\s*(["'])smoke\1""", re.MULTILINE)


def read(path: Path) -> Any:
    """The notebook of a MyST-markdown file. Cell ids are their positions, so two readings are equal."""
    import jupytext

    notebook = jupytext.read(path)
    notebook.metadata.pop("jupytext", None)  # executed copies are not paired
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    return notebook


def set_scale(notebook: Any, scale: str, name: str) -> None:
    """Write ``scale`` into the cell tagged ``parameters``, which must hold the line ``scale = "smoke"``."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source, found = SCALE_LINE.subn(f'scale = "{scale}"', cell.source)
            if found == 1:
                return
    raise InvalidInput(
        f'{name} has no code cell tagged "parameters" with the line scale = "smoke": add it as the first code cell'
    )


def line_of(path: Path, code_cell: int) -> int | None:
    """The line of the file where code cell number ``code_cell`` (from 1) begins."""
    seen = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        seen += line.startswith("```{code-cell}")
        if seen == code_cell:
            return number
    return None


def first_line(source: str) -> str:
    r"""The first line of a cell that says something.

    >>> first_line("\n# train\nrun()")
    '# train'
    """
    return next((line.strip() for line in source.splitlines() if line.strip()), "")


def glued(notebook: Any) -> dict[str, Any]:
    """The values that an executed notebook hands to the prose (``report.value``), as Python objects or text."""
    import ast

    values: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get("scrapbook")
            if not about:
                continue
            text = output["data"].get(about.get("mime_prefix", "") + "text/plain")
            if text is None:
                continue
            try:
                values[about["name"]] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                values[about["name"]] = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}.get(
                    text, text
                )
    return values
