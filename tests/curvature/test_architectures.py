"""RED trains whole architectures with the tape, and their curvature is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.curvature.tree import inner
from reprolib.optim import RED
from reprolib.tasks import networks

ARCHITECTURES = {
    "vgg11": (lambda: networks.vgg11(width=0.0625), (3, 32, 32)),
    "vgg11-bn": (lambda: networks.vgg11(width=0.0625, batch_norm=True), (3, 32, 32)),
    "resnet18": (lambda: networks.resnet18(width=4), (3, 32, 32)),
    "vit": (lambda: networks.VisionTransformer(width=12, heads=2, depth=2, patch=8), (3, 32, 32)),
    "gpt": (lambda: networks.LanguageModel(tokens=10, width=8, heads=2, depth=2, length=6), None),
}


def batch(shape, dtype, size=6):
    g = torch.Generator().manual_seed(1)
    if shape is None:
        tokens = torch.randint(10, (size, 7), generator=g)
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(size, *shape, generator=g).to(dtype), torch.randint(10, (size,), generator=g)


def losses(outputs, y):
    return F.cross_entropy(outputs.movedim(-1, 1), y, reduction="none")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tape_autodiff_and_double_reverse_agree(name):
    torch.manual_seed(0)
    make, shape = ARCHITECTURES[name]
    net = networks.initialised(make(), torch.Generator().manual_seed(0)).double()
    x, y = batch(shape, torch.float64)
    params = list(net.parameters())
    args = (lambda: net(x), lambda o: losses(o, y), params)
    tape = expand(*args, retain=True)
    d = tuple(g + 0.01 * torch.randn_like(g) for g in tape.gradient)
    q = tape.curvature(d)
    size = float(q.abs().max())
    assert abs(float(q.mean() - inner(tape.product(d), d))) < 1e-10 * size
    torch.testing.assert_close(q, expand(*args, backend="autodiff").curvature(d), rtol=0, atol=1e-10 * size)


@pytest.mark.parametrize("name", ["resnet18", "vit", "gpt"])
def test_red_trains_it(name):
    torch.manual_seed(0)
    make, shape = ARCHITECTURES[name]
    net = networks.initialised(make(), torch.Generator().manual_seed(0))
    x, y = batch(shape, torch.float32, size=12)
    opt = RED(net.parameters(), lr=0.5, preconditioner="rmsprop", check_every=1)
    history = [float(opt.step(lambda: net(x), lambda o: losses(o, y))) for _ in range(15)]
    assert opt.skipped == 0
    assert history[-1] < 0.7 * history[0]


def test_float32_is_exact_to_rounding_as_long_as_no_relu_changes_side():
    """Why a ResNet may lose 1e-4 in float32 where others lose 1e-6: rounding moves a few pre-activations across the kink.

    The network is then on another linear piece, its gradient differs by as much, and no curvature engine can help. With
    every ReLU on its side, the error is that of rounding.
    """
    compared = 0
    for seed in range(4):
        torch.manual_seed(seed)
        net = networks.resnet18(width=4)
        x, y = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
        answers, sides = [], []
        for dtype in (torch.float64, torch.float32):
            twin, inputs, seen = copy.deepcopy(net).to(dtype), x.to(dtype), []
            for m in twin.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.detach() > 0))
            args = (lambda net=twin, x=inputs: net(x), lambda o: losses(o, y), list(twin.parameters()))
            model = expand(*args)
            d = model.gradient if dtype == torch.float64 else d  # noqa: F821
            answers.append(model.curvature(tuple(v.to(dtype) for v in d)).double())
            sides.append(torch.cat([s.flatten() for s in seen]))
        if torch.equal(*sides):
            compared += 1
            assert (answers[0] - answers[1]).norm() < 1e-5 * answers[0].norm()
    assert compared
