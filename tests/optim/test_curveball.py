"""CurveBall against the paper's statements, in float64. The claim ids are those of book/claims.yaml."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reprolib.bench.harness import peak_memory
from reprolib.curvature import expand
from reprolib.errors import InvalidInput, ModelConsumed, SkippedStep, UnknownName
from reprolib.optim import Adler, CurveBall, curveball
from reprolib.optim.curveball import coefficients, convergence_rate, converges, eigenvalues, transition
from reprolib.tasks.toy import with_spectrum
from tests.optim import several_ranks
from tests.optim.common import (
    ARCHITECTURES,
    CLOSE,
    NoLooking,
    architecture,
    ggn,
    gradient,
    leaf,
    parameters,
    random_net,
    train,
)


def cross_entropy(y):
    return lambda o: F.cross_entropy(o, y, reduction="none")


def half_square(o):
    return 0.5 * o.square().sum(1)


def quadratic(H: torch.Tensor, b: torch.Tensor | None = None):
    """(θ, closure, loss) with G = H, J = ½ θᵀHθ − bᵀθ: one sample of squares of H^½ (θ − H⁻¹b)."""
    values, vectors = torch.linalg.eigh(H)
    root = vectors * values.clamp(min=0).sqrt()
    centre = torch.zeros(len(H), dtype=H.dtype) if b is None else torch.linalg.solve(H, b)
    θ = torch.zeros(len(H), dtype=H.dtype, requires_grad=True)
    return θ, lambda: ((θ - centre) @ root)[None], half_square


def by_hand(C: torch.Tensor, g: torch.Tensor, z: torch.Tensor, lr=None, momentum=None):
    """(β, ρ, new z): Algorithm 1 with eq. (18) on explicit matrices."""
    Δ = C @ z + g
    if lr is None and momentum is None:
        V = torch.stack([Δ, z], 1)
        β, ρ = torch.linalg.pinv(V.T @ C @ V, rtol=1e-14) @ (V.T @ g)
        ρ = -ρ
    elif lr is None:
        ρ = torch.tensor(momentum, dtype=g.dtype)
        β = (g @ Δ + ρ * (z @ C @ Δ)) / (Δ @ C @ Δ)
    elif momentum is None:
        β = torch.tensor(lr, dtype=g.dtype)
        ρ = (β * (z @ C @ Δ) - g @ z) / (z @ C @ z) if z.norm() else torch.zeros((), dtype=g.dtype)
    else:
        β, ρ = (torch.tensor(v, dtype=g.dtype) for v in (lr, momentum))
    return β, ρ, ρ * z - β * Δ


# ---- the step


@pytest.mark.claim(
    "curveball-alg1", file="optim/curveball.py", old=".addcmul_(v, ρ.to(v))", new=".addcmul_(v, 0.9 * ρ.to(v))"
)
@pytest.mark.claim("curveball-alg1", file="optim/curveball.py", old="model.vjp(Λa + e), z,", new="model.vjp(e), z,")
@pytest.mark.parametrize("λ2", [0.0, 0.05])
@pytest.mark.parametrize("fixed", [{}, {"lr": 0.3}, {"momentum": 1.0}, {"lr": 0.3, "momentum": 0.8}], ids=str)
def test_algorithm_1_line_by_line(fixed, λ2):
    """Δ = (G + λI)z + g, z ← ρz − βΔ, θ ← θ + z from explicit matrices; fixed coefficients stay, the others minimise."""
    net, batches = random_net()
    opt = CurveBall(net.parameters(), damping=0.2, auto_damping=False, weight_decay=λ2, **fixed)
    z = torch.zeros_like(parameters(net))
    eye = torch.eye(len(z), dtype=z.dtype)
    for x, y in batches[:5]:
        θ, g, C = parameters(net), gradient(net, x, y, λ2), ggn(net, x) + (0.2 + λ2) * eye
        β, ρ, z = by_hand(C, g, z, **fixed)
        mean = F.cross_entropy(net(x), y).detach()
        train(net, [(x, y)], opt)
        torch.testing.assert_close(parameters(net), θ + z, **CLOSE)
        d = opt.diagnostics
        torch.testing.assert_close(d["step"], β, **CLOSE)
        torch.testing.assert_close(d["momentum"], ρ, **CLOSE)
        torch.testing.assert_close(d["direction_norm"], z.norm(), **CLOSE)
        torch.testing.assert_close(d["objective"], mean + λ2 / 2 * θ @ θ, **CLOSE)
        assert d["damping"] == 0.2
        if len(fixed) < 2:
            torch.testing.assert_close(d["slope"], g @ z, **CLOSE)
            torch.testing.assert_close(d["predicted"], g @ z + 0.5 * z @ C @ z, **CLOSE)


def test_least_squares_in_closed_form():
    """J = mean (Xθ − y)²: G = 2XᵀX/B is the Hessian. The first step with λ = 0 is Cauchy's; two unknowns take three."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 2, generator=g, dtype=torch.float64), torch.randn(9, generator=g, dtype=torch.float64)
    θ = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    opt = CurveBall([θ], damping=0.0, auto_damping=False)
    H, slope = 2 * x.T @ x / 9, -2 * x.T @ y / 9
    for k in range(3):
        opt.step(lambda: x @ θ, lambda o: (o - y).square())
        if k == 0:
            torch.testing.assert_close(θ.detach(), -(slope @ slope) / (slope @ H @ slope) * slope, **CLOSE)
    torch.testing.assert_close(θ.detach(), torch.linalg.lstsq(x, y[:, None]).solution[:, 0], rtol=1e-9, atol=1e-10)


@pytest.mark.claim(
    "curveball-auto",
    file="optim/curveball.py",
    old="for x, w in ((u + v, r), (u - v, -r))",
    new="for x, w in ((u + v, 0 * r), (u - v, 0 * r))",
)
def test_automatic_coefficients_minimise_the_model():
    """(18) and (25) are one system; its solution is that of a grid search and of a least-norm solver; scale-free."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        C = with_spectrum([0.01, 0.1, 1.0, 10.0, 100.0], g)
        Δ, z, slope = torch.randn(3, 5, generator=g, dtype=torch.float64)
        for size in (1.0, 1e-6, 1e6):
            u = size * z
            M = torch.stack([Δ @ C @ Δ, u @ C @ Δ, u @ C @ u])
            β, ρ = coefficients(*M, slope @ Δ, slope @ u)
            V = torch.stack([Δ, u], 1)
            if size == 1.0:
                first = torch.linalg.inv(V.T @ C @ V) @ (V.T @ slope)  # (18)
                W = V.flip(1)
                second = torch.linalg.inv(W.T @ C @ W) @ (W.T @ slope)  # (25)
                for solved in (first, second.flip(0)):
                    torch.testing.assert_close(torch.stack([β, -ρ]), solved, rtol=1e-8, atol=1e-10)
            f = lambda b, r: slope @ (r * u - b * Δ) + 0.5 * (r * u - b * Δ) @ C @ (r * u - b * Δ)
            best = f(β, ρ)
            for b in (0.9, 1.0, 1.1):
                for r in (0.9, 1.0, 1.1):
                    assert f(b * β, r * ρ) >= best - 1e-12 * abs(best)
            torch.testing.assert_close(best, 0.5 * slope @ (ρ * u - β * Δ), rtol=1e-8, atol=1e-12)


def test_singular_systems_have_the_solution_of_least_norm():
    one = torch.ones((), dtype=torch.float64)
    zero = 0 * one
    assert coefficients(2 * one, zero, zero, 3 * one, zero) == (pytest.approx(1.5), 0)  # z = 0
    assert coefficients(zero, zero, 2 * one, zero, 3 * one) == (0, pytest.approx(-1.5))  # Δ = 0
    assert coefficients(zero, zero, zero, zero, zero) == (0, 0)
    β, ρ = coefficients(2 * one, 2 * one, 2 * one, 3 * one, 3 * one)  # z = Δ: the step is −(β − ρ)Δ
    assert (β - ρ).item() == pytest.approx(1.5)
    β, ρ = coefficients(one, -1e3 * one, 1e6 * one, one, -1e3 * one)  # z = −1000 Δ: β + 1000 ρ
    assert (β + 1e3 * ρ).item() == pytest.approx(1.0)
    for bad in ((zero, zero, zero, one, zero), (-one, zero, one, one, one), (one, 2 * one, one, one, one)):
        assert not all(torch.isfinite(v) for v in coefficients(*bad))  # no minimum
    for given in ((0.1, None), (None, 0.9), (0.1, 0.9)):
        β, ρ = coefficients(2 * one, one, 3 * one, one, one, *given)
        assert given[0] in (None, β.item())
        assert given[1] in (None, ρ.item())


@pytest.mark.claim("curveball-rhoreg", file="optim/curveball.py", old=".addcmul_(v, ρ.to(v))", new=".add_(v)")
def test_rho_is_a_penalty_on_z():
    """The gradient step β on f̂(z) + c‖z‖² is ρz − βΔ for c = (1 − ρ)/(2β), not for the printed 1 − ρ (E-cb-1)."""
    net, batches = random_net()
    β, ρ, λ = 0.2, 0.7, 0.1
    opt = CurveBall(net.parameters(), lr=β, momentum=ρ, damping=λ, auto_damping=False)
    train(net, batches, opt, 2)
    z = torch.cat([opt.state[p]["z"].flatten() for p in net.parameters()]).clone()
    (x, y), before = batches[2], parameters(net)
    g, C = gradient(net, x, y), ggn(net, x) + λ * torch.eye(len(z), dtype=z.dtype)
    train(net, [(x, y)], opt)
    for c, right in (((1 - ρ) / (2 * β), True), (1 - ρ, False)):
        v = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(g @ v + 0.5 * v @ C @ v + c * v @ v, v)
        assert torch.allclose(parameters(net) - before, z - β * slope, rtol=1e-10, atol=1e-12) == right


@pytest.mark.claim("curveball-c06", file="optim/curveball.py", old="model.vjp(Λa + e), z,", new="model.vjp(e), z,")
def test_lissas_recursion_is_rho_one_beta_one():
    """Z ← z − Hz − g, whose fixed point is −H⁻¹g: the partial sums of the Neumann series if θ is held."""
    H = with_spectrum([0.1, 0.4, 0.9], torch.Generator().manual_seed(0))
    b = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    θ, closure, loss = quadratic(H, b)
    opt = CurveBall([θ], lr=1.0, momentum=1.0, damping=0.0, auto_damping=False)
    z, at, series = torch.zeros(3, dtype=torch.float64), θ.detach().clone(), torch.zeros(3, dtype=torch.float64)
    for _ in range(6):
        opt.step(closure, loss)
        z = z - H @ z - (H @ at - b)
        at = at + z
        torch.testing.assert_close(θ.detach(), at, **CLOSE)
    held, closure, loss = quadratic(H, b)
    opt = CurveBall([held], lr=1.0, momentum=1.0, damping=0.0, auto_damping=False)
    for k in range(6):
        opt.step(closure, loss)
        series = series + torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - H, k) @ b
        torch.testing.assert_close(opt.state[held]["z"], series, **CLOSE)
        with torch.no_grad():
            held.zero_()


@pytest.mark.claim(
    "curveball-mom",
    file="optim/curveball.py",
    old="return x.add(p, alpha=weight) if weight else x.clone()",
    new="return x.clone()",
)
def test_without_the_curvature_term_it_is_momentum_sgd():
    net, batches = random_net()
    twin = copy.deepcopy(net)
    opt = CurveBall(net.parameters(), lr=0.1, momentum=0.9, every=100, weight_decay=0.01)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for x, y in batches:
        train(net, [(x, y)], opt)
        sgd.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        sgd.step()
        torch.testing.assert_close(parameters(net), parameters(twin), **CLOSE)


@pytest.mark.claim(
    "curveball-gamma",
    file="optim/curveball.py",
    old="(ratio > 1.5).to(exponent) - (ratio < 0.5)",
    new="(ratio < 0.5).to(exponent) - (ratio > 1.5)",
)
@pytest.mark.claim("curveball-gamma", file="optim/curveball.py", old='"text": 0.999}', new='"text": 0.99}')
@pytest.mark.parametrize("factor", ["official", "text"])
@pytest.mark.parametrize("λ2", [0.0, 0.05])
def test_gamma_and_the_rule_for_the_damping(factor, λ2):
    """λ0 f^(how often γ > 3/2 minus how often γ < ½), γ by hand every fifth step; 0.21 or 4.0e-4 after 20 epochs at most."""
    f = {"text": 0.999, "official": 0.999**5}[factor]
    net, batches = random_net()
    opt = CurveBall(net.parameters(), damping=0.5, factor=factor, weight_decay=λ2)
    eye, expected = torch.eye(len(parameters(net)), dtype=torch.float64), 0.5
    J = lambda x, y: (F.cross_entropy(net(x), y) + λ2 / 2 * parameters(net).square().sum()).detach()
    z = torch.zeros(len(eye), dtype=torch.float64)
    for k, (x, y) in enumerate(2 * batches, start=1):
        before, g, C = J(x, y), gradient(net, x, y, λ2), ggn(net, x) + (expected + λ2) * eye
        *_, z = by_hand(C, g, z)
        train(net, [(x, y)], opt)
        assert opt.diagnostics["damping"] == pytest.approx(expected, rel=1e-12)
        if k % 5:
            assert opt.diagnostics["ratio"].isnan()
            continue
        γ = float((J(x, y) - before) / (g @ z + 0.5 * z @ C @ z))
        assert opt.diagnostics["ratio"] == pytest.approx(γ, rel=1e-7)
        expected *= f if γ > 1.5 else 1 / f if γ < 0.5 else 1
    assert f ** (20 * 391 // 5) == pytest.approx({"text": 0.21, "official": 4.0e-4}[factor], rel=0.02)


def test_gamma_has_its_three_answers():
    """A quadratic without λ: 1. With λ far above the curvature: towards 2. |o|^1.5, where Newton's step jumps across: 0."""
    for loss, damping, ratio, change in [
        (half_square, 0.0, 1.0, 1.0),
        (half_square, 1e3, 2 - 1 / 1001, 0.999**5),
        (lambda o: o.abs().pow(1.5).sum(1), 1e-9, 0.0, 0.999**-5),
    ]:
        θ = leaf(2.0)
        opt = CurveBall([θ], damping=damping, test_every=1)
        step = lambda: opt.step(lambda: θ[None], loss)
        step()
        assert opt.diagnostics["ratio"] == pytest.approx(ratio, abs=1e-6)
        opt.param_groups[0]["auto_damping"] = False
        step()
        assert opt.diagnostics["damping"] == pytest.approx(damping * change, rel=1e-12)


def test_the_new_loss_is_of_the_same_batch_without_effects():
    """`loss_at`: same dropout mask, batch-norm statistics, counters and random numbers as if it had not been asked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    params, seed = list(net.parameters()), 7
    d = tuple(0.1 * torch.randn_like(p) for p in params)
    torch.manual_seed(seed)
    model = expand(lambda: net(x), cross_entropy(y), params, "ggn", retain=True)
    state, buffers = torch.get_rng_state(), [b.clone() for b in net.buffers()]
    after = model.loss_at(d)
    assert model.loss_at(tuple(torch.zeros_like(p) for p in params)) == model.loss
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    shifted = copy.deepcopy(net)
    with torch.no_grad():
        for p, v in zip(shifted.parameters(), d, strict=True):
            p += v
    torch.manual_seed(seed)
    torch.testing.assert_close(after, F.cross_entropy(shifted(x), y).detach(), rtol=1e-14, atol=0)
    model.close()
    with pytest.raises(ModelConsumed):
        model.loss_at(d)
    # in micro-batches each has its own mask
    torch.manual_seed(seed)
    pairs = [(lambda a=a: net(a), cross_entropy(b)) for a, b in zip(x.split([5, 7]), y.split([5, 7]), strict=True)]
    parts = expand(pairs, None, params, "ggn", retain=True)
    torch.testing.assert_close(parts.loss_at(tuple(torch.zeros_like(p) for p in params)), parts.loss, **CLOSE)
    torch.manual_seed(seed)
    expected = sum(
        F.cross_entropy(shifted(a), b, reduction="sum") for a, b in zip(x.split([5, 7]), y.split([5, 7]), strict=True)
    )
    torch.testing.assert_close(parts.loss_at(d), expected.detach() / 12, **CLOSE)
    parts.close()
    with pytest.raises(ModelConsumed):
        parts.loss_at(d)


def test_a_loss_that_the_test_finds_infinite_is_not_stepped_into():
    θ = leaf(1.0)
    opt = CurveBall([θ], damping=0.0, test_every=1)
    with pytest.warns(SkippedStep, match="must be finite"):
        opt.step(lambda: θ[None], lambda o: torch.where(o < 0.9, math.inf, 0.5 * o.square()).sum(1))
    assert (θ.item(), opt.skipped) == (1.0, 1)


def test_every_other_step_is_momentum():
    """every=3: curvature steps 1, 4, 7, … by hand; between them z ← ρz − βg with their coefficients, clipped."""
    net, batches = random_net()
    opt = CurveBall(net.parameters(), damping=0.3, auto_damping=False, every=3)
    z, β, ρ = torch.zeros_like(parameters(net)), None, None
    for k, (x, y) in enumerate(batches):
        θ, g = parameters(net), gradient(net, x, y)
        if k % 3 == 0:
            β, ρ, z = by_hand(ggn(net, x) + 0.3 * torch.eye(len(z), dtype=z.dtype), g, z)
            β, ρ = β.clamp(min=0), ρ.clamp(0, 1)
        else:
            z = ρ * z - β * g
        train(net, [(x, y)], opt)
        torch.testing.assert_close(parameters(net), θ + z, rtol=1e-9, atol=1e-11)
    net, batches = random_net()
    twice = CurveBall(net.parameters(), every=2, test_every=2, damping=1.0)
    tested = [bool(train(net, [b], twice) and twice.diagnostics["ratio"].isfinite()) for b in batches]
    assert [i for i, t in enumerate(tested) if t] == [2, 6, 10]


@pytest.mark.claim(
    "curveball-cost",
    file="optim/curveball.py",
    old="a = torch.zeros_like(e) if fresh else model.jvp(z)",
    new="a = torch.zeros_like(e) + model.jvp(z)\n        a = a + 0 * model.jvp(z)",
)
def test_cost_and_memory():
    """Nine square layers, as matrix products: forward n, backward 2n − 1, two tangents of 2n − 1, and n per test.

    So two tangents are four forward passes, a step with a test every fifth 2.4 gradients (E-cb-8). One vector is kept.
    """
    n, width, batch = 9, 8, 16
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(n) for m in (nn.Linear(width, width, bias=False), nn.Tanh()))).double()
    x = torch.randn(batch, width, dtype=torch.float64)
    opt = CurveBall(net.parameters())
    counts = []
    for _ in range(6):
        with FlopCounterMode(display=False) as counter:
            opt.step(lambda: net(x), half_square)
        counts.append(counter.get_total_flops() / (2 * batch * width * width))
    plain = n + (2 * n - 1) + 2 * (2 * n - 1)
    assert counts[1:] == [plain] * 3 + [plain + n] + [plain]
    assert (plain + n / 5) / (3 * n - 1) == pytest.approx(2.4, abs=0.05)
    state = sum(v.numel() for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    assert state == sum(p.numel() for p in net.parameters()) + 3  # z and three numbers

    wide = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())))
    x, sgd = torch.randn(512, 64), torch.optim.SGD(wide.parameters(), lr=0.0, momentum=0.9)

    def momentum():
        sgd.zero_grad()
        half_square(wide(x)).mean().backward()
        sgd.step()

    opt = CurveBall(wide.parameters(), lr=0.0, momentum=None, check_every=10**6)
    opt.step(lambda: wide(x), half_square)
    ratio = peak_memory(lambda: opt.step(lambda: wide(x), half_square), "cpu") / peak_memory(momentum, "cpu")
    assert ratio < 2


# ---- Theorem A.1: fixed coefficients on quadratics


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    """(ρ, βh): 200 × 250 points around the region of Figure 4."""
    ρ, βh = torch.linspace(0.005, 1.995, 200).double(), torch.linspace(0.004, 2.4961, 250).double()
    return tuple(torch.meshgrid(ρ, βh, indexing="ij"))


@pytest.mark.claim(
    "curveball-thmA1", file="optim/curveball.py", old="(1.5 * beta_h - 1 < rho)", new="(beta_h - 1 < rho)"
)
def test_theorem_a1_on_a_grid_and_in_the_optimizer():
    """3βh_max/2 − 1 < ρ < 1 + βh_min iff the spectral radius is below 1: 50,000 points; and CurveBall on quadratics."""
    ρ, βh = grid()
    radius = torch.linalg.eigvals(transition(ρ, βh)).abs().amax(-1)
    assert torch.equal(converges(ρ, βh), radius < 1)
    H = with_spectrum([0.5, 1.0, 4.0], torch.Generator().manual_seed(0))
    one = torch.ones((), dtype=torch.float64)
    for lr, momentum in ((0.3, 0.9), (0.1, 0.95), (0.3, 0.75), (0.3, 0.85), (0.1, 1.03), (0.1, 1.07)):
        inside = 1.5 * lr * 4 - 1 < momentum < 1 + lr * 0.5
        θ, closure, loss = quadratic(H)
        with torch.no_grad():
            θ += torch.tensor([1.0, -2.0, 3.0])
        opt = CurveBall([θ], lr=lr, momentum=momentum, damping=0.0, auto_damping=False)
        sizes = [θ.detach().norm()]
        for _ in range(300):
            opt.step(closure, loss)
            sizes.append(θ.detach().norm())
            if not 1e-20 < sizes[-1] < 1e20:
                break
        k = len(sizes) - 1
        rate = max(float(convergence_rate(momentum * one, lr * h * one)) for h in (0.5, 1.0, 4.0))
        assert (rate < 1) == inside == bool(sizes[-1] < sizes[0])
        assert float((sizes[-1] / sizes[0]).log() / k) == pytest.approx(math.log(rate), abs=0.03)  # linearly


def test_damping_only_shifts_rho():
    """λ in the place of ρ − βλ, exactly (footnote 6)."""
    H = with_spectrum([0.5, 1.0, 4.0], torch.Generator().manual_seed(0))
    paths = []
    for momentum, damping in ((0.9, 0.5), (0.9 - 0.2 * 0.5, 0.0)):
        θ, closure, loss = quadratic(H, torch.ones(3, dtype=torch.float64))
        opt = CurveBall([θ], lr=0.2, momentum=momentum, damping=damping, auto_damping=False)
        for _ in range(5):
            opt.step(closure, loss)
        paths.append(θ.detach().clone())
    torch.testing.assert_close(*paths, **CLOSE)


@pytest.mark.claim(
    "curveball-corA11",
    file="optim/curveball.py",
    old="x.mul_(-β).addcmul_(v, ρ.to(v))",
    new="x.mul_(-β).addcmul_(v, ρ.to(v)).add_(1e-3)",
)
def test_corollary_any_rho_below_one_converges_if_the_step_is_small():
    """Also with h_min = 0, where an eigenvalue is 1: to a minimiser, what lies in the null space stays."""
    g = torch.Generator().manual_seed(0)
    for momentum in (0.1, 0.5, 0.99):
        H = with_spectrum([0.0, 0.0, 1.0, 2.0, 20.0], g)
        θ, closure, loss = quadratic(H)
        with torch.no_grad():
            θ += torch.randn(5, generator=g, dtype=torch.float64)
        start = θ.detach().clone()
        null = torch.linalg.eigh(H).eigenvectors[:, :2]
        opt = CurveBall([θ], lr=0.02, momentum=momentum, damping=0.0, auto_damping=False)
        for _ in range(1200):
            opt.step(closure, loss)
        assert (H @ θ.detach()).norm() < 1e-7
        torch.testing.assert_close(null.T @ θ.detach(), null.T @ start, rtol=0, atol=1e-6)


@pytest.mark.claim(
    "curveball-eq38", file="optim/curveball.py", old=".square() - 2 * rho + 1", new=".square() - 2 * rho"
)
def test_eigenvalues_in_closed_form():
    ρ, βh = grid()
    expected = torch.linalg.eigvals(transition(ρ, βh))
    for found in eigenvalues(ρ, βh):
        near = (expected - found[..., None]).abs().amin(-1)
        assert near.max() < 1e-7  # a double eigenvalue is found to the root of rounding
    one, other = eigenvalues(ρ, βh)
    torch.testing.assert_close((one + other).real, ρ + 1 - 2 * βh, **CLOSE)
    torch.testing.assert_close((one * other).real, ρ - βh, **CLOSE)


@pytest.mark.claim(
    "curveball-eq41",
    file="optim/curveball.py",
    old="half_trace = rho - 2 * beta_h + 1",
    new="half_trace = rho - beta_h + 1",
)
def test_rate_in_the_complex_region():
    """|eig| = √(ρ − βh) where (38) is complex."""
    ρ, βh = grid()
    complex_ = (ρ - 2 * βh).square() - 2 * ρ + 1 < 0
    assert complex_.double().mean() > 0.1
    torch.testing.assert_close(convergence_rate(ρ, βh)[complex_], (ρ - βh)[complex_].sqrt(), rtol=1e-15, atol=1e-15)


@pytest.mark.claim(
    "curveball-fig4",
    file="optim/curveball.py",
    old="return torch.maximum(one.abs(), other.abs())",
    new="return one.abs()",
)
def test_figure_4():
    """The map of the rate over (βh, ρ): that of the 2 × 2 matrix, white beyond the two lines, 1 on them."""
    ρ, βh = grid()
    rate = convergence_rate(ρ, βh)
    radius = torch.linalg.eigvals(transition(ρ, βh)).abs().amax(-1)
    torch.testing.assert_close(rate, radius, rtol=0, atol=1e-7)
    lower, upper = 1.5 * βh - 1, 1 + βh
    edge = torch.minimum((ρ - lower).abs(), (ρ - upper).abs()) < 1e-6  # rounding decides there
    assert torch.equal((rate < 1)[~edge], ((lower < ρ) & (ρ < upper))[~edge])
    on = torch.linspace(0.05, 1.9, 50).double()
    for line in (1.5 * on - 1, 1 + on):
        seen = line > 0.05
        torch.testing.assert_close(convergence_rate(line, on)[seen], torch.ones_like(on)[seen], rtol=0, atol=1e-7)


@pytest.mark.claim("curveball-range", file="optim/curveball.py", old="(rho < 1 + beta_h)", new="(rho < 2 + beta_h)")
def test_the_widest_stable_range_is_at_rho_one():
    """Length 2(ρ + 1)/3 for ρ ≤ 1, (5 − ρ)/3 above: 4/3 at most."""
    βh = torch.arange(1, 400_001, dtype=torch.float64) * 1e-5
    lengths = {}
    for ρ in (0.1, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0):
        lengths[ρ] = float(converges(torch.full_like(βh, ρ), βh).double().sum() * 1e-5)
        assert lengths[ρ] == pytest.approx(2 * (ρ + 1) / 3 if ρ <= 1 else (5 - ρ) / 3, abs=3e-5)
    assert max(lengths, key=lengths.__getitem__) == 1.0


# ---- Theorem A.2: automatic coefficients descend


@pytest.mark.claim(
    "curveball-thmA2",
    file="optim/curveball.py",
    old="model.inner(b, Λa) + _weighted(Δ, z, damping)",
    new="model.inner(b, Λa)",
)
def test_theorem_a2_the_step_descends():
    """gᵀz = −zᵀ(G + λI)z < 0 for every new z, and +½(ρ − αβ)gᵀz is the model's value at collinear z, Δ (E-cb-2)."""
    for seed in range(5):
        net, batches = random_net(seed)
        opt = CurveBall(net.parameters(), damping=0.3, auto_damping=False)
        for x, y in batches:
            g, C = gradient(net, x, y), ggn(net, x) + 0.3 * torch.eye(len(parameters(net)), dtype=torch.float64)
            train(net, [(x, y)], opt)
            z = torch.cat([opt.state[p]["z"].flatten() for p in net.parameters()])
            assert g @ z < 0
            torch.testing.assert_close(g @ z, -z @ C @ z, **CLOSE)
            torch.testing.assert_close(opt.diagnostics["slope"], g @ z, **CLOSE)
    g = torch.Generator().manual_seed(1)
    for α in (-2.0, 0.5, 3.0):
        C = with_spectrum([0.1, 1.0, 10.0], g)
        z, slope = torch.randn(2, 3, generator=g, dtype=torch.float64)
        Δ = α * z
        β, ρ = coefficients(Δ @ C @ Δ, z @ C @ Δ, z @ C @ z, slope @ Δ, slope @ z)
        new = ρ * z - β * Δ
        value = slope @ new + 0.5 * new @ C @ new
        torch.testing.assert_close(value, 0.5 * (ρ - α * β) * (slope @ z), **CLOSE)
        assert value < 0  # so the printed sign cannot be


@pytest.mark.claim(
    "curveball-rem1", file="optim/curveball.py", old="torch.where((a == 0) & (m == 0), a, a / m)", new="a / m"
)
def test_remarks_on_vanishing_gradients_and_steps():
    """G = 0 ⇒ the new z is 0, whatever z was; then the next step is −βg."""
    H = with_spectrum([0.5, 1.0, 4.0], torch.Generator().manual_seed(0))
    b = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    θ, closure, loss = quadratic(H, b)
    opt = CurveBall([θ], damping=0.1, auto_damping=False)
    opt.step(closure, loss)
    assert opt.state[θ]["z"].norm() > 0.1
    with torch.no_grad():
        θ.copy_(torch.linalg.solve(H, b))
    opt.step(closure, loss)
    assert opt.state[θ]["z"].norm() < 1e-12
    opt.state[θ]["z"].zero_()
    with torch.no_grad():
        θ.zero_()
    opt.step(closure, loss)
    β = (b @ b) / (b @ (H + 0.1 * torch.eye(3, dtype=torch.float64)) @ b)
    torch.testing.assert_close(θ.detach(), β * b, **CLOSE)
    assert opt.skipped == 0
    θ = leaf(0.0)  # at a stationary point from the start
    opt = CurveBall([θ], damping=0.0)
    opt.step(lambda: θ[None], half_square)
    assert (θ.item(), opt.skipped) == (0.0, 0)


@pytest.mark.claim(
    "curveball-c05", file="optim/curveball.py", old=".addcmul_(v, ρ.to(v))", new=".addcmul_(v, 3 * ρ.to(v))"
)
def test_one_warm_started_step_of_conjugate_gradients_diverges():
    """Algorithm 2 with R = 1 and without reset, against Algorithm 1, on batches of ill-conditioned least squares."""
    diverged = {"conjugate gradients": 0, "gradient": 0}
    runs, dimension, damping = 10, 20, 1e-3
    for seed in range(runs):
        g = torch.Generator().manual_seed(seed)
        scales = torch.logspace(0, -2, dimension, dtype=torch.float64)
        truth = torch.randn(dimension, generator=g, dtype=torch.float64)
        draws = [scales * torch.randn(8, dimension, generator=g, dtype=torch.float64) for _ in range(150)]
        data = [(x, x @ truth + 0.1 * torch.randn(8, generator=g, dtype=torch.float64)) for x in draws]
        J = lambda t: (scales * (t - truth)).square().sum()  # the expectation, without the noise's
        start = float(J(torch.zeros(dimension, dtype=torch.float64)))

        θ = torch.zeros(dimension, dtype=torch.float64, requires_grad=True)
        opt = CurveBall([θ], damping=damping, auto_damping=False)
        for x, y in data:
            opt.step(lambda: x @ θ, lambda o: (o - y).square())
        diverged["gradient"] += not float(J(θ.detach())) < 10 * start

        at, z, p, last = (
            torch.zeros(dimension, dtype=torch.float64),
            torch.zeros(dimension, dtype=torch.float64),
            None,
            None,
        )
        for x, y in data:
            C = 2 * x.T @ x / 8 + damping * torch.eye(dimension, dtype=torch.float64)
            r = -(C @ z + 2 * x.T @ (x @ at - y) / 8)
            p = r if p is None else r + (r @ r) / (last @ last) * p
            last = r
            z = z + (r @ r) / (p @ C @ p) * p
            at = at + z
            if not J(at) < 1e12 * start:
                break
        diverged["conjugate gradients"] += not float(J(at)) < 10 * start
    assert diverged["gradient"] == 0
    assert diverged["conjugate gradients"] >= 0.9 * runs  # frequency


# ---- as an optimizer


def test_its_first_step_is_adlers():
    """M = 1: with z = 0 and λ as ε the two minimise the same model along the gradient."""
    ends = []
    for kind in (lambda p: CurveBall(p, damping=0.1, auto_damping=False), lambda p: Adler(p, eps=0.1)):
        net, batches = random_net()
        ends.append(train(net, batches, kind(net.parameters()), 1))
    torch.testing.assert_close(*ends, **CLOSE)


@pytest.mark.parametrize("kind", ["mlp", "relu", "batch-norm and dropout"])
def test_every_backend_takes_the_same_steps(kind):
    paths = {}
    for backend in ("tape", "autodiff", "complexstep"):
        torch.manual_seed(0)
        inside = {
            "mlp": [nn.Tanh()],
            "relu": [nn.ReLU()],
            "batch-norm and dropout": [nn.BatchNorm1d(6), nn.Softplus(), nn.Dropout(0.3)],
        }[kind]
        net = nn.Sequential(nn.Linear(4, 6), *inside, nn.Linear(6, 3)).double()
        _, batches = random_net()
        torch.manual_seed(1)
        opt = CurveBall(net.parameters(), damping=1.0, backend=backend, check_every=1, test_every=2)
        paths[backend] = train(net, batches, opt)
    for backend in ("autodiff", "complexstep"):
        torch.testing.assert_close(paths[backend], paths["tape"], rtol=1e-8, atol=1e-9)


OPTIONS = [{}, {"lr": 0.1, "momentum": 0.9}, {"every": 3, "weight_decay": 1e-2}, {"momentum": 1.0, "test_every": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_exactly(options, dtype):
    net, batches = random_net()
    net.to(dtype)
    batches = [(x.to(dtype), y) for x, y in 2 * batches]
    opt = CurveBall(net.named_parameters(), damping=1.0, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    train(net, batches, opt, 7)
    scheduler.step()
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict(), scheduler.state_dict()), file)
    through = train(net, batches[7:], opt)
    file.seek(0)
    again, _ = random_net(seed=9)
    again.to(dtype)
    resumed = CurveBall(again.named_parameters(), damping=1.0, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(resumed, 0.9)
    for thing, state in zip((again, resumed, schedule), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(through, train(again, batches[7:], resumed), strict=True))
    assert resumed.diagnostics["damping"] == opt.diagnostics["damping"]


def test_copies_keep_their_options():
    net, batches = random_net()
    opt = CurveBall(net.parameters(), momentum=1.0, damping=0.7)
    train(net, batches, opt, 2)
    twin_net, twin = copy.deepcopy((net, opt))
    assert torch.equal(train(net, batches[2:], opt, 5)[-1], train(twin_net, batches[2:], twin, 5)[-1])


@pytest.mark.parametrize("automatic", [True, False])
def test_groups_have_their_own_rate_and_decay(automatic):
    """Solved: lr multiplies the group's part of the step. Fixed: it is the group's β, and ρ is solved for that."""
    net, batches = random_net()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.5},
        {"params": list(net[2].parameters()), "lr": 0.25, "weight_decay": 0.1},
    ]
    opt = CurveBall(groups, lr=None if automatic else 1.0, damping=0.2, auto_damping=False)
    first, n = sum(p.numel() for p in net[0].parameters()), len(parameters(net))
    one = torch.ones(n, dtype=torch.float64)
    decay, rates = 0.1 * one, 0.25 * one
    decay[:first], rates[:first] = 0.0, 0.5
    z = torch.zeros(n, dtype=torch.float64)
    for x, y in batches[:4]:
        θ = parameters(net)
        g, C = gradient(net, x, y) + decay * θ, ggn(net, x) + torch.diag(0.2 + decay)
        if automatic:
            *_, z = by_hand(C, g, z)
            moved = rates * z
        else:
            v = rates * (C @ z + g)
            ρ = (v @ C @ z - g @ z) / (z @ C @ z) if z.norm() else 0.0
            z = moved = ρ * z - v
        train(net, [(x, y)], opt)
        torch.testing.assert_close(parameters(net), θ + moved, **CLOSE)
    with pytest.raises(InvalidInput, match="damping cannot differ"):
        CurveBall([{"params": list(net.parameters()), "damping": 0.1}])


def test_a_group_that_joins_later_starts_from_zero():
    net, batches = random_net()
    opt = CurveBall(net[0].parameters(), damping=1.0)
    train(net, batches, opt, 2)
    opt.add_param_group({"params": list(net[2].parameters())})
    before = net[2].weight.detach().clone()
    train(net, batches[2:], opt, 2)
    assert not torch.equal(net[2].weight, before)


def test_a_scheduler_drives_the_factor_or_beta():
    for lr, seen in ((None, "factor"), (0.2, "β")):
        net, batches = random_net()
        opt = CurveBall(net.parameters(), lr=lr, damping=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
        for k, b in enumerate(batches[:3]):
            before = parameters(net)
            train(net, [b], opt)
            moved = (parameters(net) - before).norm()
            if seen == "factor":
                torch.testing.assert_close(moved, 0.5**k * opt.diagnostics["direction_norm"], **CLOSE)
            else:
                assert opt.diagnostics["step"] == pytest.approx(0.2 * 0.5**k)
            scheduler.step()


def test_non_finite_steps_change_nothing():
    net, batches = random_net()
    opt = CurveBall(net.parameters(), damping=1.0)
    train(net, batches, opt, 2)
    before, state = parameters(net), copy.deepcopy(opt.state_dict()["state"])
    x, y = batches[0]
    for broken in (math.nan, math.inf):
        with pytest.warns(SkippedStep, match="finite"):
            opt.step(lambda: net(x * broken), cross_entropy(y))
    assert opt.skipped == 2
    assert torch.equal(parameters(net), before)
    after = opt.state_dict()["state"]
    for key, values in state.items():
        for name, value in values.items():
            if name != "calls":
                assert torch.equal(value, after[key][name]), name


def test_no_minimum_is_reported():
    """λ = 0 with a linear loss, and a loss that is not convex in its outputs."""
    for loss in (lambda o: o.sum(1), lambda o: -o.square().sum(1)):
        θ = leaf(2.0)
        opt = CurveBall([θ], damping=0.0)
        with pytest.warns(SkippedStep, match="finite"):
            opt.step(lambda: 3 * θ[None], loss)
        assert (θ.item(), opt.skipped) == (2.0, 1)


@pytest.mark.parametrize("options", [*OPTIONS, {"lr": 0.1}], ids=str)
def test_a_step_reads_no_number_where_that_would_wait(monkeypatch, options):
    """As on a GPU: between checks no number is read, an undefined step still changes nothing and is counted."""
    monkeypatch.setattr(curveball, "free_to_look", lambda t: False)
    net, batches = random_net()
    looking = copy.deepcopy(net)
    opts = [CurveBall(n.parameters(), damping=1.0, **options) for n in (net, looking)]
    for i, (x, y) in enumerate(batches):
        broken = torch.full_like(x, float("nan")) if i == 2 else x
        with NoLooking() if i else nullcontext():  # the first step checks
            opts[0].step(lambda: net(broken), cross_entropy(y))
        if i == 2:
            opts[1].state[looking[0].weight]["calls"] += 1  # its schedule of tests goes on
        else:
            opts[1].step(lambda: looking(x), cross_entropy(y))
    assert opts[0].skipped == 1
    torch.testing.assert_close(parameters(net), parameters(looking), rtol=1e-12, atol=0)


def test_diagnostics_are_detached_numbers():
    for options in OPTIONS:
        net, batches = random_net()
        opt = CurveBall(net.parameters(), **options)
        for b in batches[:6]:
            train(net, [b], opt)
            for name, value in opt.diagnostics.items():
                assert value.shape == (), name
                assert not value.requires_grad, name
            assert not opt.diagnostics["objective"].isnan()


def test_micro_batches_are_the_whole_batch():
    for options in OPTIONS:
        paths = []
        for sizes in ([8], [3, 1, 4]):
            net, batches = random_net()
            opt = CurveBall(net.parameters(), damping=1.0, **options)
            path = []
            for x, y in batches[:6]:
                parts = zip(x.split(sizes), y.split(sizes), strict=True)
                opt.step([(lambda a=a: net(a), cross_entropy(b)) for a, b in parts])
                path.append(parameters(net))
            paths.append(path)
        torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-11)


def test_two_processes_follow_one(tmp_path):
    """Real ones, on gloo: every optimizer here, some with options."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(several_ranks.__file__)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=env, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]  # bit for bit
    for name in several_ranks.OPTIMIZERS:
        alone, both = (
            torch.tensor(path, dtype=torch.float64) for path in (several_ranks.trajectory(name, 0, 1), ranks[0][name])
        )
        torch.testing.assert_close(both, alone, rtol=1e-9, atol=1e-11, msg=name)


def test_bad_use_has_one_clear_error():
    net, batches = random_net()
    x, y = batches[0]
    opt = CurveBall(net.parameters())
    before = parameters(net)
    for call, error, words in [
        (lambda: opt.step(), InvalidInput, "needs a closure"),
        (lambda: opt.step(lambda: cross_entropy(y)(net(x))), InvalidInput, "GGN"),
        (lambda: opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y)), InvalidInput, 'reduction="none"'),
        (lambda: CurveBall(net.parameters(), factor="paper"), UnknownName, "text"),
        (lambda: CurveBall(net.parameters(), backend="tap"), UnknownName, "tape"),
        (lambda: CurveBall(net.parameters(), lr=-1.0), InvalidInput, "lr = -1.0"),
        (lambda: CurveBall(net.parameters(), momentum=math.nan), InvalidInput, "momentum"),
        (lambda: CurveBall(net.parameters(), damping=-1.0), InvalidInput, "damping"),
        (lambda: CurveBall(net.parameters(), every=0), InvalidInput, "every"),
        (lambda: CurveBall(net.parameters(), test_every=0), InvalidInput, "test_every"),
    ]:
        with pytest.raises(error, match=words):
            call()
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="autocast"):
        train(net, batches, opt, 1)
    assert torch.equal(parameters(net), before)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_trains(kind):
    """Batch-norm (its statistics advance once a step) and dropout; attention; tokens with their own losses."""
    net, x, loss = architecture(kind)
    opt = CurveBall(net.parameters(), damping=1.0, check_every=1, test_every=2)
    losses = [float(opt.step(lambda: net(x), loss)) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert opt.skipped == 0
    if kind == "convolutions":
        assert net[1].num_batches_tracked == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_steps():
    net, batches = random_net()
    twin = copy.deepcopy(net).cuda()
    a = train(net, batches, CurveBall(net.parameters(), damping=1.0))
    b = train(twin, [(x.cuda(), y.cuda()) for x, y in batches], CurveBall(twin.parameters(), damping=1.0))
    torch.testing.assert_close(a, [v.cpu() for v in b], rtol=1e-9, atol=1e-10)
