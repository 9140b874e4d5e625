"""The sources of the chapters keep to the rules of CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from reprolib.book import source
from reprolib.book.layout import Layout

LAYOUT = Layout(Path(__file__).parents[2])
CHAPTERS = LAYOUT.listed()


def code_cells(chapter: str) -> list[Any]:
    return [c for c in source.read(LAYOUT.source(chapter)).cells if c.cell_type == "code"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_header(chapter: str) -> None:
    text = LAYOUT.source(chapter).read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["jupytext"]["formats"] == "ipynb,md:myst"
    assert header["jupytext"]["text_representation"]["format_name"] == "myst"
    assert header["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_first_code_cell_sets_the_scale(chapter: str) -> None:
    first = code_cells(chapter)[0]
    assert "parameters" in first.metadata.get("tags", [])
    assert source.SCALE_LINE.search(first.source)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_have_caption_and_alt_text(chapter: str) -> None:
    for cell in code_cells(chapter):
        about = cell.metadata.get("mystnb", {})
        if "plt.show()" in cell.source.splitlines() or "figure" in about or "image" in about:
            assert about.get("figure", {}).get("caption"), f"no caption: {source.first_line(cell.source)}"
            assert about.get("image", {}).get("alt"), f"no alt text: {source.first_line(cell.source)}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_of_records_name_scale_device_and_seeds(chapter: str) -> None:
    for cell in code_cells(chapter):
        caption = " ".join(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "").split())
        if re.search("Our version of|over the seeds", caption):
            assert "{glue:text}" in caption, f"add what report.conditions says of the record: {caption}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_cells_end_as_nbval_needs(chapter: str) -> None:
    for cell in code_cells(chapter):
        assert not cell.source.rstrip().endswith(";"), f"end with plt.show(), not with a semicolon: {cell.source}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_has_a_label_and_one_title(chapter: str) -> None:
    text = LAYOUT.source(chapter).read_text(encoding="utf-8").split("---\n", 2)[2]
    prose = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# \S", prose, re.MULTILINE)) == 1
    assert re.match(r"\s*\([\w.:-]+\)=\s*\n# ", text), "begin with a label, then the title"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_where_a_chapter_computes_is_not_its_choice(chapter: str) -> None:
    for cell in code_cells(chapter):
        assert "torch.cuda" not in cell.source, "take shown.device(), which make book DEVICE=... sets"
