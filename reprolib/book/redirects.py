"""Pages that changed their name: a reader who follows an old link is led to the new page."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from reprolib.errors import InvalidInput

# old page: new page, both as in _toc.yml
REDIRECTS = {
    "notebooks/red/first-results": "notebooks/red/four-tasks",
    "notebooks/red/benchmark": "notebooks/red/four-tasks",
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Moved</title>
<link rel="canonical" href="{target}">
<meta http-equiv="refresh" content="0; url={target}">
</head>
<body><p>This page has moved: <a href="{target}">continue there</a>.</p></body>
</html>
"""


def write(html: Path, redirects: dict[str, str] = REDIRECTS) -> list[Path]:
    """Write a page for each old name whose new page this book has into the built book; their paths.

    Raises:
        InvalidInput: there is a page of the old name.
    """
    written = []
    for old, new in redirects.items():
        page, target = html / f"{old}.html", html / f"{new}.html"
        if not target.exists():  # another book, built with this package
            continue
        if page.exists():
            raise InvalidInput(f"the page {old} exists, so it cannot lead to {new}: take it out of REDIRECTS")
        page.parent.mkdir(parents=True, exist_ok=True)
        way = PurePosixPath(os.path.relpath(target, page.parent)).as_posix()
        page.write_text(PAGE.format(target=way), encoding="utf-8")
        written.append(page)
    return written
