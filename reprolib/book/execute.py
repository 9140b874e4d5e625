"""Execute the chapters, two at a time, each in a process of its own with one thread; reuse what is still valid."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from reprolib.book import source
from reprolib.book.cache import Stamp, chapter_key, environment_key
from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput, NotebookFailed
from reprolib.records.scale import SCALES, check_scale

SMOKE_BUDGET = 12.0  # seconds a chapter may take at smoke
HEARTBEAT = 60.0  # seconds between two signs of life


@dataclass(frozen=True)
class Failure:
    """What stopped a chapter: one line for the terminal."""

    message: str


def worker_environment(threads: int, log: Path) -> None:
    """Set up a worker process (and thereby its kernels): few threads, no stray settings, chatter of kernels to a file."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one in the home folder
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    for name in ("PYTHONWARNINGS", "MPLBACKEND"):
        os.environ.pop(name, None)


def run_chapter(root: Path, chapter: str, scale: str, target: Path, timeout: int | None) -> Failure | float:
    """Execute one chapter into ``target``; how long it took in seconds, or what stopped it."""
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
    return time.monotonic() - began


def describe(path: Path, name: str, notebook: object, index: int, said: str) -> str:
    """One line: notebook, number and place of the cell, its first line, what happened."""
    cells = notebook.cells  # type: ignore[attr-defined]
    number = sum(c.cell_type == "code" for c in cells[: index + 1])
    line = source.line_of(path, number)
    place = f" (line {line})" if line else ""
    return f"{name}, code cell {number}{place}, `{source.first_line(cells[index].source)}`: {source.first_line(said)}"


def clock(seconds: float) -> str:
    """Elapsed time for a progress line.

    >>> clock(75)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def execute(
    root: Path,
    *,
    scale: str = "smoke",
    only: str | None = None,
    force: bool = False,
    jobs: int = 2,
    threads: int = 1,
    timeout: int | None = None,
) -> dict[str, Path]:
    """Bring the executed notebooks up to date; where each chapter's is.

    A chapter is executed when there is no execution with its key (see :mod:`reprolib.book.cache`). With ``only``, chapters
    whose name does not start with it keep the execution they have, at ``scale`` or else at the nearest smaller scale,
    whatever its key; those that have none are executed at ``smoke``.

    Raises:
        UnknownName: the scale or the chapter does not exist.
        NotebookFailed: one or several chapters raised. The others were executed; the earlier results stay as they were,
            the failed notebooks are in ``build/failed/``.
    """
    check_scale(scale)
    layout = Layout(root)
    chapters, chosen = layout.chapters(), set(layout.select(only))
    environment = environment_key(layout)
    done: dict[str, Path] = {}
    todo: list[tuple[str, str]] = []
    for chapter in chapters:
        if chapter in chosen:
            path, key = layout.executed(chapter, scale), chapter_key(layout, chapter, scale, environment)
            stamp = Stamp.read(path)
            if stamp and stamp.key == key and not force:
                done[chapter] = path
            else:
                todo.append((chapter, scale))
        else:
            smaller = SCALES[: SCALES.index(scale) + 1][::-1]
            kept = next((p for s in smaller if Stamp.read(p := layout.executed(chapter, s))), None)
            if kept:
                done[chapter] = kept
            else:
                todo.append((chapter, "smoke"))
    total = len(chapters)
    print(
        f"notebooks: {total} at scale {scale}, {len(done)} cached, {len(todo)} to run"
        + (f", {min(jobs, len(todo))} at a time" if todo else ""),
        flush=True,
    )
    for n, (chapter, path) in enumerate(done.items(), 1):
        kept_at = path.relative_to(layout.build / "executed").parts[0]
        print(f"  [{n}/{total}] {chapter}  cached ({kept_at})", flush=True)
    failures = _run_all(layout, todo, done, environment, jobs, threads, timeout, total)
    if failures:
        for failure in failures:
            print(f"  failed: {failure}", flush=True)
        raise NotebookFailed("; ".join(failures) + ". The notebook as far as it ran is under build/failed/")
    return {chapter: done[chapter] for chapter in chapters}


def _run_all(
    layout: Layout,
    todo: Sequence[tuple[str, str]],
    done: dict[str, Path],
    environment: str,
    jobs: int,
    threads: int,
    timeout: int | None,
    total: int,
) -> list[str]:
    """Execute ``todo`` in worker processes, longest first, adding to ``done``; what went wrong."""
    if not todo:
        return []

    def last_time(item: tuple[str, str]) -> float:
        stamp = Stamp.read(layout.executed(*item))
        return stamp.seconds if stamp else float("inf")

    began = time.monotonic()
    queue = sorted(todo, key=last_time, reverse=True)
    running: dict[Future[Failure | float], tuple[str, str, Path, str, float]] = {}
    failures: list[str] = []
    finished = len(done)
    layout.build.mkdir(parents=True, exist_ok=True)
    log = layout.build / "kernels.log"
    log.unlink(missing_ok=True)
    with ProcessPoolExecutor(
        max(1, min(jobs, len(queue))), get_context("spawn"), worker_environment, (threads, log)
    ) as pool:
        try:
            while queue or running:
                while queue and len(running) < jobs:
                    chapter, scale = queue.pop(0)
                    key = chapter_key(layout, chapter, scale, environment)
                    partial = layout.build / "running" / scale / f"{chapter}.ipynb"
                    limit = timeout if timeout is not None else (300 if scale == "smoke" else None)
                    try:
                        future = pool.submit(run_chapter, layout.root, chapter, scale, partial, limit)
                    except BrokenProcessPool:
                        finished += 1
                        failures.append(f"notebooks/{chapter}.md: not executed, because a process was killed")
                        continue
                    running[future] = (chapter, scale, partial, key, time.monotonic())
                    print(f"  {clock(time.monotonic() - began)} running {chapter} ({scale})", flush=True)
                ended, _ = wait(running, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
                if not ended:
                    names = ", ".join(r[0] for r in running.values())
                    print(f"  {clock(time.monotonic() - began)} still running {names}", flush=True)
                for future in ended:
                    chapter, scale, partial, key, started = running.pop(future)
                    finished += 1
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        outcome = Failure(f"notebooks/{chapter}.md: a process was killed (often a lack of memory)")
                    except Exception as error:
                        outcome = Failure(f"notebooks/{chapter}.md: {type(error).__name__}: {error}")
                    head = f"  [{finished}/{total}] {chapter}"
                    if isinstance(outcome, Failure):
                        failures.append(outcome.message)
                        _move(partial, layout.build / "failed" / f"{chapter}.ipynb")
                        print(f"{head}  FAILED after {time.monotonic() - started:.1f} s", flush=True)
                        continue
                    target = layout.executed(chapter, scale)
                    Stamp.beside(target).unlink(missing_ok=True)
                    _move(partial, target)
                    Stamp(key, round(outcome, 1), datetime.now(UTC).isoformat(timespec="seconds")).write(target)
                    (layout.build / "failed" / f"{chapter}.ipynb").unlink(missing_ok=True)
                    done[chapter] = target
                    over = f" (more than {SMOKE_BUDGET:.0f} s)" if scale == "smoke" and outcome > SMOKE_BUDGET else ""
                    print(f"{head}  {outcome:.1f} s{over}, {clock(time.monotonic() - began)} in all", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    shutil.rmtree(layout.build / "running", ignore_errors=True)
    return failures


def _move(source_path: Path, target: Path) -> None:
    """Move a file if it exists, replacing the target in one step."""
    if source_path.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source_path, target)
