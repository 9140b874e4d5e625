"""CurveBall: momentum SGD with a curvature term (Small steps and giant leaps: minimal Newton solvers for deep learning).

Algorithm 1 of the paper on the generalised Gauss–Newton matrix, and what Theorem A.1 says about fixed coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprolib.curvature import LocalModel
from reprolib.curvature.backends import BACKENDS
from reprolib.curvature.tree import Tensors
from reprolib.errors import UnknownName
from reprolib.optim.step import (
    Closure,
    LocalModelOptimizer,
    Loss,
    chosen,
    free_to_look,
    open_gradient,
    open_model,
    refuse_negative,
    refuse_no_period,
)

# what λ is multiplied by after a test with γ > 3/2, and divided by after one with γ < ½: once 0.999 in the text, to the
# power of the period of 5 steps in both official codes (E-cb-4)
FACTORS = {"official": 0.999**5, "text": 0.999}


class CurveBall(LocalModelOptimizer):
    r"""z ← ρ z − β Δ, θ ← θ + z, with Δ = (G + λI) z + g: one gradient step on gᵀz + ½ zᵀ(G + λI)z, kept from step to step.

    G = AᵀΛA is the generalised Gauss–Newton matrix of the batch. A step costs one tangent and one backward pass for Δ
    (eq. 17), one more tangent for β and ρ, and every fifth step one more forward pass for λ. It needs no tuning.

    Args:
        params: tensors, named tensors or groups.
        lr: β > 0, fixed (per group, if wanted). ``None``: it minimises the quadratic model at every step, eq. (18); then the
            groups' ``lr`` is a factor on the step, θ ← θ + lr·z, 1 in the paper, for schedules.
        momentum: ρ, fixed; 1 is the variant without it. ``None``: it minimises the model, with β or, if that is fixed, alone.
        damping: λ0 ≥ 0; in the paper 10, with batch-norm 1.
        auto_damping: adapt λ = λ0 fⁿ: every ``test_every`` steps, γ = (J(θ + z) − J(θ)) / predicted change is found with the
            same batch and dropout mask; γ > 3/2 raises n, γ < ½ lowers it.
        weight_decay: λ₂ of λ₂/2‖θ‖², part of J: of g, of the curvature, and of γ.
        factor: f: ``"official"``, 0.999⁵, or the paper's ``"text"``, 0.999.
        test_every: curvature steps from one γ to the next.
        every: only each ``every``-th step pays for curvature. Those between are momentum SGD, z ← ρ z − β g, with its
            coefficients, ρ no larger than 1, neither negative.
        backend: of :func:`reprolib.curvature.expand`.
        check_every: how often the ⟨g, d⟩ invariant is checked (the first step always is), and an undefined step reported;
            on a GPU nothing else waits for the device.

    After each step ``diagnostics`` has 0-d tensors: ``loss`` (mean of the per-sample losses), ``objective`` (with the L²
    term), ``step`` β (of the first group), ``momentum`` ρ, ``damping`` λ of this step, ``slope`` gᵀz, ``predicted`` the
    model's change of J (without J(θ), E-cb-3), ``ratio`` γ, ``direction_norm`` ‖z‖; NaN is what a step had no need to
    know. ``skipped`` counts steps that changed nothing: a non-finite loss, Δ or solution, as where the model has no minimum
    (λ = 0 and no curvature, or a loss that is not convex in its outputs), or a non-finite loss found by the test.

    Source: Algorithm 1, eqs. (10)–(18), (25), section 3; key ``henriques2019`` in references.bib.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        momentum: float | None = None,
        damping: float = 10.0,
        auto_damping: bool = True,
        *,
        weight_decay: float = 0.0,
        factor: str = "official",
        test_every: int = 5,
        every: int = 1,
        backend: str = "tape",
        check_every: int = 100,
    ):
        if factor not in FACTORS:
            raise UnknownName.among("factor", factor, FACTORS)
        if backend not in BACKENDS:
            raise UnknownName.among("backend", backend, BACKENDS)
        refuse_negative(lr=lr, momentum=momentum, damping=damping, weight_decay=weight_decay)
        refuse_no_period(test_every=test_every, every=every, check_every=check_every)
        options = {
            "lr": 1.0 if lr is None else lr,
            "auto_lr": lr is None,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "damping": damping,
            "auto_damping": auto_damping,
            "factor": factor,
            "test_every": test_every,
            "every": every,
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
            summary, full: for other methods; CurveBall needs one batch.
        """
        shared, options = self._shared_state(), self.param_groups[0]
        count, every = shared["calls"], options["every"]
        curved = count % every == 0
        test = curved and options["auto_damping"] and (count // every + 1) % options["test_every"] == 0
        check = self._checks()
        if curved:
            engine = {"retain": True}
            model = open_model(
                self, closure, loss, curvature="ggn", backend=options["backend"], engine=engine, check=check
            )
        else:
            model = open_gradient(self, closure, loss, check=check)
        look = check or free_to_look(model.loss)
        params, decay = self._parameters()
        λ = options["damping"] * FACTORS[options["factor"]] ** shared["exponent"].double()

        known = [self.state[p].get("z") for p in params]
        if curved:
            Δ, model2 = self._delta(model, known, params, decay, λ, needed=test or check)
        else:  # momentum SGD: the gradient in the place of Δ
            g = [_plus(x, p, λ2) for x, p, λ2 in zip(model.gradient, params, decay, strict=True)]
            Δ, model2 = self._scaled(g), None
        β, ρ = self._coefficients(model2, λ)
        z = _zeros(known, params)
        z_new = [x.mul_(-β).addcmul_(v, ρ.to(v)) for x, v in zip(Δ, z, strict=True)]  # line 4: z ← ρz − βΔ
        norm = torch.stack(torch._foreach_norm(z_new)).norm()

        nan = torch.full_like(λ, torch.nan)
        slope, predicted = (nan, nan) if model2 is None else (model2.slope(β, ρ), model2.change(β, ρ))
        sound = torch.isfinite(model.loss + norm + β + ρ + (0 if model2 is None else sum(model2)))
        exponent, ratio = shared["exponent"], nan
        if test:  # γ, of the whole change of J
            after = model.loss_at(z_new)
            l2 = _weighted(params, z_new, decay) + 0.5 * _weighted(z_new, z_new, decay)
            ratio = (after.double() - model.loss + l2) / predicted
            exponent = exponent + (ratio > 1.5).to(exponent) - (ratio < 0.5).to(exponent)
            sound = sound & torch.isfinite(after)
        model.close()

        self.diagnostics = {
            "loss": model.loss,
            "objective": model.loss + 0.5 * _weighted(params, params, decay),
            "step": β if options["auto_lr"] else β * options["lr"],
            "momentum": ρ,
            "damping": λ,
            "slope": slope,
            "predicted": predicted,
            "ratio": ratio,
            "direction_norm": norm,
        }
        shared["calls"] = count + 1  # also of a step that is skipped: which steps test is known without looking
        if not self._admit(sound, look, lambda: _undefined(model.loss, norm, β, ρ)):
            return model.loss
        mask = None if look else sound
        for name, value in (("exponent", exponent), ("lr", β), ("momentum", ρ)):
            shared[name] = chosen(mask, value.to(shared[name]), shared[name])
        offset = 0
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["z"] = new = chosen(mask, z_new[offset], z[offset])
                scaled = new if group["lr"] == 1 or not options["auto_lr"] else group["lr"] * new
                p.add_(chosen(mask, scaled, 0.0))  # line 5: θ ← θ + z
                offset += 1
        return model.loss

    def _delta(
        self,
        model: LocalModel,
        known: Sequence[Tensor | None],
        params: list[Tensor],
        decay: list[float],
        λ: Tensor,
        needed: bool,
    ) -> tuple[list[Tensor], Quadratic | None]:
        """Δ (times β if that is fixed), and the model on span{Δ, z}, unless nobody needs it."""
        e = model.loss_gradient
        # eq. (17): Δ = Aᵀ(Λ A z + e) + λz, by one tangent and one backward pass
        fresh = all(v is None for v in known)  # line 1: z = 0
        z = _zeros(known, params)
        a = torch.zeros_like(e) if fresh else model.jvp(z)
        Λa = a if fresh else model.loss_hvp(a)
        damping = [λ + λ2 for λ2 in decay]  # C = G + λI, with the curvature λ₂ of the L² term
        Δ = [
            torch.addcmul(x, v, μ.to(v)).add_(p, alpha=λ2)
            for x, v, p, μ, λ2 in zip(model.vjp(Λa + e), z, params, damping, decay, strict=True)
        ]
        Δ = self._scaled(Δ)
        options = self.param_groups[0]
        if not (needed or options["auto_lr"] or options["momentum"] is None):
            return Δ, None
        # eq. (18): all inner products in C, by one more tangent
        b = model.jvp(Δ)
        products = (
            model.inner(b, model.loss_hvp(b)) + _weighted(Δ, Δ, damping),
            model.inner(b, Λa) + _weighted(Δ, z, damping),
            model.inner(a, Λa) + _weighted(z, z, damping),
            model.inner(e, b) + _weighted(params, Δ, decay),
            model.inner(e, a) + _weighted(params, z, decay),
        )
        return Δ, Quadratic(*(x.double() for x in products))

    def _scaled(self, Δ: list[Tensor]) -> list[Tensor]:
        """Δ, times each group's β where that is fixed, so that 1 is what multiplies it."""
        if self.param_groups[0]["auto_lr"]:
            return Δ
        rates = [group["lr"] for group in self.param_groups for _ in group["params"]]
        return [x.mul_(rate) for x, rate in zip(Δ, rates, strict=True)]

    def _coefficients(self, model2: Quadratic | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """β and ρ, 0-d float64: what is fixed, and otherwise what minimises the model."""
        options, shared = self.param_groups[0], self._shared_state()
        β = None if options["auto_lr"] else torch.ones_like(like)
        ρ = None if options["momentum"] is None else torch.full_like(like, options["momentum"])
        if model2 is not None:
            return coefficients(*model2, β, ρ, eps=torch.finfo(shared["lr"].dtype).eps)
        # of the last curvature step
        return (
            shared["lr"].to(like).clamp(min=0) if β is None else β,
            shared["momentum"].to(like).clamp(0, 1) if ρ is None else ρ,
        )

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it.

        λ is kept as its exponent, a whole number, because ``load_state_dict`` gives all tensors the dtype of the parameter.
        """
        first = self.param_groups[0]["params"][0]
        state = self.state[first]
        if "calls" not in state:
            state["calls"] = 0  # decides when to test, so it is part of the trajectory
            for name in ("exponent", "lr", "momentum"):
                state[name] = torch.zeros((), dtype=first.dtype, device=first.device)
        return state


class Quadratic(NamedTuple):
    """The model of the change of J on span{Δ, z}: gᵀv + ½ vᵀCv at v = ρz − βΔ, by 0-d numbers."""

    m11: Tensor  # ΔᵀCΔ
    m12: Tensor  # zᵀCΔ
    m22: Tensor  # zᵀCz
    c1: Tensor  # gᵀΔ
    c2: Tensor  # gᵀz

    def slope(self, β: Tensor, ρ: Tensor) -> Tensor:
        """The first term, gᵀv."""
        return ρ * self.c2 - β * self.c1

    def change(self, β: Tensor, ρ: Tensor) -> Tensor:
        """Both terms; −½ cᵀM⁺c at the minimum."""
        return self.slope(β, ρ) + 0.5 * (β * β * self.m11 - 2 * β * ρ * self.m12 + ρ * ρ * self.m22)


def coefficients(
    m11: Tensor,
    m12: Tensor,
    m22: Tensor,
    c1: Tensor,
    c2: Tensor,
    lr: Tensor | float | None = None,
    momentum: Tensor | float | None = None,
    *,
    eps: float = 2e-16,
) -> tuple[Tensor, Tensor]:
    """Eqs. (18), (25): the β, ρ for which −βΔ + ρz minimises c₁(−β) + c₂ρ + ½ (−β, ρ) M (−β, ρ)ᵀ; 0-d tensors.

    (β, −ρ) = M⁺(c₁, c₂) with M scaled to a unit diagonal first, since Δ and z have different units: where they are
    collinear to about ``eps`` (or one is 0), the solution of least norm in those units is taken. What is given in ``lr`` or
    ``momentum`` stays, and the other one minimises. Nothing here reads a number.

    Args:
        m11, m12, m22: ΔᵀCΔ, zᵀCΔ, zᵀCz.
        c1, c2: gᵀΔ, gᵀz.
        eps: relative rounding error of these numbers.

    Returns:
        β and ρ; not finite where there is no minimum (no curvature but a slope, or negative curvature).

    >>> one, zero = torch.tensor(1.0), torch.tensor(0.0)
    >>> coefficients(4 * one, zero, zero, one, zero)  # z = 0
    (tensor(0.2500), tensor(0.))
    """
    if lr is not None and momentum is not None:
        return lr + 0 * c1, momentum + 0 * c1
    if lr is not None:
        return lr + 0 * c1, _quotient(lr * m12 - c2, m22)
    if momentum is not None:
        return _quotient(c1 + momentum * m12, m11), momentum + 0 * c1
    s1, s2 = m11.sqrt(), m22.sqrt()
    r = _quotient(_quotient(m12, s1), s2)
    u, v = _quotient(c1, s1), _quotient(c2, s2)
    # [1 r; r 1] has the eigenvectors (1, ±1)/√2 with 1 ± r; what belongs to an eigenvalue of 0 is left out
    plus, minus = (0.5 * x * _inverse(1 + w, 100 * eps) for x, w in ((u + v, r), (u - v, -r)))
    return _quotient(plus + minus, s1), _quotient(minus - plus, s2)


def _zeros(known: Sequence[Tensor | None], params: Tensors) -> list[Tensor]:
    """The tensors that are known, zero for the others."""
    return [torch.zeros_like(p) if v is None else v for v, p in zip(known, params, strict=True)]


def _plus(x: Tensor, p: Tensor, weight: float) -> Tensor:
    """A new tensor x + weight · p."""
    return x.add(p, alpha=weight) if weight else x.clone()


def _quotient(a: Tensor, m: Tensor) -> Tensor:
    """The quotient a / m, and 0 / 0 = 0."""
    return torch.where((a == 0) & (m == 0), a, a / m)


def _inverse(eigenvalue: Tensor, small: float) -> Tensor:
    """1 / eigenvalue; 0 if that is zero to rounding, NaN if it is negative."""
    inverse = torch.where(eigenvalue.abs() > small, 1 / eigenvalue, torch.zeros_like(eigenvalue))
    return torch.where(eigenvalue < -small, torch.full_like(eigenvalue, torch.nan), inverse)


def _weighted(u: Tensors, v: Tensors, weights: list[Any]) -> Tensor:
    """Σ w_i ⟨u_i, v_i⟩; a weight that is the number 0 costs nothing."""
    terms = [w * torch.sum(x * y) for x, y, w in zip(u, v, weights, strict=True) if isinstance(w, Tensor) or w]
    return torch.stack(terms).sum() if terms else u[0].new_zeros(())


def _undefined(loss: Tensor, norm: Tensor, β: Tensor, ρ: Tensor) -> str:
    """Why a step cannot be taken."""
    return (
        f"loss {float(loss):.4g}, β {float(β):.4g}, ρ {float(ρ):.4g}, ‖z‖ {float(norm):.4g}, what they follow from and the "
        "loss behind the step must be finite"
    )


# ---- fixed β and ρ on a quadratic, Theorem A.1: every eigenvalue h of H moves by itself


def transition(rho: Tensor, beta_h: Tensor) -> Tensor:
    """Eq. (36): the matrix that takes (z, θ − θ*) to the next step, (..., 2, 2), for ρ and βh of the same shape."""
    a = rho - beta_h
    return torch.stack([torch.stack([a, -beta_h], -1), torch.stack([a, 1 - beta_h], -1)], -2)


def eigenvalues(rho: Tensor, beta_h: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (38): ½ (ρ − 2βh + 1 ± √((ρ − 2βh)² − 2ρ + 1)), complex."""
    half_trace = rho - 2 * beta_h + 1
    root = torch.complex((rho - 2 * beta_h).square() - 2 * rho + 1, torch.zeros_like(rho)).sqrt()
    return (half_trace + root) / 2, (half_trace - root) / 2


def convergence_rate(rho: Tensor, beta_h: Tensor) -> Tensor:
    """The factor by which the error shrinks per step in the end, max |eq. (38)|; Figure 4."""
    one, other = eigenvalues(rho, beta_h)
    return torch.maximum(one.abs(), other.abs())


def converges(rho: Tensor, beta_h: Tensor) -> Tensor:
    """Eq. (39): 3βh/2 − 1 < ρ < 1 + βh, with βh > 0 (E-cb-5)."""
    return (beta_h > 0) & (1.5 * beta_h - 1 < rho) & (rho < 1 + beta_h)
