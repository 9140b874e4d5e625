"""The queue of a campaign, ``book/queue.yaml``: which experiments at which scale, the first before the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import wrap
from typing import Any

from filelock import Timeout

from reprolib.errors import InvalidInput, RecordError, UnknownName
from reprolib.experiments import module, plan
from reprolib.lab.files import checkout
from reprolib.lab.plan import outstanding
from reprolib.lab.run import Run
from reprolib.lab.store import Store
from reprolib.lab.train import History
from reprolib.records import strict_yaml
from reprolib.records.record import Record, check_scale, published

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Entry:
    """An experiment at a scale; the fields are explained in ``book/queue.yaml``."""

    experiment: str
    scale: str
    decides: str = ""
    hours: float | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.experiment} {self.scale}"

    @property
    def record(self) -> Record | None:
        """The record that has all of its runs, as they are planned today; ``None`` if there is work left."""
        if (self.experiment, self.scale) not in published():
            return None
        try:
            record = Record.load(self.experiment, self.scale)
        except RecordError:
            return None
        _, missing = outstanding(plan(self.experiment, self.scale), record.history)
        return None if missing else record


KNOWN = tuple(field.name for field in fields(Entry))
REQUIRED = ("experiment", "scale", "decides")


def queue(path: Path | None = None) -> list[Entry]:
    """The entries in the order in which they are worth their time. Whether there are such experiments shows later.

    Raises:
        RecordError: there is no such file, or it is no YAML.
        InvalidInput: an unknown, missing or wrong field, or an entry that comes twice.
    """
    root = checkout()
    path = path or (root or Path.cwd()) / "book" / "queue.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(
            f"no queue in {path}: name experiments with --only EXPERIMENT:SCALE, or a file with --queue"
        ) from error
    content = strict_yaml.load(text, path.name)
    if not isinstance(content, list):
        raise InvalidInput(f"{path.name} is no list of entries")
    entries: list[Entry] = []
    for number, about in enumerate(content, start=1):
        entry = _entry(f"entry {number} of {path.name}", about)
        if any((entry.experiment, entry.scale) == (e.experiment, e.scale) for e in entries):
            raise InvalidInput(f"{entry} comes twice in {path.name}")
        entries.append(entry)
    return entries


def chosen(only: Sequence[str], device: str | None = None, path: Path | None = None) -> tuple[list[Entry], list[Entry]]:
    """What a campaign on ``device`` (or any) works on, and what it leaves for another kind of device.

    ``only``: ``EXPERIMENT:SCALE``, in the queue or not, or ``EXPERIMENT``, at each scale that the queue has for the device.

    Raises:
        UnknownName: there is no such experiment or scale.
        InvalidInput: the experiment has no such scale, or the queue has nothing of it.
    """
    kind = device.partition(":")[0] if device else None
    if not only:
        entries = queue(path)
        mine = [e for e in entries if kind in (None, e.device)]
        return mine, [e for e in entries if e not in mine]
    found: list[Entry] = []
    for name, _, scale in (item.partition(":") for item in only):
        module(name)
        if scale:
            plan(name, scale)
            found.append(Entry(name, scale))
            continue
        listed = [e for e in queue(path) if e.experiment == name]
        mine = [e for e in listed if kind in (None, e.device)]
        if not mine:
            other = f", only for {listed[0].device}" if listed else ""
            raise InvalidInput(f"the queue has no {name}{other}: give a scale as well, {name}:SCALE")
        found += mine
    return list(dict.fromkeys(found)), []


def listing(entries: Sequence[Entry], store: Store) -> list[str]:
    """How far each entry is and what it decides; then the process hours that are left."""
    lines, left, unknown = [], dict.fromkeys((entry.device for entry in entries), 0.0), set()
    width = max((len(str(entry)) for entry in entries), default=0)
    for entry in entries:
        hours, state = _state(entry, store)
        left[entry.device] += hours or 0.0
        unknown |= {entry.device} if hours is None else set()
        shown = "?" if hours is None else f"{hours:.1f}"
        lines.append(f"{entry!s:{width}}  {entry.device:4} {shown:>5} h left  {state}")
        lines += wrap(entry.decides, 110, initial_indent="    ", subsequent_indent="    ")
    for device, hours in left.items():
        lines.append(f"left for {device}: {hours:.1f} process hours{' and more' * (device in unknown)}")
    return lines


def _state(entry: Entry, store: Store) -> tuple[float | None, str]:
    """How many hours of an entry are left, if the queue is right, and how far it is."""
    found: dict[str, History | None] = {}

    def find(run: Run) -> History | None:
        found[run.key] = store.read(run)
        return found[run.key]

    try:
        if record := entry.record:
            return 0.0, f"done: {len(record.runs)} runs, {', '.join(record.made['dates'])}"
        known, missing = outstanding(plan(entry.experiment, entry.scale), find)
    except InvalidInput as error:
        return entry.hours, str(error).partition(":")[0]
    spent = sum(history.final["wall"] for history in found.values() if history) / 3600
    state = f"{len(known)} runs are done, {len(missing)} could be done now"
    if under_way := sum(_under_way(run, store) for run in missing):
        state += f", {under_way} of them under way"
    return None if entry.hours is None else max(0.0, entry.hours - spent), state


def _under_way(run: Run, store: Store) -> bool:
    """Whether somebody holds the lock of ``run``."""
    if not (store.folder / f"{run.key}.lock").exists():
        return False
    try:
        with store.lock(run).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _entry(where: str, about: Any) -> Entry:
    if not isinstance(about, dict):
        raise InvalidInput(f"{where} has no fields: it needs {', '.join(REQUIRED)}")
    if "experiment" in about:
        where += f" ({about['experiment']})"
    for name in about:
        if name not in KNOWN:
            raise UnknownName.among(f"field in {where},", name, KNOWN)
    for name in REQUIRED:
        if name not in about:
            raise InvalidInput(f"{where} has no {name}")
    for name, value in about.items():
        if name == "hours":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InvalidInput(f"{where}: hours = {value!r}, give a positive number")
        elif not isinstance(value, str) or not value.strip():
            raise InvalidInput(f"{where}: {name} = {value!r}, write a text")
    check_scale(about["scale"])
    if about.get("device", "cpu") not in DEVICES:
        raise UnknownName.among(f"device in {where},", about["device"], DEVICES)
    return Entry(**about)
