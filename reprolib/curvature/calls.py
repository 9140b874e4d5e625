"""The arguments of a PyTorch call as both function modes look at them: which tensors, and is one written into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

_AUGMENTED = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
                                           "lshift", "rshift")}  # fmt: skip


def tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for y in x:
            yield from tensors(y)
    elif isinstance(x, dict):
        yield from tensors(tuple(x.values()))


def map_tensors(x: Any, f: Callable[[Tensor], Any]) -> Any:
    """``x`` with f(t) for each tensor t in it."""
    if isinstance(x, Tensor):
        return f(x)
    if type(x) in (tuple, list):
        return type(x)(map_tensors(y, f) for y in x)
    if isinstance(x, dict):
        return {k: map_tensors(v, f) for k, v in x.items()}
    return x


def writes_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the call changes its first argument.

    >>> writes_in_place("add_", {}), writes_in_place("__iadd__", {}), writes_in_place("__add__", {})
    (True, True, False)
    """
    if name in _AUGMENTED or name == "__setitem__":
        return True
    return (name.endswith("_") and not name.endswith("__")) or bool(kwargs.get("inplace"))


def name_of(func: Callable) -> str:
    """The name of an operation."""
    return getattr(func, "__name__", None) or str(func)
