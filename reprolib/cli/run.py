"""``reprolib run``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from reprolib.cli import options
from reprolib.errors import InvalidInput


@click.command("run")
@click.argument("name", required=False)
@click.option("--scale", default="smoke", show_default=True, help="smoke, desk, night or paper")
@options.device
@click.option(
    "--workers", type=options.COUNT, default=1, show_default=True, help="processes side by side, one thread each"
)
@click.option("--engine", default="local", show_default=True, help="local, or dask with a --scheduler")
@click.option("--scheduler", help="address of a dask scheduler, tcp://host:8786")
@click.option(
    "--together",
    type=options.COUNT,
    default=1,
    show_default=True,
    help="train up to so many like baselines as one program",
)
@click.option("--only", multiple=True, metavar="KEY", help="do only the runs whose key starts so; no record is written")
@click.option("--list", "list_", is_flag=True, help="do nothing; print a command for each run that could be done now")
@options.plugins
def command(
    name: str | None,
    scale: str,
    device: str,
    workers: int,
    engine: str,
    scheduler: str | None,
    together: int,
    only: tuple[str, ...],
    list_: bool,
) -> None:
    """Conduct experiment NAME and write its record; without NAME, list the experiments.

    Finished runs, and checkpoints of the others, are kept under build/runs (or $REPROLIB_RUNS): start the command again to
    continue after a stop, whatever stopped it.
    """
    from reprolib.experiments import conduct, plan
    from reprolib.lab.execute import execute
    from reprolib.lab.files import checkout
    from reprolib.lab.plan import outstanding
    from reprolib.lab.progress import Progress
    from reprolib.lab.store import Store, runs_folder
    from reprolib.records.record import folder

    if name is None:
        _list()
        return
    planned = plan(name, scale)
    progress = Progress(runs_folder())
    how: dict[str, Any] = {
        "device": device,
        "workers": workers,
        "engine": engine,
        "scheduler": scheduler,
        "together": together,
    }

    def do(runs: Sequence[Any]) -> list[Any]:
        return execute(runs, keep=runs_folder(), say=progress.say, **how)

    if checkout() is None and not list_:
        click.echo(f"outside a source tree: runs are kept in {runs_folder()}, records written to {folder()}")
    if not (list_ or only):
        with progress.shown():
            record = conduct(name, scale, do)
        counts = ", ".join(f"{n} {status}" for status, n in record.statuses.items())
        click.echo(f"{len(record.runs)} runs: {counts}")
        click.echo(f"wrote {record.save()}")
        return
    store = Store(runs_folder())
    known, missing = outstanding(planned, lambda run: store.read(run, lambda line: click.echo(line, err=True)))
    if list_:
        more = "" if device == "cpu" else f" --device {device}"
        for r in missing:
            click.echo(f"reprolib run {name} --scale {scale}{more} --only {r.key}")
        click.echo(f"{len(known)} runs are done, {len(missing)} can be done now", err=True)
        return
    for start in only:
        if not any(r.key.startswith(start) for r in known + missing):
            raise InvalidInput(f"no run that could be done now has a key like {start}: see --list")
    with progress.shown():
        do([r for r in missing if r.key.startswith(only)])


def _list() -> None:
    """A line for each experiment: what it tries, and the largest scale that has a record."""
    from reprolib.experiments import experiments, subject
    from reprolib.records.record import SCALES, published

    best = dict(sorted(published(), key=lambda item: SCALES.index(item[1])))  # the last one wins
    known = experiments()
    width = max(map(len, known))
    click.echo(f"{'experiment':{width}}  record  what it tries")
    for name, module in known.items():
        click.echo(f"{name:{width}}  {best.get(name, '–'):6}  {subject(module)}")
