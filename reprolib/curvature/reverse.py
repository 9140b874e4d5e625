"""Backend ``reverse``: every derivative in reverse mode alone, so right wherever autograd can differentiate twice.

Derivatives inside the closure, custom autograd functions, scripted modules, operations without forward derivative: PyTorch
differentiates them in reverse mode, and nothing else is asked of them here. g(w) = (∂y/∂θ)ᵀ w is linear in w, so its own
derivative along d is (∂y/∂θ) d (:func:`~reprolib.curvature.nested.tangent`); the same once more gives second derivatives
of each sample. It costs four to six gradients; the tape hands over to it what it cannot record. Every answer runs the
closure again, on the parameters themselves, whose graph nothing escapes.

Three or four derivatives in a row find kernels that treat as constant what they keep. So the mean over the samples is
compared with ⟨d, ∇²J e⟩, which needs two; where they disagree, or PyTorch has no third derivative, each sample is
differentiated twice by itself, at B times the price.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.curvature.autodiff import gradient, run, twice
from reprolib.curvature.nested import tangent
from reprolib.curvature.network import Network, Second
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors, inner

__all__ = ["gradient", "hvp", "jvp", "run", "second", "summary"]  # the ordinary pass is that of autodiff


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d, the tangent of the outputs (B, ...) along d."""
    with torch.enable_grad(), translated("the network"):
        return tangent(net.outputs(*net.params), net.params, d, keep=False).detach()


def second(net: Network, d: Tensors, e: Tensors) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e, each (B,)."""
    with torch.enable_grad(), translated("the network"):
        losses = net.losses(*net.params)
        slopes = tangent(losses, net.params, d, keep=True)
        try:
            curvature = tangent(slopes, net.params, e, keep=True).detach()
        except (RuntimeError, NotImplementedError):
            curvature = None
        if curvature is None or (net.options.check and not _mean_is_right(losses, net.params, d, e, curvature)):
            curvature = torch.stack([_bent(x, net.params, d, e) for x in losses])
    return Second(slopes.detach(), curvature, losses.detach())


def hvp(net: Network, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d): the gradient, differentiated once more along d (Pearlmutter, 1994)."""
    with torch.enable_grad():
        return twice(net.losses(*net.params), net.params, d)


def summary(net: Network, d: Tensors, groups: Sequence[Sequence[int]], third: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of ψ, with d_k the part of d in group k: ⟨∇J, d_k⟩ (S,), d_kᵀ∇²J d_l (S, S), ∂³J[d_k, d_k, d_k] (S,)."""
    blocks = [tuple(v if i in g else torch.zeros_like(v) for i, v in enumerate(d)) for g in groups]
    rows, cubes = [], []
    with torch.enable_grad(), translated("the gradient of the network"):
        slopes = _slopes(net.losses(*net.params).mean(), net.params, blocks, True)
        for k, slope in enumerate(slopes):
            row = _slopes(slope, net.params, blocks, third)
            rows.append(row.detach())
            if third:
                cubes.append(_slopes(row[k], net.params, blocks[k : k + 1], False).detach()[0])
    return slopes.detach(), torch.stack(rows), torch.stack(cubes) if third else torch.full_like(rows[0], float("nan"))


def _slopes(y: Tensor, at: Tensors, directions: Sequence[Tensors], keep: bool) -> Tensor:
    """⟨∇y, v⟩ of the number y for each v."""
    if not y.requires_grad:
        return y.new_zeros(len(directions))
    g = torch.autograd.grad(y, at, create_graph=keep, retain_graph=True, materialize_grads=True)
    return torch.stack([inner(g, v) for v in directions])


def _bent(y: Tensor, at: Tensors, d: Tensors, e: Tensors) -> Tensor:
    """dᵀ∇²y e of the number y, a 0-d tensor."""
    return _slopes(_slopes(y, at, [e], True)[0], at, [d], False)[0].detach()


def _mean_is_right(losses: Tensor, at: Tensors, d: Tensors, e: Tensors, curvature: Tensor) -> bool:
    expected = _bent(losses.mean(), at, d, e)
    size = curvature.abs().mean() + expected.abs()
    return bool((curvature.mean() - expected).abs() <= 10 * torch.finfo(losses.dtype).eps ** 0.5 * size)
