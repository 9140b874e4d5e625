"""Claims: what the papers say and when it counts as reproduced (``book/claims.yaml``), and how each of them stands.

The file has criteria and names evidence; it has no verdicts. Those follow from the tests, which gate the build, and from the
experiments' records.
"""

from __future__ import annotations

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
OPEN, HOLDS = "open", "holds (tested)"
# what tests may find other than that a statement holds as it is printed, and how the ledger says it
FINDINGS = {"corrected": "holds after correction (tested)", "contradicted": "contradicted (tested)"}


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
    desk: str = ""
    evidence: tuple[str, ...] = ()
    finding: str = ""


KNOWN = {field.name for field in fields(Claim)} - {"id"}
REQUIRED = {field.name for field in fields(Claim) if field.default is MISSING} - {"id"}


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
    evidence = about.get("evidence", [])
    texts = {name: text for name, text in about.items() if name != "evidence"}
    if not isinstance(evidence, list):
        raise InvalidInput(f"the evidence of claim {id} is {evidence!r}: write a list")
    for name, text in [*texts.items(), *(("evidence", entry) for entry in evidence)]:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(
                f"the {name} of claim {id} is {text!r}: write a text (in quotes if it looks like a number)"
            )
    for name, known in (("kind", KINDS), ("paper", PAPERS), ("finding", FINDINGS)):
        if name in texts and texts[name] not in known:
            raise UnknownName.among(f"{name} of claim {id},", texts[name], known)
    if not id.startswith(f"{texts['paper']}-"):
        raise InvalidInput(f"claim {id} is about paper {texts['paper']}: its id must begin with {texts['paper']}-")
    if "finding" in texts and not (texts["kind"] == "test" and evidence):
        raise InvalidInput(f"claim {id} has a finding, but no test that finds it")
    return Claim(id, **texts, evidence=tuple(evidence))
