"""What the tests of the optimizers share: small problems in float64, and a watch on what reads a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from reprolib.tasks import networks

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def random_net(seed: int = 0, batch: int = 8):
    """A small network, its batches' closures and losses, in float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(batch, 4).double(), torch.randint(0, 3, (batch,))) for _ in range(12)]
    return net, batches


def train(net, batches, opt, steps: int | None = None) -> list[Tensor]:
    path = []
    for x, y in batches[:steps]:
        opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y, reduction="none"))
        path.append(parameters(net))
    return path


def parameters(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


class NoLooking(TorchDispatchMode):
    """Forbids what makes the host wait for a device: reading a number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        return func(*args, **(kwargs or {}))


# ---- explicit matrices, by repeated reverse mode: not the package's channel


def jacobian(outputs: Tensor, params: Sequence[Tensor]) -> Tensor:
    """A, one row per output, all samples below each other."""
    rows = [torch.autograd.grad(o, params, retain_graph=True, materialize_grads=True) for o in outputs.flatten()]
    return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows]).detach()


def softmax_blocks(outputs: Tensor) -> Tensor:
    """Λ of the mean cross-entropy, block diagonal: (diag p − ppᵀ)/B."""
    p = torch.softmax(outputs.detach(), 1)
    return torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / len(p)


def ggn(net: nn.Module, x: Tensor) -> Tensor:
    """G = AᵀΛA of the cross-entropy."""
    outputs = net(x)
    A = jacobian(outputs, list(net.parameters()))
    return A.T @ softmax_blocks(outputs) @ A


def gradient(net: nn.Module, x: Tensor, y: Tensor, decay: float = 0.0) -> Tensor:
    """∇J of the cross-entropy, with the L² term, flat."""
    loss = F.cross_entropy(net(x), y)
    g = torch.cat([v.flatten() for v in torch.autograd.grad(loss, list(net.parameters()))])
    return g + decay * parameters(net)


ARCHITECTURES = ("convolutions", "vision transformer", "language model")


def architecture(kind: str):
    """A network with batch-norm and dropout, with attention, or over tokens with losses of their own; a batch, its loss."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    loss = lambda o: F.cross_entropy(o, y, reduction="none")
    if kind == "convolutions":
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(200, 10),
        )
    elif kind == "vision transformer":
        net = networks.VisionTransformer(width=24, heads=2, depth=2, patch=8)
    else:
        net, x = networks.LanguageModel(tokens=12, width=16, heads=2, depth=2, length=8), torch.randint(12, (6, 9))
        x, y = x[:, :-1], x[:, 1:]
        loss = lambda o: F.cross_entropy(o.transpose(1, 2), y, reduction="none")
    return net, x, loss
