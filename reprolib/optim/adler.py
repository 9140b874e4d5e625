"""ADLER: the learning rate that minimises the local quadratic model along the gradient (Balboni & Bacciu, 2023).

Algorithm 1 of the paper: curvature from the generalised Gauss–Newton matrix, averaged over the steps as a logarithm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature import LocalModel
from reprolib.curvature.backends import BACKENDS
from reprolib.curvature.tree import Tensors, inner
from reprolib.errors import InvalidInput, UnknownName
from reprolib.optim.step import Closure, LocalModelOptimizer, Loss, chosen, free_to_look, open_model, refuse_negative

CURVATURES = {"ggn": "log", "gauss-newton": "linear", "fisher": "linear"}  # and how the paper averages their rates
AVERAGES = ("log", "linear")
REGULARISED = ("hessian", "denominator")


class Adler(LocalModelOptimizer):
    r"""θ ← θ − η̂ g, where η̂ is the discounted geometric mean of η = gᵀg / (gᵀGg + ε gᵀg), G = AᵀΛA.

    η minimises the quadratic model J − η gᵀg + ½ η² gᵀGg of this batch; η_i enters η̂ at step k with weight β^(k−i). Only
    the loss needs a second derivative, in its outputs: networks with kinks (ReLU) are as good as smooth ones.

    Args:
        params: tensors, named tensors or groups.
        beta: β in [0, 1], the discount.
        eps: ε ≥ 0; a step along a direction without curvature has η = 1/ε.
        weight_decay: λ of λ/2‖θ‖², part of J: of g, and with λ‖g‖² of its curvature.
        curvature: ``"ggn"``; or what the paper compares with as "Gauss–Newton", the outer product of ∂J/∂outputs in the place
            of Λ: ``"gauss-newton"``, of the whole batch, which is gᵀ(g gᵀ)g = ‖g‖⁴, so that η = 1/‖g‖²; or ``"fisher"``,
            sample by sample, (1/B) Σ_s (g_sᵀg)² (E-adl-1).
        average: ``"log"``, η̂ = exp(Σ β^(k−i) log η_i / Σ β^(k−i)); or ``"linear"``, without exp and log. ``None``: as the
            paper, the logarithm for the GGN and the linear mean for the other two.
        regularised: what ε is added to: ``"hessian"``, G + εI (METHODS 3.1), or ``"denominator"``, gᵀGg + ε, which limits η
            by the norm of the gradient (E-adl-2).
        lr: a factor on η̂, 1 in the paper, for schedules (per group: it scales the group's part of the step).
        backend: of :func:`reprolib.curvature.expand`; the tape shares the activations of the gradient's pass.
        check_every: how often the ⟨g, d⟩ invariant is checked (the first step always is), and an undefined step reported;
            on a GPU nothing else waits for the device.

    After each step ``diagnostics`` has 0-d tensors: ``loss`` (mean of the per-sample losses), ``objective`` (with the L²
    term), ``step`` (what multiplies g, first group), ``average`` η̂, ``rate`` η of this batch, ``curvature`` gᵀGg/‖g‖²,
    ``direction_norm`` ‖g‖. ``skipped`` counts steps that changed nothing: a non-finite loss or gradient, or an η that is not
    a positive number: gᵀGg = 0 with ε = 0, overflow, a loss that is not convex in its outputs. A vanishing gradient is a
    step of length zero, and teaches nothing about η.

    Source: Algorithm 1, section 2.3; key ``balboni2023`` in references.bib.
    """

    def __init__(
        self,
        params: Iterable[Any],
        beta: float = 0.99,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        curvature: str = "ggn",
        average: str | None = None,
        regularised: str = "hessian",
        lr: float = 1.0,
        backend: str = "tape",
        check_every: int = 100,
    ):
        if curvature not in CURVATURES:
            raise UnknownName.among("curvature", curvature, CURVATURES)
        if average not in (None, *AVERAGES):
            raise UnknownName.among("average", average, AVERAGES)
        if regularised not in REGULARISED:
            raise UnknownName.among("regularised", regularised, REGULARISED)
        if backend not in BACKENDS:
            raise UnknownName.among("backend", backend, BACKENDS)
        if not 0 <= beta <= 1:
            raise InvalidInput(f"beta = {beta}: a discount lies in [0, 1]")
        refuse_negative(eps=eps, weight_decay=weight_decay, lr=lr)
        if check_every < 1:
            raise InvalidInput(f"check_every = {check_every}: give at least 1")
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "beta": beta,
            "eps": eps,
            "curvature": curvature,
            "average": average or CURVATURES[curvature],
            "regularised": regularised,
            "backend": backend,
            "check_every": check_every,
        }
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Closure | None = None, loss: Loss | None = None, *, summary=None, full=None) -> Tensor:  # type: ignore[override]
        """One step; returns the mean loss before it.

        Args:
            closure: () -> outputs (B, ...).
            loss: outputs -> per-sample losses (B,), convex in the outputs.
            summary, full: for other methods; Adler needs one batch.
        """
        shared, options = self._shared_state(), self.param_groups[0]
        check = self._checks()
        model = open_model(self, closure, loss, curvature="ggn", backend=options["backend"], engine={}, check=check)
        look = check or free_to_look(model.loss)
        params, decay = self._parameters()

        # Algorithm 1: G ← ∇h_I(θ), which we call g; with λ/2‖θ‖² in J
        g = [x.add(p, alpha=λ) if λ else x for x, p, λ in zip(model.gradient, params, decay, strict=True)]
        norm2 = inner(g, g)
        # v ← ∇F_I(θ) g, Q ← ∇²L_I(F_I(θ)); κ = vᵀQv
        κ = self._curvature(model, g, params, decay, norm2)
        # η ← gᵀg / (κ + ε gᵀg)
        η = norm2 / (κ + options["eps"] * (norm2 if options["regularised"] == "hessian" else 1))
        # s ← βs + log η; c ← βc + 1; η̂ ← exp(s/c)
        log = options["average"] == "log"
        s = options["beta"] * shared["sum"] + (η.log() if log else η)
        c = options["beta"] * shared["weight"] + 1
        average = (s / c).exp() if log else s / c

        self.diagnostics = {
            "loss": model.loss,
            "objective": model.loss + 0.5 * _decayed(params, params, decay),
            "step": options["lr"] * average,
            "average": average,
            "rate": η,
            "curvature": κ / norm2,
            "direction_norm": norm2.sqrt(),
        }
        finite = torch.isfinite(model.loss + norm2)
        moves = finite & (η > 0) & torch.isfinite(s) & torch.isfinite(average)
        # g = 0 is a stationary point of this batch: nothing to do, nothing to learn about the rate
        if not self._admit(moves | (finite & (norm2 == 0)), look, lambda: _undefined(model.loss, norm2, κ, η)):
            return model.loss
        sound = None if look and bool(moves) else moves
        shared["sum"], shared["weight"] = chosen(sound, s, shared["sum"]), chosen(sound, c, shared["weight"])
        offset = 0
        for group in self.param_groups:
            for p in group["params"]:
                length = group["lr"] * average
                p.sub_(chosen(sound, length * g[offset], 0.0))  # θ ← θ − η̂ g
                offset += 1
        return model.loss

    def _curvature(
        self, model: LocalModel, g: list[Tensor], params: list[Tensor], decay: list[float], norm2: Tensor
    ) -> Tensor:
        """gᵀCg of the chosen C, that of the L² term included."""
        kind = self.param_groups[0]["curvature"]
        if kind == "gauss-newton":
            model.close()
            return norm2 * norm2
        v = model.jvp(g)
        if kind == "ggn":
            return model.inner(v, model.loss_hvp(v)) + _decayed(g, g, decay)
        # ⟨∇J_s, g⟩ = B e_sᵀ(Ag)_s + λ⟨θ, g⟩, of this process' samples; batch-norm's samples are taken by index
        batch = len(model.losses)
        slopes = batch * (model.loss_gradient * v).flatten(1).sum(1) + _decayed(params, g, decay)
        return model.inner(slopes, slopes) / batch

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it."""
        first = self.param_groups[0]["params"][0]
        state = self.state[first]
        if "sum" not in state:
            state["sum"], state["weight"] = (torch.zeros((), dtype=first.dtype, device=first.device) for _ in range(2))
        return state


def _decayed(u: Tensors, v: Tensors, decay: list[float]) -> Tensor | float:
    """Σ λ_i ⟨u_i, v_i⟩."""
    return sum((λ * torch.sum(x * y) for x, y, λ in zip(u, v, decay, strict=True) if λ), 0.0)


def _undefined(loss: Tensor, norm2: Tensor, κ: Tensor, η: Tensor) -> str:
    """Why a step cannot be taken."""
    if bool(torch.isfinite(loss + norm2)):
        return (
            f"the curvature gᵀCg is {float(κ):.4g} for ‖g‖² {float(norm2):.4g}, so the rate {float(η):.4g} is undefined"
        )
    return f"loss {float(loss):.4g} and ‖g‖² {float(norm2):.4g} must be finite"
