"""Dropout, a product with a mask that the node keeps."""

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
    mask = func(torch.ones_like(given["input"], requires_grad=False), given.get("p", 0.5), given.get("training", True))
    return given["input"] * mask, {"mask": mask}


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, names="input p training inplace", run=_drop,
      samples=samples.aligned, again=lambda node, args, kwargs: args[0] * node.args["mask"])  # fmt: skip
def dropout(node: Node, t: Tangents, curved: bool) -> Answer:
    return t(node.args["input"]) * node.args["mask"], None
