"""Losses, one per sample or reduced as the call asks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, rule


def _expected(z: Tensor, node: Node) -> Tensor:
    """−Σ_c q_c w_c z_c with q the (smoothed) target: cross-entropy as a linear function of the log-probabilities z."""
    target, weight, smoothing = node.args["target"], node["weight"], node.args.get("label_smoothing", 0.0)
    w = None if weight is None else weight.view(1, -1, *[1] * (z.dim() - 2))
    if target.is_floating_point():
        target = target * (1 - smoothing) + smoothing / z.shape[1]
        return -(target * (z if w is None else w * z)).sum(1)
    loss = (1 - smoothing) * F.nll_loss(
        z, target, weight, ignore_index=node.args.get("ignore_index", -100), reduction="none"
    )
    if smoothing:
        uniform = -(z if w is None else w * z).mean(1)
        loss = loss + smoothing * uniform.masked_fill(target == node.args.get("ignore_index", -100), 0.0)
    return loss


@rule(
    F.cross_entropy,
    names="input target weight size_average ignore_index reduce reduction label_smoothing",
    reads="input",
    samples=samples.classes,
    when=lambda args, kwargs: args[0].dim() > 1,
)
def cross_entropy(node: Node, t: Tangents, curved: bool) -> Answer:
    x, dx = node["input"], t(node.args["input"])
    p = torch.softmax(x, 1)
    c = dx - (p * dx).sum(1, keepdim=True)
    first = _expected(c, node)
    second = _expected(-(p * c * c).sum(1, keepdim=True).expand_as(c), node) if curved else None
    return _reduced(node, first), None if second is None else _reduced(node, second)


def _reduced(node: Node, losses: Tensor) -> Tensor:
    """Sum or mean as the call asked (the mean of cross-entropy is over the targets' weights)."""
    how = node.args.get("reduction", "mean")
    if how == "none":
        return losses
    if how == "sum":
        return losses.sum()
    target, weight, ignored = node.args["target"], node["weight"], node.args.get("ignore_index", -100)
    if target.is_floating_point():
        return losses.sum() / losses.numel()
    kept = target != ignored
    total = kept.sum() if weight is None else weight[target.clamp(min=0)][kept].sum()
    return losses.sum() / total


@rule(F.nll_loss, names="input target weight size_average ignore_index reduce reduction", samples=samples.classes)
def nll(node: Node, t: Tangents, curved: bool) -> Answer:
    options = {k: node.args[k] for k in ("weight", "ignore_index", "reduction") if k in node.args}
    return F.nll_loss(t(node.args["input"]), node.args["target"], **options), None


def _mean_or_sum(node: Node, x: Tensor) -> Tensor:
    how = node.args.get("reduction", "mean")
    return x if how == "none" else x.mean() if how == "mean" else x.sum()


@rule(
    F.mse_loss,
    names="input target size_average reduce reduction weight",
    reads="input target",
    moves="input target",
    samples=samples.unreduced,
)
def mse(node: Node, t: Tangents, curved: bool) -> Answer:
    da, db = t(node.args["input"]), t(node.args["target"])
    e = da if db is None else -db if da is None else da - db
    first = 2 * (node["input"] - node["target"]) * e
    return _mean_or_sum(node, first), _mean_or_sum(node, 2 * e * e) if curved else None


@rule(
    F.huber_loss,
    names="input target reduction delta weight",
    reads="input target",
    moves="input target",
    samples=samples.unreduced,
)
def huber(node: Node, t: Tangents, curved: bool) -> Answer:
    """½ e² for |e| ≤ δ, else δ (|e| − ½ δ)."""
    da, db, δ = t(node.args["input"]), t(node.args["target"]), node.args.get("delta", 1.0)
    de = da if db is None else -db if da is None else da - db
    e, w = node["input"] - node["target"], node["weight"]
    first, second = e.clamp(-δ, δ) * de, (e.abs() <= δ) * de * de
    if w is not None:
        first, second = w * first, w * second
    return _mean_or_sum(node, first), _mean_or_sum(node, second) if curved else None


@rule(
    F.binary_cross_entropy_with_logits,
    names="input target weight size_average reduce reduction pos_weight",
    reads="input target",
    moves="input target",
    samples=samples.unreduced,
)
def bce_with_logits(node: Node, t: Tangents, curved: bool) -> Answer:
    """ℓ = (1 − y) x + (1 + (w₊ − 1) y) softplus(−x)."""
    x, y, w, positive = node["input"], node["target"], node["weight"], node["pos_weight"]
    dx, dy = t(node.args["input"]), t(node.args["target"])
    σ = torch.sigmoid(x)
    rise = 0 if positive is None else positive - 1
    share, first, second = 1 + rise * y, torch.zeros_like(x), torch.zeros_like(x)
    if dx is not None:
        first, second = ((1 - y) - share * (1 - σ)) * dx, share * σ * (1 - σ) * dx * dx
    if dy is not None:
        first = first + (rise * F.softplus(-x) - x) * dy
    if dx is not None and dy is not None:
        second = second - 2 * (1 + rise * (1 - σ)) * dx * dy
    if w is not None:
        first, second = w * first, w * second
    return _mean_or_sum(node, first), _mean_or_sum(node, second) if curved else None
