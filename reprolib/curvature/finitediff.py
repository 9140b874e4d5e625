"""Backend ``finitediff``: derivatives by difference quotients, for comparison and as a check that shares nothing.

It needs nothing of the network but its values (and, for Hessian products, its gradient), and pays with accuracy. Along a
direction d the step in parameter space is t = c (1 + ‖θ‖), so h = t/‖d‖ in units of d. Truncation falls and rounding grows
with a smaller c; the best c balances them (ε is the rounding unit, errors are relative to derivatives of order one):

    quotient                                   truncation   rounding   best c     error
    forward    (f(θ + hd) − f(θ))/h            c            ε/c        ε^(1/2)    ε^(1/2)
    central    (f(θ + hd) − f(θ − hd))/2h      c²           ε/c        ε^(1/3)    ε^(2/3)
    second     over the four corners           c²           ε/c²       ε^(1/4)    ε^(1/2)
    second     forward corners                 c            ε/c²       ε^(1/3)    ε^(1/3)

in float64 1.5e-8, 4e-11, 1.5e-8 and 6e-6. Kinks (ReLU, max-pooling) between the points cost more. Every function takes the
``scheme``, "central" or "forward", and the step ``c`` instead of the best one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.curvature.autodiff import gradient, run
from reprolib.curvature.network import Network, Second
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors, inner
from reprolib.errors import UnknownName

__all__ = ["gradient", "hvp", "jvp", "run", "second", "summary"]  # the ordinary pass is that of autodiff

# scheme -> the best c is ε to this power, for first and for second differences
FIRST = {"central": 1 / 3, "forward": 1 / 2}
SECOND = {"central": 1 / 4, "forward": 1 / 3}


def jvp(net: Network, d: Tensors, scheme: str = "central", c: float | None = None) -> Tensor:
    """A d, the change of the outputs (B, ...) along d; error ε^(2/3), forward ε^(1/2)."""
    h = _step(net, d, FIRST, scheme, c)
    with torch.no_grad():
        return _quotient(lambda t: net.outputs(*_moved(net.at, (t, d))), h, scheme)


def second(net: Network, d: Tensors, e: Tensors, scheme: str = "central", c: float | None = None) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e, each (B,); the latter by a second difference, error ε^(1/2).

    [f(++) − f(+−) − f(−+) + f(−−)]/(4 h_d h_e) over the corners θ ± h_d d ± h_e e; "forward", error ε^(1/3), is
    [f(++) − f(+0) − f(0+) + f(00)]/(h_d h_e).
    """
    h, k = _step(net, d, SECOND, scheme, c), _step(net, e, SECOND, scheme, c)
    low, width = (-1, 2) if scheme == "central" else (0, 1)

    def corner(s: int, t: int) -> Tensor:
        return net.losses(*_moved(net.at, (s * h, d), (t * k, e)))

    with torch.no_grad():
        losses = net.losses(*net.at)
        slopes = _quotient(lambda t: net.losses(*_moved(net.at, (t, d))), _step(net, d, FIRST, scheme, None), scheme)
        curvature = (corner(1, 1) - corner(1, low)) - (corner(low, 1) - corner(low, low))
    return Second(slopes, curvature / (width * h) / (width * k), losses)


def hvp(
    net: Network, d: Tensors, scheme: str = "central", c: float | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d): a difference of gradients, error ε^(2/3), forward ε^(1/2); the gradient itself is exact."""
    h = _step(net, d, FIRST, scheme, c)
    flat = _quotient(lambda t: _flat(_gradient(net, _moved(net.at, (t, d)))), h, scheme)
    parts = flat.split([p.numel() for p in net.at])
    return _gradient(net, net.at), tuple(x.view_as(p) for x, p in zip(parts, net.at, strict=True))


def summary(
    net: Network,
    d: Tensors,
    groups: Sequence[Sequence[int]],
    third: bool,
    scheme: str = "central",
    c: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives at η = 0 of ψ(η) = J with θ_i + η_{group of i} d_i in the place of θ_i, by differences of ∇ψ.

    ∇ψ (S,) is exact; ∇²ψ (S, S) has error ε^(2/3) (forward ε^(1/2)); the third derivatives (S,), by second differences of
    ∂ψ/∂η_k, have ε^(1/2) (forward ε^(1/3)), and are NaN if not asked for.
    """
    blocks = [tuple(v if i in g else torch.zeros_like(v) for i, v in enumerate(d)) for g in groups]

    def slopes(t: float, block: Tensors) -> Tensor:
        g = _gradient(net, _moved(net.at, (t, block)))
        return torch.stack([inner(g, b) for b in blocks])

    gradient = slopes(0.0, blocks[0])
    rows = [_quotient(lambda t, b=b: slopes(t, b), _step(net, b, FIRST, scheme, c), scheme) for b in blocks]
    hessian = torch.stack(rows)
    cubes = torch.full_like(gradient, float("nan"))
    for k, b in enumerate(blocks if third else []):
        h = _step(net, b, SECOND, scheme, c)
        ends = (h, -h) if scheme == "central" else (2 * h, h)
        a, z = (slopes(t, b)[k] for t in ends)
        cubes[k] = ((a + z - 2 * gradient[k]) if scheme == "central" else (a - 2 * z + gradient[k])) / h / h
    return gradient, 0.5 * (hessian + hessian.T), cubes


def _quotient(f, h: float, scheme: str) -> Tensor:
    return (f(h) - f(-h)) / (2 * h) if scheme == "central" else (f(h) - f(0.0)) / h


def _moved(at: Tensors, *steps: tuple[float, Tensors]) -> tuple[Tensor, ...]:
    """θ + Σ t d."""
    result = tuple(at)
    for t, d in steps:
        result = tuple(p + t * v for p, v in zip(result, d, strict=True))
    return result


def _step(net: Network, d: Tensors, powers: dict[str, float], scheme: str, c: float | None) -> float:
    """The h of direction d: c (1 + ‖θ‖)/‖d‖."""
    if scheme not in powers:
        raise UnknownName.among("scheme", scheme, powers)
    c = torch.finfo(d[0].dtype).eps ** powers[scheme] if c is None else c
    size = _norm(d)
    return c * (1 + _norm(net.at)) / size if size > 0 else c


def _norm(x: Tensors) -> float:
    return float(torch.stack([torch.linalg.vector_norm(v, dtype=torch.float64) for v in x]).norm())


def _flat(x: Tensors) -> Tensor:
    return torch.cat([v.reshape(-1) for v in x])


def _gradient(net: Network, at: Tensors) -> tuple[Tensor, ...]:
    """∇J at other parameters, in reverse mode."""
    with torch.enable_grad():
        leaves = tuple(p.detach().requires_grad_() for p in at)
        loss = net.losses(*leaves).mean()
        if not loss.requires_grad:
            return tuple(torch.zeros_like(p) for p in leaves)
        with translated("the gradient of the network"):
            return torch.autograd.grad(loss, leaves, materialize_grads=True)
