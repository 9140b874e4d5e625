"""The memory layer of RED's appendix C.2, against a loop that keeps the features itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.errors import InvalidInput
from reprolib.lab import Run
from reprolib.lab.ensemble import obstacle
from reprolib.lab.train import Training, train
from reprolib.optim import RED
from reprolib.tasks import task
from reprolib.tasks.memory import WithMemory

NAME = "digits-convnet-with-memory"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(n: int = 40):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (n,), generator=generator)


def test_the_last_layer_sees_what_came_before():
    layer, x, y = WithMemory(net(), 10), *data()
    features, targets = [], []
    for i in range(0, 40, 4):
        closure, seen = layer.recalling(x[i : i + 4], y[i : i + 4])
        outputs = closure()
        now = layer.net[:-1](x[i : i + 4])
        recalled = torch.cat([now, *features])[:10]  # newest first, ten in all
        torch.testing.assert_close(outputs, layer.net[-1](recalled))
        assert seen.tolist() == torch.cat([y[i : i + 4], *targets])[:10].tolist()
        features, targets = [now.detach(), *features], [y[i : i + 4], *targets]
        with torch.no_grad():  # the features of the next batch are other ones
            for p in layer.parameters():
                p.mul_(0.9)
    assert len(outputs) == 10


def test_the_body_learns_from_the_batch_alone():
    layer, x, y = WithMemory(net(), 8), *data()
    layer.recalling(x[:4], y[:4])[0]()
    closure, targets = layer.recalling(x[4:8], y[4:8])
    mean = F.cross_entropy(closure(), targets)
    g = torch.autograd.grad(mean, list(layer.net[0].parameters()))
    alone = F.cross_entropy(layer.net(x[4:8]), y[4:8])
    expected = torch.autograd.grad(alone, list(layer.net[0].parameters()))
    for a, b in zip(g, expected, strict=True):
        torch.testing.assert_close(a, 0.5 * b)  # half of the eight samples are its own


def test_a_batch_as_large_as_the_memory_has_no_memory():
    layer, x, y = WithMemory(net(), 4), *data()
    for i in range(0, 40, 4):
        closure, targets = layer.recalling(x[i : i + 4], y[i : i + 4])
        torch.testing.assert_close(closure(), layer.net(x[i : i + 4]))
        assert torch.equal(targets, y[i : i + 4])


def test_a_closure_may_be_called_twice():
    layer, x, y = WithMemory(net(), 8), *data()
    closure, _ = layer.recalling(x[:4], y[:4])
    torch.testing.assert_close(closure(), closure())
    assert len(layer.recalling(x[4:8], y[4:8])[0]()) == 8


@pytest.mark.parametrize("backend", ["tape", "autodiff"])
def test_red_measures_the_curvature_of_every_remembered_sample(backend):
    """Mean of |d\u1d40H_s d| over batch and memory, by double reverse mode one sample at a time."""
    layer, x, y = WithMemory(net(), 8), *data()
    layer.recalling(x[:4], y[:4])[0]()
    closure, targets = layer.recalling(x[4:8], y[4:8])
    params = list(layer.parameters())
    losses = F.cross_entropy(closure(), targets, reduction="none")
    d = torch.autograd.grad(losses.mean(), params, retain_graph=True)
    curvature = []
    for loss in losses:
        g = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        slope = sum((a * b).sum() for a, b in zip(g, d, strict=True) if a is not None)
        h = torch.autograd.grad(slope, params, retain_graph=True, allow_unused=True)
        curvature.append(sum(float((a * b).sum()) for a, b in zip(h, d, strict=True) if a is not None))
    norm2 = sum(float((a * a).sum()) for a in d)
    optimizer = RED(params, weight_decay=0.0, backend=backend)
    optimizer.step(closure, lambda outputs: F.cross_entropy(outputs, targets, reduction="none"))
    expected = sum(map(abs, curvature)) / len(curvature) / norm2
    assert float(optimizer.diagnostics["curvature"]) == pytest.approx(expected, rel=1e-10)


def test_it_continues_from_a_checkpoint_with_its_memory(tmp_path):
    run = Run.of("red-sgd", task=NAME, seed=0, epochs=3, batch_size=16, train_size=100, dtype="float64")
    whole, half, rest = train(run), Training(run), Training(run)
    half.advance()
    half.save(tmp_path / "half.pt")
    assert rest.restore(tmp_path / "half.pt")
    while not rest.over:
        rest.advance()
    assert rest.history().final["loss"] == whole.final["loss"]
    forgetful = Training(run)
    forgetful.restore(tmp_path / "half.pt")
    forgetful.problem.net.set_extra_state({})
    while not forgetful.over:
        forgetful.advance()
    assert forgetful.history().final["loss"] != whole.final["loss"]


def test_evaluation_is_that_of_the_network():
    plain, memory = (task(name).build(0, batch_size=16) for name in ("digits-convnet", NAME))
    assert memory.evaluate() == plain.evaluate()


def test_what_has_no_place_for_a_memory():
    with pytest.raises(InvalidInput, match="Linear: a memory lies before"):
        WithMemory(nn.Linear(2, 2), 4)
    with pytest.raises(InvalidInput, match="Sequential: a memory lies before"):
        WithMemory(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 4)
    run = Run.of("sgd", task=NAME, seed=0, epochs=1, batch_size=16, options={"lr": 0.1})
    assert "has a memory" in str(obstacle(run))
