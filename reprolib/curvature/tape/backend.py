"""Backend ``tape``: record the ordinary forward pass, then replay tangents through it (Algorithm 2 of the RED paper).

The replay walks down the tape once and carries two numbers for each value x: its tangent ẋ along d, and its second
derivative ẍ. For an operation y = F(x) they are

    ẏ = DF ẋ            ÿ = DF ẍ + D²F[ẋ, ẋ]

and each operation has one rule (``rules/``) for DF and D²F. At the end stand the per-sample slopes ⟨∇J_s, d⟩ and
curvatures dᵀ∇²J_s d. Nothing of the user's is run twice, so there is nothing to undo: no second forward pass, no dropout
mask to repeat, no statistics to protect. What has no rule is differentiated by nested forward mode of that one operation.

Carrying ẍ through a matrix product costs one more product. It is *paid* instead where that is possible: with the adjoint
x̄ = ∂J/∂x, which the backward pass of the gradient has at hand, ẍ contributes ⟨x̄, ẍ⟩ to dᵀ∇²J d and is forgotten. That is
Algorithm 2. It needs to know which part of x̄ belongs to which sample (``samples.py``), so before a batch-norm, which mixes
them, ẍ is carried on and every share is exact, unless ``batch_norm="by-index"`` asks for Algorithm 2's split.

    matrix products, gradient included and in gradients        paid   carried
    ``products="plain"``                                       2      7/3
    ``products="shared"``  (``rules/layers.py``)               5/3    2
    ``memory="recompute"`` (``recompute.py``)                  7/3 plain, 2 shared, at about the memory of a gradient
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reprolib.curvature import autodiff
from reprolib.curvature.nested import first_of, kind_of, second_of
from reprolib.curvature.network import Network, Second, uncompiled
from reprolib.curvature.tape.blocks import Blockwise
from reprolib.curvature.tape.node import Node, Value, filled, reader
from reprolib.curvature.tape.recompute import adjoints_again
from reprolib.curvature.tape.recorder import Tape
from reprolib.curvature.tape.recording import Recording
from reprolib.curvature.tape.rules.registry import rerun
from reprolib.curvature.tree import Tensors
from reprolib.errors import ReprolibError, UnsupportedOperation


def run(net: Network) -> tuple[Tensor, Tensor]:
    """The ordinary pass, recorded: outputs and per-sample losses."""
    hessian = net.options.curvature == "hessian"
    tape = Tape(
        net.params,
        adjoints=hessian,
        shared=hessian and net.options.products == "shared",
        whole=net.options.memory == "recompute",
    )
    with uncompiled(), tape:
        outputs = tape.current(net.closure())
        tape.at_outputs = len(tape.nodes)
        losses = tape.current(net.losses_of(outputs))
    if tape.lost:
        net.hand_over(tape.lost)
        net.announce()
    else:
        net.recording = Recording(net, tape, outputs, losses)
    return outputs, losses


def gradient(net: Network, losses: Tensor, retain_graph: bool) -> tuple[Tensor, ...]:
    """∇J, and in the same backward pass the adjoints that second derivatives will be paid with."""
    r: Recording = net.recording
    weights = torch.full_like(losses, 1 / losses.numel())
    numbers, wanted = tuple(r.edges), (*net.params, *r.edges.values())
    found = torch.autograd.grad(losses, wanted, weights, retain_graph=retain_graph, allow_unused=True)
    own, adjoints = found[: len(net.params)], found[len(net.params) :]
    if not retain_graph:
        r.graph = r.edges = {}
    r.adjoints = {k: x for k, x in zip(numbers, adjoints, strict=True) if x is not None}
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(net.params, own, strict=True))


def jvp(net: Network, d: Tensors) -> Tensor:
    """A d: the tangents of the nodes up to the outputs."""
    r: Recording = net.recording
    replay = Replay(r, d, curved=False)
    replay.walk(r.nodes, until=r.ends[0].id)
    return replay.at(r.ends[0], replay.first)


def second(net: Network, d: Tensors, e: Tensors) -> Second:
    """Per sample ⟨∇J_s, d⟩ and dᵀ∇²J_s e: one replay; two, by polarisation, if e is not d."""
    net.gradient()  # with it come the adjoints
    if e is not d:
        # 4 dᵀHe = (d+se)ᵀH(d+se) − (d−se)ᵀH(d−se), over s, the scale that makes both the same size
        scale = (_norm(d) / _norm(e)).nan_to_num(1.0, 1.0, 1.0)
        slope, plus = _curvature(net, [x + scale * y for x, y in zip(d, e, strict=True)], free=False)
        other, minus = _curvature(net, [x - scale * y for x, y in zip(d, e, strict=True)], free=not net.options.retain)
        return Second((slope + other) / 2, (plus - minus) / (4 * scale))
    return Second(*_curvature(net, d, free=not net.options.retain))


def hvp(net: Network, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇J, ∇²J d): the graph of the pass, differentiated twice in reverse mode; by another pass where it cannot be."""
    fused = any(node.func is scaled_dot_product_attention for node in net.recording.nodes)  # no second derivative
    graph = None if fused or net.written else net.graph
    if not net.options.retain and (graph or not net.options.check):
        net.graph = net.recording = None  # what is not needed any more
    if graph is None:
        return autodiff.hvp(net, d)
    gradient, answer = autodiff.twice(graph[1], net.params, d)
    if not net.options.retain:
        net.known = gradient  # else gradient() takes the adjoints along
    return gradient, answer


def summary(net: Network, d: Tensors, groups: Sequence[Sequence[int]], third: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ψ(η) as in ``autodiff``, all groups in one walk (``blocks.py``).

    The adjoints come from the graph of the pass, or, where :func:`gradient` has freed it, from running the nodes again.
    Where a node has no rule, by repeated reverse mode instead.
    """
    r: Recording = net.recording
    if any(node.rule is None for node in r.nodes):
        return autodiff.summary(net, d, groups, third)
    weights = d[0].new_full((r.batch,), 1 / r.batch)
    if net.graph is None or r.later is not None:
        made = [v.id for node in r.nodes for v in node.out]
        adjoints = adjoints_again(r.nodes, {}, made, r.ends[1].id, net.params)
    else:
        edges = tuple(r.graph.values())
        found = torch.autograd.grad(net.graph[1], edges, weights, retain_graph=True, allow_unused=True)
        adjoints = {k: x for k, x in zip(r.graph, found, strict=True) if x is not None}
    adjoints[r.ends[1].id] = weights
    walk = Blockwise(d, groups, adjoints, third)
    with torch.no_grad(), blamed() as on:
        for i, node in enumerate(r.nodes):
            on.append(node)
            walk.advance(node)
            for v in list(node.inputs()):
                if r.last_use[v.id] == i:
                    walk.first.pop(v.id, None)
                    walk.second.pop(v.id, None)
    cubes = walk.cubes if third else torch.full_like(walk.cubes, float("nan"))
    return walk.gradient(r.ends[1]), (walk.hessian + walk.hessian.T) / 2, cubes


def _curvature(net: Network, d: Tensors, free: bool) -> tuple[Tensor, Tensor]:
    """Per sample (⟨∇J_s, d⟩, dᵀ∇²J_s d)."""
    r: Recording = net.recording
    assert r.adjoints is not None
    replay = Replay(r, d, curved=True)
    replay.walk(r.nodes if r.later is None else r.nodes[: r.later.start], r.adjoints, free)
    if r.later is not None:
        adjoints = r.later.recompute(r.ends[1].id, net.params)
        replay.walk(r.nodes[r.later.start :], adjoints, free=True)
    return replay.at(r.ends[1], replay.first), replay.at(r.ends[1], replay.second) + replay.paid


class Replay:
    """One walk down the tape along d. ``first`` and ``second`` are the tables of ẋ and ẍ that are still needed."""

    def __init__(self, recording: Recording, d: Tensors, curved: bool):
        self.recording, self.curved = recording, curved
        self.first: dict[int, Tensor] = dict(enumerate(d))
        self.second: dict[int, Tensor] = {}
        self.paid = d[0].new_zeros(recording.batch)  # Σ ⟨x̄, ẍ⟩ by sample, so far
        self._done = 0

    def walk(
        self,
        nodes: Sequence[Node],
        adjoints: dict[int, Tensor] | None = None,
        free: bool = False,
        until: int | None = None,
    ) -> None:
        """Advance through ``nodes``, which follow those of the last call. ``free``: drop what they keep, as it is read."""
        adjoints = adjoints or {}
        with torch.no_grad(), blamed() as on:
            for node in nodes:
                on.append(node)
                if any(v.id in self.first for v in node.inputs()):
                    self._advance(node, adjoints, free)
                if until is not None and any(v.id == until for v in node.out):
                    return
                for v in list(node.inputs()):
                    if self.recording.last_use[v.id] == self._done:
                        self.first.pop(v.id, None)
                        self.second.pop(v.id, None)
                if free:
                    node.forget()
                self._done += 1

    def at(self, end: Value, table: dict[int, Tensor]) -> Tensor:
        """The entry of the outputs or the losses; zero if nothing arrived."""
        return table[end.id] if end.id in table else self.paid.new_zeros(end.shape)

    def _advance(self, node: Node, adjoints: dict[int, Tensor], free: bool) -> None:
        t, u = reader(self.first), reader(self.second) if self.curved else None
        ys, ss = node.rule.advance(node, t, u) if node.rule else fallback(node, t, u)
        for k, v in enumerate(node.out):
            self.first[v.id] = _item(ys, k)  # type: ignore[assignment]
            s = _item(ss, k)
            if s is None:
                continue
            if v.id in adjoints:
                adjoint = adjoints.pop(v.id) if free else adjoints[v.id]
                self._pay(adjoint, s, self.recording.places[v.id])
            else:
                self.second[v.id] = s

    def _pay(self, adjoint: Tensor, s: Tensor, before: int) -> None:
        """Σ over each sample's part of x̄ ∘ ẍ; x̄ carries the 1/B of J."""
        split = (before, self.recording.batch, -1)
        parts = torch.einsum("ksi,ksi->s", adjoint.reshape(split), s.expand(adjoint.shape).reshape(split))
        self.paid += self.recording.batch * parts


@contextmanager
def blamed() -> Iterator[deque[Node]]:
    """PyTorch's errors inside as :class:`UnsupportedOperation` of the node that was put in last."""
    on: deque[Node] = deque(maxlen=1)
    try:
        yield on
    except (torch.OutOfMemoryError, ReprolibError):
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedOperation(f"{on[0].name} cannot be replayed with these arguments: {line}") from error


def fallback(node: Node, t: Callable, u: Callable | None) -> tuple[Any, Any]:
    """(ẏ, ÿ) of an operation that has no rule, run again on its recorded inputs: by PyTorch's own modes (``nested.py``)."""
    values = list({v.id: v for v in node.inputs()}.values())

    def tangents(table: Callable) -> tuple[Tensor, ...]:
        found = [table(v) for v in values]
        return tuple(torch.zeros_like(v.data) if x is None else x for v, x in zip(values, found, strict=True))  # type: ignore[arg-type]

    def f(*xs: Tensor) -> Any:
        given = {v.id: x for v, x in zip(values, xs, strict=True)}
        return tuple(rerun(node, lambda v: given[v.id]))

    xs = tuple(map(_data, values))
    if u is None:
        return first_of(node.name, f, xs, tangents(t)), None
    moving = {id(x) for x in xs}
    args, kwargs = filled(node.call[0], _data), {k: filled(v, _data) for k, v in node.call[1].items()}
    kind = kind_of(node.func, args, kwargs, lambda x: id(x) in moving)
    return second_of(node.name, kind, f, xs, tangents(t), tangents(u))


def _data(v: Value) -> Tensor:
    assert v.data is not None
    return v.data


def _norm(d: Tensors) -> Tensor:
    return torch.stack([x.square().sum() for x in d]).sum().sqrt()


def _item(x: Any, k: int) -> Tensor | None:
    return x if x is None or isinstance(x, Tensor) else x[k]
