"""How each operation y = F(x) carries a tangent and its curvature: one rule per operation.

A rule answers with (ẏ, s): ẏ = DF ẋ, and s = D²F[ẋ, ẋ], ``None`` where F is affine in what moves. It reads from the node
what the tape kept for it (``reads``: argument names, "y" for the output) and gets tangents by asking ``t``; the tangent of
what does not depend on the parameters is ``None``. Rules are linear in ẋ in their first answer, so the same rule carries
the second derivative ẍ when it is asked without curvature (``curved=False``).

A rule also says where the samples are (``samples``, see ``samples.py``), whether it is a matrix product, before which second
derivatives are better paid than carried, and, where the recorded call cannot simply be run again, how (``again``).

The formulas are those of Table 1 of the RED paper with its errata (METHODS E-red-3, E-red-4), and what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature import samples
from reprolib.curvature.samples import Place
from reprolib.errors import UnsupportedOperation

if TYPE_CHECKING:
    from reprolib.curvature.recorder import Node

Tangents = Callable[[Any], Any]  # an argument of the node -> its tangent(s), None where nothing moves
Answer = tuple[Any, Any]  # (ẏ, s)


@dataclass(frozen=True)
class Rule:
    """``apply(node, t, curved)`` -> (ẏ, s); the argument names by position; what of the node it reads.

    ``run(func, args, kwargs)`` -> (output, extras for the node) replaces the call while recording, where the replay needs
    something that the call does not return. ``many``: the arguments are kept as they are, not bound to names.
    """

    apply: Callable[[Node, Tangents, bool], Answer]
    names: tuple[str, ...]
    reads: frozenset[str]
    run: Callable[..., tuple[Any, dict[str, Any]]] | None = None
    many: bool = False
    when: Callable[[tuple, dict], bool] = lambda args, kwargs: True  # else the operation has no rule in this form
    carry: Callable[[Node, Tangents, Tangents], Answer] | None = None  # (node, ẋ, ẍ) -> (ẏ, ÿ) at less than twice apply
    derivatives: Callable[[Node], tuple[Any, Any]] | None = None  # of an elementwise function of its first argument
    samples: Place = samples.nowhere
    by_index: Place | None = None  # the same if what arises at a sample is called its own although samples are mixed
    product: bool = False  # a matrix product
    factors: tuple[str, ...] = ()  # what it is the product of, if it can share products, and the product
    bilinear: Callable[[Node, Tensor, Tensor], Tensor] | None = None
    again: Callable[[Node, tuple, dict], Any] | None = None

    def name(self, keyword: str) -> str:
        """The name of an argument that was given by keyword (``torch.mul(x, other=y)``)."""
        if self.many or keyword in self.names or keyword not in _POSITION:
            return keyword
        return self.names[_POSITION[keyword]]

    def advance(self, node: Node, t: Tangents, u: Tangents | None) -> Answer:
        """(ẏ, ÿ) from ẋ and ẍ; without ``u`` only ẏ."""
        if u is None or not any(u(v) is not None for v in node.inputs()):
            return self.apply(node, t, u is not None)
        if self.carry:
            return self.carry(node, t, u)
        y, s = self.apply(node, t, True)
        linear = self.apply(node, u, False)[0]
        if isinstance(linear, list | tuple):
            return y, linear  # several outputs: views, which bend nothing
        return y, _sum(s, linear)


_POSITION = {"self": 0, "input": 0, "other": 1, "mat2": 1, "vec": 1}


RULES: dict[Any, Rule] = {}  # by function, or by name for methods and their functional forms


def rule(*ops: Any, names: str, reads: str = "", **options: Any) -> Callable:
    """Register the decorated function as the rule of ``ops``."""

    def register(apply: Callable) -> Callable:
        for op in ops:
            RULES[op] = Rule(apply, tuple(names.split()), frozenset(reads.split()), **options)
        return apply

    return register


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


# ---- linear layers: y = x * w + b, bilinear in (x, w), so D²F[ẋ, ẋ] = 2 ẋ * ẇ


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
        y = _sum(y, product(x, dw, db))
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


@rule(F.embedding, names="input weight padding_idx max_norm norm_type scale_grad_by_freq sparse")
def embedding(node: Node, t: Tangents, curved: bool) -> Answer:
    return F.embedding(node["input"], t(node.args["weight"])), None


# ---- products and quotients


def _bilinear(node: Node, t: Tangents, curved: bool, product: Callable[[Any, Any], Tensor]) -> Answer:
    a, b, da, db = node["a"], node["b"], t(node.args["a"]), t(node.args["b"])
    both = da is not None and db is not None
    if both and curved and node.out[0].data is not None:
        first, cross = shared_products(lambda x, w, _: product(x, w), node.y, a, b, da, db)
        return first, 2 * cross
    y = _sum(None if da is None else product(da, b), None if db is None else product(a, db))
    return y, 2 * product(da, db) if curved and both else None


@rule("mul", "multiply", "__mul__", "__rmul__", names="a b", reads="a b", samples=samples.aligned)
def mul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, torch.mul)


_MATRICES: dict[str, Any] = {"reads": "a b", "samples": samples.product, "product": True, "factors": ("a", "b"),
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


rule("div", "divide", "true_divide", "__truediv__", "__div__", names="a b", reads="b y", samples=samples.aligned)(
    _quotient
)
rule("__rtruediv__", "__rdiv__", names="b a", reads="b y", samples=samples.aligned)(_quotient)


# ---- sums


def _sum_rule(sign: int) -> Callable:
    def apply(node: Node, t: Tangents, curved: bool) -> Answer:
        da, db = t(node.args["a"]), t(node.args["b"])
        if db is not None:
            factor = sign * node.args.get("alpha", 1)
            db = db if factor == 1 else factor * db
        y = _sum(da, db)
        assert y is not None  # something moves, or the node would not be asked
        return y.expand(node.out[0].shape), None

    return apply


rule("add", "__add__", "__radd__", names="a b", samples=samples.aligned)(_sum_rule(1))
rule("sub", "subtract", "__sub__", names="a b", samples=samples.aligned)(_sum_rule(-1))
rule("__rsub__", "rsub", names="b a", samples=samples.aligned)(_sum_rule(-1))


# ---- elementwise functions: ẏ = f′ ẋ, ÿ = f′ ẍ + f″ ẋ². On large activations time is passes over memory, so f″ may be
#      given as c ρ f′ (for tanh −2 y f′), and then f″ ẋ² = c (ρ ẏ) ẋ


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

        kind = {"carry": carry, "derivatives": derivatives, "samples": samples.aligned}
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


@elementwise("relu", F.relu)
def relu(node: Node):
    return (node.y > 0).to(node.y.dtype), None


@elementwise(F.leaky_relu, names="x negative_slope inplace", reads="x")
def leaky_relu(node: Node):
    x = node["x"]
    return torch.full_like(x, node.args.get("negative_slope", 0.01)).masked_fill(x > 0, 1.0), None


@elementwise("abs", reads="x")
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


# ---- affine operations: the tangent goes through the operation itself


def _affine(node: Node, t: Tangents, curved: bool) -> Answer:
    (x, *rest), kwargs = node.args["args"], {k: v for k, v in node.args.items() if k != "args"}
    dx = t(x)
    like = [dx.new_empty(1).expand(v.shape) if hasattr(v, "data") and not isinstance(v, Tensor) else v for v in rest]
    return node.func(dx, *like, **kwargs), None


def _register(place: Place, *ops: Any) -> None:
    for op in ops:
        RULES[op] = Rule(_affine, (), frozenset(), many=True, samples=place)


def _property(name: str) -> Any:
    """What a function mode sees of ``x.T``."""
    return getattr(Tensor, name).__get__


_register(samples.reshaped, "flatten", "view", "reshape", "contiguous", "unsqueeze", "squeeze", "unflatten", "view_as",
          "clone", "to", "float", "double")  # fmt: skip
_register(samples.viewed, "transpose", "permute", "swapaxes", "movedim", "t", _property("T"), _property("mT"), "chunk", "split",
          "unbind", "narrow", "select", "__getitem__", "diagonal")  # fmt: skip
_register(samples.aligned, "expand", "expand_as", "tril", "triu")
_register(samples.along, "mean", "sum")
_register(samples.nowhere, "repeat", "flip", "roll", "cumsum", "index_select", "gather")
_register(samples.trailing(1), F.avg_pool1d, F.adaptive_avg_pool1d)
_register(samples.trailing(2), F.avg_pool2d, F.adaptive_avg_pool2d)
_register(samples.trailing(lambda node: len(node.args["args"][1]) // 2 if len(node.args["args"]) > 1 else 9), F.pad)
_register(samples.channels, F.unfold, F.fold, F.interpolate)


def _joined(node: Node, t: Tangents, curved: bool) -> Answer:
    parts, *rest = node.args["args"]
    tangents = [t(p) for p in parts]
    example = next(x for x in tangents if x is not None)
    filled = [example.new_zeros(p.shape) if x is None else x for p, x in zip(parts, tangents, strict=True)]
    return node.func(filled, *rest, **{k: v for k, v in node.args.items() if k != "args"}), None


for _name in ("cat", "stack", "concat", "concatenate"):
    RULES[_name] = Rule(_joined, (), frozenset(), many=True, samples=samples.joined)


def _drop(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    """Dropout as a product with a mask that the node keeps."""
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    mask = func(torch.ones_like(given["input"], requires_grad=False), given.get("p", 0.5), given.get("training", True))
    return given["input"] * mask, {"mask": mask}


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, names="input p training inplace", run=_drop,
      samples=samples.aligned, again=lambda node, args, kwargs: args[0] * node.args["mask"])  # fmt: skip
def dropout(node: Node, t: Tangents, curved: bool) -> Answer:
    return t(node.args["input"]) * node.args["mask"], None


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


# ---- normalisation: x̂ = c σ with c = x − E x, σ = (E c² + ε)^(−½). With m₁ = E(x̂ ċ), m₂ = E(ċ²), by E-red-4:
#      ẋ̂ = σ (ċ − x̂ m₁)        D²x̂[ẋ, ẋ] = σ² (x̂ (3 m₁² − m₂) − 2 m₁ ċ)


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
        y = _sum(y, xh * dw.view(shape))
        if u and first is not None:
            s = _sum(s, 2 * first * dw.view(shape))
    if ddw is not None:
        s = _sum(s, xh * ddw.view(shape))
    if db is not None:
        y = _sum(y, db.view(shape).expand_as(xh))
    if ddb is not None:
        s = _sum(s, ddb.view(shape).expand_as(xh))
    return y, s


def _norm(*ops: Any, names: str, **options: Any) -> Callable:
    """Register (node, t, u) -> (ẏ, ÿ) for a normalisation."""

    def register(carry: Callable[[Node, Tangents, Tangents | None], Answer]) -> Callable:
        def apply(node: Node, t: Tangents, curved: bool) -> Answer:
            return carry(node, t, (lambda x: None) if curved else None)

        rule(*ops, names=names, reads="input weight", carry=carry, **options)(apply)
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


# ---- softmax, attention


def _softmax(p: Tensor, dx: Tensor, ddx: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """First and second derivative of softmax at p along ẋ (and ẍ)."""
    c = dx - (p * dx).sum(dim, keepdim=True)
    first = p * c
    bend = c * c if ddx is None else c * c + ddx
    return first, p * (bend - (p * bend).sum(dim, keepdim=True))


@rule("softmax", F.softmax, names="input dim", reads="y", samples=samples.along)
def softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    first, second = _softmax(node.y, t(node.args["input"]), None, node.args["dim"])
    return first, second if curved else None


@rule("log_softmax", F.log_softmax, names="input dim", reads="y", samples=samples.along)
def log_softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    p, dx, dim = node.y.exp(), t(node.args["input"]), node.args["dim"]
    c = dx - (p * dx).sum(dim, keepdim=True)
    return c, -(p * c * c).sum(dim, keepdim=True).expand_as(c) if curved else None


@rule("logsumexp", names="input dim keepdim", reads="input y", samples=samples.along)
def logsumexp(node: Node, t: Tangents, curved: bool) -> Answer:
    dim, keep, dx = node.args["dim"], node.args.get("keepdim", False), t(node.args["input"])
    p = (
        torch.softmax(node["input"], dim)
        if isinstance(dim, int)
        else (node["input"] - node["input"].logsumexp(dim, True)).exp()
    )
    m = (p * dx).sum(dim, keepdim=True)
    second = (p * (dx - m) ** 2).sum(dim, keepdim=keep) if curved else None
    return (p * dx).sum(dim, keepdim=keep), second


@rule(
    F.scaled_dot_product_attention,
    names="query key value attn_mask dropout_p is_causal scale enable_gqa",
    reads="query key value",
    samples=samples.heads,
    product=True,
    when=lambda args, kwargs: not kwargs.get("enable_gqa", False),
)
def attention(node: Node, t: Tangents, curved: bool) -> Answer:
    q, k, v = node["query"], node["key"], node["value"]
    dq, dk, dv = t(node.args["query"]), t(node.args["key"]), t(node.args["value"])
    scale = node.args.get("scale") or 1 / math.sqrt(q.shape[-1])
    mask, scores = node.args.get("attn_mask"), q @ k.transpose(-1, -2) * scale
    if node.args.get("is_causal", False):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        mask = mask.data if not isinstance(mask, Tensor) else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    p = torch.softmax(scores, -1)
    ds = _sum(None if dq is None else dq @ k.transpose(-1, -2), None if dk is None else q @ dk.transpose(-1, -2))
    if ds is None:
        return p @ dv, None
    dds = 2 * scale * dq @ dk.transpose(-1, -2) if dq is not None and dk is not None else None
    dp, ddp = _softmax(p, scale * ds, dds, -1)
    y = dp @ v if dv is None else dp @ v + p @ dv
    if not curved:
        return y, None
    return y, ddp @ v if dv is None else ddp @ v + 2 * dp @ dv


# ---- losses, one per sample


def _expected(z: Tensor, node: Node) -> Tensor:
    """−Σ_c q_c w_c z_c with q the (smoothed) target: cross-entropy as a linear function of the log-probabilities z."""
    target, weight, smoothing = node.args["target"], node["weight"], node.args.get("label_smoothing", 0.0)
    w = None if weight is None else weight.view(1, -1, *[1] * (z.dim() - 2))
    if target.is_floating_point():
        target = target * (1 - smoothing) + smoothing / z.shape[1]
        return -(target * (z if w is None else w * z)).sum(1)
    loss = (1 - smoothing) * F.nll_loss(
        z, target, weight, ignore_index=node.args.get("ignore_index", -100), reduction="none"
    )
    if smoothing:
        uniform = -(z if w is None else w * z).mean(1)
        loss = loss + smoothing * uniform.masked_fill(target == node.args.get("ignore_index", -100), 0.0)
    return loss


@rule(
    F.cross_entropy,
    names="input target weight size_average ignore_index reduce reduction label_smoothing",
    reads="input",
    samples=samples.classes,
)
def cross_entropy(node: Node, t: Tangents, curved: bool) -> Answer:
    x, dx = node["input"], t(node.args["input"])
    p = torch.softmax(x, 1)
    c = dx - (p * dx).sum(1, keepdim=True)
    first = _expected(c, node)
    second = _expected(-(p * c * c).sum(1, keepdim=True).expand_as(c), node) if curved else None
    return _reduced(node, first), None if second is None else _reduced(node, second)


def _reduced(node: Node, losses: Tensor) -> Tensor:
    """Sum or mean as the call asked (the mean of cross-entropy is over the targets' weights)."""
    how = node.args.get("reduction", "mean")
    if how == "none":
        return losses
    if how == "sum":
        return losses.sum()
    target, weight, ignored = node.args["target"], node["weight"], node.args.get("ignore_index", -100)
    if target.is_floating_point():
        return losses.sum() / losses.numel()
    kept = target != ignored
    total = kept.sum() if weight is None else weight[target.clamp(min=0)][kept].sum()
    return losses.sum() / total


@rule(F.nll_loss, names="input target weight size_average ignore_index reduce reduction", samples=samples.classes)
def nll(node: Node, t: Tangents, curved: bool) -> Answer:
    options = {k: node.args[k] for k in ("weight", "ignore_index", "reduction") if k in node.args}
    return F.nll_loss(t(node.args["input"]), node.args["target"], **options), None


def _mean_or_sum(node: Node, x: Tensor) -> Tensor:
    how = node.args.get("reduction", "mean")
    return x if how == "none" else x.mean() if how == "mean" else x.sum()


@rule(
    F.mse_loss,
    names="input target size_average reduce reduction weight",
    reads="input target",
    samples=samples.unreduced,
)
def mse(node: Node, t: Tangents, curved: bool) -> Answer:
    da, db = t(node.args["input"]), t(node.args["target"])
    e = da if db is None else -db if da is None else da - db
    first = 2 * (node["input"] - node["target"]) * e
    return _mean_or_sum(node, first), _mean_or_sum(node, 2 * e * e) if curved else None


@rule(
    F.binary_cross_entropy_with_logits,
    names="input target weight size_average reduce reduction pos_weight",
    reads="input target",
    samples=samples.unreduced,
)
def bce_with_logits(node: Node, t: Tangents, curved: bool) -> Answer:
    """ℓ = (1 − y) x + (1 + (w₊ − 1) y) softplus(−x)."""
    x, y, dx, w, positive = node["input"], node["target"], t(node.args["input"]), node["weight"], node["pos_weight"]
    σ = torch.sigmoid(x)
    share = 1 if positive is None else 1 + (positive - 1) * y
    first, second = ((1 - y) - share * (1 - σ)) * dx, share * σ * (1 - σ) * dx * dx
    if w is not None:
        first, second = w * first, w * second
    return _mean_or_sum(node, first), _mean_or_sum(node, second) if curved else None


# ---- calls that are small networks of their own: written out while recording


def _multi_head_attention(
    query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn, dropout_p,
    out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True, attn_mask=None,
    use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None, static_k=None, static_v=None,
    average_attn_weights=True, is_causal=False,
):  # fmt: skip
    """``F.multi_head_attention_forward`` in basic operations; inputs (T, B, E) or (T, E)."""
    if bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise UnsupportedOperation(
            "multi_head_attention_forward with bias_k, bias_v, add_zero_attn or static keys has no rule"
        )
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    apart = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = apart if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    (T, B, E), S = query.shape, key.shape[0]

    def heads(x: Tensor, w: Tensor, b: Tensor | None, n: int) -> Tensor:
        return F.linear(x, w, b).reshape(n, B, num_heads, E // num_heads).permute(1, 2, 0, 3)

    q, k, v = (heads(x, w, b, n) for x, w, b, n in zip((query, key, value), weights, biases, (T, S, S), strict=True))
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(E // num_heads))
    for mask, shape in ((attn_mask, None), (key_padding_mask, (B, 1, 1, S))):
        if mask is not None:
            mask = mask if shape is None else mask.view(shape)
            mask = mask.view(B, num_heads, T, S) if mask.dim() == 3 else mask
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(mask, -math.inf)
            scores = scores + mask
    p = torch.softmax(scores, -1)
    if dropout_p > 0 and training:
        p = F.dropout(p, dropout_p, True)
    out = torch.matmul(p, v).permute(2, 0, 1, 3).reshape(T, B, E)
    out = F.linear(out, out_proj_weight, out_proj_bias)
    weights_out = None
    if need_weights:
        weights_out = p.mean(1) if average_attn_weights else p
        weights_out = weights_out if batched else weights_out.squeeze(0)
    return out if batched else out.squeeze(1), weights_out


def _attention_with_dropout(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention whose dropout mask is recorded like any other; else the fused kernel stays in the forward pass."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.matmul(F.dropout(torch.softmax(scores, -1), dropout_p), value)


# The kernels' own names for the norms, with the arguments in their order. Nested forward mode of them is silently wrong.


def _batch_norm_kernel(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False):
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm_kernel(
    input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=False
):
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _layer_norm_kernel(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False):
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def _refused(name: str) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedOperation(f"{name} keeps its statistics as constants: call the norm of torch.nn.functional")

    return refuse


def _drops(args: tuple, kwargs: dict) -> bool:
    return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


def _always(args: tuple, kwargs: dict) -> bool:
    return True


# function: (in which form it is written out, how)
EXPANDED: dict[Callable, tuple[Callable[[tuple, dict], bool], Callable]] = {
    F.multi_head_attention_forward: (_always, _multi_head_attention),
    torch.batch_norm: (_always, _batch_norm_kernel),
    torch.instance_norm: (_always, _instance_norm_kernel),
    torch.layer_norm: (_always, _layer_norm_kernel),
    torch.native_batch_norm: (_always, _refused("native_batch_norm")),
    torch.native_layer_norm: (_always, _refused("native_layer_norm")),
    F.scaled_dot_product_attention: (_drops, _attention_with_dropout),
}
