"""What the tape keeps of the ordinary pass, for the answers that will be asked of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reprolib.curvature.network import Network
from reprolib.curvature.tape.node import Value
from reprolib.curvature.tape.recompute import Later, split
from reprolib.curvature.tape.recorder import Tape
from reprolib.curvature.tape.samples import locate


class Recording:
    """The recorded operations, and where in them second derivatives are paid.

    ``nodes`` are the recorded operations, ``places`` where the samples are in the values whose ẍ is paid, ``adjoints``
    their x̄ once the gradient has been taken. ``later`` are the nodes whose data the recomputing schedule has dropped.
    """

    def __init__(self, net: Network, tape: Tape, outputs: Tensor, losses: Tensor):
        # a result that no recorded operation made gets a number of its own, and no tangent: the ⟨g, d⟩ check will say so
        self.ends = [Value(tape.number(t), t, kept=False) for t in (outputs, losses)]
        self.batch, self.params = len(losses), net.params
        self.nodes = tape.nodes[: tape.at_outputs]
        self.edges: dict[int, Any] = {}  # where in autograd's graph the adjoints are that gradient() takes along
        self.graph = tape.edges  # and those of all values
        self.places: dict[int, int] = {}
        self.adjoints: dict[int, Tensor] | None = None
        self.later: Later | None = None
        if net.options.curvature == "hessian":
            found = locate(tape.nodes, self.ends[1], net.options.batch_norm == "by-index")
            self.nodes = [node for node in tape.nodes if any(v.id in found for v in node.out)]
            paid = tape.products & tape.edges.keys()
            self.places = {k: before for k in paid if (before := found.get(k)) is not None}
            self.edges = {k: tape.edges[k] for k in self.places}
            if net.options.memory == "recompute":
                self.later = split(self.nodes, self.places, tape.tensor)
                self.edges = {k: v for k, v in self.edges.items() if k not in self.later.made}
        self.last_use = {v.id: i for i, node in enumerate(self.nodes) for v in node.inputs()}
        self.last_use |= {v.id: len(self.nodes) for v in self.ends}  # never: they are the answer
        tape.close()
