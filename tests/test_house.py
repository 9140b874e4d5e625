"""The rules of the house: which room may use which, how large they may grow, and what they need to be installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from reprolib.book import source
from reprolib.book.layout import Layout
from reprolib.experiments import experiments

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reprolib"

# Rooms on one floor do not use each other. The package itself and its `__main__` stand on the roof.
FLOORS = [
    {"errors"},
    {"curvature", "tasks"},
    {"optim"},
    {"lab"},
    {"records"},
    {"show", "bench"},
    {"experiments"},
    {"book", "cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LINES = 500  # of a file, at most
SHARE = 1 / 3  # of all lines, that one room may have

# Chapters in the form in which they draw by calling `reprolib.show`; every other one still has its figures in its cells.
DRAWN_BY_SHOW = ["red/four-tasks"]
DRAWING = 5  # lines of a cell that draws, at most

FILES = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {".".join(parts).removesuffix(".__init__"): path for path, parts in FILES.items()}


def room(path: Path) -> str:
    """The room of a file: the folder below reprolib/ that it is in, or its own name."""
    return FILES[path][1]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: in functions, for type checkers only, by its name as text."""
    package = ".".join(FILES[path][:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


# Everybody may ask the package for its version: that is no arrow.
USES = {p: {MODULES[m] for m in imported(p) if m in MODULES} - {p, PACKAGE / "__init__.py"} for p in FILES}


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} <= FLOOR.keys(), "a new room: say on which floor it stands"


def test_arrows_between_rooms_go_down() -> None:
    up = [
        f"{name(a)} imports {name(b)}"
        for a, used in USES.items()
        for b in used
        if room(a) != room(b) and FLOOR[room(a)] <= FLOOR[room(b)]
    ]
    assert not up, "\n".join(sorted(up))


def test_no_circle_of_files() -> None:
    try:
        TopologicalSorter(USES).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " imports ".join(name(path) for path in reversed(error.args[1])))


def test_no_room_has_more_than_a_third_of_the_lines() -> None:
    lines = dict.fromkeys(map(room, FILES), 0)
    for path in FILES:
        lines[room(path)] += length(path)
    large = {r: n for r, n in lines.items() if n > SHARE * sum(lines.values())}
    assert not large, f"{large} of {sum(lines.values())} lines"


def test_no_file_is_longer_than_its_limit() -> None:
    long = {name(path): length(path) for path in FILES if length(path) > LINES}
    assert not long


# What is needed -------------------------------------------------------------------------------------------------------


def fresh(code: str, **environment: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def outside(*rooms: str) -> dict[str, set[str]]:
    """The packages that the files of some rooms import beyond Python's own, anywhere in them."""
    found = {
        name(path): {module.partition(".")[0] for module in imported(path)} - {"reprolib"} - sys.stdlib_module_names
        for path in FILES
        if room(path) in rooms
    }
    return {path: packages for path, packages in found.items() if packages}


def test_curvature_and_steps_need_torch_and_numpy_only() -> None:
    others = {
        path: more
        for path, found in outside("errors", "curvature", "optim").items()
        if (more := found - {"torch", "numpy"})
    }
    assert not others


def test_importing_the_optimizers_imports_torch_and_numpy_only() -> None:
    code = """
import sys, numpy, torch
before = set(sys.modules)
import reprolib.optim
print(*sorted({name.partition(".")[0] for name in sys.modules.keys() - before} - sys.stdlib_module_names))
"""
    assert fresh(code).split() == ["reprolib"]


# A machine that trains has none of these. Those of the first line never serve there; the others are imported where they do.
BOOK = "jupytext papermill nbformat nbclient nbval ipykernel IPython jupyter_client jupyter_book sphinx myst_nb docutils".split()  # noqa: SIM905
MISSING = [
    *BOOK,
    "matplotlib",
    "seaborn",
    "click",
    "yaml",
    "pooch",
    "tqdm",
    "platformdirs",
    "joblib",
    "distributed",
    "scipy",
]

BARE = """
import sys
for name in {missing}: sys.modules[name] = None
from importlib import import_module
for module in {modules}: import_module(module)
from reprolib.lab import Run, execute
from reprolib.records import Record
run = Run.of("red-sgd", seed=0, task="digits-classifier", batch_size=256, epochs=1)
print(Record.of("red/trial", "smoke", execute([run])).save())
"""


def test_training_and_recording_need_no_tool_of_the_book(tmp_path: Path) -> None:
    modules = [
        ".".join(FILES[path]).removesuffix(".__init__")
        for path in FILES
        if room(path) in ("lab", "records", "show", "bench", "experiments")
    ]
    code = BARE.format(missing=MISSING, modules=modules)
    path = fresh(code, REPROLIB_RECORDS=str(tmp_path))
    assert Path(path.strip()) == tmp_path / "red/trial/smoke.json"
    assert (tmp_path / "red/trial/smoke.csv").exists()


def test_what_trains_imports_the_tools_of_the_book_nowhere() -> None:
    packages = outside("tasks", "lab", "records")
    found = {
        path: more for path, used in packages.items() if (more := used & {*BOOK, "matplotlib", "seaborn", "click"})
    }
    assert not found


# Names and cells ------------------------------------------------------------------------------------------------------


def test_an_experiment_is_named_after_its_path() -> None:
    known = {f"reprolib.experiments.{n.replace('/', '.').replace('-', '_')}" for n in experiments()}
    assert {module.__name__ for module in experiments().values()} == known
    planned = {
        ".".join(FILES[path])
        for path in (PACKAGE / "experiments").glob("*/*.py")
        if any(isinstance(n, ast.FunctionDef) and n.name == "plan" for n in ast.parse(path.read_text()).body)
    }
    assert planned == known


@pytest.mark.parametrize("chapter", DRAWN_BY_SHOW)
def test_a_cell_that_draws_calls_show(chapter: str) -> None:
    for cell in source.read(Layout(ROOT).source(chapter)).cells:
        draws = "plt." in cell.source or "figure" in cell.metadata.get("mystnb", {})
        if cell.cell_type == "code" and draws:
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= DRAWING, f"what draws belongs into reprolib/show:\n{cell.source}"
