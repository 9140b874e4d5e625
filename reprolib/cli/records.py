"""``reprolib records list | show | verify | diff | import``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from reprolib.errors import RecordError, ReprolibError


@click.group("records")
def command() -> None:
    """List, verify and import the published results."""


@command.command("list")
def list_records() -> None:
    """Show the records: experiment, scale, runs, minutes, device, date."""
    for record in _all():
        made = record.made
        click.echo(
            f"{record.name:24} {record.scale:6} {made['runs']:4} runs ({made['ended_early']} ended early) "
            f"{made['minutes'] + made['tuning_minutes']:7.1f} min  {', '.join(made['devices'])}  {', '.join(made['dates'])}"
        )


@command.command("show")
@click.argument("name")
@click.option("--scale", help="default: the best one that there is")
def show(name: str, scale: str | None) -> None:
    """Show the runs of a record, how they ended, and its verdicts."""
    from reprolib.experiments import verdicts_of
    from reprolib.records.record import Record
    from reprolib.records.verdict import by_claim, in_words

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
    rows = verdicts_of(record)
    for v in rows:
        click.echo(f"{v['claim']}  {v['verdict']:17} {v['statement']} ({v['task']})")
    for claim, found in by_claim(rows).items():
        click.echo(f"{claim} in this record alone: {in_words(found)}")


@command.command("verify")
@click.option("--replay", is_flag=True, help="also train each run for its first five steps and compare the losses")
def verify(replay: bool) -> None:
    """Check that every record belongs to this code."""
    from reprolib.records.replay import differences

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


@command.command("diff")
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """Compare two records; A and B are NAME@SCALE, or folders of records before it: DIR:NAME@SCALE."""
    from reprolib.records.record import differences

    lines = differences(_addressed(a), _addressed(b))
    for line in lines:
        click.echo(line)
    click.echo(f"{len(lines)} differences")
    if lines:
        sys.exit(1)


@command.command("import")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, metavar="EXPERIMENT:SCALE", help="write this record only")
@click.option("--queue", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="the campaign's list")
def import_(source: Path, only: tuple[str, ...], queue: Path | None) -> None:
    """Take over what a campaign left in SOURCE, and write the records of its list that are complete."""
    from reprolib.experiments import conduct, plan
    from reprolib.experiments.package import portable, unpack
    from reprolib.experiments.queue import chosen
    from reprolib.lab.execute import execute
    from reprolib.lab.plan import outstanding
    from reprolib.lab.store import Store, runs_folder

    entries, _ = chosen(only, path=queue)
    click.echo(f"{unpack(source, runs_folder())} files taken over")
    store = Store(runs_folder())

    def do(runs: Sequence[Any]) -> list[Any]:
        return execute([portable(run) for run in runs], keep=store.folder)

    for entry in entries:
        try:
            if entry.record:
                click.echo(f"{entry}: its record is there")
                continue
            planned = plan(entry.experiment, entry.scale)
            known, missing = outstanding(planned, lambda run: store.read(portable(run)))
            if missing:
                click.echo(f"{entry}: {len(known)} runs are here, at least {len(missing)} are missing")
            else:
                click.echo(f"wrote {conduct(entry.experiment, entry.scale, do).save()}")
        except ReprolibError as error:  # the others are still worth importing
            click.echo(f"{entry} is passed over: {error}")


def _all():
    from reprolib.records.record import Record, published

    for name, scale in published():
        yield Record.load(name, scale)


def _addressed(address: str):
    from reprolib.records.record import Record

    where, _, rest = address.rpartition(":")
    name, _, scale = rest.partition("@")
    return Record.load(name, scale or None, Path(where) if where else None)
