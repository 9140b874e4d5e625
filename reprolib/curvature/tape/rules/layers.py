"""Linear layers: y = x * w + b, bilinear in (x, w), so D²F[ẋ, ẋ] = 2 ẋ * ẇ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import RULES, Answer, Tangents, plus, rule


def shared_products(
    product: Callable[..., Tensor], y: Tensor, x: Tensor, w: Tensor, dx: Tensor, dw: Tensor, *bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(ẏ, ẋ * ẇ) by two products instead of three, from y, which is known already.

    (x + βẋ) * (w + βẇ) = x*w + β (x*ẇ + ẋ*w) + β² ẋ*ẇ. β is the power of two that makes both summands of each factor
    equally long: ẋ and ẇ may be 10⁶ times larger or smaller than x and w, and then nothing would be left of them.
    ``bias``: b and ḃ, if y contains b.
    """
    norm = torch.linalg.vector_norm
    ratio = torch.log2(norm(x) * norm(w) / (norm(dx) * norm(dw)))
    β = torch.exp2((ratio / 2).round().nan_to_num(0.0, 0.0, 0.0).clamp(-40, 40))
    cross = product(dx, dw, None)
    b, db = bias if bias else (None, None)
    moved = None if b is None else b if db is None else torch.addcmul(b, db, β)
    both = product(torch.addcmul(x, dx, β), torch.addcmul(w, dw, β), moved)
    return torch.addcmul((both - y) / β, cross, β, value=-1), cross


def _layer(node: Node, t: Tangents, curved: bool, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Answer:
    x, w = node["input"], node["weight"]
    dx, dw, db = t(node.args["input"]), t(node.args["weight"]), t(node.args.get("bias"))
    if curved and node.out[0].data is not None and dx is not None and dw is not None:
        first, cross = shared_products(product, node.y, x, w, dx, dw, node["bias"], db)
        return first, 2 * cross
    y: Tensor | None = None
    s: Tensor | None = None
    if dx is not None:
        y = product(dx, w, db)
        db = None
    if dw is not None:
        y = plus(y, product(x, dw, db))
        db = None
        if curved and dx is not None:
            s = 2 * product(dx, dw, None)
    if db is not None:  # only the bias moves
        shape = (1, -1) + (1,) * (len(node.out[0].shape) - 2) if node.rule is not RULES[F.linear] else (-1,)
        y = db.view(shape).expand(node.out[0].shape)
    return y, s


@rule(
    F.linear,
    names="input weight bias",
    reads="input weight bias",
    moves="input weight bias",
    samples=samples.trailing(1, "input"),
    product=True,
    factors=("input", "weight"),
    bilinear=lambda node, a, b: F.linear(a, b),
)
def linear(node: Node, t: Tangents, curved: bool) -> Answer:
    return _layer(node, t, curved, F.linear)


def _convolution(dimensions: int) -> Callable:
    return rule(
        (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1],
        names="input weight bias stride padding dilation groups",
        reads="input weight bias",
        moves="input weight bias",
        samples=samples.trailing(dimensions + 1, "input"),
        product=True,
        factors=("input", "weight"),
        bilinear=lambda node, a, b: node.func(a, b, **_geometry(node)),
    )


def _geometry(node: Node) -> dict[str, Any]:
    return {k: node.args[k] for k in ("stride", "padding", "dilation", "groups") if k in node.args}


@_convolution(1)
@_convolution(2)
@_convolution(3)
def conv(node: Node, t: Tangents, curved: bool) -> Answer:
    return _layer(node, t, curved, lambda x, w, b: node.func(x, w, b, **_geometry(node)))


@rule(F.embedding, names="input weight padding_idx max_norm norm_type scale_grad_by_freq sparse", moves="weight")
def embedding(node: Node, t: Tangents, curved: bool) -> Answer:
    return F.embedding(node["input"], t(node.args["weight"])), None
