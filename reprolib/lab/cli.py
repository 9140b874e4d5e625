"""``reprolib run``, ``records``, ``campaign`` and ``bench``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reprolib.errors import InvalidInput, RecordError

if TYPE_CHECKING:
    from reprolib.lab import History, Run


@click.command("run")
@click.argument("name")
@click.option("--scale", default="smoke", show_default=True, help="smoke, desk or paper")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--workers", default=1, show_default=True, help="processes side by side, one thread each")
@click.option("--engine", default="local", show_default=True, help="local, or dask with a --scheduler")
@click.option("--scheduler", help="address of a dask scheduler, tcp://host:8786")
@click.option("--together", default=1, show_default=True, help="train up to so many like baselines as one program")
@click.option("--only", multiple=True, metavar="KEY", help="do only the runs whose key starts so; no record is written")
@click.option("--list", "list_", is_flag=True, help="do nothing; print a command for each run that could be done now")
def run(
    name: str,
    scale: str,
    device: str,
    workers: int,
    engine: str,
    scheduler: str | None,
    together: int,
    only: tuple[str, ...],
    list_: bool,
) -> None:
    """Conduct experiment NAME and write its record.

    Finished runs, and checkpoints of the others, are kept under build/runs (or $REPROLIB_RUNS): start the command again to
    continue after a stop, whatever stopped it.
    """
    from reprolib.lab.execute import execute
    from reprolib.lab.experiments import conduct, outstanding
    from reprolib.lab.progress import Progress
    from reprolib.lab.store import Store, runs_folder

    progress = Progress(runs_folder())
    how: dict[str, Any] = {
        "device": device,
        "workers": workers,
        "engine": engine,
        "scheduler": scheduler,
        "together": together,
    }

    def do(runs: Sequence[Run]) -> list[History]:
        return execute(runs, keep=runs_folder(), say=progress.say, **how)

    if not (list_ or only):
        with progress.shown():
            record = conduct(name, scale, do)
        counts = ", ".join(f"{n} {status}" for status, n in record.statuses.items())
        click.echo(f"{len(record.runs)} runs: {counts}")
        click.echo(f"wrote {record.save()}")
        return
    known, missing = outstanding(name, scale, Store(runs_folder()).read)
    if list_:
        options = "" if device == "cpu" else f" --device {device}"
        for r in missing:
            click.echo(f"reprolib run {name} --scale {scale}{options} --only {r.key}")
        click.echo(f"{len(known)} runs are done, {len(missing)} can be done now", err=True)
        return
    for start in only:
        if not any(r.key.startswith(start) for r in known + missing):
            raise InvalidInput(f"no run that could be done now has a key like {start}: see --list")
    with progress.shown():
        do([r for r in missing if r.key.startswith(only)])


@click.command(
    "campaign", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def campaign(words: tuple[str, ...]) -> None:
    """Continue the paper-scale experiments for so many minutes (see --help)."""
    from reprolib.lab.campaign import main

    main(words)


@click.group()
def records() -> None:
    """List, verify and import the published results."""


@records.command("list")
def list_records() -> None:
    """Show the records: experiment, scale, runs, minutes, device, date."""
    for record in _all():
        made = record.made
        click.echo(
            f"{record.name:24} {record.scale:6} {made['runs']:4} runs ({made['ended_early']} ended early) "
            f"{made['minutes'] + made['tuning_minutes']:7.1f} min  {', '.join(made['devices'])}  {', '.join(made['dates'])}"
        )


@records.command("show")
@click.argument("name")
@click.option("--scale", help="default: the best one that there is")
def show(name: str, scale: str | None) -> None:
    """Show the runs of a record, how they ended, and its verdicts."""
    from reprolib.lab.experiments import verdicts_of
    from reprolib.lab.record import Record

    record = Record.load(name, scale)
    last = record.rows.groupby("key").last()
    for key, kept in record.runs.items():
        spec = kept["specification"]
        options = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in spec["options"].items())
        loss = f"{last['loss'][key]:.5g}" if key in last.index else "–"
        click.echo(
            f"{key}  {kept['role']:8} {spec['task']:20} {spec['method']:12} seed {spec['seed']:<5} {kept['status']:8} "
            f"loss {loss:10} {options} {kept['reason']}".rstrip()
        )
    for v in verdicts_of(record):
        click.echo(f"{v['claim']}  {v['verdict']:14} {v['statement']} ({v['task']})")


@records.command("verify")
@click.option("--replay", is_flag=True, help="also train each run for its first five steps and compare the losses")
def verify(replay: bool) -> None:
    """Check that every record belongs to this code."""
    from reprolib.lab.replay import differences

    wrong = 0
    for record in _all():
        stale = record.stale()
        lines = [f"run {key} was made by another version of its task or method" for key in stale]
        if replay:
            lines += differences(record, say=click.echo)
        click.echo(f"{record.name} {record.scale}: {len(record.runs)} runs, {len(lines)} findings")
        for line in lines:
            click.echo(f"  {line}")
        wrong += len(lines)
    if wrong:
        raise RecordError(f"{wrong} runs do not belong to this code: conduct their experiments again")


@records.command("diff")
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """Compare two records; A and B are NAME@SCALE, or folders of records before it: DIR:NAME@SCALE."""
    from reprolib.lab.record import differences

    lines = differences(_addressed(a), _addressed(b))
    for line in lines:
        click.echo(line)
    click.echo(f"{len(lines)} differences")
    if lines:
        sys.exit(1)


@records.command("import")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
def import_(source: Path) -> None:
    """Take over what a campaign left in SOURCE, and write the records that are complete."""
    from reprolib.lab.campaign import PRIORITY, portable, unpack
    from reprolib.lab.execute import execute
    from reprolib.lab.experiments import conduct, outstanding
    from reprolib.lab.store import Store, runs_folder

    click.echo(f"{unpack(source, runs_folder())} files taken over")
    store = Store(runs_folder())

    def do(runs: Sequence[Run]) -> list[History]:
        return execute([portable(run) for run in runs], keep=store.folder)

    for name, scale in PRIORITY:
        known, missing = outstanding(name, scale, lambda run: store.read(portable(run)))
        if missing:
            click.echo(f"{name} {scale}: {len(known)} runs are here, at least {len(missing)} are missing")
        else:
            click.echo(f"wrote {conduct(name, scale, do).save()}")


def _all():
    from reprolib.lab.record import Record, published

    for name, scale in published():
        yield Record.load(name, scale)


def _addressed(address: str):
    from reprolib.lab.record import Record

    where, _, rest = address.rpartition(":")
    name, _, scale = rest.partition("@")
    return Record.load(name, scale or None, Path(where) if where else None)


@click.group()
def bench() -> None:
    """Measure what things cost, as ratios within one process."""


def _measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all of them have."""
    for option in (
        click.option(
            "--write",
            type=click.Path(path_type=Path),
            help="also write the rows to PATH.csv, their provenance to PATH.json",
        ),
        click.option(
            "--rounds", default=7, show_default=True, help="the median over so many interleaved rounds is shown"
        ),
        click.option("--threads", default=1, show_default=True),
        click.option("--device", default="cpu", show_default=True),
    ):
        command = option(command)
    return command


def _progress(line: str) -> None:
    click.echo(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, err=True, nl=not sys.stderr.isatty())


def _network_by_network(
    names: Sequence[str],
    measure: Callable[..., list[dict[str, Any]]],
    line: Callable[[dict[str, Any]], str],
    save: Callable[[list[dict[str, Any]], float], None],
    *,
    device: str,
    threads: int,
    rounds: int,
) -> None:
    """Measure one after the other and show each row; ``save`` gets all so far, and the minutes, after each network."""
    import torch

    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for name in names:
        for row in measure(name, device=device, rounds=rounds, say=_progress):
            rows.append(row)
            click.echo(f"{name:9} {line(row)}")
        save(rows, (time.process_time() - start) / 60)  # what is there is not lost if somebody stops it


@bench.command("curvature")
@click.option("--network", "names", multiple=True, help="lenet, mlp, vgg11, vgg11-bn, resnet18, vit; default all")
@_measuring
def curvature(names: tuple[str, ...], device: str, threads: int, rounds: int, write: Path | None) -> None:
    """Time and peak memory of curvature, in gradients of the same network and batch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which counts the memory, announces itself
    from reprolib.lab.bench import NETWORKS, Costs, measure

    def line(row: dict[str, Any]) -> str:
        numbers = row.get("note") or (
            f"time {row['time']:6.2f} (±{row['spread'] / 2:.2f})  memory {row['memory']:6.2f}  error {row['error']:.0e}"
        )
        return f"{row['quantity']:27} {row['library']:20} {numbers}"

    def save(rows: list[dict[str, Any]], minutes: float) -> None:
        if write:
            Costs.of(rows, device, rounds, minutes).save(write)

    _network_by_network(names or tuple(NETWORKS), measure, line, save, device=device, threads=threads, rounds=rounds)


@bench.command("step")
@click.option("--network", "names", multiple=True, help="as of curvature; default lenet, mlp, vgg11")
@_measuring
def step(names: tuple[str, ...], device: str, threads: int, rounds: int, write: Path | None) -> None:
    """Time and peak memory of whole optimizer steps, in gradients of the same network and batch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which counts the memory, announces itself
    from reprolib.lab.bench_step import PARTS, SELECTION, costs, goal, measure

    def line(row: dict[str, Any]) -> str:
        limit = goal(row["method"], row["network"])
        return (
            f"{row['method']:10} time {row['time']:6.2f} (±{row['spread'] / 2:.2f})  "
            + (f"goal ≤ {limit:<4g}  " if limit else " " * 13)
            + f"products {row['products']:6.2f}  memory {row['memory']:6.2f}"
            + "".join(f"  {part} {row[f'share_{part}']:.0%}" for part in PARTS if f"share_{part}" in row)
        )

    def save(rows: list[dict[str, Any]], minutes: float) -> None:
        if write:
            costs(rows, device, rounds, minutes).save(write)

    _network_by_network(names or SELECTION, measure, line, save, device=device, threads=threads, rounds=rounds)


@bench.command("train")
@click.option("--task", "names", multiple=True, help="a task; may be given several times  [default: a small selection]")
@click.option("--steps", default=50, show_default=True, help="of every run in each round")
@click.option("--members", default=8, show_default=True, help="runs that train separately and as an ensemble")
@_measuring
def train_(
    names: tuple[str, ...], device: str, threads: int, rounds: int, steps: int, members: int, write: Path | None
) -> None:
    """Steps per second of SGD and RED, and of runs that train separately or as one ensemble."""
    import torch

    from reprolib.lab.bench_train import TASKS, costs, measure

    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for name in names or TASKS:
        for row in measure(name, device=device, rounds=rounds, steps=steps, members=members):
            rows.append(row)
            click.echo(
                f"{name:20} {row['method']:8} {row['how']:9} x{row['members']:<3} {row['per_second']:9.1f} steps/s  "
                f"time {row['time']:5.2f} (±{row['spread'] / 2:.2f})"
            )
        if write:
            minutes = (time.process_time() - start) / 60
            costs(rows, device, minutes, rounds=rounds, steps=steps).save(write)
