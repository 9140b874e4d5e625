"""Operations that draw random numbers inside their kernel: the node keeps what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, rule


def _drop(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    given.setdefault("training", given.pop("train", True))
    mask = func(torch.ones_like(given["input"], requires_grad=False), given.get("p", 0.5), given["training"])
    return given["input"] * mask, {"mask": mask}


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, "dropout", "feature_dropout", names="input p training inplace",
      run=_drop, samples=samples.aligned, again=lambda node, args, kwargs: args[0] * node.args["mask"])  # fmt: skip
def dropout(node: Node, t: Tangents, curved: bool) -> Answer:
    """A product with a mask."""
    return t(node.args["input"]) * node.args["mask"], None


def _straight(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    """Slope and intercept of what is a straight line in each entry once the numbers are drawn."""
    x = args[0] if args else kwargs["input"]
    out = func(*args, **kwargs)
    (slope,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
    return out, {"slope": slope, "intercept": out.detach() - slope * x.detach()}


def _straight_again(node: Node, args: tuple, kwargs: dict) -> Tensor:
    x = args[0] if args else kwargs["input"]
    return torch.addcmul(node.args["intercept"], x, node.args["slope"])


@rule("alpha_dropout", "feature_alpha_dropout", "rrelu", names="input lower upper training inplace", run=_straight,
      samples=samples.aligned, again=_straight_again)  # fmt: skip
def straight(node: Node, t: Tangents, curved: bool) -> Answer:
    return t(node.args["input"]) * node.args["slope"], None


def _kept(func: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Any]]:
    out = func(*args, **kwargs)
    return out, {"drawn": out.detach().clone()}


@rule("bernoulli", "normal", "poisson", "binomial", names="a b", moves="a b", run=_kept,
      again=lambda node, args, kwargs: node.args["drawn"])  # fmt: skip
def drawn(node: Node, t: Tangents, curved: bool) -> Answer:
    """Numbers whose distribution depends on the parameters: for autograd they are constants."""
    return torch.zeros_like(node.args["drawn"]), None
