"""Calls that are written out while recording, so that what is inside them is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from reprolib.curvature.multihead import multi_head_attention
from reprolib.errors import UnsupportedOperation


def _attention_with_dropout(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention whose dropout mask is recorded like any other; else the fused kernel stays in the forward pass."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.matmul(F.dropout(torch.softmax(scores, -1), dropout_p), value)


# The kernels' own names for the norms, with the arguments in their order. Nested forward mode of them is silently wrong.


def _batch_norm_kernel(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False):
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm_kernel(
    input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=False
):
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _layer_norm_kernel(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False):
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def _refused(name: str) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedOperation(f"{name} keeps its statistics as constants: call the norm of torch.nn.functional")

    return refuse


def _drops(args: tuple, kwargs: dict) -> bool:
    return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


def _always(args: tuple, kwargs: dict) -> bool:
    return True


# function: (in which form it is written out, how)
EXPANDED: dict[Callable, tuple[Callable[[tuple, dict], bool], Callable]] = {
    F.multi_head_attention_forward: (_always, multi_head_attention),
    torch.batch_norm: (_always, _batch_norm_kernel),
    torch.instance_norm: (_always, _instance_norm_kernel),
    torch.layer_norm: (_always, _layer_norm_kernel),
    torch.native_batch_norm: (_always, _refused("native_batch_norm")),
    torch.native_layer_norm: (_always, _refused("native_layer_norm")),
    F.scaled_dot_product_attention: (_drops, _attention_with_dropout),
}
