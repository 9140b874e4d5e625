"""Bilinear and linear operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.complex.analytic.registry import EXTENSIONS, any_complex, extends, real


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

        y = _bilinear(real_product, x, weight) if any_complex(x, weight) else real_product(x, weight)
        return y if bias is None else y + bias.view(-1, *[1] * (weight.dim() - 2))

    return convolution


for _conv in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
    EXTENSIONS[_conv] = _convolution(getattr(F, _conv))


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
