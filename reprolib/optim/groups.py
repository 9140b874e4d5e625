"""Partitions of the parameters for NewtonSummary: which of them share a step size (sections 4.1, 5.2, Appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.tree import Tensors
from reprolib.errors import InvalidInput, UnknownName

Groups = str | tuple[str, int] | Sequence[Sequence[str]]
NAMES = ("tensor", "all", "role", "scalar")
SCALARS = 2000  # "scalar" keeps a tangent of the whole network for each of them


@dataclass(frozen=True)
class Partition:
    """S disjoint groups that together have every parameter; block directions and step sizes are in their order.

    ``members`` has the positions of a group's pieces: the tensors, or, if ``scalar``, their entries one after another.
    """

    labels: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    scalar: bool = False

    def __len__(self) -> int:
        return len(self.members)

    def pieces(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """What ``members`` count: the tensors themselves, or their entries as 0-d tensors."""
        return tuple(e for t in tensors for e in t.reshape(-1).unbind()) if self.scalar else tuple(tensors)

    def joined(self, pieces: Tensors, shapes: Tensors) -> tuple[Tensor, ...]:
        """The tensors, shaped like ``shapes``, that have these pieces."""
        if not self.scalar:
            return tuple(pieces)
        whole = torch.stack(list(pieces)).split([t.numel() for t in shapes])
        return tuple(x.view(t.shape) for x, t in zip(whole, shapes, strict=True))

    def spread(self, eta: Tensor, params: Tensors) -> tuple[Tensor, ...]:
        """I_{P:S} η: for each parameter the η of its group, 0-d, or entry by entry."""
        if eta.shape != (len(self),):
            raise InvalidInput(f"{tuple(eta.shape)} step sizes for {len(self)} groups: give one for each")
        group_of = {i: k for k, group in enumerate(self.members) for i in group}
        return self.joined([eta[group_of[i]] for i in range(len(group_of))], params)


def partition(groups: Groups, params: Tensors, names: Sequence[str] | None = None) -> Partition:
    """The partition that ``groups`` describes.

    ==================  ================================================================================================
    ``"tensor"``        each tensor by itself: the paper's canonical partition
    ``"all"``           all in one: with u = ∇J and λ_int = 0, Cauchy's step
    ``"role"``          weights, then biases
    ``("chunks", n)``   the layers in n chunks by depth, each split into weights and biases; first all weights (App. G)
    ``"scalar"``        each entry by itself: with u = ∇J and λ_int = 0, Newton's step
    lists of names      [["0.weight", "0.bias"], ...], in this order, each parameter once
    ==================  ================================================================================================

    A bias is what is called so, ``"…bias"``; without names, what has at most one axis. A layer has what shares the name
    before the last dot; without names, it begins with each weight.

    Args:
        groups: one of these.
        params: the tensors.
        names: of the tensors, as an optimizer that is built from ``named_parameters()`` has them.

    Raises:
        InvalidInput, UnknownName: a description that does not fit the parameters.
    """
    labels = list(names) if names is not None else [f"tensor {i}" for i in range(len(params))]
    if groups == "tensor":
        return Partition(tuple(labels), tuple((i,) for i in range(len(params))))
    if groups == "all":
        return Partition(("all",), (tuple(range(len(params))),))
    if groups == "role":
        return _by_key({"weights": 0, "biases": 1}, [_role(i, params, names) for i in range(len(params))])
    if groups == "scalar":
        count = sum(p.numel() for p in params)
        if count > SCALARS:
            raise InvalidInput(f'groups = "scalar" for {count} parameters: at most {SCALARS}; use "tensor" or chunks')
        entries = tuple(f"{name}[{j}]" for name, p in zip(labels, params, strict=True) for j in range(p.numel()))
        return Partition(entries, tuple((i,) for i in range(count)), scalar=True)
    if isinstance(groups, str):
        raise UnknownName.among("grouping", groups, NAMES)
    if isinstance(groups, tuple | list) and len(groups) == 2 and groups[0] == "chunks":
        return _chunks(groups[1], params, names)
    return _by_names(groups, names)


def _chunks(n: Any, params: Tensors, names: Sequence[str] | None) -> Partition:
    roles = [_role(i, params, names) for i in range(len(params))]
    if names is not None:
        keys = [name.rpartition(".")[0] or name for name in names]
    else:
        keys, layer = [], 0
        for i, role in enumerate(roles):
            layer += i > 0 and role == "weights"
            keys.append(str(layer))
    layers = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    if not isinstance(n, int) or not 1 <= n <= len(layers):
        raise InvalidInput(
            f'groups = ("chunks", {n}): the parameters have {len(layers)} layers, so give 1…{len(layers)}'
        )
    order = {
        f"{role} {c + 1}": k for k, (role, c) in enumerate((r, c) for r in ("weights", "biases") for c in range(n))
    }
    found = [f"{role} {layers[key] * n // len(layers) + 1}" for role, key in zip(roles, keys, strict=True)]
    return _by_key(order, found)


def _by_names(groups: Any, names: Sequence[str] | None) -> Partition:
    lists = [list(g) if isinstance(g, tuple | list) else [] for g in groups] if isinstance(groups, tuple | list) else []
    if not lists or not all(lists) or not all(isinstance(name, str) for g in lists for name in g):
        raise InvalidInput(f'groups = {groups!r:.80}: give one of {NAMES}, ("chunks", n), or non-empty lists of names')
    if names is None:
        raise InvalidInput("groups by name need names: build the optimizer from net.named_parameters()")
    position = {name: i for i, name in enumerate(names)}
    flat = [name for g in lists for name in g]
    for name in flat:
        if name not in position:
            raise UnknownName.among("parameter", name, position)
        if flat.count(name) > 1:
            raise InvalidInput(f"{name} is in two groups: it can have one step size")
    if left := [name for name in names if name not in flat]:
        raise InvalidInput(f"{', '.join(left)} in no group: add them, or keep them out of the optimizer")
    return Partition(tuple(" + ".join(g) for g in lists), tuple(tuple(position[name] for name in g) for g in lists))


def _by_key(order: dict[str, int], keys: Sequence[str]) -> Partition:
    """One group for each key that occurs, in the order of ``order``."""
    labels = sorted(set(keys), key=order.__getitem__)
    return Partition(tuple(labels), tuple(tuple(i for i, k in enumerate(keys) if k == label) for label in labels))


def _role(i: int, params: Tensors, names: Sequence[str] | None) -> str:
    bias = names[i].endswith("bias") if names is not None else params[i].dim() <= 1
    return "biases" if bias else "weights"
