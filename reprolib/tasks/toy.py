"""Losses with known answers, written so that a reader can check every derivative by hand.

Each returns per-sample losses ``(B,)``, as the closure of ``optimizer.step(lambda: loss(theta))`` may do; J is their mean.
Nothing here is random unless a generator is passed, and the dtype is that of what is passed: use float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.errors import InvalidInput


def sqrt_one_plus(theta: Tensor) -> Tensor:
    """√(1 + ‖θ‖²), one sample ``(1,)``. Strictly convex, minimum 1 at 0; in one dimension Newton's step is θ → −θ³.

    J′ = θ / √(1+θ²) and J″ = (1+θ²)^(−3/2): far from 0 the curvature vanishes and the slope does not.

    Source: ``gournay2022``, section 2.2.

    >>> sqrt_one_plus(torch.tensor([0.75], dtype=torch.float64))
    tensor([1.2500], dtype=torch.float64)
    """
    return (1 + theta.square().sum()).sqrt().reshape(1)


def stochastic_quadratic(theta: Tensor, x: Tensor) -> Tensor:
    """½‖θ − x_s‖² ``(B,)`` for samples ``x`` of shape ``(B, *theta.shape)``. Every H_s is the identity.

    The gradient of a batch is θ minus the batch mean; the minimiser of the expectation is E[X].

    Source: ``gournay2022``, section 2.2.

    >>> stochastic_quadratic(torch.zeros(2), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([12.5000,  2.0000])
    """
    if x.shape[1:] != theta.shape:
        raise InvalidInput(f"x is {tuple(x.shape)}: its samples must be shaped like theta, {tuple(theta.shape)}")
    return 0.5 * (theta - x).flatten(1).square().sum(1)


def quadratic(theta: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """½⟨θ, A_s θ⟩ − ⟨b_s, θ⟩ ``(B,)`` for symmetric ``A`` ``(B, P, P)`` and ``b`` ``(B, P)``; ∇J_s = A_s θ − b_s, H_s = A_s.

    One matrix ``(P, P)`` and one vector ``(P,)`` are a batch of one.

    >>> quadratic(torch.tensor([1.0, 2.0]), torch.eye(2), torch.tensor([1.0, 0.0]))
    tensor([1.5000])
    """
    A, b = (A[None], b[None]) if A.dim() == 2 else (A, b)
    if theta.dim() != 1 or A.shape != (len(A), len(theta), len(theta)) or b.shape != A.shape[:2]:
        raise InvalidInput(
            f"theta {tuple(theta.shape)}, A {tuple(A.shape)}, b {tuple(b.shape)}: give (P,), (B, P, P) and (B, P)"
        )
    return 0.5 * torch.einsum("i,sij,j->s", theta, A, theta) - b @ theta


def linear(theta: Tensor, slopes: Tensor) -> Tensor:
    """⟨a_s, θ⟩ ``(B,)`` for ``slopes`` a of shape ``(B, P)``: a loss without curvature.

    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([1., 2.])
    """
    return slopes @ theta


def with_spectrum(eigenvalues: Sequence[float], generator: torch.Generator) -> Tensor:
    """A symmetric float64 matrix QΛQᵀ with these eigenvalues, Q orthogonal and drawn from the ``generator``.

    >>> A = with_spectrum([1.0, 2.0, 10.0], torch.Generator().manual_seed(0))
    >>> torch.linalg.eigvalsh(A).round(decimals=9)
    tensor([ 1.,  2., 10.], dtype=torch.float64)
    """
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    draws = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    Q, _ = torch.linalg.qr(draws)
    A = Q * values @ Q.T
    return 0.5 * (A + A.T)
