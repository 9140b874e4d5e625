"""``reprolib``: what it says of bad input, what it lists, where an installed package writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reprolib.cli import GROUPS, main
from reprolib.experiments import experiments
from reprolib.lab import Run, execute
from reprolib.records import Record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))


def reprolib(*words: str):
    result = CliRunner().invoke(main, words, prog_name="reprolib")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_help_names_every_group_and_imports_none():
    code = "import sys; from reprolib.cli import main; main(['--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group, line in GROUPS.items():
        assert group in done.stdout and line[:30] in done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_the_help_of_every_group(group):
    result = reprolib(group, "--help")
    assert result.exit_code == 0 and result.output.lower().startswith("usage: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rnu", "unknown command 'rnu': use one of bench, campaign, data, records, run (did you mean 'run'?)"),
        ("--verison", "No such option '--verison'."),
        ("data fetsh", "(did you mean 'fetch'?)"),
        ("data fetch", "Missing argument 'NAME...'."),
        ("data fetch mnits", "(did you mean 'mnist'?)"),
        ("run red/cifar11", "unknown experiment 'red/cifar11': use one of "),
        ("run red/cifar11", "(did you mean 'red/cifar10'?)"),
        (
            "run red/cifar10 --scale dsek",
            "unknown scale 'dsek': use one of desk, night, paper, smoke (did you mean 'desk'?)",
        ),
        ("run red/cifar10 --scal desk", "No such option '--scal'. Did you mean '--scale'? See `reprolib run --help`."),
        ("run red/cifar10 --device cudaa", "unknown device 'cudaa': use one of cpu, cuda (did you mean 'cuda'?)"),
        ("run red/cifar10 --device cpu:1", "device 'cpu:1' is not here: there are 1"),
        ("run red/cifar10 --device cuda:x", "device 'cuda:x': give its number, as in 'cuda:1'"),
        ("run red/cifar10 --device cuda:99", "device 'cuda:99' is not here: "),
        ("run red/cifar10 --workers 0", "Invalid value for '--workers': 0 is not in the range x>=1."),
        ("run red/cifar10 --workers two", "Invalid value for '--workers': 'two' is not a valid integer range."),
        ("run red/cifar10 --together 0", "Invalid value for '--together'"),
        ("run red/cifar10 --engine dsk", "unknown engine 'dsk': use one of dask, local (did you mean 'dask'?)"),
        ("run red/cifar10 --engine dask", "engine='dask' goes with the address of a scheduler"),
        ("run red/cifar10 --together 2 --workers 2", "leave workers at 1"),
        ("run red/cifar10 --only xyz", "no run that could be done now has a key like xyz: see --list"),
        ("run red/cifar10 red/cifar100", "Got unexpected extra argument (red/cifar100)"),
        ("run mine/own --import no_such_lab", "no module 'no_such_lab' to import"),
        ("records shwo", "(did you mean 'show'?)"),
        ("records show red/cifr10", "(did you mean 'red/cifar10'?)"),
        ("records show red/cifar10 --scale papre", "(did you mean 'paper'?)"),
        ("records diff red/cifr10@desk red/cifar10@desk", "(did you mean 'red/cifar10'?)"),
        ("records import no-such-folder", "Directory 'no-such-folder' does not exist."),
        ("records import . --only red/cifr10:desk", "(did you mean 'red/cifar10'?)"),
        ("campaign --wrokers 2", "unrecognized arguments: --wrokers 2: see `reprolib campaign --help`"),
        ("campaign --workers two", "argument --workers: invalid int value: 'two'"),
        ("campaign --device cudaa --list", "(did you mean 'cuda'?)"),
        ("campaign --device cpu --only red/cifr10:desk", "(did you mean 'red/cifar10'?)"),
        ("campaign --device cpu --minutes 0 --only red/cifar10:smoke", "minutes = 0.0: give a positive number"),
        ("bench curvature --network lenett", "unknown network 'lenett': use one of "),
        ("bench step --device cudaa", "(did you mean 'cuda'?)"),
        ("bench step --rounds 0", "Invalid value for '--rounds'"),
        ("bench train --task digits-clasifier", "(did you mean 'digits-classifier'?)"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, message, tmp_path):
    result = reprolib(*words.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_one_line_and_exit_1(tmp_path):
    result = reprolib("records", "show", "red/cifar10")
    assert result.exit_code == 1
    assert result.stderr.endswith("make one with `reprolib run red/cifar10 --scale desk`\n")
    result = reprolib("records", "verify")
    assert result.exit_code == 1 and result.stderr == f"Error: no records in {tmp_path / 'records'}\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "file" / "runs"))
    result = reprolib("run", "red/cifar10")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "Not a directory" in result.stderr


def test_run_without_a_name_lists_the_experiments_and_their_largest_records():
    run = Run.of("sgd", seed=0, options={"lr": 0.1}, task="digits-classifier", batch_size=256, epochs=1)
    for scale in ("smoke", "desk"):
        Record.of("red/cifar10", scale, execute([run])).save()
    header, *lines = reprolib("run").stdout.splitlines()
    assert header.split(maxsplit=2) == ["experiment", "record", "what it tries"]
    rows = {line.split()[0]: line.split(maxsplit=2) for line in lines}
    assert set(rows) == set(experiments()) and len(lines) == len(rows)
    assert rows["red/cifar10"][1] == "desk" and rows["red/momentum"][1] == "–"
    assert all(len(subject) > 20 for _, _, subject in rows.values())


def test_no_records_is_said(tmp_path):
    result = reprolib("records", "list")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"no records in {tmp_path / 'records'}: `reprolib run` lists the experiments")


# ---- outside a source tree

OWN = """
'''One short run.'''
from reprolib.lab import Run
NAME = "own/short"


def plan(scale):
    return (yield [Run.of("sgd", seed=0, options={"lr": 0.1}, task="digits-classifier", batch_size=256, epochs=1)]), {}


def verdicts(record):
    return []
"""


@pytest.fixture
def installed(tmp_path):
    """The package alone, as a wheel installs it, and a working directory."""
    site, here = tmp_path / "site", tmp_path / "here"
    shutil.copytree(ROOT / "reprolib", site / "reprolib", ignore=shutil.ignore_patterns("__pycache__"))
    here.mkdir()
    (here / "own.py").write_text(OWN)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("REPROLIB_")}
    environ |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(*words: str) -> subprocess.CompletedProcess:
        before = sorted(site.rglob("*"))
        words = (sys.executable, "-m", "reprolib", *words)
        done = subprocess.run(words, cwd=here, env=environ, capture_output=True, text=True)
        assert sorted(site.rglob("*")) == before
        return done

    return here, command


def test_an_installed_package_writes_into_the_working_directory_and_says_so_once(installed):
    here, command = installed
    where = f"runs are kept in {here / 'reprolib-runs'}, records written to {here / 'reprolib-records'}\n"
    assert command("records", "list").stdout.startswith(f"no records in {here / 'reprolib-records'}: ")
    done = command("run", "own/short", "--import", "own")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(where) == 1
    assert (here / "reprolib-records" / "own" / "short" / "smoke.json").exists()
    assert len(list((here / "reprolib-runs").glob("*.json"))) == 1
    done = command("campaign", "--only", "own/short:desk", "--import", "own")
    assert done.stdout.count(where) == 1 and "complete" in done.stdout
    assert "own/short                desk" in command("records", "list").stdout


def test_an_installed_package_has_no_queue_and_says_what_to_do(installed):
    _, command = installed
    done = command("campaign", "--device", "cpu")
    assert done.returncode == 1
    assert "queue.yaml: name experiments with --only EXPERIMENT:SCALE, or a file with --queue" in done.stderr
    assert done.stderr.count("\n") == 1
