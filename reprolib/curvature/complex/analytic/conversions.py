"""Conversions: a network may ask for dtypes; its complex values pass for real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.calls import map_tensors
from reprolib.curvature.complex.analytic.registry import extends, real, wide


@extends("to", "type_as")
def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A conversion, of complex values to the complex dtype."""

    def as_given(v: Any) -> Any:
        return wide(v.dtype if isinstance(v, Tensor) else v)

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
