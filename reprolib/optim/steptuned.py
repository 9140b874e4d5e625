"""Step-Tuned SGD: step sizes from two gradients of the same batch (Castera, Bolte, Févotte & Pauwels, 2022).

What RED's Figure 9 compares with: Barzilai and Borwein's quotient in the place of a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from reprolib.curvature import LocalModel
from reprolib.curvature.network import Pair, pairs_of
from reprolib.curvature.replay import Repeat, Substitute, spare_statistics
from reprolib.curvature.tree import inner
from reprolib.errors import InvalidInput
from reprolib.optim.step import (
    Closure,
    LocalModelOptimizer,
    Loss,
    chosen,
    free_to_look,
    open_gradient,
    refuse_negative,
    refuse_no_period,
)


class StepTunedSGD(LocalModelOptimizer):
    r"""θ½ = θ − η g(θ), θ ← θ½ − η g(θ½), with η = α γ_k / k^(½+δ) and both gradients of the batch of step k = 1, 2, …

    γ_1 = 1. Then, with Δθ = θ½ − θ, Δg = g(θ½) − g(θ) and G ← β G + (1 − β) Δg,

        Ĝ = G / (1 − β^k)        γ_{k+1} = ‖Δθ‖² / ⟨Ĝ, Δθ⟩ if ⟨Ĝ, Δθ⟩ > 0, else ν; kept within [m, M].

    With β = 0 the quotient is Barzilai and Borwein's: 1/γ is the mean curvature of this batch along Δθ. A step costs two
    gradients; γ corrects α, it does not replace it, so α has to be tuned.

    Args:
        params: tensors, named tensors or groups.
        lr: α > 0 (per group: it scales the group's part of the step).
        nu: ν, the factor on α where the loss bends downwards.
        beta: β in [0, 1), decay of the average of Δg.
        bounds: (m, M) with 0 < m ≤ M.
        delta: δ in (0, ½).
        weight_decay: λ of λ/2‖θ‖², part of J and so of both gradients.
        check_every: how often an undefined step is reported on a GPU, where nothing else waits for the device.

    After each step ``diagnostics`` has 0-d tensors: ``loss`` (mean of the per-sample losses at θ), ``objective`` (with the
    L² term), ``step`` η (of the first group), ``gamma`` γ of this step, ``curvature`` ⟨Ĝ, Δθ⟩ / ‖Δθ‖² (NaN where nothing
    moves), ``direction_norm`` ‖g(θ)‖. ``skipped`` counts steps that changed nothing: a loss or gradient at θ or θ½ that is
    not finite.

    Read from published descriptions of the algorithm that agree with each other, not from the paper's own text. Ours is what
    they leave open: the L² term; k counts steps that were not skipped; the second pass draws the dropout masks of the first
    and leaves batch-norm's statistics as the first left them, so that Δg comes from Δθ alone.

    Source: key ``castera2022`` in references.bib; defaults (ν, β, m, M, δ) = (2, 0.9, 0.5, 2, 0.001) as there.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        nu: float = 2.0,
        beta: float = 0.9,
        bounds: tuple[float, float] = (0.5, 2.0),
        delta: float = 0.001,
        weight_decay: float = 0.0,
        *,
        check_every: int = 100,
    ):
        refuse_negative(lr=lr, nu=nu, weight_decay=weight_decay)
        refuse_no_period(check_every=check_every)
        if not 0 <= beta < 1:
            raise InvalidInput(f"beta = {beta}: a decay lies in [0, 1)")
        if not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1]):
            raise InvalidInput(f"bounds = {bounds}: give (m, M) with 0 < m ≤ M")
        if not 0 < delta < 0.5:
            raise InvalidInput(f"delta = {delta}: δ lies in (0, ½), for convergence")
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "nu": nu,
            "beta": beta,
            "bounds": bounds,
            "delta": delta,
            "check_every": check_every,
        }
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Closure | None = None, loss: Loss | None = None, *, summary=None, full=None) -> Tensor:  # type: ignore[override]
        """One step; returns the mean loss before it.

        Args:
            closure: () -> outputs (B, ...), or the per-sample losses themselves if ``loss`` is not given. It is called twice.
            loss: outputs -> per-sample losses (B,).
            summary, full: for other methods; Step-Tuned SGD needs one batch.
        """
        shared, options = self._shared_state(), self.param_groups[0]
        β, k, γ = options["beta"], shared["step"] + 1, shared["gamma"]
        params, decay = self._parameters()
        check = self._checks()
        repeat = Repeat(params)
        model = open_gradient(self, closure, loss, check=check)
        look = check or free_to_look(k)
        rates = [group["lr"] for group in self.param_groups for _ in group["params"]]
        lengths = [rate * γ / k ** (0.5 + options["delta"]) for rate in rates]
        g = [x.add(p, alpha=λ) for x, p, λ in zip(model.gradient, params, decay, strict=True)]
        objective = model.loss + sum(0.5 * λ * torch.sum(p * p) for p, λ in zip(params, decay, strict=True))

        start = [p.clone() for p in params]
        Δθ = [-η * x for η, x in zip(lengths, g, strict=True)]
        try:
            for p, x in zip(params, Δθ, strict=True):
                p.add_(x)  # θ½ = θ − η g(θ)
            halfway = self._again(repeat, closure, loss)
            half = [x.add(p, alpha=λ) for x, p, λ in zip(halfway.gradient, params, decay, strict=True)]
        except BaseException:
            _restore(params, start)
            raise
        G = [
            torch.lerp(h - x, self.state[p].get("variation", torch.zeros_like(p)), β)
            for h, x, p in zip(half, g, params, strict=True)
        ]
        bend, moved = inner(G, Δθ) / (1 - β**k), inner(Δθ, Δθ)
        new = torch.where(bend > 0, moved / bend, options["nu"]).clamp(*options["bounds"])

        norm2 = inner(g, g)
        self.diagnostics = {
            "loss": model.loss,
            "objective": objective,
            "step": lengths[0],
            "gamma": γ,
            "curvature": bend / moved,
            "direction_norm": norm2.sqrt(),
        }
        sound = torch.isfinite(model.loss + halfway.loss + norm2 + inner(half, half) + bend)
        if not self._admit(sound, look, lambda: _undefined(model.loss, halfway.loss, norm2, bend)):
            _restore(params, start)
            return model.loss
        mask = None if look else sound
        shared["step"], shared["gamma"] = chosen(mask, k, k - 1), chosen(mask, new.to(γ), γ)
        for p, s, η, h, x in zip(params, start, lengths, half, G, strict=True):
            state = self.state[p]
            state["variation"] = chosen(mask, x, state.get("variation", torch.zeros_like(p)))
            p.copy_(chosen(mask, p - η * h, s))  # θ ← θ½ − η g(θ½)
        return model.loss

    def _again(self, repeat: Repeat, closure: Closure | None, loss: Loss | None) -> LocalModel:
        """The same batch at the present parameters: random numbers of the first pass, and nothing but these is written."""
        mode = Substitute(repeat.params, repeat.params, spare_statistics)

        def inside(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def run(*args: Tensor) -> Tensor:
                with mode:
                    return f(*args)

            return run

        assert closure is not None  # the first pass would have refused it
        pairs: list[Pair] = [
            (inside(outputs), None if of is None else inside(of)) for outputs, of in pairs_of(closure, loss, "hessian")
        ]
        with repeat.same_random_numbers():
            return open_gradient(self, pairs, None, check=False)

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it."""
        first = self.param_groups[0]["params"][0]
        state = self.state[first]
        if "gamma" not in state:
            state["gamma"] = torch.ones((), dtype=first.dtype, device=first.device)
            state["step"] = torch.zeros((), dtype=torch.float64, device=first.device)  # as in RED
        state["step"] = state["step"].to(first.device)  # load_state_dict leaves it where it was
        return state


def _restore(params: list[Tensor], values: list[Tensor]) -> None:
    for p, v in zip(params, values, strict=True):
        p.copy_(v)


def _undefined(loss: Tensor, half: Tensor, norm2: Tensor, bend: Tensor) -> str:
    """Why a step cannot be taken."""
    return (
        f"losses {float(loss):.4g} and, halfway, {float(half):.4g}, ‖g‖² {float(norm2):.4g}, its value halfway and ⟨Ĝ, Δθ⟩ "
        f"{float(bend):.4g} must be finite"
    )
