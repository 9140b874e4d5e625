"""Products, quotients and sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.layers import shared_products
from reprolib.curvature.tape.rules.registry import Answer, Tangents, plus, rule


def _bilinear(node: Node, t: Tangents, curved: bool, product: Callable[[Any, Any], Tensor]) -> Answer:
    a, b, da, db = node["a"], node["b"], t(node.args["a"]), t(node.args["b"])
    both = da is not None and db is not None
    if both and curved and node.out[0].data is not None:
        first, cross = shared_products(lambda x, w, _: product(x, w), node.y, a, b, da, db)
        return first, 2 * cross
    y = plus(None if da is None else product(da, b), None if db is None else product(a, db))
    return y, 2 * product(da, db) if curved and both else None


@rule("mul", "multiply", "__mul__", "__rmul__", names="a b", moves="a b", reads="a b", samples=samples.aligned)
def mul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, torch.mul)


_MATRICES: dict[str, Any] = {"reads": "a b", "moves": "a b", "samples": samples.product, "product": True, "factors": ("a", "b"),
                             "bilinear": lambda node, a, b: torch.matmul(a, b)}  # fmt: skip


@rule("__rmatmul__", names="b a", **_MATRICES)
@rule("matmul", "__matmul__", "bmm", "mm", "mv", names="a b", **_MATRICES)
def matmul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, torch.matmul)


def _quotient(node: Node, t: Tangents, curved: bool) -> Answer:
    """Y b = a, so ẏ = (ȧ − y ḃ)/b and s = −2 ẏ ḃ / b."""
    if node.args.get("rounding_mode") is not None:  # steps: flat almost everywhere
        return torch.zeros_like(node.y), None
    b, da, db = node["b"], t(node.args["a"]), t(node.args["b"])
    if db is None:
        return (da / b).expand(node.out[0].shape), None
    y = (-node.y * db if da is None else da - node.y * db) / b
    return y, -2 * y * db / b if curved else None


rule(
    "div",
    "divide",
    "true_divide",
    "__truediv__",
    "__div__",
    names="a b",
    moves="a b",
    reads="b y",
    samples=samples.aligned,
)(_quotient)
rule("__rtruediv__", "__rdiv__", names="b a", moves="a b", reads="b y", samples=samples.aligned)(_quotient)


# ---- sums


def _sum_rule(sign: int) -> Callable:
    def apply(node: Node, t: Tangents, curved: bool) -> Answer:
        da, db = t(node.args["a"]), t(node.args["b"])
        if db is not None:
            factor = sign * node.args.get("alpha", 1)
            db = db if factor == 1 else factor * db
        y = plus(da, db)
        assert y is not None  # something moves, or the node would not be asked
        return y.expand(node.out[0].shape), None

    return apply


rule("add", "__add__", "__radd__", names="a b", moves="a b", samples=samples.aligned)(_sum_rule(1))
rule("sub", "subtract", "__sub__", names="a b", moves="a b", samples=samples.aligned)(_sum_rule(-1))
rule("__rsub__", "rsub", names="b a", moves="a b", samples=samples.aligned)(_sum_rule(-1))
