"""Truncated conjugate gradients on explicit matrices, in float64, and what the lines of the paper do instead."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from reprolib.optim.cg import FLAT, FLOOR, Krylov, truncated_cg

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
EXACT = {"max_iter": 100, "tolerance": 1e-14}


def spd(n: int, seed: int = 0, smallest: float = 1.0) -> torch.Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + smallest * torch.eye(n, dtype=torch.float64)


def vector(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def solve(H: torch.Tensor, g: torch.Tensor, start: torch.Tensor | None = None, **options) -> Krylov:
    return truncated_cg(lambda p: (H @ p[0],), (g,), None if start is None else (start,), **options)


def path(H: torch.Tensor, g: torch.Tensor, n: int, **options) -> list[torch.Tensor]:
    """Δ after 0, 1, … n iterations."""
    options = {"tolerance": 0.0} | options
    steps = [solve(H, g, max_iter=k, **options).direction[0] for k in range(1, n + 1)]
    return [torch.zeros_like(g), *steps]


def energy(H: torch.Tensor, g: torch.Tensor, Δ: torch.Tensor) -> float:
    """E_Q, eq. (12)."""
    return float(g @ Δ + 0.5 * Δ @ H @ Δ)


# ---- closed forms


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_it_solves_the_newton_system(n):
    H, g = spd(n), vector(n)
    found = solve(H, g, **EXACT)
    torch.testing.assert_close(found.direction[0], -torch.linalg.solve(H, g), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.image[0], H @ found.direction[0], rtol=1e-8, atol=1e-10)
    assert found.stopped == "tolerance"
    assert found.floored == 0


def test_as_many_iterations_as_different_eigenvalues():
    g = vector(6)
    assert solve(diagonal(1, 1, 1, 5, 5, 5), g, max_iter=20, tolerance=1e-10).iterations == 2
    assert solve(diagonal(3, 3, 3, 3, 3, 3), g, max_iter=20, tolerance=1e-10).iterations == 1


def test_one_iteration_is_the_cauchy_step():
    H, g = spd(5), vector(5)
    found = solve(H, g, max_iter=1)
    torch.testing.assert_close(found.direction[0], -(g @ g) / (g @ H @ g) * g, **CLOSE)
    assert (found.iterations, found.stopped) == (1, "iterations")


def test_k_iterations_minimise_the_model_over_the_krylov_space():
    H, g = spd(6), vector(6)
    for k, Δ in enumerate(path(H, g, 5)[1:], start=1):
        V = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(H, i) @ g for i in range(k)], 1))[0]
        torch.testing.assert_close(Δ, V @ torch.linalg.solve(V.T @ H @ V, -(V.T @ g)), rtol=1e-7, atol=1e-9)


def test_the_tolerance_is_relative_to_the_gradient():
    H, g = spd(8, smallest=0.1), vector(8)
    for scale in (1e-6, 1.0, 1e6):
        found = solve(H, scale * g, tolerance=0.1, max_iter=50)
        assert (H @ found.direction[0] + scale * g).norm() <= 0.1 * scale * g.norm()
        assert found.iterations == solve(H, g, tolerance=0.1, max_iter=50).iterations
    assert solve(H, 0 * g).stopped == "tolerance"
    assert solve(H, 0 * g).iterations == 0


def test_tensors_of_several_shapes_are_one_vector():
    H, g = spd(10), vector(10)
    shapes = [(2, 3), (4,)]
    split = lambda v: tuple(x.view(s) for x, s in zip(v.split([6, 4]), shapes, strict=True))
    join = lambda t: torch.cat([x.flatten() for x in t])
    found = truncated_cg(lambda p: split(H @ join(p)), split(g), **EXACT)
    assert [tuple(x.shape) for x in found.direction] == shapes
    torch.testing.assert_close(join(found.direction), -torch.linalg.solve(H, g), rtol=1e-8, atol=1e-10)


# ---- warm start


def test_a_warm_start_continues_from_where_it_is():
    H, g = spd(6), vector(6)
    exact = -torch.linalg.solve(H, g)
    found = solve(H, g, exact)
    assert found.iterations == 0
    assert torch.equal(found.direction[0], exact)
    near = solve(H, g, exact + 1e-3 * vector(6, 2), max_iter=2)
    cold = solve(H, g, max_iter=2)
    assert energy(H, g, near.direction[0]) < energy(H, g, cold.direction[0])
    torch.testing.assert_close(near.image[0], H @ near.direction[0], **CLOSE)
    # far away it takes longer, but does not stop sooner
    far = solve(H, g, 1e3 * vector(6, 3), max_iter=100)
    assert (H @ far.direction[0] + g).norm() <= 1.1e-3 * g.norm()


@pytest.mark.claim("csdd-krylovdescent", file="optim/cg.py", old="r = tuple(-x for x in g) if start is None", new="r = tuple(x for x in g) if start is None")  # fmt: skip
def test_the_direction_descends_from_zero_but_not_from_a_warm_start():
    for seed in range(30):
        for H in (spd(6, seed), spd(6, seed, smallest=-2.0)):  # truncated where the curvature is negative
            g = vector(6, 100 + seed)
            for k in range(1, 7):
                assert g @ solve(H, g, max_iter=k, tolerance=0.0).direction[0] <= 0
    H, g = diagonal(1, 10), torch.tensor([1.0, 0.0], dtype=torch.float64)
    start = torch.tensor([3.0, 0.1], dtype=torch.float64)
    found = solve(H, g, start, max_iter=1)
    assert g @ found.direction[0] > 0  # an ascent direction, after an iteration along positive curvature
    assert found.stopped == "iterations"


@pytest.mark.claim("csdd-mono", file="optim/cg.py", old="Δ, r = _plus(Δ, α, p), _plus(r, -α, q)", new="Δ, r = _plus(Δ, α, p), _plus(r, -0.5 * α, q)")  # fmt: skip
def test_the_length_grows_with_every_iteration_on_positive_definite_systems():
    for seed in range(30):
        H, g = spd(8, seed, smallest=0.01), vector(8, 100 + seed)
        steps = path(H, g, 8)
        lengths = [float(Δ.norm()) for Δ in steps]
        assert all(b > a for a, b in pairwise(lengths))
        energies = [energy(H, g, Δ) for Δ in steps]
        assert all(b < a for a, b in pairwise(energies))
    # with α as printed, a small gradient's steps overshoot and the energy rises
    H, g = spd(8, smallest=0.01), 0.01 * vector(8)
    assert energy(H, g, path(H, g, 8, printed=["alpha"])[-1]) > 0


# ---- negative curvature


def test_it_leaves_at_the_first_direction_of_negative_curvature():
    H, g = diagonal(2, -1), torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = solve(H, g)  # gᵀHg < 0 at once
    assert (found.iterations, found.stopped) == (0, "negative curvature")
    assert not found.direction[0].any()
    H, g = diagonal(5, 4, -1), torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
    found, plain = solve(H, g), solve(H, g, truncate=False, **EXACT)
    assert (found.iterations, found.stopped) == (2, "negative curvature")
    assert torch.equal(found.direction[0], solve(H, g, max_iter=2).direction[0])
    torch.testing.assert_close(plain.direction[0], -torch.linalg.solve(H, g), **CLOSE)  # the saddle point
    assert plain.stopped == "tolerance"


def test_what_is_not_finite_ends_it():
    H, g = spd(3), vector(3)
    assert solve(H, math.nan * g).stopped == "not finite"
    assert solve(math.inf * H, g).stopped == "not finite"


# ---- the lines as printed


@pytest.mark.claim("csdd-alg1", file="optim/cg.py", old="before, rr = rr, float(inner(r, r))", new="before, rr = math.sqrt(rr), float(inner(r, r))")  # fmt: skip
def test_line_21_is_not_invariant_to_the_scale_of_the_gradient():
    """E-cs-3: α = ‖r‖²/κ. With ‖r‖/κ the residual after as many iterations as unknowns depends on the units of g."""
    H, g = spd(10), vector(10)

    def residual(scale: float, **options) -> float:
        Δ = solve(H, scale * g, max_iter=10, tolerance=0.0, **options).direction[0]
        return float((H @ Δ + scale * g).norm() / (scale * g.norm()))

    scales = (1e-3, 1.0, 1e3)
    assert all(residual(s) < 1e-6 for s in scales)
    printed = [residual(s, printed=["alpha"]) for s in scales]
    assert printed[0] > 1  # steps 1/‖r‖ too long
    assert printed[2] == pytest.approx(1, abs=0.05)  # and too short
    assert printed[1] > 1e-3
    # by hand: one iteration goes 1/‖g‖ of the way
    one, right = (solve(H, g, max_iter=1, printed=p).direction[0] for p in (["alpha"], []))
    torch.testing.assert_close(one, right / g.norm(), **CLOSE)


@pytest.mark.claim("csdd-alg1", file="optim/cg.py", old="flat, floor = 0 <= κ < FLAT * pp, FLOOR * pp", new="flat, floor = 0 <= κ < FLAT, FLOOR * math.sqrt(pp)")  # fmt: skip
@pytest.mark.claim("csdd-flat", file="optim/cg.py", old="flat, floor = 0 <= κ < FLAT * pp, FLOOR * pp", new="flat, floor = 0 < κ < FLAT * pp, FLOOR * pp")  # fmt: skip
def test_line_18_compares_a_curvature_with_a_number_of_other_units():
    """E-cs-4, contradicted: the printed rule changes its mind when g is scaled, and divides by κ = 0."""
    g = torch.tensor([1.0, 0.0], dtype=torch.float64)
    H = diagonal(1e-4, 1.0)
    for scale in (1e-4, 1.0, 1e4):  # not flat: Newton's step
        found = solve(H, scale * g)
        assert found.floored == 0
        torch.testing.assert_close(found.direction[0], -1e4 * scale * g, **CLOSE)
    floored = [solve(H, scale * g, max_iter=1, printed=["floor"]).floored for scale in (1e-4, 1.0, 1e4)]
    assert floored == [1, 0, 0]
    H = diagonal(1e-9, 1.0)
    for scale in (1e-4, 1.0, 1e4):  # flat: κ = 0.01‖p‖², so 100 times the gradient
        found = solve(H, scale * g, max_iter=1)
        assert found.floored == 1
        torch.testing.assert_close(found.direction[0], -scale * g / FLOOR, **CLOSE)
    steps = [float(-solve(H, s * g, max_iter=1, printed=["floor"]).direction[0][0] / s) for s in (1e-2, 1e-1, 1.0)]
    assert steps[0] < 0.2 * steps[1] < 0.04 * steps[2] + 1e-9  # as printed: ‖p‖/0.01 times the gradient
    singular = diagonal(0.0, 1.0)
    assert solve(singular, g, max_iter=1).direction[0].isfinite().all()
    assert not solve(singular, g, max_iter=1, printed=["floor"]).direction[0].isfinite().all()
    assert FLAT == 1e-8


@pytest.mark.claim("csdd-fig2", file="optim/cg.py", old="if truncate and κ < 0:", new="if κ < 0:")
def test_the_three_systems_of_figure_2():
    """SPD: the residual may rise while E_Q falls. Singular: it falls too. Indefinite: it oscillates. LSCG misleads."""
    n = 20
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]

    def system(eigenvalues: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        H = Q @ torch.diag(eigenvalues) @ Q.T
        return (H + H.T) / 2, vector(n, seed)

    def curves(H, g, steps):
        return [float((H @ Δ + g).norm()) for Δ in steps], [energy(H, g, Δ) for Δ in steps]

    positive = torch.logspace(-3, 1, n, dtype=torch.float64)
    H, g = system(positive, 1)
    residuals, energies = curves(H, g, path(H, g, 15))
    assert any(b > 1.1 * a for a, b in pairwise(residuals))
    assert all(b < a for a, b in pairwise(energies))

    # LSCG solves HᵀHΔ = −Hᵀg: its residual falls all the time, and says nothing of E_Q, which lags behind
    least_squares = [truncated_cg(lambda p: (H @ (H @ p[0]),), (H @ g,), max_iter=k, tolerance=0.0).direction[0] for k in range(1, 16)]  # fmt: skip
    ls_residuals, ls_energies = curves(H, g, [torch.zeros_like(g), *least_squares])
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(ls_residuals))
    assert all(a < b for a, b in zip(ls_residuals[1:11], residuals[1:11], strict=True))  # smaller than those of CG
    assert ls_energies[-1] > 0.2 * energies[-1]

    # singular, g partly in the kernel: nothing solves it; E_Q falls as long as there is no flat direction
    H, g = system(torch.where(positive < 0.01, 0.0, positive), 2)
    residuals, energies = curves(H, g, path(H, g, 8))
    assert residuals[-1] > 1e-3
    assert all(b < a for a, b in pairwise(energies))

    # indefinite: plain CG goes up and down, and far; truncated it stops before
    H, g = system(torch.linspace(-3, 10, n, dtype=torch.float64), 4)
    _, energies = curves(H, g, path(H, g, 15, truncate=False))
    ups = [b > a for a, b in pairwise(energies)]
    assert any(ups) and not all(ups)
    found = solve(H, g)
    assert found.stopped == "negative curvature"
    _, energies = curves(H, g, path(H, g, found.iterations))
    assert all(b < a for a, b in pairwise(energies))
