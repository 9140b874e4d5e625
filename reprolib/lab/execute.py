"""Execute runs: each finished one is kept on disk, so that an interrupted experiment continues where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.train import History, train

Say = Callable[[str], None]


def runs_folder() -> Path:
    """Where finished runs are kept: ``$REPROLIB_RUNS``, or ``build/runs`` of the source tree."""
    return Path(os.environ.get("REPROLIB_RUNS") or Path(__file__).resolve().parents[2] / "build" / "runs")


def execute(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    workers: int = 1,
    keep: Path | None = None,
    say: Say = lambda line: None,
) -> list[History]:
    """The histories of ``runs``, in their order.

    Args:
        runs: duplicates are trained once.
        device: where to train.
        workers: processes that train side by side, one thread each; 1 trains here, with the threads that torch has.
        keep: folder of finished runs (those found there are not trained again); ``None`` keeps nothing.
        say: gets a line per finished run.
    """
    todo = {run.key: run for run in runs}
    done = {key: found for key, run in todo.items() if keep and (found := _read(keep, run))}
    waiting = [run for key, run in todo.items() if key not in done]

    def finished(history: History) -> None:
        done[history.run.key] = history
        final, run = history.final, history.run
        options = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in run.options)
        say(
            f"[{len(done)}/{len(todo)}] {run.task} {run.method}({options}) seed {run.seed}: loss {final['loss']:.4g}, "
            f"{final['seconds']:.0f} s{', diverged' if history.diverged else ''}"
        )

    if workers == 1:
        for run in waiting:
            finished(_trained(run, device, keep))
    elif waiting:
        context = get_context("spawn")  # a forked child would share torch's thread pool
        with ProcessPoolExecutor(workers, mp_context=context, initializer=partial(torch.set_num_threads, 1)) as pool:
            for future in as_completed([pool.submit(_trained, run, device, keep) for run in waiting]):
                finished(future.result())
    return [done[run.key] for run in runs]


def _trained(run: Run, device: str, keep: Path | None) -> History:
    made_in = environment(device)
    history = train(run, device)
    history.environment = made_in
    if keep:
        _write(keep, history)
    return history


def _write(keep: Path, history: History) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    content = {
        "specification": history.run.specification,
        "table": history.table.to_dict("list"),
        "first_losses": history.first_losses,
        "skipped": history.skipped,
        "diverged": history.diverged,
        "wall_seconds": history.wall_seconds,
        "environment": history.environment,
    }
    partial_path = keep / f"{history.run.key}.{os.getpid()}.partial"
    partial_path.write_text(json.dumps(content), encoding="utf-8")
    partial_path.replace(keep / f"{history.run.key}.json")


def _read(keep: Path, run: Run) -> History | None:
    try:
        content = json.loads((keep / f"{run.key}.json").read_text(encoding="utf-8"))
        return History(
            run,
            pd.DataFrame(content["table"]),
            content["first_losses"],
            content["skipped"],
            content["diverged"],
            content["wall_seconds"],
            content["environment"],
        )
    except (OSError, ValueError, KeyError):
        return None  # not there, or broken off: train it again
