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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
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
        kwargs = {k: wide(v) for k, v in map_tensors(kwargs, promoted).items()}
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


def wide(dtype: Any) -> Any:
    """The complex dtype of a floating-point one; anything else as it is."""
    return dtype.to_complex() if isinstance(dtype, torch.dtype) and dtype.is_floating_point else dtype


def any_complex(*values: Any) -> bool:
    """Whether any of ``values`` is a complex tensor."""
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


def dims(z: Tensor, dim: Any) -> tuple[int, ...]:
    """The dimensions that ``dim`` names; all, if it names none."""
    return tuple(range(z.dim())) if dim is None or dim == () else (dim,) if isinstance(dim, int) else tuple(dim)


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
