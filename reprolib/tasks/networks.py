"""The networks of the experiments, each with its initialisation stated.

All weights are Glorot-uniform (Glorot & Bengio, 2010: variance 2 / (fan_in + fan_out)), all biases zero, drawn from the
generator that is passed, so a network is a function of its seed. Activations have two continuous derivatives where a
method needs them (tanh, softplus); the autoencoder keeps the paper's ELU, which has one (erratum E-red-10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn


def initialised(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """``net`` with Glorot-uniform weights and zero biases, drawn in the order of ``net.modules()``."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def dense(sizes: Sequence[int], activation: Callable[[], nn.Module], linear_after: Sequence[int] = ()) -> nn.Sequential:
    """Affine layers ``sizes[0] → … → sizes[-1]`` on the flattened input, ``activation`` between them.

    ``linear_after`` lists layers (from 0) whose output stays linear although it is not the last.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    last = len(sizes) - 2
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(n_in, n_out))
        if i != last and i not in linear_after:
            layers.append(activation())
    return nn.Sequential(*layers)


def lenet_dense(pixels: int = 784, classes: int = 10) -> nn.Module:
    """The dense LeNet (LeNet-300-100) with tanh: our reading of the cell "LeNet / Dense" of RED's Table 3."""
    return dense([pixels, 300, 100, classes], nn.Tanh)


def lenet5(classes: int = 10) -> nn.Module:
    """LeNet-5 for 28×28 images (LeCun et al., 1998): tanh and average pooling, so twice differentiable."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        dense([400, 120, 84, classes], nn.Tanh),
    )


def autoencoder(pixels: int = 784, hidden: Sequence[int] = (1000, 500, 250, 30)) -> nn.Module:
    """The deep autoencoder of Hinton & Salakhutdinov (2006) and its mirror image, ELU inside, linear code and output."""
    sizes = [pixels, *hidden, *reversed(hidden[:-1]), pixels]
    return dense(sizes, nn.ELU, linear_after=[len(hidden) - 1])
