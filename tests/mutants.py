"""Break the code where each claim test says it would notice, and see that it does: ``make mutants``.

Each ``@pytest.mark.claim(id, file=..., old=..., new=...)`` names one wrong formula. Here it is put into a copy of the
project, and the test must fail there. Exit 1 if one survives.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """A claim's test and the change that must turn it red."""

    claim: str
    test: str
    file: str
    old: str
    new: str


class _Collector:
    def __init__(self) -> None:
        self.mutants: dict[Mutant, None] = {}  # a set that keeps its order

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("claim"):
                self.mutants[mutant_of(item, mark)] = None


def mutant_of(item: pytest.Item, mark: pytest.Mark) -> Mutant:
    """The mutant of one mark; parametrised cases of a test count as one."""
    spec = mark.kwargs
    return Mutant(mark.args[0], item.nodeid.split("[")[0], spec["file"], spec["old"], spec["new"])


def survives(mutant: Mutant) -> bool:
    """Whether the test stays green on the mutated copy."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in ("reprolib", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "reprolib" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        if result.returncode not in (0, 1):  # 1: tests failed; anything else: they could not be run
            raise RuntimeError(f"{mutant.claim}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
        return result.returncode == 0


def main() -> int:
    """Test every mutant; print one line each."""
    collector = _Collector()
    pytest.main(["--collect-only", "-qq", str(ROOT / "tests")], plugins=[collector])
    mutants = list(collector.mutants)
    alive = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, survived in zip(mutants, pool.map(survives, mutants), strict=True):
            alive += survived
            print(
                f"{'SURVIVED' if survived else 'killed':9} {mutant.claim:12} {mutant.file}: {mutant.old}  ->  {mutant.new}"
            )
    print(f"{len(mutants)} mutants, {alive} survived")
    return 1 if alive or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())
