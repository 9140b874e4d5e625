"""Slow, independent values: explicit matrices by repeated reverse mode, one sample and one entry at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_graph(y: Tensor, params: list[Tensor]) -> Tensor:
    """∇y, flattened, differentiable again."""
    grads = torch.autograd.grad(y, params, create_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def hessian(y: Tensor, params: list[Tensor]) -> Tensor:
    """∇²y (P, P), row by row in reverse mode."""
    g = gradient_graph(y, params)
    rows = []
    for entry in g:
        if entry.requires_grad:
            grads = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        else:
            grads = tuple(torch.zeros_like(p) for p in params)
        rows.append(torch.cat([r.flatten() for r in grads]))
    return torch.stack(rows)


def per_sample_hessians(losses: Callable[[], Tensor], params: list[Tensor]) -> Tensor:
    """∇²J_s (B, P, P)."""
    return torch.stack([hessian(loss, params) for loss in losses()])


def jacobian(outputs: Tensor, params: list[Tensor]) -> Tensor:
    """∂outputs/∂θ (number of outputs, P)."""
    rows = []
    for entry in outputs.flatten():
        grads = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])
