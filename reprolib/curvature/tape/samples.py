"""Which part of a recorded value belongs to which sample.

Algorithm 2 pays a second derivative with the adjoint of the value where it arose. The sum over everything is dᵀ∇²J d
anyway; to hand each sample its own share one must know where in the value the samples lie, and that nothing from there on
mixes them. Both are read off the tape backwards, starting from the losses (B,): each rule has a *place*, a function that
says where in an input the samples lie, given where they lie in the output.

A place is one number, ``before``: the value, reshaped to (before, B, after), has sample s in block [:, s]. It survives
every reshape, also one that merges the batch with the axes behind it, (B, T, C) → (B·T, C). ``None`` says that there is no
such split (samples are mixed, as in batch-norm, or share the value, as they share a weight), or that it is not known: then
the second derivative is carried on instead of being paid, which is always right and sometimes dearer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from reprolib.curvature.tape.node import Node, Value

Shape = Sequence[int]
# (node, name of the argument, shape of the argument, shape of the output, before in the output, B) -> before, or None
Place = Callable[[Node, str, Shape, Shape, int, int], int | None]


def locate(nodes: Sequence[Node], losses: Value, by_index: bool) -> dict[int, int | None]:
    """The place of the samples in every value that leads to the losses (B,), by the number of the value.

    ``by_index``: a batch-norm counts as if it mixed nothing, so that what arises at sample s is put to its account.
    """
    batch = losses.shape[0]
    found: dict[int, int | None] = {losses.id: 1}
    for node in reversed(nodes):
        ends = [v for v in node.out if v.id in found]
        if not ends:
            continue  # leads to no loss
        place = node.rule.samples if node.rule else nowhere
        if by_index and node.rule and node.rule.by_index:
            place = node.rule.by_index
        for name, x in _slots(node):
            before: int | None = None
            candidates = {_place(place, node, name, x, y, found[y.id], batch) for y in ends}
            if len(candidates) == 1:
                before = candidates.pop()
            found[x.id] = before if found.get(x.id, before) == before else None
    return found


def _place(place: Place, node: Node, name: str, x: Value, y: Value, before: int | None, batch: int) -> int | None:
    if batch == 1:
        return 1
    return None if before is None else place(node, name, x.shape, y.shape, before, batch)


def _slots(node: Node) -> Iterator[tuple[str, Value]]:
    """The arguments with their names; a value that is given twice comes twice, and the places must agree."""
    for name, value in node.args.items():
        yield from ((name, v) for v in node.values(value))


# ---- places


def axis(shape: Shape, before: int, batch: int) -> int | None:
    """The axis that starts with the samples: B long, or B times something behind it."""
    size = 1
    for k, n in enumerate(shape):
        if size == before and n > 1:
            return k if n % batch == 0 else None
        size *= n
    return None


def _before(shape: Shape, axis: int) -> int:
    return math.prod(shape[:axis])


def nowhere(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> None:
    """Not known."""


def aligned(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """Elementwise with broadcasting: axes correspond from the right, and the samples must not share the argument."""
    if tuple(x) == tuple(y):
        return before
    k = axis(y, before, batch)
    if k is None:
        return None
    j = k - (len(y) - len(x))
    return _before(x, j) if j >= 0 and x[j] == y[k] else None


def reshaped(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """The same elements in the same order."""
    return before if math.prod(x) == math.prod(y) else None


def trailing(axes: int | Callable[[Node], int], only: str | None = None) -> Place:
    """The operation acts on the last axes of the argument ``only`` and treats everything before them alike."""

    def place(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
        n = axes if isinstance(axes, int) else axes(node)
        if (only and name != only) or tuple(x[: len(x) - n]) != tuple(y[: len(y) - n]):
            return None
        return before if math.prod(y[: len(y) - n]) % (before * batch) == 0 else None

    return place


def along(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """The operation mixes what lies along ``dim`` (which may disappear)."""
    dims, keep = _given(node, 1, "dim"), _given(node, 2, "keepdim")
    dims = [d % len(x) for d in (dims if isinstance(dims, list | tuple) else [dims] if isinstance(dims, int) else [])]
    if not dims:
        return None
    mixed = tuple(y) if tuple(x) == tuple(y) or keep else tuple(1 if i in dims else n for i, n in enumerate(x))
    k = axis(mixed, before, batch)
    if k is not None and k not in dims and mixed[k] == x[k]:
        return _before(x, k)
    return before if math.prod(x[: min(dims)]) % (before * batch) == 0 else None


def viewed(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """A view: the axis of the samples is where its stride went, and must be there in full."""
    k, rest = axis(y, before, batch), node.args["args"][1:]
    if k is None or any(isinstance(i, torch.Tensor | list) for i in _flat(rest)):
        return None
    whole = torch.empty(tuple(x), device="meta")
    outs = node.func(whole, *rest, **{key: v for key, v in node.args.items() if key != "args"})
    for out in outs if isinstance(outs, list | tuple) else [outs]:
        if tuple(out.shape) == tuple(y) and out._is_view():
            for j, n in enumerate(x):
                if n == y[k] and whole.stride(j) == out.stride(k):
                    return _before(x, j)
    return None


def product(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """Matrix product: rows belong to ``a``, columns to ``b``, the axes before them to both."""
    a, b = node.args["a"].shape, node.args["b"].shape
    k = axis(y, before, batch)
    if k is None or (len(a) < 2 and name == "a") or (len(b) < 2 and name == "b"):
        return None
    rows = len(y) - (2 if len(b) >= 2 else 1)
    columns = len(y) - 1 if len(b) >= 2 else len(y)
    if k == rows and len(a) >= 2:
        return _before(a, len(a) - 2) if name == "a" else None
    if k == columns:
        return _before(b, len(b) - 1) if name == "b" else None
    j = k - ((rows if len(a) >= 2 else columns) - (len(x) - 2))  # an axis before rows and columns
    return _before(x, j) if j >= 0 and x[j] == y[k] else None


def heads(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """Attention: axes before (position, feature) are independent of each other."""
    k = axis(y, before, batch)
    if name not in ("query", "key", "value") or k is None or k >= len(y) - 2:
        return None
    j = k - (len(y) - len(x))
    return _before(x, j) if j >= 0 and x[j] == y[k] else None


def classes(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """Losses (N, …) of scores (N, C, …)."""
    k = axis(y, before, batch)
    if name != "input" or node.args.get("reduction", "mean") != "none" or k is None:
        return None
    return _before(x, k if k == 0 else k + 1)


def unreduced(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """A loss of each entry."""
    return aligned(node, name, x, y, before, batch) if node.args.get("reduction", "mean") == "none" else None


def channels(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """A normalisation that treats samples (axis 0) alike; its weights are shared."""
    return before if name == "input" and axis(y, before, batch) == 0 else None


def joined(node: Node, name: str, x: Shape, y: Shape, before: int, batch: int) -> int | None:
    """Concatenation along an axis that is not that of the samples."""
    dim = _given(node, 1, "dim") or 0
    k, new = axis(y, before, batch), node.func is torch.stack
    dim %= len(y)
    if k is None or k == dim:
        return None
    return _before(x, k - 1 if new and dim < k else k)


def _given(node: Node, position: int, name: str) -> Any:
    """An argument of an operation whose arguments have no names on the tape, or have."""
    if name in node.args:
        return node.args[name]
    args = node.args.get("args", ())
    if len(args) > position and name == "dim" and isinstance(args[position], int) and len(args) > position + 1:
        rest = args[position:]  # x.sum(0, 1) and x.sum(1, True) look alike but for the type
        return tuple(i for i in rest if not isinstance(i, bool))
    if len(args) > position:
        return args[position]
    return None


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, tuple):
        for y in x:
            yield from _flat(y)
    else:
        yield x
