"""Execute the chapters, two at a time; reuse what is still valid."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path

from reprolib.book.cache import Stamp, chapter_key, environment_key
from reprolib.book.job import Failure, How, Job
from reprolib.book.layout import Layout
from reprolib.errors import NotebookFailed
from reprolib.records.scale import SCALES, check_scale

SMOKE_BUDGET = 12.0  # seconds a chapter may compute at smoke, with one thread
HEARTBEAT = 60.0  # seconds between two signs of life


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
    device: str = "cpu",
    fresh: bool = False,
    timeout: int | None = None,
) -> dict[str, Path]:
    """Bring the executed notebooks up to date; where each chapter's is.

    A chapter is executed when there is no execution with its key (see :mod:`reprolib.book.cache`). With ``only``, chapters
    whose name does not start with it keep the execution they have, at ``scale`` or else at the nearest smaller scale,
    whatever its key; those that have none are executed at ``smoke``. ``threads``, ``device`` (where experiments train),
    ``fresh`` and ``timeout`` of a cell: see :class:`reprolib.book.job.How`.

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
            path, key = layout.executed(chapter, scale), chapter_key(layout, chapter, scale, environment, device)
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
    larger = [chapter for chapter, s in todo if s == scale != "smoke"]
    if larger:
        from reprolib.book.estimate import estimate  # needs torch and the records

        for line in estimate(larger, scale):
            print(line, flush=True)
    failures = _run_all(layout, todo, done, environment, jobs, How(device, threads, timeout, fresh))
    if failures:
        for failure in failures:
            print(f"  failed: {failure}", flush=True)
        raise NotebookFailed("; ".join(failures) + ". The notebook as far as it ran is under build/failed/")
    return {chapter: done[chapter] for chapter in chapters}


def _run_all(
    layout: Layout, todo: Sequence[tuple[str, str]], done: dict[str, Path], environment: str, jobs: int, how: How
) -> list[str]:
    """Execute ``todo`` in processes of their own, longest first, adding to ``done``; what went wrong."""
    if not todo:
        return []

    def last_time(item: tuple[str, str]) -> float:
        stamp = Stamp.read(layout.executed(*item))
        return stamp.seconds if stamp else float("inf")

    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    total, finished = len(done) + len(todo), len(done)
    began = time.monotonic()
    queue = sorted(todo, key=last_time, reverse=True)
    running: list[tuple[Job, str]] = []
    failures: list[str] = []
    layout.build.mkdir(parents=True, exist_ok=True)
    (layout.build / "kernels.log").unlink(missing_ok=True)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                chapter, scale = queue.pop(0)
                key = chapter_key(layout, chapter, scale, environment, how.device)
                running.append((Job(layout, chapter, scale, how), key))
                say(f"{clock(time.monotonic() - began)} running {chapter} ({scale})")
            ended = wait([job.ended for job, _ in running], HEARTBEAT)
            if not ended:
                say(f"{clock(time.monotonic() - began)} still running {', '.join(job.chapter for job, _ in running)}")
            for job, key in [r for r in running if r[0].ended in ended]:
                running.remove((job, key))
                finished += 1
                outcome, failed = job.outcome(), layout.build / "failed" / f"{job.chapter}.ipynb"
                head = f"[{finished}/{total}] {job.chapter}"
                if isinstance(outcome, Failure):
                    failures.append(outcome.message)
                    _move(job.target, failed)
                    say(f"{head}  FAILED after {time.monotonic() - job.began:.1f} s")
                    continue
                target = layout.executed(job.chapter, job.scale)
                Stamp.beside(target).unlink(missing_ok=True)
                _move(job.target, target)
                Stamp(key, round(outcome.seconds, 1), datetime.now(UTC).isoformat(timespec="seconds")).write(target)
                failed.unlink(missing_ok=True)
                done[job.chapter] = target
                over = job.scale == "smoke" and outcome.computing > SMOKE_BUDGET
                much = f", {outcome.computing:.0f} of them computing: more than {SMOKE_BUDGET:.0f}" if over else ""
                say(f"{head}  {outcome.seconds:.1f} s{much}; {clock(time.monotonic() - began)} in all")
    except BaseException:
        for job, _ in running:
            job.stop()
        raise
    shutil.rmtree(layout.build / "running", ignore_errors=True)
    return failures


def _move(source_path: Path, target: Path) -> None:
    """Move a file if it exists, replacing the target in one step."""
    if source_path.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source_path, target)
