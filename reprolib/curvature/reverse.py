"""Backend ``reverse``: every derivative in reverse mode alone, so right wherever autograd can differentiate twice.

Derivatives inside the closure, custom autograd functions, operations without forward derivative: PyTorch differentiates
them in reverse mode, and nothing else is asked of them here. g(w) = (∂y/∂θ)ᵀ w is linear in w, so its own derivative
along d is (∂y/∂θ) d (:func:`~reprolib.curvature.nested.tangent`); the same once more gives second derivatives of each
sample. It costs four to six gradients; the tape hands over to it what it cannot record.

Three or four derivatives in a row find kernels that treat as constant what they keep. So the mean over the samples is
compared with ⟨d, ∇²J e⟩, which needs two; where they disagree, or PyTorch has no third derivative, each sample is
differentiated twice by itself, at B times the price.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprolib.curvature.autodiff import gradient, hvp, run, summary
from reprolib.curvature.nested import tangent
from reprolib.curvature.network import Network, Second
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors, inner

__all__ = ["gradient", "hvp", "jvp", "run", "second", "summary"]  # these four need reverse mode alone in autodiff, too


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d, the tangent of the outputs (B, ...) along d."""
    with torch.enable_grad(), translated("the network"):
        at = _leaves(net)
        return tangent(net.outputs(*at), at, d, keep=False).detach()


def second(net: Network, d: Tensors, e: Tensors) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e, each (B,)."""
    with torch.enable_grad():
        at = _leaves(net)
        losses = net.losses(*at)
        with translated("the network"):
            slopes = tangent(losses, at, d, keep=True)
        try:
            curvature = tangent(slopes, at, e, keep=True).detach()
        except (RuntimeError, NotImplementedError):
            curvature = None
        if curvature is None or (net.options.check and not _means_agree(losses, at, d, e, curvature)):
            with translated("the gradient of the network"):
                curvature = torch.stack([_bent(x, at, d, e) for x in losses])
    return Second(slopes.detach(), curvature, losses.detach())


def _leaves(net: Network) -> tuple[Tensor, ...]:
    return tuple(p.detach().requires_grad_() for p in net.at)


def _bent(y: Tensor, at: Tensors, d: Tensors, e: Tensors) -> Tensor:
    """dᵀ∇²y e of one number y, a 0-d tensor."""
    pairs = zip(torch.autograd.grad(y, at, create_graph=True, allow_unused=True), e, strict=True)
    moving = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
    if not moving:
        return torch.zeros_like(y)
    g, v = zip(*moving, strict=True)
    return inner(torch.autograd.grad(g, at, v, retain_graph=True, materialize_grads=True), d).detach()


def _means_agree(losses: Tensor, at: Tensors, d: Tensors, e: Tensors, curvature: Tensor) -> bool:
    with translated("the gradient of the network"):
        expected = _bent(losses.mean(), at, d, e)
    size = curvature.abs().mean() + expected.abs()
    return not bool((curvature.mean() - expected).abs() > 10 * torch.finfo(losses.dtype).eps ** 0.5 * size)
