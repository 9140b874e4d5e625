"""The networks are the ones that are named, and start as stated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reprolib.lab import Run
from reprolib.tasks import TASKS, networks, task

SMALL = [name for name in TASKS if name.startswith(("digits", "prose"))]  # on data that is here


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


@pytest.mark.parametrize("name", SMALL)
def test_the_first_weights_of_a_task_depend_on_the_seed_alone(name):
    def weights(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)  # what ran before
        return dict(task(name).build(seed, batch_size=16).net.named_parameters())

    a, b, c = weights(0, before=1), weights(0, before=2), weights(1, before=1)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


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


def test_vgg_has_as_many_layers_as_its_name_says():
    for depth, build in ((11, networks.vgg11), (19, networks.vgg19)):
        net = build(7, width=1 / 16)
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth - 2  # one affine layer on top instead of three
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
        assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in networks.vgg11(width=1 / 16).modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in networks.vgg19(width=1 / 16).modules()) == 16
    assert (
        sum(p.numel() for p in networks.vgg11().parameters()) == 9_225_610
    )  # its published convolutions, and the head


def test_resnet18_is_the_published_one():
    net = networks.resnet18()
    assert sum(p.numel() for p in net.parameters()) == 11_173_962  # with a 3×3 stem and ten classes
    shapes = [
        m(torch.zeros(1, c, s, s)).shape[1:] for m, c, s in ((net[3], 64, 32), (net[5], 64, 32), (net[10], 512, 4))
    ]
    assert shapes == [(64, 32, 32), (128, 16, 16), (512, 4, 4)]


@pytest.mark.parametrize("name", SMALL)
def test_every_small_task_gives_one_loss_per_sample_that_is_its_mean(name):
    p = task(name).build(0, batch_size=16)
    x, y = next(iter(p.batches.epoch(0)))
    closure, loss = p.pair(x, y)
    assert loss(closure()).shape == (16,)
    found = p.evaluate(chunk=100)
    assert found == pytest.approx(p.evaluate(chunk=7), rel=1e-5)
    with torch.no_grad():
        outputs = p.net.eval()(p.inputs(p.held_out[0]))
    assert found["loss"] == pytest.approx(float(p.losses(outputs, *p.held_out).mean()), rel=1e-5)


def test_titles():
    assert task("cifar10-small-vgg11").title == "CIFAR-10 small VGG11"
    assert task("cifar100-vgg19-with-memory").title == "CIFAR-100 VGG19 with memory"
    assert task("cifar10-resnet18").title == "CIFAR-10 ResNet-18"
    assert task("cifar10-vit").title == "CIFAR-10 ViT"


def test_label_smoothing_is_for_training_only():
    p = task("digits-features-linear-with-tricks").build(0, batch_size=8, dtype=torch.float64)
    x, y = next(iter(p.batches.epoch(0)))
    closure, loss = p.pair(x, y)
    q = torch.log_softmax(closure(), 1)
    ε, K = 0.1, 10
    by_hand = -(1 - ε) * q.gather(1, y[:, None])[:, 0] - ε / K * q.sum(1)
    torch.testing.assert_close(loss(closure()), by_hand)
    torch.testing.assert_close(p.losses(closure(), x, y), -q.gather(1, y[:, None])[:, 0])


def test_the_first_test_samples_only():
    whole, few = (task("digits-classifier").build(0, batch_size=8, test_size=n) for n in (None, 50))
    assert torch.equal(few.held_out[0], whole.held_out[0][:50])
    run = {
        "method": "sgd",
        "task": "digits-classifier",
        "epochs": 1,
        "batch_size": 8,
        "seed": 0,
        "options": {"lr": 0.1},
    }
    assert Run.of(**run).key != Run.of(**run, test_size=50).key
    assert "test_size" not in Run.of(**run).specification  # the keys of runs that were made before it
