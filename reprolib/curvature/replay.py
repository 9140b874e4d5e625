"""Run a closure again with other values in the place of its parameters, leaving no trace.

Exact second derivatives need the network more than once per step, but a training step has effects that must happen
once: batch-norm statistics advance, dropout draws a mask. :class:`Repeat` holds what one ordinary pass started from;
each further pass runs under a function mode that

* puts dual numbers (or any other values) in the place of the parameters,
* starts from the random state of the first pass, so every pass sees the same dropout mask,
* redirects in-place writes to tensors that existed before the pass (buffers) to a copy,
* writes out the fused norms, whose nested forward derivative PyTorch gets wrong without saying so,
* lets attention run as plain matrix products, because the fused kernel has no forward derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation

Call = Callable[[Callable, tuple, dict], Any]


class RandomState:
    """The state of the random generators now, of the processor and of the devices of some tensors, to go back to."""

    def __init__(self, used: Iterable[Tensor]):
        devices = sorted({t.device.index for t in used if t.device.type == "cuda"})
        self._cpu = torch.get_rng_state()
        self._cuda = {i: torch.cuda.get_rng_state(i) for i in devices}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        same = torch.equal(self._cpu, other._cpu) and self._cuda.keys() == other._cuda.keys()
        return same and all(torch.equal(state, other._cuda[i]) for i, state in self._cuda.items())

    def rewind(self) -> None:
        """Draw the same numbers again from here."""
        torch.set_rng_state(self._cpu)
        for i, state in self._cuda.items():
            torch.cuda.set_rng_state(state, i)


class Repeat:
    """One pass ``params -> f(params)`` of user code that can be run again at other values of ``params``.

    Create it *before* the ordinary pass: it keeps the random state that the pass starts from.
    """

    def __init__(self, params: Tensors):
        self.params = tuple(params)
        self._random = RandomState(self.params)

    def at(self, values: Tensors, pass_: Callable[[], Any], call: Call | None = None) -> Any:
        """``pass_()`` with ``values`` in the place of the parameters.

        Args:
            values: one per parameter.
            pass_: user code.
            call: (func, args, kwargs) -> the result of each PyTorch call; default :func:`written_out`.

        Raises:
            UnsupportedOperation: an operation that ran in the ordinary pass cannot run on these values.
        """
        substituted = Substitute(self.params, values, call or written_out)
        with self.same_random_numbers(), sdpa_kernel(SDPBackend.MATH), substituted, translated("the network"):
            out = pass_()
        return map_tensors(out, substituted.swap)  # it may be a parameter, or a buffer that was written

    @contextmanager
    def same_random_numbers(self) -> Iterator[None]:
        """Inside, the random state of the first pass; afterwards what it was before."""
        now = RandomState(self.params)
        self._random.rewind()
        try:
            yield
        finally:
            now.rewind()


@contextmanager
def translated(what: str) -> Iterator[None]:
    """PyTorch's refusals to differentiate ``what`` as :class:`UnsupportedOperation`; everything else passes."""
    try:
        yield
    except (torch.OutOfMemoryError, UnsupportedOperation):
        raise
    except (RuntimeError, NotImplementedError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedOperation(
            f"{what} cannot be differentiated twice in this way: {line}; write it with basic operations, use a backend that "
            "has a rule for it, or ask product(), which differentiates in reverse mode"
        ) from error


class Substitute(TorchFunctionMode):
    """Sees every PyTorch call of the pass and rewrites its arguments."""

    def __init__(self, params: Tensors, values: Tensors, call: Call):
        super().__init__()
        self._call = call
        self._params = {id(p) for p in params}
        # id -> (the tensor itself, so that its id is not reused; what stands in its place)
        self._instead = {id(p): (p, v) for p, v in zip(params, values, strict=True)}
        self._copied: dict[int, Tensor] = {}  # id of a copy -> the tensor it was made for
        self._made_here = object()  # mark of the tensors that this pass creates

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for target in _written(func, args, kwargs):
            self._copy_before_write(target, (args, kwargs))
        new_args, new_kwargs = map_tensors(args, self.swap), map_tensors(kwargs, self.swap)
        with translated(getattr(func, "__name__", str(func))):
            out = self._call(func, new_args, new_kwargs)
        given = {id(t) for t in tensors((new_args, new_kwargs))}
        for t in tensors(out):
            if id(t) not in given:
                t._reprolib_pass = self._made_here
        return map_tensors(
            out, lambda t: self._copied.get(id(t), t)
        )  # `buffer += 1` must bind the buffer, not its copy

    def swap(self, t: Tensor) -> Tensor:
        """What stands in the place of ``t``."""
        entry = self._instead.get(id(t))
        return t if entry is None else entry[1]

    def _copy_before_write(self, target: Tensor, arguments: Any) -> None:
        if id(target) in self._params:
            raise UnsupportedOperation("the closure writes into a parameter in place: do that outside the closure")
        old = id(target) not in self._instead and getattr(target, "_reprolib_pass", None) is not self._made_here
        # where complex numbers stand for values that move, a real tensor that is to take one must become complex
        moved = self._call is not written_out and torch.is_grad_enabled()
        moved = moved and any(self.swap(t).is_complex() for t in tensors(arguments))
        widened = moved and target.is_floating_point() and not self.swap(target).is_complex()
        if widened and target._is_view():
            raise UnsupportedOperation(
                "the closure writes a value that moves into a view of a constant: use cat or stack"
            )
        if old or widened:
            copy = self.swap(target).clone()
            copy = copy.to(copy.dtype.to_complex()) if widened else copy
            self._instead[id(target)], self._copied[id(copy)] = (target, copy), target


def _written(func: Callable, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The tensors that a call changes in place."""
    if writes_in_place(getattr(func, "__name__", ""), kwargs) and args and isinstance(args[0], Tensor):
        yield args[0]
    yield from tensors(kwargs.get("out"))


WRITING = (F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm)  # into their running statistics


def spare_statistics(func: Callable, args: tuple, kwargs: dict) -> Any:
    """``func(*args, **kwargs)`` by its own kernel, a norm with copies of what it would write into."""
    if func in WRITING:
        args, kwargs = (map_tensors(x, lambda t: t if t.requires_grad else t.clone()) for x in (args, kwargs))
    return func(*args, **kwargs)


# --- the fused norms in basic operations. Their kernels keep mean and 1/std as constants for the backward pass, and
# --- nested forward mode then differentiates as if they were: a wrong number, no error (see foundations/derivatives).


def _normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """(x − E x) / √(E(x − E x)² + ε) over ``dims``."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _channels(x: Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, cudnn=None
):
    shape = _channels(input)
    if training:
        y = _normalised(input, [0, *range(2, input.dim())], eps)
    else:
        y = (input - running_mean.view(shape)) * torch.rsqrt(running_var.view(shape) + eps)
    return _affine(y, weight, bias, shape)


def _instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    cudnn=None,
):
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _affine(_normalised(input, list(range(2, input.dim())), eps), weight, bias, _channels(input))


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn=None):
    dims = list(range(-len(normalized_shape), 0))
    return _affine(_normalised(input, dims, eps), weight, bias, list(normalized_shape))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """G v / |v|, the norm over all axes but ``dim``. The kernel keeps the norm as a constant, in reverse mode too."""
    axes = [i for i in range(v.dim()) if dim == -1 or i != dim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


def _weights_first(norm: Callable) -> Callable:
    """``torch.batch_norm`` and ``torch.instance_norm`` take the weights before the statistics."""

    def reordered(input, weight, bias, running_mean, running_var, *rest, cudnn_enabled=None, **kwargs):
        return norm(input, running_mean, running_var, weight, bias, *rest, **kwargs)

    return reordered


def written_out(func: Callable, args: tuple, kwargs: dict) -> Any:
    """``func(*args, **kwargs)``, the fused norms in basic operations."""
    return WRITTEN_OUT.get(func, func)(*args, **kwargs)


WRITTEN_OUT: dict[Callable, Callable] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _weights_first(_batch_norm),
    F.instance_norm: _instance_norm,
    torch.instance_norm: _weights_first(_instance_norm),
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch._weight_norm: _weight_norm,
}
