"""The commands behind the Makefile: ``python -m reprolib.book build|execute|references|notebook|readme``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from reprolib.book.execute import clock, execute
from reprolib.book.html import build
from reprolib.book.layout import Layout
from reprolib.book.notebook import open_lab
from reprolib.book.references import write
from reprolib.errors import InvalidInput, ReprolibError
from reprolib.records.scale import check_scale


@contextlib.contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Keep a second build of the same checkout out while this one runs."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing to lock with, builds are the reader's own affair
        yield
        return
    layout.build.mkdir(parents=True, exist_ok=True)
    with (layout.build / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidInput("another build of this checkout is running: wait for it, or stop it") from None
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 if a chapter or the book failed, 2 if the request made no sense."""
    parser = argparse.ArgumentParser(prog="python -m reprolib.book", description=__doc__)
    parser.add_argument("command", choices=["build", "execute", "references", "notebook", "readme"])
    parser.add_argument("--scale", default="smoke", help="smoke, desk, night or paper")
    parser.add_argument(
        "--only", default="", help="chapters whose name starts with this, such as red/ or red/derivation"
    )
    parser.add_argument("--force", action="store_true", help="execute again even where nothing changed")
    parser.add_argument("--jobs", type=int, default=2, help="chapters at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads for each chapter")
    parser.add_argument("--device", default="cpu", help="where the chapters' experiments train, such as cuda")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for each chapter, as a reader has")
    parser.add_argument("--lab", default="", help="options for JupyterLab, such as '--no-browser'")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout")
    a = parser.parse_args(arguments)
    root = a.root.resolve()
    layout = Layout(root)
    began = time.monotonic()
    try:
        check_scale(a.scale)
        if a.jobs < 1 or a.threads < 1:
            raise InvalidInput(f"jobs {a.jobs} and threads {a.threads} must be 1 or more")
        layout.select(a.only)
        if a.device != "cpu":
            from reprolib.lab.device import check_device  # imports torch

            check_device(a.device)
        if a.command == "readme":
            from reprolib.book.readme import write as write_readme  # needs matplotlib and the records

            for path in write_readme(layout):
                print(f"wrote {path.relative_to(root)}")
            return 0
        if a.command == "notebook":
            open_lab(root, a.only, a.lab)
        with alone(layout):
            if a.command == "references":
                write(root, only=a.only, force=a.force, jobs=a.jobs)
                return 0
            options = {"scale": a.scale, "only": a.only, "force": a.force, "jobs": a.jobs, "threads": a.threads}
            executed = execute(root, **options, device=a.device, fresh=a.fresh)
            if a.command == "build":
                page = build(layout, executed, force=a.force)
                print(f"done in {clock(time.monotonic() - began)}, the first page is\n  {page}", flush=True)
    except ReprolibError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InvalidInput) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
