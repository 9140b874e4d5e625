"""Backend ``tape``: record the ordinary forward pass, then replay tangents through it.

One pass of user code under a function mode writes down every operation on a value that depends on the parameters. The
replay walks down this tape once and carries two numbers for each value x: its tangent ẋ along d, and its second
derivative ẍ. For an operation y = F(x) they are

    ẏ = DF ẋ            ÿ = DF ẍ + D²F[ẋ, ẋ]

and each operation has one rule (``rules.py``) for DF and D²F. At the end stand the per-sample slopes ⟨∇J_s, d⟩ and
curvatures dᵀ∇²J_s d, exact also where batch-norm couples the samples. Nothing is run twice, so there is nothing to undo:
no second forward pass, no dropout mask to repeat, no statistics to protect.

What has no rule is differentiated by nested forward mode of that one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import jvp as forward
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from reprolib.curvature import autodiff
from reprolib.curvature.calls import map_tensors, tensors, writes_in_place
from reprolib.curvature.rules import EXPANDED, RULES, Rule
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation

if TYPE_CHECKING:
    from reprolib.curvature.model import Network


class Value:
    """What a value on the tape leaves behind: its number, and its data if a rule will read it."""

    __slots__ = ("data", "id", "shape")

    def __init__(self, id: int, t: Tensor, keep: bool):
        self.id, self.shape, self.data = id, t.shape, t.detach() if keep else None


class Node:
    """One recorded operation: its rule, its arguments by name, its outputs."""

    __slots__ = ("args", "func", "out", "rule")

    def __init__(self, rule: Rule | None, func: Callable, args: dict[str, Any], out: list[Value]):
        self.rule, self.func, self.args, self.out = rule, func, args, out

    def __getitem__(self, name: str) -> Any:
        """The data of an argument (a tensor, a number, ...), ``None`` if it was not given."""
        x = self.args.get(name)
        return x.data if isinstance(x, Value) else x

    @property
    def y(self) -> Tensor:
        """The data of the (first) output."""
        assert self.out[0].data is not None
        return self.out[0].data

    def inputs(self) -> Iterator[Value]:
        """The arguments that depend on the parameters."""
        yield from _values(tuple(self.args.values()))


class Tape(TorchFunctionMode):
    """Records what happens to the parameters while it is active."""

    def __init__(self, params: Tensors):
        super().__init__()
        self.nodes: list[Node] = []
        self.ends: list[Value] = []  # outputs and losses
        self.at_outputs = 0  # how many nodes there were when the closure returned
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
        names = rule.names if rule else ()
        bound = dict(zip(names, args, strict=False)) | kwargs if rule else {"args": args, **kwargs}
        if rule and rule.many:
            bound = {"args": args, **kwargs}

        def value(name: str, x: Any) -> Any:
            if isinstance(x, Tensor) and id(x) in self._ids:
                keep = rule is None or name in rule.reads or id(x) in self._params
                return Value(self._ids[id(x)], x, keep)
            if type(x) in (tuple, list):
                return type(x)(value(name, t) for t in x)
            return x

        node_args = {k: value(k, v) for k, v in bound.items()} | extra
        keep_out = rule is not None and "y" in rule.reads
        self.nodes.append(Node(rule, func, node_args, [Value(self.number(t), t, keep_out) for t in made]))

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


# ---- the backend


def run(net: Network) -> tuple[Tensor, Tensor]:
    """The ordinary pass, recorded: outputs and per-sample losses."""
    tape = Tape(net.params)
    with tape:
        outputs = tape.current(net.closure())
        tape.at_outputs = len(tape.nodes)
        losses = net.losses_of(outputs)
    # a result that no recorded operation made gets a number of its own, and no tangent: the ⟨g, d⟩ check will say so
    tape.ends = [Value(tape.number(t), t, keep=False) for t in (outputs, losses)]
    net.recording = tape
    tape.close()
    return outputs, losses


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d: the tangents of the nodes up to the outputs."""
    tape: Tape = net.recording
    first = {i: x for i, x in enumerate(d)}
    with torch.no_grad():
        for node in tape.nodes[: tape.at_outputs]:
            _advance(node, first, None)
    return _at(first, net.recording.ends[0], d)


def second(net: Network, d: Tensors, e: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
    """Per sample (no new losses, ⟨∇J_s, d⟩, dᵀ∇²J_s e): one replay; two, by polarisation, if e is not d."""
    if e is not d:
        # 4 dᵀHe = (d+se)ᵀH(d+se) − (d−se)ᵀH(d−se), over s, the scale that makes both the same size
        scale = (_norm(d) / _norm(e)).nan_to_num(1.0, 1.0, 1.0)
        slope, plus = _replay(net, [x + scale * y for x, y in zip(d, e, strict=True)])
        other, minus = _replay(net, [x - scale * y for x, y in zip(d, e, strict=True)])
        return None, (slope + other) / 2, (plus - minus) / (4 * scale)
    return None, *_replay(net, d)


hvp, summary = autodiff.hvp, autodiff.summary


def _replay(net: Network, d: Tensors) -> tuple[Tensor, Tensor]:
    first: dict[int, Tensor] = {i: x for i, x in enumerate(d)}
    second: dict[int, Tensor] = {}
    last_use = {v.id: i for i, node in enumerate(net.recording.nodes) for v in node.inputs()}
    with torch.no_grad():
        for i, node in enumerate(net.recording.nodes):
            _advance(node, first, second)
            for v in list(node.inputs()):
                if last_use[v.id] == i:
                    first.pop(v.id, None)
                    second.pop(v.id, None)
    return _at(first, net.recording.ends[1], d), _at(second, net.recording.ends[1], d)


def _at(table: dict[int, Tensor], end: Value, d: Tensors) -> Tensor:
    return table[end.id] if end.id in table else d[0].new_zeros(end.shape)


def _advance(node: Node, first: dict[int, Tensor], second: dict[int, Tensor] | None) -> None:
    """One step of the replay: fill in the tangents (and second derivatives) of the node's outputs."""

    def tangents(table: dict[int, Tensor]) -> Callable[[Any], Any]:
        def tangent(x: Any) -> Any:
            if isinstance(x, Value):
                return table.get(x.id)
            return [tangent(y) for y in x] if type(x) in (tuple, list) else None

        return tangent

    t = tangents(first)
    if not any(v.id in first for v in node.inputs()):
        return
    if node.rule is None:
        ys, ss = _fallback(node, t, second is not None)
    else:
        ys, ss = node.rule.apply(node, t, second is not None)
    linear: Any = None
    if second and any(v.id in second for v in node.inputs()):
        u = tangents(second)
        linear = (_fallback(node, u, False) if node.rule is None else node.rule.apply(node, u, False))[0]
    for k, v in enumerate(node.out):
        first[v.id] = _item(ys, k)  # type: ignore[assignment]
        if second is not None:
            parts = [p for p in (_item(ss, k), _item(linear, k)) if p is not None]
            if parts:
                second[v.id] = parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _fallback(node: Node, t: Callable, curved: bool) -> tuple[Any, Any]:
    """Nested forward mode of one operation, run again on its recorded inputs."""
    values = list(dict.fromkeys(node.inputs()))
    active = [v for v in values if t(v) is not None]
    rest = {k: v for k, v in node.args.items() if k != "args"}

    def f(*xs: Tensor) -> Any:
        table = {id(v): x for v, x in zip(active, xs, strict=True)}
        fill = lambda a: _map_values(a, lambda v: table.get(id(v), v.data))  # noqa: E731
        out = node.func(*fill(node.args["args"]), **{k: fill(v) for k, v in rest.items()})
        return tuple(x for x in tensors(out) if x.is_floating_point())

    xs, ds = tuple(v.data for v in active), tuple(t(v) for v in active)
    name = getattr(node.func, "__name__", str(node.func))
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            if not curved:
                return tuple(y.detach() for y in forward(f, xs, ds)[1]), None
            ys, ss = forward(lambda *z: forward(f, z, ds)[1], xs, ds)  # type: ignore[misc]
        return tuple(y.detach() for y in ys), tuple(s.detach() for s in ss)
    except (RuntimeError, NotImplementedError) as error:
        line = (str(error).splitlines() or [""])[0][:200]
        raise UnsupportedOperation(
            f"{name} has no rule and cannot be differentiated twice in forward mode: {line}"
        ) from error


def _norm(d: Tensors) -> Tensor:
    return torch.stack([x.square().sum() for x in d]).sum().sqrt()


def _item(x: Any, k: int) -> Tensor | None:
    return x if x is None or isinstance(x, Tensor) else x[k]


def _values(x: Any) -> Iterator[Value]:
    if isinstance(x, Value):
        yield x
    elif type(x) in (tuple, list):
        for y in x:
            yield from _values(y)


def _map_values(x: Any, f: Callable[[Value], Any]) -> Any:
    if isinstance(x, Value):
        return f(x)
    if type(x) in (tuple, list):
        return type(x)(_map_values(y, f) for y in x)
    return x
