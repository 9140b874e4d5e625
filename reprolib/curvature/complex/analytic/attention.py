"""Softmax and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reprolib.curvature.complex.analytic.conversions import to
from reprolib.curvature.complex.analytic.registry import EXTENSIONS, call, dims, extends, promoted
from reprolib.curvature.multihead import multi_head_attention


def _shifted(z: Tensor, dim: Any) -> tuple[Tensor, Tensor]:
    """What keeps exponentials finite: z minus the largest real part, and that."""
    if dim is None:
        raise TypeError("no dimension given")
    shift = z.real.detach().amax(dims(z, dim), keepdim=True)
    return z - shift, shift


@extends("softmax")
def softmax(z: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, _stacklevel: int = 3) -> Tensor:
    """Exponentials over their sum, along ``dim``."""
    weights = torch.exp(_shifted(z if dtype is None else to(z, dtype), dim)[0])
    return weights / weights.sum(dim, keepdim=True)


@extends("log_softmax")
def log_softmax(z: Tensor, dim: int, *_: Any, dtype: torch.dtype | None = None, _stacklevel: int = 3) -> Tensor:
    """Its logarithm, also where softmax underflows."""
    shifted = _shifted(z if dtype is None else to(z, dtype), dim)[0]
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


@extends("logsumexp")
def _logsumexp(z: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    shifted, shift = _shifted(z, dim)
    result = torch.log(torch.exp(shifted).sum(dim, keepdim=True)) + shift
    return result if keepdim else result.squeeze(dims(z, dim))


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
    p = softmax(scores, -1)
    return (p if dropout_p == 0 else EXTENSIONS["dropout"](p, dropout_p)) @ value


class _Calls(TorchFunctionMode):
    """What is called inside, continued analytically: for functions that are a small network of their own."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


@extends("multi_head_attention_forward")
def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    with _Calls():
        return multi_head_attention(*args, **kwargs)
