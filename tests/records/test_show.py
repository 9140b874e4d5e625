"""``reprolib records show`` uses the words of the book."""

from __future__ import annotations

from click.testing import CliRunner

from reprolib.cli.records import command


def test_a_record_is_shown_with_its_verdicts_case_by_case_and_together():
    shown = CliRunner().invoke(command, ["show", "red/cifar10", "--scale", "desk"], catch_exceptions=False)
    lines = shown.output.splitlines()
    assert any(line.startswith("red-fig2  drawn  ") for line in lines)
    assert sum(line.startswith("red-c01  not testable here ") for line in lines) == 2
    assert "red-c01 in this record alone: not testable here" in lines
    assert "red-fig2 in this record alone: drawn" in lines
