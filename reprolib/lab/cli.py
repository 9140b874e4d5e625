"""``reprolib run`` and ``reprolib records``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from reprolib.errors import RecordError


@click.command("run")
@click.argument("name")
@click.option("--scale", default="smoke", show_default=True, help="smoke, desk or paper")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--workers", default=1, show_default=True, help="processes side by side, one thread each")
def run(name: str, scale: str, device: str, workers: int) -> None:
    """Conduct experiment NAME and write its record.

    Finished runs are kept under build/runs (or $REPROLIB_RUNS): start the command again to continue after a stop.
    """
    from reprolib.lab.execute import runs_folder
    from reprolib.lab.experiments import conduct

    record = conduct(name, scale, device=device, workers=workers, keep=runs_folder(), say=click.echo)
    click.echo(f"wrote {record.save()}")


@click.group()
def records() -> None:
    """List and verify the published results."""


@records.command("list")
def list_() -> None:
    """Show the records: experiment, scale, runs, minutes, device, date."""
    for record in _all():
        made = record.made
        click.echo(
            f"{record.name:24} {record.scale:6} {made['runs']:4} runs {made['minutes']:7.1f} min  "
            f"{', '.join(made['devices'])}  {', '.join(made['dates'])}"
        )


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


def _all():
    from reprolib.lab.record import Record, published

    for name, scale in published():
        yield Record.load(name, scale)


@click.group()
def bench() -> None:
    """Measure what things cost, as ratios within one process."""


@bench.command("curvature")
@click.option("--network", "names", multiple=True, help="lenet, mlp, vgg11, vgg11-bn, resnet18, vit; default all")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=7, show_default=True, help="the median over so many interleaved rounds is shown")
@click.option(
    "--write", type=click.Path(path_type=Path), help="also write the rows to PATH.csv, their provenance to PATH.json"
)
def curvature(names: tuple[str, ...], device: str, threads: int, rounds: int, write: Path | None) -> None:
    """Time and peak memory of curvature, in gradients of the same network and batch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which counts the memory, announces itself
    import torch

    from reprolib.lab.bench import NETWORKS, Costs, measure

    def progress(line: str) -> None:
        click.echo(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, err=True, nl=not sys.stderr.isatty())

    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for name in names or NETWORKS:
        for row in measure(name, device=device, rounds=rounds, say=progress):
            rows.append(row)
            click.echo(
                f"{name:9} {row['quantity']:27} {row['library']:20} "
                + (
                    row.get("note")
                    or (
                        f"time {row['time']:6.2f} (±{row['spread'] / 2:.2f})  memory {row['memory']:6.2f}  error {row['error']:.0e}"
                    )
                )
            )
        if write:  # after each network: what is there is not lost if somebody stops it
            Costs.of(rows, device, rounds, (time.process_time() - start) / 60).save(write)
