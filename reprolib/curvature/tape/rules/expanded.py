"""Calls that are written out while recording, so that what is inside them is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature import recurrent
from reprolib.curvature.multihead import multi_head_attention
from reprolib.curvature.replay import WRITTEN_OUT


def _attention_written_out(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention whose mask of dropout, or of scores, is recorded like any other; else the fused kernel stays in the pass."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    p = torch.softmax(scores, -1)
    return torch.matmul(F.dropout(p, dropout_p) if dropout_p else p, value)


def _grouped_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=True):
    """Attention whose keys and values each serve several heads."""
    n = query.shape[-3] // key.shape[-3]

    def repeated(x: Tensor) -> Tensor:
        return x.unsqueeze(-3).expand(*x.shape[:-2], n, *x.shape[-2:]).flatten(-4, -3)

    return F.scaled_dot_product_attention(
        query, repeated(key), repeated(value), attn_mask, dropout_p, is_causal, scale=scale
    )


# The kernels' own names for the norms, with the arguments in their order. Nested forward mode of them is silently wrong.


def _batch_norm_kernel(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False):
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm_kernel(
    input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=False
):
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _layer_norm_kernel(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False):
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


@torch.no_grad()
def _statistics(input, dims, eps, keepdim):
    """Mean and 1/√(variance + ε); for autograd they are constants."""
    variance, mean = torch.var_mean(input, dims, correction=0, keepdim=keepdim)
    return mean, torch.rsqrt(variance + eps)


def _native_layer_norm(input, normalized_shape, weight, bias, eps):
    dims = list(range(-len(normalized_shape), 0))
    return F.layer_norm(input, normalized_shape, weight, bias, eps), *_statistics(input, dims, eps, True)


def _native_batch_norm(input, weight, bias, *rest):
    """With running statistics, or (``_native_batch_norm_legit``) without; the statistics of the batch in training only."""
    running_mean, running_var, training, momentum, eps = rest if len(rest) == 5 else (None, None, *rest)
    dims = [0, *range(2, input.dim())]
    statistics = _statistics(input, dims, eps, False) if training else (input.new_empty(0), input.new_empty(0))
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps), *statistics


def _batch_norm_with_update(input, weight, bias, running_mean, running_var, momentum, eps):
    made = _native_batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    return (*made, torch.empty(0, dtype=torch.uint8))


# ---- what is short in basic operations


def _glu(input, dim=-1):
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def _hardsigmoid(input, inplace=False):
    return F.relu6(input + 3) / 6


def _embedding_bag(input, weight, mode="mean", per_sample_weights=None, **_):
    """Bags of equal length, (B, n)."""
    rows = F.embedding(input, weight)
    rows = rows if per_sample_weights is None else rows * per_sample_weights.unsqueeze(-1)
    return rows.mean(1) if mode == "mean" else rows.sum(1)


def _soft_margin_loss(input, target, size_average=None, reduce=None, reduction="mean"):
    losses = F.softplus(-target * input)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


# ---- when


def _always(args: tuple, kwargs: dict) -> bool:
    return True


def _equal_bags(args: tuple, kwargs: dict) -> bool:
    plain = not any(kwargs.get(k) for k in ("max_norm", "scale_grad_by_freq", "sparse"))
    return plain and args[0].dim() == 2 and kwargs.get("mode") != "max" and kwargs.get("padding_idx") is None


def _out_of_place(args: tuple, kwargs: dict) -> bool:
    return not kwargs.get("inplace", False)


def _drops_or_learns(args: tuple, kwargs: dict) -> bool:
    """Attention with dropout, or with a bias that depends on the parameters."""
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    drops = bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    return drops or (mask is not None and mask.requires_grad)


def _attention_apart(args: tuple, kwargs: dict) -> bool:
    return kwargs.get("enable_gqa", False) or _drops_or_learns(args, kwargs)


def _attention(query, *args, **kwargs):
    return (_grouped_attention if kwargs.get("enable_gqa") else _attention_written_out)(query, *args, **kwargs)


def _not_packed(args: tuple, kwargs: dict) -> bool:
    return isinstance(args[2], list | tuple)


# function, or the name of one that goes by several: (in which form it is written out, how)
EXPANDED: dict[Any, tuple[Callable[[tuple, dict], bool], Callable]] = {
    F.multi_head_attention_forward: (_always, multi_head_attention),
    F.scaled_dot_product_attention: (_attention_apart, _attention),
    torch.batch_norm: (_always, _batch_norm_kernel),
    torch.instance_norm: (_always, _instance_norm_kernel),
    torch.layer_norm: (_always, _layer_norm_kernel),
    "native_layer_norm": (_always, _native_layer_norm),
    "native_batch_norm": (_always, _native_batch_norm),
    "_native_batch_norm_legit": (_always, _native_batch_norm),
    "_batch_norm_with_update": (_always, _batch_norm_with_update),
    F.embedding_bag: (_equal_bags, _embedding_bag),
    F.hardsigmoid: (_out_of_place, _hardsigmoid),
    F.glu: (_always, _glu),
    F.soft_margin_loss: (_always, _soft_margin_loss),
    torch._weight_norm: (_always, WRITTEN_OUT[torch._weight_norm]),
    torch.lstm: (_not_packed, recurrent.lstm),
    torch.gru: (_not_packed, recurrent.gru),
    torch.rnn_tanh: (_not_packed, recurrent.rnn_tanh),
    torch.rnn_relu: (_not_packed, recurrent.rnn_relu),
    torch.lstm_cell: (_always, recurrent.lstm_cell),
    torch.gru_cell: (_always, recurrent.gru_cell),
    torch.rnn_tanh_cell: (_always, recurrent.rnn_tanh_cell),
    torch.rnn_relu_cell: (_always, recurrent.rnn_relu_cell),
}
