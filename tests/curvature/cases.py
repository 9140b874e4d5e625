"""Networks × losses, small, in float64, each from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """A block with fused attention, layer norm and a residual."""

    def __init__(self, width: int = 4, heads: int = 2):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w)
        return x + self.out(y)


class Tied(nn.Module):
    """The same weight used twice."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(5, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.tanh(x @ self.w) @ self.w.T))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Softplus(beta=5), nn.Linear(4, 3))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    )


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Dropout(0.4), nn.Linear(6, 3))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.ELU(), nn.Linear(4, 3))


def attention() -> nn.Module:
    return nn.Sequential(Attention(), Attention(), nn.Flatten(), nn.Linear(12, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (5,)),
    "conv": (conv, (1, 4, 4)),
    "batch-norm": (batch_norm, (5,)),
    "dropout": (dropout, (5,)),
    "layer-norm": (layer_norm, (5,)),
    "attention": (attention, (3, 4)),
    "tied": (Tied, (5,)),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda o, y: F.cross_entropy(o, y, reduction="none"),
    "squared error": lambda o, y: F.mse_loss(o, F.one_hot(y, 3).to(o), reduction="none"),  # (B, 3): averaged over the 3
}


@dataclass
class Case:
    """A network with a batch, a loss and two directions."""

    net: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor], Tensor]
    params: list[Tensor]
    d: tuple[Tensor, ...]
    e: tuple[Tensor, ...]

    def closure(self) -> Tensor:
        return self.net(self.x)


def case(
    network: str, loss: str = "cross-entropy", *, dtype: torch.dtype = torch.float64, batch: int = 6, seed: int = 0
) -> Case:
    torch.manual_seed(seed)
    make, shape = NETWORKS[network]
    net = make().to(dtype)  # everything is drawn in float32, so that float64 is the same case
    x, y = torch.randn(batch, *shape).to(dtype), torch.randint(0, 3, (batch,))
    params = list(net.parameters())
    d, e = (tuple(torch.randn(p.shape).to(dtype) for p in params) for _ in range(2))
    return Case(net, x, y, lambda o: LOSSES[loss](o, y), params, d, e)


class Squash(torch.autograd.Function):
    """A custom function: what it does with the parameter is invisible from outside."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w.tanh()

    @staticmethod
    def backward(ctx, grad):
        (w,) = ctx.saved_tensors
        return grad * (1 - w.tanh() ** 2)
