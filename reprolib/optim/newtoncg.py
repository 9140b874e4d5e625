"""NewtonCG: the stochastic Newton–Krylov method of CSDD (Shen et al., 2021), Algorithm 1 with its errata."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprolib.curvature.network import CHOICES, Network, Pair, pairs_of
from reprolib.curvature.parts import Ranks, world_size
from reprolib.curvature.replay import Repeat, Substitute, spare_statistics
from reprolib.curvature.tree import Tensors, inner
from reprolib.errors import InvalidInput, UnknownName
from reprolib.optim import cg
from reprolib.optim.step import Closure, LocalModelOptimizer, Loss, open_model, refuse_negative

PRINTED = cg.PRINTED | {"screening", "search"}  # lines that can be had as the paper prints them
SEARCHES = ("taylor", "armijo", "none")
ARMIJO = (0.01, 0.8)  # c and τ of the supplement, eq. (1)


class NewtonCG(LocalModelOptimizer):
    r"""θ ← θ + γΔ with Δ ≈ −H_j⁻¹ g_j by truncated CG on the Hessian of one batch, and γ by the Taylor ratio.

    A batch is skipped if its gradient g_j opposes the global gradient g, which ``step(..., full=)`` says how to
    compute. CG (:func:`~reprolib.optim.cg.truncated_cg`) ends at the first direction of negative curvature; what Δ
    has along g is taken out of it where it ascends; and γ is such that the quadratic model is off by a share η in
    [½η̃, η̃] of the change of the batch's loss (:func:`taylor_length`).

    Args:
        params: tensors, named tensors or groups.
        taylor_ratio: η̃; the only parameter of the paper, which finds 0.01 to 0.2 good.
        max_iter: K, at most so many CG iterations, a Hessian product each.
        tolerance: τ, CG ends when ‖g_j + H_jΔ‖ ≤ τ‖g_j‖ (the paper: "not small enough").
        warm_start: CG starts from the last Δ, not from 0. Line 10 has a Δw̃ that the paper does not define; with the
            last Δ nothing makes a step descend, and steps grow from batch to batch.
        tries: of γ, each a forward pass.
        fallback: γ where none was found.
        lr: a factor on the step that was found, for schedules (per group; 1 in the paper).
        weight_decay: λ of λ/2‖θ‖², part of J and of every J_j (per group).
        global_every: g serves until θ has moved so often, or until a batch contradicts a g from before a move: 1 is
            the paper's, n/B gradients a step (E-cs-10); more, a stale g.
        global_pairs: g is the mean over so many pairs of ``full``, the next ones each time, also after a batch that
            contradicts it; ``None``: over all.
        truncate: leave CG at negative curvature; ``False`` for the supplement's ablation.
        search: ``"taylor"``; ``"armijo"``, the supplement's backtracking; ``"none"``, γ = 1.
        curvature: ``"hessian"``, or ``"ggn"``: Gauss–Newton.
        printed: lines as the paper prints them, to see what they do: ``"alpha"`` (line 21), ``"floor"`` (18–19),
            ``"screening"`` (29–31), ``"search"`` (33–46).
        backend: of :func:`reprolib.curvature.expand`.
        engine: further options of it.
        check_every: how often the ⟨g, d⟩ invariant is checked; the first step always is.

    After each step ``diagnostics`` has 0-d tensors: ``loss`` (batch mean before the step), ``objective`` (with the L²
    term), ``step`` (γ·lr of the first group), ``taylor_ratio`` η, ``tries``, ``slope`` ⟨g_j, Δ⟩, ``direction_norm``,
    ``iterations`` of CG, ``negative_curvature`` and ``screened`` (1 or 0), ``agreement`` ⟨g_j, g⟩. ``counts`` are the
    sums so far: ``steps``, ``screened`` batches, CG ``iterations``, ``truncated`` at negative curvature, ``floored``
    iterations along flat directions, ``projected`` directions, ``tries``, ``fallbacks``, ``unmoved`` steps (Δ = 0),
    and ``pairs``, the gradients for g. ``skipped`` counts non-finite steps, which change nothing.

    Source: Algorithm 1, eqs. (12), (13); key ``shen2021`` in references.bib.
    """

    def __init__(
        self,
        params: Iterable[Any],
        taylor_ratio: float = 0.05,
        max_iter: int = 20,
        *,
        tolerance: float = 1e-3,
        warm_start: bool = False,
        tries: int = 12,
        fallback: float = 1e-6,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        global_every: int = 1,
        global_pairs: int | None = None,
        truncate: bool = True,
        search: str = "taylor",
        curvature: str = "hessian",
        printed: Sequence[str] = (),
        backend: str = "tape",
        engine: dict[str, str] | None = None,
        check_every: int = 100,
    ):
        if search not in SEARCHES:
            raise UnknownName.among("search", search, SEARCHES)
        for line in printed:
            if line not in PRINTED:
                raise UnknownName.among("printed line", line, PRINTED)
        for name in engine or {}:
            if name not in CHOICES:
                raise UnknownName.among("engine", name, CHOICES)
        if not 0 < taylor_ratio < 1:
            raise InvalidInput(f"taylor_ratio = {taylor_ratio}: a share between 0 and 1")
        for name, count in (("max_iter", max_iter), ("tries", tries), ("global_every", global_every)):
            if count < 1:
                raise InvalidInput(f"{name} = {count}: give at least 1")
        if global_pairs is not None and global_pairs < 1:
            raise InvalidInput(f"global_pairs = {global_pairs}: give at least 1, or None for all")
        refuse_negative(tolerance=tolerance, fallback=fallback, lr=lr, weight_decay=weight_decay)
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "taylor_ratio": taylor_ratio,
            "max_iter": max_iter,
            "tolerance": tolerance,
            "warm_start": warm_start,
            "tries": tries,
            "fallback": fallback,
            "global_every": global_every,
            "global_pairs": global_pairs,
            "truncate": truncate,
            "search": search,
            "curvature": curvature,
            "printed": sorted(printed),
            "backend": backend,
            "engine": engine or {},
            "check_every": check_every,
        }
        super().__init__(params, options)
        self.counts: Counter[str] = Counter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("counts", Counter())

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | None = None,
        loss: Loss | None = None,
        *,
        summary=None,
        full: Iterable[Pair] | None = None,
    ) -> Tensor:
        """One minibatch of Algorithm 1; returns its mean loss before it.

        Args:
            closure: () -> outputs (B, ...), or the per-sample losses themselves if ``loss`` is not given.
            loss: outputs -> per-sample losses (B,).
            full: (closure, loss) pairs over the data, for g: a list, or anything that can be iterated again and again.
                Their passes leave no trace: batch-norm statistics and random numbers stay. ``None``: the step's own
                batch serves as the data, so it is never skipped.
            summary: for another method.
        """
        options, shared = self.param_groups[0], self._shared_state()
        printed = set(options["printed"])
        check = self._checks()
        params, decay = self._parameters()

        def with_l2(x: Tensors, at: Tensors) -> tuple[Tensor, ...]:
            """The sum x + λ·at: of a gradient at θ = at, or of a product with at."""
            return tuple(v.add(w, alpha=λ) for v, w, λ in zip(x, at, decay, strict=True))

        engine = {**options["engine"], "retain": True}
        model = open_model(
            self,
            closure,
            loss,
            curvature=options["curvature"],
            backend=options["backend"],
            engine=engine,
            check=check,
        )
        try:
            # line 4: the gradient of the batch; lines 1, 48: that of all data, where θ has moved since
            g_j = with_l2(model.gradient, params)
            known, position = self._global(full, params)
            g = g_j if known is None else with_l2(known, params)
            agreement, size = inner(g_j, g), inner(g_j, g_j)
            half_l2 = sum(0.5 * λ * torch.sum(p * p) for p, λ in zip(params, decay, strict=True))
            self.diagnostics = {"loss": model.loss, "objective": model.loss + half_l2, "agreement": agreement}
            self._report(step=0, taylor_ratio=0, tries=0, slope=0, direction_norm=0, iterations=0)
            self._report(negative_curvature=0, screened=0)
            finite = torch.isfinite(model.loss + agreement + size)
            if not self._admit(finite, True, lambda: f"loss {model.loss:.4g} and gradients must be finite"):
                return model.loss
            if agreement < 0:  # lines 5–8: the batch is not representative; θ and so g stay
                self._learn(params, known, position)
                if shared["age"] or options["global_pairs"]:  # it may be g that is not representative: look again
                    shared["age"] = options["global_every"]
                self.counts.update(steps=1, screened=1)
                self._report(screened=1)
                return model.loss

            def product(p: Tensors) -> tuple[Tensor, ...]:
                return with_l2(model.product(p), p)

            # lines 10–28: Δ ≈ −H_j⁻¹ g_j
            warm = options["warm_start"] and "direction" in shared
            start = [self.state[p]["direction"] for p in params] if warm else None
            found = cg.truncated_cg(
                product,
                g_j,
                start,
                max_iter=options["max_iter"],
                tolerance=options["tolerance"],
                truncate=options["truncate"],
                printed=printed & cg.PRINTED,
            )
            # lines 29–31
            Δ, image, ascends = found.direction, found.image, bool(inner(found.direction, g) > 0)
            if ascends:
                Δ = screened(Δ, g, "screening" in printed)
                image = product(Δ)

            # lines 33–46: the length
            slope, bend, norm = float(inner(g_j, Δ)), float(inner(Δ, image)), float(inner(Δ, Δ)) ** 0.5
            l2_slope = float(sum(λ * torch.sum(p * x) for p, x, λ in zip(params, Δ, decay, strict=True)))
            l2_bend = float(sum(λ * torch.sum(x * x) for x, λ in zip(Δ, decay, strict=True)))

            def change(γ: float) -> float:
                """ΔJ(γ) = J_j(θ + γΔ) − J_j(θ), its L² term without cancellation."""
                moved = float(model.loss_at([γ * x for x in Δ]) - model.loss)
                return moved + γ * l2_slope + 0.5 * γ**2 * l2_bend

            # what two losses may differ by rounding: less cannot be seen of a step
            noise = 8 * torch.finfo(model.losses.dtype).eps * float(model.losses.abs().mean())
            if norm == 0:
                chosen = Length(0.0, 0.0, 0, True)
            elif not math.isfinite(norm):
                chosen = Length(math.nan, math.nan, 0, False)
            else:
                chosen = self._length(change, slope, bend, noise)
        finally:
            model.close()
        γ = chosen.length

        self._report(step=γ * options["lr"], taylor_ratio=chosen.ratio, tries=chosen.tries, slope=slope)
        self._report(direction_norm=norm, iterations=found.iterations)
        self._report(negative_curvature=found.stopped == "negative curvature")
        finite = torch.isfinite(torch.tensor(norm + γ))
        if not self._admit(finite, True, lambda: f"‖Δ‖ = {norm:.4g} must be finite (CG ended: {found.stopped})"):
            return model.loss
        self.counts.update(steps=1, iterations=found.iterations, floored=found.floored, tries=chosen.tries)
        self.counts.update(truncated=found.stopped == "negative curvature", projected=ascends)
        self.counts.update(fallbacks=not chosen.found, unmoved=norm == 0)
        self._learn(params, known, position)
        offset = 0
        for group in self.param_groups:
            for p in group["params"]:
                if options["warm_start"]:
                    self.state[p]["direction"] = Δ[offset]
                p.add_(Δ[offset], alpha=group["lr"] * γ)  # line 47: θ ← θ + γΔ
                offset += 1
        shared["age"] += norm > 0
        return model.loss

    # ---- lines 1 and 48

    def _global(self, full: Iterable[Pair] | None, params: Sequence[Tensor]) -> tuple[tuple[Tensor, ...] | None, int]:
        """The known ∇J over ``full`` if it may serve, else a new one, without the L² term; and where in ``full`` to go on."""
        if full is None:
            return None, 0
        if iter(full) is full:
            raise InvalidInput(f"full is a {type(full).__name__}, which can be read only once: give a list of pairs")
        shared, options = self._shared_state(), self.param_groups[0]
        if "global" in shared and shared["age"] < options["global_every"]:
            return tuple(self.state[p]["global"] for p in params), shared["next"]
        pairs, position = part_of(full, shared["next"], options["global_pairs"])
        return global_gradient(self._counted(pairs), params), position

    def _counted(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            self.counts["pairs"] += 1
            yield pair

    def _learn(self, params: Sequence[Tensor], known: tuple[Tensor, ...] | None, position: int) -> None:
        """Keep the global gradient of this step."""
        if known is None:
            return
        shared = self._shared_state()
        if shared.get("global") is not known[0]:
            shared["age"], shared["next"] = 0, position
            for p, x in zip(params, known, strict=True):
                self.state[p]["global"] = x

    # ---- lines 33–46

    def _length(self, change: Callable[[float], float], slope: float, bend: float, noise: float) -> Length:
        options = self.param_groups[0]
        target, tries, fallback = options["taylor_ratio"], options["tries"], options["fallback"]
        if options["search"] == "none":
            return Length(1.0, math.nan, 0, True)
        if options["search"] == "armijo":
            return armijo_length(change, slope, tries, fallback)
        if "search" in options["printed"]:
            return printed_length(change, slope, bend, target, tries, fallback)
        return taylor_length(change, slope, bend, target, tries, fallback, noise)

    # ---- inside

    def _report(self, **numbers: float) -> None:
        loss = self.diagnostics["loss"]
        self.diagnostics |= {name: loss.new_tensor(float(value)) for name, value in numbers.items()}

    def _shared_state(self) -> dict[str, Any]:
        """What belongs to no single parameter lives with the first one, so that ``state_dict`` carries it."""
        state = self.state[self.param_groups[0]["params"][0]]
        state.setdefault("age", 0)  # moves of θ since g was computed
        state.setdefault("next", 0)  # the pair of ``full`` that the next sub-sample starts from
        return state


class Length(NamedTuple):
    """γ, η(γ), how many γ were tried, and whether one of them served."""

    length: float
    ratio: float
    tries: int
    found: bool


def taylor_length(
    change: Callable[[float], float],
    slope: float,
    bend: float,
    target: float = 0.05,
    tries: int = 12,
    fallback: float = 1e-6,
    noise: float = 0.0,
) -> Length:
    """Lines 33–46, corrected: γ with η(γ) = |ΔJ(γ) − E(γ)|/|ΔJ(γ)| in [½η̃, η̃] and ΔJ(γ) < 0; or 1, if η(1) < ½η̃.

    E(γ) = γ gᵀΔ + ½γ² ΔᵀHΔ, of the same γ as ΔJ (E-cs-6e). Its error is e γ³ while ΔJ ≈ γ gᵀΔ, so η ∝ γ² (E-cs-6b),
    and the second try is the γ where e γ³ = ¾η̃ |E(γ)|, e measured at γ = 1. Then halves and one-and-a-halves, as
    printed. If no try is within the interval, the longest one that is below it serves; if there is none, ``fallback``
    does.

    Args:
        change: γ -> ΔJ(γ).
        slope: gᵀΔ.
        bend: ΔᵀHΔ.
        target: η̃.
        tries: calls of ``change``.
        fallback: γ where nothing was found.
        noise: the rounding error of ``change``; what is smaller counts as zero.
    """
    γ, best = 1.0, None
    for n in range(1, tries + 1):
        ΔJ, E = change(γ), γ * slope + 0.5 * γ**2 * bend
        error = abs(ΔJ - E)
        if E < 0 and error <= noise:
            η = 0.0  # also where the fall itself is too small to be seen
        elif ΔJ < 0:  # an ascending step is never good, however well it was foreseen (E-cs-6c)
            η = error / -ΔJ
        else:
            η = math.inf
        good = Length(γ, η, n, True)
        if 0.5 * target <= η <= target or (η < 0.5 * target and n == 1):
            return good
        if η <= target and (best is None or γ > best.length):
            best = good
        if n == 1 and slope < 0 and 0 < error < math.inf:
            # e γ² + ½aγ ΔᵀHΔ = a |gᵀΔ| with a = ¾η̃
            a = 0.75 * target
            half = 0.25 * a * bend
            γ = (math.sqrt(half**2 - error * a * slope) - half) / error
        else:
            γ *= 0.5 if η > target else 1.5
    return Length(fallback, η, tries, False) if best is None else best._replace(tries=tries)


def printed_length(
    change: Callable[[float], float], slope: float, bend: float, target: float, tries: int, fallback: float
) -> Length:
    """Lines 33–46 as printed: E of γ = 1 throughout, ascending steps accepted (E-cs-6c, e)."""
    γ, E = 1.0, slope + 0.5 * bend
    for n in range(1, tries + 1):
        ΔJ = change(γ)
        η = abs((ΔJ - E) / ΔJ) if ΔJ else math.nan
        if 0.5 * target <= η <= target or (η <= 0.5 * target and n == 1):
            return Length(γ, η, n, True)
        γ *= 0.5 if η > target else 1.5
    return Length(fallback, η, tries, False)


def armijo_length(change: Callable[[float], float], slope: float, tries: int, fallback: float) -> Length:
    """Backtracking (supplement, eq. 1): the first γ = τⁿ with ΔJ(γ) ≤ cγ gᵀΔ."""
    c, τ = ARMIJO
    for n in range(tries):
        γ = τ**n
        if change(γ) <= c * γ * slope:
            return Length(γ, math.nan, n + 1, True)
    return Length(fallback, math.nan, tries, False)


def screened(Δ: Tensors, g: Tensors, printed: bool = False) -> tuple[Tensor, ...]:
    """Lines 29–31: Δ − (⟨Δ, g⟩/‖g‖²) g, which is orthogonal to g, for a Δ that ascends, ⟨Δ, g⟩ > 0.

    ``printed``: (1 + cos(Δ, g)) Δ, which ascends more (E-cs-5).
    """
    along, size = inner(Δ, g), inner(g, g)
    if printed:
        return tuple((1 + along / (size * inner(Δ, Δ)).sqrt()) * x for x in Δ)
    return tuple(x - along / size * y for x, y in zip(Δ, g, strict=True))


# ---- the data, without a trace


def part_of(full: Iterable[Pair], first: int, count: int | None) -> tuple[Iterable[Pair], int]:
    """``count`` pairs of ``full`` from number ``first`` on, round and round (``None``: all), and where to go on.

    >>> part_of("abcde", 3, 3)
    (['d', 'e', 'a'], 1)
    """
    if count is None:
        return full, 0
    taken = list(islice(full, first, first + count))
    if len(taken) == count:
        return taken, first + count
    rest = list(islice(full, min(first, count - len(taken))))
    return taken + rest, len(rest)


def global_gradient(pairs: Iterable[Pair], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """∇J over all samples of the pairs and of all processes, (1/n) Σ_s ∇J_s, one pair in memory at a time."""

    def own() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in params]
        n = 0
        # the numbers flow from pair to pair, so that dropout masks differ, and are put back at the end
        with Repeat(params).same_random_numbers():
            for pair in pairs:
                network = Network(*pairs_of([pair], None, "hessian")[0], params)
                with torch.enable_grad(), Substitute(params, params, spare_statistics):
                    losses = network.run()[1]
                    found = torch.autograd.grad(losses.sum(), params, materialize_grads=True)
                total = [t.add_(x) for t, x in zip(total, found, strict=True)]
                n += len(losses)
        if not n:
            raise InvalidInput("full is empty: give the (closure, loss) pairs of the data")
        return [total[0].new_tensor(n), *total]

    n, *total = Ranks(world_size()).sum(own, [params[0].new_zeros(()), *params])
    return tuple(x / n for x in total)
