"""How each operation y = F(x) carries a tangent and its curvature: one rule per operation.

A rule answers with (ẏ, s): ẏ = DF ẋ, and s = D²F[ẋ, ẋ], ``None`` where F is affine in what moves. It reads from the node
what the tape kept for it (``reads``: argument names, "y" for the output) and gets tangents by asking ``t``; the tangent of
what does not depend on the parameters is ``None``. Rules are linear in ẋ in their first answer, so the same rule carries
the second derivative ẍ when it is asked without curvature (``curved=False``).

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

if TYPE_CHECKING:
    from reprolib.curvature.tape import Node

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


def _layer(node: Node, t: Tangents, curved: bool, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Answer:
    x, w = node["input"], node["weight"]
    dx, dw, db = t(node.args["input"]), t(node.args["weight"]), t(node.args.get("bias"))
    y, s = None, None
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


@rule(F.linear, names="input weight bias", reads="input weight")
def linear(node: Node, t: Tangents, curved: bool) -> Answer:
    return _layer(node, t, curved, F.linear)


@rule(F.conv1d, F.conv2d, F.conv3d, names="input weight bias stride padding dilation groups", reads="input weight")
def conv(node: Node, t: Tangents, curved: bool) -> Answer:
    options = {k: node.args[k] for k in ("stride", "padding", "dilation", "groups") if k in node.args}
    return _layer(node, t, curved, lambda x, w, b: node.func(x, w, b, **options))


@rule(F.embedding, names="input weight padding_idx max_norm norm_type scale_grad_by_freq sparse")
def embedding(node: Node, t: Tangents, curved: bool) -> Answer:
    return F.embedding(node["input"], t(node.args["weight"])), None


# ---- products and quotients


def _bilinear(node: Node, t: Tangents, curved: bool, a: str, b: str, product: Callable[[Any, Any], Tensor]) -> Answer:
    da, db = t(node.args[a]), t(node.args[b])
    y = _sum(None if da is None else product(da, node[b]), None if db is None else product(node[a], db))
    s = 2 * product(da, db) if curved and da is not None and db is not None else None
    return y, s


@rule("mul", "multiply", "__mul__", "__rmul__", names="a b", reads="a b")
def mul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, "a", "b", torch.mul)


@rule("matmul", "__matmul__", "bmm", "mm", "mv", names="a b", reads="a b")
def matmul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, "a", "b", torch.matmul)


@rule("__rmatmul__", names="b a", reads="a b")
def rmatmul(node: Node, t: Tangents, curved: bool) -> Answer:
    return _bilinear(node, t, curved, "a", "b", torch.matmul)


def _quotient(node: Node, t: Tangents, curved: bool) -> Answer:
    """Y b = a, so ẏ = (ȧ − y ḃ)/b and s = −2 ẏ ḃ / b."""
    if node.args.get("rounding_mode") is not None:  # steps: flat almost everywhere
        return torch.zeros_like(node.y), None
    b, da, db = node["b"], t(node.args["a"]), t(node.args["b"])
    if db is None:
        return (da / b).expand(node.out[0].shape), None
    y = (-node.y * db if da is None else da - node.y * db) / b
    return y, -2 * y * db / b if curved else None


rule("div", "divide", "true_divide", "__truediv__", "__div__", names="a b", reads="b y")(_quotient)
rule("__rtruediv__", "__rdiv__", names="b a", reads="b y")(_quotient)


@rule("square", names="x", reads="x")
def square(node: Node, t: Tangents, curved: bool) -> Answer:
    dx = t(node.args["x"])
    return 2 * node["x"] * dx, 2 * dx * dx if curved else None


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


rule("add", "__add__", "__radd__", names="a b")(_sum_rule(1))
rule("sub", "subtract", "__sub__", names="a b")(_sum_rule(-1))
rule("__rsub__", "rsub", names="b a")(_sum_rule(-1))


# ---- elementwise functions: ẏ = f′ ẋ, s = f″ ẋ². Each gives (f′, f″ / f′ or f″ as is cheaper, read off x or y)


def elementwise(*ops: Any, names: str = "x", reads: str = "y", **options: Any) -> Callable:
    """Register a function node -> (f′, f″) as an elementwise rule; f″ ``None`` where it is zero almost everywhere."""

    def register(derivatives: Callable[[Node], tuple[Any, Any]]) -> Callable:
        def apply(node: Node, t: Tangents, curved: bool) -> Answer:
            dx = t(node.args[names.split()[0]])
            f1, f2 = derivatives(node)
            return f1 * dx, f2 * dx * dx if curved and f2 is not None else None

        rule(*ops, names=names, reads=reads, **options)(apply)
        return derivatives

    return register


@elementwise("tanh")
def tanh(node: Node):
    f1 = 1 - node.y * node.y
    return f1, -2 * node.y * f1


@elementwise("sigmoid")
def sigmoid(node: Node):
    f1 = node.y * (1 - node.y)
    return f1, f1 * (1 - 2 * node.y)


@elementwise("exp")
def exp(node: Node):
    return node.y, node.y


@elementwise("log", reads="x")
def log(node: Node):
    f1 = 1 / node["x"]
    return f1, -f1 * f1


@elementwise("log1p", reads="x")
def log1p(node: Node):
    f1 = 1 / (1 + node["x"])
    return f1, -f1 * f1


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
    f1 = 2 / math.sqrt(math.pi) * torch.exp(-x * x)
    return f1, -2 * x * f1


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
    f1 = torch.sigmoid(beta * x)
    linear = beta * x > threshold
    return torch.where(linear, 1.0, f1), torch.where(linear, 0.0, beta * f1 * (1 - f1))


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
    if node.args.get("approximate", "none") == "none":
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return torch.special.ndtr(x) + x * density, (2 - x * x) * density
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


for _name in [
    "flatten",
    "view",
    "reshape",
    "transpose",
    "permute",
    "contiguous",
    "unsqueeze",
    "squeeze",
    "expand",
    "expand_as",
    "chunk",
    "split",
    "unbind",
    "narrow",
    "select",
    "swapaxes",
    "movedim",
    "repeat",
    "flip",
    "roll",
    "tril",
    "triu",
    "clone",
    "to",
    "float",
    "double",
    "cumsum",
    "mean",
    "sum",
    "__getitem__",
    "t",
    "unflatten",
    "view_as",
    "T.__get__",
    "mT.__get__",
    "diagonal",
    "index_select",
    "gather",
]:
    RULES[_name] = Rule(_affine, (), frozenset(), many=True)
for _func in (
    F.avg_pool1d,
    F.avg_pool2d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.pad,
    F.unfold,
    F.fold,
    F.interpolate,
):
    RULES[_func] = Rule(_affine, (), frozenset(), many=True)


def _joined(node: Node, t: Tangents, curved: bool) -> Answer:
    parts, *rest = node.args["args"]
    tangents = [t(p) for p in parts]
    example = next(x for x in tangents if x is not None)
    filled = [example.new_zeros(p.shape) if x is None else x for p, x in zip(parts, tangents, strict=True)]
    return node.func(filled, *rest, **{k: v for k, v in node.args.items() if k != "args"}), None


for _name in ("cat", "stack", "concat", "concatenate"):
    RULES[_name] = Rule(_joined, (), frozenset(), many=True)


def _drop(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    """Dropout as a product with a mask that the node keeps."""
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    mask = func(torch.ones_like(given["input"], requires_grad=False), given.get("p", 0.5), given.get("training", True))
    return given["input"] * mask, {"mask": mask}


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, names="input p training inplace", run=_drop)
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
    rule(_pooling, names="input kernel_size stride padding dilation ceil_mode", run=_pool)(max_pool)


# ---- normalisation: x̂ = c σ with c = x − E x, σ = (E c² + ε)^(−½). With m₁ = E(x̂ ċ), m₂ = E(ċ²), by E-red-4:
#      ẋ̂ = σ (ċ − x̂ m₁)        D²x̂[ẋ, ẋ] = σ² (x̂ (3 m₁² − m₂) − 2 m₁ ċ)


def _normalise(x: Tensor, dx: Tensor | None, dims: list[int], eps: float, centred: bool, curved: bool):
    """(x̂, ẋ̂, D²x̂)."""
    c = x - x.mean(dims, keepdim=True) if centred else x
    σ = torch.rsqrt((c * c).mean(dims, keepdim=True) + eps)
    xh = c * σ
    if dx is None:
        return xh, None, None
    dc = dx - dx.mean(dims, keepdim=True) if centred else dx
    m1 = (xh * dc).mean(dims, keepdim=True)
    first = σ * (dc - xh * m1)
    if not curved:
        return xh, first, None
    m2 = (dc * dc).mean(dims, keepdim=True)
    return xh, first, σ * σ * (xh * (3 * m1 * m1 - m2) - 2 * m1 * dc)


def _scaled(node: Node, t: Tangents, normalised: tuple, shape: list[int]) -> Answer:
    """Y = w x̂ + b with w, b of ``shape``."""
    xh, first, second = normalised
    w, dw, db = node["weight"], t(node.args.get("weight")), t(node.args.get("bias"))
    y, s = first, second
    if w is not None:
        y = None if first is None else first * w.view(shape)
        s = None if second is None else second * w.view(shape)
    if dw is not None:
        y = _sum(y, xh * dw.view(shape))
        if second is not None:
            s = s + 2 * first * dw.view(shape)
    if db is not None:
        y = _sum(y, db.view(shape).expand_as(xh))
    return y, s


@rule(F.layer_norm, names="input normalized_shape weight bias eps", reads="input weight")
def layer_norm(node: Node, t: Tangents, curved: bool) -> Answer:
    shape = list(node.args["normalized_shape"])
    dims = list(range(-len(shape), 0))
    parts = _normalise(node["input"], t(node.args["input"]), dims, node.args.get("eps", 1e-5), True, curved)
    return _scaled(node, t, parts, shape)


@rule(F.rms_norm, names="input normalized_shape weight eps", reads="input weight")
def rms_norm(node: Node, t: Tangents, curved: bool) -> Answer:
    shape, x = list(node.args["normalized_shape"]), node["input"]
    eps = node.args.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(
        node, t, _normalise(x, t(node.args["input"]), list(range(-len(shape), 0)), eps, False, curved), shape
    )


@rule(F.batch_norm, names="input running_mean running_var weight bias training momentum eps", reads="input weight",
      run=lambda f, a, k: _keep_statistics(f, a, k))  # fmt: skip
def batch_norm(node: Node, t: Tangents, curved: bool) -> Answer:
    x, dx, eps = node["input"], t(node.args["input"]), node.args.get("eps", 1e-5)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if node.args.get("training", False):
        return _scaled(node, t, _normalise(x, dx, [0, *range(2, x.dim())], eps, True, curved), shape)
    mean, scale = node.args["mean"].view(shape), torch.rsqrt(node.args["variance"].view(shape) + eps)
    first = None if dx is None else dx * scale
    zero = torch.zeros_like(first) if curved and first is not None else None
    return _scaled(node, t, ((x - mean) * scale, first, zero), shape)


def _keep_statistics(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    """The running statistics as they were: a later pass of the same step may move them."""
    bound = dict(zip(RULES[F.batch_norm].names, args, strict=False)) | kwargs
    extra = {}
    if not bound.get("training", False):
        extra = {"mean": bound["running_mean"].clone(), "variance": bound["running_var"].clone()}
    return func(*args, **kwargs), extra


@rule(
    F.instance_norm,
    names="input running_mean running_var weight bias use_input_stats momentum eps",
    reads="input weight",
)
def instance_norm(node: Node, t: Tangents, curved: bool) -> Answer:
    x, eps = node["input"], node.args.get("eps", 1e-5)
    parts = _normalise(x, t(node.args["input"]), list(range(2, x.dim())), eps, True, curved)
    return _scaled(node, t, parts, [1, -1] + [1] * (x.dim() - 2))


@rule(F.group_norm, names="input num_groups weight bias eps", reads="input weight")
def group_norm(node: Node, t: Tangents, curved: bool) -> Answer:
    x, dx, groups = node["input"], t(node.args["input"]), node.args["num_groups"]
    split = (x.shape[0], groups, -1)
    parts = _normalise(
        x.reshape(split), None if dx is None else dx.reshape(split), [2], node.args.get("eps", 1e-5), True, curved
    )
    return _scaled(node, t, tuple(p if p is None else p.view(x.shape) for p in parts), [1, -1] + [1] * (x.dim() - 2))


# ---- softmax, attention


def _softmax(p: Tensor, dx: Tensor, ddx: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """First and second derivative of softmax at p along ẋ (and ẍ)."""
    c = dx - (p * dx).sum(dim, keepdim=True)
    first = p * c
    bend = c * c if ddx is None else c * c + ddx
    return first, p * (bend - (p * bend).sum(dim, keepdim=True))


@rule("softmax", F.softmax, names="input dim", reads="y")
def softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    first, second = _softmax(node.y, t(node.args["input"]), None, node.args["dim"])
    return first, second if curved else None


@rule("log_softmax", F.log_softmax, names="input dim", reads="y")
def log_softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    p, dx, dim = node.y.exp(), t(node.args["input"]), node.args["dim"]
    c = dx - (p * dx).sum(dim, keepdim=True)
    return c, -(p * c * c).sum(dim, keepdim=True).expand_as(c) if curved else None


@rule("logsumexp", names="input dim keepdim", reads="input y")
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


@rule(F.nll_loss, names="input target weight size_average ignore_index reduce reduction")
def nll(node: Node, t: Tangents, curved: bool) -> Answer:
    options = {k: node.args[k] for k in ("weight", "ignore_index", "reduction") if k in node.args}
    return F.nll_loss(t(node.args["input"]), node.args["target"], **options), None


def _mean_or_sum(node: Node, x: Tensor) -> Tensor:
    how = node.args.get("reduction", "mean")
    return x if how == "none" else x.mean() if how == "mean" else x.sum()


@rule(F.mse_loss, names="input target size_average reduce reduction weight", reads="input target")
def mse(node: Node, t: Tangents, curved: bool) -> Answer:
    da, db = t(node.args["input"]), t(node.args["target"])
    e = da if db is None else -db if da is None else da - db
    first = 2 * (node["input"] - node["target"]) * e
    return _mean_or_sum(node, first), _mean_or_sum(node, 2 * e * e) if curved else None


@rule(
    F.binary_cross_entropy_with_logits,
    names="input target weight size_average reduce reduction pos_weight",
    reads="input target",
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
        from reprolib.errors import UnsupportedOperation

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


def _drops(args: tuple, kwargs: dict) -> bool:
    return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


# function: (in which form it is written out, how)
EXPANDED: dict[Callable, tuple[Callable[[tuple, dict], bool], Callable]] = {
    F.multi_head_attention_forward: (lambda args, kwargs: True, _multi_head_attention),
    F.scaled_dot_product_attention: (_drops, _attention_with_dropout),
}
