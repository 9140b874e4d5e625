"""What a terminal shows, and what a log gets instead."""

from __future__ import annotations

import io
import os
import time

from reprolib.lab import progress
from reprolib.lab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_status_of_runs_under_way(tmp_path):
    shown = Progress(tmp_path, io.StringIO())
    (tmp_path / "0123456789abcdef.progress").write_text("3 20 0.41 30.0")
    (tmp_path / "killed.progress").write_text("1 20 0.9 3.0")
    os.utime(tmp_path / "killed.progress", (0, 0))  # from before this process
    assert shown.status().strip() == "012345: epoch 3/20, loss 0.41, 3 min left"


def test_a_terminal_has_a_line_that_changes(tmp_path, capsys):
    stream = Terminal()
    shown = Progress(tmp_path, stream)
    with shown.shown():
        (tmp_path / "0123456789abcdef.progress").write_text("3 20 0.41 30.0")
        time.sleep(1.2)
        shown.say("[1/2] done")
    assert "epoch 3/20, loss 0.41" in stream.getvalue()
    assert "[1/2] done" in capsys.readouterr().out


def test_a_log_has_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.1)
    shown = Progress(tmp_path, io.StringIO())
    (tmp_path / "0123456789abcdef.progress").write_text("3 20 0.41 30.0")
    with shown.shown():
        time.sleep(0.5)
        shown.say("[1/2] done")
    out = capsys.readouterr().out
    assert out.count("012345: epoch 3/20, loss 0.41, 3 min left\n") == 1  # not again while nothing has changed
    assert out.endswith("[1/2] done\n")
