"""What a local model is made of: the user's closure and loss as a function of the parameters, and what was asked for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from reprolib.curvature.replay import Call, Repeat, Substitute, spare_statistics, translated
from reprolib.curvature.tree import Tensors
from reprolib.errors import HandedOver, InvalidInput, UnknownName, UnsupportedOperation, UntrackedOperation

Closure = Callable[[], Tensor]
Loss = Callable[[Tensor], Tensor]
Pair = tuple[Closure, Loss | None]

OPERATORS = ("hessian", "ggn")
CHOICES = {
    "products": ("plain", "shared"),
    "memory": ("store", "recompute"),
    "batch_norm": ("exact", "by-index"),
    "fallback": ("reverse", "refuse"),
}


@dataclass(frozen=True)
class Options:
    """What :func:`~reprolib.curvature.expand` was asked for, beyond the function itself."""

    curvature: str
    backend: str
    products: str
    memory: str
    batch_norm: str
    retain: bool
    check: bool
    fallback: str = "reverse"

    def __post_init__(self):
        if self.curvature not in OPERATORS:
            raise UnknownName.among("curvature", self.curvature, OPERATORS)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnknownName.among(name, getattr(self, name), choices)
            if getattr(self, name) != choices[0] and self.backend != "tape":
                raise InvalidInput(f"{name} is an option of the tape, not of backend {self.backend!r}")


class Second(NamedTuple):
    """Per sample, each (B,)."""

    slopes: Tensor  # ⟨∇J_s, d⟩
    curvature: Tensor  # dᵀ∇²J_s e
    losses: Tensor | None = None  # J_s of the pass that answered, if it was another than the ordinary one


class Backend(Protocol):
    """A way of computing derivatives: a module with these functions (``backends.py`` lists them)."""

    def run(self, net: Network) -> tuple[Tensor, Tensor]:
        """The ordinary pass: outputs (B, ...) and per-sample losses (B,), with autograd's graph."""

    def gradient(self, net: Network, losses: Tensor, retain_graph: bool) -> tuple[Tensor, ...]:
        """∇J of the ordinary pass, whose losses these are."""

    def jvp(self, net: Network, d: Tensors) -> Tensor:
        """A d, the tangent of the outputs (B, ...)."""

    def second(self, net: Network, d: Tensors, e: Tensors) -> Second:
        """Slopes and curvatures of each sample."""

    def hvp(self, net: Network, d: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(∇J, ∇²J d)."""

    def summary(
        self, net: Network, d: Tensors, groups: Sequence[Sequence[int]], third: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """∇ψ (S,), ∇²ψ (S, S) and ∂³ψ/∂η_k³ (S,), NaN if not asked for, of ψ(η) = J(θ_i + η_{group of i} d_i) at 0."""


class Network:
    """The user's closure and loss as functions of the parameters that can be called again at other values.

    It owns what is kept of the ordinary pass: autograd's graph, the gradient once it has been taken, and the recording of
    the backend. A network that is only called again needs no backend.

    Args:
        closure, loss, params: as of :func:`~reprolib.curvature.expand`.
        options: what was asked for.
        backend: computes derivatives.
        instead: takes over what ``backend`` cannot do, if the options allow that.
    """

    def __init__(
        self,
        closure: Closure,
        loss: Loss | None,
        params: Tensors,
        options: Options | None = None,
        backend: Backend | None = None,
        instead: Backend | None = None,
    ):
        self.closure, self.loss, self.params = closure, loss, tuple(params)
        self.backend: Any = backend
        self.options = options or Options("hessian", "autodiff", "plain", "store", "exact", True, True)
        self._repeat = Repeat(params)  # before the first pass: it keeps the random state
        self.at = tuple(p.detach() for p in params)
        self._versions = [p._version for p in params]
        self.recording: Any = None  # what the backend keeps of the ordinary pass
        self.handed_over = ""  # why ``instead`` has taken over
        self._instead = instead
        self.graph: tuple[Tensor, Tensor] | None = None  # outputs and losses of it, with autograd's graph
        self.known: tuple[Tensor, ...] | None = None  # ∇J, if somebody has taken it

    def open(self) -> tuple[Tensor, Tensor]:
        """The ordinary pass, by the backend: outputs (B, ...) and losses (B,)."""
        self.graph = self.backend.run(self)
        return self.graph

    def free(self) -> None:
        """Let go of all that the ordinary pass has left."""
        self.graph = self.recording = self.known = None

    def hand_over(self, why: str) -> None:
        """Let ``instead`` answer from now on; the error that ``why`` describes if nobody may."""
        if self._instead is None:
            raise UnsupportedOperation(why)
        self.backend, self._instead, self.handed_over, self.recording = self._instead, None, why, None

    def announce(self) -> None:
        """Say that somebody else answers, and why; Python shows the same warning once."""
        how = "reverse mode answers instead, at two to three times the price; fallback='refuse' makes this an error"
        warnings.warn(f"{self.handed_over} ({how})", HandedOver, stacklevel=2)

    def ask(self, question: Callable[[Backend], Any]) -> Any:
        """``question`` of the backend; of the one behind it, if the first cannot answer."""
        try:
            return question(self.backend)
        except (UnsupportedOperation, UntrackedOperation) as error:
            if self._instead is None:
                raise
            self.hand_over(str(error))
        answer = question(self.backend)
        self.announce()
        return answer

    @property
    def written(self) -> bool:
        """Whether somebody has written into the parameters since: autograd's graph of the pass cannot be used then."""
        return any(p._version != version for p, version in zip(self.params, self._versions, strict=True))

    def gradient(self) -> tuple[Tensor, ...]:
        """∇J. Where nothing else can be asked of the graph, taking the gradient frees it."""
        if self.known is None:
            assert self.graph is not None
            losses = self.graph[1]
            # whoever may take over does not need the graph either: it runs the closure again
            keep = self.options.retain or self.options.curvature == "ggn"
            with translated("the network"):
                self.known = self.backend.gradient(self, losses, keep)
            if not keep:
                self.graph = None
        return self.known

    def pull_back(self, w: Tensor) -> tuple[Tensor, ...]:
        """Aᵀ w, by the graph of the ordinary pass, or one of another pass if that is gone."""
        if self.graph is not None:
            outputs, at = self.graph[0], self.params
        else:
            at = tuple(p.detach().requires_grad_() for p in self.at)
            with torch.enable_grad():
                outputs = self.outputs(*at)
        return torch.autograd.grad(outputs, at, w, retain_graph=True, materialize_grads=True)

    def run(self) -> tuple[Tensor, Tensor]:
        """The ordinary pass: outputs (B, ...) and per-sample losses (B,)."""
        with uncompiled():
            outputs = self.closure()
            return outputs, self.losses_of(outputs)

    def outputs(self, *values: Tensor, call: Call | None = None) -> Tensor:
        """The outputs with ``values`` as parameters; ``call`` is that of :meth:`Repeat.at`."""
        with uncompiled():
            return self._repeat.at(values, self.closure, call)

    def losses(self, *values: Tensor, call: Call | None = None) -> Tensor:
        """The per-sample losses with ``values`` as parameters; ``call`` is that of :meth:`Repeat.at`."""
        with uncompiled():
            return self._repeat.at(values, lambda: self.losses_of(self.closure()), call)

    def losses_at(self, values: Tensors) -> Tensor:
        """The same by the kernels of the ordinary pass, so that the two compare to the last digit; nothing to derive.

        The parameters have these values meanwhile, so that no part of the network can miss them.
        """
        kept = [p.detach().clone() for p in self.params]
        try:
            for p, v in zip(self.params, values, strict=True):
                p.data.copy_(v)
            try:
                return self._losses_as_before(torch.no_grad())
            except UnsupportedOperation:  # the closure differentiates, and needs a graph for that
                return self._losses_as_before(torch.enable_grad())
        finally:
            for p, before in zip(self.params, kept, strict=True):
                p.data.copy_(before)

    def _losses_as_before(self, grad: AbstractContextManager) -> Tensor:
        """One more pass without effects, with the random numbers of the first."""
        mode = Substitute(self.params, self.params, spare_statistics)
        with grad, self._repeat.same_random_numbers(), uncompiled(), mode:
            losses = self.losses_of(self.closure())
        return mode.swap(losses).detach()

    def losses_of(self, outputs: Tensor) -> Tensor:
        """Per-sample losses (B,) of outputs (B, ...): ``loss(outputs)``, averaged over what follows the batch axis."""
        if not isinstance(outputs, Tensor):
            raise InvalidInput(
                f"the closure returned {type(outputs).__name__}: return one tensor, the outputs (B, ...)"
            )
        losses = outputs if self.loss is None else self.loss(outputs)
        if not isinstance(losses, Tensor):
            raise InvalidInput(
                f"the loss returned {type(losses).__name__}: return the per-sample losses, a tensor (B,)"
            )
        if outputs.dim() == 0 and self.loss is not None:
            raise InvalidInput("the outputs are a single number: return outputs with a batch axis, (B, ...)")
        batch = None if self.loss is None else outputs.shape[0]
        if losses.dim() == 0:
            if batch != 1:
                raise InvalidInput(
                    f"the loss is a single number for {'a batch' if batch is None else f'{batch} samples'}: return one loss "
                    'per sample (reduction="none"); the mean over the batch is taken here'
                )
            losses = losses.reshape(1)
        if batch is not None and losses.shape[0] != batch:
            raise InvalidInput(f"{losses.shape[0]} losses for {batch} outputs: the first axis of both is the batch")
        if losses.numel() == 0:
            raise InvalidInput("the batch is empty: there is no loss to expand")
        return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled functions and modules run as they were before: a graph that is recorded cannot be fused as well."""
    if "torch._dynamo" not in sys.modules:  # nobody has compiled anything
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def checked(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``params`` as a tuple, if they can be expanded around; else :class:`InvalidInput`."""
    params = tuple(params)
    if not params:
        raise InvalidInput("no parameters: give at least one tensor")
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise InvalidInput(f"params[{i}] is a {type(p).__name__}: give tensors")
        if p.is_complex() or not p.is_floating_point():
            raise InvalidInput(f"params[{i}] is {p.dtype}: only real floating-point parameters can be differentiated")
        if not p.is_leaf or not p.requires_grad:
            raise InvalidInput(f"params[{i}] is not a leaf that requires grad")
    if len({id(p) for p in params}) < len(params):
        raise InvalidInput("the same parameter is given twice: pass shared weights once")
    return params


def pairs_of(closure: Closure | Sequence[Pair], loss: Loss | None, curvature: str) -> list[Pair]:
    """The (closure, loss) pairs that :func:`~reprolib.curvature.expand` was given; :class:`InvalidInput` if it cannot use them."""
    if callable(closure):
        pairs: list[Pair] = [(closure, loss)]
    elif not isinstance(closure, Sequence):
        raise InvalidInput(
            f"closure is a {type(closure).__name__}: give a function, or a list of (closure, loss) pairs"
        )
    elif loss is not None:
        raise InvalidInput("with a sequence of (closure, loss) pairs each has its own loss: leave loss out (None)")
    else:
        pairs = list(closure)
    if not pairs:
        raise InvalidInput("the sequence of (closure, loss) pairs is empty: there is no loss to expand")
    for i, pair in enumerate(pairs):
        ends = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
        if not callable(ends[0]) or not (ends[1] is None or callable(ends[1])):
            raise InvalidInput(f"part {i} is no (closure, loss) pair of functions: {pair!r:.80}")
        if curvature == "ggn" and ends[1] is None:
            raise InvalidInput(
                "the GGN needs the outputs and the loss apart: pass the closure that returns the outputs, and loss"
            )
    return pairs
