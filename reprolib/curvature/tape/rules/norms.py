"""Normalisation: x̂ = c σ with c = x − E x, σ = (E c² + ε)^(−½).

With m₁ = E(x̂ ċ), m₂ = E(ċ²), by E-red-4:

    ẋ̂ = σ (ċ − x̂ m₁)        D²x̂[ẋ, ẋ] = σ² (x̂ (3 m₁² − m₂) − 2 m₁ ċ)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import RULES, Answer, Tangents, plus, rule


def _normalise(
    x: Tensor, dx: Tensor | None, ddx: Tensor | None, dims: list[int], eps: float, centred: bool, curved: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(x̂, its first, its second derivative along ẋ and ẍ)."""

    def mean(z: Tensor) -> Tensor:
        return z.mean(dims, keepdim=True)

    def centre(z: Tensor) -> Tensor:
        return z - mean(z) if centred else z

    c = centre(x)
    σ = torch.rsqrt(mean(c * c) + eps)
    xh = c * σ
    if dx is None:
        return xh, None, None
    dc = centre(dx)
    m1 = mean(xh * dc)
    first = σ * (dc - xh * m1)
    if not curved:
        return xh, first, None
    σ2 = σ * σ
    along_xh, along_dc = σ2 * (3 * m1 * m1 - mean(dc * dc)), -2 * σ2 * m1
    if ddx is None:
        return xh, first, xh * along_xh + dc * along_dc
    ddc = centre(ddx)
    along_xh = along_xh - σ * mean(xh * ddc)
    return xh, first, torch.addcmul(torch.addcmul(ddc * σ, xh, along_xh), dc, along_dc)


def _scaled(node: Node, t: Tangents, u: Tangents | None, normalised: tuple, shape: list[int]) -> Answer:
    """Y = w x̂ + b with w, b of ``shape``."""
    xh, first, second = normalised
    w, dw, db = node["weight"], t(node.args.get("weight")), t(node.args.get("bias"))
    ddw = u(node.args.get("weight")) if u else None
    ddb = u(node.args.get("bias")) if u else None
    y, s = first, second
    if w is not None:
        y = None if first is None else first * w.view(shape)
        s = None if second is None else second * w.view(shape)
    if dw is not None:
        y = plus(y, xh * dw.view(shape))
        if u and first is not None:
            s = plus(s, 2 * first * dw.view(shape))
    if ddw is not None:
        s = plus(s, xh * ddw.view(shape))
    if db is not None:
        y = plus(y, db.view(shape).expand_as(xh))
    if ddb is not None:
        s = plus(s, ddb.view(shape).expand_as(xh))
    return y, s


def _norm(*ops: Any, names: str, **options: Any) -> Callable:
    """Register (node, t, u) -> (ẏ, ÿ) for a normalisation."""

    def register(carry: Callable[[Node, Tangents, Tangents | None], Answer]) -> Callable:
        def apply(node: Node, t: Tangents, curved: bool) -> Answer:
            return carry(node, t, (lambda x: None) if curved else None)

        rule(*ops, names=names, reads="input weight", moves="input weight bias", carry=carry, **options)(apply)
        return carry

    return register


def _parts(node: Node, t: Tangents, u: Tangents | None, dims: list[int], eps: float, centred: bool = True) -> tuple:
    x = node.args["input"]
    return _normalise(node["input"], t(x), u(x) if u else None, dims, eps, centred, u is not None)


def _last_axes(node: Node) -> int:
    return len(node.args["normalized_shape"])


@_norm(F.layer_norm, names="input normalized_shape weight bias eps", samples=samples.trailing(_last_axes, "input"))
def layer_norm(node: Node, t: Tangents, u: Tangents | None) -> Answer:
    shape = list(node.args["normalized_shape"])
    dims = list(range(-len(shape), 0))
    return _scaled(node, t, u, _parts(node, t, u, dims, node.args.get("eps", 1e-5)), shape)


@_norm(F.rms_norm, names="input normalized_shape weight eps", samples=samples.trailing(_last_axes, "input"))
def rms_norm(node: Node, t: Tangents, u: Tangents | None) -> Answer:
    shape, eps = list(node.args["normalized_shape"]), node.args.get("eps")
    eps = torch.finfo(node["input"].dtype).eps if eps is None else eps
    return _scaled(node, t, u, _parts(node, t, u, list(range(-len(shape), 0)), eps, centred=False), shape)


def _keep_statistics(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    """The running statistics as they were: a later pass of the same step may move them."""
    bound = dict(zip(RULES[F.batch_norm].names, args, strict=False)) | kwargs
    extra = {}
    if not bound.get("training", False):
        extra = {"mean": bound["running_mean"].clone(), "variance": bound["running_var"].clone()}
    return func(*args, **kwargs), extra


def _batch_norm_again(node: Node, args: tuple, kwargs: dict) -> Tensor:
    """Once more, without a second step of the running statistics."""
    given = dict(zip(RULES[F.batch_norm].names, args, strict=False)) | kwargs
    given |= {"running_mean": node.args.get("mean"), "running_var": node.args.get("variance")}
    return F.batch_norm(**given)


def _eval_only(node: Node, name: str, x: Any, y: Any, before: int, batch: int) -> int | None:
    mixes = node.args.get("training", False)
    return None if mixes else samples.channels(node, name, x, y, before, batch)


@_norm(F.batch_norm, names="input running_mean running_var weight bias training momentum eps", run=_keep_statistics,
       samples=_eval_only, by_index=samples.channels, again=_batch_norm_again)  # fmt: skip
def batch_norm(node: Node, t: Tangents, u: Tangents | None) -> Answer:
    x, eps = node["input"], node.args.get("eps", 1e-5)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if node.args.get("training", False):
        return _scaled(node, t, u, _parts(node, t, u, [0, *range(2, x.dim())], eps), shape)
    mean, scale = node.args["mean"].view(shape), torch.rsqrt(node.args["variance"].view(shape) + eps)
    dx = t(node.args["input"])
    ddx = u(node.args["input"]) if u else None
    parts = ((x - mean) * scale, None if dx is None else dx * scale, None if ddx is None else ddx * scale)
    return _scaled(node, t, u, parts, shape)


@_norm(
    F.instance_norm,
    names="input running_mean running_var weight bias use_input_stats momentum eps",
    samples=samples.channels,
    when=lambda args, kwargs: args[5] if len(args) > 5 else kwargs.get("use_input_stats", True),
)
def instance_norm(node: Node, t: Tangents, u: Tangents | None) -> Answer:
    dims = list(range(2, node["input"].dim()))
    parts = _parts(node, t, u, dims, node.args.get("eps", 1e-5))
    return _scaled(node, t, u, parts, [1, -1] + [1] * len(dims))


@_norm(F.group_norm, names="input num_groups weight bias eps", samples=samples.channels)
def group_norm(node: Node, t: Tangents, u: Tangents | None) -> Answer:
    x, groups, eps = node["input"], node.args["num_groups"], node.args.get("eps", 1e-5)
    split = (x.shape[0], groups, -1)
    moving = [t(node.args["input"]), u(node.args["input"]) if u else None]
    dx, ddx = (None if z is None else z.reshape(split) for z in moving)
    parts = _normalise(x.reshape(split), dx, ddx, [2], eps, True, u is not None)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return _scaled(node, t, u, tuple(p if p is None else p.view(x.shape) for p in parts), shape)
