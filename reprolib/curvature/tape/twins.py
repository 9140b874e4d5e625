"""Calls in another form: an in-place operation out of place, and a function written in Python by what is inside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature.tape.rules.writes import assigned, copied

# they change the shape of a tensor in place, and none of its memory
RESHAPED = {"unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_"}
_DRAWN = {"normal_", "uniform_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_", "bernoulli_"}
_AUGMENTED = {"__itruediv__": "div", "__ifloordiv__": "floor_divide", "__imod__": "remainder", "__iand__": "bitwise_and",
              "__ior__": "bitwise_or", "__ixor__": "bitwise_xor", "__ilshift__": "bitwise_left_shift",
              "__irshift__": "bitwise_right_shift"}  # fmt: skip


def out_of_place(func: Callable, name: str, args: tuple, kwargs: dict) -> tuple[Callable, tuple, dict]:
    """The call that makes what ``func`` would write into its first argument.

    >>> out_of_place(Tensor.add_, "add_", (1, 2), {"alpha": 3})[1:], out_of_place(Tensor.zero_, "zero_", (1,), {})[1]
    (((1, 2), {'alpha': 3}), (1, 0))
    """
    if kwargs.get("inplace"):
        return func, args, kwargs | {"inplace": False}
    if name == "__setitem__":
        return assigned, args, kwargs
    if name == "zero_":
        return copied, (*args, 0), {}
    if name in ("copy_", "fill_"):
        return copied, (*args[:2], *(v for k, v in kwargs.items() if k != "non_blocking"))[:2], {}
    plain = _AUGMENTED.get(name) or (name[3:-2] if name.startswith("__i") else name[:-1])
    for place in (torch, F, Tensor):
        if hasattr(place, plain):
            return getattr(place, plain), args, kwargs
    return _on_a_copy(func), args, kwargs


@cache
def _on_a_copy(func: Callable) -> Callable:
    def twin(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return func(target.clone(), *args, **kwargs)

    twin.__name__ = func.__name__.rstrip("_")
    return twin


def drawn(name: str, target: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor] | None:
    """What an in-place operation puts there that draws random numbers, whatever was there before; else ``None``."""
    if name not in _DRAWN:
        return None
    fixed = [x.detach() if isinstance(x, Tensor) else x for x in args[1:]]
    fixed_kwargs = {k: x.detach() if isinstance(x, Tensor) else x for k, x in kwargs.items()}
    return (getattr(torch.empty_like(target.detach()), name)(*fixed, **fixed_kwargs),)


@cache
def entered(func: Callable) -> Callable | None:
    """``func``, if it is written in Python, without its question whether somebody overrides it; else ``None``.

    Under a function mode the answer is yes, and the mode is called. The function without it shows the mode what is inside.
    """
    if not isinstance(func, FunctionType):
        return None
    asks = [name for name in func.__code__.co_names if name.startswith("has_torch_function")]
    inside = dict(zip(func.__code__.co_freevars, func.__closure__ or (), strict=True))
    if not asks and {"if_true", "if_false"} <= inside.keys():  # a flag chooses between two functions
        for name in ("if_true", "if_false"):
            inside[name] = CellType(entered(inside[name].cell_contents) or inside[name].cell_contents)
    elif not asks:
        return None
    scope = func.__globals__ | dict.fromkeys(asks, _no)
    plain = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, tuple(inside.values()))
    plain.__kwdefaults__ = func.__kwdefaults__
    return plain


def _no(*args: Any) -> bool:
    return False
