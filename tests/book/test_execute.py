"""Executing chapters and building the book, on a small checkout with tiny notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from reprolib.book import html, job, source
from reprolib.book.__main__ import main
from reprolib.book.cache import Stamp, chapter_key, environment_key
from reprolib.book.execute import execute
from reprolib.book.layout import Layout
from reprolib.book.notebook import pair
from reprolib.book.references import clean, compare, numbers, printed_otherwise
from reprolib.book.stage import stage
from reprolib.errors import InvalidInput, NotebookFailed, UnknownName
from reprolib.experiments import shown
from tests.book.conftest import write


def printed(path: Path) -> str:
    return "".join(o.get("text", "") for c in nbformat.read(path, 4).cells for o in c.get("outputs", []))


def pretend(root: Path, chapter: str, scale: str = "smoke", key: str | None = None) -> Path:
    """An execution that needs no kernel: the notebook with outputs left out, and its stamp."""
    layout = Layout(root)
    path = layout.executed(chapter, scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(source.read(layout.source(chapter)), path)
    Stamp(key or chapter_key(layout, chapter, scale, environment_key(layout)), 1.0, "now").write(path)
    return path


# The key -------------------------------------------------------------------------------------------------------------


def test_key_is_stable(checkout: Path) -> None:
    layout = Layout(checkout)
    assert chapter_key(layout, "red/one", "smoke", environment_key(layout)) == chapter_key(
        layout, "red/one", "smoke", environment_key(layout)
    )


@pytest.mark.parametrize(
    "name",
    ["notebooks/red/one.md", "reprolib/code.py", "reprolib/new/file.py", "constraints.txt", "book/claims.yaml",
     "book/records/red/desk.csv"],
)  # fmt: skip
def test_key_sees_what_results_depend_on(checkout: Path, name: str) -> None:
    layout = Layout(checkout)
    before = chapter_key(layout, "red/one", "smoke", environment_key(layout))
    path = checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
    assert chapter_key(layout, "red/one", "smoke", environment_key(layout)) != before


@pytest.mark.parametrize("name", ["notebooks/red/two.md", "book/intro.md", "notebooks/red/one.ipynb", "README.md"])
def test_key_does_not_see_the_rest(checkout: Path, name: str) -> None:
    layout = Layout(checkout)
    before = chapter_key(layout, "red/one", "smoke", environment_key(layout))
    (checkout / name).write_text("something else")
    assert chapter_key(layout, "red/one", "smoke", environment_key(layout)) == before


def test_key_depends_on_scale(checkout: Path) -> None:
    layout = Layout(checkout)
    assert chapter_key(layout, "red/one", "smoke", "") != chapter_key(layout, "red/one", "desk", "")


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"key": "k"}', "[]"])
def test_damaged_stamp_counts_as_none(checkout: Path, text: str) -> None:
    path = pretend(checkout, "red/one")
    assert Stamp.read(path)
    Stamp.beside(path).write_text(text)
    assert Stamp.read(path) is None


# Choosing ------------------------------------------------------------------------------------------------------------


def test_unknown_scale_and_chapter(checkout: Path) -> None:
    with pytest.raises(UnknownName, match="unknown scale 'tiny': use one of desk, night, paper, smoke"):
        execute(checkout, scale="tiny")
    with pytest.raises(UnknownName, match=r"unknown chapter 'red/on3': use one of red/one, red/two \(did you mean"):
        execute(checkout, only="red/on3")


@pytest.mark.parametrize(
    "choice", [["--scale", "tiny"], ["--only", "blue/"], ["--jobs", "0"], ["--device", "cudaa"], ["--device", "cpu:7"]]
)
def test_command_says_in_one_line_what_was_wrong(
    checkout: Path, choice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--root", str(checkout), *choice]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not (checkout / "build").exists()


def test_only_takes_prefixes_and_paths(checkout: Path) -> None:
    write(checkout, "blue/three")
    layout = Layout(checkout)
    assert layout.select("red") == layout.select("notebooks/red/") == ["red/one", "red/two"]
    assert layout.select("notebooks/red/two.md") == ["red/two"]
    assert layout.select("") == ["blue/three", "red/one", "red/two"]


def test_contents_give_the_order_and_must_exist(checkout: Path) -> None:
    toc = checkout / "_toc.yml"
    toc.write_text("root: book/intro\nparts:\n- chapters:\n  - file: notebooks/red/two\n  - file: notebooks/red/one\n")
    assert Layout(checkout).chapters() == ["red/two", "red/one"]
    (checkout / "notebooks/red/one.md").unlink()
    with pytest.raises(InvalidInput, match=r"lists notebooks/red/one, but there is no notebooks/red/one\.md"):
        Layout(checkout).chapters()


# Executing -----------------------------------------------------------------------------------------------------------


def test_executes_what_changed_and_only_that(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = pretend(checkout, "red/one")
    before = kept.stat().st_mtime_ns
    done = execute(checkout, scale="smoke")
    assert list(done) == ["red/one", "red/two"]
    assert kept.stat().st_mtime_ns == before
    assert printed(done["red/two"]) == "smoke\n"
    said = capsys.readouterr().out
    assert "[1/2] red/one  cached (smoke)" in said
    assert "running red/two (smoke)" in said
    assert "[2/2] red/two" in said
    execute(checkout)
    assert "2 cached, 0 to run" in capsys.readouterr().out


def test_force_executes_again_and_only_limits_it(checkout: Path) -> None:
    one, two = pretend(checkout, "red/one"), pretend(checkout, "red/two", key="of another time")
    before = one.stat().st_mtime_ns, two.stat().st_mtime_ns
    done = execute(checkout, scale="smoke", only="red/one", force=True)
    assert done == {"red/one": one, "red/two": two}
    assert one.stat().st_mtime_ns != before[0]
    assert two.stat().st_mtime_ns == before[1], "an old execution of another chapter is good enough with ONLY"


def test_larger_scale_reaches_the_chapter_and_the_rest_stays(checkout: Path) -> None:
    two = pretend(checkout, "red/two", key="of another time")
    done = execute(checkout, scale="desk", only="red/one")
    assert done == {"red/one": Layout(checkout).executed("red/one", "desk"), "red/two": two}
    assert printed(done["red/one"]) == "desk\n"
    cells = nbformat.read(done["red/one"], 4).cells
    assert [c.source for c in cells if "parameters" in c.metadata.get("tags", [])] == ['scale = "desk"']


def test_failure_names_the_place_and_keeps_what_was(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(checkout)
    old = pretend(checkout, "red/one", key="of another time")
    before = old.read_bytes()
    layout.html.mkdir(parents=True)
    (layout.html / "index.html").write_text("the book of before")
    write(checkout, "red/one", "# divide\n1 / 0")
    assert main(["build", "--root", str(checkout)]) == 1
    said = capsys.readouterr()
    expected = "notebooks/red/one.md, code cell 2 (line 16), `# divide`: ZeroDivisionError: division by zero"
    assert expected in said.err
    assert said.err.startswith("error: ")
    assert (layout.html / "index.html").read_text() == "the book of before"
    assert old.read_bytes() == before
    failed = layout.build / "failed" / "red" / "one.ipynb"
    assert "ZeroDivisionError" in failed.read_text()
    assert printed(layout.executed("red/two", "smoke")) == "smoke\n", "the other chapters are executed all the same"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('be careful', file=sys.stderr)", "wrote to stderr, which no page may show: be careful"),
        ("import os; os._exit(3)", "kernel died"),
    ],
)
def test_other_ways_to_fail(checkout: Path, code: str, said: str) -> None:
    pretend(checkout, "red/two")
    write(checkout, "red/one", code)
    with pytest.raises(NotebookFailed, match=said):
        execute(checkout)


def test_killed_process_is_reported(checkout: Path) -> None:
    write(checkout, "red/one", "import os; os.kill(os.getppid(), 9)")
    with pytest.raises(NotebookFailed, match=r"red/one\.md: its process was killed"):
        execute(checkout, jobs=1)
    assert printed(Layout(checkout).executed("red/two", "smoke")) == "smoke\n", "the other chapter has its own"


SEEN = """import os, sys, threading
import matplotlib.pyplot as plt, numpy as np, torch
torch.manual_seed(0)
print(torch.randn(3), hash("a"), torch.get_num_threads(), plt.get_backend(), os.getcwd())
print(sys.modules["__main__"].__dict__ is globals(), "reprolib.curvature" in sys.modules, os.environ["REPROLIB_DEVICE"])
plt.plot(np.linspace(0, 1)); plt.show()"""


def test_forked_kernels_do_what_new_interpreters_do(checkout: Path) -> None:
    write(checkout, "red/one", SEEN)
    cells = []
    for fresh in (False, True):
        done = execute(checkout, only="red/one", force=True, fresh=fresh)
        cells.append([c.outputs for c in nbformat.read(done["red/one"], 4).cells if c.cell_type == "code"])
    assert cells[0] == cells[1], "pictures included"
    assert "image/png" in cells[0][1][1].data
    assert "True False cpu" in cells[0][1][0].text


def test_forked_kernel_leaves_as_an_interpreter_does(checkout: Path, tmp_path: Path) -> None:
    code = f"import atexit, pathlib\natexit.register(pathlib.Path({str(tmp_path / 'left')!r}).touch)"
    write(checkout, "red/one", code)
    execute(checkout, only="red/one")
    assert (tmp_path / "left").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_chapters_are_forked_from_one_process_with_the_imports_done(checkout: Path) -> None:
    said = """import os, sys
print("pandas" in sys.modules, open(f"/proc/{os.getppid()}/status").read().split("PPid:")[1].split()[0])"""
    for chapter in ("red/one", "red/two"):
        write(checkout, chapter, said)
    done = execute(checkout, jobs=1)
    one, two = (printed(path) for path in done.values())
    assert one == two
    assert one.startswith("True")


def test_environment_comes_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_HERE", "1")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), job.environment({"ONLY": "this"}):
        assert dict(os.environ) == {"ONLY": "this"}
        _ = 1 / 0
    assert dict(os.environ) == before


def test_a_kernel_that_nobody_launches_ends_with_its_parent() -> None:
    script = "from reprolib.book.kernel import Forked; import os; print(Forked().pid, flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(int(done.stdout), 0)
            time.sleep(0.05)


def test_time_limit(checkout: Path) -> None:
    pretend(checkout, "red/two")
    write(checkout, "red/one", "import time; time.sleep(60)")
    with pytest.raises(NotebookFailed, match="a cell ran longer than 1 s"):
        execute(checkout, timeout=1)


def test_chapter_without_parameters(checkout: Path) -> None:
    pretend(checkout, "red/two")
    path = checkout / "notebooks/red/one.md"
    path.write_text(path.read_text().replace('scale = "smoke"', "scale = 3"))
    with pytest.raises(NotebookFailed, match='no code cell tagged "parameters"'):
        execute(checkout)


# Devices -------------------------------------------------------------------------------------------------------------


def test_device_reaches_the_experiments(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any scale; cpu:0 stands in for a GPU."""
    for chapter in ("red/one", "red/two"):
        write(checkout, chapter, "from reprolib.experiments import shown\nprint(shown.device())")
    for scale in ("smoke", "desk"):
        assert (
            main(["execute", "--root", str(checkout), "--device", "cpu:0", "--scale", scale, "--only", "red/one"]) == 0
        )
        assert printed(Layout(checkout).executed("red/one", scale)) == "cpu:0\n"


def test_show_trains_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def conduct(name, scale, execute):
        told[name] = execute.keywords["device"]

    monkeypatch.setattr(shown, "conduct", conduct)
    monkeypatch.setattr(shown.Record, "load", lambda name: None)
    for device in (None, "cpu:0"):
        monkeypatch.delenv("REPROLIB_DEVICE", raising=False) if device is None else monkeypatch.setenv(
            "REPROLIB_DEVICE", device
        )
        shown.show(f"on {device}", "smoke")
    assert told == {"on None": "cpu", "on cpu:0": "cpu:0"}


def test_what_another_device_computed_is_computed_again(checkout: Path) -> None:
    layout = Layout(checkout)
    keys = {chapter_key(layout, "red/one", "smoke", "", device) for device in ("cpu", "cpu:0", "cuda")}
    assert len(keys) == 3


# Building ------------------------------------------------------------------------------------------------------------

CONFIG = """
title: Tiny
only_build_toc_files: true
execute: {execute_notebooks: "off"}
"""


def test_strict_build_keeps_the_book_of_before(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(checkout)
    (checkout / "_config.yml").write_text(CONFIG)
    (checkout / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    page = checkout / "book" / "intro.md"
    page.write_text("# First\n")
    first = html.build(layout, {})
    assert first == layout.html / "index.html"
    assert "book/intro.html" in first.read_text()
    before = (layout.html / "book" / "intro.html").read_bytes()
    stamp = first.stat().st_mtime_ns
    assert html.build(layout, {}) == first
    assert first.stat().st_mtime_ns == stamp, "nothing changed, nothing is built"
    page.write_text("# Second\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(InvalidInput, match="the book was not built: 1 warnings"):
        html.build(layout, {})
    assert "book/intro.md:3: WARNING: undefined label: 'nowhere'" in capsys.readouterr().out
    assert (layout.html / "book" / "intro.html").read_bytes() == before
    with pytest.raises(InvalidInput):  # the warning does not go away by asking twice
        html.build(layout, {})


def test_swap_replaces_the_whole_folder(tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.html").write_text(name)
    html.swap(tmp_path / "new", tmp_path / "place")
    assert [p.name for p in tmp_path.rglob("*")] == ["place", "new.html"]


def test_staged_chapter_has_no_traces_of_the_tools(checkout: Path) -> None:
    path = pretend(checkout, "red/one")
    notebook = nbformat.read(path, 4)
    notebook.metadata["papermill"] = {"input_path": "somewhere"}
    notebook.cells[1].metadata["papermill"] = {"duration": 1.0}
    nbformat.write(notebook, path)
    staged = stage(Layout(checkout), {"red/one": path}) / "notebooks" / "red" / "one.ipynb"
    assert "papermill" not in staged.read_text()


# References and pairs ------------------------------------------------------------------------------------------------


def test_numbers_keep_the_tolerance_that_a_person_chose() -> None:
    old = {"loss": {"value": 0.1, "rtol": 0.2, "why": "training"}, "device": {"host": True}}
    new = numbers({"loss": 0.11, "device": "cpu", "acc": 0.9, "n": 3, "date": "today"}, {"date"}, old)
    assert new == {
        "loss": {"value": 0.11, "rtol": 0.2, "why": "training"},
        "device": {"host": True},
        "acc": {"value": 0.9, "rtol": 1e-3},
        "n": {"value": 3},
        "date": {"host": True},
    }


def test_compare_finds_drift() -> None:
    entries = {
        "a": {"value": 1.0, "rtol": 0.01},
        "b": {"value": "x"},
        "c": {"host": True},
        "d": {"value": 0.0, "atol": 1e-9},
    }
    assert compare({"a": 1.009, "b": "x", "c": "any", "d": 1e-10}, set(), entries) == []
    assert compare({"a": 1.02, "b": "y", "e": 1}, set(), entries) == [
        "a: 1.02 is not 1.0 (rtol 0.01, atol 0)",
        "b: 'y' is not 'x' (rtol 0, atol 0)",
        "c: no longer there",
        "d: no longer there",
        "e: new, run make references",
    ]
    assert compare({"a": float("nan")}, set(), {"a": {"value": 1.0, "rtol": 1.0}})


def notebook(*cells: tuple[str, dict[str, str]], tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    """One whose cells print a line and display texts of some types."""
    v4 = nbformat.v4
    made = v4.new_notebook()
    for line, data in cells:
        outputs = [v4.new_output("stream", text=line)] if line else []
        outputs += [v4.new_output("display_data", data={kind: text}) for kind, text in data.items()]
        made.cells.append(v4.new_code_cell("", outputs=outputs, metadata={"tags": list(tags)}))
    return made


def test_printed_otherwise_finds_the_cell_and_the_kind() -> None:
    before = notebook(("holds: a\n", {}), ("", {"text/html": "<b>1</b>", "image/png": "picture"}))
    assert printed_otherwise(before, before) == []
    assert printed_otherwise(notebook(("holds: a\n", {}), ("", {"text/html": "<b>1</b>"})), before) == []
    (wrong,) = printed_otherwise(notebook(("holds: b\n", {}), ("", {"text/html": "<b>1</b>"})), before)
    assert wrong == "code cell 1, printed:\n  was ['holds: a\\n']\n  is  ['holds: b\\n']"
    assert len(printed_otherwise(notebook(("", {}), ("", {"text/html": "<b>2</b>"})), before)) == 2
    assert printed_otherwise(notebook(("new", {})), notebook(("old", {}), tags=("nbval-ignore-output",))) == []
    with pytest.raises(ValueError, match="longer"):
        printed_otherwise(notebook(("holds: a\n", {})), before)


def test_lines_of_a_cell_are_compared_together() -> None:
    two, one = notebook(("a\n", {})), notebook(("a\nb\n", {}))
    two.cells[0].outputs.append(nbformat.v4.new_output("stream", text="b\n"))
    assert printed_otherwise(two, one) == []


def test_clean_reference_is_small_and_repeatable(checkout: Path) -> None:
    notebook = source.read(Layout(checkout).source("red/one"))
    notebook.cells[2]["outputs"] = [
        nbformat.v4.new_output("display_data", {"image/png": "...", "text/plain": "<Figure>"}, metadata={})
    ]
    notebook.metadata["papermill"] = {"duration": 3}
    notebook = clean(notebook)
    assert notebook.cells[2].outputs[0].data == {"text/plain": "<Figure>"}
    assert "papermill" not in notebook.metadata
    nbformat.validate(notebook)


def test_pair_goes_one_way(checkout: Path) -> None:
    path = checkout / "notebooks" / "red" / "one.md"
    text = path.read_text()
    paired = pair(path)
    assert path.read_text() == text
    notebook = nbformat.read(paired, 4)
    assert notebook.metadata["jupytext"]["formats"] == "ipynb,md:myst"
    notebook.cells[2]["outputs"] = [nbformat.v4.new_output("stream", text="kept\n")]
    nbformat.write(notebook, paired)
    path.write_text(text.replace("# A chapter", "# Another title"))
    again = nbformat.read(pair(path), 4)
    assert again.cells[0].source == "# Another title"
    assert again.cells[2].outputs[0].text == "kept\n"
    assert paired.stat().st_mtime_ns <= path.stat().st_mtime_ns
