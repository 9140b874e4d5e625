"""What the tape consists of: recorded values and operations.

Values have numbers, not names, because a tensor that was freed may share its ``id`` with a later one. Of a value's data only
what a rule will read is kept; it is the tensor that autograd keeps too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor


class Value:
    """A place in an operation where a value on the tape stands: its number, and its data if the rule reads it here."""

    __slots__ = ("data", "id", "kept", "shape")

    def __init__(self, id: int, t: Tensor, kept: bool):
        self.id, self.shape, self.kept, self.data = id, t.shape, kept, t.detach() if kept else None


class Node:
    """One recorded operation: its rule, its call, its arguments by name, its outputs.

    The rule (``rules/registry.py``), ``None`` where there is none, is for those who replay: a node only carries it.
    """

    __slots__ = ("args", "call", "func", "out", "picks", "rule")

    def __init__(self, rule: Any, func: Callable, call: tuple[tuple, dict], args: dict[str, Any]):
        self.rule, self.func, self.call, self.args = rule, func, call, args
        self.out: list[Value] = []
        self.picks: tuple[int, ...] = (0,)  # which of the tensors that the call returns are the outputs

    def __getitem__(self, name: str) -> Any:
        """The data of an argument (a tensor, a number, ...), ``None`` if it was not given."""
        x = self.args.get(name)
        return x.data if isinstance(x, Value) else x

    @property
    def name(self) -> str:
        """The name of the operation."""
        name = getattr(self.func, "__name__", str(self.func))
        return self.func.__self__.__name__ if name == "__get__" else name  # type: ignore[attr-defined]  # x.T

    @property
    def y(self) -> Tensor:
        """The data of the (first) output."""
        assert self.out[0].data is not None
        return self.out[0].data

    def inputs(self) -> Iterator[Value]:
        """The arguments that depend on the parameters."""
        yield from self.values(tuple(self.args.values()))

    @staticmethod
    def values(x: Any) -> Iterator[Value]:
        """The recorded values in nested tuples and lists."""
        if isinstance(x, Value):
            yield x
        elif type(x) in (tuple, list):
            for y in x:
                yield from Node.values(y)

    def forget(self) -> None:
        """Drop the data of its values."""
        for v in (*self.inputs(), *self.out):
            v.data = None


# Functions of the module and no local ones: a local function that calls itself is a reference cycle, and would keep the
# activations that it sees alive until the garbage collector comes by.


def reader(table: dict[int, Any]) -> Callable[[Any], Any]:
    """The entries of ``table`` at the recorded values in nested tuples and lists; ``None`` at all else."""
    return partial(_read, table)


def _read(table: dict[int, Any], x: Any) -> Any:
    if isinstance(x, Value):
        return table.get(x.id)
    return [_read(table, y) for y in x] if type(x) in (tuple, list) else None


def filled(x: Any, data: Callable[[Value], Any]) -> Any:
    """``x`` with ``data`` of the recorded values in their place."""
    if isinstance(x, Value):
        return data(x)
    return type(x)(filled(y, data) for y in x) if type(x) in (tuple, list) else x
