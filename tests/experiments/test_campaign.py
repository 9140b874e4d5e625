"""The campaign in pieces: stopped in time, packed, carried elsewhere, continued, imported."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from reprolib import experiments as registry
from reprolib.cli import main as command_line
from reprolib.errors import InvalidInput, RecordError
from reprolib.experiments import campaign
from reprolib.lab import Run, train
from reprolib.lab.store import Store
from reprolib.records import Record

ROOT = Path(__file__).resolve().parents[2]
RUNS = [Run.of("sgd", seed=s, options={"lr": 0.1}, task="digits-classifier", batch_size=64, epochs=3) for s in range(3)]


class tiny:
    """An experiment of three short runs."""

    NAME = "tiny/trial"

    @staticmethod
    def plan(scale):
        histories = yield RUNS[:2]
        histories = histories + (yield [replace(RUNS[2], keeps_end=True)])  # a package does not carry its weights
        return histories, {}

    @staticmethod
    def verdicts(record):
        return []


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(registry, "experiments", lambda: {"tiny/trial": tiny})
    monkeypatch.setattr(campaign, "PRIORITY", [("tiny/trial", "paper")])


def same(a, b) -> bool:
    columns = [c for c in a.table.columns if c not in ("seconds", "wall")]
    return a.table[columns].equals(b.table[columns])


def carried(keep: Path, out: Path, source: Path | None, epochs: int, monkeypatch) -> bool:
    """A call on a fresh machine whose time is over after so many epochs."""
    left = iter([0.0] * (epochs + 2))  # the start, and once before each run or epoch
    monkeypatch.setattr(campaign.time, "monotonic", lambda: next(left, 1e9))
    return campaign.campaign(
        out, minutes=1, source=source, keep=keep, priority=campaign.PRIORITY, say=lambda line: None
    )


def test_a_campaign_in_pieces_is_one_campaign(tmp_path, monkeypatch):
    source, finished, calls = None, False, 0
    while not finished:
        out = tmp_path / f"package {calls}"
        finished = carried(tmp_path / f"machine {calls}", out, source, 3, monkeypatch)
        assert len(list(out.iterdir())) <= campaign.FILES
        source, calls = out, calls + 1
        assert calls < 20
    assert calls > 2
    monkeypatch.undo()
    store = Store(tmp_path / f"machine {calls - 1}")
    assert all(same(store.read(r), train(r)) for r in RUNS)
    assert not list(store.folder.glob("*.pt"))


def test_what_a_campaign_leaves_becomes_a_record(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))
    command = lambda *words: CliRunner().invoke(command_line, words, catch_exceptions=False)
    campaign.campaign(tmp_path / "part", minutes=1, keep=tmp_path / "a", priority=[], say=lambda line: None)
    assert "2 are missing" in command("records", "import", str(tmp_path / "part")).output
    campaign.main(["--minutes", "1", "--out", str(tmp_path / "out"), "--keep", str(tmp_path / "b"), "--device", "cpu"])
    assert "wrote" in command("records", "import", str(tmp_path / "out")).output
    assert len(Record.load("tiny/trial", "paper").runs) == 3
    assert "3 runs (0 ended early)" in command("records", "list").output
    assert "0 differences" in command("records", "diff", "tiny/trial@paper", "tiny/trial").output
    assert command("records", "show", "tiny/trial").output.count("finished") == 3
    assert command("records", "verify").exit_code == 0


def test_a_checkpoint_that_is_too_large_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "SIZE", 10_000)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_bytes(b"{}")
    (tmp_path / "runs" / "small.pt").write_bytes(os.urandom(40_000))
    (tmp_path / "runs" / "large.pt").write_bytes(os.urandom(60_000))
    said: list[str] = []
    paths = campaign.pack(tmp_path / "runs", tmp_path / "out", said.append)
    assert len(paths) == 5
    assert "large does not fit" in said[0]
    assert campaign.unpack(tmp_path / "out", tmp_path / "back") == 2
    assert campaign.unpack(tmp_path / "out", tmp_path / "back") == 0  # nothing that is there is replaced
    assert (tmp_path / "back" / "small.pt").read_bytes() == (tmp_path / "runs" / "small.pt").read_bytes()
    paths[2].unlink()
    with pytest.raises(RecordError, match="4 of 5 parts"):
        campaign.unpack(tmp_path / "out", tmp_path / "other")


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="minutes = -1"):
        campaign.campaign(tmp_path, minutes=-1)
    with pytest.raises(RecordError, match="is it the folder"):
        campaign.unpack(tmp_path, tmp_path / "runs")
    (tmp_path / "campaign-1-of-1.part").write_bytes(b"not an archive")
    with pytest.raises(RecordError, match="damaged"):
        campaign.unpack(tmp_path, tmp_path / "runs")


ALONE = """
import sys
for name in ("click", "pooch", "tqdm", "platformdirs", "joblib", "sklearn", "yaml", "matplotlib", "distributed", "scipy"):
    sys.modules[name] = None  # what a machine with only torch, numpy and pandas does not have
from reprolib.experiments.campaign import main
main(sys.argv[1:])
"""


def test_it_needs_torch_numpy_and_pandas_only(tmp_path):
    """In a process that can import nothing else; the data of the first task is missing there, and that is said."""
    words = ["--minutes", "0.05", "--out", str(tmp_path / "out"), "--keep", str(tmp_path / "runs"), "--device", "cpu"]
    environ = os.environ | {"REPROLIB_DATA": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True, env=environ)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "red/mnist at paper\npassed over: downloading mnist needs pooch" in said
