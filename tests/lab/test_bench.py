"""The benchmark measures what it says; how fast it is, is not tested."""

from __future__ import annotations

import json

import pytest
import torch

from reprolib.errors import UnknownName
from reprolib.lab import bench
from reprolib.tasks import networks


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.NETWORKS, "tiny", (lambda: networks.dense([4, 3, 10], torch.nn.Tanh), 8, (1, 2, 2)))
    return bench.Bench.of("tiny", "cpu")


def test_all_quantities_of_a_network_are_measured(tiny, tmp_path):
    rows = bench.measure("tiny", rounds=2)
    assert [row["quantity"] for row in rows] == list(tiny.quantities())
    assert rows[0]["time"] == 1
    assert rows[0]["memory"] == 1
    assert all(row["time"] > 0 and row["memory"] > 0 for row in rows)
    bench.record(rows, "cpu", tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["environment"]["threads"] == torch.get_num_threads()
    assert len(content["rows"]) == len(rows)


def test_candidates_of_one_quantity_agree(tiny):
    quantities = tiny.quantities()
    (_, a), (_, b) = (quantities[f"gradient and per-sample curvature, {k}"]() for k in ("tape", "autodiff"))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_peak_memory_counts_what_lives_at_once():
    def f():
        a = torch.zeros(1000)
        b = torch.zeros(1000)
        del a, b
        return torch.zeros(1000)

    assert bench.peak_memory(f, "cpu") == pytest.approx(8000, rel=0.1)


def test_unknown_network():
    with pytest.raises(UnknownName, match="did you mean 'vgg11'"):
        bench.Bench.of("vgg1", "cpu")
