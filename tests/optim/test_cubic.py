"""The cubic model: every case against the conditions that characterise a minimiser, and against random search, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.errors import InvalidInput
from reprolib.optim.cubic import cubic_model, minimise_cubic


def f64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def positive_definite(size: int, g: torch.Generator) -> torch.Tensor:
    a = torch.randn(size, size, generator=g, dtype=torch.float64)
    return a @ a.T + 0.01 * torch.eye(size, dtype=torch.float64)


@st.composite
def models(draw):
    """(H̄, ḡ, δ, λ): definite, indefinite, singular, negative, zero H̄; small and large δ, some of them zero; ḡ in hard position."""
    size, seed = draw(st.integers(1, 5)), draw(st.integers(0, 10**6))
    kind = draw(st.sampled_from(["definite", "indefinite", "singular", "negative", "zero", "diagonal"]))
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=g, dtype=torch.float64)
    half = a[:, : max(1, size // 2)]
    diagonal = torch.diag(torch.randint(-2, 3, (size,), generator=g).double())
    h = {
        "definite": a @ a.T + 0.1 * torch.eye(size),
        "indefinite": a + a.T,
        "singular": half @ half.T,
        "negative": -a @ a.T,
        "zero": 0 * a,
        "diagonal": diagonal,
    }[kind]
    slope = torch.randn(size, generator=g, dtype=torch.float64) * draw(st.sampled_from([0.0, 1e-6, 1.0, 100.0]))
    if draw(st.booleans()):  # nothing along the lowest eigenvector: the hard case, often
        slope = slope * (torch.arange(size) != int(h.diagonal().argmin()))
    delta = torch.rand(size, generator=g, dtype=torch.float64) + 0.1
    delta *= 10.0 ** torch.randint(-3, 1, (size,), generator=g)
    zeros = draw(st.sampled_from(["none", "none", "some", "all"]))
    if zeros != "none":
        delta *= (torch.rand(size, generator=g) < 0.5) if zeros == "some" else 0
    return h.double(), slope, delta, draw(st.sampled_from([0.0, 0.01, 1.0, 30.0]))


def check_optimal(eta, h, g, d, λ) -> None:
    """A(r)η = ḡ and A(r) = H̄ + ½λrD² ⪰ 0 with r = ‖Dη‖: necessary and sufficient."""
    cubic = λ / 2 * torch.linalg.vector_norm(d * eta) * d * d
    size = h.abs() @ eta.abs() + cubic * eta.abs() + g.abs()
    assert ((h + torch.diag(cubic)) @ eta - g).abs().max() <= 1e-8 * size.max()
    scale = (h.abs().amax(1) + cubic).clamp(min=1e-300).sqrt()
    assert torch.linalg.eigvalsh((h + torch.diag(cubic)) / scale / scale[:, None])[0] >= -1e-8


def below_random_search(found, h, g, d, λ) -> None:
    """No point near the minimiser, or anywhere at any scale, has a lower value."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2000, len(g), generator=rng, dtype=torch.float64)
    lengths = 10.0 ** (8 * torch.rand(2000, 1, generator=rng, dtype=torch.float64) - 4)
    size = torch.linalg.vector_norm(found.eta).clamp(min=1.0)
    points = torch.cat([found.eta + lengths * z * size / 100, lengths * z * size, -found.eta[None]])
    values = cubic_model(points, h, g, d, λ)
    assert found.value <= values.min() + 1e-10 * (1 + abs(found.value))


@pytest.mark.claim("summary-eq2", file="optim/cubic.py", old="curved = damping / 2 *", new="curved = damping *")
@given(models())
def test_the_minimiser_of_every_model_or_the_reason_why_there_is_none(model):
    h, g, d, λ = model
    found = minimise_cubic(h, g, d, λ)
    if found.eta is not None:
        check_optimal(found.eta, h, g, d, λ)
        below_random_search(found, h, g, d, λ)
        assert not found.reason
        return
    # unbounded below: there is a direction in the null space of D along which m falls for ever, for some start
    assert found.case == "none"
    assert found.reason
    free = (d == 0) | (λ == 0)
    values, axes = torch.linalg.eigh(h[free][:, free])
    v = torch.zeros(len(g), dtype=torch.float64)
    v[free] = axes[:, 0]
    flat = axes[:, values.abs() < 1e-10]
    null = torch.zeros(len(g), flat.shape[1], dtype=torch.float64)
    null[free] = flat
    falls = values[0] < 0 or (null.T @ g).abs().max() > 0 or (null.T @ h).abs().max() > 0
    assert bool(falls)


@given(models())
def test_the_lengths_of_the_directions_do_not_matter(model):
    """η_k/c_k for directions c_k u_k, of either sign: what makes the method invariant."""
    h, g, d, λ = model
    c = torch.tensor([2.0, -0.125, 1024.0, -4.0, 2.0**-20], dtype=torch.float64)[: len(g)]
    a, b = minimise_cubic(h, g, d, λ), minimise_cubic(h * c * c[:, None], g * c, d * c.abs(), λ)
    assert a.case == b.case
    if a.eta is not None and a.case != "hard":  # which of its two minimisers is a matter of signs
        torch.testing.assert_close(b.eta * c, a.eta, rtol=1e-9, atol=1e-12 * float(a.eta.abs().max()))
    assert a.radius == pytest.approx(b.radius, rel=1e-9, nan_ok=True)


def phi(r: torch.Tensor, h, g, d, λ) -> torch.Tensor:
    """φ(r) = ‖D A(r)⁻¹ḡ‖ − r for each r of a vector."""
    a = h + λ / 2 * r[:, None, None] * torch.diag(d * d)
    return torch.linalg.vector_norm(d * torch.linalg.solve(a, g.expand(len(r), -1)), dim=1) - r


@pytest.mark.claim("summary-case1", file="optim/cubic.py", old="following, high = n, n * (1 + 1e-12)", new="return x, n, 'regular'")  # fmt: skip
def test_definite_models_have_one_root_and_it_is_the_global_minimum():
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        h, g, d = (
            positive_definite(4, rng),
            torch.randn(4, generator=rng).double(),
            torch.rand(4, generator=rng).double(),
        )
        found = minimise_cubic(h, g, d, 1.0)
        r = torch.cat([f64(0.0), torch.logspace(-8, 4, 4000, dtype=torch.float64)])
        signs = phi(r, h, g, d, 1.0) > 0
        assert signs[0]
        assert int((signs[1:] != signs[:-1]).sum()) == 1
        assert r[signs].max() <= found.radius <= r[~signs].min()
        check_optimal(found.eta, h, g, d, 1.0)
        below_random_search(found, h, g, d, 1.0)


@pytest.mark.claim("summary-case2", file="optim/cubic.py", old="        if bool(failed):\n            low = r", new="        if bool(failed) and r:\n            low = r")  # fmt: skip
def test_indefinite_models_have_one_root_above_the_shift_but_in_the_hard_case():
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        a, g = torch.randn(4, 4, generator=rng).double(), torch.randn(4, generator=rng).double()
        h, d, λ = a + a.T, torch.rand(4, generator=rng).double() + 0.1, 0.7
        lowest = float(torch.linalg.eigvalsh(h / d / d[:, None])[0])
        assert lowest < 0
        start = 2 / λ * abs(lowest)
        r = start * (1 + torch.logspace(-12, 8, 4000, dtype=torch.float64))
        signs = phi(r, h, g, d, λ) > 0
        found = minimise_cubic(h, g, d, λ)
        assert signs[0]
        assert int((signs[1:] != signs[:-1]).sum()) == 1
        assert r[signs].max() * (1 - 1e-12) <= found.radius <= r[~signs].min() * (1 + 1e-12)
        check_optimal(found.eta, h, g, d, λ)
        below_random_search(found, h, g, d, λ)


@pytest.mark.claim("summary-case2", file="optim/cubic.py", old="math.sqrt(max(a1 * a1 - a2 * a0, 0.0))", new="0.0")
def test_the_hard_case_has_no_root_and_two_minimisers():
    """E-sum-2: H̄ = diag(−1, 1), D = I, ḡ = (0, 1), λ = 2."""
    h, g, d = torch.diag(f64(-1, 1)), f64(0, 1), f64(1, 1)
    r = 1 + torch.logspace(-12, 8, 2000, dtype=torch.float64)
    assert bool((phi(r, h, g, d, 2.0) < 0).all())  # against "exactly one solution"
    found = minimise_cubic(h, g, d, 2.0)
    assert found.case == "hard"
    torch.testing.assert_close(found.eta, f64(math.sqrt(3) / 2, 0.5), rtol=1e-12, atol=0)
    assert found.value == pytest.approx(float(cubic_model(f64(-math.sqrt(3) / 2, 0.5), h, g, d, 2.0)), rel=1e-14)
    below_random_search(found, h, g, d, 2.0)
    for ε, sign in (
        (1e-3, 1),
        (-1e-3, -1),
        (1e-9, 1),
        (-1e-9, -1),
    ):  # nearly hard: a large component, by the sign of ḡ_1
        near = minimise_cubic(h, f64(ε, 1), d, 2.0)
        assert near.eta[0] == pytest.approx(sign * 0.867, abs=2e-3)
        check_optimal(near.eta, h, f64(ε, 1), d, 2.0)


@pytest.mark.claim("summary-convex", file="optim/cubic.py", old="damping / 6 *", new="-damping / 6 *")
def test_semi_definite_is_enough_for_strict_convexity():
    """E-sum-1: m is strictly convex for singular H̄ ⪰ 0 (0 even) with D ≻ 0, and not convex for any negative eigenvalue."""
    rng = torch.Generator().manual_seed(0)
    d, g = torch.rand(3, generator=rng).double() + 0.1, torch.randn(3, generator=rng).double()
    a = torch.randn(3, 1, generator=rng).double()
    x, y = (torch.randn(500, 3, generator=rng).double() for _ in range(2))
    for h in (torch.zeros(3, 3).double(), a @ a.T):
        middle = cubic_model((x + y) / 2, h, g, d)
        assert bool((middle < (cubic_model(x, h, g, d) + cubic_model(y, h, g, d)) / 2).all())
    h = torch.diag(f64(1, 1, -1e-3))
    e = f64(0, 0, 1e-4)
    assert cubic_model(0 * e, h, g, d) > (cubic_model(e, h, g, d) + cubic_model(-e, h, g, d)) / 2


NONE = "no minimiser"
EDGES = {  # H̄, ḡ, δ, λ -> η
    "D = 0": ([[2, 0], [0, 4]], [2, 2], [0, 0], 1.0, [1, 0.5]),  # where the official solver reports failure (E-sum-6)
    "λ = 0": ([[2, 1], [1, 3]], [4, 7], [1, 1], 0.0, [1, 2]),
    "λ = 0, indefinite": ([[1, 0], [0, -1]], [1, 1], [1, 1], 0.0, NONE),
    "D = 0, a slope without curvature": ([[1, 0], [0, 0]], [1, 1], [0, 0], 1.0, NONE),
    "D = 0, a group that does not move": ([[1, 0], [0, 0]], [3, 0], [0, 0], 1.0, [3, 0]),
    "a group that does not move": ([[0, 0], [0, 0]], [2, 0], [1, 0], 1.0, [2, 0]),
    "all zero": ([[0, 0], [0, 0]], [0, 0], [0, 0], 1.0, [0, 0]),
    "partly zero D, negative there": ([[1, 0], [0, -1]], [1, 1], [1, 0], 1.0, NONE),
    "partly zero D, positive there": ([[0, 0], [0, 2]], [2, 1], [1, 0], 1.0, [2, 0.5]),
    "partly zero D, coupled": ([[0, 1], [1, 0]], [1, 1], [1, 0], 1.0, NONE),
    "partly zero D, H̄ indefinite": ([[-1, 0], [0, 2]], [0, 1], [1, 0], 2.0, [1, 0.5]),
    "no slope, definite": ([[1, 0], [0, 1]], [0, 0], [1, 1], 1.0, [0, 0]),
    "no slope, semi-definite": ([[1, 0], [0, 0]], [0, 0], [1, 1], 1.0, [0, 0]),
    "no slope, indefinite": ([[1, 0], [0, -1]], [0, 0], [1, 1], 2.0, [0, 1]),
    "one group": ([[0]], [2], [1], 1.0, [2]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    *model, λ, eta = EDGES[name]
    h, g, d = (torch.tensor(x, dtype=torch.float64) for x in model)
    found = minimise_cubic(h, g, d, λ)
    if eta == NONE:
        assert found.eta is None
        assert found.value == -math.inf
        assert "cubic term does not act" in found.reason
    else:
        torch.testing.assert_close(found.eta, torch.tensor(eta, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_clipping_may_lose_the_decrease_of_the_model():
    """E-sum-5: H̄ = [[1, .9], [.9, 1]], ḡ = (1, ½)."""
    h, g, d = f64([1, 0.9], [0.9, 1]), f64(1, 0.5), f64(0, 0)
    found = minimise_cubic(h, g, d, 0.0)
    torch.testing.assert_close(found.eta, f64(0.55, -0.4) / 0.19, rtol=1e-12, atol=0)
    assert found.value < 0
    clipped = found.eta.clamp(min=0)
    assert cubic_model(clipped, h, g, d) == pytest.approx(1.295, abs=1e-3)
    assert cubic_model(0.69 * clipped, h, g, d) < 0


def test_rounding_instead_of_third_derivatives_changes_nothing():
    """Where autodiff leaves 1e-17 for a zero third derivative, δ is its cube root: 1e-6."""
    h, g = positive_definite(4, torch.Generator().manual_seed(1)), f64(1, 2, 3, 4)
    exact = minimise_cubic(h, g, f64(0, 0, 0, 0)).eta
    torch.testing.assert_close(minimise_cubic(h, g, f64(1e-6, 0, 3e-6, 2e-7)).eta, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(minimise_cubic(h, g, f64(1e-6, 1, 0, 1)).eta, minimise_cubic(h, g, f64(0, 1, 0, 1)).eta)


def test_bad_models_are_refused():
    h, g, d = torch.eye(2).double(), f64(1, 1), f64(1, 1)
    for model, words in [
        ((h, g[:1], d), "give \\(S, S\\)"),
        ((h, g, f64(1)), "give \\(S, S\\)"),
        ((h, f64(1, math.nan), d), "finite"),
        ((h, g, f64(1, -1)), "negative"),
        ((h, g, d, -1.0), "negative"),
        ((f64([1, 2], [0, 1]), g, d), "symmetric"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            minimise_cubic(*model)
