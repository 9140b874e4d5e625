"""Slices through a loss: its true values on a line or a plane through θ, and the quadratic model that claims to know them.

Steps go downhill by convention: a slice is φ(a) = J(θ − Σ_k a_k d_k) for directions d_1, …, d_m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reprolib.curvature import expand
from reprolib.curvature.network import Network
from reprolib.curvature.tree import Tensors, inner
from reprolib.errors import InvalidInput

Closure = Callable[[], Tensor]
Loss = Callable[[Tensor], Tensor] | None


class Quadratic(NamedTuple):
    """The second-order model m(a) = J − aᵀs + ½ aᵀQa of a slice, s_k = ⟨∇J, d_k⟩ and Q_kl = d_kᵀ C d_l."""

    loss: Tensor  # ()      J(θ)
    slopes: Tensor  # (m,)    s
    matrix: Tensor  # (m, m)  Q

    def __call__(self, a: Tensor) -> Tensor:
        """m(a) for a of shape (..., m)."""
        return self.loss - a @ self.slopes + 0.5 * torch.sum((a @ self.matrix) * a, -1)

    def along(self, ts: Tensor) -> Tensor:
        """m(t d) for each t of ``ts``, if there is one direction."""
        return self(ts.unsqueeze(-1))

    @property
    def minimiser(self) -> Tensor | None:
        """Q⁻¹s (m,), or ``None`` if Q is not positive definite: then the model has no lowest point."""
        if bool((torch.linalg.eigvalsh(self.matrix) <= 0).any()):
            return None
        return torch.linalg.solve(self.matrix, self.slopes)


def losses_at(
    closure: Closure, loss: Loss, params: Tensors, directions: Sequence[Tensors], steps: Sequence[Sequence[float]]
) -> Tensor:
    """Per-sample losses (n, B) at θ − Σ_k a_k d_k for each of the n rows a of ``steps``.

    Parameters, buffers and the random state stay as they are, and every point sees the same dropout mask.
    """
    directions = [tuple(d) for d in directions]
    for a in steps:
        if len(a) != len(directions):
            raise InvalidInput(f"a step has {len(a)} lengths for {len(directions)} directions: give one for each")
    net, rows = Network(closure, loss, tuple(params)), []
    with torch.no_grad():
        for a in steps:
            moved = list(net.at)
            for length, d in zip(a, directions, strict=True):
                moved = [p - float(length) * v for p, v in zip(moved, d, strict=True)]
            rows.append(net.losses(*moved))
    return torch.stack(rows)


def loss_along(closure: Closure, loss: Loss, params: Tensors, d: Tensors, ts: Sequence[float] | Tensor) -> Tensor:
    """J(θ − t d) for each t of ``ts``, shape (n,)."""
    return losses_at(closure, loss, params, [d], [[float(t)] for t in ts]).mean(1)


def loss_on_plane(
    closure: Closure,
    loss: Loss,
    params: Tensors,
    d: Tensors,
    e: Tensors,
    ts: Sequence[float] | Tensor,
    us: Sequence[float] | Tensor,
) -> Tensor:
    """J(θ − t d − u e), shape (len(ts), len(us))."""
    steps = [[float(t), float(u)] for t in ts for u in us]
    return losses_at(closure, loss, params, [d, e], steps).mean(1).reshape(len(ts), len(us))


def quadratic(
    closure: Closure, loss: Loss, params: Tensors, directions: Sequence[Tensors], curvature: str = "hessian"
) -> Quadratic:
    """The quadratic model of the slice along ``directions``, from one product C d_k for each (see ``expand``).

    >>> θ = torch.tensor([3.0, 1.0], requires_grad=True)
    >>> m = quadratic(lambda: θ, lambda o: o**2 * torch.tensor([1.0, 2.0]), [θ], [(torch.tensor([1.0, 0.0]),)])
    >>> float(m.loss), m.slopes.tolist(), m.matrix.tolist(), m.minimiser.tolist()
    (5.5, [3.0], [[1.0]], [3.0])
    """
    model = expand(closure, loss, params, curvature, retain=True)
    products = [model.product(d) for d in directions]
    slopes = torch.stack([inner(model.gradient, d) for d in directions])
    matrix = torch.stack([torch.stack([inner(d, h) for h in products]) for d in directions])
    model.close()
    return Quadratic(model.loss, slopes, 0.5 * (matrix + matrix.T))
