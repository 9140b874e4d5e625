"""Conjugate gradients on a Newton system, left where the curvature is negative (CSDD, Algorithm 1, lines 10–28)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from reprolib.curvature.tree import Tensors, inner

FLAT, FLOOR = 1e-8, 0.01  # a curvature below FLAT counts as FLOOR (lines 18–19)
PRINTED = frozenset({"alpha", "floor"})  # lines that can be had as the paper prints them


class Krylov(NamedTuple):
    """What :func:`truncated_cg` returns."""

    direction: tuple[Tensor, ...]  # Δ
    image: tuple[Tensor, ...]  # HΔ = −g − r, without a further product
    iterations: int
    stopped: str  # "tolerance", "iterations", "negative curvature" or "not finite"
    floored: int  # iterations along flat directions


def truncated_cg(
    product: Callable[[Tensors], Tensors],
    g: Tensors,
    start: Tensors | None = None,
    *,
    max_iter: int = 20,
    tolerance: float = 1e-3,
    truncate: bool = True,
    printed: Collection[str] = (),
) -> Krylov:
    """Δ with HΔ ≈ −g: minimises gᵀΔ + ½ΔᵀHΔ over growing Krylov spaces, as long as their directions curve upwards.

    Args:
        product: p -> Hp, a symmetric H.
        g: the gradient, a tuple of tensors.
        start: Δ₀, at the price of one more product; ``None``: 0. From 0 on, ⟨g, Δ⟩ ≤ 0 and ‖Δ‖ grows with each
            iteration.
        max_iter: K; the result is exact after as many iterations as H has different eigenvalues.
        tolerance: τ; ends when ‖r‖ = ‖g + HΔ‖ ≤ τ‖g‖. (Not τ‖r₀‖: from a far start that would ask for less.)
        truncate: leave when pᵀHp < 0; ``False`` is plain CG, which may go anywhere then.
        printed: ``"alpha"``, α = ‖r‖/κ (E-cs-3), ``"floor"``, thresholds without ‖p‖² (E-cs-4): as in the paper.

    Source: key ``shen2021`` in references.bib, Algorithm 1, corrected.

    >>> truncated_cg(lambda p: (2 * p[0],), (torch.tensor([2.0, 4.0]),)).direction
    (tensor([-1., -2.]),)
    """
    Δ = tuple(torch.zeros_like(x) if start is None else start[i] for i, x in enumerate(g))
    r = tuple(-x for x in g) if start is None else tuple(-x - y for x, y in zip(g, product(Δ), strict=True))
    p, rr = r, float(inner(r, r))
    enough = tolerance**2 * float(inner(g, g))
    iterations = floored = 0
    while True:
        if rr <= enough:
            stopped = "tolerance"
            break
        if iterations == max_iter:
            stopped = "iterations"
            break
        q = product(p)
        κ, pp = float(inner(p, q)), float(inner(p, p))  # line 14; its second product is redundant (E-cs-9)
        if not math.isfinite(κ):
            stopped = "not finite"
            break
        if truncate and κ < 0:
            stopped = "negative curvature"
            break
        # lines 18–19: a temporary curvature for flat directions. κ scales as ‖p‖², and so must what it is compared with
        if "floor" in printed:
            flat, floor = 0 < κ < FLAT, FLOOR * math.sqrt(pp)
        else:
            flat, floor = 0 <= κ < FLAT * pp, FLOOR * pp
        if flat:
            κ, floored = floor, floored + 1
        # line 21, corrected: r_{i+1} ⟂ r_i needs ‖r‖²
        α = _quotient(math.sqrt(rr) if "alpha" in printed else rr, κ)
        Δ, r = _plus(Δ, α, p), _plus(r, -α, q)  # lines 22, 24
        before, rr = rr, float(inner(r, r))
        p = _plus(r, rr / before, p)  # lines 25, 26
        iterations += 1
    return Krylov(Δ, tuple(-x - y for x, y in zip(g, r, strict=True)), iterations, stopped, floored)


def _plus(x: Tensors, a: float, y: Tensors) -> tuple[Tensor, ...]:
    """The sum x + a y."""
    return tuple(torch.add(u, v, alpha=a) for u, v in zip(x, y, strict=True))


def _quotient(a: float, b: float) -> float:
    return a / b if b else math.inf
