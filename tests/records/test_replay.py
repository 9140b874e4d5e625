"""The replay: what another processor does is let through, what another formula does is not."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import import_module

import pytest
import torch

from reprolib.lab import Run, execute
from reprolib.lab.methods import take_step
from reprolib.records import Record
from reprolib.records.record import published, run_of
from reprolib.records.replay import COPIES, LEFT, MARGIN, Starts, departure, differences

EPS = torch.finfo(torch.float32).eps
LINE_12 = ("optim/red.py", "lengths = [self._clamped(", "lengths = [1.01 * self._clamped(")
LIBRARY = ("lab/methods.py", "**fixed | options)", '**fixed | options | {"lr": 1.01 * options.get("lr", 1e-3)})')
SGD = "optimizer = torch.optim.SGD(params, lr={}lr, weight_decay=weight_decay)\n    return"
LONGER = {  # each method that has a record at smoke scale: a step of its source that is 1 % longer
    "sgd": ("lab/methods.py", SGD.format(""), SGD.format("1.01 * ")),
    "rmsprop": ("lab/methods.py", "Adam(params, lr=lr, betas=", "Adam(params, lr=1.01 * lr, betas="),
    "robbins-monro": ("lab/methods.py", 'group["first"] * (group', '1.01 * group["first"] * (group'),
    "momentum": LIBRARY,
    "adam": LIBRARY,
    "adamw": LIBRARY,
    "red-sgd": LINE_12,
    "red-rmsprop": LINE_12,
    "adler": ("optim/adler.py", "length * g[offset], 0.0", "1.01 * length * g[offset], 0.0"),
    "curveball": ("optim/curveball.py", "chosen(mask, scaled, 0.0)", "chosen(mask, 1.01 * scaled, 0.0)"),
    "summary": ("optim/newtonsummary.py", "p.sub_(s)", "p.sub_(1.01 * s)"),
    "csdd": ("optim/newtoncg.py", 'alpha=group["lr"] * γ)', 'alpha=1.01 * group["lr"] * γ)'),
    "step-tuned": ("optim/steptuned.py", "lengths = [rate *", "lengths = [1.01 * rate *"),
}


@cache
def recorded() -> Record:
    """All runs at smoke scale, which are on data that is here, each once."""
    records = [Record.load(name, "smoke") for name, scale in published() if scale == "smoke"]
    return Record("all", "smoke", records[0].rows, {key: run for r in records for key, run in r.runs.items()}, {})


def of_method(method: str) -> Record:
    whole = recorded()
    runs = {key: run for key, run in whole.runs.items() if run["specification"]["method"] == method}
    return Record(method, "smoke", whole.rows, runs, {})


def trial(method: str = "sgd", **fields) -> Run:
    fields = {"task": "digits-classifier", "epochs": 1, "batch_size": 256, "seed": 0} | fields
    return Run.of(method, **fields)


def marked(name: str):
    file, old, new = LONGER[name]
    return pytest.param(name, marks=pytest.mark.mutant("replay", file=file, old=old, new=new), id=name)


@pytest.mark.kernels
@pytest.mark.parametrize("method", [marked(name) for name in LONGER])
def test_what_is_published_is_what_this_code_does(method):
    passed_over: list[str] = []
    assert differences(of_method(method), say=passed_over.append) == []
    assert passed_over == []


def test_every_method_that_has_a_record_is_replayed():
    assert {run["specification"]["method"] for run in recorded().runs.values()} == set(LONGER)


@pytest.mark.parametrize("method", LONGER)
def test_a_step_that_is_one_percent_longer_is_found(method, monkeypatch):
    def longer(optimizer, *batch, **further):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        report = take_step(optimizer, *batch, **further)
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                p.add_(p - old, alpha=0.01)
        return report

    monkeypatch.setattr(import_module("reprolib.lab.train"), "take_step", longer)
    record = of_method(method)
    alone = (Record(method, "smoke", record.rows, {key: run}, {}) for key, run in record.runs.items())
    assert any(differences(one) for one in alone)


def test_a_loss_that_is_off_is_found():
    (history,) = execute([trial(options={"lr": 0.1})])
    record = Record.of("red/trial", "smoke", [history])
    assert differences(record) == []
    for step in range(5):
        (kept,) = json.loads(json.dumps(record.runs)).values()
        kept["first_losses"][step] *= 1 + 1e-4
        (line,) = differences(Record("red/trial", "smoke", record.rows, {history.run.key: kept}, {}))
        assert f"loss {step + 1} differs" in line


def test_without_a_difference_no_copy_is_trained(monkeypatch):
    trained = []
    losses = Starts.losses
    monkeypatch.setattr(Starts, "losses", lambda *a, **k: (trained.append(k), losses(*a, **k))[1])
    (history,) = execute([trial(options={"lr": 0.1})])
    record = Record.of("red/trial", "smoke", [history])
    assert differences(record) == []
    assert trained == [{}]
    record.runs[history.run.key]["first_losses"][3] *= 1.01
    assert len(differences(record)) == 1
    assert trained[2:] == [{"copy": n} for n in range(1, COPIES + 1)]


def test_a_run_that_diverges_is_compared_until_it_leaves():
    """RMSProp with a step a hundred times too long: its copies lose a digit with every step."""
    run = trial("rmsprop", options={"lr": 10.0})
    starts = Starts()
    now, copy = starts.losses(run), starts.losses(run, copy=1)
    assert now[0] == pytest.approx(copy[0], rel=4 * EPS)
    away = [abs(x - y) / x for x, y in zip(now, copy, strict=True)]
    assert away[0] < away[2] < away[4]
    assert away[4] > 1e-4
    off = [x * (1 + MARGIN * d) for x, d in zip(now, away, strict=True)]
    assert departure(now, [*now[:4], off[4]], [copy]) is None
    assert departure(now, [now[0], now[1] * (1 + MARGIN * away[4]), *now[2:]], [copy]) == 1


def test_how_far_a_record_may_be_away():
    now, nan = [2.0, 1.0, 0.5], math.nan
    assert departure(now, [2.0 * (1 + 4 * EPS), 1.0, 0.5]) is None
    assert departure(now, [2.0 * (1 + 40 * EPS), 1.0, 0.5], [[9.0, 9.0, 9.0]]) is None  # the copies have left
    assert departure(now, [2.0 * (1 + 40 * EPS), 1.0, 0.5], [[2.02, 1.0, 0.5]]) == 0  # rounding alone
    assert departure(now, [2.0, 1.0 + 0.9e-4 * MARGIN, 0.5], [[2.0, 1.0, 0.5], [2.0, 1.0001, 0.5]]) is None
    assert departure(now, [2.0, 1.0 + 1.1e-4 * MARGIN, 0.5], [[2.0, 1.0, 0.5], [2.0, 1.0001, 0.5]]) == 1
    assert departure(now, [2.0, 1.0, 0.5 + 0.9e-4 * MARGIN / 2], [[2.0, 1.0001, 0.5]]) is None  # it stays away
    assert departure(now, [2.0, 1.0, 7.0], [[2.0, 1.0 + 2 * LEFT, 0.5]]) is None
    assert departure(now, [2.0, 1.0]) == departure([2.0, 1.0], now) == 2
    assert departure([2.0, nan], [2.0, math.inf]) is None
    assert departure([2.0, nan], [2.0, nan, nan]) is None  # a GPU does not look, and goes on
    assert departure(now, [2.0, nan]) == departure([2.0, nan], now) == 1
    assert departure(now, [2.0, 1.0, nan], [[2.0, 1.0, nan]]) is None
    assert departure([1.0], [1.0 + 1e-12], dtype="float64") == 0


def test_copies_are_disturbed_by_rounding_and_nothing_else():
    run = trial(options={"lr": 0.1}, dtype="float64")
    starts = Starts()
    now = starts.losses(run)
    assert starts.losses(run) == now  # a copy does not disturb the start
    first, second = (starts.losses(run, copy=n) for n in (1, 2))
    assert now != first != second
    for copy in (first, second):
        assert copy == pytest.approx(now, rel=1e-13)
    assert run_of(run.specification) == run
