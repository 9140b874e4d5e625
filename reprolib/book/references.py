"""Executed reference notebooks and the numbers they hand to the prose, which the tests compare with.

``tests/book/reference/<part>/<name>.ipynb`` is the chapter as executed at ``smoke``, without its pictures. What it printed is
compared, word by word, with the execution that the book is made from (:func:`printed_otherwise`; nbval does the same after
executing the reference again). ``tests/book/numbers/<part>/<name>.json`` holds the glued values, each with the relative
and absolute tolerance that a person chose; writing the references anew keeps these tolerances.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reprolib.book import source
from reprolib.book.execute import execute
from reprolib.book.layout import Layout

HOST_TAG = "host-dependent"  # cells whose output (date, device, time) says nothing about the result
RTOL = 1e-3  # for a number that nobody has given a tolerance yet


def clean(notebook: Any) -> Any:
    """The executed notebook without pictures, times and version details: small, and equal when re-made."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = {k: v for k, v in output["data"].items() if not k.startswith("image/")}
    return notebook


def host_values(notebook: Any) -> set[str]:
    """The names of the values glued by cells tagged ``host-dependent``."""
    names = set()
    for cell in notebook.cells:
        if HOST_TAG in cell.metadata.get("tags", []):
            names |= {
                o.metadata.scrapbook["name"] for o in cell.get("outputs", []) if "scrapbook" in o.get("metadata", {})
            }
    return names


def numbers(values: Mapping[str, Any], host: set[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a numbers file: values now, tolerances as they were before.

    A value that depends on the host is listed as ``{"host": true}``: it must exist, whatever it is.
    """
    entries: dict[str, Any] = {}
    for name, value in values.items():
        old = before.get(name, {})
        if name in host or old.get("host"):
            entries[name] = {"host": True}
        elif isinstance(value, float):
            tolerance = {k: old[k] for k in ("rtol", "atol", "why") if k in old} or {"rtol": RTOL}
            entries[name] = {"value": value, **tolerance}
        else:
            entries[name] = {"value": value}
    return entries


def compare(values: Mapping[str, Any], host: set[str], entries: Mapping[str, Any]) -> list[str]:
    """What differs between glued values and a numbers file, one line each.

    >>> compare({"loss": 0.1003}, set(), {"loss": {"value": 0.1, "rtol": 1e-3}})
    ['loss: 0.1003 is not 0.1 (rtol 0.001, atol 0)']
    >>> compare({"runs": 2}, set(), {"runs": {"value": 3, "atol": 1}})  # whole numbers are exact only without
    []
    """
    wrong = [f"{name}: no longer there" for name in entries.keys() - values.keys()]
    wrong += [f"{name}: new, run make references" for name in values.keys() - entries.keys() - host]
    for name in values.keys() & entries.keys():
        entry, value = entries[name], values[name]
        if entry.get("host"):
            continue
        expected, rtol, atol = entry["value"], entry.get("rtol", 0), entry.get("atol", 0)
        tolerant = isinstance(value, float) or (isinstance(value, int) and bool(rtol or atol))
        if tolerant and isinstance(expected, int | float):
            same = math.isclose(value, expected, rel_tol=rtol, abs_tol=atol) or (
                value != value and expected != expected
            )
        else:
            same = value == expected
        if not same:
            wrong.append(f"{name}: {value!r} is not {expected!r} (rtol {rtol}, atol {atol})")
    return sorted(wrong)


def said(cell: Any, sanitize: Callable[[str], str] = str) -> dict[str, list[str]]:
    """What a cell put out, as nbval sees it: the texts of each type in their order, all lines printed in one, no pictures."""
    texts: dict[str, list[str]] = {}
    printed = ""
    for output in cell.get("outputs", []):
        printed += output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if kind.startswith("application/papermill.record"):
                continue  # a value for the prose: the numbers file compares it
            if not kind.startswith("image/"):
                texts.setdefault(kind, []).append(sanitize(str(content)))
    return texts | ({"printed": [sanitize(printed)]} if printed else {})


def printed_otherwise(executed: Any, reference: Any, sanitize: Callable[[str], str] = str) -> list[str]:
    """The code cells that put out something else than in the reference, a description each.

    Those tagged ``nbval-ignore-output`` or ``nbval-skip`` may.
    """
    wrong = []
    cells = [[c for c in notebook.cells if c.cell_type == "code"] for notebook in (executed, reference)]
    for number, (now, before) in enumerate(zip(*cells, strict=True), 1):
        if not {"nbval-ignore-output", "nbval-skip"} & set(before.metadata.get("tags", [])):
            new, old = said(now, sanitize), said(before, sanitize)
            kinds = [kind for kind in old | new if old.get(kind) != new.get(kind)]
            wrong += [f"code cell {number}, {k}:\n  was {old.get(k)}\n  is  {new.get(k)}" for k in kinds]
    return wrong


def write(root: Path, *, only: str | None = None, force: bool = False, jobs: int = 2) -> None:
    """Execute the chapters at smoke where needed and write their references; those without a chapter are removed."""
    import nbformat

    layout = Layout(root)
    executed, chosen = execute(root, scale="smoke", only=only, force=force, jobs=jobs), layout.select(only)
    for chapter in chosen:
        notebook = clean(nbformat.read(executed[chapter], as_version=4))
        path = layout.reference / f"{chapter}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        file = layout.numbers / f"{chapter}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        entries = numbers(source.glued(notebook), host_values(notebook), before)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"reference: {chapter}, {len(entries)} numbers", flush=True)
    known = set(layout.chapters())
    for folder, suffix in ((layout.reference, ".ipynb"), (layout.numbers, ".json")):
        for path in folder.rglob(f"*{suffix}"):
            if path.relative_to(folder).with_suffix("").as_posix() not in known:
                path.unlink()
                print(f"reference: {path.relative_to(root)} removed, its chapter is gone", flush=True)
    shutil.rmtree(layout.reference / ".ipynb_checkpoints", ignore_errors=True)
