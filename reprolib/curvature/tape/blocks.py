"""The summary Hessian on the tape: S block directions at once, with the diagonal of the third derivative.

ψ(η) = J(θ_i + η_{k(i)} d_i) has the second derivatives ∂²ψ/∂η_k∂η_l = Σ ⟨ȳ, D²F[ẋ_k, ẋ_l]⟩ over the operations y = F(x),
ȳ the adjoint of y and ẋ_k the tangent of x along block k of d. Blocks have mostly zeros: x moves only with the blocks of the
tensors before it, and a weight only with its own. So each value carries the tangents it has, stacked, with the numbers of
their groups, and an operation is asked for one argument at a time:

* elementwise: ⟨ȳ, f″ ẋ_k ẋ_l⟩, one matrix product for all pairs;
* bilinear, y = a * b: ⟨ȳ, ȧ_k * ḃ_l⟩ = ⟨h_l, ȧ_k⟩ with h_l = ∂⟨ȳ, a * ḃ_l⟩/∂a, one product for all k (a weight has one l);
* the rest: the gradient of ½⟨ȳ, D²F[ẋ, ẋ]⟩ at ẋ_k, multiplied with all ẋ_l.

The third derivatives follow y⃛ = DF x⃛ + 3 D²F[ẋ, ẍ] + D³F[ẋ, ẋ, ẋ] paid with ȳ, where D³F is the forward derivative of the
rule's D²F: no rule of third order is written anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.func import jvp as forward

from reprolib.curvature.tape.node import Node, Value, reader
from reprolib.curvature.tree import Tensors

Groups = tuple[int, ...]
Blocks = tuple[Groups, Tensor]  # the groups a value moves with, and its tangents (number of them, *shape)


class Blockwise:
    """The derivatives of ψ, filled in node by node. ``adjoints``: ∂J/∂y by the number of the value."""

    def __init__(self, d: Tensors, groups: Sequence[Sequence[int]], adjoints: dict[int, Tensor], third: bool):
        self.hessian, self.cubes = d[0].new_zeros(len(groups), len(groups)), d[0].new_zeros(len(groups))
        self.third = third
        self.first: dict[int, Blocks] = {i: ((k,), d[i][None]) for k, group in enumerate(groups) for i in group}
        self.second: dict[int, Blocks] = {}
        self._adjoints = adjoints

    def gradient(self, losses: Value) -> Tensor:
        """∂ψ/∂η (S,)."""
        total = torch.zeros_like(self.cubes)
        if losses.id in self.first:
            ids, slopes = self.first[losses.id]
            total[list(ids)] = slopes.mean(1)
        return total

    def advance(self, node: Node) -> None:
        """Fill in the tangents of the node's outputs, and what the node adds to ψ″ and ψ‴."""
        values = {v.id: v for v in node.inputs() if v.id in self.first}
        if not values:
            return
        adjoint = self._adjoints.get(node.out[0].id)
        if node.rule.derivatives:
            (v,) = values.values()
            first, second = self._elementwise(node, v, adjoint)
        elif node.rule.bilinear:
            first, second = self._bilinear(node, values, adjoint)
        else:
            first, second = self._general(node, values, adjoint)
        if self.third:
            second += [self._through(node, v, self.second[v.id]) for v in values.values() if v.id in self.second]
        for k, out in enumerate(node.out):
            self.first[out.id] = _merged([(ids, y[k] if isinstance(y, tuple) else y) for ids, y in first])
            if second:
                self.second[out.id] = _merged([(ids, y[k] if isinstance(y, tuple) else y) for ids, y in second])

    # ---- three kinds of operations: (tangents of y, what D²F[ẋ, ẋ] adds to ÿ), as parts to be added up

    def _elementwise(self, node: Node, v: Value, adjoint: Tensor | None):
        ids, dx = self.first[v.id]
        f1, f2 = node.rule.derivatives(node)
        first: list = [(ids, f1 * dx)]
        if f2 is None or adjoint is None:
            return first, []
        bend = _second(f1, f2)
        riesz = (adjoint * bend) * dx
        self._pay(riesz, dx, ids, ids)
        if not self.third:
            return first, []
        self._cross(v, ids, riesz)
        square = dx * dx  # what is S times as large as x is written as seldom as can be: memory is what takes the time
        self._cube(
            ids,
            torch.mul(square, dx, out=riesz).reshape(len(ids), -1) @ (adjoint * _third(node, v, f1, f2)).reshape(-1),
        )
        return first, [(ids, square.mul_(bend))]

    def _bilinear(self, node: Node, values: dict[int, Value], adjoint: Tensor | None):
        product: Callable[[Tensor, Tensor], Tensor] = lambda a, b: node.rule.bilinear(node, a, b)  # noqa: E731
        a, b = (node.args[k] for k in node.rule.factors)
        rest = [v for v in values.values() if v.id not in {x.id for x in (a, b) if isinstance(x, Value)}]  # a bias
        first = [self._through(node, v, self.first[v.id]) for v in rest]
        second: list[Blocks] = []
        moving = [isinstance(x, Value) and x.id in self.first for x in (a, b)]
        data = [node[k] for k in node.rule.factors]
        if not all(moving):
            x = a if moving[0] else b
            ids, dx = self.first[x.id]
            other = data[1] if moving[0] else data[0]
            along = (lambda z: product(z, other)) if moving[0] else (lambda z: product(other, z))
            return [*first, (ids, vmap(along)(dx))], []
        swap = len(self.first[a.id][0]) < len(self.first[b.id][0])
        few_ids, few = self.first[a.id if swap else b.id]  # one product for each direction of the factor with fewer
        many_ids, many = self.first[b.id if swap else a.id]
        held, other = (data[1], data[0]) if swap else (data[0], data[1])

        def both(x: Tensor, dy: Tensor) -> Tensor:
            return product(dy, x) if swap else product(x, dy)

        parts, back = [], []
        for dy in few:
            part, pull = vjp(lambda x, dy=dy: both(x, dy), held)  # type: ignore[misc]
            parts.append(part)
            if adjoint is not None:
                back.append(pull(adjoint)[0])
        first += [(few_ids, torch.stack(parts)), (many_ids, vmap(lambda dx: both(dx, other))(many))]
        if adjoint is None:
            return first, second
        h = torch.stack(back)
        self._pay(h, many, few_ids, many_ids)
        self._pay(many, h, many_ids, few_ids)
        if self.third:
            common = tuple(i for i in few_ids if i in many_ids)
            if common:
                mine, its = _select((few_ids, few), common), _select((many_ids, many), common)
                second.append((common, 2 * vmap(both)(its, mine)))
            self._cross(a if not swap else b, few_ids, h, 1)
            held_value = b if not swap else a
            if held_value.id in self.second:  # and the other way round: the factor with fewer directions bends too
                more_ids, bent = self.second[held_value.id]
                for i in set(more_ids) & set(many_ids):
                    term = both(_select((many_ids, many), (i,))[0], _select((more_ids, bent), (i,))[0])
                    self.cubes[i] += 3 * (adjoint * term).sum()
        return first, second

    def _general(self, node: Node, values: dict[int, Value], adjoint: Tensor | None):
        ids = tuple(sorted({i for v in values.values() for i in self.first[v.id][0]}))
        slots = list(values)
        dx = [_select(self.first[v], ids) for v in slots]
        bends: list[bool] = []

        def rule(at: Node, *moved: Tensor):
            y, s = at.rule.apply(at, reader(dict(zip(slots, moved, strict=True))), True)
            bends.append(s is not None)
            return (_tuple(y), s) if s is not None else (_tuple(y), ())

        if node.rule.many:  # affine: nothing bends, and each argument moves with its own groups
            return [self._through(node, v, self.first[v.id]) for v in values.values()], []
        y, s = vmap(lambda *m: rule(node, *m))(*dx)
        first = [(ids, y if len(y) > 1 else y[0])]
        if not bends[-1] or adjoint is None:
            return first, []

        def half(*m: Tensor) -> Tensor:
            return (adjoint * rule(node, *m)[1]).sum() / 2

        riesz = vmap(grad(half, argnums=tuple(range(len(slots)))))(*dx)
        for r, x in zip(riesz, dx, strict=True):
            self._pay(r, x, ids, ids)
        if not self.third:
            return first, []
        for r, v in zip(riesz, values.values(), strict=True):
            self._cross(v, ids, r)
        kept = _moveable(node)
        numbers = list(kept)

        def cube(along: Tensor, *m: Tensor) -> Tensor:
            tangents = dict(zip(slots, m, strict=True)) | {node.out[0].id: along}
            d_data = tuple(tangents.get(n, torch.zeros_like(kept[n])) for n in numbers)

            def bent(*data: Tensor) -> Tensor:
                return (adjoint * rule(_Moved(node, dict(zip(numbers, data, strict=True))), *m)[1]).sum()

            return forward(bent, tuple(kept[n] for n in numbers), d_data)[1]

        self._cube(ids, vmap(cube)(y[0], *dx))
        return first, [(ids, s)]

    # ---- sums

    def _through(self, node: Node, v: Value, blocks: Blocks) -> tuple[Groups, Any]:
        """DF along one argument."""
        ids, dx = blocks
        y = vmap(lambda z: _tuple(node.rule.apply(node, reader({v.id: z}), False)[0]))(dx)
        return ids, y if len(y) > 1 else y[0]

    def _pay(self, rows: Tensor, columns: Tensor, i: Groups, j: Groups) -> None:
        part = rows.reshape(len(i), -1) @ columns.reshape(len(j), -1).T
        self.hessian[torch.tensor(i)[:, None], torch.tensor(j)] += part

    def _cube(self, ids: Groups, values: Tensor) -> None:
        self.cubes[list(ids)] += values

    def _cross(self, v: Value, ids: Groups, riesz: Tensor, factor: int = 1) -> None:
        """3 ⟨ȳ, D²F[ẋ_i, ẍ_i]⟩ with the vector that represents ⟨ȳ, D²F[ẋ_i, ·]⟩."""
        if v.id in self.second:
            common = tuple(i for i in ids if i in self.second[v.id][0])
            if common:
                mine, its = (_select(b, common).reshape(len(common), -1) for b in ((ids, riesz), self.second[v.id]))
                self._cube(common, 3 * factor * torch.linalg.vecdot(mine, its))


class _Moved(Node):
    """A node whose data are replaced, by the number of the value."""

    __slots__ = ("_data",)

    def __init__(self, node: Node, data: dict[int, Tensor]):
        self.rule, self.func, self.call, self.out, self.args = node.rule, node.func, node.call, node.out, node.args
        self._data = data

    def __getitem__(self, name: str) -> Any:
        x = self.args.get(name)
        return self._data.get(x.id, x.data) if isinstance(x, Value) else x

    @property
    def y(self) -> Tensor:
        return self._data[self.out[0].id]


def _second(f1: Any, f2: Any) -> Any:
    return f2[0] * f2[1] * f1 if isinstance(f2, tuple) else f2


def _third(node: Node, v: Value, f1: Tensor, f2: Any) -> Tensor:
    """f‴ of an elementwise operation, by forward mode over its f″, or over the h of f″ = c h f′: f‴ = c (h′ + c h²) f′."""
    kept = _moveable(node)
    moves = {v.id: lambda t: torch.ones_like(t), node.out[0].id: lambda t: f1.expand_as(t)}

    def bend(*data: Tensor) -> Tensor:
        second = node.rule.derivatives(_Moved(node, dict(zip(kept, data, strict=True))))[1]
        second = second[1] if isinstance(second, tuple) else second
        return second if isinstance(second, Tensor) else data[0].new_full((), second)

    c, h = f2 if isinstance(f2, tuple) else (None, None)
    if h is not None and h is node.out[0].data:  # tanh
        moved = f1
    else:
        moved = forward(bend, tuple(kept.values()), tuple(moves[k](t) for k, t in kept.items()))[1]
    return moved if h is None else torch.addcmul(moved, h, h, value=c).mul_(f1).mul_(c)


def _moveable(node: Node) -> dict[int, Tensor]:
    """The data of a node, by the number of the value; forward mode wants each entry to have memory of its own."""
    return {v.id: v.data.contiguous() for v in (*node.inputs(), *node.out) if v.data is not None}


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return tuple(x) if isinstance(x, list | tuple) else (x,)


def _select(blocks: Blocks, ids: Groups) -> Tensor:
    """The tangents of ``ids``, zero where there is none."""
    have, x = blocks
    if have == ids:
        return x
    zero = None if set(ids) <= set(have) else torch.zeros_like(x[0])
    return torch.stack([x[have.index(i)] if i in have else zero for i in ids])  # type: ignore[misc]


def _merged(parts: list[Blocks]) -> Blocks:
    """Parts added up, group by group."""
    ids = tuple(sorted({i for have, _ in parts for i in have}))
    if len(parts) == 1:
        return parts[0]
    if sum(len(have) for have, _ in parts) == len(ids):  # nothing to add
        flat = [i for have, _ in parts for i in have]
        return tuple(flat), torch.cat([x.expand(len(x), *parts[0][1].shape[1:]) for _, x in parts])
    total = torch.zeros_like(parts[0][1][0]).repeat(len(ids), *[1] * (parts[0][1].dim() - 1))
    for have, x in parts:
        total[[ids.index(i) for i in have]] += x
    return ids, total
