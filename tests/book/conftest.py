"""A small checkout with tiny chapters."""

from __future__ import annotations

from pathlib import Path

import pytest

CHAPTER = """---
jupytext:
  formats: ipynb,md:myst
  text_representation: {{extension: .md, format_name: myst}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---

# A chapter

```{{code-cell}} ipython3
:tags: [parameters]

scale = "smoke"
```

```{{code-cell}} ipython3
{code}
```
"""


def write(root: Path, chapter: str, code: str = "print(scale)") -> Path:
    path = root / "notebooks" / f"{chapter}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CHAPTER.format(code=code), encoding="utf-8")
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two chapters and nothing else."""
    (tmp_path / "reprolib").mkdir()
    (tmp_path / "reprolib" / "code.py").write_text("x = 1\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    write(tmp_path, "red/one")
    write(tmp_path, "red/two")
    return tmp_path
