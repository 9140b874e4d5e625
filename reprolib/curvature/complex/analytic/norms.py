"""Normalisation, variances, norms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.complex.analytic.branches import absolute, clamp
from reprolib.curvature.complex.analytic.registry import dims, extends


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
    axes = dims(z, dim)
    centred = z - z.mean(axes, keepdim=True)
    count = math.prod(z.shape[i] for i in axes) - (int(unbiased) if correction is None else correction)
    return (centred * centred).sum(axes, keepdim=keepdim) / count


@extends("std")
def _std(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.sqrt(_var(z, *args, **kwargs))


@extends("norm", "linalg_vector_norm")
def _norm(z: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """√Σz² or Σ|z|."""
    p = kwargs.pop("ord", p)
    if p not in (None, 1, 2, "fro") or any(v is not None for v in kwargs.values()):
        raise TypeError(f"a norm with p = {p!r}, {kwargs}")
    axes = dims(z, dim)
    return absolute(z).sum(axes, keepdim=keepdim) if p == 1 else torch.sqrt((z * z).sum(axes, keepdim=keepdim))


@extends("normalize")
def _normalize(z: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return z / clamp(_norm(z, p, dim, True), eps)
