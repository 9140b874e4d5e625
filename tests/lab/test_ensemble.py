"""Runs that are trained together are the runs that they would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprolib.errors import InvalidInput
from reprolib.lab import Run, execute, train
from reprolib.lab.ensemble import Ensemble, ensembles, obstacle, train_together
from reprolib.tasks import TASKS, networks
from reprolib.tasks.task import Task

TIMES = ("seconds", "wall")
LR = {"sgd": 0.3, "momentum": 0.1, "adagrad": 0.03}  # about the largest that do well; else 0.01


def run(method: str = "sgd", seed: int = 0, **fields) -> Run:
    options = {"lr": LR.get(method, 0.01)} | fields.pop("options", {})
    fields = {"task": "digits-classifier", "epochs": 2, "batch_size": 300, "dtype": "float64"} | fields
    return Run.of(method, seed=seed, options=options, **fields)


def assert_same(together, alone, rtol: float = 1e-9) -> None:
    assert together.run == alone.run
    assert together.status == alone.status
    assert together.first_losses == pytest.approx(alone.first_losses, rel=rtol, nan_ok=True)
    assert list(together.table.columns) == list(alone.table.columns)
    assert len(together.table) == len(alone.table)
    for name in set(alone.table.columns) - set(TIMES):
        assert list(together.table[name]) == pytest.approx(list(alone.table[name]), rel=rtol, nan_ok=True), name


@pytest.mark.parametrize("name", ["digits-classifier", "digits-autoencoder"])
@pytest.mark.parametrize("method", ["sgd", "rmsprop", "momentum", "adam", "adamw", "adagrad", "torch-rmsprop"])
def test_together_is_as_alone(method, name):
    lr = LR.get(method, 0.01)
    runs = [
        run(method, 0, task=name),  # with the default decay of weights
        run(method, 1, task=name, options={"lr": 0.5 * lr, "decay": 0.8, "weight_decay": 0.0}),
        run(method, 1, task=name, options={"lr": 0.2 * lr, "decay": 0.9, "weight_decay": 0.1}),
    ]
    histories = train_together(runs)
    for together, r in zip(histories, runs, strict=True):
        assert_same(together, train(r))
        assert together.environment["together"] == 3
    finals = {round(h.final["test_loss"], 6) for h in histories}
    assert len(finals) == 3


def test_the_same_seeds_share_their_batches():
    runs = [run(seed=3, options={"lr": lr}) for lr in (0.1, 0.3)]
    ensemble = Ensemble(runs)
    x, y = next(ensemble.batches(0))
    assert (x.shape, y.shape) == ((300, 1, 8, 8), (300,))
    for together, r in zip(train_together(runs), runs, strict=True):
        assert_same(together, train(r))
    x, y = next(Ensemble([run(seed=0), run(seed=1)]).batches(0))
    assert (x.shape, y.shape) == ((2, 300, 1, 8, 8), (2, 300))
    assert not torch.equal(y[0], y[1])


def test_other_options_hold_for_all():
    runs = [run("momentum", seed, options={"momentum": 0.5, "nesterov": True}) for seed in (0, 1)]
    for together, r in zip(train_together(runs), runs, strict=True):
        assert_same(together, train(r))


def test_in_single_precision_too():
    runs = [run("adam", seed, dtype="float32", held_out=200, train_size=800, stop_after=1) for seed in (0, 1)]
    for together, r in zip(train_together(runs), runs, strict=True):
        assert_same(together, train(r), rtol=1e-4)


def test_who_diverges_ends_there_and_disturbs_nobody():
    common = {"task": "digits-autoencoder", "epochs": 3}
    runs = [run(seed=i, options={"lr": lr}, **common) for i, lr in enumerate((0.3, 1e6, 0.1, 1e3))]
    histories = train_together(runs)
    assert [h.diverged for h in histories] == [False, True, False, True]
    for together, r in zip(histories, runs, strict=True):
        alone = train(r)
        if not alone.diverged:
            assert_same(together, alone)
        else:  # on its way to infinity rounding is multiplied
            assert list(together.table["iteration"]) == list(alone.table["iteration"])
            assert len(together.first_losses) == len(alone.first_losses)
            assert together.first_losses[:3] == pytest.approx(alone.first_losses[:3], rel=1e-6)
    assert all(h.diverged for h in train_together([runs[1], runs[1]]))


def test_the_seconds_are_shares(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("reprolib.lab.ensemble.clock", lambda device: float(next(ticks)))
    histories = train_together([run(seed=seed) for seed in range(4)])
    assert [h.final["seconds"] for h in histories] == [0.5] * 4  # two epochs of one second, four members


def with_layer(layer: nn.Module):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), layer, nn.Tanh(), nn.Linear(16, 10))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(16), nn.Dropout(0.5)], ids=lambda m: type(m).__name__)
def test_members_that_would_need_their_own_statistics_or_random_numbers_are_refused(layer, monkeypatch):
    monkeypatch.setitem(TASKS, "layered", Task("layered", "digits", with_layer(layer), "classes", True))
    layered = run(task="layered")
    with pytest.raises(InvalidInput, match=rf"{type(layer).__name__}.*use `train`"):
        train_together([layered])
    assert ensembles([layered, layered]) == [[layered], [layered]]


def test_random_numbers_outside_of_layers_are_noticed(monkeypatch):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = networks.dense([64, 10], nn.Tanh)

        def forward(self, x):
            return nn.functional.dropout(self.inner(x), 0.5)

    monkeypatch.setitem(TASKS, "noisy", Task("noisy", "digits", Noisy, "classes", True))
    with pytest.raises(RuntimeError, match="random"):
        train_together([run(task="noisy"), run(task="noisy", seed=1)])


def test_runs_that_do_not_belong_together_are_refused():
    for runs, words in [
        ([], "no runs"),
        ([run("lbfgs")], "lbfgs"),
        ([Run.of("red-sgd", task="digits-classifier", epochs=1, batch_size=64, seed=0)], "red-sgd"),
        ([run(), run(epochs=3)], "differ"),
        ([run(), run(batch_size=64)], "differ"),
        ([run(), run("adam")], "differ"),
        ([run("adam"), run("adam", options={"beta2": 0.9})], "differ"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            train_together(runs)


def test_grouping():
    sgd = [run("sgd", seed, options={"lr": lr}) for seed in (0, 1) for lr in (0.1, 0.2)]
    longer, adam, lbfgs = run("sgd", epochs=5), run("adam"), run("lbfgs")
    assert ensembles([sgd[0], adam, sgd[1], lbfgs, longer, lbfgs, *sgd[2:]]) == [
        sgd,
        [adam],
        [lbfgs],
        [longer],
        [lbfgs],
    ]
    assert ensembles(sgd, largest=3) == [sgd[:3], sgd[3:]]
    assert ensembles([]) == []
    assert obstacle(sgd[0]) is None


def test_executed_together(tmp_path):
    """As `reprolib run --together`: what cannot be trained with others is trained alone; all are kept."""
    sgd = [_sgd(seed) for seed in range(3)]
    alone = Run.of("red-sgd", task="digits-classifier", seed=0, batch_size=64, epochs=1)
    said: list[str] = []
    histories = execute([*sgd, alone], together=2, keep=tmp_path, say=said.append)
    assert [h.environment.get("together") for h in histories] == [2, 2, None, None]
    assert [h.run for h in execute([*sgd, alone], keep=tmp_path, say=said.append)] == [*sgd, alone]
    assert len(said) == 4


def _sgd(seed: int) -> Run:
    return Run.of("sgd", task="digits-classifier", seed=seed, batch_size=64, epochs=1, options={"lr": 0.1})
