"""What a terminal shows, and what a log gets instead."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable

import pytest

from reprolib.lab import progress
from reprolib.lab.progress import Progress

UNDER_WAY = "012345: epoch 3/20, loss 0.41, 3 min left"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_until(happened: Callable[[], bool]) -> None:
    """A loaded machine may take its time: nothing here depends on how fast the watching thread is."""
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    pytest.fail("nothing happened for a minute")


def under_way(folder):
    (folder / "0123456789abcdef.progress").write_text("3 20 0.41 30.0")


def test_the_status_of_runs_under_way(tmp_path):
    left_behind = tmp_path / "fedcba9876543210.progress"
    left_behind.write_text("1 20 0.9 3.0")
    shown = Progress(tmp_path, io.StringIO())
    under_way(tmp_path)
    (tmp_path / "half-written.progress").write_text("1 2")
    assert shown.status().strip() == UNDER_WAY
    os.utime(left_behind, (0, 0))  # somebody goes on with it, on a machine whose clock is wrong
    assert "fedcba: epoch 1/20, loss 0.9, 57 s left" in shown.status()


def test_what_was_written_at_once_is_under_way(tmp_path):
    for k in range(200):  # the clock of files is coarser than that of processes
        folder = tmp_path / str(k)
        folder.mkdir()
        shown = Progress(folder, io.StringIO())
        under_way(folder)
        assert shown.status() == UNDER_WAY


def test_a_terminal_has_a_line_that_changes(tmp_path, capsys):
    stream = Terminal()
    shown = Progress(tmp_path, stream)
    with shown.shown():
        under_way(tmp_path)
        wait_until(lambda: "epoch 3/20, loss 0.41" in stream.getvalue())
        shown.say("[1/2] done")
    assert "[1/2] done" in capsys.readouterr().out


def test_a_log_has_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.01)
    looked = []
    status = Progress.status
    monkeypatch.setattr(Progress, "status", lambda self: looked.append(1) or status(self))
    shown = Progress(tmp_path, io.StringIO())
    under_way(tmp_path)
    with shown.shown():
        wait_until(lambda: len(looked) > 3)
        shown.say("[1/2] done")
    out = capsys.readouterr().out
    assert out.count(UNDER_WAY + "\n") == 1  # not again while nothing has changed
    assert "[1/2] done\n" in out
