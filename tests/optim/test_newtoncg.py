"""NewtonCG against Algorithm 1 of the CSDD paper, corrected, in float64; and what its printed lines do instead."""

from __future__ import annotations

import copy
import io
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.errors import InvalidInput, SkippedStep, UnknownName
from reprolib.lab.methods import METHODS, take_step
from reprolib.optim import NewtonCG
from reprolib.optim.newtoncg import (
    Length,
    armijo_length,
    global_gradient,
    part_of,
    printed_length,
    screened,
    taylor_length,
)
from reprolib.tasks import networks
from reprolib.tasks.toy import quadratic, sqrt_one_plus
from tests.curvature.reference import flat, hessian

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
EXACT = {"max_iter": 200, "tolerance": 1e-13}


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def problem(seed: int = 0, batch: int = 8, count: int = 6):
    """A small network, and (closure, loss) pairs for its batches, which do not change when they are asked again."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(batch, 4).double(), torch.randint(0, 3, (batch,))) for _ in range(count)]
    return net, data, pairs(net, data)


def pairs(net, data):
    return [((lambda x=x: net(x)), (lambda o, y=y: F.cross_entropy(o, y, reduction="none"))) for x, y in data]


def parameters(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


def train(net, opt, batches, full=None) -> list[torch.Tensor]:
    path = []
    for closure, loss in batches:
        opt.step(closure, loss, full=full)
        path.append(parameters(net))
    return path


def objective(net, data, λ: float = 0.0) -> torch.Tensor:
    x, y = (torch.cat(v) for v in zip(*data, strict=True))
    return F.cross_entropy(net(x), y) + λ / 2 * sum(p.square().sum() for p in net.parameters())


def gradient(net, data, λ: float = 0.0) -> torch.Tensor:
    return flat(torch.autograd.grad(objective(net, data, λ), list(net.parameters())))


def move(net, Δ: torch.Tensor) -> None:
    with torch.no_grad():
        for p, d in zip(net.parameters(), Δ.split([p.numel() for p in net.parameters()]), strict=True):
            p.add_(d.view_as(p))


# ---- closed forms


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_step_minimises_a_convex_quadratic(scale, warm_start):
    """The Newton step, whatever the units of the loss; and no further one."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A, b = root @ root.T + torch.eye(6, dtype=torch.float64), root[0]
    theta = leaf(*[1.0] * 6)
    opt = NewtonCG([theta], warm_start=warm_start, **EXACT)
    opt.step(lambda: scale * quadratic(theta, A, b))
    torch.testing.assert_close(theta.detach(), torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)
    assert opt.diagnostics["step"] == 1
    assert opt.diagnostics["taylor_ratio"] == 0
    assert opt.diagnostics["tries"] == 1
    if not warm_start:  # else CG's next start is far off
        opt.step(lambda: scale * quadratic(theta, A, b))
        torch.testing.assert_close(theta.detach(), torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)


def test_weight_decay_is_part_of_the_loss_its_gradients_and_its_hessian():
    A, b = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), torch.tensor([1.0, -2.0], dtype=torch.float64)
    theta = leaf(2.0, 1.0)
    opt = NewtonCG([theta], weight_decay=0.5, **EXACT)
    opt.step(lambda: quadratic(theta, A, b), full=[(lambda: quadratic(theta, A, b), None)])
    torch.testing.assert_close(theta.detach(), torch.linalg.solve(A + 0.5 * torch.eye(2), b), **CLOSE)
    assert opt.diagnostics["objective"] == pytest.approx(float(opt.diagnostics["loss"]) + 0.25 * 5)


def test_one_iteration_is_the_cauchy_step():
    """family-1: on a quadratic the first step with K = 1."""
    A, b = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), torch.tensor([1.0, -2.0], dtype=torch.float64)
    start, theta = torch.tensor([2.0, 1.0], dtype=torch.float64), leaf(2.0, 1.0)
    NewtonCG([theta], max_iter=1).step(lambda: quadratic(theta, A, b))
    g = A @ start - b
    torch.testing.assert_close(theta.detach(), start - (g @ g) / (g @ A @ g) * g, **CLOSE)


# ---- Algorithm 1, line by line


@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old="if agreement < 0:", new="if False:")
@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old='shared["age"] += norm > 0', new="pass")
@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old="p.add_(Δ[offset], alpha=group", new="p.sub_(Δ[offset], alpha=group")  # fmt: skip
@pytest.mark.parametrize("λ", [0.0, 0.03])
def test_algorithm_1_line_by_line(λ):
    """Explicit Hessians, dense CG, and the interval of η checked: twelve batches, a few of them screened out."""
    net, data, _ = problem(batch=2, count=12)
    twin = copy.deepcopy(net)
    η̃, K, τ = 0.05, 5, 1e-3
    opt = NewtonCG(twin.parameters(), η̃, K, tolerance=τ, weight_decay=λ)
    skipped = moved = 0
    for (closure, loss), (x, y) in zip(pairs(twin, data), data, strict=True):
        g, g_j = gradient(net, data, λ), gradient(net, [(x, y)], λ)  # lines 48, 4
        before = parameters(twin)
        assert torch.allclose(before, parameters(net), rtol=1e-9, atol=1e-11)
        opt.step(closure, loss, full=pairs(twin, data))
        if g_j @ g < 0:  # line 5
            skipped += 1
            assert opt.diagnostics["screened"] == 1
            assert torch.equal(parameters(twin), before)
            continue
        moved += 1
        H = hessian(objective(net, [(x, y)], λ), list(net.parameters()))
        Δ = torch.zeros_like(g)
        r = -g_j
        p, i, negative = r, 0, False
        while r.norm() > τ * g_j.norm() and i < K:  # line 13
            q = H @ p
            κ = p @ q
            if κ < 0:
                negative = True
                break
            κ = 0.01 * p @ p if κ < 1e-8 * p @ p else κ
            α = r @ r / κ
            Δ, new = Δ + α * p, r - α * q
            p, r, i = new + (new @ new) / (r @ r) * p, new, i + 1
        assert (opt.diagnostics["iterations"], opt.diagnostics["negative_curvature"]) == (i, negative)
        if Δ @ g > 0:
            Δ = Δ - (Δ @ g) / (g @ g) * g
        torch.testing.assert_close(float(opt.diagnostics["slope"]), float(g_j @ Δ), rtol=1e-7, atol=1e-12)

        def η(γ, Δ=Δ, g_j=g_j, H=H, x=x, y=y):
            elsewhere = copy.deepcopy(net)
            move(elsewhere, γ * Δ)
            with torch.no_grad():
                ΔJ = float(objective(elsewhere, [(x, y)], λ) - objective(net, [(x, y)], λ))
            E = float(γ * g_j @ Δ + γ**2 / 2 * Δ @ H @ Δ)
            return abs((ΔJ - E) / ΔJ) if ΔJ < 0 else math.inf

        γ = float(opt.diagnostics["step"])
        if η(1.0) < η̃ / 2:
            assert γ == 1
        else:
            assert η̃ / 2 <= η(γ) <= η̃
        assert float(opt.diagnostics["taylor_ratio"]) == pytest.approx(η(γ), rel=1e-4)
        move(net, γ * Δ)
        torch.testing.assert_close(parameters(twin), parameters(net), rtol=1e-7, atol=1e-9)
        move(net, parameters(twin) - parameters(net))  # rounding must not add up
    assert skipped == opt.counts["screened"] >= 1
    assert moved >= 6
    assert opt.counts["pairs"] == 12 * moved  # once wherever θ has moved to, and a batch came: E-cs-10
    assert opt.counts["steps"] == 12
    assert opt.skipped == opt.counts["fallbacks"] == 0


def test_the_global_gradient_is_the_mean_over_samples_and_leaves_no_trace():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    data = [(torch.randn(n, 4).double(), torch.randint(0, 3, (n,))) for n in (8, 5, 3)]
    params = list(net.parameters())
    statistics, state = copy.deepcopy(list(net.buffers())), torch.get_rng_state()
    found = global_gradient(pairs(net, data), params)
    assert all(torch.equal(a, b) for a, b in zip(statistics, net.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    # the dropout masks are those of passes in turn
    total = sum(loss(closure()).sum() for closure, loss in pairs(net, data)) / 16
    torch.testing.assert_close(flat(found), flat(torch.autograd.grad(total, params)), **CLOSE)


def test_a_part_of_the_data_goes_round_and_round():
    full, position, seen = list(range(5)), 0, []
    for _ in range(5):
        taken, position = part_of(full, position, 3)
        seen += list(taken)
    assert seen == full * 3
    assert part_of(full, 0, None) == (full, 0)
    assert list(part_of(full, 0, 9)[0]) == full


def test_a_stale_and_a_sub_sampled_global_gradient():
    net, data, batches = problem(count=6)
    opt = NewtonCG(net.parameters(), global_every=3)
    age, expected, computed = 3, None, 0
    for closure, loss in batches:
        if age == 3:
            age, expected, computed = 0, gradient(net, data), computed + 1
        opt.step(closure, loss, full=batches)
        torch.testing.assert_close(flat([opt.state[p]["global"] for p in net.parameters()]), expected, **CLOSE)
        screened = bool(opt.diagnostics["screened"])
        age = 3 if screened and age else age + (not screened)
    assert opt.counts["screened"] < 4
    assert opt.counts["pairs"] == 6 * computed < 36
    net, data, batches = problem(count=6)
    opt = NewtonCG(net.parameters(), global_pairs=2)
    for i, (closure, loss) in enumerate(batches):
        first = 2 * i % 6  # the next two each time
        expected = gradient(net, data[first : first + 2])
        opt.step(closure, loss, full=batches)
        torch.testing.assert_close(flat([opt.state[p]["global"] for p in net.parameters()]), expected, **CLOSE)
    assert opt.counts["screened"] < 4
    assert opt.counts["pairs"] == 2 * 6


def test_a_stale_global_gradient_that_contradicts_every_batch_is_looked_at_again():
    """Batch 1 moves θ to its own bottom, where the g of before contradicts batch 2: nothing would ever move again."""
    theta = leaf(1.0)
    full = [(lambda: 0.5 * theta**2, None), (lambda: 0.5 * (theta - 0.1) ** 2, None)]
    opt = NewtonCG([theta], global_every=10)
    opt.step(*full[0], full=full)
    assert theta.item() == pytest.approx(0)
    opt.step(*full[1], full=full)
    assert opt.diagnostics["screened"] == 1
    opt.step(*full[1], full=full)
    assert theta.item() == pytest.approx(0.1)
    assert opt.counts["pairs"] == 4


def test_a_screened_batch_changes_nothing_and_the_global_gradient_serves_again():
    theta = leaf(1.0)
    opt = NewtonCG([theta])
    up, down = (lambda: -0.1 * theta + theta**2 / 100, None), (lambda: 0.5 * theta**2, None)
    opt.step(*up, full=[up, down])
    assert theta.item() == 1.0
    assert (opt.diagnostics["screened"], opt.diagnostics["step"], opt.diagnostics["iterations"]) == (1, 0, 0)
    assert opt.skipped == 0
    opt.step(*down, full=[up, down])
    assert theta.item() == pytest.approx(0)
    assert dict(opt.counts)["screened"] == 1
    assert opt.counts["pairs"] == 2
    opt.step(*down, full=[up, down])  # θ has moved
    assert opt.counts["pairs"] == 4


def test_without_the_data_no_batch_is_screened_out():
    net, _, batches = problem()
    opt = NewtonCG(net.parameters())
    train(net, opt, batches)
    assert opt.counts["screened"] == opt.counts["pairs"] == opt.counts["projected"] == 0
    twin, _, again = problem()
    same = NewtonCG(twin.parameters())
    for pair in again:
        same.step(*pair, full=[pair])
    torch.testing.assert_close(parameters(net), parameters(twin), rtol=1e-7, atol=1e-9)


# ---- the lines as printed


@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old="x - along / size * y", new="x - along / size.sqrt() * y")
@pytest.mark.claim("csdd-post", file="optim/newtoncg.py", old="x - along / size * y", new="x + along / size * y")
def test_line_30_enlarges_the_ascent_that_it_is_to_remove():
    """E-cs-5, contradicted: (1 + cos)Δ ascends by (1 + cos) times as much; the projection does not ascend."""
    for seed in range(20):
        draw = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        g, Δ = draw[0], draw[1] * torch.sign(draw[0] @ draw[1])
        cos = g @ Δ / (g.norm() * Δ.norm())
        assert cos > 0
        (printed,), (corrected,) = screened((Δ,), (g,), printed=True), screened((Δ,), (g,))
        torch.testing.assert_close(g @ printed, (1 + cos) * (g @ Δ), **CLOSE)
        assert g @ printed > g @ Δ > 0
        assert abs(g @ corrected) < 1e-12 * g.norm() * Δ.norm()
        torch.testing.assert_close(Δ - corrected, (g @ Δ) / (g @ g) * g, **CLOSE)  # only what is along g is gone


def test_post_screening_in_the_step():
    """A batch whose Newton step ascends for the data, though its gradient does not."""
    A = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 0.2], dtype=torch.float64)  # g_j = −b at 0, Δ = A⁻¹b
    c = torch.tensor([0.3, 1.0], dtype=torch.float64)  # g = −c
    Δ = torch.linalg.solve(A, b)
    assert b @ c > 0 > Δ @ c
    ends = {}
    for printed in ((), ("screening",)):
        theta = leaf(0.0, 0.0)
        opt = NewtonCG([theta], printed=printed, search="none", **EXACT)
        opt.step(lambda theta=theta: quadratic(theta, A, b), full=[(lambda theta=theta: (-theta @ c)[None], None)])
        ends[printed] = theta.detach()
        assert opt.counts["projected"] == 1
    torch.testing.assert_close(ends[()], Δ - (Δ @ c) / (c @ c) * c, **CLOSE)
    assert -c @ ends[("screening",)] > -c @ Δ > 0 == pytest.approx(float(c @ ends[()]), abs=1e-12)


@pytest.mark.claim("csdd-exist", file="optim/newtoncg.py", old="x - along / size * y", new="x - 1.5 * along / size * y")
def test_after_the_projection_no_step_may_descend():
    """Contradicted (E-cs-5): Δ ⟂ g, and along it a strictly convex J rises for every γ > 0."""
    A, c = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), torch.tensor([1.0, 1.0], dtype=torch.float64)
    (Δ,) = screened((torch.tensor([2.0, -0.5], dtype=torch.float64),), (c,))  # g = c at θ = 0
    slope, bend = float(c @ Δ), float(Δ @ A @ Δ)
    rise = lambda γ: γ * slope + 0.5 * γ**2 * bend
    assert all(rise(10.0**-k) > 0 for k in range(7))
    found = taylor_length(rise, slope, bend, tries=30)
    assert not found.found
    assert found.length == 1e-6  # which ascends, too
    assert rise(found.length) > 0


def cubic(slope: float, bend: float, third: float):
    return lambda γ: γ * slope + 0.5 * γ**2 * bend + third * γ**3


@pytest.mark.claim("csdd-eta", file="optim/newtoncg.py", old="E = change(γ), γ * slope + 0.5 * γ**2 * bend", new="E = change(γ), γ * slope + 0.5 * γ * bend")  # fmt: skip
@pytest.mark.claim("csdd-eta", file="optim/newtoncg.py", old="γ = (math.sqrt(half**2 - error * a * slope) - half) / error", new="γ = target / η")  # fmt: skip
@pytest.mark.claim("csdd-eta", file="optim/newtoncg.py", old="        elif ΔJ < 0:  #", new="        elif ΔJ:  #")
def test_the_taylor_ratio_has_a_cubic_law_and_is_sign_blind():
    theta = torch.tensor([0.7, -0.4], dtype=torch.float64)

    def J(t):
        return torch.logsumexp(torch.stack([t[0] + 2 * t[1], -t[0], 0.3 * t[1] ** 2]), 0) + 0.1 * t @ t

    t = theta.clone().requires_grad_()
    g, H = torch.autograd.grad(J(t), t)[0], hessian(J(t), [t])
    Δ = -torch.linalg.solve(H, g)
    η = lambda γ: float((J(theta + γ * Δ) - J(theta) - γ * g @ Δ - γ**2 / 2 * Δ @ H @ Δ).abs() / (J(theta + γ * Δ) - J(theta)).abs())  # fmt: skip
    slopes = [math.log(η(γ) / η(γ / 2), 2) for γ in (0.1, 0.05, 0.02, 0.01)]
    assert slopes[-1] == pytest.approx(2, abs=0.05)  # numerator cubic, denominator linear
    assert abs(slopes[-1] - 2) < abs(slopes[0] - 2)
    # the search finds the interval, whatever the size of the third derivative
    for third in torch.logspace(-3, 4, 30).tolist():
        for sign in (-1, 1):
            change = cubic(-1.0, 1.0, sign * third)
            found = taylor_length(change, -1.0, 1.0)
            E = -found.length + 0.5 * found.length**2
            assert found.found
            assert found.ratio == pytest.approx(abs((change(found.length) - E) / change(found.length)), rel=1e-6)
            assert 0.025 <= found.ratio <= 0.05 or (found.length == 1 and found.ratio < 0.025)
            assert change(found.length) < 0
            assert found.tries <= 5  # by halves alone up to 12
    # E-cs-6c: a quadratic that rises has η = 0
    rising = cubic(0.0, 1.0, 0.0)
    assert printed_length(rising, 0.0, 1.0, 0.05, 12, 1e-6) == Length(1.0, 0.0, 1, True)
    assert not taylor_length(rising, 0.0, 1.0).found


@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old="if n == 1 and slope < 0 and 0 < error < math.inf:", new="if n == 1:")  # fmt: skip
@pytest.mark.claim("csdd-alg1", file="optim/newtoncg.py", old="η <= target and (best is None or γ > best.length)", new="False")  # fmt: skip
def test_the_search_as_printed_fails_where_the_corrected_one_does_not():
    # E-cs-6e: E of γ = 1 is no model of a shorter step, so shrinking makes η worse
    change = cubic(-1.0, 1.0, 5.0)
    assert not printed_length(change, -1.0, 1.0, 0.05, 50, 1e-6).found
    assert taylor_length(change, -1.0, 1.0).found
    # E-cs-6d: ΔJ = 0
    level = cubic(-1.0, 1.0, 0.5)
    assert level(1.0) == 0
    assert math.isnan(printed_length(level, -1.0, 1.0, 0.05, 1, 1e-6).ratio)
    assert taylor_length(level, -1.0, 1.0).found
    # an exactly quadratic loss: η is 0 for every γ, and only γ = 1 at once ends it
    assert taylor_length(cubic(-1.0, 1.0, 0.0), -1.0, 1.0) == Length(1.0, 0.0, 1, True)
    # one that rises at γ = 1, as foreseen: η is 0 below, and the search stays there
    found = taylor_length(cubic(-1.0, 3.0, 0.0), -1.0, 3.0)
    assert found.found and found.ratio == 0 and 0.5 <= found.length < 2 / 3
    # a kink: η jumps over the interval, and the longest step below it serves
    kink = lambda γ: -γ + 0.5 * γ**2 + (10 * (γ - 0.1) if γ > 0.1 else 0.0)
    found = taylor_length(kink, -1.0, 1.0)
    assert found.found and 0 < found.length <= 0.1 and found.tries == 12
    # ascents at any length, infinities, NaN
    for change in (lambda γ: γ, lambda γ: math.nan, lambda γ: math.inf):
        assert taylor_length(change, -1.0, 1.0, tries=5) == (1e-6, math.inf, 5, False)


def test_backtracking_as_in_the_supplement():
    for slope, bend, third in ((-1.0, 1.0, 0.0), (-1.0, 1.0, 3.0), (-2.0, -1.0, 40.0)):
        change = cubic(slope, bend, third)
        found = armijo_length(change, slope, 60, 1e-6)
        assert found.length == pytest.approx(0.8 ** (found.tries - 1))
        assert change(found.length) <= 0.01 * found.length * slope
        assert found.tries == 1 or not change(found.length / 0.8) <= 0.01 * found.length / 0.8 * slope
    assert armijo_length(lambda γ: γ, -1.0, 5, 1e-6)[0::3] == (1e-6, False)


def test_rounding_is_not_mistaken_for_a_bad_model():
    """Near a minimum ΔJ is lost in the rounding of J; the step is Newton's all the same."""
    theta = leaf(1.0, -1.0)
    opt = NewtonCG([theta], **EXACT)
    for _ in range(14):
        opt.step(lambda: 1e6 + sqrt_one_plus(theta - 3) + sqrt_one_plus(0.5 * theta) + (theta**4).sum())
    assert opt.counts["fallbacks"] == 0
    assert opt.diagnostics["step"] == 1
    assert opt.diagnostics["direction_norm"] < 1e-14


# ---- claims about convergence


@pytest.mark.claim("csdd-conv", file="optim/cg.py", old="Δ, r = _plus(Δ, α, p), _plus(r, -α, q)", new="Δ, r = _plus(Δ, 0.9 * α, p), _plus(r, -α, q)")  # fmt: skip
def test_local_convergence_is_quadratic_on_the_full_batch():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)
    theta = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    opt = NewtonCG([theta], weight_decay=0.01, **EXACT)
    path, lengths = [theta.detach().clone()], []
    for _ in range(12):
        opt.step(lambda: x @ theta, lambda o: F.cross_entropy(o, y, reduction="none"))
        path.append(theta.detach().clone())
        lengths.append(float(opt.diagnostics["step"]))
    assert lengths[0] < 1  # far away the Taylor ratio holds it back, in the end not any more
    errors = [float((t - path[-1]).norm()) for t in path]
    local = [(a, b) for a, b, γ in zip(errors, errors[1:], lengths, strict=False) if γ == 1 and a > 1e-7]
    assert len(local) >= 3
    assert all(b < a**2 for a, b in local)
    assert max(errors[7:]) < 1e-13


@pytest.mark.claim(
    "csdd-c07", file="optim/newtoncg.py", old='curvature=options["curvature"],', new='curvature="hessian",'
)
def test_gauss_newton_is_not_of_first_order():
    """Contradicted: it converges quadratically where the residual vanishes. Its matrix there is the Hessian."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=g, dtype=torch.float64)
    target = torch.tensor([0.8, -0.5, 0.3], dtype=torch.float64)
    y = torch.tanh(x @ target) + 0.1 * (x @ target)
    theta = leaf(0.3, -0.1, 0.6)
    opt = NewtonCG([theta], curvature="ggn", **EXACT)
    errors = []
    for _ in range(15):
        opt.step(lambda: (torch.tanh(x @ theta) + 0.1 * (x @ theta))[:, None], lambda o: 0.5 * (o[:, 0] - y) ** 2)
        errors.append(float((theta.detach() - target).norm()))
    local = [(a, b) for a, b in pairwise(errors) if 1e-7 < a < 0.05]
    assert len(local) >= 2
    assert all(b < 2 * a**2 for a, b in local)
    assert errors[-1] < 1e-14
    # far away the Hessian is indefinite, and AᵀΛA is not: CG with it is never cut short
    theta = leaf(3.0, 3.0, -3.0)
    opt = NewtonCG([theta], curvature="ggn")
    for _ in range(5):
        opt.step(lambda: (torch.tanh(x @ theta) + 0.1 * (x @ theta))[:, None], lambda o: 0.5 * (o[:, 0] - y) ** 2)
    assert opt.counts["truncated"] == 0


@pytest.mark.claim("csdd-s-c2", file="optim/newtoncg.py", old='if options["search"] == "none":', new="if True:")
def test_plain_newton_cg_on_the_full_batch_does_not_converge():
    """The Hessian is indefinite: full steps of plain CG go to saddle points or away; the corrected method does not."""
    net, data, _ = problem(batch=16, count=2)
    x, y = (torch.cat(v) for v in zip(*data, strict=True))
    start = float(objective(net, data).detach())
    ends = {}
    for name, options in {"plain": {"truncate": False, "search": "none"}, "corrected": {}}.items():
        twin = copy.deepcopy(net)
        opt = NewtonCG(twin.parameters(), max_iter=60, tolerance=1e-6, **options)
        losses = [float(opt.step(lambda n=twin: n(x), lambda o: F.cross_entropy(o, y, reduction="none"))) for _ in range(40)]  # fmt: skip
        ends[name] = losses[-1]
    assert ends["corrected"] < 0.5 * start
    assert not ends["plain"] < 0.9 * start  # also if it is not finite


# ---- as an optimizer


@pytest.mark.parametrize("backend", ["autodiff", "complexstep"])
def test_backends_take_the_same_steps(backend):
    net, data, batches = problem()
    twin = copy.deepcopy(net)
    ours = train(net, NewtonCG(net.parameters(), weight_decay=1e-2), batches, batches)
    theirs = train(twin, NewtonCG(twin.parameters(), weight_decay=1e-2, backend=backend), pairs(twin, data), pairs(twin, data))  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"warm_start": True}, {"global_every": 2, "global_pairs": 2, "max_iter": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_exactly(options, dtype):
    def fresh(seed):
        net, data, _ = problem(seed)
        net.to(dtype)
        data = [(x.to(dtype), y) for x, y in problem()[1]]
        return net, NewtonCG(net.named_parameters(), **options), pairs(net, data)

    net, opt, batches = fresh(0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    train(net, opt, batches[:3], batches)
    scheduler.step()
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict(), scheduler.state_dict()), file)
    through = train(net, opt, batches[3:], batches)
    file.seek(0)
    again, resumed, batches = fresh(9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(resumed, 0.9)
    for thing, state in zip((again, resumed, schedule), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(through, train(again, resumed, batches[3:], batches), strict=True))


def test_copies_keep_their_options_and_state():
    net, data, batches = problem()
    opt = NewtonCG(net.parameters(), 0.1, 7, warm_start=True)
    train(net, opt, batches[:2])
    twin, other = copy.deepcopy((net, opt))
    assert torch.equal(train(net, opt, batches[2:])[-1], train(twin, other, pairs(twin, data)[2:])[-1])
    assert other.param_groups[0]["max_iter"] == 7


def test_lr_scales_the_step_for_each_group():
    net, data, batches = problem()
    twin = copy.deepcopy(net)
    NewtonCG(net.parameters()).step(*batches[0])
    start = parameters(twin)
    opt = NewtonCG([{"params": list(twin[0].parameters()), "lr": 0.5}, {"params": list(twin[2].parameters())}])
    opt.step(*pairs(twin, data)[0])
    first = sum(p.numel() for p in twin[0].parameters())
    scale = torch.ones_like(start)
    scale[:first] = 0.5
    torch.testing.assert_close(parameters(twin) - start, scale * (parameters(net) - start), **CLOSE)
    with pytest.raises(InvalidInput, match="max_iter cannot differ"):
        NewtonCG([{"params": [leaf(1.0)], "max_iter": 3}])


def test_non_finite_steps_change_nothing_and_are_counted():
    net, data, batches = problem()
    opt = NewtonCG(net.parameters(), warm_start=True)
    for k in range(6):
        opt.step(*batches[k], full=batches)
        if not opt.diagnostics["screened"]:  # g is out of date
            break
    before, state = parameters(net), copy.deepcopy(opt.state_dict())
    counts = dict(opt.counts)
    nan = pairs(net, [(data[0][0] * math.nan, data[0][1])])
    for batch, full in ((nan[0], batches), (batches[0], nan), (nan[0], None)):
        with pytest.warns(SkippedStep, match="finite"):
            opt.step(*batch, full=full)
    assert opt.skipped == 3
    assert torch.equal(parameters(net), before)
    for key, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(opt.state_dict()["state"][key][name])), name
    assert {k: v for k, v in opt.counts.items() if k != "pairs"} == {k: v for k, v in counts.items() if k != "pairs"}


def test_a_stationary_point_and_a_saddle_are_left_alone():
    for J in (lambda t: t**2, lambda t: -(t**2)):
        theta = leaf(0.0)
        opt = NewtonCG([theta])
        opt.step(lambda J=J, theta=theta: J(theta))
        assert theta.item() == 0
        assert (opt.skipped, opt.counts["unmoved"]) == (0, 1)
    theta = leaf(1.0)
    opt = NewtonCG([theta])
    opt.step(lambda: -(theta**2))  # negative curvature at once: no step
    assert theta.item() == 1
    assert opt.diagnostics["negative_curvature"] == 1


def test_bad_use_has_one_clear_error():
    net, _, batches = problem()
    closure, loss = batches[0]
    opt = NewtonCG(net.parameters())
    before = parameters(net)
    for call, error, words in [
        (lambda: opt.step(), InvalidInput, "needs a closure"),
        (lambda: opt.step(closure, lambda o: loss(o).mean()), InvalidInput, 'reduction="none"'),
        (lambda: opt.step(closure, loss, full=iter(batches)), InvalidInput, "only once"),
        (lambda: opt.step(closure, loss, full=[]), InvalidInput, "full is empty"),
        (lambda: opt.step(closure, loss, full=[closure]), InvalidInput, "no .closure, loss. pair"),
        (lambda: NewtonCG(net.parameters(), taylor_ratio=0.0), InvalidInput, "taylor_ratio"),
        (lambda: NewtonCG(net.parameters(), max_iter=0), InvalidInput, "max_iter"),
        (lambda: NewtonCG(net.parameters(), tolerance=-1.0), InvalidInput, "tolerance"),
        (lambda: NewtonCG(net.parameters(), global_pairs=0), InvalidInput, "global_pairs"),
        (lambda: NewtonCG(net.parameters(), search="wolfe"), UnknownName, "armijo"),
        (lambda: NewtonCG(net.parameters(), printed=["line 21"]), UnknownName, "alpha"),
        (lambda: NewtonCG(net.parameters(), engine={"product": "shared"}), UnknownName, "engine"),
        (lambda: NewtonCG(net.parameters(), backend="jax").step(closure, loss), UnknownName, "backend"),
    ]:
        with pytest.raises(error, match=words):
            call()
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="autocast"):
        opt.step(closure, loss)
    assert torch.equal(parameters(net), before)


def test_micro_batches_take_the_same_steps():
    net, data, batches = problem()
    twin = copy.deepcopy(net)
    train(net, NewtonCG(net.parameters()), batches, batches)
    opt = NewtonCG(twin.parameters())
    for x, y in data:
        parts = pairs(twin, list(zip(x.split([3, 5]), y.split([3, 5]), strict=True)))
        opt.step(parts, full=pairs(twin, data))
    torch.testing.assert_close(parameters(net), parameters(twin), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{}, {"search": "armijo", "tries": 40}, {"curvature": "ggn"}, {"taylor_ratio": 0.2}]
)
def test_batch_norm_and_dropout_train(options):
    """A convolutional network with both: statistics advance once a step, trials see the same masks, the loss falls."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 3)
    ).double()  # fmt: skip
    x = torch.randn(48, 1, 6, 6, dtype=torch.float64)
    y = x.flatten(1)[:, :3].argmax(1)
    data = list(zip(x.split(24), y.split(24), strict=True))
    opt = NewtonCG(net.parameters(), check_every=1, **options)
    before = float(objective(net.eval(), data).detach())
    net.train()
    for _ in range(6):
        for closure, loss in pairs(net, data):
            opt.step(closure, loss, full=pairs(net, data))
    assert net[1].num_batches_tracked == 12
    assert opt.skipped == 0
    assert float(objective(net.eval(), data).detach()) < 0.8 * before


@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_transformers_train_at_small_size(name):
    torch.manual_seed(0)
    if name == "vit":
        net = networks.VisionTransformer(width=8, heads=2, depth=1, patch=16).double()
        x, y = torch.randn(8, 3, 32, 32).double(), torch.randint(10, (8,))
    else:
        net = networks.LanguageModel(tokens=10, width=8, heads=2, depth=1, length=6).double()
        tokens = torch.randint(10, (8, 7))
        x, y = tokens[:, :-1], tokens[:, 1:]
    opt = NewtonCG(net.parameters(), max_iter=6)
    loss = lambda o: F.cross_entropy(o.movedim(-1, 1), y, reduction="none")
    losses = [float(opt.step(lambda: net(x), loss, full=[(lambda: net(x), loss)])) for _ in range(8)]
    assert opt.skipped == 0
    assert losses[-1] < 0.8 * losses[0]


def test_as_a_method_of_the_laboratory():
    net, _, batches = problem()
    optimizer, scheduler = METHODS["csdd"].build(net.parameters(), 2, max_iter=4, decay=0.5)
    report = take_step(optimizer, *batches[0])
    assert report["step"] == optimizer.diagnostics["step"]
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert math.isfinite(report["loss"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_steps():
    net, data, batches = problem()
    twin = copy.deepcopy(net).cuda()
    there = pairs(twin, [(x.cuda(), y.cuda()) for x, y in data])
    a = train(net, NewtonCG(net.parameters()), batches, batches)
    b = train(twin, NewtonCG(twin.parameters()), there, there)
    torch.testing.assert_close(a, [v.cpu() for v in b], rtol=1e-7, atol=1e-8)
