"""Elementwise functions: ẏ = f′ ẋ, ÿ = f′ ẍ + f″ ẋ².

On large activations time is passes over memory, so f″ may be given as c ρ f′ (for tanh −2 y f′), and then
f″ ẋ² = c (ρ ẏ) ẋ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, rule


def elementwise(*ops: Any, names: str = "x", reads: str = "y", **options: Any) -> Callable:
    """Register node -> (f′, f″) as an elementwise rule. f″ is a tensor, (c, ρ), or ``None``: zero almost everywhere."""
    first = names.split()[0]

    def register(derivatives: Callable[[Node], tuple[Any, Any]]) -> Callable:
        def carry(node: Node, t: Tangents, u: Tangents | None, curved: bool = True) -> Answer:
            dx, ddx = t(node.args[first]), u(node.args[first]) if u else None
            f1, f2 = derivatives(node)
            y, s = f1 * dx, None if ddx is None else f1 * ddx
            if not curved or f2 is None:
                return y, s
            s = dx.new_zeros(()) if s is None else s
            if isinstance(f2, tuple):
                return y, torch.addcmul(s, f2[1] * y, dx, value=f2[0])
            return y, torch.addcmul(s, f2 * dx, dx)

        def apply(node: Node, t: Tangents, curved: bool) -> Answer:
            return carry(node, t, None, curved)

        kind: dict[str, Any] = {"carry": carry, "derivatives": derivatives, "samples": samples.aligned}
        rule(*ops, names=names, reads=reads, **kind, **options)(apply)
        return derivatives

    return register


def _one_minus(x: Tensor, y: Tensor) -> Tensor:
    """1 − x ∘ y in one pass."""
    return torch.addcmul(x.new_ones(()), x, y, value=-1)


@elementwise("square", reads="x")
def square(node: Node):
    return 2 * node["x"], 2


@elementwise("tanh")
def tanh(node: Node):
    return _one_minus(node.y, node.y), (-2, node.y)


@elementwise("sigmoid")
def sigmoid(node: Node):
    rest = 1 - node.y
    return node.y * rest, (1, rest - node.y)


@elementwise("exp")
def exp(node: Node):
    return node.y, node.y


@elementwise("log", reads="x")
def log(node: Node):
    f1 = 1 / node["x"]
    return f1, (-1, f1)


@elementwise("log1p", reads="x")
def log1p(node: Node):
    f1 = 1 / (1 + node["x"])
    return f1, (-1, f1)


@elementwise("sqrt")
def sqrt(node: Node):
    f1 = 0.5 / node.y
    return f1, -2 * f1 * f1 * f1


@elementwise("rsqrt")
def rsqrt(node: Node):
    cube = node.y**3
    return -0.5 * cube, 0.75 * cube * node.y * node.y


@elementwise("reciprocal")
def reciprocal(node: Node):
    f1 = -node.y * node.y
    return f1, -2 * f1 * node.y


@elementwise("sin", reads="x y")
def sin(node: Node):
    return torch.cos(node["x"]), -node.y


@elementwise("cos", reads="x y")
def cos(node: Node):
    return -torch.sin(node["x"]), -node.y


@elementwise("erf", reads="x")
def erf(node: Node):
    x = node["x"]
    return 2 / math.sqrt(math.pi) * torch.exp(-x * x), (-2, x)


@elementwise("neg", "__neg__", "negative", reads="")
def neg(node: Node):
    return -1, None


@elementwise(
    "pow", "__pow__", names="x exponent", reads="x", when=lambda args, kwargs: isinstance(args[-1], int | float)
)
def power(node: Node):
    x, n = node["x"], node["exponent"]
    return n * x ** (n - 1), n * (n - 1) * x ** (n - 2) if n != 1 else None


@elementwise(F.logsigmoid, "log_sigmoid", reads="x")
def logsigmoid(node: Node):
    f1 = torch.sigmoid(-node["x"])
    return f1, (-1, torch.sigmoid(node["x"]))


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    return ((x > low) & (x < high)).to(x.dtype)


@elementwise(F.hardswish, names="x inplace", reads="x")
def hardswish(node: Node):
    x = node["x"]
    inside = _inside(x, -3, 3)
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, x / 3 + 0.5)), inside / 3


@elementwise(F.relu6, names="x inplace", reads="x")
def relu6(node: Node):
    return _inside(node["x"], 0, 6), None


@elementwise("relu", F.relu)
def relu(node: Node):
    return (node.y > 0).to(node.y.dtype), None


@elementwise(F.leaky_relu, names="x negative_slope inplace", reads="x")
def leaky_relu(node: Node):
    x = node["x"]
    return torch.full_like(x, node.args.get("negative_slope", 0.01)).masked_fill(x > 0, 1.0), None


@elementwise("abs", reads="x", when=lambda args, kwargs: not args[0].is_complex())
def absolute(node: Node):
    return torch.sign(node["x"]), None


@elementwise(F.softplus, names="x beta threshold", reads="x")
def softplus(node: Node):
    x, beta, threshold = node["x"], node.args.get("beta", 1.0), node.args.get("threshold", 20.0)
    z = F.threshold(-beta * x, -threshold, -math.inf)  # −βx; where PyTorch goes straight on, −∞
    return torch.sigmoid(-z), (beta, torch.sigmoid(z))  # not 1 − σ(z): that has no digits left where βx ≪ 0


def _elu(y: Tensor, alpha: float, scale: float):
    """Scale · (x for x > 0, else α(eˣ − 1)), read off y: C¹ only, the second derivative jumps at 0 (E-red-10)."""
    positive, low = y > 0, y + alpha * scale
    return low.masked_fill(positive, scale), low.masked_fill(positive, 0.0)


@elementwise(F.elu, names="x alpha inplace")
def elu(node: Node):
    return _elu(node.y, node.args.get("alpha", 1.0), 1.0)


@elementwise(F.selu, names="x inplace")
def selu(node: Node):
    return _elu(node.y, 1.6732632423543772, 1.0507009873554805)


@elementwise(F.silu, names="x inplace", reads="x")
def silu(node: Node):
    x = node["x"]
    σ = torch.sigmoid(x)
    slope = σ * (1 - σ)
    return σ + x * slope, slope * (2 + x * (1 - 2 * σ))


@elementwise(F.gelu, names="x approximate", reads="x")
def gelu(node: Node):
    x = node["x"]
    if node.args.get("approximate", "none") == "none":  # Φ(x) + x φ(x), (2 − x²) φ(x), in as few temporaries as can be
        slope = torch.ops.aten.gelu_backward(torch.ones_like(x), x)
        bend = x * x
        density = torch.exp(-0.5 * bend).mul_(1 / math.sqrt(2 * math.pi))
        return slope, bend.neg_().add_(2).mul_(density)
    c, k = math.sqrt(2 / math.pi), 0.044715
    th = torch.tanh(c * (x + k * x**3))
    u1, u2 = c * (1 + 3 * k * x * x), 6 * c * k * x
    slope = 1 - th * th
    return 0.5 * (1 + th) + 0.5 * x * slope * u1, slope * u1 + 0.5 * x * slope * (u2 - 2 * th * u1 * u1)
