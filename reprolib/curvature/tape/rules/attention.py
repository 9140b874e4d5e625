"""Softmax and attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, plus, rule


def _softmax(p: Tensor, dx: Tensor, ddx: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """First and second derivative of softmax at p along ẋ (and ẍ)."""
    c = dx - (p * dx).sum(dim, keepdim=True)
    first = p * c
    bend = c * c if ddx is None else c * c + ddx
    return first, p * (bend - (p * bend).sum(dim, keepdim=True))


@rule("softmax", F.softmax, names="input dim", reads="y", samples=samples.along)
def softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    first, second = _softmax(node.y, t(node.args["input"]), None, node.args["dim"])
    return first, second if curved else None


@rule("log_softmax", F.log_softmax, names="input dim", reads="y", samples=samples.along)
def log_softmax(node: Node, t: Tangents, curved: bool) -> Answer:
    p, dx, dim = node.y.exp(), t(node.args["input"]), node.args["dim"]
    c = dx - (p * dx).sum(dim, keepdim=True)
    return c, -(p * c * c).sum(dim, keepdim=True).expand_as(c) if curved else None


@rule("logsumexp", names="input dim keepdim", reads="input y", samples=samples.along)
def logsumexp(node: Node, t: Tangents, curved: bool) -> Answer:
    dim, keep, dx = node.args["dim"], node.args.get("keepdim", False), t(node.args["input"])
    p = (
        torch.softmax(node["input"], dim)
        if isinstance(dim, int)
        else (node["input"] - node["input"].logsumexp(dim, True)).exp()
    )
    m = (p * dx).sum(dim, keepdim=True)
    second = (p * (dx - m) ** 2).sum(dim, keepdim=keep) if curved else None
    return (p * dx).sum(dim, keepdim=keep), second


@rule(
    F.scaled_dot_product_attention,
    names="query key value attn_mask dropout_p is_causal scale enable_gqa",
    reads="query key value",
    moves="query key value",
    samples=samples.heads,
    product=True,
    when=lambda args, kwargs: not kwargs.get("enable_gqa", False),
)
def attention(node: Node, t: Tangents, curved: bool) -> Answer:
    q, k, v = node["query"], node["key"], node["value"]
    dq, dk, dv = t(node.args["query"]), t(node.args["key"]), t(node.args["value"])
    scale = node.args.get("scale") or 1 / math.sqrt(q.shape[-1])
    mask, scores = node.args.get("attn_mask"), q @ k.transpose(-1, -2) * scale
    if node.args.get("is_causal", False):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    p = torch.softmax(scores, -1)
    ds = plus(None if dq is None else dq @ k.transpose(-1, -2), None if dk is None else q @ dk.transpose(-1, -2))
    if ds is None:
        return p @ dv, None
    dds = 2 * scale * dq @ dk.transpose(-1, -2) if dq is not None and dk is not None else None
    dp, ddp = _softmax(p, scale * ds, dds, -1)
    y = dp @ v if dv is None else dp @ v + p @ dv
    if not curved:
        return y, None
    return y, ddp @ v if dv is None else ddp @ v + 2 * dp @ dv
