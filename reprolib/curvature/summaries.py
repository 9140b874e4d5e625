"""Summary tensors of any order (Wolinski, 2023, section 3): what a partition leaves of the order-d derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reprolib.curvature.autodiff import _grad
from reprolib.curvature.network import Closure, Loss, Network, Pair, checked, pairs_of
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors, like
from reprolib.errors import InvalidInput

ENTRIES = 20_000  # each is one backward pass


def summary_tensor(
    closure: Closure | Sequence[Pair],
    loss: Loss | None,
    params: Sequence[Tensor],
    d: Tensors,
    groups: Sequence[Sequence[int]] | None = None,
    order: int = 2,
) -> Tensor:
    r"""D⁽ⁿ⁾ (S, …, S), n = ``order`` times: ∂ⁿψ/∂η_{k1}…∂η_{kn} at 0 of ψ(η) = J(θ_i + η_{k(i)} d_i).

    Its sum is the n-th derivative of J along d. By repeated reverse mode: S^(n−1) backward passes through a graph that
    grows with n; :meth:`~reprolib.curvature.LocalModel.summary` is far cheaper where n = 2 and the diagonal of n = 3
    are enough.
    Nothing is left behind: no random number is drawn, no buffer written.

    Args:
        closure, loss, params: as of :func:`reprolib.curvature.expand`; micro-batches are weighted by their samples.
        d: the direction, a tuple shaped like ``params``.
        groups: S disjoint lists of positions in ``params``; default one group per tensor.
        order: n ≥ 1.

    Raises:
        InvalidInput: S^n is above 20,000; a direction or groups that do not fit.

    Source: section 3, Table 1; key ``wolinski2023`` in references.bib.
    """
    params = checked(params)
    d = like(d, params)
    groups = [[i] for i in range(len(params))] if groups is None else [list(g) for g in groups]
    flat = [i for g in groups for i in g]
    if not groups or not all(groups) or len(set(flat)) < len(flat) or not set(flat) <= set(range(len(d))):
        raise InvalidInput(f"groups {groups}: give non-empty, disjoint lists of positions in 0…{len(d) - 1}")
    size = len(groups)
    if order < 1 or size**order > ENTRIES:
        raise InvalidInput(
            f"order {order} of {size} groups has {size ** max(order, 0)} entries: give order ≥ 1 and at most {ENTRIES} "
            "(fewer groups, or summary() of a local model for the Hessian and the diagonal of order 3)"
        )
    group_of = {i: k for k, members in enumerate(groups) for i in members}
    total, batch = d[0].new_zeros((size,) * order), 0
    for pair in pairs_of(closure, loss, "hessian"):
        net = Network(*pair, params)
        with torch.enable_grad():
            eta = torch.zeros(size, dtype=d[0].dtype, device=d[0].device, requires_grad=True)
            losses = net.losses(*(p + eta[group_of[i]] * d[i] if i in group_of else p for i, p in enumerate(net.at)))
            part = _derivatives(losses.sum(), eta, order)
        total, batch = total + part.detach(), batch + len(losses)
    return total / batch


def _derivatives(y: Tensor, eta: Tensor, order: int) -> Tensor:
    """Appendix A: the tensor of order n + 1 has as rows the gradients of the entries of that of order n."""
    gradient: Callable[[Tensor, bool], Tensor] = lambda z, more: _grad(z, (eta,), create_graph=more)[0]  # noqa: E731
    with translated("the gradient of the network"):
        entries = [y]  # as scalars of their own: the gradient of one must not run back through all the others
        for n in range(1, order + 1):
            entries = [entry for z in entries for entry in gradient(z, n < order).unbind()]
    return torch.stack(entries).reshape((len(eta),) * order)
