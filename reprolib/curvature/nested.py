"""Second derivatives of one operation, by PyTorch's own modes: in forward mode where that is right, else in reverse mode.

PyTorch's forward mode, nested in itself, is silently wrong for some operations: it takes for constant what a kernel keeps
for its backward pass (log|det W| has curvature 0 in it). So it is not trusted. When an operation is first met, for each
kind of arguments, its second derivative along random tangents v is compared with what reverse mode says of the same
numbers by an independent way, with random weights w:

    ⟨w, D²F[v, v]⟩ = ⟨v, ∇⟨v, ∇⟨w, F⟩⟩⟩

What disagrees, or has no forward derivative, is differentiated in reverse mode: g(w) = (DF)ᵀw is linear in w, so its own
derivative along v is DF v, and the same once more is D²F[v, v]. That is checked as well, and refused if it is wrong, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp as forward
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
from reprolib.curvature.replay import RandomState, written_out
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation

Function = Callable[..., tuple[Tensor, ...]]
Pair = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # first and second derivatives of all outputs

_WAY: dict[Any, str] = {}  # kind of call -> "forward" or "reverse", or why it is refused


def tangent(y: Tensor, at: Tensors, v: Tensors, keep: bool) -> Tensor:
    """(∂y/∂at) v, shaped like y, from the graph of y alone; ``keep``: with a graph of its own."""
    if not y.requires_grad:
        return torch.zeros_like(y)
    w = torch.zeros_like(y, requires_grad=True)
    g = torch.autograd.grad(y, tuple(at), w, create_graph=True, allow_unused=True)
    pairs = [(a, b) for a, b in zip(g, v, strict=True) if a is not None and a.requires_grad]
    if not pairs:
        return torch.zeros_like(y)
    moving, directions = zip(*pairs, strict=True)
    found = torch.autograd.grad(moving, w, directions, create_graph=keep, allow_unused=True)[0]
    return torch.zeros_like(y) if found is None else found


def by_forward(f: Function, xs: Tensors, v: Tensors, u: Tensors | None) -> Pair:
    """(DF v, D²F[v, v] + DF u) by forward mode nested in itself."""
    n = len(xs)
    u = [torch.zeros_like(x) for x in xs] if u is None else u
    ys, ss = forward(lambda *z: forward(f, z[:n], z[n:])[1], (*xs, *v), (*v, *u))  # type: ignore[misc]
    return tuple(y.detach() for y in ys), tuple(s.detach() for s in ss)


def by_reverse(f: Function, xs: Tensors, v: Tensors, u: Tensors | None) -> Pair:
    """The same by reverse mode, applied to F twice."""
    at = tuple(x.detach().requires_grad_() for x in xs)
    first, second = [], []
    for y in f(*at):
        slope = tangent(y, at, v, keep=True)
        bent = tangent(slope, at, v, keep=False)
        second.append((bent if u is None else bent + tangent(y, at, u, keep=False)).detach())
        first.append(slope.detach())
    return tuple(first), tuple(second)


BY: dict[str, Callable[..., Pair]] = {"forward": by_forward, "reverse": by_reverse}


def first_of(name: str, f: Function, xs: Tensors, v: Tensors) -> tuple[Tensor, ...]:
    """DF v of each output."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        try:
            return tuple(y.detach() for y in forward(f, tuple(xs), tuple(v))[1])
        except (RuntimeError, NotImplementedError):
            pass
        try:
            at = tuple(x.detach().requires_grad_() for x in xs)
            return tuple(tangent(y, at, v, keep=False).detach() for y in f(*at))
        except (RuntimeError, NotImplementedError) as error:
            raise _refused(name, error) from error


def second_of(name: str, kind: Any, f: Function, xs: Tensors, v: Tensors, u: Tensors | None) -> Pair:
    """(DF v, D²F[v, v] + DF u) of each output, by the way that :func:`way` has found right for this ``kind`` of call.

    Raises:
        UnsupportedOperation: no way is.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        how = way(name, kind, f, xs)
        if how not in BY:
            raise UnsupportedOperation(how)
        try:
            return BY[how](f, xs, v, u)
        except (RuntimeError, NotImplementedError) as error:
            raise _refused(name, error) from error


def way(name: str, kind: Any, f: Function, xs: Tensors) -> str:
    """``"forward"`` or ``"reverse"``, the first that is right here; else what is wrong with both, in a sentence."""
    if kind not in _WAY:
        _WAY[kind] = _chosen(name, f, xs)
    return _WAY[kind]


def trusted(func: Callable, args: tuple, kwargs: dict) -> Any:
    """A call of ``written_out``; :class:`UnsupportedOperation` if nested forward mode would not be right for it.

    For passes that will be made again in that mode (backend ``autodiff``).
    """
    before = RandomState(tensors((args, kwargs)))
    out = written_out(func, args, kwargs)
    name = getattr(func, "__name__", str(func))
    moving = [t for t in tensors((args, kwargs)) if t.requires_grad]
    if not moving or writes_in_place(name, kwargs) or not any(t.requires_grad for t in tensors(out)):
        return out
    which = kind_of(func, args, kwargs, lambda t: t.requires_grad)
    if which in _WAY and _WAY[which] == "forward":
        return out
    places = {id(t): i for i, t in enumerate(moving)}

    def f(*xs: Tensor) -> tuple[Tensor, ...]:
        before.rewind()  # the same dropout mask each time
        put = lambda x: map_tensors(x, lambda t: xs[places[id(t)]] if id(t) in places else t)  # noqa: E731
        made = written_out(func, put(args), {k: put(v) for k, v in kwargs.items()})
        return tuple(t for t in tensors(made) if t.is_floating_point() or t.is_complex())

    after = RandomState(moving)
    how = way(name, which, f, [t.detach() for t in moving])
    after.rewind()
    if how != "forward":
        raise UnsupportedOperation(
            f"nested forward mode of {name} is wrong or missing in PyTorch: use backend='tape' or backend='reverse'"
        )
    return out


def kind_of(func: Any, args: Any, kwargs: Any, moves: Callable[[Any], bool]) -> Any:
    """What the second derivative of a call may depend on, but for the numbers in its tensors; hashable."""

    def kind(x: Any) -> Any:
        if isinstance(x, Tensor):
            return ("tensor", x.dtype, x.dim(), moves(x))
        if isinstance(x, tuple | list):
            return tuple(map(kind, x))
        if isinstance(x, dict):
            return tuple((k, kind(v)) for k, v in sorted(x.items()))
        return x if isinstance(x, str | bool | int | float | type(None)) else type(x).__name__

    return (func, kind(args), kind(kwargs))


def _chosen(name: str, f: Function, xs: Tensors) -> str:
    """See :func:`way`."""
    generator = torch.Generator(xs[0].device).manual_seed(0)

    def drawn(t: Tensor) -> Tensor:
        return torch.randn(t.shape, dtype=t.dtype, device=t.device, generator=generator)

    xs = [x.detach() for x in xs]
    v = [drawn(x) for x in xs]
    try:
        at = tuple(x.clone().requires_grad_() for x in xs)
        ys = f(*at)
        w = [drawn(y) for y in ys]
        slope, bent = _expected(ys, w, at, v)
    except (RuntimeError, NotImplementedError) as error:
        return str(_refused(name, error))
    found = "nothing"
    for how, derive in BY.items():
        try:
            first, second = derive(f, xs, v, None)
        except (RuntimeError, NotImplementedError) as error:
            found = (str(error).splitlines() or [""])[0][:120]
            continue
        small = _size(w, ys)
        if _agree(w, first, slope, small) and _agree(w, second, bent, small + _size(w, first)):
            return how
        found = "another number than reverse mode's"
    return f"{name} has no rule, and PyTorch's second derivative of each output is wrong or missing ({found})"


def _expected(ys: Sequence[Tensor], w: Sequence[Tensor], at: Tensors, v: Tensors) -> tuple[Tensor, Tensor]:
    """⟨v, ∇⟨w, F⟩⟩ and ⟨v, ∇⟨v, ∇⟨w, F⟩⟩⟩."""
    total = _contracted([y if y.requires_grad else None for y in ys], w)
    zero = at[0].real.new_zeros(())
    if total is None:
        return zero, zero
    slope = _contracted(torch.autograd.grad(total, at, create_graph=True, allow_unused=True), v)
    if slope is None or not slope.requires_grad:
        return zero if slope is None else slope.detach(), zero
    bent = _contracted(torch.autograd.grad(slope, at, allow_unused=True), v)
    return slope.detach(), zero if bent is None else bent.detach()


def _contracted(g: Sequence[Tensor | None], v: Tensors) -> Tensor | None:
    terms = [_products(b, a).sum() for a, b in zip(g, v, strict=True) if a is not None]
    return torch.stack(terms).sum() if terms else None


def _products(a: Tensor, b: Tensor) -> Tensor:
    """The terms of the inner product of two tensors as real vectors."""
    return (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b


def _size(w: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    return torch.stack([_products(a, b.detach()).abs().sum() for a, b in zip(w, x, strict=True)]).sum()


def _agree(w: Sequence[Tensor], found: Sequence[Tensor], expected: Tensor, small: Tensor) -> bool:
    """Whether ⟨w, found⟩ is what is expected, to rounding; numbers that are none on both sides agree as well.

    Where the derivative is 0, what is computed are rounding errors of ``small``, the size of the derivatives below it.
    """
    terms = torch.cat([_products(a, b).reshape(-1) for a, b in zip(w, found, strict=True)])
    value, size = terms.sum(), torch.maximum(terms.abs().sum(), expected.abs())
    if not bool(torch.isfinite(expected)):
        return not bool(torch.isfinite(value))
    limits = torch.finfo(value.dtype)
    return bool((value - expected).abs() <= 100 * (limits.eps**0.75 * size + limits.eps * small) + limits.tiny)


def _refused(name: str, error: Exception) -> UnsupportedOperation:
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UnsupportedOperation(f"{name} has no rule and cannot be differentiated twice by PyTorch: {line}")
