"""What the book needs beyond Jupyter Book: no third-party scripts, and each chapter's source and notebook to download."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copy2
from typing import Any


def drop_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove the scripts of sphinx-thebe: unused here, they name a CDN and fail because they come twice."""

    def wanted(script: Any) -> bool:
        name = str(getattr(script, "filename", script) or "")
        body = (getattr(script, "attributes", None) or {}).get("body") or ""
        return "thebe" not in name and "THEBE_JS_URL" not in body

    context["script_files"] = [s for s in context.get("script_files", []) if wanted(s)]
    context["css_files"] = [s for s in context.get("css_files", []) if "thebe" not in str(getattr(s, "filename", s))]


def offer_downloads(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Point the theme's buttons at a chapter's source in git and at its executed notebook."""
    if doctree is not None and is_chapter(app, page):
        context["ipynb_source"] = page + ".ipynb"
        context["sourcename"] = page + ".md"
        context["page_source_suffix"] = ".md"  # for the "edit" and "show source" buttons


def copy_downloads(app: Any, error: Exception | None) -> None:
    """Put both files where the buttons look for them, at the very end: Sphinx writes its own copies before."""
    for page in [] if error else app.env.found_docs:
        if is_chapter(app, page):
            target = Path(app.outdir, "_sources", page)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(Path(app.config.reprolib_root, page + ".md"), f"{target}.md")
            copy2(Path(app.srcdir, page + ".ipynb"), f"{target}.ipynb")


def is_chapter(app: Any, page: str) -> bool:
    """Whether a page is an executed chapter."""
    return page.startswith("notebooks/") and Path(app.config.reprolib_root, page + ".md").exists()


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_config_value("reprolib_root", os.environ.get("REPROLIB_BOOK_ROOT", "."), "")
    app.connect("html-page-context", offer_downloads, priority=400)
    app.connect("build-finished", copy_downloads)
    app.connect("html-page-context", drop_thebe, priority=900)  # after MathJax has added its own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
