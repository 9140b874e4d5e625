"""Execute runs, here or on a cluster: those that are done already are not done again.

Processes beyond this one are joblib's: its own on this machine, dask's workers on others (``engine="dask"`` with the
address of a scheduler; dask deploys on SLURM, PBS or Kubernetes). A worker that dies takes its run with it, which another
one takes up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from reprolib.errors import InvalidInput, ReprolibError, UnknownName
from reprolib.lab import plugins
from reprolib.lab.files import write
from reprolib.lab.methods import METHODS
from reprolib.lab.provenance import environment
from reprolib.lab.run import Run
from reprolib.lab.store import Store
from reprolib.lab.train import FINISHED, History, Log, train
from reprolib.tasks import TASKS

Say = Callable[[str], None]
ENGINES = ("local", "dask")


def execute(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    workers: int = 1,
    engine: str = "local",
    scheduler: str | None = None,
    together: int = 1,
    keep: Path | None = None,
    say: Say = lambda line: None,
) -> list[History]:
    """The histories of ``runs``, in their order.

    Args:
        runs: duplicates are trained once.
        device: where to train.
        workers: with ``local``, processes that train side by side, one thread each; 1 trains here, with the threads that
            torch has. dask has the workers that its cluster has.
        engine: ``"local"`` or ``"dask"``.
        scheduler: the address of dask's scheduler, as tcp://host:8786.
        together: train up to so many runs that differ only in seed, learning rate, decay and weight decay as one
            vectorised program (``ensemble.py``), in this process: equal to the separate runs up to rounding, without
            checkpoints. It pays for small networks and on a GPU.
        keep: folder of finished runs and checkpoints (what is found there is not trained again); ``None`` keeps nothing.
        say: gets a line per finished run, and per run in ``keep`` that cannot be used and is trained again.

    Raises:
        ReprolibError: a worker was killed; what is finished is kept.
    """
    if engine not in ENGINES:
        raise UnknownName.among("engine", engine, ENGINES)
    if (engine == "dask") != (scheduler is not None):
        raise InvalidInput("engine='dask' goes with the address of a scheduler, and only that does")
    if together > 1 and (workers > 1 or scheduler):
        raise InvalidInput("runs train together in one process: leave workers at 1")
    store = Store(keep) if keep else None
    todo = {run.key: run for run in runs}
    done = {key: found for key, run in todo.items() if store and (found := store.read(run, say))}
    waiting = [run for key, run in todo.items() if key not in done]
    for history in _histories(waiting, device, workers, scheduler, together, keep):
        done[history.run.key] = history
        if store and store.read(history.run) is None:
            store.write(history)  # it comes from a machine with another disk
        say(f"[{len(done)}/{len(todo)}] {line(history)}")
    return [done[run.key] for run in runs]


def line(history: History) -> str:
    """One line about a finished run."""
    final, run = history.final, history.run
    options = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in run.options)
    end = f"loss {final['loss']:.4g}, {final['seconds']:.0f} s"
    how = "" if history.status == FINISHED else f", {history.status} {history.reason}".rstrip()
    return f"{run.task} {run.method}({options}) seed {run.seed}: {end}{how}"


def _histories(
    waiting: list[Run], device: str, workers: int, scheduler: str | None, together: int, keep: Path | None
) -> Iterator[History]:
    """The histories in the order in which they are finished."""
    if not waiting:
        return
    if together > 1:
        from reprolib.lab.ensemble import ensembles, train_together

        for group in ensembles(waiting, together):
            yield from train_together(group, device) if len(group) > 1 else [trained(group[0], device, keep)]
        return
    if scheduler is None and workers == 1:
        yield from (trained(run, device, keep) for run in waiting)
        return
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with _cluster(scheduler) if scheduler else joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        try:
            how = {"threads": 1, "known": plugins.known(), "workers": None if scheduler else workers}
            yield from parallel(joblib.delayed(trained)(run, device, keep, **how) for run in waiting)
        except TerminatedWorkerError as error:
            raise ReprolibError(
                "a worker was killed (out of memory?): start again, what is finished is kept"
            ) from error


@contextmanager
def _cluster(scheduler: str) -> Iterator[None]:
    """Send joblib's work to the workers of a dask cluster."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InvalidInput("engine='dask' needs the package: pip install 'reprolib[cluster]'") from error
    import joblib

    try:
        client = Client(scheduler, timeout="20s")
    except OSError as error:
        raise InvalidInput(f"no dask scheduler answers at {scheduler}") from error
    with client, joblib.parallel_config("dask", wait_for_workers_timeout=60):
        yield


def trained(run: Run, device: str, keep: Path | None, **how: Any) -> History:
    """Train one run to its end; ``how``: see :func:`continued`."""
    history = continued(run, device, keep, **how)
    assert history is not None  # there was no deadline
    return history


def continued(
    run: Run,
    device: str,
    keep: Path | None,
    *,
    threads: int | None = None,
    known: tuple[Sequence[str], Sequence[str]] = ((), ()),
    workers: int | None = 1,
    deadline: Callable[[], bool] = lambda: False,
) -> History | None:
    """Train one run from its checkpoint on, or wait for whoever is training it in the same folder.

    Args:
        run: what to train.
        device: where.
        keep: folder of finished runs and checkpoints.
        threads: of torch, where this is a process of its own.
        known: plug-ins from which a process of its own knows the task and the method, as `plugins.known` says them.
        workers: how many train side by side on this machine, as far as that is known; for its environment.
        deadline: see :func:`reprolib.lab.train.train`; ``None`` is returned if it came first.
    """
    plugins.know(*known)
    for what, name, names in (("task", run.task, TASKS), ("method", run.method, METHODS)):
        if name not in names:
            raise InvalidInput(
                f"this worker process knows no {what} {name!r}: register it in a module, and name that with --import, "
                "or reprolib.lab.plugins.load"
            )
    if threads:
        torch.set_num_threads(threads)
    store = Store(keep) if keep else None
    with store.lock(run) if store else nullcontext():
        found = store.read(run) if store else None
        if found:
            return found
        made_in = environment(device) | ({"workers": workers} if workers else {})
        options: dict[str, Any] = {"deadline": deadline}
        if store:
            options |= {"checkpoint": store.checkpoint(run), "watch": _reporter(store, run)}
        history = train(run, device, **options)
        if history is None:
            return None
        history.environment |= made_in
        if store:
            store.write(history)
        return history


def _reporter(store: Store, run: Run, every: float = 0.5) -> Callable[[Log], None]:
    """Writes how far the run is, for the process that shows it."""
    began = last = time.monotonic()

    def report(log: Log) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            write(
                store.progress(run),
                f"{log.epoch} {run.stop_after or run.epochs} {log.loss.value:.4g} {now - began:.1f}",
            )

    return report
