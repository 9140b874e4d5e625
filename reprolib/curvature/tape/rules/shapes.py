"""Affine operations, where the tangent goes through the operation itself, and pooling by maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import RULES, Answer, Rule, Tangents, rule
from reprolib.curvature.tape.samples import Place


def _affine(node: Node, t: Tangents, curved: bool) -> Answer:
    (x, *rest), kwargs = node.args["args"], {k: v for k, v in node.args.items() if k != "args"}
    dx = t(x)
    if dx is None:  # only what it is to look like moves
        return next(z for z in map(t, rest) if z is not None).new_zeros(node.out[0].shape), None
    like = [dx.new_empty(()).expand(v.shape) if hasattr(v, "data") and not isinstance(v, Tensor) else v for v in rest]
    return node.func(dx, *like, **kwargs), None


def _register(place: Place, *ops: Any) -> None:
    for op in ops:
        RULES[op] = Rule(_affine, (), frozenset(), many=True, samples=place)


def _property(name: str) -> Any:
    """What a function mode sees of ``x.T``."""
    return getattr(Tensor, name).__get__


_register(samples.reshaped, "flatten", "view", "reshape", "contiguous", "unsqueeze", "squeeze", "unflatten", "view_as",
          "clone", "to", "float", "double")  # fmt: skip
_register(samples.viewed, "transpose", "permute", "swapaxes", "movedim", "t", _property("T"), _property("mT"), "chunk", "split", "tensor_split",
          "unbind", "narrow", "select", "__getitem__", "diagonal")  # fmt: skip
_register(samples.aligned, "expand", "expand_as", "tril", "triu")
_register(samples.along, "mean", "sum")
_register(samples.nowhere, "repeat", "flip", "roll", "cumsum", "index_select", "gather")
_register(samples.trailing(1), F.avg_pool1d, F.adaptive_avg_pool1d)
_register(samples.trailing(2), F.avg_pool2d, F.adaptive_avg_pool2d)
_register(samples.channels, F.unfold, F.fold, F.interpolate)


@rule(F.pad, names="input pad mode value", samples=samples.trailing(lambda node: len(node.args["pad"]) // 2))
def pad(node: Node, t: Tangents, curved: bool) -> Answer:
    return F.pad(t(node.args["input"]), node.args["pad"], node.args.get("mode", "constant")), None


# ---- what a constant mask or index chooses


def _zero(x: Any) -> Any:
    return 0 if x is None else x


@rule("masked_fill", names="input mask value", samples=samples.aligned)
def masked_fill(node: Node, t: Tangents, curved: bool) -> Answer:
    return t(node.args["input"]).masked_fill(node.args["mask"], 0), None


@rule("where", names="condition input other", moves="input other", samples=samples.aligned,
      when=lambda args, kwargs: len(args) + len(kwargs) == 3 and args[0].dtype == torch.bool)  # fmt: skip
def where(node: Node, t: Tangents, curved: bool) -> Answer:
    da, db = t(node.args["input"]), t(node.args["other"])
    return torch.where(node.args["condition"], _zero(da), _zero(db)).expand(node.out[0].shape), None


@rule("scatter_add", "scatter", names="input dim index src", moves="input src",
      when=lambda args, kwargs: "reduce" not in kwargs and "value" not in kwargs)  # fmt: skip
@rule("index_add", names="input dim index src alpha", moves="input src")
def scattered(node: Node, t: Tangents, curved: bool) -> Answer:
    x, dim, index, src = (node.args[k] for k in ("input", "dim", "index", "src"))
    dx, ds = t(x), t(src)
    dx = ds.new_zeros(x.shape) if dx is None else dx
    if ds is None:
        ds = dx.new_zeros(src.shape) if hasattr(src, "shape") else 0
    options = {"alpha": node.args["alpha"]} if "alpha" in node.args else {}
    return node.func(dx, dim, index, ds, **options), None


def _joined(node: Node, t: Tangents, curved: bool) -> Answer:
    parts, *rest = node.args["args"]
    tangents = [t(p) for p in parts]
    example = next(x for x in tangents if x is not None)
    filled = [example.new_zeros(p.shape) if x is None else x for p, x in zip(parts, tangents, strict=True)]
    return node.func(filled, *rest, **{k: v for k, v in node.args.items() if k != "args"}), None


for _name in ("cat", "stack", "concat", "concatenate"):
    RULES[_name] = Rule(_joined, (), frozenset(), many=True, samples=samples.joined)


# ---- pooling by maximum: the second derivative is zero, the tangent follows the winner


def _pool(func: Callable, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
    wanted = kwargs.pop("return_indices", False)
    out, winner = _WITH_INDICES[func](*args, **kwargs)
    return (out, winner) if wanted else out, {"winner": winner}


_WITH_INDICES: dict[Any, Callable] = {F.max_pool1d: F.max_pool1d_with_indices, F.max_pool2d: F.max_pool2d_with_indices,
                 F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices}  # fmt: skip


def max_pool(node: Node, t: Tangents, curved: bool) -> Answer:
    winner, dx = node.args["winner"], t(node.args["input"])
    spatial = 1 if node.func is F.max_pool1d else 2
    return dx.flatten(-spatial).gather(-1, winner.flatten(-spatial)).view(winner.shape), None


for _pooling in _WITH_INDICES:
    rule(
        _pooling,
        names="input kernel_size stride padding dilation ceil_mode",
        run=_pool,
        samples=samples.trailing(1 if _pooling is F.max_pool1d else 2),
    )(max_pool)
