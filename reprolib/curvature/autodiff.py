"""Backend ``autodiff``: every derivative by PyTorch's own forward and reverse modes.

The reference backend: short, general, exact, and three to five gradients dear. Each function takes a
:class:`~reprolib.curvature.network.Network` (the network as a function of its parameters, repeatable) and directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import jvp as forward

from reprolib.curvature.nested import trusted
from reprolib.curvature.network import Network, Second
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation


def run(net: Network) -> tuple[Tensor, Tensor]:
    """The ordinary pass: outputs (B, ...) and per-sample losses (B,)."""
    return net.run()


def gradient(net: Network, losses: Tensor, retain_graph: bool) -> tuple[Tensor, ...]:
    """∇J of the ordinary pass."""
    weights = torch.full_like(losses, 1 / losses.numel())
    return torch.autograd.grad(losses, net.params, weights, retain_graph=retain_graph, materialize_grads=True)


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d, the tangent of the outputs (B, ...) along d: one pass in forward mode."""
    with torch.enable_grad():  # under no_grad some forward rules (silu's) are not found
        return forward(net.outputs, net.at, tuple(d))[1].detach()


def second(net: Network, d: Tensors, e: Tensors) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e, each (B,): forward mode nested in forward mode.

    It is ∂²J_s(θ + t d + r e)/∂t∂r at 0, exact also where samples are coupled (batch-norm). A pass before looks for
    operations for which PyTorch's nested forward mode is wrong (:mod:`~reprolib.curvature.nested`).
    """

    def along_e(*params: Tensor) -> tuple[Tensor, Tensor]:
        return forward(net.losses, params, tuple(e))  # type: ignore[return-value]

    with torch.enable_grad():
        net.losses(*(p.detach().requires_grad_() for p in net.at), call=trusted)
        (losses, _), (slopes, curvature) = forward(along_e, net.at, tuple(d))  # type: ignore[misc]
    return Second(slopes.detach(), curvature.detach(), losses.detach())


def hvp(net: Network, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d): the gradient, differentiated once more along d in reverse mode (Pearlmutter, 1994)."""
    with torch.enable_grad():
        leaves = tuple(p.detach().requires_grad_() for p in net.at)
        return twice(net.losses(*leaves), leaves, d)


def twice(losses: Tensor, at: Tensors, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d) from the graph of the losses (B,) over the leaves ``at``."""
    with torch.enable_grad(), translated("the gradient of the network"):
        g = _grad(losses.mean(), at, create_graph=True)
        return tuple(x.detach() for x in g), _grad(g, at, d)


def summary(net: Network, d: Tensors, groups: Sequence[Sequence[int]], third: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives at η = 0 of ψ(η) = J with θ_i + η_{group of i} d_i in the place of θ_i, by repeated reverse mode.

    Returns ∇ψ (S,), ∇²ψ (S, S) and the diagonal ∂³ψ/∂η_i³ (S,) (NaN if not asked for).
    """
    group_of = {i: k for k, members in enumerate(groups) for i in members}
    with torch.enable_grad():
        eta = torch.zeros(len(groups), dtype=net.at[0].dtype, device=net.at[0].device, requires_grad=True)
        moved = [p + eta[group_of[i]] * d[i] if i in group_of else p for i, p in enumerate(net.at)]
        (gradient,) = _grad(net.losses(*moved).mean(), (eta,), create_graph=True)
        with translated("the gradient of the network"):
            rows = [_grad(g, (eta,), create_graph=third)[0] for g in gradient]
            cubes = [_grad(row[i], (eta,))[0][i] for i, row in enumerate(rows)] if third else []
    nan = torch.full_like(eta, float("nan")).detach()
    return gradient.detach(), torch.stack(rows).detach(), torch.stack(cubes).detach() if third else nan


def _grad(y, x, v=None, create_graph=False) -> tuple[Tensor, ...]:
    """``autograd.grad`` of what depends on x; zero where nothing does."""
    ys = (y,) if isinstance(y, Tensor) else tuple(y)
    vs = (None,) * len(ys) if v is None else tuple(v)
    pairs = [(a, b) for a, b in zip(ys, vs, strict=True) if a.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in x)
    ys, vs = zip(*pairs, strict=True)
    found = torch.autograd.grad(ys, x, vs, create_graph=create_graph, retain_graph=True, materialize_grads=True)
    if create_graph:
        _refuse_constants(found)
    return found


def _refuse_constants(made: Tensors) -> None:
    """What a custom function marked ``once_differentiable`` returns looks constant to a second derivative: no error, a zero."""
    waiting, seen = [t.grad_fn for t in made if t.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise UnsupportedOperation(
                "a custom autograd function of the network is marked once_differentiable, so it has no second derivative: "
                "write its backward with differentiable operations, without the mark"
            )
        waiting.extend(below for below, _ in node.next_functions if below is not None)
