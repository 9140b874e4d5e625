"""The benchmark measures what it says; how fast it is, is not tested."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reprolib.bench import curvature as bench
from reprolib.bench import harness, peers
from reprolib.errors import RecordError, UnknownName
from reprolib.records.record import published
from reprolib.tasks import networks


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 10))


TINY = {"tiny": lambda: networks.dense([4, 3, 10], nn.Tanh), "tiny-bn": with_batch_norm}


@pytest.fixture(params=list(TINY))
def tiny(request, monkeypatch):
    monkeypatch.setitem(harness.NETWORKS, request.param, (TINY[request.param], 8, (1, 2, 2)))
    monkeypatch.setattr(bench, "TENSOR_GROUPS", ("tiny",))
    return request.param


def test_every_quantity_is_measured_or_says_why_not(tiny, tmp_path):
    said: list[str] = []
    rows = bench.measure(tiny, rounds=1, say=said.append)
    assert [(r["quantity"], r["library"]) for r in rows] == [
        (q.name, q.library) for q in bench.quantities(tiny, tiny == "tiny-bn")
    ]
    assert f"{tiny}: round 1 of 1" in said
    assert rows[0]["time"] == rows[0]["memory"] == 1
    for row in rows:
        assert ("note" in row) != ("time" in row)
        if row["library"] in ("reprolib", "torch"):
            assert "note" not in row, f"{row['quantity']}: {row['note']}"
            assert row["time"] > 0
            assert row["memory"] > 0
            assert row["error"] < (0.1 if "finitediff" in row["quantity"] else 1e-4), row["quantity"]
    costs = bench.costs(rows, "cpu", rounds=1, minutes=0.5)
    costs.save(tmp_path / "curvature-cost.cpu")
    back = harness.Costs.load(tmp_path / "curvature-cost.cpu")
    assert back.about == costs.about
    assert back.about["environment"]["threads"] == torch.get_num_threads()
    assert set(peers.PACKAGES.values()) <= set(back.about["environment"]["versions"])
    assert back.value(tiny, "ggn-product", "time") == pytest.approx(rows[6]["time"], rel=1e-3)
    assert math.isnan(back.value(tiny, "nothing"))
    assert published(tmp_path) == []  # it is not taken for the record of an experiment
    with pytest.raises(RecordError, match="make bench"):
        harness.Costs.load(tmp_path / "nothing")


def test_what_cannot_be_measured_has_a_reason(tiny, monkeypatch):
    def absent(b):
        raise ModuleNotFoundError("No module named 'pyhessian'", name="pyhessian")

    def refuses(b):
        raise NotImplementedError("no rule for it\nand much more")

    monkeypatch.setattr(peers, "PRODUCTS", {("A", "hessian"): absent, ("B", "ggn"): refuses})
    a, b = bench.measure(tiny, rounds=1)[-2:]
    assert (a["library"], a["quantity"], a["note"]) == ("A", "hessian-product", "not installed: pyhessian")
    assert (b["library"], b["note"]) == ("B", "fails: NotImplementedError: no rule for it")


def test_a_wrong_answer_is_seen():
    right = (torch.tensor([3.0, 4.0]), torch.tensor([0.0]))
    assert bench.relative_error(right, right) == 0
    assert bench.relative_error((torch.tensor([3.0, 4.5]), torch.tensor([0.0])), right) == pytest.approx(0.1)
    assert bench.relative_error(torch.tensor([1.0, 4.0]), torch.tensor(2.0)) == pytest.approx(0.25)  # by its mean


def test_peak_memory_counts_what_lives_at_once():
    def f():
        a = torch.zeros(1000)
        b = torch.zeros(1000)
        del a, b
        return torch.zeros(1000)

    assert harness.peak_memory(f, "cpu") == pytest.approx(8000, rel=0.1)


def test_unknown_network():
    with pytest.raises(UnknownName, match="did you mean 'vgg11'"):
        harness.Bench.of("vgg1", "cpu")
