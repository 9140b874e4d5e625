"""NewtonSummary: one step size per group of tensors, by Newton's method on them (Wolinski, 2023).

Algorithm 1 of Appendix F, with the corrections of errata E-sum-6 to 8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reprolib.curvature import LocalModel, Summary, expand
from reprolib.curvature.calls import map_tensors
from reprolib.curvature.network import CHOICES, Pair, pairs_of
from reprolib.curvature.parts import Ranks, world_size
from reprolib.curvature.replay import Substitute, spare_statistics
from reprolib.curvature.tree import Tensors, inner
from reprolib.errors import InvalidInput, SkippedStep, UnknownName
from reprolib.optim.cubic import Minimiser, minimise_cubic
from reprolib.optim.groups import Groups, Partition, partition
from reprolib.optim.step import Closure, LocalModelOptimizer, Loss, open_model

AVERAGES = ("exponential", "uniform")
POSITIVE = ("after", "before", None)
METRICS = ("third", "identity")


class NewtonSummary(LocalModelOptimizer):
    r"""θ_i ← θ_i − λ₁ max(η̄_k, 0) u_i, k the group of θ_i; η̄ averages the η that minimise the summary's cubic model.

    u averages gradients. Every ``period`` steps, on a batch of its own, with ψ(η) = J(θ_i − η_{k(i)} u_i),

        m(η) = −ḡᵀη + ½ ηᵀH̄η + (λ_int/6) ‖Dη‖³,    ḡ = −∇ψ(0),  H̄ = ∇²ψ(0),  D = diag |∂³ψ/∂η_k³|^(1/3)

    is minimised (:func:`~reprolib.optim.cubic.minimise_cubic`).

    Args:
        params: tensors, named tensors or groups.
        groups: which tensors share a step size (:func:`~reprolib.optim.groups.partition`): ``"tensor"``, ``"all"``,
            ``"role"``, ``("chunks", n)``, ``"scalar"`` or lists of names.
        damping: λ₁. It is the ``lr`` of the parameter groups, which schedulers reduce (:func:`plateau_schedule`).
        cubic: λ_int; 0 is the step (1), without third derivatives.
        period: p, steps from one summary to the next.
        momentum: μ_g of u ← μ_g u + (1 − dampening) g, from u = g on.
        eta_momentum: μ_η of η̄ ← μ_η η̄ + (1 − μ_η) η, from η̄ = η on (``average="exponential"``).
        weight_decay: λ of λ/2‖θ‖², part of J, so of g, ḡ and H̄ (it breaks the invariance, E-sum-3).
        dampening: ``None``, μ_g, as in the paper's runs; 0 is the heavy ball of the later ones.
        average: ``"exponential"``, of η; or ``"uniform"``, of H̄, ḡ and the third derivatives, from which η̄ is found.
        window: (period, warm-up) of the uniform average, in summaries: after ``warm-up`` and then every ``period`` of
            them a new stretch begins, and the mean is over the last whole stretch and the present one (E-sum-7, fixed).
        positive: the positive part of η̄ is taken ``"after"`` averaging, of η ``"before"``, or not at all (``None``).
        metric: ``"identity"`` puts 1 for D, the isotropic cubic; it breaks the invariance.
        ridge: added to the diagonal of H̄; breaks the invariance too.
        backend, engine, check_every: as of :class:`~reprolib.optim.RED`.

    A group of which all derivatives are rounding errors (a bias before batch-norm) stands still.

    *No minimiser* (indefinite H̄ where the cubic term does not act): the exponential average takes η = 0, the uniform
    version keeps η̄. ``unsolved`` counts such summaries, a :class:`~reprolib.errors.SkippedStep` warning has the reason.
    A non-finite loss, gradient or summary changes nothing and is counted in ``skipped``.

    After each step ``diagnostics`` has 0-d tensors: ``loss``, ``objective`` (with the L² term), ``step`` (‖Δθ‖/‖u‖),
    ``slope`` ⟨u, g⟩, ``direction_norm`` ‖u‖, ``eta_min`` and ``eta_max`` of η̄, ``negative`` (how many are clipped;
    these three are NaN after a skipped step), and of the last summary ``radius`` ‖Dη‖, ``model`` m(η) and ``solved``.
    ``eta`` is η̄ (S,), ``summary`` the last (ḡ, H̄, third derivatives along u, NaN if not needed), averaged if they are;
    ``partition.labels`` names the groups.

    Source: Algorithm 1 (Appendix F), Method 4.1, eqs. (1), (2); key ``wolinski2023`` in references.bib.
    """

    def __init__(
        self,
        params: Iterable[Any],
        groups: Groups = "tensor",
        damping: float = 0.1,
        cubic: float = 1.0,
        period: int = 10,
        momentum: float = 0.9,
        eta_momentum: float = 0.5,
        weight_decay: float = 0.0,
        *,
        dampening: float | None = None,
        average: str = "exponential",
        window: tuple[int, int] = (3, 3),
        positive: str | None = "after",
        metric: str = "third",
        ridge: float = 0.0,
        backend: str = "tape",
        engine: dict[str, str] | None = None,
        check_every: int = 100,
    ):
        for what, name, known in (("average", average, AVERAGES), ("metric", metric, METRICS)):
            if name not in known:
                raise UnknownName.among(what, name, known)
        if positive not in POSITIVE:
            raise UnknownName.among("positive", positive, map(str, POSITIVE))
        for name, value in (("momentum", momentum), ("eta_momentum", eta_momentum)):
            if not 0 <= value < 1:
                raise InvalidInput(f"{name} = {value}: a decay lies in [0, 1)")
        for name, value in (("damping", damping), ("cubic", cubic), ("weight_decay", weight_decay), ("ridge", ridge)):
            if not 0 <= value < math.inf:
                raise InvalidInput(f"{name} = {value}: it cannot be negative")
        if dampening is not None and not 0 <= dampening < 1:
            raise InvalidInput(f"dampening = {dampening}: it lies in [0, 1), or is None for that of an average")
        for name, value in (("period", period), ("check_every", check_every)):
            if not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name} = {value}: give a number of steps, at least 1")
        if len(window) != 2 or not all(isinstance(n, int) and n >= 1 for n in window):
            raise InvalidInput(f"window = {window}: give (period, warm-up), both at least 1")
        for name in engine or {}:
            if name not in CHOICES:
                raise UnknownName.among("engine", name, CHOICES)
        options = {
            "lr": damping,
            "weight_decay": weight_decay,
            "groups": groups,
            "cubic": cubic,
            "period": period,
            "momentum": momentum,
            "eta_momentum": eta_momentum,
            "dampening": dampening,
            "average": average,
            "window": tuple(window),
            "positive": positive,
            "metric": metric,
            "ridge": ridge,
            "backend": backend,
            "engine": engine or {},
            "check_every": check_every,
        }
        super().__init__(params, options)
        self.summary: Summary | None = None
        self.unsolved, self.reason = 0, ""
        _ = self.partition  # refuse at once what does not fit

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in (("summary", None), ("unsolved", 0), ("reason", "")):
            self.__dict__.setdefault(name, value)

    @property
    def partition(self) -> Partition:
        """The groups that share a step size."""
        names = [name for group in self.param_groups for name in group.get("param_names", [])]
        params = [p for group in self.param_groups for p in group["params"]]
        return partition(self.param_groups[0]["groups"], params, names if len(names) == len(params) else None)

    @property
    def _third(self) -> bool:
        """Whether third derivatives are needed."""
        options = self.param_groups[0]
        return options["cubic"] > 0 and options["metric"] == "third"

    @property
    def eta(self) -> Tensor | None:
        """η̄ (S,) of the last step, before the positive part; ``None`` before the first."""
        return self.state[self.param_groups[0]["params"][0]].get("eta")

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | None = None,
        loss: Loss | None = None,
        *,
        summary: Pair | Sequence[Pair] | None = None,
        full: Any = None,
    ) -> Tensor:
        """One step; returns the mean loss before it.

        Args:
            closure: () -> outputs (B, ...), or the per-sample losses themselves if ``loss`` is not given.
            loss: outputs -> per-sample losses (B,).
            summary: (closure, loss) of the summary's batch, or a sequence of such pairs, which are weighted by their
                samples: a whole data set, for one. Only the steps that compute a summary run it, without effects on
                buffers (batch-norm advances with the training batch). Default: the training batch itself.
            full: for other methods.
        """
        shared, options = self._shared_state(), self.param_groups[0]
        check = self._checks()
        model = open_model(
            self, closure, loss, curvature="hessian", backend=options["backend"], engine=options["engine"], check=check
        )
        params, decay = self._parameters()

        # g on the training batch; u ← μ_g u + (1 − μ_g) g
        g = [x.add(p, alpha=λ) for x, p, λ in zip(model.gradient, params, decay, strict=True)]
        u = self._direction(g)
        norm2, slope = inner(u, u), inner(u, g)
        half_l2 = sum(0.5 * λ * torch.sum(p * p) for p, λ in zip(params, decay, strict=True))
        self.diagnostics |= {
            "loss": model.loss,
            "objective": model.loss + half_l2,
            "slope": slope,
            "direction_norm": norm2.sqrt(),
            "step": torch.zeros_like(norm2),
            **dict.fromkeys(("eta_min", "eta_max", "negative"), torch.full_like(norm2, math.nan)),
        }
        why = lambda: f"loss {model.loss:.4g}, ‖u‖² {norm2:.4g}, ⟨u, g⟩ {slope:.4g} must be finite"  # noqa: E731
        if not self._admit(torch.isfinite(model.loss + norm2 + slope), True, why):
            return model.loss

        # every p steps: (H̄, ḡ, D) on a batch of its own, u held constant
        groups, new = self.partition, {}
        if shared["step"] % options["period"] == 0:
            seen = self._summary(model, u, closure, loss, summary, groups, check)
            seen = _with_l2(seen, u, params, decay, groups)
            finite = torch.stack([torch.isfinite(x).all() for x in seen[: 2 + self._third]]).all()
            if not self._admit(finite, True, lambda: "the derivatives of its summary are not finite"):
                return model.loss
            new = self._new_eta(shared, _above_rounding(seen, u, groups))
        elif shared["eta"].numel() != len(groups):
            raise InvalidInput(
                f"{len(groups)} groups, but step sizes for {shared['eta'].numel()}: start a new optimizer"
            )
        eta = new.get("eta", shared["eta"])

        # T_i ← T_i − λ1 max(η̄_k, 0) u_i
        lengths = groups.spread(eta if options["positive"] is None else eta.clamp(min=0), params)
        rates = [group["lr"] for group in self.param_groups for _ in group["params"]]
        steps = [λ1 * t * x for λ1, t, x in zip(rates, lengths, u, strict=True)]
        size2 = inner(steps, steps)
        if not self._admit(torch.isfinite(size2), True, lambda: f"its step sizes reach {float(eta.max()):.4g}"):
            return model.loss
        for p, x, s in zip(params, u, steps, strict=True):
            self.state[p]["direction"] = x
            p.sub_(s)
        shared |= new
        shared["step"] += 1
        shared["loss"], shared["losses"] = shared["loss"] + model.loss, shared["losses"] + 1
        self.diagnostics |= {
            "step": torch.where(norm2 > 0, (size2 / norm2).sqrt(), 0.0),
            "eta_min": eta.min(),
            "eta_max": eta.max(),
            "negative": (eta < 0).sum(),
        }
        return model.loss

    def mean_loss(self) -> float:
        """The mean of the training losses since this was last asked, NaN of none: what the plateau rule looks at."""
        shared = self._shared_state()
        mean = float(shared["loss"]) / shared["losses"] if shared["losses"] else math.nan
        shared["loss"], shared["losses"] = torch.zeros_like(shared["loss"]), 0
        return mean

    def _direction(self, g: list[Tensor]) -> tuple[Tensor, ...]:
        """u, kept apart until the step is known to be sound."""
        options = self.param_groups[0]
        μ = options["momentum"]
        share = 1 - (μ if options["dampening"] is None else options["dampening"])
        params = [p for group in self.param_groups for p in group["params"]]
        past = [self.state[p].get("direction") for p in params]
        return tuple(x.clone() if v is None else μ * v + share * x for v, x in zip(past, g, strict=True))

    def _summary(
        self,
        model: LocalModel,
        u: Tensors,
        closure: Closure | None,
        loss: Loss | None,
        other: Pair | Sequence[Pair] | None,
        groups: Partition,
        check: bool,
    ) -> Summary:
        """Derivatives along the blocks of u, of the training batch by its local model or of ``other``."""
        options = self.param_groups[0]
        params = [p for group in self.param_groups for p in group["params"]]
        if other is not None or groups.scalar:
            assert closure is not None
            pairs = pairs_of(closure, loss, "hessian") if other is None else _pairs(other)
            leaves = params
            if groups.scalar:  # a network whose parameters are the entries
                leaves = [e.clone().requires_grad_() for e in groups.pieces([p.detach() for p in params])]
            values = lambda: groups.joined(leaves, params)  # noqa: E731
            quiet: list[Pair] = [
                (_aside(f, params, values), None if ℓ is None else _aside(ℓ, params, values)) for f, ℓ in pairs
            ]
            engine = {"backend": options["backend"], "check": check, **options["engine"]}
            return mean_summary(quiet, leaves, groups.pieces(u), groups.members, self._third, **engine)
        return model.summary(groups.pieces(u), groups.members, self._third)

    def _new_eta(self, shared: dict[str, Any], seen: Summary) -> dict[str, Any]:
        """The state after a summary (ḡ, H̄, third derivatives)."""
        options, new = self.param_groups[0], {}
        eta = shared["eta"]
        if 0 < eta.numel() != len(seen.gradient):
            raise InvalidInput(f"{len(seen.gradient)} groups, but step sizes for {eta.numel()}: start a new optimizer")
        if options["average"] == "uniform":
            window = _fed(shared.get("window"), torch.cat([x.reshape(-1) for x in seen]), *options["window"])
            new["window"], n = window, len(seen.gradient)
            g, h, third = _mean(window).split([n, n * n, n])
            seen = Summary(g, h.view(n, n), third)
        found = self._minimiser(seen)
        if found.eta is None:
            star = torch.zeros_like(seen.gradient)
            if options["average"] == "uniform" and eta.numel():
                star = eta  # the uniform version keeps what it has
        else:
            star = found.eta.to(seen.gradient)
        if options["positive"] == "before":
            star = star.clamp(min=0)
        if options["average"] == "exponential" and eta.numel():
            μ = options["eta_momentum"]
            star = μ * eta + (1 - μ) * star
        self.summary = seen
        self.diagnostics |= {
            "radius": star.new_tensor(found.radius),
            "model": star.new_tensor(found.value),
            "solved": star.new_tensor(float(found.eta is not None)),
        }
        return new | {"eta": star}

    def _minimiser(self, seen: Summary) -> Minimiser:
        """η of (2); if there is none, that is counted and reported."""
        options = self.param_groups[0]
        h = seen.hessian.double() + options["ridge"] * torch.eye(len(seen.gradient)).to(
            seen.hessian.device, torch.float64
        )
        h = (h + h.T) / 2  # to rounding it is symmetric, whatever computed it
        if not options["cubic"]:
            delta = torch.zeros_like(seen.gradient)
        elif options["metric"] == "identity":
            delta = torch.ones_like(seen.gradient)
        else:
            delta = seen.third.double().abs().pow(1 / 3)
        found = minimise_cubic(h, seen.gradient, delta, options["cubic"])
        if found.eta is None:
            self.unsolved, self.reason = self.unsolved + 1, found.reason
            warnings.warn(f"NewtonSummary found no step sizes: {found.reason}", SkippedStep, stacklevel=6)
        return found

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it."""
        first = self.param_groups[0]["params"][0]
        state = self.state[first]
        if "eta" not in state:
            state |= {"step": 0, "eta": first.new_empty(0), "loss": first.new_zeros(()), "losses": 0}
        return state


def _with_l2(seen: Summary, u: Tensors, params: Tensors, decay: Sequence[float], groups: Partition) -> Summary:
    """(ḡ, H̄, third) of J with Σ λ/2‖θ‖²: it adds λ⟨θ, u⟩ and, on the diagonal, λ‖u‖²."""
    if not any(decay):
        return seen
    slopes = groups.pieces([λ * p * x for λ, p, x in zip(decay, params, u, strict=True)])
    squares = groups.pieces([λ * x * x for λ, x in zip(decay, u, strict=True)])

    def total(v: Tensors) -> Tensor:
        return torch.stack([torch.stack([v[i].sum() for i in g]).sum() for g in groups.members])

    return Summary(seen.gradient + total(slopes), seen.hessian + torch.diag(total(squares)), seen.third)


def _above_rounding(seen: Summary, u: Tensors, groups: Partition) -> Summary:
    """``seen``, with 0 for the groups of which slope and curvatures are rounding errors.

    What cannot change the loss, as a bias before batch-norm, has a direction of rounding errors, and that it is short
    means nothing to a model that does not depend on lengths. With |u_k| the length of the block, group k is one of them
    if both |ḡ_k| / |u_k| and all |H̄_kl| / (|u_k||u_l|) are below 1000 ε of the largest such slope and curvature (up
    to 400 ε is seen where the summary has a batch of its own). It stands still.
    """
    pieces = groups.pieces(u)
    length = torch.stack([torch.stack([pieces[i].square().sum() for i in g]).sum() for g in groups.members]).sqrt()
    length = torch.where(length > 0, length, 1.0)
    slope = seen.gradient.abs() / length
    curvature = (seen.hessian.abs() / length / length[:, None]).amax(1)
    floor = 1000 * torch.finfo(length.dtype).eps
    kept = (slope > floor * slope.max()) | (curvature > floor * curvature.max())
    return Summary(seen.gradient * kept, seen.hessian * kept * kept[:, None], seen.third * kept)


def mean_summary(
    pairs: Sequence[Pair], params: Tensors, u: Tensors, groups: Sequence[Sequence[int]], third: bool, **engine: Any
) -> Summary:
    """The derivatives of J over all samples of the pairs and of all processes; each pair is run once, one at a time."""

    def own() -> list[Tensor]:
        total: list[Tensor] = []
        for f, ℓ in pairs:
            model = expand(f, ℓ, params, "hessian", ranks=False, **engine)
            n = len(model.losses)
            parts = [n * x for x in (model.loss.new_ones(1), *model.summary(u, groups, third))]
            total = [t + x for t, x in zip(total, parts, strict=True)] if total else parts
        return total

    s, new = len(groups), params[0].new_empty
    n, *sums = Ranks(world_size()).sum(own, (new(1), new(s), new(s, s), new(s)))
    return Summary(*(x / n for x in sums))


def _pairs(summary: Pair | Sequence[Pair]) -> list[Pair]:
    """The (closure, loss) pairs of the ``summary`` argument: one, or a sequence of them."""
    one = isinstance(summary, tuple | list) and len(summary) == 2 and callable(summary[0])
    return pairs_of([summary] if one else summary, None, "hessian")  # type: ignore[list-item, arg-type]


def _aside(f: Callable, params: Tensors, values: Callable[[], Tensors]) -> Callable:
    """``f`` with ``values()`` in the place of ``params``, and with copies of the statistics that norms write into."""

    def quiet(*args: Any) -> Any:
        mode = Substitute(params, values(), spare_statistics)
        with mode:
            out = f(*args)
        return map_tensors(out, mode.swap)

    return quiet


# ---- the uniform average: rows (mean of the last whole stretch, present mean), then how many samples each has


def _fed(window: Tensor | None, x: Tensor, period: int, warmup: int) -> Tensor:
    """The window (2, n + 2) after one more sample x (n,); the last two columns count samples and finished stretches."""
    old = x.new_zeros(2, len(x) + 2) if window is None else window
    last, now = old.clone()
    if now[-2] == (period if now[-1] else warmup):  # a stretch is full: a new one begins
        last, now = now, torch.zeros_like(now)
        now[-1] = 1
    now[:-2] += (x - now[:-2]) / (now[-2] + 1)
    now[-2] += 1
    return torch.stack([last, now])


def _mean(window: Tensor) -> Tensor:
    """Over the last whole stretch and the present one.

    >>> w, means = None, []
    >>> for x in range(1, 8):
    ...     w = _fed(w, torch.tensor([float(x)]), 3, 3)
    ...     means.append(float(_mean(w)))
    >>> means
    [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 5.5]
    """
    counts = window[:, -2:-1]
    return (counts * window[:, :-2]).sum(0) / counts.sum()


class plateau_schedule(ReduceLROnPlateau):
    """Appendix F, "schedule": λ₁ ← ``factor`` λ₁ when the training loss has not fallen for over ``patience`` calls.

    Call ``step()`` once per epoch: the loss is the mean of the batches since the last call, which the optimizer keeps.
    Fallen means by a relative ``threshold``. Defaults: METHODS' reading of the official scripts.
    """

    def __init__(self, optimizer: NewtonSummary, factor: float = 0.5, patience: int = 0, threshold: float = 1e-4):
        super().__init__(optimizer, "min", factor, patience, threshold)

    def step(self, metrics: Any = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """At the end of an epoch; ``metrics``: another loss to look at."""
        super().step(self.optimizer.mean_loss() if metrics is None else metrics, epoch)  # type: ignore[attr-defined]
