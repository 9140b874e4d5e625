"""The local model of a loss: what J looks like around θ, along the directions that somebody asks about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprolib.curvature.backends import BACKENDS
from reprolib.curvature.network import Backend, Closure, Loss, Network, Options
from reprolib.curvature.replay import translated
from reprolib.curvature.tree import Tensors, inner, like
from reprolib.errors import InvalidInput, ModelConsumed, NotRepeatable, UnsupportedOperation, UntrackedOperation


class Summary(NamedTuple):
    """Derivatives of ψ(η) = J(θ_i + η_{k(i)} d_i) at 0, one η per group of tensors (S groups); see NewtonSummary."""

    gradient: Tensor  # (S,)    ⟨∇_k J, d_k⟩
    hessian: Tensor  # (S, S)  d_kᵀ ∂²J/∂θ_k∂θ_l d_l
    third: Tensor  # (S,)    ∂³J/∂θ_k³ [d_k, d_k, d_k]; NaN where it was not asked for


def opened(closure: Closure, loss: Loss | None, params: Tensors, options: Options) -> LocalModel:
    """The local model of one closure and loss, by its ordinary pass."""
    behind = BACKENDS["reverse"] if options.backend == "tape" and options.fallback == "reverse" else None
    net = Network(closure, loss, params, options, BACKENDS[options.backend], behind)
    with torch.enable_grad(), _one_replica():
        outputs, losses = net.open()
    if not losses.requires_grad:
        raise InvalidInput("the losses depend on none of the parameters: is something detached, or under no_grad?")
    return LocalModel(net, outputs, losses)


class LocalModel:
    """What :func:`expand` returns. ``d``, ``e`` are tuples shaped like ``params``; sums over samples carry the 1/B of J.

    ``loss``, ``losses``, ``outputs``, ``gradient``, ``loss_gradient`` and :meth:`loss_hvp` cost at most the ordinary
    forward and backward pass. The directional answers (:meth:`curvature`, :meth:`product`, :meth:`jvp`, :meth:`vjp`,
    :meth:`summary`) need what the pass stored; the first of them frees it, unless ``expand(..., retain=True)``, and a
    second raises :class:`~reprolib.errors.ModelConsumed`, like autograd's ``retain_graph``. A ``gradient`` that was
    read before stays. ``handed_over`` says why another backend has answered, or is empty.
    """

    def __init__(self, net: Network, outputs: Tensor, losses: Tensor):
        self.losses: Tensor = losses.detach()  # (B,)
        self.loss: Tensor = self.losses.mean()  # ()
        self.operator = net.options.curvature
        self.handed_over = net.handed_over
        self._params, self._options = net.params, net.options
        self._net: Network | None = net
        self._outputs = None if net.loss is None else outputs.detach()
        self._losses_of = net.losses_of
        self._gradient: tuple[Tensor, ...] | None = None

    # ---- the pass itself

    @property
    def outputs(self) -> Tensor:
        """The network's outputs (B, ...)."""
        if self._outputs is None:
            raise InvalidInput("expand() was given no loss, so there are no outputs apart from the losses")
        return self._outputs

    @property
    def gradient(self) -> tuple[Tensor, ...]:
        """∇J, a tuple like ``params``."""
        if self._gradient is None:
            self._gradient = self._kept().gradient()
        return self._gradient

    @property
    def loss_gradient(self) -> Tensor:
        """∂J/∂outputs (B, ...); block s is (1/B) ∇ℓ(o_s)."""
        with torch.enable_grad():
            o = self.outputs.requires_grad_()
            (g,) = torch.autograd.grad(self._losses_of(o).mean(), o)
        o.requires_grad_(False)
        return g

    def loss_hvp(self, u: Tensor) -> Tensor:
        """Λ u (B, ...) with Λ = ∂²J/∂outputs²; block s is (1/B) ∇²ℓ(o_s) u_s."""
        if u.shape != self.outputs.shape:
            raise InvalidInput(f"loss_hvp: u is {tuple(u.shape)}, the outputs are {tuple(self.outputs.shape)}")

        with torch.enable_grad(), translated("the loss"):
            o = self.outputs.detach().requires_grad_()
            (g,) = torch.autograd.grad(self._losses_of(o).mean(), o, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(o)
            return torch.autograd.grad(g, o, u.to(o), materialize_grads=True)[0]

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ of two tensors shaped like the outputs, a 0-d tensor: ⟨Jd, ΛJd⟩ = dᵀCd of the GGN, for one."""
        return torch.sum(u * v)

    # ---- directional answers

    def curvature(self, d: Tensors, e: Tensors | None = None) -> Tensor:
        """Per-sample dᵀC_s e (B,), with C = (1/B) Σ_s C_s; ``e = d`` if not given.

        C_s is the Hessian of the sample's loss, or its GGN A_sᵀ ∇²ℓ(o_s) A_s.
        """
        d = like(d, self._params)
        e = d if e is None else like(e, self._params, "e")
        if self.operator == "hessian":

            def second(backend: Backend) -> Tensor:
                found = backend.second(self._kept(), d, e)
                self._verify(d, found.slopes, found.losses)
                return found.curvature

            answer = self._asked(second)
        else:
            tangent = self._tangent(d)
            other = tangent if e is d else self._tangent(e)
            # per sample uᵀ∇²ℓ(o_s)v, where the blocks of Λ are (1/B)∇²ℓ(o_s)
            batch = len(tangent)
            answer = batch * (self.loss_hvp(tangent) * other).reshape(batch, -1).sum(1)
        self._answered()
        return answer

    def product(self, d: Tensors) -> tuple[Tensor, ...]:
        """C d, a tuple like ``params``: ∇²J d, or AᵀΛA d."""
        d = like(d, self._params)
        if self.operator == "hessian":

            def hvp(backend: Backend) -> tuple[Tensor, ...]:
                gradient, answer = backend.hvp(self._kept(), d)
                if self._options.check:
                    self._verify(d, inner(gradient, d))
                return answer

            answer = self._asked(hvp)
        else:
            answer = self._kept().pull_back(self.loss_hvp(self._tangent(d)))
        self._answered()
        return answer

    def jvp(self, d: Tensors) -> Tensor:
        """A d (B, ...), the change of the outputs along d; A = ∂outputs/∂θ."""
        answer = self._tangent(like(d, self._params))
        self._answered()
        return answer

    def vjp(self, w: Tensor) -> tuple[Tensor, ...]:
        """Aᵀ w, a tuple like ``params``, for w shaped like the outputs."""
        if w.shape != self.outputs.shape:
            raise InvalidInput(f"vjp: w is {tuple(w.shape)}, the outputs are {tuple(self.outputs.shape)}")
        answer = self._kept().pull_back(w)
        self._answered()
        return answer

    def loss_at(self, step: Tensors) -> Tensor:
        """J(θ + step) of the same batch, a 0-d tensor: one more forward pass, with the same random numbers, no effects.

        No directional answer: it frees nothing, but a closed model cannot give it.
        """
        return self._kept().losses_at(shifted(step, self._params)).mean()

    def summary(self, d: Tensors, groups: Sequence[Sequence[int]] | None = None, third: bool = True) -> Summary:
        """Derivatives of J along the S block directions of d (:class:`Summary`).

        Args:
            d: the direction whose blocks are moved one by one.
            groups: S disjoint lists of positions in ``params``; default one group per tensor. Left-out tensors stay.
            third: also the diagonal third derivatives (Hessian only).
        """
        d = like(d, self._params)
        groups = [[i] for i in range(len(d))] if groups is None else [list(g) for g in groups]
        flat = [i for g in groups for i in g]
        if not groups or not all(groups) or len(set(flat)) < len(flat) or not set(flat) <= set(range(len(d))):
            raise InvalidInput(f"groups {groups}: give non-empty, disjoint lists of positions in 0…{len(d) - 1}")
        if self.operator == "ggn" and third:
            raise InvalidInput("the GGN has no third derivatives: call summary(..., third=False)")
        moved = tuple(x if i in flat else torch.zeros_like(x) for i, x in enumerate(d))

        def summary(backend: Backend) -> Summary:
            if self.operator == "ggn":
                result = self._ggn_summary(backend, d, groups)
            else:
                result = Summary(*backend.summary(self._kept(), d, groups, third))
            self._verify(moved, result.gradient.sum())
            return result

        result = self._asked(summary)
        self._answered()
        return result

    def close(self) -> None:
        """Free what the pass stored; values already read stay."""
        if self._net is not None:  # losses_of still belongs to it
            self._net.free()
        self._net = None

    # ---- inside

    def _kept(self) -> Network:
        if self._net is None:
            raise consumed()
        return self._net

    def _answered(self) -> None:
        if not self._options.retain:
            self.close()

    def _tangent(self, d: Tensors) -> Tensor:
        net, _ = self._kept(), self.outputs  # there must be some

        def jvp(backend: Backend) -> Tensor:
            tangent = backend.jvp(net, d)
            if self._options.check:
                try:
                    self._verify(d, torch.sum(self.loss_gradient * tangent))
                except UntrackedOperation:
                    self._refuse_terms()
                    raise
            return tangent

        return self._asked(jvp)

    def _asked(self, question: Callable[[Backend], Any]) -> Any:
        """The answer of the backend, or of whoever it has handed over to."""
        net = self._kept()
        answer = net.ask(question)
        self.handed_over = net.handed_over
        return answer

    def _ggn_summary(self, backend: Backend, d: Tensors, groups: Sequence[Sequence[int]]) -> Summary:
        blocks = [tuple(x if i in g else torch.zeros_like(x) for i, x in enumerate(d)) for g in groups]
        tangents = [backend.jvp(self._kept(), block) for block in blocks]
        curved = torch.stack([self.loss_hvp(t) for t in tangents]).flatten(1)
        stacked = torch.stack(tangents).flatten(1)
        gradient = stacked @ self.loss_gradient.flatten()
        return Summary(gradient, stacked @ curved.T, torch.full_like(gradient, math.nan))

    def _verify(self, d: Tensors, slopes: Tensor, losses: Tensor | None = None) -> None:
        """The tangent of the mean loss must be ⟨∇J, d⟩: what escaped the replay would be missing from it."""
        if not self._options.check:
            return
        if losses is not None:
            try:
                check_repeated(self.losses, losses)
            except NotRepeatable:
                self._refuse_changed()
                raise
        tolerance = _tolerance(self.losses)
        expected, found = inner(self.gradient, d), slopes.mean()
        size = inner([g.abs() for g in self.gradient], [x.abs() for x in d])
        # a slope below the rounding errors of the losses over a step of relative size 1: where they do not depend on θ
        # (dead units, a vector of length one that is normalised) only rounding errors are left, of a few operations
        lengths = [torch.stack(torch._foreach_norm(list(x))).norm() for x in (d, [p.detach() for p in self._params])]
        noise = 100 * torch.finfo(self.losses.dtype).eps * self.losses.abs().mean() * lengths[0] / (1 + lengths[1])
        # False for NaN: non-finite losses are the caller's to see
        if bool((found - expected).abs() > tolerance * size + noise):
            self._refuse_changed()
            raise UntrackedOperation(
                f"the loss changes by {float(found):.6g} along d, but ⟨gradient, d⟩ = {float(expected):.6g}: part of the "
                "network is invisible here (a scripted module, a custom autograd function, parameters used through .data)"
            )

    def _refuse_terms(self) -> None:
        """Say so if the loss depends on the parameters by itself: outputs and their tangents know nothing of that."""
        with torch.enable_grad():
            losses = self._losses_of(self.outputs.detach().requires_grad_())
            found = torch.autograd.grad(losses.mean(), self._params, allow_unused=True) if losses.requires_grad else ()
        if any(g is not None for g in found):
            raise InvalidInput(
                "the loss holds a term in the parameters (weight decay?), which is no function of the outputs: give it to "
                "the optimizer (weight_decay=), or ask for curvature='hessian'"
            )

    def _refuse_changed(self) -> None:
        """Say so if the parameters are not those of the pass."""
        if self._net is not None and self._net.written:
            raise InvalidInput(
                "somebody wrote into the parameters after expand(): ask all questions before the step, or expand again"
            )


def check_repeated(losses: Tensor, again: Tensor) -> None:
    """The per-sample losses of a second pass must be those of the first; else :class:`NotRepeatable`."""
    drift = (again - losses).abs().max() if again.shape == losses.shape else torch.tensor(math.inf)
    if bool(drift > _tolerance(losses) * losses.abs().max()):
        raise NotRepeatable(
            f"run again with the same parameters and random state, the losses changed by {float(drift):.3g}: the "
            "closure must give the same outputs each time (no counters, no random numbers of its own generator)"
        )


def shifted(step: Tensors, params: Tensors) -> tuple[Tensor, ...]:
    """θ + step."""
    return tuple(p.detach() + s for p, s in zip(params, like(step, params, "step"), strict=True))


def consumed() -> ModelConsumed:
    """The error of a model that is asked again."""
    return ModelConsumed(
        "this local model was freed by its first directional answer: read gradient before it, or keep the model "
        "with expand(..., retain=True)"
    )


def _tolerance(losses: Tensor) -> float:
    return 10 * math.sqrt(torch.finfo(losses.dtype).eps)


@contextmanager
def _one_replica() -> Iterator[None]:
    """Refuse wrappers that reduce gradients between replicas by hooks of their own, which curvature never passes."""

    def refuse(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            raise UnsupportedOperation(
                f"the closure calls a {type(module).__name__}: its replicas would not share their curvature; "
                "call the wrapped network (.module)"
            )

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
