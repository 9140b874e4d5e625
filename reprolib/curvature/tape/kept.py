"""What a recording keeps by reference, and copies before somebody writes into that memory in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.curvature.calls import map_tensors, tensors
from reprolib.curvature.tape.node import Node


class Kept:
    """The memory that nodes read later. ``whole``: the data of values, by number, that were kept besides."""

    def __init__(self):
        self.whole: dict[int, Tensor] = {}
        self._holders: dict[int, list] = {}  # address of the memory -> nodes, and numbers in ``whole``
        self._seen = 0

    def keep(self, number: int, t: Tensor) -> None:
        """Keep the data of a value."""
        self.whole[number] = t.detach()
        self._holders.setdefault(_address(t), []).append(number)

    def save(self, owner: Tensor, nodes: Sequence[Node]) -> None:
        """Give those who hold memory of ``owner`` a copy of it."""
        for node in nodes[self._seen :]:
            held = {_address(v.data) for v in (*node.inputs(), *node.out) if v.data is not None}
            held |= {_address(t) for t in tensors((node.call, node.args))}
            for address in held:
                self._holders.setdefault(address, []).append(node)
        self._seen = len(nodes) - 1  # the last one has no outputs yet
        address = _address(owner)
        copies: dict[tuple, Tensor] = {}

        def copy(t: Tensor) -> Tensor:
            if _address(t) != address:
                return t
            key = (t.storage_offset(), t.shape, t.stride())
            if key not in copies:
                copies[key] = t.detach().clone()
            return copies[key]

        for holder in self._holders.pop(address, ()):
            if isinstance(holder, Node):
                holder.call, holder.args = map_tensors(holder.call, copy), map_tensors(holder.args, copy)
                for v in (*holder.inputs(), *holder.out):
                    v.data = v.data if v.data is None else copy(v.data)
            else:
                self.whole[holder] = copy(self.whole[holder])


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else 0
