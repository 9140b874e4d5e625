"""The networks are the ones that are named, and start as stated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reprolib.tasks import networks, task


def sizes(net: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]


def test_shapes():
    assert sizes(networks.lenet_dense()) == [(784, 300), (300, 100), (100, 10)]
    assert sizes(networks.autoencoder()) == [
        (784, 1000), (1000, 500), (500, 250), (250, 30), (30, 250), (250, 500), (500, 1000), (1000, 784),
    ]  # fmt: skip
    assert networks.lenet5()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert networks.autoencoder()(torch.zeros(2, 1, 28, 28)).shape == (2, 784)


def test_the_code_and_the_output_of_the_autoencoder_are_linear():
    layers = list(networks.autoencoder())
    linear = [i for i, m in enumerate(layers) if isinstance(m, nn.Linear)]
    followed = [i + 1 < len(layers) and isinstance(layers[i + 1], nn.ELU) for i in linear]
    assert followed == [True, True, True, False, True, True, True, False]


def test_initialisation_is_glorot_uniform_and_depends_on_the_seed_alone():
    torch.manual_seed(1)
    a = networks.initialised(networks.autoencoder(), torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    b = networks.initialised(networks.autoencoder(), torch.Generator().manual_seed(0))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    for m in a.modules():
        if isinstance(m, nn.Linear):
            bound = math.sqrt(6 / (m.in_features + m.out_features))
            assert m.weight.abs().max() <= bound
            assert m.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert not m.bias.any()


def test_standardised_inputs():
    x = task("digits-classifier").build(0, batch_size=64).batches.x
    assert abs(x.mean().item()) < 1e-6
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    y = task("digits-autoencoder").build(0, batch_size=64).batches.x
    assert y.min() == 0
    assert y.max() == 1


def test_losses_are_per_sample():
    for name in ("digits-classifier", "digits-autoencoder"):
        problem = task(name).build(0, batch_size=32)
        x, y = next(iter(problem.batches.epoch(0)))
        closure, loss = problem.pair(x, y)
        losses = loss(closure())
        assert losses.shape == (32,)
        if name == "digits-autoencoder":
            torch.testing.assert_close(losses, (problem.net(x) - x.flatten(1)).square().mean(1))
