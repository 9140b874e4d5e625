"""The door: the local model of a closure and a loss, or of many of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reprolib.curvature.backends import BACKENDS
from reprolib.curvature.model import LocalModel, opened
from reprolib.curvature.network import Closure, Loss, Options, Pair, checked, pairs_of
from reprolib.curvature.parts import Parts, world_size
from reprolib.errors import UnknownName


def expand(
    closure: Closure | Sequence[Pair],
    loss: Loss | None,
    params: Sequence[Tensor],
    curvature: str = "hessian",
    backend: str = "tape",
    *,
    products: str = "plain",
    memory: str = "store",
    batch_norm: str = "exact",
    fallback: str = "reverse",
    retain: bool = False,
    check: bool = True,
    ranks: bool = True,
) -> LocalModel:
    """Expand J(θ) = (1/B) Σ_s ℓ(f(x_s; θ), y_s) around the present parameters.

    Runs ``closure`` once, as an ordinary training step would (batch-norm statistics advance, dropout draws). Where an
    answer needs the network again, it is run without further effects.

    Args:
        closure: () -> outputs (B, ...). With ``tape`` it is run once, but again where ``product`` of the Hessian
            meets fused attention; with ``autodiff`` for every answer. Then it must be repeatable. Or a sequence of
            (closure, loss) pairs, the micro-batches of one batch, of which one at a time is in memory
            (:class:`~reprolib.curvature.parts.Parts`); ``loss`` is ``None`` then.
        loss: outputs -> per-sample losses (B,); (B, T, ...) is averaged over the later axes. ``None``: the closure
            itself returns the losses (then nothing that needs the outputs can be answered, so no GGN).
        params: θ, distinct floating-point leaves that require grad. A parameter the network does not use counts as zero.
        curvature: ``"hessian"``, C = ∇²J, or ``"ggn"``, C = AᵀΛA with A = ∂outputs/∂θ and Λ = ∂²J/∂outputs².
        backend: how derivatives are computed: ``"tape"`` (one recorded pass), ``"reverse"`` (reverse mode alone: slower,
            and right wherever autograd can differentiate twice), ``"autodiff"`` (PyTorch's own modes),
            ``"complexstep"`` (imaginary parts) or ``"finitediff"`` (difference quotients, approximate); see ``backends.py``.
        products: of the tape's layers: ``"plain"``, or ``"shared"``, a sixth faster for a fifth more memory
            (:func:`~reprolib.curvature.tape.rules.layers.shared_products`).
        memory: of the tape: ``"store"``, or ``"recompute"``, about the memory of a gradient for a sixth more time
            (``tape/recompute.py``). Neither changes the answer.
        batch_norm: what a sample's own curvature is where batch-norm in training mode mixes samples (E-red-9):
            ``"exact"``, dᵀ∇²J_s d, or ``"by-index"``, the split of Algorithm 2, what arises at the sample's place in the
            batch. Their means agree; the latter is cheaper.
        fallback: of the tape: what happens where the network cannot be recorded: ``"reverse"``, that backend takes over,
            with a warning (:class:`~reprolib.errors.HandedOver`), or ``"refuse"``, an error.
        retain: keep what the first pass stored after the first directional answer (see :class:`LocalModel`).
        check: compare each answer's tangent of the mean loss with ⟨∇J, d⟩ (one synchronisation with the device).
        ranks: where ``torch.distributed`` is initialised, J is the mean over the samples of all processes, and every
            process must take the same steps (:class:`~reprolib.curvature.parts.Parts`). ``False``: of this one's.

    Raises:
        InvalidInput, UnknownName: arguments that cannot be used.
    """
    if backend not in BACKENDS:
        raise UnknownName.among("backend", backend, BACKENDS)
    options = Options(curvature, backend, products, memory, batch_norm, retain, check, fallback)
    params = checked(params)
    world = world_size() if ranks else 1
    if world == 1 and len(pairs := pairs_of(closure, loss, curvature)) == 1:
        return opened(*pairs[0], params, options)
    return Parts(closure, loss, params, options, world)
