"""Claims: what the papers say and when it counts as reproduced (``book/claims.yaml``), and how each of them stands.

The file has criteria and names evidence; it has no verdicts. Those follow from the tests, which gate the build, and from the
experiments' records.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from reprolib.errors import InvalidInput, RecordError, UnknownName
from reprolib.records import strict_yaml
from reprolib.records.verdict import NOT_TESTABLE, combined

PAPERS = ("red", "summary", "adler", "curveball", "csdd", "family")  # family: what we add about all five
KINDS = ("test", "record", "reason")
FORMS = ("figure", "setting")  # what can be drawn and confirms nothing; without a form, a claim is a statement
CRITERIA = ("criterion", "desk", "night")  # the fields that say what counts as reproduced
OPEN, HOLDS = "open", "holds (tested)"
# what tests may find other than that a statement holds as it is printed, and how the ledger says it
FINDINGS = {"corrected": "holds after correction (tested)", "contradicted": "contradicted (tested)"}
AFTER = ("no run", "a run", "seeing the paper-scale runs")  # what somebody had seen when a criterion changed


@dataclass(frozen=True)
class Change:
    """What was changed in a criterion after it was first written, and why."""

    date: datetime.date
    field: str  # one of CRITERIA, or "code": a threshold or rule in the experiment's verdicts
    was: str
    why: str
    after: str


@dataclass(frozen=True)
class Claim:
    """One statement of a paper and the rule by which it is judged; the fields are explained in ``book/claims.yaml``."""

    id: str
    paper: str
    where: str
    statement: str
    criterion: str
    kind: str
    setting: str = ""
    form: str = ""
    desk: str = ""
    night: str = ""
    headline: bool = False
    evidence: tuple[str, ...] = ()
    finding: str = ""
    changes: tuple[Change, ...] = ()

    def changed(self, field: str) -> int:
        """How many changes of a field are on record."""
        return sum(change.field == field for change in self.changes)


KNOWN = {field.name for field in fields(Claim)} - {"id"}
REQUIRED = {field.name for field in fields(Claim) if field.default is MISSING} - {"id"}
APART: dict[str, Any] = {"evidence": [], "changes": [], "headline": False}  # the fields that are no texts, if left out


def source() -> Path:
    """``book/claims.yaml`` of the source tree."""
    return Path(__file__).resolve().parents[2] / "book" / "claims.yaml"


def claims(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the order of the file.

    Raises:
        RecordError: the file is missing or no YAML.
        InvalidInput: an id or field that comes twice, an unknown or missing field, an unknown kind, paper or finding, a
            finding that no test makes.
    """
    path = path or source()
    content = strict_yaml.load(_read(path).decode("utf-8"), path.name)
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path.name} maps no ids to claims")
    return {str(id): _claim(str(id), about) for id, about in content.items()}


def digest(path: Path | None = None) -> str:
    """Which criteria an experiment was judged by: the first 16 hexadecimal digits of the file's SHA-256."""
    return hashlib.sha256(_read(path or source())).hexdigest()[:16]


def status(claim: Claim, verdicts: Iterable[Mapping[str, str]]) -> str:
    """How a claim stands, given the rows of :func:`reprolib.experiments.verdicts_of` (of any claims).

    >>> claim = Claim("red-c01", "red", "Fig 2", "competitive", "within a factor 2", "record")
    >>> status(claim, [])
    'open'
    >>> status(claim, [{"claim": "red-c01", "verdict": "reproduced"}, {"claim": "red-c02", "verdict": "partly"}])
    'reproduced'
    """
    if claim.kind == "record":
        found = [row["verdict"] for row in verdicts if row["claim"] == claim.id]
        return combined(found) if found else OPEN
    if not claim.evidence:
        return OPEN
    return FINDINGS.get(claim.finding, HOLDS) if claim.kind == "test" else NOT_TESTABLE


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"no claims in {path}: they are part of the source tree, not of the package") from error


def _claim(id: str, about: Any) -> Claim:
    if not isinstance(about, dict):
        raise InvalidInput(f"claim {id} has no fields: it needs {', '.join(sorted(REQUIRED))}")
    for name in about:
        if name not in KNOWN:
            raise UnknownName.among(f"field of claim {id},", name, KNOWN)
    if missing := REQUIRED - about.keys():
        raise InvalidInput(f"claim {id} has no {', '.join(sorted(missing))}")
    evidence, changes, headline = (about.get(name, none) for name, none in APART.items())
    texts = {name: text for name, text in about.items() if name not in APART}
    if not isinstance(evidence, list):
        raise InvalidInput(f"the evidence of claim {id} is {evidence!r}: write a list")
    if not isinstance(changes, list):
        raise InvalidInput(f"the changes of claim {id} are {changes!r}: write a list")
    if not isinstance(headline, bool):
        raise InvalidInput(f"headline of claim {id} is {headline!r}: write true, or leave it out")
    _check_texts(id, [*texts.items(), *(("evidence", entry) for entry in evidence)])
    for name, known in (("kind", KINDS), ("paper", PAPERS), ("form", FORMS), ("finding", FINDINGS)):
        if name in texts and texts[name] not in known:
            raise UnknownName.among(f"{name} of claim {id},", texts[name], known)
    if not id.startswith(f"{texts['paper']}-"):
        raise InvalidInput(f"claim {id} is about paper {texts['paper']}: its id must begin with {texts['paper']}-")
    if "finding" in texts and not (texts["kind"] == "test" and evidence):
        raise InvalidInput(f"claim {id} has a finding, but no test that finds it")
    if "form" in texts and texts["kind"] != "record":
        raise InvalidInput(f"claim {id} is a {texts['form']}, which a record draws: its kind must be record")
    return Claim(
        id, **texts, headline=headline, evidence=tuple(evidence), changes=tuple(_change(id, entry) for entry in changes)
    )


def _change(id: str, about: Any) -> Change:
    names = [field.name for field in fields(Change)]
    if not isinstance(about, dict) or sorted(map(str, about)) != sorted(names):
        raise InvalidInput(f"a change of claim {id} is {about!r}: it needs {', '.join(names)}, and nothing else")
    if type(about["date"]) is not datetime.date:  # YAML reads 2026-11-30 as one
        raise InvalidInput(f"a change of claim {id} has the date {about['date']!r}: write one like 2026-11-30")
    _check_texts(id, [(f"{name} of a change", about[name]) for name in names if name != "date"])
    for name, known in (("field", (*CRITERIA, "code")), ("after", AFTER)):
        if about[name] not in known:
            raise UnknownName.among(f"{name} of a change of claim {id},", about[name], known)
    return Change(**about)


def _check_texts(id: str, texts: Iterable[tuple[str, Any]]) -> None:
    for name, text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(
                f"the {name} of claim {id} is {text!r}: write a text (in quotes if it looks like a number)"
            )
