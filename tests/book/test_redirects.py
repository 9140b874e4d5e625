"""Old addresses of pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reprolib.book.layout import Layout
from reprolib.book.redirects import REDIRECTS, write
from reprolib.errors import InvalidInput

LAYOUT = Layout(Path(__file__).parents[2])


@pytest.mark.parametrize("old", REDIRECTS)
def test_an_old_page_is_gone_and_leads_to_one_that_is_there(old: str) -> None:
    for page, there in ((old, False), (REDIRECTS[old], True)):
        assert any((LAYOUT.root / f"{page}{suffix}").exists() for suffix in (".md", ".ipynb")) is there, page
    assert REDIRECTS[old] not in REDIRECTS, "lead to the last page at once"


def test_the_written_page_leads_there(tmp_path: Path) -> None:
    (tmp_path / "notebooks" / "new").mkdir(parents=True)
    target = tmp_path / "notebooks" / "new" / "page.html"
    target.write_text("here", encoding="utf-8")
    (page,) = write(tmp_path, {"notebooks/old/page": "notebooks/new/page"})
    assert page == tmp_path / "notebooks" / "old" / "page.html"
    links = re.findall(r'(?:href="|url=)([^"]+)"', page.read_text(encoding="utf-8"))
    assert links == ["../new/page.html"] * 3
    assert (page.parent / links[0]).resolve() == target


def test_no_page_is_overwritten_and_none_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("here", encoding="utf-8")
    with pytest.raises(InvalidInput, match="exists"):
        write(tmp_path, {"a": "a"})
    assert write(tmp_path, {"b": "c"}) == []
    assert not (tmp_path / "b.html").exists()
