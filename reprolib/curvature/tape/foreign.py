"""Values that depend on the parameters although nobody saw how: what custom functions and scripted modules return."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from reprolib.curvature.calls import tensors
from reprolib.curvature.tree import Tensors


class Foreign:
    """Asks autograd's graph, which misses nothing."""

    def __init__(self, params: Tensors):
        self._params = {id(p) for p in params}
        self._depends: dict[Any, bool] = {}  # nodes of the graph of which it is known
        self._still: dict[int, weakref.ref[Tensor]] = {}  # by id

    def pass_over(self, made: Any) -> None:
        """These tensors are known to be constant, whatever the graph says (the sign of a determinant)."""
        self._still |= {id(t): weakref.ref(t) for t in tensors(made) if t.grad_fn is not None}

    def made(self, t: Tensor) -> str:
        """What is wrong with a value that was not recorded, if it depends on a parameter; else ``""``, it is a constant.

        >>> import torch
        >>> w, v = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> Foreign([w]).made(w.sin() * v)[:44], Foreign([w]).made(v.sin())
        ('mul makes a value of the parameters that is ', '')
        """
        still = self._still.get(id(t))
        if t.grad_fn is None or (still is not None and still() is t) or not self._reaches(t.grad_fn):
            return ""
        return (
            f"{_name(t.grad_fn)} makes a value of the parameters that is invisible here (a custom autograd function, a "
            "scripted module, a value from before the pass): write it with PyTorch's operations, inside the closure"
        )

    def _reaches(self, root: Any) -> bool:
        """Whether a parameter is below this node."""
        waiting, seen = [root], {root}
        while waiting:
            node = waiting.pop()
            if self._depends.get(node) or id(getattr(node, "variable", None)) in self._params:
                self._depends[root] = True
                return True
            if node in self._depends:  # with nothing below
                continue
            below = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= below
            waiting.extend(below)
        self._depends |= dict.fromkeys(seen, False)
        return False


def _name(node: Any) -> str:
    """The function that this is the backward pass of."""
    name = node.name().split("::")[-1].rstrip("0123456789").removesuffix("Backward")
    return name if isinstance(node, BackwardCFunction) else name[:1].lower() + name[1:]
