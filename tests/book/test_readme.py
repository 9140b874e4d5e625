"""The README's Python examples run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reprolib.optim
from reprolib.book import readme
from reprolib.book.ledger import NAMES, STANDINGS
from reprolib.book.readme import BEGIN, END, OPTIMIZERS, generated
from reprolib.records.claims import claims

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("code", SNIPPETS, ids=[f"snippet-{n}" for n in range(1, len(SNIPPETS) + 1)])
def test_readme_snippet_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make book" in text
    assert "make test" in text


def test_readme_states_what_the_records_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generated(text) == text, "run `make readme`"


def tables() -> list[list[list[str]]]:
    """The two tables of the status: lines of cells."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(BEGIN.format("status"))[1].split(END)[0]
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        for part in text.strip().split("\n\n")
    ]


def test_readme_counts_every_claim_once_and_tells_figures_from_statements() -> None:
    (head, _, *lines), _ = tables()
    assert head == ["", *NAMES.values(), "sum"]
    totals = {line[0]: int(line[-1].strip("*")) for line in lines if line[0].startswith("**")}
    known = claims().values()
    drawings = sum(bool(c.form) for c in known)
    assert totals == {"**statements**": len(known) - drawings, "**figures and settings**": drawings}
    split = [line[0] for line in lines].index("**figures and settings**")
    for part, standings in zip((lines[:split], lines[split:]), STANDINGS.values(), strict=True):
        total, *rest = ([int(cell.strip("*").replace("–", "0")) for cell in line[1:]] for line in part)
        assert [sum(column) for column in zip(*rest, strict=True)] == total
        words = [line[0] for line in part[1:]]
        assert words == [word for word in standings if word in words]


def test_readme_names_the_headline_claims_only() -> None:
    _, (head, _, *lines) = tables()
    assert head == ["claim", "what the paper says", "verdict"]
    known = claims()
    assert [line[0] for line in lines] == [c.id for c in known.values() if c.headline]
    for id, says, verdict in lines:
        assert says == f"{known[id].where}: {known[id].statement}"
        assert any(verdict.startswith(word) for word in STANDINGS["statements"]), verdict


def test_readme_says_how_many_cases_could_be_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"claim": "red-c01", "task": "mnist-classifier", "verdict": verdict, "scale": "night"}
        for verdict in ("reproduced", "not testable here", "not testable here")
    ]
    monkeypatch.setattr(readme, "judged", lambda: rows)
    line = next(line for line in readme.status().splitlines() if line.startswith("| red-c01 |"))
    assert line.endswith("| reproduced where testable (1 of 3), at scale night |")


def test_readme_has_the_five_optimizers_with_measured_costs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, *_ in OPTIMIZERS.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert re.search(r"\| \d[\d.]*( / \d[\d.]*)+ \| \d", row), row
        assert hasattr(reprolib.optim, name.strip("`"))


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
