"""``reprolib bench curvature | step | train | seconds``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from reprolib.cli import options
from reprolib.cli.group import Group
from reprolib.errors import UnknownName


@click.group("bench", cls=Group)
def command() -> None:
    """Measure what things cost, as ratios within one process."""


def _measuring(f: Callable[..., None]) -> Callable[..., None]:
    """The options that all of them have."""
    for option in (
        click.option(
            "--write",
            type=click.Path(path_type=Path),
            help="also write the rows to PATH.csv, their provenance to PATH.json",
        ),
        click.option(
            "--rounds",
            type=options.COUNT,
            default=7,
            show_default=True,
            help="the median over so many interleaved rounds is shown",
        ),
        click.option("--threads", type=options.COUNT, default=1, show_default=True),
        options.device,
    ):
        f = option(f)
    return f


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

    from reprolib.bench.harness import NETWORKS

    for name in names:
        if name not in NETWORKS:
            raise UnknownName.among("network", name, NETWORKS)
    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for name in names:
        for row in measure(name, device=device, rounds=rounds, say=_progress):
            rows.append(row)
            click.echo(f"{name:9} {line(row)}")
        save(rows, (time.process_time() - start) / 60)  # what is there is not lost if somebody stops it


@command.command("curvature")
@click.option("--network", "names", multiple=True, help="lenet, mlp, vgg11, vgg11-bn, resnet18, vit; default all")
@_measuring
def curvature(names: tuple[str, ...], device: str, threads: int, rounds: int, write: Path | None) -> None:
    """Time and peak memory of curvature, in gradients of the same network and batch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which counts the memory, announces itself
    from reprolib.bench.curvature import costs, measure
    from reprolib.bench.harness import NETWORKS

    def line(row: dict[str, Any]) -> str:
        numbers = row.get("note") or (
            f"time {row['time']:6.2f} (±{row['spread'] / 2:.2f})  memory {row['memory']:6.2f}  error {row['error']:.0e}"
        )
        return f"{row['quantity']:27} {row['library']:20} {numbers}"

    def save(rows: list[dict[str, Any]], minutes: float) -> None:
        if write:
            costs(rows, device, rounds, minutes).save(write)

    _network_by_network(names or tuple(NETWORKS), measure, line, save, device=device, threads=threads, rounds=rounds)


@command.command("step")
@click.option("--network", "names", multiple=True, help="as of curvature; default lenet, mlp, vgg11")
@_measuring
def step(names: tuple[str, ...], device: str, threads: int, rounds: int, write: Path | None) -> None:
    """Time and peak memory of whole optimizer steps, in gradients of the same network and batch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which counts the memory, announces itself
    from reprolib.bench.step import PARTS, SELECTION, costs, goal, measure

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


@command.command("train")
@click.option("--task", "names", multiple=True, help="a task; may be given several times  [default: a small selection]")
@click.option("--steps", type=options.COUNT, default=50, show_default=True, help="of every run in each round")
@click.option(
    "--members", type=options.COUNT, default=8, show_default=True, help="runs that train separately and as an ensemble"
)
@_measuring
def train_(
    names: tuple[str, ...], device: str, threads: int, rounds: int, steps: int, members: int, write: Path | None
) -> None:
    """Steps per second of SGD and RED, and of runs that train separately or as one ensemble."""
    import torch

    from reprolib.bench.train import TASKS, costs, measure

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


@command.command("seconds")
@click.argument("name")
@click.option("--scale", help="of the record; default: the largest that there is")
@_measuring
def seconds(name: str, scale: str | None, device: str, threads: int, rounds: int, write: Path | None) -> None:
    """What a step of each method in the record NAME costs, for what is shown over seconds.

    Other work on the machine falsifies it. Chapters look for PATH book/records/NAME/seconds-SCALE.cpu.
    """
    import torch

    from reprolib.bench.seconds import costs, measure
    from reprolib.records.record import Record

    record = Record.load(name, scale)
    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for row in measure(record, device=device, rounds=rounds, say=_progress):
        rows.append(row)
        click.echo(f"{row['seconds']:10.5f} s (±{row['spread'] / 2:.5f})  {row['work']}")
    if write:
        costs(rows, record, device, rounds, (time.process_time() - start) / 60).save(write)
