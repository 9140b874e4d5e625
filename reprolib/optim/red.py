"""RED: the learning rate rescaled by the curvature along the step (de Gournay & Gossard, 2022).

Algorithms 1, 3 and 4 of the paper, with the factor of erratum E-red-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from reprolib.curvature.network import CHOICES
from reprolib.curvature.tree import inner
from reprolib.errors import InvalidInput, NotDescent, UnknownName
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

# r = FACTORS[name] · ⟨d, g⟩ / (‖d‖² L). The regimes ℓ = ½ (1-D Newton) and ℓ = 1 (break-even) need 2; eq. (10) prints 1,
# line 7 of Algorithm 1 prints ½ (E-red-1).
FACTORS = {"corrected": 2.0, "eq10": 1.0, "line7": 0.5}
PRECONDITIONERS = (None, "rmsprop")


class RED(LocalModelOptimizer):
    r"""θ ← θ − ℓ r d with r = 2⟨d, g⟩ / (‖d‖² L), L a running bound of the curvature along d.

    ``lr`` is the paper's ℓ: along d, on a quadratic, ½ is the minimum, 1 the largest step that does not raise the
    loss, more explores. It needs no tuning; :func:`red_schedule` takes it from 1 to ½.

    Args:
        params: tensors, named tensors or groups.
        lr: ℓ > 0 (per group: it scales the group's part of the step).
        preconditioner: ``None``, d = g; or ``"rmsprop"``, d = g / (√v + ε) with v the bias-corrected mean of g².
        beta1: momentum of Algorithm 4: d is built from the bias-corrected mean of g. Then d may not be a descent
            direction of this batch, and the absolute value of ⟨d, g⟩ is used, as in the paper.
        beta2: decay of v.
        beta3: decay of the curvature average.
        eps: ε of the preconditioner.
        weight_decay: λ of λ/2‖θ‖², part of J and of every J_s, its curvature λ‖d‖² included.
        clamp: (α, β, δ) of eq. (12): ℓ r is kept within [α, β] / k^δ at step k, which forces Robbins–Monro convergence.
        factor: ``"corrected"``, or the paper's ``"eq10"`` or ``"line7"``, to see what they do.
        absolute: ``"per-sample"``, mean of |dᵀH_s d|, as Algorithm 1; ``"batch"``, |mean|, for the ablation.
        every: only each ``every``-th step measures the curvature, the first one included (ours: in the paper all do). Those
            between cost one gradient and take the corrected moving average alone for L; it moves on with measurements, and
            the k of its correction counts them.
        backend: of :func:`reprolib.curvature.expand`.
        engine: further options of it, as ``{"products": "shared", "memory": "recompute", "batch_norm": "by-index"}``.
        check_every: how often the ⟨g, d⟩ invariant is checked (the first step always is), and an undefined step reported;
            on a GPU nothing else waits for the device.

    After each step ``diagnostics`` has 0-d tensors: ``loss`` (mean of the per-sample losses), ``objective`` (with the L²
    term), ``step`` (ℓr of the first group), ``rescaling`` r, ``curvature`` c (NaN in a step that does not measure it),
    ``bound`` L, ``slope`` ⟨d, g⟩, ``direction_norm``. ``skipped`` counts steps that changed nothing: a non-finite loss,
    gradient or curvature, or L = 0 (a locally linear loss, where r is undefined; λ > 0 prevents it). A vanishing gradient is
    a step of length zero. Until a first measurement has succeeded every step measures; one that is lost later, with a step
    that is skipped, is not made up for.

    Source: Algorithms 1, 3, 4, eqs. (9)–(12); key ``gournay2022`` in references.bib.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        preconditioner: str | None = None,
        beta1: float = 0.0,
        beta2: float = 0.999,
        beta3: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-7,
        clamp: tuple[float, float, float] | None = None,
        *,
        factor: str = "corrected",
        absolute: str = "per-sample",
        every: int = 1,
        backend: str = "tape",
        engine: dict[str, str] | None = None,
        check_every: int = 100,
    ):
        if preconditioner not in PRECONDITIONERS:
            raise UnknownName.among("preconditioner", preconditioner, map(str, PRECONDITIONERS))
        if factor not in FACTORS:
            raise UnknownName.among("factor", factor, FACTORS)
        if absolute not in ("per-sample", "batch"):
            raise UnknownName.among("absolute", absolute, ("per-sample", "batch"))
        for name, beta in (("beta1", beta1), ("beta2", beta2), ("beta3", beta3)):
            if not 0 <= beta < 1:
                raise InvalidInput(f"{name} = {beta}: a decay lies in [0, 1)")
        refuse_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        refuse_no_period(every=every, check_every=check_every)
        if clamp is not None and not (len(clamp) == 3 and 0 < clamp[0] <= clamp[1] and clamp[2] > 0):
            raise InvalidInput(f"clamp = {clamp}: give (α, β, δ) with 0 < α ≤ β and δ > 0, for convergence in (½, 1)")
        for name in engine or {}:
            if name not in CHOICES:
                raise UnknownName.among("engine", name, CHOICES)
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "preconditioner": preconditioner,
            "beta1": beta1,
            "beta2": beta2,
            "beta3": beta3,
            "eps": eps,
            "clamp": clamp,
            "factor": factor,
            "absolute": absolute,
            "every": every,
            "backend": backend,
            "engine": engine or {},
            "check_every": check_every,
        }
        super().__init__(params, options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("engine", {})
            group.setdefault("every", 1)

    @torch.no_grad()
    def step(self, closure: Closure | None = None, loss: Loss | None = None, *, summary=None, full=None) -> Tensor:  # type: ignore[override]
        """One step; returns the mean loss before it.

        Args:
            closure: () -> outputs (B, ...), or the per-sample losses themselves if ``loss`` is not given.
            loss: outputs -> per-sample losses (B,).
            summary, full: for other methods; RED needs one batch.
        """
        shared, options = self._shared_state(), self.param_groups[0]
        beta1, beta3 = options["beta1"], options["beta3"]
        k = shared["step"] + 1  # on the device: only it knows which steps were sound
        wait = shared.get("wait")  # steps until the next measurement; no number: none has succeeded yet
        measures, check = not wait, self._checks()
        if measures:
            engine = options["engine"]
            model = open_model(
                self, closure, loss, curvature="hessian", backend=options["backend"], engine=engine, check=check
            )
        else:
            model = open_gradient(self, closure, loss, check=check)
        look = check or wait is None or free_to_look(k)
        params, decay = self._parameters()

        # Algorithm 3, line 4: g = mean of ∇J_s, where J_s = L_s + λ/2 ‖θ‖²
        g = [x.add(p, alpha=λ) for x, p, λ in zip(model.gradient, params, decay, strict=True)]
        # lines 5–10 (Algorithm 4 with β1 > 0): d = P⁻¹ m
        d, moments = self._direction(g, k)
        norm2, slope = inner(d, d), inner(d, g)
        c, average, n = torch.full_like(norm2, math.nan), shared["curvature"], shared["measurements"].double()
        if measures:
            # Algorithm 1, line 4: c = mean of |dᵀ∇²J_s d| / ‖d‖²
            shift = sum(λ * torch.sum(x * x) for x, λ in zip(d, decay, strict=True))
            per_sample = model.curvature(d) + shift
            c = (per_sample.abs().mean() if options["absolute"] == "per-sample" else per_sample.mean().abs()) / norm2
            # line 5: moving average and its bias correction
            average, n = beta3 * average + (1 - beta3) * c, n + 1
        bound = average / (1 - beta3**n)
        # line 6: the larger of the average and the present value, if there is one
        bound = torch.maximum(bound, c) if measures else bound
        # line 7
        r = rescaling(slope, norm2, bound, options["factor"], descent=beta1 == 0 and look)

        lengths = [self._clamped(group["lr"] * r, k) for group in self.param_groups]
        half_l2 = sum(0.5 * λ * torch.sum(p * p) for p, λ in zip(params, decay, strict=True))
        self.diagnostics = {
            "loss": model.loss,
            "objective": model.loss + half_l2,
            "step": lengths[0],
            "rescaling": r,
            "curvature": c,
            "bound": bound,
            "slope": slope,
            "direction_norm": norm2.sqrt(),
        }
        finite = torch.isfinite(model.loss + norm2 + slope)
        moves = finite & torch.isfinite(torch.stack(lengths)).all()
        # counted in steps that are skipped too: which ones measure is known without looking
        if wait is not None or bool(moves):
            shared["wait"] = (wait or options["every"]) - 1
        # ‖d‖ = 0 is a stationary point of this batch: nothing to do, nothing to learn about the curvature
        if not self._admit(moves | (finite & (norm2 == 0)), look, lambda: _undefined(model.loss, norm2, slope, bound)):
            return model.loss
        sound = None if look and bool(moves) else moves
        for p, moment in zip(params, moments, strict=True):
            state = self.state[p]
            state |= {name: chosen(sound, new, state.get(name, torch.zeros_like(p))) for name, new in moment.items()}
        for name, new in (("step", k), ("curvature", average), ("measurements", n)):
            shared[name] = chosen(sound, new, shared[name])
        offset = 0
        for group, length in zip(self.param_groups, lengths, strict=True):
            for p in group["params"]:
                p.sub_(chosen(sound, length * d[offset], 0.0))  # line 12: θ ← θ − ℓ r d
                offset += 1
        return model.loss

    def _direction(self, g: list[Tensor], k: Tensor) -> tuple[tuple[Tensor, ...], list[dict[str, Tensor]]]:
        """d, and the new moments: kept apart until the step is known to be sound."""
        direction, moments = [], []
        options = self.param_groups[0]
        beta1, beta2 = options["beta1"], options["beta2"]
        params = [p for group in self.param_groups for p in group["params"]]
        for p, x in zip(params, g, strict=True):
            state, new, d = self.state[p], {}, x
            if beta1:
                new["mean"] = torch.lerp(x, state.get("mean", torch.zeros_like(x)), beta1)
                d = new["mean"] / (1 - beta1**k)
            if options["preconditioner"] == "rmsprop":
                new["square"] = torch.lerp(x * x, state.get("square", torch.zeros_like(x)), beta2)
                d = d / ((new["square"] / (1 - beta2**k)).sqrt() + options["eps"])
            direction.append(d)
            moments.append(new)
        return tuple(direction), moments

    def _clamped(self, length: Tensor, k: Tensor) -> Tensor:
        """Eq. (12): α ≤ ℓ r k^δ ≤ β."""
        clamp = self.param_groups[0]["clamp"]
        if clamp is None:
            return length
        low, high, power = clamp
        return length.clamp(low / k**power, high / k**power)

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it."""
        first = self.param_groups[0]["params"][0]
        state = self.state[first]
        if "curvature" not in state:
            state["curvature"] = torch.zeros((), dtype=first.dtype, device=first.device)
            # float64: 1 − β^k loses half of float32's digits while k is small
            state["step"] = torch.zeros((), dtype=torch.float64, device=first.device)
        state["step"] = state["step"].to(first.device)  # load_state_dict leaves it where it was
        if "measurements" not in state:  # new, or from when every step measured
            state["measurements"] = state["step"].clone()
        return state


def rescaling(
    slope: Tensor, norm2: Tensor, bound: Tensor, factor: str = "corrected", *, descent: bool = True
) -> Tensor:
    """Algorithm 1, line 7, corrected: r = 2⟨d, g⟩ / (‖d‖² L).

    Args:
        slope: ⟨d, g⟩ of the direction and the gradient.
        norm2: ‖d‖².
        bound: L ≥ 0; 0 gives an infinite r (the loss is linear along d).
        factor: a key of ``FACTORS``.
        descent: insist on ⟨d, g⟩ ≥ 0; else its absolute value is taken (Algorithm 4).

    Raises:
        NotDescent: ⟨d, g⟩ < 0 and ``descent``.

    >>> rescaling(torch.tensor(4.0), torch.tensor(2.0), torch.tensor(2.0))
    tensor(2.)
    """
    if descent and bool(slope < 0):
        raise NotDescent(f"⟨d, g⟩ = {float(slope):.6g} < 0: −d does not descend; flip it, or use the momentum variant")
    return FACTORS[factor] * slope.abs() / (norm2 * bound)


def _undefined(loss: Tensor, norm2: Tensor, slope: Tensor, bound: Tensor) -> str:
    """Why a step cannot be taken."""
    if bool(torch.isfinite(loss + norm2 + slope)):
        return f"the curvature bound is {float(bound):.4g}, so the step length is undefined"
    return f"loss {float(loss):.4g}, ‖d‖² {float(norm2):.4g}, ⟨d, g⟩ {float(slope):.4g} must be finite"


def red_schedule(optimizer: torch.optim.Optimizer, epochs: int, factor: float = 0.5) -> LambdaLR:
    """Algorithm 3, line 13: ℓ ← η^(1/N) ℓ after each of N ``epochs``, so ℓ has fallen by ``factor`` = η at the end."""
    if epochs < 1:
        raise InvalidInput(f"epochs = {epochs}: give at least 1")
    return LambdaLR(optimizer, lambda epoch: factor ** (epoch / epochs))


def ran_schedule(
    optimizer: torch.optim.Optimizer, phases: Sequence[tuple[int, float]] = ((5, 1.0), (13, 0.5), (2, 2.0))
) -> LambdaLR:
    """RAn, the annealing of section 4.2: ℓ runs through ``phases`` of (epochs, multiple of the initial ℓ), periodically."""
    if not phases or any(epochs < 1 for epochs, _ in phases):
        raise InvalidInput(f"phases {phases}: give (epochs, multiplier) pairs with at least one epoch each")
    values = [value for epochs, value in phases for _ in range(epochs)]
    return LambdaLR(optimizer, lambda epoch: values[epoch % len(values)])
