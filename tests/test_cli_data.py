"""``reprolib data``: what it prints and how it ends."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from reprolib.cli import main
from reprolib.tasks.data import CATALOG
from reprolib.tasks.data.catalog import Entry, File
from reprolib.tasks.data.formats import read_libsvm
from reprolib.tasks.data.store import values_digest

TEXT = b"1 1:1\n2 2:3\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder that holds the data set "toy" only."""
    toy = Entry("toy", "libsvm", (2, 0), (2,), 2, 1.0, "none", "made by a test", labels=(1, 2))
    file = File("libsvm/toy", values_digest(read_libsvm(TEXT, toy)))
    monkeypatch.setitem(CATALOG, "toy", Entry(**{**vars(toy), "train": (file,)}))
    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path))
    (tmp_path / "libsvm").mkdir()
    (tmp_path / "libsvm/toy").write_bytes(TEXT)
    return tmp_path


def reprolib(*arguments: str):
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_list_shows_sizes_and_what_is_here(folder):
    result = reprolib("data", "list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.output.splitlines()[: len(CATALOG) + 1]}
    assert rows["mnist"] == ["mnist", "60,000", "10,000", "1", "x", "28", "x", "28", "10", "no", "CC", "BY-SA", "3.0"]
    assert rows["toy"] == ["toy", "2", "0", "2", "2", "yes", "none"]
    assert rows["digits"][9] == "yes"
    assert "made by a test" in result.output and result.output.endswith(f"folder: {folder}\n")


def test_where_prints_the_folder_alone(folder):
    assert reprolib("data", "where").output == f"{folder}\n"


def test_verify(folder):
    result = reprolib("data", "verify", "toy", "digits")
    assert result.exit_code == 0
    assert result.output.startswith("toy: 1 file, verified: 2 + 0 samples (")
    assert "digits: comes with scikit-learn, verified: 1,437 + 360 samples" in result.output


def test_verify_without_a_name_checks_what_is_here(folder):
    result = reprolib("data", "verify")
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["digits", "toy"]


def test_verify_names_the_altered_file_and_goes_on(folder):
    (folder / "libsvm/toy").write_bytes(TEXT.replace(b"3", b"4"))
    result = reprolib("data", "verify", "toy", "digits")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {folder}/libsvm/toy is altered") and line.endswith("run `reprolib data fetch toy`")
    assert result.stdout.startswith("digits: ")


def test_fetch_keeps_what_is_here_and_verifies_it(folder):
    result = reprolib("data", "fetch", "toy")
    assert result.exit_code == 0 and result.output.startswith("toy: 0 new, 1 file, verified")


@pytest.mark.parametrize("command", ["fetch", "verify"])
def test_an_unknown_name_is_one_line_and_exit_2(folder, command):
    result = reprolib("data", command, "toi")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: unknown data set 'toi': use one of") and result.stderr.count("\n") == 1
    assert "did you mean 'toy'?" in result.stderr


def test_verify_of_an_absent_set(folder):
    result = reprolib("data", "verify", "svhn")
    assert result.exit_code == 1
    assert "svhn/train_32x32.mat is missing: run `reprolib data fetch svhn`" in result.stderr
