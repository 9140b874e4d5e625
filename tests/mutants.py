"""Break the code where a test says it would notice, and see that it does: ``make mutants``.

Each ``@pytest.mark.claim(id, file=..., old=..., new=...)`` names one wrong formula, and so does ``@pytest.mark.mutant`` on a
case of a test that stands for no claim. Here it is put into a copy of the project, and the test must fail there; in a copy
without it they all must pass first, so that none fails for another reason. Exit 1 if one survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("reprolib", "tests", "book", "notebooks", "pyproject.toml", "_toc.yml")  # what tests read
MARKS = ("claim", "mutant")


class Mutant(NamedTuple):
    """A test, by the claim or the name that it has here, and the change that must turn it red."""

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
            for mutant in mutants_of(item):
                self.mutants[mutant] = None


def mutants_of(item: pytest.Item, marks: Iterable[str] = MARKS) -> list[Mutant]:
    """The mutants of one test; all cases of a claim's are one, a ``mutant`` belongs to the case that it marks."""
    found = []
    for name in marks:
        for mark in item.iter_markers(name):
            test = item.nodeid.split("[")[0] if name == "claim" else item.nodeid
            spec = mark.kwargs
            found.append(Mutant(mark.args[0], test, spec["file"], spec["old"], spec["new"]))
    return found


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy)
        yield copy


def failure(copy: Path, *tests: str) -> str:
    """What pytest says of the first of the tests that fails there; empty: they pass.

    Raises:
        RuntimeError: they could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy)}  # the copy, also where another one is installed
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment)
    if result.returncode not in (0, 1):  # 1: tests failed; anything else: they could not be run
        raise RuntimeError(f"{' '.join(tests)}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout[-2000:] if result.returncode else ""


def survives(mutant: Mutant) -> bool:
    """Whether the test stays green on the mutated copy."""
    with copied() as copy:
        path = copy / "reprolib" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        return not failure(copy, mutant.test)


def main(*words: str) -> int:
    """Test every mutant whose name or test contains one of the arguments (all without any); print one line each."""
    collector = _Collector()
    if pytest.main(["--collect-only", "-qq", str(ROOT / "tests")], plugins=[collector]):
        return 1  # pytest has said why
    chosen = [m for m in collector.mutants if not words or any(w in f"{m.claim} {m.test}" for w in words)]
    with copied() as copy:
        if why := failure(copy, *dict.fromkeys(m.test for m in chosen)):
            print(f"{why}\nA test fails without any mutation, so nothing can be said of its mutant: mend it first")
            return 1
    alive = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, survived in zip(chosen, pool.map(survives, chosen), strict=True):
            alive += survived
            print(
                f"{'SURVIVED' if survived else 'killed':9} {mutant.claim:12} {mutant.file}: {mutant.old}  ->  {mutant.new}"
            )
    print(f"{len(chosen)} mutants, {alive} survived")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
