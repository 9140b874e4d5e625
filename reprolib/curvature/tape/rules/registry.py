"""How each operation y = F(x) carries a tangent and its curvature: one rule per operation.

A rule answers with (ẏ, s): ẏ = DF ẋ, and s = D²F[ẋ, ẋ], ``None`` where F is affine in what moves. It reads from the node
what the tape kept for it (``reads``: argument names, "y" for the output) and gets tangents by asking ``t``; the tangent of
what does not depend on the parameters is ``None``. Rules are linear in ẋ in their first answer, so the same rule carries
the second derivative ẍ when it is asked without curvature (``curved=False``).

A rule also says where the samples are (``samples``, see ``tape/samples.py``), whether it is a matrix product, before which second
derivatives are better paid than carried, and, where the recorded call cannot simply be run again, how (``again``).

The formulas are those of Table 1 of the RED paper with its errata (METHODS E-red-3, E-red-4), and what it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reprolib.curvature.calls import tensors
from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node, Value, filled
from reprolib.curvature.tape.samples import Place

Tangents = Callable[[Any], Any]  # an argument of the node -> its tangent(s), None where nothing moves
Answer = tuple[Any, Any]  # (ẏ, s)


@dataclass(frozen=True)
class Rule:
    """``apply(node, t, curved)`` -> (ẏ, s); the argument names by position; what of the node it reads.

    ``run(func, args, kwargs)`` -> (output, extras for the node) replaces the call while recording, where the replay needs
    something that the call does not return. ``many``: the arguments are kept as they are, not bound to names.
    """

    apply: Callable[[Node, Tangents, bool], Answer]
    names: tuple[str, ...]
    reads: frozenset[str]
    run: Callable[..., tuple[Any, dict[str, Any]]] | None = None
    many: bool = False
    moves: frozenset[str] = frozenset()  # the arguments that may depend on the parameters
    makes: tuple[int, ...] | None = None  # which of the outputs move, if not all do
    when: Callable[[tuple, dict], bool] = lambda args, kwargs: True  # else the operation has no rule in this form
    carry: Callable[[Node, Tangents, Tangents], Answer] | None = None  # (node, ẋ, ẍ) -> (ẏ, ÿ) at less than twice apply
    derivatives: Callable[[Node], tuple[Any, Any]] | None = None  # of an elementwise function of its first argument
    samples: Place = samples.nowhere
    by_index: Place | None = None  # the same if what arises at a sample is called its own although samples are mixed
    product: bool = False  # a matrix product
    factors: tuple[str, ...] = ()  # what it is the product of, if it can share products, and the product
    bilinear: Callable[[Node, Tensor, Tensor], Tensor] | None = None
    again: Callable[[Node, tuple, dict], Any] | None = None

    def fits(self, args: tuple, kwargs: dict[str, Any], depends: Callable[[Tensor], bool]) -> bool:
        """Whether this is the rule of the call: in this form, and where nothing else moves than it knows of."""
        if not self.when(args, kwargs):
            return False
        if self.many:
            return True
        given = [*zip(self.names, args, strict=False), *((self.name(k), v) for k, v in kwargs.items())]
        return not any(isinstance(x, Tensor) and name not in self.moves and depends(x) for name, x in given)

    def name(self, keyword: str) -> str:
        """The name of an argument that was given by keyword (``torch.mul(x, other=y)``)."""
        if self.many or keyword in self.names or keyword not in _POSITION:
            return keyword
        return self.names[_POSITION[keyword]]

    def bound(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        if self.many:
            return {"args": args, **kwargs}
        return dict(zip(self.names, args, strict=False)) | {self.name(k): v for k, v in kwargs.items()}

    def advance(self, node: Node, t: Tangents, u: Tangents | None) -> Answer:
        """(ẏ, ÿ) from ẋ and ẍ; without ``u`` only ẏ."""
        if u is None or not any(u(v) is not None for v in node.inputs()):
            return self.apply(node, t, u is not None)
        if self.carry:
            return self.carry(node, t, u)
        y, s = self.apply(node, t, True)
        linear = self.apply(node, u, False)[0]
        if isinstance(linear, list | tuple):
            return y, linear  # several outputs: views, which bend nothing
        return y, plus(s, linear)


_POSITION = {"self": 0, "input": 0, "other": 1, "mat2": 1, "vec": 1}


RULES: dict[Any, Rule] = {}  # by function, or by name for methods and their functional forms


def rule(*ops: Any, names: str, reads: str = "", moves: str = "", **options: Any) -> Callable:
    """Register the decorated function as the rule of ``ops``; if ``moves`` names none, the first argument moves."""
    known = frozenset(moves.split() or names.split()[:1])

    def register(apply: Callable) -> Callable:
        for op in ops:
            RULES[op] = Rule(apply, tuple(names.split()), frozenset(reads.split()), moves=known, **options)
        return apply

    return register


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, where ``None`` is zero."""
    return b if a is None else a if b is None else a + b


def rerun(node: Node, data: Callable[[Value], Tensor]) -> list[Tensor]:
    """The outputs of a node, computed anew from ``data`` of its inputs."""
    args, kwargs = filled(node.call[0], data), {k: filled(v, data) for k, v in node.call[1].items()}
    again = node.rule.again if node.rule else None
    out = again(node, args, kwargs) if again else node.func(*args, **kwargs)
    made = list(tensors(out))
    return [made[i] for i in node.picks]
