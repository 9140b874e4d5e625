"""``F.multi_head_attention_forward`` in basic operations: it is a small network of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_head_attention(
    query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn, dropout_p,
    out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True, attn_mask=None,
    use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None, static_k=None, static_v=None,
    average_attn_weights=True, is_causal=False,
):  # fmt: skip
    """``F.multi_head_attention_forward`` in basic operations; inputs (T, B, E) or (T, E)."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    apart = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = apart if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    T, B, E = query.shape

    def heads(x: Tensor) -> Tensor:
        return x.reshape(len(x), B, num_heads, E // num_heads).permute(1, 2, 0, 3)

    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    if bias_k is not None:  # one more key and value for everybody
        k, v = torch.cat([k, bias_k.expand(1, B, E)]), torch.cat([v, bias_v.expand(1, B, E)])
    q, k, v = heads(q), heads(k), heads(v)
    k = k if static_k is None else static_k.view(B, num_heads, -1, E // num_heads)
    v = v if static_v is None else static_v.view(B, num_heads, -1, E // num_heads)
    if add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(B, num_heads, 1, E // num_heads)], 2) for x in (k, v))
    S = k.shape[2]
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(E // num_heads))
    for mask, shape in ((attn_mask, None), (key_padding_mask, (B, 1, 1, S))):
        if mask is not None:
            mask = F.pad(mask, (0, S - mask.shape[-1]))  # nothing hides what was added
            mask = mask if shape is None else mask.view(shape)
            mask = mask.view(B, num_heads, T, S) if mask.dim() == 3 else mask
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(mask, -math.inf)
            scores = scores + mask
    p = torch.softmax(scores, -1)
    if dropout_p > 0 and training:
        p = F.dropout(p, dropout_p, True)
    out = torch.matmul(p, v).permute(2, 0, 1, 3).reshape(T, B, E)
    out = F.linear(out, out_proj_weight, out_proj_bias)
    weights_out = None
    if need_weights:
        weights_out = p.mean(1) if average_attn_weights else p
        weights_out = weights_out if batched else weights_out.squeeze(0)
    return out if batched else out.squeeze(1), weights_out
