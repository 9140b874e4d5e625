"""Where everything lies in a checkout: sources, executed notebooks, the built book."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reprolib.errors import InvalidInput, UnknownName


@dataclass(frozen=True)
class Layout:
    """The files of one checkout. A chapter is named by its part and file: ``red/derivation``."""

    root: Path

    @property
    def notebooks(self) -> Path:
        """The chapters' sources, ``notebooks/<part>/<name>.md``."""
        return self.root / "notebooks"

    @property
    def pages(self) -> Path:
        """Pages without code, the bibliography, records and claims."""
        return self.root / "book"

    @property
    def build(self) -> Path:
        """Everything generated; ``$REPROLIB_BUILD`` names another folder."""
        return self.root / (os.environ.get("REPROLIB_BUILD") or "build")

    @property
    def html(self) -> Path:
        """The finished book."""
        return self.build / "html"

    @property
    def reference(self) -> Path:
        """Executed copies of the chapters that the tests compare with."""
        return self.root / "tests" / "book" / "reference"

    @property
    def numbers(self) -> Path:
        """The numbers that the chapters quote, each with its tolerance."""
        return self.root / "tests" / "book" / "numbers"

    def source(self, chapter: str) -> Path:
        """The chapter's file in git."""
        return self.notebooks / f"{chapter}.md"

    def executed(self, chapter: str, scale: str) -> Path:
        """The chapter's executed notebook at one scale."""
        return self.build / "executed" / scale / f"{chapter}.ipynb"

    def chapters(self) -> list[str]:
        """All chapters, in the order of the table of contents; those that it does not list come last."""
        found = {p.relative_to(self.notebooks).with_suffix("").as_posix() for p in self.notebooks.glob("*/*.md")}
        listed = self.listed()
        missing = [c for c in listed if c not in found]
        if missing:
            raise InvalidInput(
                f"_toc.yml lists notebooks/{missing[0]}, but there is no notebooks/{missing[0]}.md: "
                "write the chapter or take it out of _toc.yml"
            )
        return listed + sorted(found - set(listed))

    def listed(self) -> list[str]:
        """The chapters that ``_toc.yml`` lists, in its order (none where there is no such file)."""
        import yaml

        toc = self.root / "_toc.yml"
        if not toc.exists():
            return []
        chapters: list[str] = []

        def walk(node: object) -> None:
            if isinstance(node, dict):
                file = str(node.get("file", ""))
                if file.startswith("notebooks/"):
                    chapters.append(file.removeprefix("notebooks/").removesuffix(".md"))
                for key in ("parts", "chapters", "sections", "subtrees", "entries"):
                    walk(node.get(key))
            elif isinstance(node, list):
                for item in node:
                    walk(item)

        walk(yaml.safe_load(toc.read_text(encoding="utf-8")))
        return chapters

    def select(self, only: str | None) -> list[str]:
        """The chapters whose name starts with ``only`` (all of them if it is empty)."""
        chapters = self.chapters()
        if not only:
            return chapters
        wanted = only.removeprefix("notebooks/").removesuffix(".md").removesuffix("/...")
        chosen = [c for c in chapters if c.startswith(wanted)]
        if not chosen:
            raise UnknownName.among("chapter", only, chapters)
        return chosen
