"""PyTorch's operations continued analytically: what each of them does with θ + i h d in the place of θ.

A network of real numbers is a composition of functions that are analytic between kinks, so each has one continuation
f(a + i b) = f(a) + i b f′(a) − b² f″(a)/2 + …, and the complex step reads derivatives from its imaginary part. PyTorch has
it for the elementary functions, sums and products (``HOLOMORPHIC``: called as they are, their real arguments promoted). The
others are written out here (``EXTENSIONS``) with these conventions (METHODS 5.1):

* branches are taken on the real part: comparisons, maxima, ReLU, pooling, the shift of a softmax;
* squares are z², never |z|²: variances and norms are √ and sums of squares; transposes do not conjugate;
* what is constant between kinks (``CONSTANT``: comparisons, signs, shapes, indices, ``detach``) sees the real part only,
  and so does everything under ``no_grad``.

The imaginary part is so small (h = 1e-20) that b² vanishes beside 1, but it must be written where it is not implied: reverse
mode differentiates it to b f″, which is what a Hessian product consists of. What is in none of the tables is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
from reprolib.curvature.multihead import multi_head_attention
from reprolib.curvature.replay import WRITTEN_OUT, written_out
from reprolib.errors import UnsupportedOperation


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# fmt: off
HOLOMORPHIC = _names("""
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh
    add radd iadd sub rsub isub subtract mul rmul imul multiply neg negative positive rdiv rtruediv itruediv
    matmul rmatmul imatmul mm bmm mv dot inner outer addmm addbmm baddbmm addmv addcmul addcdiv lerp linear einsum tensordot
    sum mean cumsum prod cumprod trace diagonal diag diag_embed tril triu flip roll rot90 inverse
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose t T mT permute movedim moveaxis swapaxes
    swapdims expand expand_as broadcast_to broadcast_tensors repeat tile repeat_interleave contiguous clone narrow select
    getitem setitem chunk split tensor_split unbind iter cat concat concatenate stack hstack vstack dstack gather
    take_along_dim index_select index_add index_copy scatter scatter_add masked_fill masked_select where copy fill zero
    index_put pixel_shuffle pixel_unshuffle hash resolve_conj resolve_neg linalg_matmul linalg_inv linalg_solve linalg_det
""")
CONSTANT = _names("""
    lt le gt ge eq ne less greater equal not_equal less_equal greater_equal allclose isclose isnan isinf isfinite sign sgn
    signbit heaviside floor ceil round trunc floordiv floor_divide bucketize argmax argmin argsort any all bool __float__ int long
    index nonzero contains item tolist numpy detach size dim ndimension numel stride is_contiguous get_device element_size
    is_floating_point is_complex len format repr str array storage_offset data_ptr zeros_like ones_like full_like empty_like
    rand_like randn_like new_zeros new_ones new_full new_empty new_tensor bernoulli multinomial one_hot backward
""")
# fmt: on
EXTENSIONS: dict[str, Callable] = {}


def call(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)`` where complex arguments stand for values of the network that move.

    Raises:
        UnsupportedOperation: the function has no analytic continuation here.
    """
    if not any(t.is_complex() for t in tensors((args, kwargs))):
        return written_out(func, args, kwargs)
    name = _name(func)
    attribute = getattr(func, "__name__", "") == "__get__" and name not in HOLOMORPHIC and name not in EXTENSIONS
    if attribute or not torch.is_grad_enabled():
        return _constantly(func)(*args, **kwargs)
    if name in CONSTANT:
        return _extended(func, _constantly(func), args, kwargs)
    if func in WRITTEN_OUT:
        return written_out(func, args, kwargs)
    if name in EXTENSIONS:
        return _extended(func, EXTENSIONS[name], args, kwargs)
    if name in HOLOMORPHIC:
        kwargs = {k: _wide(v) for k, v in map_tensors(kwargs, promoted).items()}
        return func(*map_tensors(args, promoted), **kwargs)
    raise UnsupportedOperation(
        f"{name} has no complex form here: write it with basic operations or use the backend tape or autodiff"
    )


def _extended(func: Callable, f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``f`` in the place of ``func``, also where that writes into its argument."""
    in_place = writes_in_place(getattr(func, "__name__", ""), kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k != "inplace" and (k, v) != ("out", None)}
    try:
        if not in_place:
            return f(*args, **kwargs)
        return args[0].copy_(f(args[0].clone(), *args[1:], **kwargs))  # of a copy: reverse mode may need the value
    except TypeError as error:
        raise UnsupportedOperation(f"{_name(func)} has no complex form with these arguments: {error}") from error


def _constantly(func: Callable) -> Callable:
    """``func`` of the real parts."""
    return lambda *args, **kwargs: written_out(func, map_tensors(args, constant), map_tensors(kwargs, constant))


def _name(func: Callable) -> str:
    """``relu`` for relu, relu_ and torch.relu; ``add`` for __add__; ``T`` for the attribute."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return getattr(func.__self__, "__name__", "attribute")  # type: ignore[attr-defined]
    return name if name == "__float__" else name.strip("_").removeprefix("special_")


def real(z: Any) -> Any:
    """Re z of a complex tensor; anything else as it is."""
    return z.real if isinstance(z, Tensor) and z.is_complex() else z


def constant(t: Tensor) -> Tensor:
    """Re t without any derivative, also without those of forward mode."""
    return t.real.detach() if t.is_complex() else t


def promoted(t: Tensor) -> Tensor:
    """Floating-point tensors as complex ones."""
    return t.to(t.dtype.to_complex()) if t.is_floating_point() else t


def _wide(dtype: Any) -> Any:
    """The complex dtype of a floating-point one; anything else as it is."""
    return dtype.to_complex() if isinstance(dtype, torch.dtype) and dtype.is_floating_point else dtype


def extends(*names: str) -> Callable[[Callable], Callable]:
    """Register the analytic continuation of the operations of these names."""

    def register(f: Callable) -> Callable:
        EXTENSIONS.update(dict.fromkeys(names, f))
        return f

    return register


def taylor(z: Tensor, f: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """f(z) from f, f′, f″ at a = Re z: f − b²f″/2 + i b f′, and so for every derivative to first order in b."""
    b = z.imag
    return torch.complex(f - 0.5 * b * b * bend, b * slope)


# ---- conversions: a network may ask for dtypes; its complex values pass for real ones


@extends("to", "type_as")
def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def as_given(v: Any) -> Any:
        return _wide(v.dtype if isinstance(v, Tensor) else v)

    if not x.is_complex():  # only what it is converted to is complex
        return x.to(*map_tensors(args, real), **map_tensors(kwargs, real))
    dtypes = [v for v in map(as_given, (*args, *kwargs.values())) if isinstance(v, torch.dtype)]
    if dtypes and not dtypes[0].is_complex:
        return x.real.to(*args, **kwargs)
    return x.to(*map(as_given, args), **{k: as_given(v) for k, v in kwargs.items()})


@extends("float")
def _float(z: Tensor) -> Tensor:
    return z.to(torch.complex64)


@extends("double")
def _double(z: Tensor) -> Tensor:
    return z.to(torch.complex128)


@extends("conj", "real", "conj_physical")
def _itself(z: Tensor) -> Tensor:
    return z


@extends("H", "mH", "adjoint")
def _transposed(z: Tensor) -> Tensor:
    return z.mT


# ---- bilinear and linear operations


def _bilinear(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The product x ∗ w by real products: two if one factor is real, else four. Three (Karatsuba's) would cancel like eps/h."""
    if not w.is_complex():
        return torch.complex(product(x.real, w), product(x.imag, w))
    if not x.is_complex():
        return torch.complex(product(x, w.real), product(x, w.imag))
    re = product(x.real, w.real) - product(x.imag, w.imag)
    return torch.complex(re, product(x.real, w.imag) + product(x.imag, w.real))


def _convolution(product: Callable) -> Callable:
    def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
        def real_product(a: Tensor, b: Tensor) -> Tensor:
            return product(a, b, None, *rest, **kwargs)

        y = _bilinear(real_product, x, weight) if _any(x, weight) else real_product(x, weight)
        return y if bias is None else y + bias.view(-1, *[1] * (weight.dim() - 2))

    return convolution


for _conv in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
    EXTENSIONS[_conv] = _convolution(getattr(F, _conv))


def _any(*values: Any) -> bool:
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


def _linear(f: Callable) -> Callable:
    """An operation that is linear in its first argument and has no complex kernel."""

    def apart(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.complex(f(z.real, *args, **kwargs), f(z.imag, *args, **kwargs))

    return apart


for _d in (1, 2, 3):
    EXTENSIONS[f"avg_pool{_d}d"] = _linear(getattr(F, f"avg_pool{_d}d"))
    EXTENSIONS[f"adaptive_avg_pool{_d}d"] = _linear(getattr(F, f"adaptive_avg_pool{_d}d"))
EXTENSIONS.update(pad=_linear(F.pad), interpolate=_linear(F.interpolate), fold=_linear(F.fold))


@extends("unfold")
def _unfold(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``F.unfold`` (patches) of images, ``Tensor.unfold(dimension, size, step)`` with three numbers."""
    windows = len(args) == 3 or "step" in kwargs
    return z.unfold(*args, **kwargs) if windows else _linear(F.unfold)(z, *args, **kwargs)


@extends("embedding")
def _embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    if max_norm is not None or scale_grad_by_freq:
        raise TypeError("max_norm and scale_grad_by_freq change the weights or the gradient")
    rows = weight[input]
    return rows if padding_idx is None else torch.where((input == padding_idx)[..., None], rows.real.detach(), rows)


@extends("div", "truediv", "divide", "true_divide")
def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Tensor:
    return torch.div(x, y) if rounding_mode is None else torch.div(real(x), real(y), rounding_mode=rounding_mode)


def _masked(func: Callable) -> Callable:
    def dropped(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return z * func(torch.ones_like(z.real), *args, **kwargs)  # draws what the ordinary pass drew

    return dropped


for _drop in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"):
    EXTENSIONS[_drop] = _masked(getattr(F, _drop, None) or getattr(torch, _drop))


# ---- what branches


@extends("relu")
def _relu(z: Tensor) -> Tensor:
    return torch.where(z.real > 0, z, 0)


@extends("leaky_relu")
def _leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(z.real > 0, z, negative_slope * z)


@extends("prelu")
def _prelu(z: Tensor, weight: Tensor) -> Tensor:
    return torch.where(real(z) > 0, z, z * (weight.view(-1, *[1] * (z.dim() - 2)) if z.dim() > 1 else weight))


@extends("abs", "absolute")
def _abs(z: Tensor) -> Tensor:
    return z * torch.sign(z.real)


@extends("clamp", "clip")
def _clamp(z: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is not None:
        z = torch.where(real(z) >= real(min), z, min)
    return z if max is None else torch.where(real(z) <= real(max), z, max)


@extends("clamp_min")
def _clamp_min(z: Tensor, min: Any) -> Tensor:
    return _clamp(z, min)


@extends("clamp_max")
def _clamp_max(z: Tensor, max: Any) -> Tensor:
    return _clamp(z, None, max)


@extends("hardtanh")
def _hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _clamp(z, min_val, max_val)


@extends("relu6")
def _relu6(z: Tensor) -> Tensor:
    return _clamp(z, 0.0, 6.0)


@extends("hardsigmoid")
def _hardsigmoid(z: Tensor) -> Tensor:
    return _clamp(z + 3, 0.0, 6.0) / 6


@extends("hardswish")
def _hardswish(z: Tensor) -> Tensor:
    return z * _hardsigmoid(z)


def _max_pool(name: str) -> Callable:
    def pool(z: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        dims = int(name[-2])
        _, index = getattr(F, name)(z.real.detach(), *args, return_indices=True, **kwargs)
        picked = z.flatten(-dims).gather(-1, index.flatten(-dims)).view(index.shape)
        return (picked, index) if return_indices else picked

    return pool


for _d in (1, 2, 3):
    for _pool in (f"max_pool{_d}d", f"adaptive_max_pool{_d}d"):
        EXTENSIONS[_pool] = EXTENSIONS[f"{_pool}_with_indices"] = _max_pool(_pool)


def _extremum(name: str) -> Callable:
    """``max`` and ``min``: of all, along a dimension (with indices), or of two tensors."""

    def extremum(z: Tensor, dim: Any = None, keepdim: bool = False, other: Tensor | None = None) -> Any:
        if isinstance(dim, Tensor) or other is not None:
            return EXTENSIONS[f"{name}imum"](z, dim if other is None else other)
        if dim is None:
            return EXTENSIONS[f"a{name}"](z)
        index = getattr(torch, name)(z.real.detach(), dim, keepdim=True).indices
        picked = z.gather(dim, index)
        result = [picked, index] if keepdim else [picked.squeeze(dim), index.squeeze(dim)]
        return getattr(torch.return_types, name)(result)

    return extremum


def _extreme_value(name: str) -> Callable:
    """``amax`` and ``amin``: the mean of those that are equal, as their gradient says."""

    def extreme_value(z: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        a = z.real.detach()
        chosen = (a == getattr(torch, name)(a, dim, keepdim=True)).to(a.dtype)
        dim = tuple(range(z.dim())) if dim == () else dim
        return (z * (chosen / chosen.sum(dim, keepdim=True))).sum(dim, keepdim=keepdim)

    return extreme_value


def _larger(sign: int) -> Callable:
    def larger(x: Tensor, y: Tensor) -> Tensor:
        gap = sign * (real(x) - real(y)).detach()
        return torch.where(gap == 0, 0.5 * (x + y), torch.where(gap > 0, x, y))

    return larger


for _name_, _sign in (("max", 1), ("min", -1)):
    EXTENSIONS[_name_], EXTENSIONS[f"a{_name_}"] = _extremum(_name_), _extreme_value(f"a{_name_}")
    EXTENSIONS[f"{_name_}imum"] = _larger(_sign)


def _picked(name: str) -> Callable:
    def picked(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        dim = kwargs.get("dim", args[1 if name == "topk" else 0] if len(args) > (name == "topk") else -1)
        index = getattr(torch, name)(z.real.detach(), *args, **kwargs).indices
        return getattr(torch.return_types, name)((z.gather(dim, index), index))

    return picked


EXTENSIONS.update(sort=_picked("sort"), topk=_picked("topk"))


# ---- elementwise functions


@extends("pow", "ipow", "float_power")
def _pow(z: Any, exponent: Any) -> Tensor:
    """z^n without its polar form, which loses the imaginary part where Re z < 0."""
    if _any(exponent):
        return torch.exp(exponent * (torch.log(z) if isinstance(z, Tensor) else math.log(z)))
    if not isinstance(exponent, Tensor) and exponent in (0, 1, 2, 3, 4):
        return math.prod([z] * int(exponent), start=torch.ones_like(z))
    a, n = z.real, exponent
    return taylor(z, a**n, n * a ** (n - 1), n * (n - 1) * a ** (n - 2))


@extends("rpow")
def _rpow(z: Any, base: Any) -> Tensor:
    return _pow(base, z)


@extends("sigmoid")
def _sigmoid(z: Tensor) -> Tensor:
    """1/(1 + e^(−z)), or e^z/(1 + e^z) where Re z < 0: no overflow."""
    up = z.real >= 0
    t = torch.exp(torch.where(up, -z, z))
    return torch.where(up, 1, t) / (1 + t)


@extends("softplus")
def _softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(βz))/β, linear where β Re z > threshold."""
    u = beta * z
    up = u.real >= 0
    curved = torch.where(up, u, 0) + torch.log1p(torch.exp(torch.where(up, -u, u)))
    return torch.where(u.real > threshold, u, curved) / beta


@extends("logsigmoid", "log_sigmoid")
def _logsigmoid(z: Tensor) -> Tensor:
    return -_softplus(-z, threshold=math.inf)


@extends("silu")
def _silu(z: Tensor) -> Tensor:
    return z * _sigmoid(z)


@extends("mish")
def _mish(z: Tensor) -> Tensor:
    return z * torch.tanh(_softplus(z))


@extends("softsign")
def _softsign(z: Tensor) -> Tensor:
    return z / (1 + _abs(z))


@extends("tanhshrink")
def _tanhshrink(z: Tensor) -> Tensor:
    return z - torch.tanh(z)


def _exponential_unit(z: Tensor, alpha: float, scale: float = 1.0, rate: float = 1.0) -> Tensor:
    up = z.real > 0
    return scale * torch.where(up, z, alpha * torch.expm1(rate * torch.where(up, 0, z)))


@extends("elu")
def _elu(z: Tensor, alpha: float = 1.0) -> Tensor:
    return _exponential_unit(z, alpha)


@extends("celu")
def _celu(z: Tensor, alpha: float = 1.0) -> Tensor:
    return _exponential_unit(z, alpha, rate=1 / alpha)


@extends("selu")
def _selu(z: Tensor) -> Tensor:
    return _exponential_unit(z, alpha=1.6732632423543772, scale=1.0507009873554805)


@extends("erf")
def _erf(z: Tensor) -> Tensor:
    slope = 2 / math.sqrt(math.pi) * torch.exp(-z.real.square())
    return taylor(z, torch.erf(z.real), slope, -2 * z.real * slope)


@extends("erfc")
def _erfc(z: Tensor) -> Tensor:
    return 1 - _erf(z)


@extends("gelu")
def _gelu(z: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))
    return 0.5 * z * (1 + _erf(z / math.sqrt(2)))


# ---- normalisation, softmax, norms


def _dims(z: Tensor, dim: Any) -> tuple[int, ...]:
    return tuple(range(z.dim())) if dim is None or dim == () else (dim,) if isinstance(dim, int) else tuple(dim)


@extends("group_norm")
def _group_norm(z: Tensor, num_groups: int, weight=None, bias=None, eps: float = 1e-5, cudnn_enabled=None) -> Tensor:
    x = z.reshape(z.shape[0], num_groups, -1)
    x = x - x.mean(-1, keepdim=True)
    x = (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)).view(z.shape)
    shape = [1, -1] + [1] * (z.dim() - 2)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


@extends("rms_norm")
def _rms_norm(z: Tensor, normalized_shape: list[int], weight=None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    y = z * torch.rsqrt((z * z).mean(list(range(-len(normalized_shape), 0)), keepdim=True) + eps)
    return y if weight is None else y * weight


@extends("var")
def _var(z: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Tensor:
    """The mean of (z − E z)², not of |z − E z|²."""
    if isinstance(dim, bool):  # z.var(False)
        dim, unbiased = None, dim
    dims = _dims(z, dim)
    centred = z - z.mean(dims, keepdim=True)
    count = math.prod(z.shape[i] for i in dims) - (int(unbiased) if correction is None else correction)
    return (centred * centred).sum(dims, keepdim=keepdim) / count


@extends("std")
def _std(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.sqrt(_var(z, *args, **kwargs))


@extends("norm", "linalg_vector_norm")
def _norm(z: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """√Σz² or Σ|z|."""
    p = kwargs.pop("ord", p)
    if p not in (None, 1, 2, "fro") or any(v is not None for v in kwargs.values()):
        raise TypeError(f"a norm with p = {p!r}, {kwargs}")
    dims = _dims(z, dim)
    return _abs(z).sum(dims, keepdim=keepdim) if p == 1 else torch.sqrt((z * z).sum(dims, keepdim=keepdim))


@extends("normalize")
def _normalize(z: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return z / _clamp(_norm(z, p, dim, True), eps)


def _shifted(z: Tensor, dim: Any) -> tuple[Tensor, Tensor]:
    """What keeps exponentials finite: z minus the largest real part, and that."""
    if dim is None:
        raise TypeError("no dimension given")
    shift = z.real.detach().amax(_dims(z, dim), keepdim=True)
    return z - shift, shift


@extends("softmax")
def _softmax(z: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, _stacklevel: int = 3) -> Tensor:
    weights = torch.exp(_shifted(z if dtype is None else _to(z, dtype), dim)[0])
    return weights / weights.sum(dim, keepdim=True)


@extends("log_softmax")
def _log_softmax(z: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, _stacklevel: int = 3) -> Tensor:
    shifted = _shifted(z if dtype is None else _to(z, dtype), dim)[0]
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


@extends("logsumexp")
def _logsumexp(z: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    shifted, shift = _shifted(z, dim)
    result = torch.log(torch.exp(shifted).sum(dim, keepdim=True)) + shift
    return result if keepdim else result.squeeze(_dims(z, dim))


# ---- attention


@extends("scaled_dot_product_attention")
def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    query, key, value = promoted(query), promoted(key), promoted(value)
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    p = _softmax(scores, -1)
    return (p if dropout_p == 0 else EXTENSIONS["dropout"](p, dropout_p)) @ value


class _Calls(TorchFunctionMode):
    """What is called inside, continued analytically: for functions that are a small network of their own."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


@extends("multi_head_attention_forward")
def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    with _Calls():
        return multi_head_attention(*args, **kwargs)


# ---- losses


def _reduced(losses: Tensor, reduction: str, total: Any = None) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (losses.numel() if total is None else total)


def _nll(logp: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: str) -> Tensor:
    """−w_y log p_y, with a share ``smoothing`` of the target spread over the classes; axis 1 (or 0) is that of the classes."""
    axis = 1 if logp.dim() > 1 else 0
    keep = target != ignored
    label = torch.where(keep, target, 0)
    own = keep.to(logp.real.dtype) if weight is None else torch.where(keep, weight[label], 0)
    losses = -own * logp.gather(axis, label.unsqueeze(axis)).squeeze(axis)
    if smoothing:
        spread = logp if weight is None else logp * weight.view(-1, *[1] * (logp.dim() - 1 - axis))
        losses = (1 - smoothing) * losses - smoothing / logp.shape[axis] * torch.where(keep, spread.sum(axis), 0)
    return _reduced(losses, reduction, own.sum())


@extends("nll_loss")
def _nll_loss(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"
) -> Tensor:
    _modern(size_average, reduce)
    return _nll(input, target, weight, ignore_index, 0.0, reduction)


@extends("cross_entropy")
def _cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0
) -> Tensor:
    _modern(size_average, reduce)
    axis = 1 if input.dim() > 1 else 0
    logp = _log_softmax(promoted(input), axis)
    if target.shape != input.shape:
        return _nll(logp, target, weight, ignore_index, label_smoothing, reduction)
    classes = input.shape[axis]
    target = target * (1 - label_smoothing) + label_smoothing / classes
    weighted = logp if weight is None else logp * weight.view(-1, *[1] * (input.dim() - 1 - axis))
    return _reduced(-(target * weighted).sum(axis), reduction)


def _modern(size_average: Any, reduce: Any) -> None:
    if size_average is not None or reduce is not None:
        raise TypeError("size_average and reduce: use reduction")


@extends("mse_loss")
def _mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None) -> Tensor:
    _modern(size_average, reduce)
    if weight is not None:
        raise TypeError("mse_loss with weight")
    return _reduced(torch.square(input - target), reduction)


@extends("l1_loss")
def _l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None) -> Tensor:
    _modern(size_average, reduce)
    if weight is not None:
        raise TypeError("l1_loss with weight")
    return _reduced(_abs(input - target), reduction)


@extends("binary_cross_entropy_with_logits")
def _bce_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
) -> Tensor:
    """(1 − y) x + (1 + (w₊ − 1) y) log(1 + e^(−x))."""
    _modern(size_average, reduce)
    x = promoted(input)
    share = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * x - share * _logsigmoid(x)
    return _reduced(losses if weight is None else losses * weight, reduction)
