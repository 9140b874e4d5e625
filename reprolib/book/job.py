"""One chapter in a process of its own: its kernel, its time limit, what stopped it.

A small chapter spends half of its time importing torch, pandas, Matplotlib and IPython, as every other one does. Python's fork
server imports them once; the process of a chapter is forked from it, and before it does anything else it forks its kernel
from itself. Nothing of reprolib is imported beforehand: a chapter sees the source as it is when it starts.

A process can be forked safely where a single thread runs in it and no GPU is in use. Where that is not so, or with ``fresh``,
a chapter gets a new interpreter, which is what a reader's kernel is. The results are the same.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from reprolib.book import source
from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput

# What chapters import and what a kernel is made of, some of it only at first use; what talks to it. All but reprolib.
PRELOADED = [
    *("numpy", "torch", "torch.func", "torch.utils.flop_counter", "pandas", "pandas.io.formats.style", "filelock", "yaml"),
    "torch._dynamo",  # the first optimizer imports it
    "torch._decomp.decompositions_for_jvp",  # the first forward derivative compiles it
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "IPython.display", "IPython.core.pylabtools"),
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "IPython.core.completerlib"),
    *("papermill", "jupytext", "nbformat", "nbclient", "jupyter_client.asynchronous", "jupyter_client.provisioning"),
]


@dataclass(frozen=True)
class Failure:
    """What stopped a chapter: one line for the terminal."""

    message: str


@dataclass(frozen=True)
class Success:
    """How long a chapter took, and how long its kernel computed: alone, with one thread, it would hardly take longer."""

    seconds: float
    computing: float


@dataclass(frozen=True)
class How:
    """How chapters are executed."""

    device: str = "cpu"
    threads: int = 1
    timeout: int | None = None  # seconds for a cell; at smoke there always is a limit
    fresh: bool = False  # a new interpreter for each chapter

    @property
    def forked(self) -> bool:
        """Whether kernels may be forked."""
        return sys.platform == "linux" and self.device == "cpu" and self.threads == 1 and not self.fresh

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without stray settings, with those of chapters."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        own = {
            "REPROLIB_DEVICE": self.device,
            "PYTHONHASHSEED": "0",
            "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one in the home folder
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a kernel's own; Matplotlib asks at its import
        }
        return {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | threads | own


class Job:
    """A chapter that is being executed."""

    def __init__(self, layout: Layout, chapter: str, scale: str, how: How):
        self.chapter, self.scale = chapter, scale
        self.target = layout.build / "running" / scale / f"{chapter}.ipynb"
        self.began = time.monotonic()
        context: Any = get_context("forkserver" if how.forked else "spawn")
        self._outcome, theirs = context.Pipe(duplex=False)
        if how.forked:
            context.set_forkserver_preload(PRELOADED)
        variables, log = how.environment, layout.build / "kernels.log"
        what = (theirs, layout.root, chapter, scale, self.target, how, variables, log)
        self._process = context.Process(target=_work, args=what, name=chapter)
        with environment(variables):  # libraries read it when they are imported
            self._process.start()
        theirs.close()

    @property
    def ended(self) -> int:
        """What :func:`multiprocessing.connection.wait` waits for."""
        return self._process.sentinel

    def outcome(self) -> Success | Failure:
        """What became of it, once it has ended."""
        self._process.join()
        try:
            if self._outcome.poll():
                return self._outcome.recv()
        except EOFError:
            pass
        return Failure(f"notebooks/{self.chapter}.md: its process was killed (often a lack of memory)")

    def stop(self) -> None:
        """End it; its kernel goes with it."""
        self._process.terminate()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Exchange this process's environment for a while."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(
    tell: Connection,
    root: Path,
    chapter: str,
    scale: str,
    target: Path,
    how: How,
    variables: Mapping[str, str],
    log: Path,
) -> None:
    """The life of a chapter's process."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)  # chatter of kernels
    os.environ.clear()
    os.environ.update(variables)  # the fork server may be older than they are
    limit = how.timeout or (300 if scale == "smoke" else None)
    with forked_kernel() if how.forked and threads() == 1 else nullcontext():
        try:
            outcome = run_chapter(root, chapter, scale, target, limit)
        except Exception as error:
            outcome = Failure(f"notebooks/{chapter}.md: {type(error).__name__}: {error}")
    tell.send(outcome)


def threads() -> int:
    """How many this process has, those that no Python code started included (Linux)."""
    return len(os.listdir("/proc/self/task"))


@contextmanager
def forked_kernel() -> Iterator[None]:
    """Fork the kernel of this process's chapter now."""
    from reprolib.book.kernel import Forked, Provisioner

    kernel = Forked()
    Provisioner.offer(kernel)
    yield
    kernel.kill()  # one that was never launched waits for ever


def run_chapter(root: Path, chapter: str, scale: str, target: Path, timeout: int | None) -> Success | Failure:
    """Execute one chapter into ``target``; how long it took, or what stopped it."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    layout = Layout(root)
    path = layout.source(chapter)
    name = path.relative_to(root).as_posix()
    began = time.monotonic()
    try:
        notebook = source.read(path)
        source.set_scale(notebook, scale, name)
    except InvalidInput as error:
        return Failure(str(error))
    except Exception as error:  # unreadable header, broken encoding
        return Failure(f"{name} cannot be read as a notebook: {type(error).__name__}: {error}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        executed = papermill.execute_notebook(
            copy.deepcopy(notebook),
            str(target),
            kernel_name="python3",
            cwd=str(path.parent),
            progress_bar=False,
            request_save_on_cell_execute=False,
            log_output=False,
            execution_timeout=timeout,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except papermill.PapermillExecutionError as error:
        return Failure(describe(path, name, notebook, error.cell_index, f"{error.ename}: {error.evalue}"))
    except CellTimeoutError:
        return Failure(f"{name}: a cell ran longer than {timeout} s")
    except DeadKernelError as error:
        return Failure(f"{name}: its kernel died (often a lack of memory; see build/kernels.log): {error}")
    for index, cell in enumerate(executed.cells):
        told = "".join(o.get("text", "") for o in cell.get("outputs", []) if o.get("name") == "stderr")
        if told and "remove-stderr" not in cell.metadata.get("tags", []):
            said = f"wrote to stderr, which no page may show: {source.first_line(told)}"
            return Failure(describe(path, name, notebook, index, said))
    kernel = os.times()  # those of the child that has ended
    return Success(time.monotonic() - began, kernel.children_user + kernel.children_system)


def describe(path: Path, name: str, notebook: object, index: int, said: str) -> str:
    """One line: notebook, number and place of the cell, its first line, what happened."""
    cells = notebook.cells  # type: ignore[attr-defined]
    number = sum(c.cell_type == "code" for c in cells[: index + 1])
    line = source.line_of(path, number)
    place = f" (line {line})" if line else ""
    return f"{name}, code cell {number}{place}, `{source.first_line(cells[index].source)}`: {source.first_line(said)}"
