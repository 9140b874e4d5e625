"""The tape: what one ordinary pass of user code did to the parameters.

A function mode sees every operation on a value that depends on the parameters and writes down a
:class:`~reprolib.curvature.tape.node.Node`: its rule (``rules/``), its arguments, its outputs. The pass itself stays what it
is, also where it writes into tensors in place: then the same tensor is another value from that operation on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from reprolib.curvature.calls import name_of, tensors, writes_in_place
from reprolib.curvature.replay import RandomState
from reprolib.curvature.tape.foreign import Foreign
from reprolib.curvature.tape.kept import Kept
from reprolib.curvature.tape.node import Node, Value
from reprolib.curvature.tape.rules import EXPANDED, RULES, Rule
from reprolib.curvature.tape.rules.writes import Geometry, copied, overwritten, read_again, shifted
from reprolib.curvature.tape.twins import RESHAPED, drawn, entered, out_of_place
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnsupportedOperation


class _Known(NamedTuple):
    """Which value a tensor is. ``version``: autograd's count of what was written into its memory by then."""

    tensor: weakref.ref[Tensor]  # an id may be used again
    number: int
    version: int


class Tape(TorchFunctionMode):
    """Records what happens to the parameters while it is active.

    Args:
        params: θ; they are the values 0, 1, …
        adjoints: also remember where in autograd's graph the adjoints of the values are.
        shared: keep what the product-sharing form of the layers reads.
        whole: keep all values until the recording is closed, for those who choose among them (:meth:`tensor`).
    """

    def __init__(self, params: Tensors, adjoints: bool = False, shared: bool = False, whole: bool = True):
        super().__init__()
        self.nodes: list[Node] = []
        self.ends: list[Value] = []  # outputs and losses
        self.at_outputs = 0  # how many nodes there were when the closure returned
        self.edges: dict[int, GradientEdge] = {}  # where in autograd's graph the adjoint of a value is
        self.products: set[int] = set()  # the values that a matrix product reads
        self._adjoints, self._shared, self._whole = adjoints, shared, whole
        self._known: dict[int, _Known] = {}  # by id(tensor)
        self._written: set[int] = set()  # ids of the tensors that own memory which was written in place
        self._kept = Kept()
        self.lost = ""  # why this is no recording any more
        self._foreign = Foreign(params)
        self._count, self._params = 0, {id(p) for p in params}
        for p in params:
            self._name(p)

    # ---- which value a tensor is

    def number(self, t: Tensor) -> int:
        """The number of a value; a new one if it has none."""
        if self._recorded(t):
            known = self._known[id(t)]
            return known.number if known.version == t._version or id(t) in self._params else self._read_again(t)
        return self._read_again(t) if self._moves(t) else self._name(t)

    def current(self, t: Tensor) -> Tensor:
        """``t``, a result of the pass, known by what its memory holds now."""
        if isinstance(t, Tensor) and not self.lost:
            try:
                if self._moves(t):
                    self.number(t)
                else:
                    self.lost = self._foreign.made(t)
            except UnsupportedOperation as error:
                self.lost = str(error)
        return t

    def tensor(self, number: int) -> Tensor:
        """The data of a value, before the recording is closed."""
        return self._kept.whole[number]

    def close(self) -> None:
        """End of the recording: what it kept for itself may go."""
        self._known, self._written, self._kept = {}, set(), Kept()

    def _name(self, t: Tensor) -> int:
        """A new number for what ``t`` is now."""
        number, self._count = self._count, self._count + 1
        self._known[id(t)] = _Known(weakref.ref(t), number, t._version)
        if self._whole:
            self._kept.keep(number, t)
        return number

    def _recorded(self, t: Tensor) -> bool:
        known = self._known.get(id(t))
        return known is not None and known.tensor() is t

    def _moves(self, t: Tensor) -> bool:
        """Whether ``t`` depends on the parameters: recorded, or a view of memory that recorded values were written into."""
        if self._recorded(t):
            return True
        if not self._written or not t._is_view() or not t.requires_grad:
            return False
        return id(t._base) in self._written and self._recorded(t._base)  # type: ignore[arg-type]

    def _read_again(self, t: Tensor) -> int:
        """The number of a tensor whose memory was written into through another: a view of what is there now."""
        base: Tensor = t._base if t._is_view() else t  # type: ignore[assignment]
        if base is t or not self._recorded(base) or self._known[id(base)].version != base._version:
            self._cannot("a value was written into in place by something that is invisible here")
        node = self._node(RULES[read_again], read_again, (base, *Geometry.of(t, base)), {})
        self._made(node, [t], {})
        return self._known[id(t)].number

    # ---- operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.lost:
            return func(*args, **kwargs)
        try:
            return self._operation(func, args, kwargs)
        except UnsupportedOperation as error:
            self.lost = str(error)
        return func(*args, **kwargs)  # the pass goes on as it would without us

    def _operation(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Do it, and record it; :class:`UnsupportedOperation`, and nothing is done, if it cannot be recorded."""
        given = list(tensors((args, kwargs)))
        moves = any(self._moves(t) for t in given)
        unseen = [t for t in given if t.grad_fn is not None and not self._moves(t)]
        if not moves:
            out = func(*args, **kwargs)
            if unseen and any(t.requires_grad for t in tensors(out)):  # else it only looks
                for t in unseen:
                    self.lost = self.lost or self._foreign.made(t)
                self._foreign.pass_over(out)
            return out
        for t in unseen:
            if why := self._foreign.made(t):
                raise UnsupportedOperation(why)
        name = name_of(func)
        if not torch.is_grad_enabled() and not writes_in_place(name, kwargs):
            return func(*args, **kwargs)
        if func in (torch.autograd.grad, Tensor.backward):
            self._cannot(f"{name} inside the closure is invisible here", "write the derivative out")
        expanded = EXPANDED.get(func) or EXPANDED.get(name)
        if expanded and expanded[0](args, kwargs):  # a small network of its own: record what is inside
            with self:
                return expanded[1](*args, **kwargs)
        rule = self._rule(func, args, kwargs)
        if rule is None and (inside := entered(func)):
            with self:
                return inside(*args, **kwargs)
        if writes_in_place(name, kwargs):
            return self._write(func, name, args, kwargs)
        extra: dict[str, Any] = {}
        if rule is not None and rule.run:
            out, extra = rule.run(func, args, kwargs)
        elif rule is not None or name == "__get__":
            out = func(*args, **kwargs)
        else:
            out = self._without_random_numbers(name, func, args, kwargs)
        wanted = rule.makes if rule else None
        given = [t for i, t in enumerate(tensors(out)) if wanted is None or i in wanted]
        made = [t for t in given if t.requires_grad and not self._recorded(t)]
        if made:
            node = self._node(rule, func, args, kwargs)
            node.picks = tuple(i for i, t in enumerate(tensors(out)) if any(t is m for m in made))
            self._made(node, made, extra)
            self._foreign.pass_over([t for t in tensors(out) if not self._recorded(t)])
        return out

    def _rule(self, func: Callable, args: tuple, kwargs: dict) -> Rule | None:
        """The rule of a call, if it has one in this form."""
        rule = RULES.get(func) or RULES.get(name_of(func))
        if not rule or any(t.is_complex() for t in tensors((args, kwargs))):  # rules are those of real functions
            return None
        return rule if rule.fits(args, kwargs, self._moves) else None

    def _ruled(self, func: Callable, args: tuple, kwargs: dict) -> tuple[Rule | None, Callable, tuple, dict]:
        return self._rule(func, args, kwargs), func, args, kwargs

    def _node(self, rule: Rule | None, func: Callable, args: tuple, kwargs: dict) -> Node:
        """The call with its arguments as they are now."""
        names = rule.names if rule and not rule.many else ()
        call_args = tuple(self._value(rule, names[i] if i < len(names) else "args", x) for i, x in enumerate(args))
        call_kwargs = {k: self._value(rule, rule.name(k) if rule else k, v) for k, v in kwargs.items()}
        named = rule.bound(call_args, call_kwargs) if rule else {"args": call_args, **call_kwargs}
        self.nodes.append(Node(rule, func, (call_args, call_kwargs), named))
        return self.nodes[-1]

    def _made(self, node: Node, made: list[Tensor], extra: dict[str, Any], adjoint: bool = True) -> None:
        """Its outputs: the node is complete."""
        rule = node.rule
        node.args |= extra
        shares = self._shared and rule and rule.factors and all(isinstance(node.args[k], Value) for k in rule.factors)
        keep_out = rule is not None and ("y" in rule.reads or bool(shares))
        node.out = [Value(self._name(t), t, keep_out) for t in made]
        if self._adjoints and adjoint:
            self.edges |= {v.id: get_gradient_edge(t) for v, t in zip(node.out, made, strict=True)}

    def _value(self, rule: Rule | None, name: str, x: Any) -> Any:
        """What a node keeps of its argument ``name``."""
        if isinstance(x, Tensor) and self._moves(x):
            number = self.number(x)
            if rule and rule.product and id(x) not in self._params and not x.is_complex():
                self.products.add(number)
            return Value(number, x, rule is None or name in rule.reads or id(x) in self._params)
        if type(x) in (tuple, list):
            return type(x)(self._value(rule, name, t) for t in x)
        return x

    # ---- in place

    def _write(self, func: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        """An in-place operation. It is done; on the tape it is its twin out of place, which makes a new value."""
        if not args:
            first, *rest = kwargs
            args, kwargs = (kwargs[first],), {k: kwargs[k] for k in rest}
        target = args[0]
        if not isinstance(target, Tensor):
            self._cannot(f"{name} writes into several tensors at once in place")
        if name == "requires_grad_" or (id(target) in self._params and torch.is_grad_enabled()):
            return func(*args, **kwargs)  # PyTorch refuses the latter itself
        if not torch.is_grad_enabled():
            if not self._moves(target):
                return func(*args, **kwargs)  # a buffer that takes note of an activation
            return self._shift(name, target, lambda: func(*args, **kwargs))
        if name == "detach_":
            self._known.pop(id(target), None)
            return func(*args, **kwargs)
        if name in RESHAPED:
            node = self._node(*self._ruled(*out_of_place(func, name, args, kwargs)))
            out = func(*args, **kwargs)
            self._made(node, [target], {})
            return out
        if values := drawn(name, target, args, kwargs):
            func, name, args, kwargs = Tensor.copy_, "copy_", (target, *values), {}
        twin, plain_args, plain_kwargs = out_of_place(func, name, args, kwargs)
        rule, *_ = ruled = self._ruled(twin, plain_args, plain_kwargs)
        if target._is_view() or (rule is not None and rule.run):
            if twin is not copied:
                with self:  # on a copy, as in-place operations do where the backward pass needs what was there
                    copy = target.clone()
                new = self.__torch_function__(twin, (), (copy, *plain_args[1:]), plain_kwargs)
                return self._overwrite(target, new, lambda: target.copy_(new))
            return self._overwrite(target, plain_args[1], lambda: func(*args, **kwargs))
        return self._renew(ruled, target, lambda: func(*args, **kwargs))

    def _overwrite(self, target: Tensor, new: Any, write: Callable[[], Tensor]) -> Tensor:
        """``write``, which copies ``new`` into ``target``; if that is a view, what owns the memory is a new value."""
        if not target._is_view():
            return self._renew(self._ruled(copied, (target, new), {}), target, write)
        base: Tensor = target._base  # type: ignore[assignment]
        where = Geometry.of(target, base)
        if where.base_strides is None:
            self._cannot("a view of memory with gaps is written into in place")
        before: Tensor = base
        if target.numel() == base.numel():  # nothing of it is left
            before = base.new_zeros(()).expand(base.shape)
        elif base.requires_grad and not self._moves(base):
            self._cannot("a part of a value is written into in place, and the whole is invisible here")
        return self._renew(self._ruled(overwritten, (before, new, *where), {}), base, write)

    def _shift(self, name: str, target: Tensor, write: Callable[[], Tensor]) -> Tensor:
        """``write`` under ``no_grad``: for autograd what owns the memory moves as before, so its adjoint is not its own."""
        owner: Tensor = target._base if target._is_view() else target  # type: ignore[assignment]
        if id(owner) in self._params or not self._moves(owner):
            self._cannot(f"{name} writes into a parameter, or into what is invisible here, under no_grad")
        before = owner.detach().clone()
        node = self._node(*self._ruled(shifted, (owner, before), {}))
        self._kept.save(owner, self.nodes)
        out = write()
        before.sub_(owner.detach()).neg_()
        self._made(node, [owner], {}, adjoint=False)
        self._written.add(id(owner))
        return out

    def _renew(self, ruled: tuple, owner: Tensor, write: Callable[[], Tensor]) -> Tensor:
        """``write``, after which ``owner`` is another value."""
        node = self._node(*ruled)
        self._kept.save(owner, self.nodes)
        out = write()
        if owner.requires_grad:
            self._made(node, [owner], {})
            self._written.add(id(owner))
        else:  # whole numbers
            self.nodes.pop()
        return out

    # ---- what cannot be recorded

    def _cannot(self, why: str, cure: str = "write it out of place") -> NoReturn:
        raise UnsupportedOperation(f"{why}: {cure}")

    def _without_random_numbers(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Call an operation that has no rule; the replay runs it again, so it must not draw random numbers."""
        before = RandomState(tensors((args, kwargs)))
        out = func(*args, **kwargs)
        if any(t.requires_grad for t in tensors(out)) and before != RandomState(tensors((args, kwargs))):
            before.rewind()
            self._cannot(f"{name} draws random numbers and has no rule", "draw them first, outside of it")
        return out
