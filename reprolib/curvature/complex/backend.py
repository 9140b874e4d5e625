"""Backend ``complexstep``: derivatives from the imaginary part of an ordinary evaluation at θ + i h d.

For a function that is analytic at θ,

    f(θ + i h d) = f(θ) + i h Df d − ½ h² D²f[d, d] − …,     so     Df d = Im f(θ + i h d)/h · (1 + O(h²)),

and unlike in a difference quotient nothing is subtracted: with h = 1e-20 the error is that of rounding. Applied to the
outputs this is a tangent, applied to the gradient a Hessian product: ∇²J d = Im ∇J(θ + i h d)/h (Squire & Trapp, 1998;
CSDD). PyTorch's reverse mode returns the conjugate of the holomorphic gradient. Second derivatives of every single sample
come from forward mode along e through the evaluation at θ + i h d: Im (∂/∂t) J_s(θ + t e + i h d)/h.

(a + i h b)(c + i h d) = ac − h²bd + i h (ad + bc): as h → 0 this is the arithmetic of dual numbers, so the complex step is
forward mode, at the price of complex arithmetic. Operations without a complex kernel are continued in ``analytic/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import jvp as forward

from reprolib.curvature.autodiff import gradient, run
from reprolib.curvature.complex.analytic import call, real
from reprolib.curvature.network import Network, Second
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation

__all__ = ["gradient", "hvp", "jvp", "run", "second", "summary"]  # the ordinary pass is that of autodiff

# h‖d‖. Its square must vanish beside 1, also where the network amplifies d; h·b must not underflow where it attenuates
STEP = {torch.float64: 1e-20, torch.float32: 1e-12}


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d, the tangent of the outputs (B, ...) along d: Im f(θ + i h d)/h."""
    h = _step(d)
    with torch.enable_grad():  # under the user's no_grad values are constants; nothing here requires grad
        return _slope(net.outputs(*_moved(net.at, d, h), call=call), h).detach()


def second(net: Network, d: Tensors, e: Tensors) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e, each (B,): forward mode along e at θ + i h d."""
    h = _step(d)
    with torch.enable_grad():
        losses, along_e = forward(partial(net.losses, call=call), _moved(net.at, d, h), _complex(e))  # type: ignore[misc]
    return Second(_slope(losses, h).detach(), _slope(along_e, h).detach(), real(losses).detach())


def hvp(net: Network, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d): real part, and imaginary part over h, of the gradient at θ + i h d."""
    h = _step(d)
    with torch.enable_grad():
        leaves = tuple(z.requires_grad_() for z in _moved(net.at, d, h))
        g = _gradient(net.losses(*leaves, call=call).mean(), leaves)
    return tuple(z.real for z in g), tuple(z.imag / h for z in g)


def summary(net: Network, d: Tensors, groups: Sequence[Sequence[int]], third: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives at η = 0 of ψ(η) = J with θ_i + η_{group of i} d_i in the place of θ_i.

    Row k of ∇²ψ is Im ∇ψ(i h e_k)/h, one complex gradient. ∂³ψ/∂η_k³ = Im (∂²/∂t²) ψ((t + i h) e_k)/h, with forward mode
    nested in forward mode. Returns ∇ψ (S,), ∇²ψ (S, S) and the third derivatives (S,), NaN if not asked for.
    """
    group_of = {i: k for k, members in enumerate(groups) for i in members}

    def psi(eta: Tensor) -> Tensor:
        at = [p + eta[group_of[i]] * d[i] if i in group_of else p for i, p in enumerate(net.at)]
        return net.losses(*at, call=call).mean()

    gradients, rows, cubes = [], [], []
    for k, members in enumerate(groups):
        h = _step([d[i] for i in members])
        unit = torch.zeros(len(groups), dtype=d[0].dtype, device=d[0].device)
        unit[k] = 1
        with torch.enable_grad():
            eta = torch.complex(torch.zeros_like(unit), h * unit)
            (g,) = _gradient(psi(leaf := eta.clone().requires_grad_()), (leaf,))
            gradients.append(g.real)
            rows.append(g.imag / h)
            if third:
                cubes.append(_slope(_along(partial(_along, psi, v=unit + 0j), eta, unit + 0j), h).detach())
    nan = torch.full_like(gradients[0], float("nan"))
    return gradients[0], torch.stack(rows), torch.stack(cubes) if third else nan


def _step(d: Tensors) -> float:
    """The h of direction d."""
    if d[0].dtype not in STEP:
        raise UnsupportedOperation(f"the complex step has no complex numbers for {d[0].dtype}: use float64 or float32")
    size = float(torch.stack([torch.linalg.vector_norm(v, dtype=torch.float64) for v in d]).norm())
    return STEP[d[0].dtype] / size if size > 0 else STEP[d[0].dtype]


def _moved(at: Tensors, d: Tensors, h: float) -> tuple[Tensor, ...]:
    """θ + i h d."""
    return tuple(torch.complex(p, h * v) for p, v in zip(at, d, strict=True))


def _complex(e: Tensors) -> tuple[Tensor, ...]:
    return tuple(torch.complex(v, torch.zeros_like(v)) for v in e)


def _slope(y: Tensor, h: float) -> Tensor:
    """Im y/h; zero where nothing moved."""
    return y.imag / h if y.is_complex() else torch.zeros_like(y)


def _along(f, x: Tensor, v: Tensor) -> Tensor:
    """∂f(x + t v)/∂t."""
    return forward(f, (x,), (v,))[1]


def _gradient(y: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The holomorphic gradient; what reverse mode returns is its conjugate."""
    if not y.requires_grad:
        return tuple(torch.zeros_like(z) for z in x)
    with translated("the gradient of the network"):
        conjugate = torch.autograd.grad(y, x, torch.ones_like(y), materialize_grads=True)
    return tuple(g.conj().resolve_conj() for g in conjugate)
