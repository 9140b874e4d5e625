"""Smooth elementwise functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.complex.analytic.branches import absolute
from reprolib.curvature.complex.analytic.registry import any_complex, extends, taylor


@extends("pow", "ipow", "float_power")
def _pow(z: Any, exponent: Any) -> Tensor:
    """z^n without its polar form, which loses the imaginary part where Re z < 0."""
    if any_complex(exponent):
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
def log_sigmoid(z: Tensor) -> Tensor:
    """−log(1 + e^(−z)), nowhere cut off."""
    return -_softplus(-z, threshold=math.inf)


@extends("silu")
def _silu(z: Tensor) -> Tensor:
    return z * _sigmoid(z)


@extends("mish")
def _mish(z: Tensor) -> Tensor:
    return z * torch.tanh(_softplus(z))


@extends("softsign")
def _softsign(z: Tensor) -> Tensor:
    return z / (1 + absolute(z))


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
