"""What a larger scale will take is said before it is begun."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from reprolib.book import estimate as module
from reprolib.book.estimate import estimate
from reprolib.book.execute import execute
from reprolib.lab import Run, train
from reprolib.lab.store import Store
from reprolib.records import Record

RUNS = [
    Run.of("sgd", seed=s, options={"lr": 0.1}, task="digits-classifier", batch_size=512, epochs=1) for s in range(3)
]


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Records of two experiments with a run in common, an hour each; a third experiment has none."""
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    histories = []
    for run in RUNS:
        history = train(run, "cpu")
        history.environment = {"date": "2026-11-30", "device": "an abacus", "threads": 1, "commit": "unknown"}
        history.table["seconds"] = 3600.0
        histories.append(history)
    Record.of("red/a", "desk", histories[:2]).save()
    Record.of("red/b", "desk", histories[1:]).save()
    known = {
        f"red/{name}": SimpleNamespace(CHAPTER=f"red/{c}") for name, c in {"a": "one", "b": "two", "c": "two"}.items()
    }
    monkeypatch.setattr(module, "experiments", lambda: known)
    return histories


def test_a_line_a_chapter_and_the_sum_of_what_is_to_do(timed: list) -> None:
    assert estimate(["red/one", "red/two", "red/three"], "desk") == [
        "time of one process at scale desk on an abacus:",
        "  red/one: 2.0 hours",
        "  red/two: 2.0 hours; nobody has timed red/c",
        "  together: 3.0 hours and what nobody has timed",
    ]
    assert estimate(["red/one"], "paper")[1:] == [
        "  red/one: nobody has timed red/a",
        "  together: what nobody has timed",
    ]
    assert estimate(["red/three"], "desk") == []


def test_what_is_kept_is_not_done_again(timed: list, tmp_path: Path) -> None:
    Store(tmp_path / "runs").folder.mkdir()
    Store(tmp_path / "runs").write(timed[1])
    assert estimate(["red/one"], "desk")[1:] == [
        f"  {who}: 60 minutes (and 60 minutes are kept)" for who in ("red/one", "together")
    ]
    Store(tmp_path / "runs").write(timed[0])
    assert estimate(["red/one"], "desk")[-1] == "  together: nothing (2.0 hours are kept)"


def test_it_is_said_before_anything_is_executed(
    timed: list, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(checkout, scale="desk", only="red/one")
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("  together: 2.0 hours") < next(
        i for i, line in enumerate(lines) if "running red/one (desk)" in line
    )
    execute(checkout, scale="smoke", force=True, only="red/one")
    assert "together" not in capsys.readouterr().out
