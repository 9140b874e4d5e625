"""What branches, on the real part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.complex.analytic.registry import EXTENSIONS, extends, real


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
def absolute(z: Tensor) -> Tensor:
    """Z or −z, whichever has the positive real part."""
    return z * torch.sign(z.real)


@extends("clamp", "clip")
def clamp(z: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Z where its real part is between the bounds, else the bound."""
    if min is not None:
        z = torch.where(real(z) >= real(min), z, min)
    return z if max is None else torch.where(real(z) <= real(max), z, max)


@extends("clamp_min")
def _clamp_min(z: Tensor, min: Any) -> Tensor:
    return clamp(z, min)


@extends("clamp_max")
def _clamp_max(z: Tensor, max: Any) -> Tensor:
    return clamp(z, None, max)


@extends("hardtanh")
def _hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return clamp(z, min_val, max_val)


@extends("relu6")
def _relu6(z: Tensor) -> Tensor:
    return clamp(z, 0.0, 6.0)


@extends("hardsigmoid")
def _hardsigmoid(z: Tensor) -> Tensor:
    return clamp(z + 3, 0.0, 6.0) / 6


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
