"""Every criterion as it was written: ``python -m tests.records.criteria`` adds those that ``criteria.yaml`` does not have.

The file only grows. A text is kept under ``<claim>.<field>.<changes>``: the number of changes of that field that
``book/claims.yaml`` had on record then, so 0 is the text as it was first written, and another text needs another entry under
``changes``. Each group of texts has a digest of itself and of all before it: none can be edited alone.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reprolib.errors import InvalidInput
from reprolib.records.claims import CRITERIA, Claim, claims

FILE = Path(__file__).with_name("criteria.yaml")
HEAD = """\
# The criteria of book/claims.yaml as they were written: `python -m tests.records.criteria` appends what is new, nothing is
# ever edited. The key of a text ends with how many changes of it were on record: 0 is the text as it was first written.
# The groups with a commit are from the history; before it, the first three criteria of red-c01 to red-c03 stood in code.
"""
Group = dict[str, Any]  # date, commit (from the history), digest, texts


def read(path: Path | None = None) -> list[Group]:
    """The groups, oldest first."""
    import yaml

    return yaml.load((path or FILE).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or []


def write(groups: Sequence[Group], path: Path | None = None) -> None:
    """Write the groups, for reading."""
    import yaml

    text = yaml.safe_dump(list(groups), sort_keys=False, allow_unicode=True, width=110)
    (path or FILE).write_text(HEAD + text.replace("\n- ", "\n\n- "), encoding="utf-8")


def chained(texts: Mapping[str, str], before: str) -> str:
    """The digest of a group that follows one with digest ``before``."""
    content = json.dumps([before, sorted(texts.items())], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


def broken(groups: Sequence[Group]) -> list[int]:
    """The groups whose digest is not that of their texts and of the groups before."""
    before = ["", *(group["digest"] for group in groups)]
    return [n for n, group in enumerate(groups) if chained(group["texts"], before[n]) != group["digest"]]


def frozen(groups: Sequence[Group]) -> dict[str, str]:
    """All texts by key."""
    return {key: text for group in groups for key, text in group["texts"].items()}


def key_of(claim: Claim, field: str) -> str:
    """Where the text in force of a field is kept."""
    return f"{claim.id}.{field}.{claim.changed(field)}"


def in_force(known: Mapping[str, Claim]) -> dict[str, str]:
    """The texts in force by key, without fields that a claim does not have."""
    pairs = [(claim, field) for claim in known.values() for field in CRITERIA]
    return {key_of(claim, field): text for claim, field in pairs if (text := words(getattr(claim, field)))}


def words(text: str) -> str:
    """A text without what only folds its lines."""
    return " ".join(text.split())


def findings(known: Mapping[str, Claim], kept: Mapping[str, str]) -> list[str]:
    """What of the criteria in force is not what was kept of them."""
    found = []
    now = in_force(known)
    for key, text in now.items():
        if key not in kept:
            found.append(f"{key} is not kept: run `python -m tests.records.criteria`")
        elif kept[key] != text:
            found.append(f"{key} was {kept[key]!r} and is {text!r}: say so under `changes`, with date and reason")
    counts = dict(split(key) for key in now)
    for name, count in map(split, kept):
        if name not in counts:
            found.append(f"{name}.{count} is gone: a criterion may change, not vanish")
        elif count > counts[name]:
            found.append(f"{name} has {counts[name]} changes, and had {count}: they may be added to, not taken away")
    return found


def split(key: str) -> tuple[str, int]:
    """Claim and field, and the number of changes."""
    name, _, count = key.rpartition(".")
    return name, int(count)


def main() -> None:
    """Append what is new; refuse where something kept was changed."""
    groups, known = read(), claims()
    kept = frozen(groups)
    new = {key: text for key, text in in_force(known).items() if key not in kept}
    if wrong := [*(f"group {n} was edited" for n in broken(groups)), *findings(known, kept | new)]:
        raise InvalidInput("\n".join(wrong))
    if new:
        date = datetime.date.today().isoformat()
        groups.append({"date": date, "digest": chained(new, groups[-1]["digest"]), "texts": new})
        write(groups)
    print(f"{len(new)} texts added to {FILE.name}")


if __name__ == "__main__":
    main()
