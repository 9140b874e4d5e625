"""What the chapters print and the numbers that they quote, against the references."""

from __future__ import annotations

import json
import re
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from reprolib.book import source
from reprolib.book.cache import Stamp, chapter_key, environment_key
from reprolib.book.layout import Layout
from reprolib.book.references import HOST_TAG, compare, host_values, printed_otherwise

LAYOUT = Layout(Path(__file__).parents[2])
CHAPTERS = LAYOUT.listed()


def reference(chapter: str) -> Any:
    path = LAYOUT.reference / f"{chapter}.ipynb"
    assert path.is_file(), f"{chapter} has no reference notebook: run `make references ONLY={chapter}`"
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_reference_is_executed(chapter: str) -> None:
    counts = [c.execution_count for c in reference(chapter).cells if c.cell_type == "code" and c.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "nbval passes over cells without a number: run `make references`"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_reference_has_the_cells_of_its_source(chapter: str) -> None:
    def cells(notebook: Any) -> list[tuple[str, str, list[str]]]:
        return [(c.cell_type, c.source, list(c.metadata.get("tags", []))) for c in notebook.cells]

    assert cells(reference(chapter)) == cells(source.read(LAYOUT.source(chapter)))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_values_from_the_host_are_not_compared_as_text(chapter: str) -> None:
    for cell in reference(chapter).cells:
        tags = cell.metadata.get("tags", [])
        assert HOST_TAG not in tags or "nbval-ignore-output" in tags, f"also tag it nbval-ignore-output: {cell.source}"


def executed(chapter: str) -> Any:
    path = LAYOUT.executed(chapter, "smoke")
    stamp = Stamp.read(path)
    if stamp is None or stamp.key != chapter_key(LAYOUT, chapter, "smoke", environment_key(LAYOUT)):
        pytest.skip(f"{chapter} has not been executed since its last change: run `make book`")
    return nbformat.read(path, as_version=4)


def sanitize(text: str) -> str:
    """As nbval does it with the same file."""
    rules = RawConfigParser()
    rules.read(Path(__file__).with_name("sanitize.cfg"), encoding="utf-8")
    for rule in rules.sections():
        text = re.sub(rules[rule]["regex"], rules[rule]["replace"], text)
    return text


@pytest.mark.kernels
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_numbers_are_as_published(chapter: str) -> None:
    notebook = executed(chapter)
    entries = json.loads((LAYOUT.numbers / f"{chapter}.json").read_text(encoding="utf-8"))
    wrong = compare(source.glued(notebook), host_values(notebook), entries)
    assert not wrong, "\n".join(wrong)


@pytest.mark.kernels
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_cells_print_what_they_printed(chapter: str) -> None:
    wrong = printed_otherwise(executed(chapter), reference(chapter), sanitize)
    assert not wrong, "\n".join(wrong)


def test_no_reference_without_a_chapter() -> None:
    for folder in (LAYOUT.reference, LAYOUT.numbers):
        found = {
            p.relative_to(folder).with_suffix("").as_posix() for s in ("ipynb", "json") for p in folder.rglob(f"*.{s}")
        }
        assert found <= set(CHAPTERS)


def test_every_chapter_is_in_the_table_of_contents() -> None:
    assert LAYOUT.chapters() == CHAPTERS
