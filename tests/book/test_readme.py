"""The README's Python examples run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reprolib.optim
from reprolib.book.readme import OPTIMIZERS, generated

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
