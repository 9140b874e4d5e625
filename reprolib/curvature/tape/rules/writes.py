"""What was written in place, as functions that make the new value; all of them are linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, rule


def copied(target: Tensor, value: Any) -> Tensor:
    """``target.copy_(value)``."""
    if not isinstance(value, Tensor):
        return torch.full_like(target, value)
    return _stripped(value, target.dim()).to(target.dtype).expand(target.shape).clone()


def assigned(target: Tensor, index: Any, value: Any) -> Tensor:
    """``target[index] = value``."""
    new = target.clone()
    new[index] = value
    return new


def shifted(target: Tensor, shift: Tensor) -> Tensor:
    """``target`` after it was changed under ``no_grad``: for autograd it moves as before."""
    return target + shift


class Geometry(NamedTuple):
    """Where a view is in the memory of the tensor that owns it. ``base_strides``: ``None`` if that has gaps."""

    base_strides: tuple[int, ...] | None
    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @staticmethod
    def of(view: Tensor, base: Tensor) -> Geometry:
        """Where ``view`` is in the memory of ``base``."""
        strides = base.stride() if base.permute(_order(base.stride())).is_contiguous() else None
        return Geometry(strides, tuple(view.shape), view.stride(), int(view.storage_offset() - base.storage_offset()))


def read_again(base: Tensor, base_strides: Sequence[int], size: Any, strides: Any, offset: int) -> Tensor:
    """The view of ``base`` with this geometry."""
    return _memory(base, base_strides).as_strided(size, strides, offset)


def overwritten(base: Tensor, value: Any, base_strides: Any, size: Any, strides: Any, offset: int) -> Tensor:
    """``base`` after ``value`` was copied into the view with this geometry."""
    memory, order = _memory(base, base_strides), _order(base_strides)
    part = memory.as_strided(size, strides, offset)
    part.copy_(_stripped(value, len(size)) if isinstance(value, Tensor) else torch.full_like(part, value))
    back = [order.index(i) for i in range(len(order))]
    return memory.view([base.shape[i] for i in order]).permute(back)


def _stripped(value: Tensor, dim: int) -> Tensor:
    """Leading axes of length one go: assignments allow them."""
    return value.reshape(value.shape[value.dim() - dim :]) if value.dim() > dim else value


def _order(strides: Sequence[int]) -> list[int]:
    """The axes as they are in memory, the one with the longest stride first."""
    return sorted(range(len(strides)), key=lambda i: -strides[i])


def _memory(base: Tensor, strides: Sequence[int]) -> Tensor:
    """A copy of the numbers in the order of the memory that had these strides."""
    return base.permute(_order(strides)).reshape(-1).clone(memory_format=torch.contiguous_format)


# ---- where the samples are


def _block(size: Sequence[int], strides: Sequence[int], offset: int, axis: int, after: int, batch: int) -> bool:
    """Whether index s of ``axis`` lies in the block of sample s of memory (before, B, after), for each s."""
    if size[axis] != batch or strides[axis] != after or (offset // after) % batch:
        return False
    within = offset % after
    for i, (n, stride) in enumerate(zip(size, strides, strict=True)):
        if i != axis and stride < after:
            within += (n - 1) * stride
        elif i != axis and n > 1 and stride % (after * batch):
            return False
    return within < after


def _contiguous(shape: Sequence[int], strides: Any) -> bool:
    return strides is not None and tuple(strides) == torch.empty(tuple(shape), device="meta").stride()


def _of_view(node: Node, name: str, x: Any, y: Any, before: int, batch: int) -> int | None:
    """``base`` of a view in which the samples are along one axis."""
    size, strides, offset = node.args["size"], node.args["strides"], node.args["offset"]
    k = samples.axis(y, before, batch)
    if k is None or not _contiguous(x, node.args["base_strides"]):
        return None
    after = strides[k]
    if after < 1 or math.prod(x) % (after * batch) or not _block(size, strides, offset, k, after, batch):
        return None
    return math.prod(x) // (after * batch)


def _of_part(value: Sequence[int], size: Any, strides: Any, offset: int, y: Any, before: int, batch: int) -> int | None:
    """``value``, written into the view of y with this geometry."""
    after = math.prod(y) // (before * batch)
    for k in range(len(size)):
        j = k - (len(size) - len(value))
        if j >= 0 and value[j] == batch and _block(size, strides, offset, k, after, batch):
            return math.prod(value[:j])
    return None


def _of_overwritten(node: Node, name: str, x: Any, y: Any, before: int, batch: int) -> int | None:
    if not _contiguous(y, node.args["base_strides"]):
        return None
    geometry = node.args["size"], node.args["strides"], node.args["offset"]
    return before if name == "base" else _of_part(x, *geometry, y, before, batch)


def _of_assigned(node: Node, name: str, x: Any, y: Any, before: int, batch: int) -> int | None:
    if name == "target":
        return before
    index = node.args["index"]
    if any(isinstance(i, Tensor | list | bool) for i in (index if isinstance(index, tuple) else (index,))):
        return None
    part = torch.empty(tuple(y), device="meta")[index]
    return _of_part(x, part.shape, part.stride(), int(part.storage_offset()), y, before, batch)


def _of_copied(node: Node, name: str, x: Any, y: Any, before: int, batch: int) -> int | None:
    return samples.aligned(node, name, x, y, before, batch) if name == "value" else before


# ---- their tangents


def _both(node: Node, t: Tangents, into: str) -> tuple[Tensor, Tensor]:
    """The tangents of what is written into and of the value, zeros where nothing moves."""
    target, value = node.args[into], node.args["value"]
    d, dv = t(target), t(value)
    if d is None:
        d = dv.new_zeros(target.shape)
    return d, d.new_zeros(()) if dv is None else dv


@rule(copied, names="target value", moves="target value", samples=_of_copied)
def _copied(node: Node, t: Tangents, curved: bool) -> Answer:
    d, dv = _both(node, t, "target")
    return _stripped(dv, d.dim()).expand(d.shape), None


@rule(shifted, names="target shift", samples=samples.aligned)
def _shifted(node: Node, t: Tangents, curved: bool) -> Answer:
    return t(node.args["target"]), None


@rule(assigned, names="target index value", moves="target value", samples=_of_assigned)
def _assigned(node: Node, t: Tangents, curved: bool) -> Answer:
    d, dv = _both(node, t, "target")
    return assigned(d, node.args["index"], dv), None


@rule(overwritten, names="base value base_strides size strides offset", moves="base value", samples=_of_overwritten)
def _overwritten(node: Node, t: Tangents, curved: bool) -> Answer:
    d, dv = _both(node, t, "base")
    return overwritten(d, dv, *(node.args[k] for k in ("base_strides", "size", "strides", "offset"))), None


@rule(read_again, names="base base_strides size strides offset", samples=_of_view)
def _read_again(node: Node, t: Tangents, curved: bool) -> Answer:
    rest = (node.args[k] for k in ("base_strides", "size", "strides", "offset"))
    return read_again(t(node.args["base"]), *rest), None
