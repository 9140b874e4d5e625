"""The networks of the experiments, each with its initialisation stated.

All weights are Glorot-uniform (Glorot & Bengio, 2010: variance 2 / (fan_in + fan_out)), all biases zero, drawn from the
generator that is passed, so a network is a function of its seed. Activations have two continuous derivatives where a
method needs them (tanh, softplus); the autoencoder keeps the paper's ELU, which has one (erratum E-red-10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


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


def lenet5(classes: int = 10, pool: Callable[[int], nn.Module] = nn.AvgPool2d) -> nn.Module:
    """LeNet-5 for 28×28 images (LeCun et al., 1998): tanh and average pooling, so twice differentiable."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        pool(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        pool(2),
        dense([400, 120, 84, classes], nn.Tanh),
    )


def autoencoder(pixels: int = 784, hidden: Sequence[int] = (1000, 500, 250, 30)) -> nn.Module:
    """The deep autoencoder of Hinton & Salakhutdinov (2006) and its mirror image, ELU inside, linear code and output."""
    sizes = [pixels, *hidden, *reversed(hidden[:-1]), pixels]
    return dense(sizes, nn.ELU, linear_after=[len(hidden) - 1])


def convnet(
    channels: Sequence[int] = (3, 16, 32, 64), pixels: int = 32, classes: int = 10, *, batch_norm: bool = False
) -> nn.Module:
    """A small convolutional network: 3×3 convolutions that halve the image, softplus(β = 5), one affine layer on top.

    The smallest thing that has what larger ones have, with or without batch-norm between convolution and activation.
    """
    layers: list[nn.Module] = []
    for wide, out in pairwise(channels):
        layers += (
            [nn.Conv2d(wide, out, 3, 2, 1, bias=not batch_norm)]
            + [nn.BatchNorm2d(out)] * batch_norm
            + [nn.Softplus(beta=5)]
        )
        pixels = -(-pixels // 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * pixels**2, classes))


VGG = {  # channels of each convolution; 0: pool
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    19: (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0),
}


def vgg(depth: int, classes: int = 10, width: float = 1.0, *, batch_norm: bool = False) -> nn.Module:
    """VGG for 32×32 images (Simonyan & Zisserman, 2015) with softplus(β = 5), max pooling and one affine layer on top.

    ``width`` scales the channels; the paper of RED states neither head nor batch-norm. Without the latter, VGG19 does not
    leave its start.
    """
    layers: list[nn.Module] = []
    channels = 3
    for wide in VGG[depth]:
        if wide == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        out = int(wide * width)
        layers += [nn.Conv2d(channels, out, 3, padding=1)] + [nn.BatchNorm2d(out)] * batch_norm + [nn.Softplus(beta=5)]
        channels = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))


def vgg11(classes: int = 10, width: float = 1.0, *, batch_norm: bool = False) -> nn.Module:
    """VGG11, see :func:`vgg`."""
    return vgg(11, classes, width, batch_norm=batch_norm)


def vgg19(classes: int = 100, width: float = 1.0, *, batch_norm: bool = True) -> nn.Module:
    """VGG19, see :func:`vgg`."""
    return vgg(19, classes, width, batch_norm=batch_norm)


class ResidualBlock(nn.Module):
    """x ↦ relu(conv-norm(relu(conv-norm(x))) + shortcut(x)) (He et al., 2016)."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and channels == out
        projection = [] if same else [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H/stride, W/stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: Sequence[int], classes: int = 10, width: int = 64, channels: int = 3) -> nn.Module:
    """A residual network for small images (He et al., 2016): 3×3 stem, no first pooling, batch-norm, ReLU.

    ``blocks`` has the factor on ``width`` of each residual block; where it grows the image is halved.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = 1
    for factor in blocks:
        layers.append(ResidualBlock(before * width, factor * width, 1 if factor == before else 2))
        before = factor
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before * width, classes))


def resnet18(classes: int = 10, width: int = 64) -> nn.Module:
    """ResNet-18 for 32×32 images, see :func:`resnet`."""
    return resnet((1, 1, 2, 2, 4, 4, 8, 8), classes, width)


class TransformerBlock(nn.Module):
    """x ↦ y + mlp(norm(y)), y = x + attention(norm(x)), with GELU (Vaswani et al., 2017; pre-norm)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        b, t, width = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, width))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A small vision transformer for small images (Dosovitskiy et al., 2021): patches, position, blocks, mean over tokens."""

    def __init__(
        self,
        classes: int = 10,
        width: int = 192,
        heads: int = 3,
        depth: int = 6,
        patch: int = 4,
        pixels: int = 32,
        channels: int = 3,
    ):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (pixels // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, pixels, pixels) -> (B, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class LanguageModel(nn.Module):
    """A small GPT: token and position embeddings, causal blocks, one affine layer on top (Radford et al., 2018)."""

    def __init__(self, tokens: int = 64, width: int = 64, heads: int = 4, depth: int = 2, length: int = 32):
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers (B, T) -> logits of the next token (B, T, tokens)."""
        return self.head(self.norm(self.blocks(self.token(x) + self.position[: x.shape[1]])))
