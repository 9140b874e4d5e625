"""The tape: what one ordinary pass of user code did to the parameters.

A function mode sees every operation on a value that depends on the parameters and writes down a
:class:`~reprolib.curvature.tape.node.Node`: its rule (``rules/``), its arguments, its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
from reprolib.curvature.tape.node import Node, Value
from reprolib.curvature.tape.rules import EXPANDED, RULES, Rule
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation


class Tape(TorchFunctionMode):
    """Records what happens to the parameters while it is active.

    Args:
        params: θ; they are the values 0, 1, …
        adjoints: also remember where in autograd's graph the adjoints of the values are.
        shared: keep what the product-sharing form of the layers reads.
    """

    def __init__(self, params: Tensors, adjoints: bool = False, shared: bool = False):
        super().__init__()
        self.nodes: list[Node] = []
        self.ends: list[Value] = []  # outputs and losses
        self.at_outputs = 0  # how many nodes there were when the closure returned
        self.edges: dict[int, GradientEdge] = {}  # where in autograd's graph the adjoint of a value is
        self.products: set[int] = set()  # the values that a matrix product reads
        self._adjoints, self._shared = adjoints, shared
        self._ids: dict[int, int] = {}  # id(tensor) -> number of its value
        self._alive: list[Tensor] = []  # the tensors themselves, so that no id is used twice while recording
        self._newest: dict[int, Tensor] = {}  # id of a tensor that was written in place -> its present value
        self._params = {id(p) for p in params}
        for p in params:
            self.number(p)

    def number(self, t: Tensor) -> int:
        """The number of a value; a new one if it has none."""
        if id(t) not in self._ids:
            self._ids[id(t)] = len(self._alive)
            self._alive.append(t)
        return self._ids[id(t)]

    def current(self, t: Tensor) -> Tensor:
        """What stands for ``t`` now: something else than itself if it was written in place."""
        return self._newest.get(id(t), t)

    def tensor(self, number: int) -> Tensor:
        """The tensor of a value, before the recording is closed."""
        return self._alive[number]

    def close(self) -> None:
        """End of the recording: the tensors may go."""
        self._alive, self._newest = [], {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = map_tensors(args, self.current)
        kwargs = {k: map_tensors(v, self.current) for k, v in (kwargs or {}).items()}
        if not any(id(t) in self._ids for t in tensors((args, kwargs))):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if func in EXPANDED and EXPANDED[func][0](args, kwargs):  # a small network of its own: record what is inside
            with self:
                return EXPANDED[func][1](*args, **kwargs)
        if writes_in_place(name, kwargs):
            if id(args[0]) not in self._ids and not torch.is_grad_enabled():
                return func(*args, **kwargs)  # a buffer that takes note of an activation
            return self._write(func, name, args, kwargs)
        rule = RULES.get(func) or RULES.get(name)
        rule = rule if rule and rule.when(args, kwargs) else None
        extra: dict[str, Any] = {}
        if rule is None:
            out = _without_random_numbers(name, func, args, kwargs)
        elif rule.run:
            out, extra = rule.run(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        made = [t for t in tensors(out) if t.requires_grad and id(t) not in self._ids]
        if made:
            self._record(rule, func, args, kwargs, made, extra)
        return out

    def _record(self, rule, func, args, kwargs, made, extra) -> None:
        names = rule.names if rule and not rule.many else ()
        call_args = tuple(self._value(rule, names[i] if i < len(names) else "args", x) for i, x in enumerate(args))
        call_kwargs = {k: self._value(rule, rule.name(k) if rule else k, v) for k, v in kwargs.items()}
        named = rule.bound(call_args, call_kwargs) if rule else {"args": call_args, **call_kwargs}
        node = Node(rule, func, (call_args, call_kwargs), named | extra)
        shares = self._shared and rule and rule.factors and all(isinstance(node.args[k], Value) for k in rule.factors)
        keep_out = rule is not None and ("y" in rule.reads or bool(shares))
        node.out = [Value(self.number(t), t, keep_out) for t in made]
        if self._adjoints:
            self.edges |= {v.id: get_gradient_edge(t) for v, t in zip(node.out, made, strict=True)}
        self.nodes.append(node)

    def _value(self, rule: Rule | None, name: str, x: Any) -> Any:
        """What a node keeps of its argument ``name``."""
        if isinstance(x, Tensor) and id(x) in self._ids:
            number = self._ids[id(x)]
            if rule and rule.product and id(x) not in self._params:
                self.products.add(number)
            return Value(number, x, rule is None or name in rule.reads or id(x) in self._params)
        return type(x)(self._value(rule, name, t) for t in x) if type(x) in (tuple, list) else x

    def _write(self, func, name, args, kwargs):
        """An in-place operation on a recorded value: done out of place, and read from then on in its stead."""
        target = args[0]
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
            plain = func
        else:
            plain = getattr(torch, _OUT_OF_PLACE.get(name, ""), None)
        if plain is None or target._is_view():
            what = f"{name} on a view" if plain else name
            raise UnsupportedOperation(f"{what} writes into a recorded value in place: write it out of place")
        new = self.__torch_function__(plain, (), args, kwargs)
        self._alive.append(target)
        self._newest[id(target)] = new
        for old, value in list(self._newest.items()):
            if value is target:
                self._newest[old] = new
        return new


_OUT_OF_PLACE = {"relu_": "relu", "tanh_": "tanh", "sigmoid_": "sigmoid", "exp_": "exp"} | {
    op: name
    for name in ("add", "sub", "mul", "div")
    for op in (f"{name}_", f"__i{'truediv' if name == 'div' else name}__")
}


def _without_random_numbers(name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
    """Call an operation that has no rule; the replay runs it again, so it must not draw random numbers."""
    device = next(t.device for t in tensors((args, kwargs)))
    state = torch.cuda.get_rng_state if device.type == "cuda" else lambda _: torch.get_rng_state()
    before = state(device)
    out = func(*args, **kwargs)
    if not torch.equal(before, state(device)):
        raise UnsupportedOperation(f"{name} draws random numbers and has no rule: draw them first, outside of it")
    return out
