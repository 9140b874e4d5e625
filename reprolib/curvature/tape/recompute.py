"""Divide and conquer: the curvature in about the memory of a gradient (Figure 1 and Section 3.3 of the RED paper).

Algorithm 2 needs activations and adjoints at the same place, but the former are made from the first layer to the last and
the latter the other way round, so storing both costs twice the memory. Cut the tape into halves, F forward, B backward,
T tangent:

    1. F of both halves; B of the second, whose activations and adjoints are forgotten as it goes
    2. B of the first half, whose adjoints are kept: half the activations, half the adjoints
    3. with d chosen, T of the first half, which forgets both (printed: of the second half, E-red-7)
    4. F and B of the second half once more, from the values at the cut, and its T

Steps 1 and 2 are one ordinary backward pass: the graph is freed while it runs, and the tape keeps nothing of the second
half. In matrix products this is 7/3 of a gradient, not the 2 of Theorem 1 (E-red-6); 2 with shared products.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import rerun
from reprolib.curvature.tree import Tensors


class Later:
    """The second half of a tape: nodes from ``start`` on, what they make, and the values at the cut.

    ``paid`` are the numbers of the values whose adjoints pay for second derivatives.
    """

    def __init__(self, start: int, nodes: list[Node], cut: dict[int, Tensor], paid: Collection[int]):
        self.start, self.cut, self._nodes = start, cut, nodes
        self.made = {v.id for node in nodes for v in node.out}
        self._paid = [k for k in paid if k in self.made]

    def recompute(self, losses: int, params: Tensors) -> dict[int, Tensor]:
        """Step 4 up to its T: the data of the nodes, and the adjoints of their values that pay for second derivatives."""
        return adjoints_again(self._nodes, self.cut, self._paid, losses, params)


def adjoints_again(
    nodes: list[Node], cut: dict[int, Tensor], numbers: list[int], losses: int, params: Tensors
) -> dict[int, Tensor]:
    """Run recorded nodes once more, from the parameters and ``cut``: their data, and the adjoints of some values.

    ``losses`` and ``numbers`` are the numbers of the values that are differentiated and of those whose adjoints are asked for.
    """
    table: dict[int, Tensor] = {k: x.detach().requires_grad_(x.is_floating_point()) for k, x in cut.items()}
    table |= {i: p.detach().requires_grad_() for i, p in enumerate(params)}
    with torch.enable_grad():
        for node in nodes:
            outs = rerun(node, lambda v: table[v.id])  # noqa: B023
            table |= {v.id: t for v, t in zip(node.out, outs, strict=True)}
            for v in (*node.inputs(), *node.out):
                if v.kept:
                    v.data = table[v.id].detach()
        wanted = {k: get_gradient_edge(table[k]) for k in numbers if table[k].requires_grad}
        if not wanted:
            return {}
        end = table[losses]
        weights = torch.full_like(end, 1 / end.numel())
        found = torch.autograd.grad(end, tuple(wanted.values()), weights, allow_unused=True)
    return {k: x for k, x in zip(wanted, found, strict=True) if x is not None}


def split(nodes: list[Node], paid: Collection[int], tensor: Callable[[int], Tensor]) -> Later:
    """Cut where half of the bytes are reached, of the values that a rule reads and of the adjoints of those that are ``paid``;
    forget the data of the second half.
    """
    read = {v.id for node in nodes for v in (*node.inputs(), *node.out) if v.kept}
    made = [sum(((v.id in read) + (v.id in paid)) * tensor(v.id).nbytes for v in node.out) for node in nodes]
    total, start = sum(made), 0
    while start < len(nodes) and 2 * sum(made[: start + 1]) <= total:
        start += 1
    first = {v.id for node in nodes[:start] for v in node.out}
    cut: dict[int, Tensor] = {}
    for node in nodes[start:]:
        for v in node.inputs():
            if v.id in first:
                cut[v.id] = tensor(v.id).detach()
        node.forget()
    return Later(start, nodes[start:], cut, paid)
