"""Arithmetic on tuples of tensors: the parameter space, with its Euclidean inner product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.errors import InvalidInput

Tensors = Sequence[Tensor]


def inner(a: Tensors, b: Tensors) -> Tensor:
    """⟨a, b⟩ = Σ_i Σ a_i ∘ b_i, a 0-d tensor.

    >>> inner([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
    tensor(11.)
    """
    return torch.stack([torch.sum(x * y) for x, y in zip(a, b, strict=True)]).sum()


def like(direction: Tensors, params: Tensors, what: str = "direction") -> tuple[Tensor, ...]:
    """``direction`` as a detached tuple, if it is shaped like ``params``; else :class:`InvalidInput`."""
    if isinstance(direction, Tensor) or len(direction) != len(params):
        got = "one tensor" if isinstance(direction, Tensor) else f"{len(direction)} tensors"
        raise InvalidInput(f"{what}: got {got} for {len(params)} parameters; give a tuple shaped like params")
    for i, (v, p) in enumerate(zip(direction, params, strict=True)):
        if v.shape != p.shape or v.dtype != p.dtype or v.device != p.device:
            raise InvalidInput(
                f"{what}[{i}] is {tuple(v.shape)} {v.dtype} on {v.device}, "
                f"its parameter is {tuple(p.shape)} {p.dtype} on {p.device}"
            )
    return tuple(v.detach() for v in direction)
