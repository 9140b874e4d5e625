"""Every page of the built book, opened in a real browser over http and from disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from reprolib.book.layout import Layout
from reprolib.book.redirects import REDIRECTS
from tests.book import browser as reader

LAYOUT = Layout(Path(__file__).parents[2])
HTML = LAYOUT.html
ONLY_LEAD = {HTML / "index.html", *(HTML / f"{old}.html" for old in REDIRECTS)}  # to another page
PAGES = sorted(
    p.relative_to(HTML).as_posix()
    for p in HTML.rglob("*.html")
    if not {"_static", "_sources"} & set(p.parts) and p not in ONLY_LEAD
)

pytestmark = pytest.mark.skipif(
    reader.executable() is None, reason="no Chromium or Chrome is installed: pages are not checked"
)
built = pytest.mark.skipif(not PAGES, reason="there is no built book to look at: run `make book` first")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with reader.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    with reader.served(HTML) as address:
        yield address


@built
@pytest.mark.parametrize("page", PAGES or ["(none)"])
def test_page_over_http(page: str, chromium: Any, home: str) -> None:
    assert reader.findings(chromium, f"{home}/{page}", home) == []


@built
@pytest.mark.parametrize("page", PAGES or ["(none)"])
def test_page_from_disk(page: str, chromium: Any) -> None:
    assert reader.findings(chromium, (HTML / page).as_uri(), HTML.as_uri(), looks=False) == []


@built
@pytest.mark.parametrize("way", ["http", "disk"])
def test_search_finds(way: str, chromium: Any, home: str) -> None:
    address = home if way == "http" else HTML.as_uri()
    page = chromium.new_page()
    try:
        page.goto(f"{address}/search.html?q=curvature")
        page.wait_for_selector("#search-results li a", timeout=10_000)
        assert page.locator("#search-results li a").count() >= 1
    finally:
        page.close()


@built
def test_first_page_leads_to_the_preface(chromium: Any) -> None:
    page = chromium.new_page()
    try:
        page.goto((HTML / "index.html").as_uri())
        page.wait_for_url("**/book/intro.html")
    finally:
        page.close()


@built
@pytest.mark.parametrize("old", REDIRECTS)
def test_old_page_leads_to_the_new_one(old: str, chromium: Any) -> None:
    page = chromium.new_page()
    try:
        page.goto((HTML / f"{old}.html").as_uri())
        page.wait_for_url(f"**/{REDIRECTS[old]}.html")
    finally:
        page.close()


@built
@pytest.mark.parametrize("chapter", LAYOUT.listed())
def test_chapter_offers_source_and_executed_notebook(chapter: str) -> None:
    text = (HTML / f"notebooks/{chapter}.html").read_text(encoding="utf-8")
    links = {name.split("/")[-1] for name in re.findall(r'href="([^"]*_sources/[^"]*)"', text)}
    name = chapter.split("/")[-1]
    assert {f"{name}.md", f"{name}.ipynb"} <= links
    folder = HTML / "_sources" / "notebooks"
    assert (folder / f"{chapter}.md").read_text(encoding="utf-8").startswith("---")
    assert '"execution_count": 1' in (folder / f"{chapter}.ipynb").read_text(encoding="utf-8")


@built
def test_links_within_the_book_lead_somewhere() -> None:
    broken = []
    identifiers: dict[Path, set[str]] = {}
    for name in PAGES:
        page = HTML / name
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', page.read_text(encoding="utf-8")):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("javascript:"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append(f"{name}: {link}")
            elif parts.fragment and target.suffix == ".html":
                if target not in identifiers:
                    identifiers[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text(encoding="utf-8")))
                if unquote(parts.fragment) not in identifiers[target]:
                    broken.append(f"{name}: {link}")
    assert not broken, "\n".join(broken)


WIDE = '<table style="width: 2000px"><tr><td>wide</td></tr></table>'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f'<div style="overflow-x: auto">{WIDE}</div>', []),
        (f'<div style="overflow-x: auto"><div style="width: 3000px; overflow: hidden">{WIDE}</div></div>', []),
        (f'<div style="overflow-x: hidden">{WIDE}</div>', ["cut at the right: table wide"]),
        (f'<div style="overflow-x: auto"><div style="overflow: clip">{WIDE}</div></div>', ["cut at the right: table wide"]),
        (f'<section style="overflow-x: auto"><h2>A title</h2>{WIDE}</section>', ["cut at the right: table wide"]),
        (WIDE, ["cut at the right: table wide"]),
        ('<table><tr><td>narrow</td></tr></table>', []),
        ('<div class="math" style="height: 20px; overflow: hidden"><p style="height: 40px">high</p></div>', ["cut below: div high"]),
        ('<div class="math" style="height: 60px; overflow: hidden"><p style="height: 40px; margin: 0">high</p></div>', []),
    ],
)  # fmt: skip
def test_what_is_cut_is_found(content: str, found: list[str], chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    try:
        page.set_content(f"<!doctype html><body><main><article>{content}</article></main></body>")
        assert page.evaluate(reader.CUT) == found
    finally:
        page.close()
