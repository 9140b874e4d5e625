"""The files that fix the environment agree with each other."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def needed(extras: tuple[str, ...]) -> set[str]:
    """The names that pyproject.toml asks for with these extras."""
    names: set[str] = set()
    todo = [*PROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]
    while todo:
        requirement = todo.pop()
        name, extra = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]+)\])?", requirement).groups()
        if canonical(name) == "reprolib":
            todo += [r for e in extra.split(",") for r in EXTRAS[e.strip()]]
        else:
            names.add(canonical(name))
    return names


def test_every_dependency_is_pinned() -> None:
    assert needed(("book", "test", "dev")) <= pins().keys()


def test_pins_are_exact_and_without_a_local_build() -> None:
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins().values())
    assert pins()["torch"] == "2.13.0"
    assert pins()["jupyter-book"].startswith("1.")


def test_what_is_installed_is_what_is_pinned() -> None:
    other = {}
    for name, version in pins().items():
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue  # development tools, or another platform's
        if installed != version:
            other[name] = (installed, version)
    if other and not (ROOT / ".venv").exists():
        pytest.skip("this environment was not made by `make`: its versions are its own")
    assert not other, f"installed, pinned: {other}"


def test_conda_environment_names_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert [d for d in plain if d.startswith("python")] == ["python=3.11"]
    assert "pip" in plain
    assert pip == ["-c constraints.txt", "-e .[book,test]"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "install -c constraints.txt -e '.[book,test]'" in makefile
    named = {canonical(re.split(r"[=<>]", d)[0]) for d in plain} - {"python", "pip"}
    assert not named & pins().keys(), "a package named twice can have two versions"


def test_python_version_is_allowed() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
