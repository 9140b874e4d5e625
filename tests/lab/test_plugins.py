"""Tasks, methods and experiments of somebody else's package: with several workers, dask, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from reprolib.errors import InvalidInput, ReprolibError, UnknownName
from reprolib.experiments import experiments, module
from reprolib.lab import Run, execute, plugins, train
from reprolib.lab.execute import continued
from reprolib.lab.methods import METHODS, Method
from reprolib.lab.methods import register as register_method
from reprolib.records import Record
from reprolib.tasks import TASKS, register, task

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = {
    "__init__.py": "from mylab import problem, wide\n",
    "problem.py": """
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from reprolib.lab.methods import Method, register as register_method
from reprolib.tasks import Task, register
from reprolib.tasks.data.dataset import Dataset, Split


def data():
    x = torch.linspace(0, 255, 4 * 40).round().to(torch.uint8).view(40, 1, 2, 2)
    y = torch.arange(40) % 2
    return Dataset("mine", Split(x, y), Split(x, y), 2, 255.0)


class SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign())


def sign_sgd(params, epochs, *, lr=1e-3):
    optimizer = SignSGD(params, lr)
    return optimizer, ExponentialLR(optimizer, 1.0)


TASK = register(Task("mine", data, lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "classes", False))
METHOD = register_method(Method("sign-sgd-of-mine", "sign SGD", sign_sgd, frozenset({"lr"})))
""",
    "wide.py": '''
"""Whether signs are enough. They are not
always."""
from reprolib.lab import Run

NAME = "mylab/wide"
CHAPTER = ""


def plan(scale):
    more = {"task": "mine", "batch_size": 8, "epochs": 2, "options": {"lr": 0.01}}
    histories = yield [Run.of("sign-sgd-of-mine", seed=s, **more) for s in range(3)]
    return histories, {}


def verdicts(record):
    row = dict(claim="mine-c01", statement="signs are enough", task="mine", criterion="all finish")
    return [row | {"verdict": "reproduced" if record.statuses["finished"] == 3 else "not reproduced"}]
''',
}


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    """A package in a temporary folder, of which nobody knows yet."""
    for name, text in PACKAGE.items():
        (tmp_path / "mylab").mkdir(exist_ok=True)
        (tmp_path / "mylab" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("REPROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REPROLIB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(plugins, "_LOADED", [])
    plugins.load_installed.cache_clear()
    yield tmp_path
    TASKS.pop("mine", None)
    METHODS.pop("sign-sgd-of-mine", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    plugins.load_installed.cache_clear()


def runs() -> list[Run]:
    more = {"task": "mine", "batch_size": 8, "epochs": 2, "options": {"lr": 0.01}}
    return [Run.of("sign-sgd-of-mine", seed=s, **more) for s in range(3)]


def same(a, b) -> bool:
    columns = [c for c in a.table.columns if c not in ("seconds", "wall")]
    return a.table[columns].equals(b.table[columns]) and a.first_losses == b.first_losses


def reprolib(*words: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess:
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    # as the installed script does, whose path has no working directory
    code = (
        "import sys; sys.path = [p for p in sys.path if p]; from reprolib.cli import main; main(prog_name='reprolib')"
    )
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=environ, capture_output=True, text=True)


def test_several_workers_train_tasks_and_methods_of_a_plugin(mylab, monkeypatch):
    # the processes began before anybody knew of the folder, as in a notebook that has trained already
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(mylab)])
    execute(
        [
            Run.of(
                "sgd", task="digits-classifier", batch_size=50, epochs=1, seed=s, train_size=100, options={"lr": 0.1}
            )
            for s in range(2)
        ],
        workers=2,
    )
    monkeypatch.syspath_prepend(str(mylab))
    plugins.load("mylab")
    histories = execute(runs(), workers=2)
    assert all(same(history, train(history.run)) for history in histories)


def test_the_workers_of_a_cluster_do_as_well(mylab):
    distributed = pytest.importorskip("distributed")
    plugins.load("mylab")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True) as cluster:
        histories = execute(runs(), engine="dask", scheduler=cluster.scheduler_address)
    assert all(same(history, train(history.run)) for history in histories)


def test_workers_say_what_they_do_not_know(mylab):
    plugins.load("mylab")
    run = runs()[0]
    for what, names in (("task 'mine'", TASKS), ("method 'sign-sgd-of-mine'", METHODS)):
        own = names.pop(what.split("'")[1])  # as in a process that has not imported it
        with pytest.raises(
            InvalidInput, match=f"knows no {what}: register it in a module, and name that with --import"
        ):
            continued(run, "cpu", None)
        names[own.name] = own


def test_an_experiment_of_a_plugin_is_found_by_its_name(mylab):
    with pytest.raises(UnknownName, match="mylab/wide"):
        module("mylab/wide")
    plugins.load("mylab")
    assert module("mylab/wide").__name__ == "mylab.wide"
    assert "red/cifar10" in experiments()
    assert plugins.loaded() == ("mylab",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("red/cifar10", r"mylab.wide is called red/cifar10, as reprolib.experiments.red.cifar10 is"),
        ("wide", "two parts"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused(mylab, name, message):
    path = mylab / "mylab" / "wide.py"
    path.write_text(path.read_text().replace("mylab/wide", name))
    plugins.load("mylab")
    with pytest.raises(InvalidInput, match=message):
        experiments()


def test_tasks_and_methods_that_are_taken_are_refused():
    with pytest.raises(InvalidInput, match="there is a task 'digits-classifier' already"):
        register(task("digits-classifier"))
    with pytest.raises(InvalidInput, match="there is a method 'sgd' already"):
        register_method(Method("sgd", "SGD", lambda params, epochs: None, frozenset()))


def test_a_plugin_that_cannot_be_imported_is_said(mylab):
    with pytest.raises(InvalidInput, match="no module 'mylob' to import"):
        plugins.load("mylob")
    with pytest.raises(InvalidInput, match=r"no module 'mylab\.none' to import"):
        plugins.load("mylab.none")
    (mylab / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(
        ReprolibError, match=r"'broken' cannot be imported .*nothing_of_this_name.*python -c 'import broken'"
    ):
        plugins.load("broken")
    (mylab / "wrong.py").write_text("1 / 0\n")
    with pytest.raises(ReprolibError, match="ZeroDivisionError"):
        plugins.load("wrong")
    assert plugins.loaded() == ()


def test_installed_packages_announce_their_plugins(mylab, monkeypatch):
    points = [EntryPoint("lab", "mylab", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.GROUP else [])
    assert "mylab/wide" in experiments()


def test_the_command_line_conducts_judges_and_campaigns(mylab):
    """From a folder that no path names and that hides the real package; with two workers of either kind."""
    (mylab / "reprolib").mkdir()
    (mylab / "reprolib" / "__init__.py").write_text("raise RuntimeError('not this one')")
    found = reprolib("run", "mylab/wide", "--import", "mylab", "--workers", "2", cwd=mylab)
    assert found.returncode == 0 and "3 runs: 3 finished" in found.stdout, found.stderr
    assert len(Record.load("mylab/wide").runs) == 3
    shown = reprolib("records", "show", "mylab/wide", cwd=mylab, REPROLIB_IMPORT="mylab")
    assert "mine-c01  reproduced" in shown.stdout, shown.stderr
    more = reprolib("campaign", "--only", "mylab/wide:desk", "--import", "mylab", "--workers", "2", cwd=mylab)
    assert more.returncode == 0 and "mylab/wide desk: complete" in more.stdout, more.stderr
    assert Record.load("mylab/wide").scale == "desk"


def test_the_list_of_experiments_has_it(mylab):
    found = reprolib("run", cwd=mylab, REPROLIB_IMPORT="mylab")
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("mylab/wide")]
    assert line.split(maxsplit=2) == ["mylab/wide", "–", "Whether signs are enough"]


def test_without_the_plugin_its_record_is_shown_and_its_runs_are_not_judged(mylab):
    plugins.load("mylab")
    Record.of("mylab/wide", "smoke", execute(runs())).save()
    shown = reprolib("records", "show", "mylab/wide", cwd=mylab)
    assert shown.stdout.count("finished") == 3 and "nothing judges it" in shown.stdout
    verified = reprolib("records", "verify", cwd=mylab)
    assert verified.returncode == 1
    assert "unknown method 'sign-sgd-of-mine': --import the module that has it" in verified.stdout
    assert reprolib("records", "verify", "--import", "mylab", cwd=mylab).returncode == 0
