"""Losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprolib.curvature.complex.analytic.attention import log_softmax
from reprolib.curvature.complex.analytic.branches import absolute
from reprolib.curvature.complex.analytic.elementwise import log_sigmoid
from reprolib.curvature.complex.analytic.registry import extends, promoted


def _reduced(losses: Tensor, reduction: str, total: Any = None) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (losses.numel() if total is None else total)


def _nll(logp: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: str) -> Tensor:
    """−w_y log p_y, with a share ``smoothing`` of the target spread over the classes; axis 1 (or 0) is that of the classes."""
    axis = 1 if logp.dim() > 1 else 0
    keep = target != ignored
    label = torch.where(keep, target, 0)
    own = keep.to(logp.real.dtype) if weight is None else torch.where(keep, weight[label], 0)
    losses = -own * logp.gather(axis, label.unsqueeze(axis)).squeeze(axis)
    if smoothing:
        spread = logp if weight is None else logp * weight.view(-1, *[1] * (logp.dim() - 1 - axis))
        losses = (1 - smoothing) * losses - smoothing / logp.shape[axis] * torch.where(keep, spread.sum(axis), 0)
    return _reduced(losses, reduction, own.sum())


@extends("nll_loss")
def _nll_loss(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"
) -> Tensor:
    _modern(size_average, reduce)
    return _nll(input, target, weight, ignore_index, 0.0, reduction)


@extends("cross_entropy")
def _cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0
) -> Tensor:
    _modern(size_average, reduce)
    axis = 1 if input.dim() > 1 else 0
    logp = log_softmax(promoted(input), axis)
    if target.shape != input.shape:
        return _nll(logp, target, weight, ignore_index, label_smoothing, reduction)
    classes = input.shape[axis]
    target = target * (1 - label_smoothing) + label_smoothing / classes
    weighted = logp if weight is None else logp * weight.view(-1, *[1] * (input.dim() - 1 - axis))
    return _reduced(-(target * weighted).sum(axis), reduction)


def _modern(size_average: Any, reduce: Any) -> None:
    if size_average is not None or reduce is not None:
        raise TypeError("size_average and reduce: use reduction")


@extends("mse_loss")
def _mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None) -> Tensor:
    _modern(size_average, reduce)
    if weight is not None:
        raise TypeError("mse_loss with weight")
    return _reduced(torch.square(input - target), reduction)


@extends("l1_loss")
def _l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None) -> Tensor:
    _modern(size_average, reduce)
    if weight is not None:
        raise TypeError("l1_loss with weight")
    return _reduced(absolute(input - target), reduction)


@extends("binary_cross_entropy_with_logits")
def _bce_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
) -> Tensor:
    """(1 − y) x + (1 + (w₊ − 1) y) log(1 + e^(−x))."""
    _modern(size_average, reduce)
    x = promoted(input)
    share = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * x - share * log_sigmoid(x)
    return _reduced(losses if weight is None else losses * weight, reduction)
