"""``reprolib records list | show | verify | diff | import``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reprolib.cli import options
from reprolib.cli.group import Group
from reprolib.errors import RecordError, ReprolibError, UnknownName

if TYPE_CHECKING:
    from reprolib.records.record import Record


@click.group("records", cls=Group)
def command() -> None:
    """List, verify and import the published results."""


@command.command("list")
@options.plugins
def list_records() -> None:
    """Show the records: experiment, scale, runs, minutes, device, date."""
    from reprolib.records.record import folder, published

    if not published():
        click.echo(
            f"no records in {folder()}: `reprolib run` lists the experiments, `reprolib run NAME` writes a record"
        )
    for record in _all():
        made = record.made
        click.echo(
            f"{record.name:24} {record.scale:6} {made['runs']:4} runs ({made['ended_early']} ended early) "
            f"{made['minutes'] + made['tuning_minutes']:7.1f} min  {', '.join(made['devices'])}  {', '.join(made['dates'])}"
        )


@command.command("show")
@click.argument("name")
@click.option("--scale", help="default: the best one that there is")
@options.plugins
def show(name: str, scale: str | None) -> None:
    """Show the runs of a record, how they ended, and its verdicts."""
    from reprolib.experiments import experiments, verdicts_of
    from reprolib.records.verdict import by_claim, in_words

    record = _loaded(name, scale)
    last = record.rows.groupby("key").last()
    for key, kept in record.runs.items():
        spec = kept["specification"]
        given = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in spec["options"].items())
        loss = f"{last['loss'][key]:.5g}" if key in last.index else "–"
        click.echo(
            f"{key}  {kept['role']:8} {spec['task']:20} {spec['method']:12} seed {spec['seed']:<5} {kept['status']:8} "
            f"loss {loss:10} {given} {kept['reason']}".rstrip()
        )
    if name not in experiments():
        click.echo(f"no experiment here is called {name}, so nothing judges it: --import the module that has it")
        return
    rows = verdicts_of(record)
    for v in rows:
        click.echo(f"{v['claim']}  {v['verdict']:17} {v['statement']} ({v['task']})")
    for claim, found in by_claim(rows).items():
        click.echo(f"{claim} in this record alone: {in_words(found)}")


@command.command("verify")
@click.option("--replay", is_flag=True, help="also train each run for its first five steps and compare the losses")
@options.plugins
def verify(replay: bool) -> None:
    """Check that every record belongs to this code."""
    from reprolib.records.record import folder, published
    from reprolib.records.replay import differences

    if not published():
        raise RecordError(f"no records in {folder()}")
    wrong = 0
    for record in _all():
        try:
            lines = [f"run {key} was made by another version of its task or method" for key in record.stale()]
            if replay:
                lines += differences(record, say=click.echo)
        except UnknownName as error:
            lines = [f"{str(error).partition(':')[0]}: --import the module that has it"]
        click.echo(f"{record.name} {record.scale}: {len(record.runs)} runs, {len(lines)} findings")
        for line in lines:
            click.echo(f"  {line}")
        wrong += len(lines)
    if wrong:
        raise RecordError(f"{wrong} runs do not belong to this code: conduct their experiments again")


@command.command("diff")
@click.argument("a")
@click.argument("b")
@options.plugins
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
@options.plugins
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
            known, missing = outstanding(planned, lambda run: store.read(portable(run), click.echo))
            if missing:
                click.echo(f"{entry}: {len(known)} runs are here, at least {len(missing)} are missing")
            else:
                click.echo(f"wrote {conduct(entry.experiment, entry.scale, do).save()}")
        except ReprolibError as error:  # the others are still worth importing
            click.echo(f"{entry} is passed over: {error}")


def _all() -> Iterator[Record]:
    from reprolib.records.record import Record, published

    for name, scale in published():
        yield Record.load(name, scale)


def _addressed(address: str) -> Record:
    where, _, rest = address.rpartition(":")
    name, _, scale = rest.partition("@")
    return _loaded(name, scale or None, Path(where) if where else None)


def _loaded(name: str, scale: str | None, where: Path | None = None) -> Record:
    """A record, or a guess at the name that was meant: of another record, or of an experiment that has none yet."""
    from reprolib.experiments import experiments
    from reprolib.records.record import Record, published

    known = {of for of, _ in published(where)} | set(experiments())
    if name not in known:
        raise UnknownName.among("record", name, known)
    return Record.load(name, scale, where)
