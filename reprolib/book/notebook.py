"""Make the notebook paired with a chapter's source, for work in JupyterLab."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from reprolib.book.layout import Layout


def pair(source: Path) -> Path:
    """Write ``<name>.ipynb`` beside ``<name>.md`` (outputs of cells that did not change are kept); its path.

    The conversion goes one way: the ``.md`` is what counts. In JupyterLab, jupytext then saves both.
    """
    import jupytext
    from jupytext.combine import combine_inputs_with_outputs

    paired = source.with_suffix(".ipynb")
    notebook = jupytext.read(source)
    if paired.exists():
        notebook = combine_inputs_with_outputs(notebook, jupytext.read(paired))
    jupytext.write(notebook, paired)
    stamp = source.stat()
    os.utime(paired, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # jupytext refuses a notebook newer than its source
    return paired


def open_lab(root: Path, only: str | None, options: str = "") -> None:
    """Pair the chapters and replace this process by JupyterLab, opened at the first of them.

    ``options`` are handed to JupyterLab, such as ``--no-browser --port 8890``.
    """
    layout = Layout(root)
    paired = [pair(layout.source(chapter)) for chapter in layout.select(only)]
    first = paired[0].relative_to(root).as_posix()
    print(f"notebook: opening {first} in JupyterLab (stop it with Ctrl-C)", flush=True)
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *shlex.split(options), first])
