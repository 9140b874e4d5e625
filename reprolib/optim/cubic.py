"""The anisotropic cubic model of NewtonSummary (Wolinski, 2023, section 4.2, Appendix D), minimised in every case."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reprolib.errors import InvalidInput

CASES = ("quadratic", "regular", "hard", "none")
ROUNDING = 1e-12  # of entries that are scaled to 1 at most: below it, a curvature or a slope counts as zero,
COUPLING = 1e-9  # and a coupling to what has curvature: in H̄ ⪰ 0 it is at most the root
STEPS = 300  # of the search for r: it halves its bracket at the worst


class Minimiser(NamedTuple):
    """What :func:`minimise_cubic` found."""

    eta: Tensor | None  # (S,) float64; None where there is no minimiser
    radius: float  # r = ‖Dη‖
    value: float  # m(η); −∞ where there is no minimiser
    case: str  # "quadratic": the cubic term does not act, r = 0 or D = 0; "regular"; "hard"; or "none"
    reason: str = ""  # why there is none


def cubic_model(eta: Tensor, hessian: Tensor, gradient: Tensor, delta: Tensor, damping: float = 1.0) -> Tensor:
    """m(η) = −ḡᵀη + ½ ηᵀH̄η + (λ/6) ‖Dη‖³ of η (..., S), with D = diag(δ)."""
    quadratic = ((eta @ hessian) * eta).sum(-1) / 2
    return quadratic - eta @ gradient + damping / 6 * torch.linalg.vector_norm(eta * delta, dim=-1) ** 3


def minimise_cubic(hessian: Tensor, gradient: Tensor, delta: Tensor, damping: float = 1.0) -> Minimiser:
    r"""The global minimiser of m(η) = −ḡᵀη + ½ ηᵀH̄η + (λ/6)‖Dη‖³, in float64.

    η is one if and only if A(r)η = ḡ and A(r) = H̄ + ½λrD² ⪰ 0 with r = ‖Dη‖. Above r_min = inf{r ≥ 0: A(r) ≻ 0} the
    function ‖D A(r)⁻¹ḡ‖ − r falls strictly. Where it starts above zero its root is the only one (*regular*). Where it
    does not, ḡ is orthogonal to the critical eigenspace, r = r_min and η = A(r)⁺ḡ + τv (*hard*, E-sum-2): both signs of
    τ give minimisers, and the one is taken in which the largest component of v moves forward.

    A minimiser exists if and only if H̄ ⪰ 0 on the null space of D (everything for λ = 0) and neither H̄ nor ḡ touches
    what is flat there: such directions stay at 0.

    Args:
        hessian: H̄ (S, S), symmetric.
        gradient: ḡ (S,).
        delta: the diagonal of D (S,), not negative, zeros allowed.
        damping: λ_int ≥ 0.

    Raises:
        InvalidInput: shapes that do not fit, non-finite numbers, a negative δ or λ.

    Source: Appendix D; errata E-sum-1, 2, 6; key ``wolinski2023`` in references.bib.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> minimise_cubic(2 * eye, torch.tensor([2.0, 4.0]), torch.zeros(2)).eta.round(decimals=9).tolist()
    [1.0, 2.0]
    """
    h, g, d = (x.detach().to("cpu", torch.float64) for x in (hessian, gradient, delta))
    _check(h, g, d, damping)
    h = (h + h.T) / 2
    s = _scales(h, g, d)
    found = _minimise(h / s / s[:, None], g / s, (d if damping else 0 * d) / s, damping)
    if found.eta is None:
        return found
    eta = found.eta / s
    return found._replace(eta=eta, value=float(cubic_model(eta, h, g, d, damping)))


def _minimise(h: Tensor, g: Tensor, d: Tensor, damping: float) -> Minimiser:
    """:func:`minimise_cubic` of a model whose entries have been scaled."""
    free = d <= ROUNDING * d.max()  # where the cubic term does not act
    if bool(free.any()):
        curvatures, axes = torch.linalg.eigh(h[free][:, free])
        if bool(curvatures[0] < -ROUNDING):
            return _none(f"negative curvature {float(curvatures[0]):.3g} (scaled) where the cubic term does not act")
        flat = torch.zeros(len(g), int((curvatures <= ROUNDING).sum()), dtype=h.dtype)
        flat[free] = axes[:, curvatures <= ROUNDING]
        if flat.shape[1]:
            if bool((flat.T @ h).abs().max() > COUPLING):
                return _none("no curvature, but a coupling to other groups, where the cubic term does not act")
            if bool((flat.T @ g).abs().max() > ROUNDING * g.abs().max()):
                return _none("a slope without curvature where the cubic term does not act")
            h, g = h + flat @ flat.T, g - flat @ (flat.T @ g)  # stays at 0 there
    x, r, case = (_solve(h, g), 0.0, "quadratic") if bool(free.all()) else _search(h, g, d, damping)
    return Minimiser(x, r, math.nan, case)


def _search(h: Tensor, g: Tensor, d: Tensor, damping: float) -> tuple[Tensor, float, str]:
    """(η, r, case) by Newton's method on 1/‖Dη(r)‖ − 1/r, which is nearly linear, within a bracket of r."""
    curved = damping / 2 * torch.diag(d * d)
    low, high, r, unit = 0.0, math.inf, 0.0, 1 / float(curved.max())  # unit: the r at which the cubic term matters
    for _ in range(STEPS):
        factor, failed = torch.linalg.cholesky_ex(h + r * curved)
        following = math.inf
        if bool(failed):
            low = r
        else:
            x = torch.cholesky_solve(g[:, None], factor)[:, 0]
            y = d * x
            n = float(torch.linalg.vector_norm(y))
            if abs(n - r) <= 1e-15 * r:
                return x, r, "regular" if r else "quadratic"
            if n == 0 == low and float(torch.linalg.eigvalsh(h)[0]) >= -ROUNDING:
                return x, 0.0, "quadratic"  # H̄ is singular, and ḡ has nothing there
            low, high = (r, high) if n > r else (low, r)
            if r == 0:
                following, high = n, n * (1 + 1e-12)  # ‖Dη‖ falls with r
            elif n > 0:
                w = torch.linalg.solve_triangular(factor, (d * y)[:, None], upper=False)
                following = r - (1 / n - 1 / r) / (damping / 2 * float(w.square().sum()) / n**3 + 1 / r**2)
        if high < math.inf and high - low <= 4e-16 * high:
            break
        if not low < following < high:
            far = 0 < 4 * low < high
            following = 3 * low + unit if high == math.inf else math.sqrt(low * high) if far else (low + high) / 2
        r = following
    factor, failed = torch.linalg.cholesky_ex(h + high * curved)
    x = torch.cholesky_solve(g[:, None], factor)[:, 0]
    if not bool(failed) and abs(float(torch.linalg.vector_norm(d * x)) - high) <= 1e-9 * high:
        return x, high, "regular"
    t = (h.abs() + high * curved).diagonal().sqrt()  # of the size of what A = H̄ + ½λrD² is the difference of
    t = torch.where(t > 0, t, 1.0)
    return _hard((h + high * curved) / t / t[:, None], g / t, d / t, high) / t, high, "hard"


def _hard(a: Tensor, g: Tensor, d: Tensor, r: float) -> Tensor:
    """η = A⁺ḡ + τv with ‖Dη‖ = r, for the singular A = A(r_min), v in its kernel."""
    values, axes = torch.linalg.eigh(a)
    critical = values <= values[0].abs() + 1e-9
    kernel, rest = axes[:, critical], axes[:, ~critical]
    x, along, v = rest @ ((rest.T @ g) / values[~critical]), kernel.T @ g, kernel[:, 0]
    if bool(along.abs().max() > ROUNDING * g.abs().max()):
        v = kernel @ (along / torch.linalg.vector_norm(along))  # nearly hard: ḡ says which way
    elif v[v.abs().argmax()] < 0:
        v = -v
    factor, failed = torch.linalg.cholesky_ex(a)
    if not bool(failed):  # one inverse iteration: its small components are accurate too
        v = torch.nn.functional.normalize(torch.cholesky_solve(v[:, None], factor)[:, 0], dim=0)
    p, q = d * x, d * v
    a2, a1, a0 = float(q @ q), float(p @ q), float(p @ p) - r * r
    return x + (-a1 + math.sqrt(max(a1 * a1 - a2 * a0, 0.0))) / a2 * v


def _solve(h: Tensor, g: Tensor) -> Tensor:
    return torch.cholesky_solve(g[:, None], torch.linalg.cholesky(h))[:, 0]


def _none(reason: str) -> Minimiser:
    return Minimiser(None, math.nan, -math.inf, "none", reason)


def _scales(h: Tensor, g: Tensor, d: Tensor) -> Tensor:
    """Scales s with |H̄_ij|/(s_i s_j) ≤ 1. Directions c times as long have c times the s: lengths do not matter."""
    s = h.diagonal().abs().sqrt()
    for other in (d, g.abs()):
        s = torch.where(s > 0, s, other)
    s = torch.where(s > 0, s, 1.0)
    for _ in range(20):
        rows = (h / s / s[:, None]).abs().amax(1)
        s = s * torch.where(rows > 0, rows, 1.0).sqrt()
    return s * torch.sqrt((h / s / s[:, None]).abs().max().clamp(min=1.0))


def _check(h: Tensor, g: Tensor, d: Tensor, damping: float) -> None:
    size = len(g) if g.dim() == 1 else 0
    if not size or h.shape != (size, size) or d.shape != (size,):
        raise InvalidInput(
            f"H̄ is {tuple(h.shape)}, ḡ {tuple(g.shape)}, δ {tuple(d.shape)}: give (S, S), (S,), (S,) with S ≥ 1"
        )
    if not all(bool(torch.isfinite(x).all()) for x in (h, g, d)):
        raise InvalidInput("H̄, ḡ and δ must be finite")
    if bool((d < 0).any()) or not 0 <= damping < math.inf:
        raise InvalidInput(f"δ ≥ {float(d.min()):.4g}, λ_int = {damping}: neither can be negative")
    if bool((h - h.T).abs().max() > 1e-6 * h.abs().max()):
        raise InvalidInput("H̄ is not symmetric")
