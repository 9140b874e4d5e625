"""RED against the paper's statements, each exact in float64. The claim ids are those of book/claims.yaml."""

from __future__ import annotations

import copy
import io
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.curvature.tree import inner
from reprolib.errors import InvalidInput, NotDescent, SkippedStep, UnknownName
from reprolib.optim import RED, ran_schedule, red, red_schedule
from reprolib.optim.red import rescaling
from tests.optim.common import CLOSE, NoLooking, leaf, random_net, train


def per_sample(x, y, net, d, λ):
    """dᵀ∇²J_s d by double reverse mode, one sample at a time: not the package's channel."""
    params, out = list(net.parameters()), []
    for i in range(len(x)):
        loss = F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]) + λ / 2 * sum(p.square().sum() for p in params)
        g = torch.autograd.grad(loss, params, create_graph=True)
        h = torch.autograd.grad(inner(g, d), params)
        out.append(inner(h, d))
    return torch.stack(out)


@pytest.mark.claim("red-alg1", file="optim/red.py", old="average / (1 - beta3**n)", new="average")
def test_algorithm_1_line_by_line():
    """Per-sample |·|, bias correction (at k = 1 the average is c itself), max rule, corrected factor: three steps by hand."""
    net, batches = random_net()
    λ, β3, ℓ = 1e-2, 0.9, 0.7
    params = list(net.parameters())
    opt = RED(params, lr=ℓ, weight_decay=λ)
    average, seen = 0.0, []
    for k, (x, y) in enumerate(batches[:3], start=1):
        before = [p.detach().clone() for p in params]
        mean = F.cross_entropy(net(x), y) + λ / 2 * sum(p.square().sum() for p in params)
        g = torch.autograd.grad(mean, params)
        q = per_sample(x, y, net, g, λ)
        c = q.abs().mean() / inner(g, g)
        average = β3 * average + (1 - β3) * c
        bound = max(average / (1 - β3**k), c)
        r = 2 * inner(g, g) / (inner(g, g) * bound)
        train(net, [(x, y)], opt)
        for p, b, v in zip(params, before, g, strict=True):
            torch.testing.assert_close(p.detach(), b - ℓ * r * v, **CLOSE)
        seen.append((c, bound))
        torch.testing.assert_close(opt.diagnostics["curvature"], c, **CLOSE)
        torch.testing.assert_close(opt.diagnostics["objective"], mean.detach(), **CLOSE)
    assert seen[0][0] == pytest.approx(float(seen[0][1]), rel=1e-10)  # k = 1: the corrected average is c
    assert any(float(bound) > float(c) * (1 + 1e-6) for c, bound in seen[1:])  # the average wins at least once


@pytest.mark.claim("red-alg1", file="optim/red.py", old="if descent and bool(slope < 0):", new="if False:")
def test_algorithm_1_needs_a_descent_direction():
    one = torch.ones((), dtype=torch.float64)
    with pytest.raises(NotDescent, match="does not descend"):
        rescaling(-one, one, one)
    assert rescaling(-one, one, one, descent=False) == 2


@pytest.mark.claim("red-alg3", file="optim/red.py", old="factor ** (epoch / epochs)", new="factor**epoch")
def test_algorithm_3_schedule_halves_the_rate_over_the_epochs():
    net, batches = random_net()
    opt = RED(net.parameters())
    scheduler = red_schedule(opt, 4)
    rates = []
    for _ in range(5):
        rates.append(opt.param_groups[0]["lr"])
        train(net, batches, opt, 1)
        scheduler.step()
    torch.testing.assert_close(rates, [0.5 ** (n / 4) for n in range(5)], rtol=1e-14, atol=0)
    assert rates[0] == 1.0
    assert rates[4] == 0.5


@pytest.mark.claim("red-alg3", file="optim/red.py", old="(1 - beta2**k)", new="(1 - beta2)")
def test_algorithm_3_directions_and_step():
    """D = g, or g / (√v̂ + ε) with bias correction; the step is −ℓ r d."""
    for preconditioner in (None, "rmsprop"):
        net, batches = random_net()
        params = list(net.parameters())
        opt = RED(params, lr=0.6, preconditioner=preconditioner, weight_decay=1e-3)
        v = [torch.zeros_like(p) for p in params]
        for k, (x, y) in enumerate(batches[:3], start=1):
            before = [p.detach().clone() for p in params]
            mean = F.cross_entropy(net(x), y) + 1e-3 / 2 * sum(p.square().sum() for p in params)
            g = torch.autograd.grad(mean, params)
            v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
            d = [b / ((a / (1 - 0.999**k)).sqrt() + 1e-8) for a, b in zip(v, g, strict=True)] if preconditioner else g
            train(net, [(x, y)], opt)
            r = opt.diagnostics["rescaling"]
            for p, b, w in zip(params, before, d, strict=True):
                torch.testing.assert_close(p.detach(), b - 0.6 * r * w, **CLOSE)


@pytest.mark.claim("red-alg4", file="optim/red.py", old='d = new["mean"] / (1 - beta1**k)', new='d = new["mean"]')
def test_algorithm_4_with_rmsprop_moves_along_adams_direction():
    net, batches = random_net()
    twin = copy.deepcopy(net)
    opt = RED(net.parameters(), beta1=0.9, preconditioner="rmsprop", weight_decay=0.0, lr=0.01)
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for x, y in batches[:4]:
        with torch.no_grad():  # Adam starts each step where RED is
            for a, b in zip(twin.parameters(), net.parameters(), strict=True):
                a.copy_(b)
        start = torch.cat([p.detach().flatten() for p in net.parameters()]).clone()
        ours = train(net, [(x, y)], opt)[0] - start
        adam.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        adam.step()
        theirs = torch.cat([p.detach().flatten() for p in twin.parameters()]) - start
        torch.testing.assert_close(ours / opt.diagnostics["step"], theirs / 1e-3, rtol=1e-8, atol=1e-9)


@pytest.mark.claim("red-alg4", file="optim/red.py", old="slope.abs() / (norm2 * bound)", new="slope / (norm2 * bound)")
def test_algorithm_4_uses_the_absolute_value_of_an_ascending_step():
    """1-D, J = ½θ²: after overshooting, the mean gradient still points the old way; the step keeps going along −d."""
    theta = leaf(1.0)
    opt = RED([theta], lr=0.8, beta1=0.9, weight_decay=0.0)
    opt.step(lambda: 0.5 * theta**2)
    assert theta.item() == pytest.approx(1 - 2 * 0.8)
    before = theta.item()
    opt.step(lambda: 0.5 * theta**2)
    assert opt.diagnostics["slope"] < 0  # not a descent direction of this point
    assert opt.diagnostics["step"] > 0
    d = (0.09 * 1.0 + 0.1 * before) / (1 - 0.81)
    assert theta.item() == pytest.approx(before - 0.8 * 2 * abs(d * before) / d**2 * d, rel=1e-12)


@pytest.mark.claim("red-guide1", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 1.0')
def test_regimes_on_a_quadratic():
    """ℓ = 1: the loss is what it was. ℓ = ½: the minimum along d."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, generator=g, dtype=torch.float64)
    A, b = a @ a.T + torch.eye(5, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    start = torch.randn(5, generator=g, dtype=torch.float64)

    def J(theta):
        return (0.5 * theta @ A @ theta - b @ theta).reshape(1)

    for preconditioner in (None, "rmsprop"):
        after = {}
        for ℓ in (0.25, 0.45, 0.5, 0.55, 1.0, 2.0):
            theta = start.clone().requires_grad_()
            opt = RED([theta], lr=ℓ, preconditioner=preconditioner, weight_decay=0.0)
            before = opt.step(lambda theta=theta: J(theta))
            after[ℓ] = float(J(theta).detach() - before)
        assert after[1.0] == pytest.approx(0, abs=1e-11)
        assert after[0.5] == min(after.values()) < 0
        assert after[0.45] == pytest.approx(after[0.55], rel=1e-9)  # symmetric about the minimum
        assert after[2.0] > 0


@pytest.mark.claim("red-guide2", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 0.5')
def test_beyond_one_the_loss_rises():
    for ℓ in (1.5, 2.0):
        theta = leaf(3.0, -1.0)
        scales = torch.tensor([1.0, 10.0], dtype=torch.float64)
        opt = RED([theta], lr=ℓ, weight_decay=0.0)
        before = opt.step(lambda theta=theta: 0.5 * (scales * theta**2).sum().reshape(1))
        assert 0.5 * (scales * theta.detach() ** 2).sum() > before


@pytest.mark.claim("red-eq9", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 4.0')
def test_descent_inequality():
    """(11): with L the maximum of |curvature| on the segment, J falls for ℓ in (0, 1), and by at least the bound."""
    torch.manual_seed(0)
    one = torch.ones((), dtype=torch.float64)
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        weights, phase = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2))

        def J(t, weights=weights, phase=phase):  # a smooth function along the line θ − t d, with d = 1
            return (weights * torch.sin(phase - t[..., None])).sum(-1) + 0.2 * (1.0 - t) ** 2

        def slope_and_curvature(t, weights=weights, phase=phase):
            sin, cos = torch.sin(phase - t[..., None]), torch.cos(phase - t[..., None])
            return (weights * cos).sum(-1) + 0.4 * (1.0 - t), -(weights * sin).sum(-1) + 0.4

        zero = torch.zeros((), dtype=torch.float64)
        slope = slope_and_curvature(zero)[0]
        sign = torch.sign(slope)  # walk downhill
        L = torch.ones((), dtype=torch.float64)
        for _ in range(60):  # L is the maximum over a segment that depends on L: grow it until it covers itself
            r = rescaling(slope * sign, one, L)
            grid = torch.linspace(0, 1, 4001, dtype=torch.float64) * r * sign
            need = slope_and_curvature(grid)[1].abs().max()
            if need <= L:
                break
            L = need * 1.01
        for ℓ in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0):
            fall = J(ℓ * r * sign) - J(zero)
            assert fall <= (ℓ**2 - ℓ) * L / 2 * r**2 + 1e-9 * (1 + abs(fall))


@pytest.mark.claim(
    "red-guide3",
    file="optim/red.py",
    old="p.sub_(chosen(sound, length * d[offset], 0.0))",
    new="p.sub_(chosen(sound, d[offset], 0.0))",
)
def test_below_one_half_the_stationary_error_shrinks():
    """½E‖θ − X‖²: the variance at rest is Var(X)/B · ℓ'/(2 − ℓ') with ℓ' = 2ℓ, so it falls with ℓ."""
    g = torch.Generator().manual_seed(0)
    variances = []
    for ℓ in (0.5, 0.25, 0.1):
        theta = leaf(*[0.0] * 400)  # 400 coordinates are 400 independent copies of the 1-D problem
        opt = RED([theta], lr=ℓ, weight_decay=0.0)
        for _ in range(40):
            x = torch.randn(4, 400, generator=g, dtype=torch.float64)
            opt.step(lambda: 0.5 * (theta - x).square().sum(1))
        variances.append(theta.detach().square().mean().item())
        expected = 0.25 * 2 * ℓ / (2 - 2 * ℓ)
        assert variances[-1] == pytest.approx(expected, rel=0.2)
    assert variances[0] > variances[1] > variances[2]


@pytest.mark.claim("red-ex1", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 1.0')
def test_square_root_example_diverges_as_minus_theta_cubed():
    # from 1.2 the fifth iterate is near −1e19, where √(1+θ²) has lost its curvature to rounding: four steps there, six from
    # 1.02, which has grown to 1e6 by then
    for start, steps in ((1.2, 4), (1.02, 6), (0.8, 6)):
        paths = {}
        for factor in ("corrected", "eq10", "line7"):
            theta = leaf(start)
            opt = RED([theta], lr=0.5, beta3=0.0, weight_decay=0.0, factor=factor)
            paths[factor] = []
            for _ in range(steps):
                opt.step(lambda theta=theta: torch.sqrt(1 + theta**2))
                paths[factor].append(theta.item())
        expected, x = [], start
        for _ in range(steps):
            x = -(x**3)
            expected.append(x)
        torch.testing.assert_close(paths["corrected"], expected, rtol=1e-9, atol=1e-15)
        for factor in ("eq10", "line7"):
            assert abs(paths[factor][0] - expected[0]) > 0.1
            assert abs(paths[factor][-1]) < 1  # they converge, whatever the start


@pytest.mark.claim(
    "red-ex2",
    file="optim/red.py",
    old="moves = finite & torch.isfinite(torch.stack(lengths)).all()",
    new="moves = finite",
)
def test_vanishing_curvature_changes_nothing_and_is_reported():
    theta = leaf(2.0)
    opt = RED([theta], beta3=0.0, weight_decay=0.0)
    with pytest.warns(SkippedStep, match="undefined"):
        opt.step(lambda: 3 * theta)
    assert theta.item() == 2.0
    assert opt.skipped == 1
    assert math.isinf(opt.diagnostics["rescaling"])
    λ = 1e-3
    opt = RED([theta], beta3=0.0, weight_decay=λ)
    opt.step(lambda: 3 * theta)
    assert opt.diagnostics["curvature"] == pytest.approx(λ, rel=1e-12)  # c ≥ λ, here equal
    assert opt.skipped == 0


@pytest.mark.claim("red-ex3", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 1.0')
def test_stochastic_quadratic_jumps_to_the_batch_mean():
    g = torch.Generator().manual_seed(0)
    for beta3 in (0.0, 0.9):
        theta = leaf(5.0, -5.0)
        opt = RED([theta], lr=0.5, beta3=beta3, weight_decay=0.0)
        means = []
        for _ in range(400):
            x = 2 * torch.randn(16, 2, generator=g, dtype=torch.float64)
            opt.step(lambda: 0.5 * (theta - x).square().sum(1))
            torch.testing.assert_close(theta.detach(), x.mean(0), rtol=0, atol=1e-12)
            means.append(x.mean(0))
        assert torch.stack(means).var().item() == pytest.approx(4 / 16, rel=0.2)  # Var(X)/B, and it stays there
    for factor in ("eq10", "line7"):
        theta = leaf(5.0, -5.0)
        opt = RED([theta], lr=0.5, weight_decay=0.0, factor=factor)
        opt.step(lambda: 0.5 * (theta - x).square().sum(1))
        assert (theta.detach() - x.mean(0)).abs().min() > 1


@pytest.mark.claim("red-rm", file="optim/red.py", old="high / k**power", new="high")
def test_robbins_monro_clamp_converges():
    """red-ex3 with (12): the error goes to 0 like the step, 1/k^δ."""
    errors = []
    for clamp in (None, (0.1, 1.0, 0.8)):
        g = torch.Generator().manual_seed(3)
        theta = leaf(*[5.0] * 200)
        opt = RED([theta], lr=0.5, weight_decay=0.0, clamp=clamp)
        squares = []
        for k in range(1, 301):
            x = 1 + torch.randn(4, 200, generator=g, dtype=torch.float64)
            opt.step(lambda: 0.5 * (theta - x).square().sum(1))
            squares.append((theta.detach() - 1).square().mean())
            if clamp:
                assert 0.1 / k**0.8 <= opt.diagnostics["step"] <= 1.0 / k**0.8 * (1 + 1e-12)
        errors.append((float(squares[29]), float(squares[299])))
    assert errors[0][1] == pytest.approx(0.25, rel=0.4)  # unclamped: Var(X)/B, for ever
    assert errors[1][1] == pytest.approx(errors[1][0] * 10**-0.8, rel=0.5)  # clamped: like the step, k^(−0.8)


@pytest.mark.claim(
    "red-l2", file="optim/red.py", old="per_sample = model.curvature(d) + shift", new="per_sample = model.curvature(d)"
)
def test_l2_shifts_every_per_sample_curvature_by_lambda():
    net, batches = random_net()
    x, y = batches[0]
    λ = 0.37
    g = torch.autograd.grad(
        F.cross_entropy(net(x), y) + λ / 2 * sum(p.square().sum() for p in net.parameters()), list(net.parameters())
    )
    shifted, plain = per_sample(x, y, net, g, λ), per_sample(x, y, net, g, 0.0)
    torch.testing.assert_close(shifted - plain, torch.full_like(plain, λ) * inner(g, g), **CLOSE)
    opt = RED(net.parameters(), weight_decay=λ)
    train(net, [(x, y)], opt)
    torch.testing.assert_close(opt.diagnostics["curvature"], shifted.abs().mean() / inner(g, g), **CLOSE)


@pytest.mark.claim(
    "red-inv",
    file="optim/red.py",
    old='c = (per_sample.abs().mean() if options["absolute"] == "per-sample" else per_sample.mean().abs()) / norm2',
    new='c = (per_sample.abs().mean() if options["absolute"] == "per-sample" else per_sample.mean().abs())',
)
def test_scaling_the_preconditioner_leaves_the_trajectory():
    """D ← α_k d with any α_k > 0 at each step: c is unchanged, r is divided by α_k, r d is unchanged."""

    class Scaled(RED):
        def _direction(self, g, k):
            d, moments = super()._direction(g, k)
            α = 10.0 ** (2 * math.sin(3 * k))
            return tuple(α * v for v in d), moments

    paths = []
    for kind in (RED, Scaled):
        net, batches = random_net()
        paths.append(train(net, batches, kind(net.parameters(), lr=0.8, preconditioner="rmsprop")))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-10, atol=1e-10)


def test_a_negative_scale_breaks_the_descent_precondition():
    class Flipped(RED):
        def _direction(self, g, k):
            d, moments = super()._direction(g, k)
            return tuple(-v for v in d), moments

    net, batches = random_net()
    before = torch.cat([p.detach().flatten() for p in net.parameters()]).clone()
    with pytest.raises(NotDescent):
        train(net, batches, Flipped(net.parameters()))
    assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), before)


@pytest.mark.claim(
    "red-abs",
    file="optim/red.py",
    old='per_sample.abs().mean() if options["absolute"]',
    new='per_sample.mean().abs() if options["absolute"]',
)
def test_the_absolute_value_is_inside_the_batch_mean():
    """Two samples of opposite curvature: inside 1, outside 0."""
    theta = leaf(1.0)
    both = lambda: torch.stack([0.5 * theta[0] ** 2 + theta[0], -0.5 * theta[0] ** 2 + theta[0]])
    opt = RED([theta], weight_decay=0.0)
    opt.step(both)
    assert opt.diagnostics["curvature"] == pytest.approx(1.0, rel=1e-12)
    net, batches = random_net()
    d = tuple(torch.randn_like(p) for p in net.parameters())
    for x, y in batches:
        q = per_sample(x, y, net, d, 0.0)
        assert q.abs().mean() >= q.mean().abs()
    outside = RED([leaf(1.0)], weight_decay=0.0, absolute="batch")
    theta = outside.param_groups[0]["params"][0]
    with pytest.warns(SkippedStep):
        outside.step(lambda: torch.stack([0.5 * theta[0] ** 2 + theta[0], -0.5 * theta[0] ** 2 + theta[0]]))


# ---- as an optimizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preconditioner": "rmsprop"},
        {"beta1": 0.9, "preconditioner": "rmsprop", "lr": 0.1},
        {"every": 3},  # after five steps the next one but one measures
        {"every": 4, "beta1": 0.9, "preconditioner": "rmsprop", "lr": 0.1},  # the fifth step has measured
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_exactly(options, dtype):
    net, batches = random_net()
    net.to(dtype)
    batches = [(x.to(dtype), y) for x, y in batches]
    opt = RED(net.named_parameters(), **options)
    scheduler = red_schedule(opt, 10)
    train(net, batches, opt, 5)
    scheduler.step()
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict(), scheduler.state_dict()), file)
    through = train(net, batches[5:], opt)
    file.seek(0)
    again, _ = random_net(seed=9)
    again.to(dtype)
    resumed = RED(again.named_parameters(), **options)
    schedule = red_schedule(resumed, 10)
    for thing, state in zip((again, resumed, schedule), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(through, train(again, batches[5:], resumed), strict=True))


def test_copies_and_pickles_keep_their_options():
    net, batches = random_net()
    opt = RED(net.parameters(), beta3=0.5, clamp=(0.1, 1.0, 0.7))
    train(net, batches, opt, 2)
    twin_net, twin = copy.deepcopy((net, opt))
    assert torch.equal(train(net, batches[2:], opt, 3)[-1], train(twin_net, batches[2:], twin, 3)[-1])


def test_ran_schedule_cycles():
    net, _ = random_net()
    opt = RED(net.parameters())
    scheduler = ran_schedule(opt)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler is stepped here without the optimizer
        for _ in range(40):
            rates.append(opt.param_groups[0]["lr"])
            scheduler.step()
    assert rates == ([1.0] * 5 + [0.5] * 13 + [2.0] * 2) * 2


def test_groups_have_their_own_rate_and_decay():
    net, batches = random_net()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.0},
        {"params": list(net[2].parameters()), "weight_decay": 0.1},
    ]
    opt = RED(groups, lr=0.5, weight_decay=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, batches, opt, 2)
    moved = [not torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    with pytest.raises(InvalidInput, match="beta3 cannot differ"):
        RED([{"params": list(net.parameters()), "beta3": 0.1}])


def test_non_finite_steps_change_nothing():
    net, batches = random_net()
    opt = RED(net.parameters(), preconditioner="rmsprop")
    train(net, batches, opt, 2)
    before, state = copy.deepcopy(list(net.parameters())), copy.deepcopy(opt.state_dict())
    x, y = batches[0]
    with pytest.warns(SkippedStep, match="finite"):
        opt.step(lambda: net(x * math.nan), lambda o: F.cross_entropy(o, y, reduction="none"))
    assert opt.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    after = opt.state_dict()
    for key, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][key][name])), name


def test_a_stationary_point_is_left_alone():
    theta = leaf(0.0)
    opt = RED([theta], weight_decay=0.0)
    assert opt.step(lambda: theta**2) == 0
    assert theta.item() == 0
    assert opt.skipped == 0


def test_bad_use_has_one_clear_error():
    net, batches = random_net()
    x, y = batches[0]
    opt = RED(net.parameters())
    for call, error, words in [
        (lambda: opt.step(), InvalidInput, "needs a closure"),
        (lambda: opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y)), InvalidInput, 'reduction="none"'),
        (lambda: opt.step(lambda: F.cross_entropy(net(x), y)), InvalidInput, 'reduction="none"'),
        (lambda: RED(net.parameters(), preconditioner="adam"), UnknownName, "rmsprop"),
        (lambda: RED(net.parameters(), factor="paper"), UnknownName, "corrected"),
        (lambda: RED(net.parameters(), absolute="inside"), UnknownName, "per-sample"),
        (lambda: RED(net.parameters(), lr=-1.0), InvalidInput, "lr = -1.0"),
        (lambda: RED(net.parameters(), beta3=1.0), InvalidInput, "beta3"),
        (lambda: RED(net.parameters(), clamp=(1.0, 0.1, 0.8)), InvalidInput, "clamp"),
        (lambda: RED(net.parameters(), every=0), InvalidInput, "every = 0"),
        (lambda: RED(net.parameters(), every=2.5), InvalidInput, "every = 2.5"),
        (lambda: RED(net.parameters(), every=math.nan), InvalidInput, "every = nan"),
        (lambda: RED(net.parameters(), check_every=0), InvalidInput, "check_every = 0"),
        (lambda: RED([{"params": list(net.parameters()), "every": 2}]), InvalidInput, "every cannot differ"),
        (lambda: red_schedule(opt, 0), InvalidInput, "epochs"),
        (lambda: ran_schedule(opt, []), InvalidInput, "phases"),
    ]:
        with pytest.raises(error, match=words):
            call()
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="autocast"):
        train(net, batches, opt, 1)


def test_batch_norm_and_dropout_train():
    """RED on a network with both: statistics advance once a step, and the loss falls."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    opt = RED(net.parameters(), check_every=1)
    losses = [float(opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y, reduction="none"))) for _ in range(30)]
    assert net[1].num_batches_tracked == 30
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_steps():
    net, batches = random_net()
    twin = copy.deepcopy(net).cuda()
    a = train(net, batches, RED(net.parameters()))
    b = train(twin, [(x.cuda(), y.cuda()) for x, y in batches], RED(twin.parameters()))
    torch.testing.assert_close(a, [v.cpu() for v in b], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("engine", [{"products": "shared"}, {"memory": "recompute"}, {"batch_norm": "by-index"}])
def test_the_engine_does_not_change_the_steps(engine):
    ends = []
    for options in (None, engine):
        net, batches = random_net()
        opt = RED(net.parameters(), engine=options)
        train(net, batches, opt, 1)
        ends.append([p.detach().clone() for p in net.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


def test_unknown_engine_options_are_refused():
    with pytest.raises(UnknownName, match="engine"):
        RED([torch.zeros(2, requires_grad=True)], engine={"product": "shared"})


@pytest.mark.parametrize("options", [{}, {"preconditioner": "rmsprop"}, {"every": 3}], ids=str)
def test_a_step_reads_no_number_where_that_would_wait(monkeypatch, options):
    """As on a GPU: between checks no number is read, an undefined step still changes nothing and is counted."""
    monkeypatch.setattr(red, "free_to_look", lambda t: False)
    net, batches = random_net()
    looking = copy.deepcopy(net)
    opts = [RED(n.parameters(), **options) for n in (net, looking)]
    for i, (x, y) in enumerate(batches):
        broken = torch.full_like(x, float("nan")) if i == 2 else x
        if i == 2 and "every" in options:  # the step that the other one does not take is counted
            opts[1].state[next(looking.parameters())]["wait"] -= 1
        with NoLooking() if i else nullcontext():  # the first step checks
            opts[0].step(lambda: net(broken), lambda out: F.cross_entropy(out, y, reduction="none"))
        if i != 2:
            opts[1].step(lambda: looking(x), lambda out: F.cross_entropy(out, y, reduction="none"))
    assert opts[0].skipped == 1
    for a, b in zip(net.parameters(), looking.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


# ---- every: the curvature in some of the steps


EVERY = [
    {},
    {"preconditioner": "rmsprop"},
    {"beta1": 0.5, "preconditioner": "rmsprop", "lr": 0.3},
    {"clamp": (0.05, 0.5, 0.7), "lr": 0.9},
    {"absolute": "batch", "factor": "eq10"},
]


@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("every", [2, 5])
def test_between_measurements_the_average_stands_for_the_curvature(options, every):
    """Steps 1, 1 + every, … measure, by hand; n measurements so far: L = average / (1 - β3^n), directions know all steps."""
    net, batches = random_net()
    params, λ, β2, β3 = list(net.parameters()), 1e-2, 0.9, 0.8
    opt = RED(params, weight_decay=λ, beta2=β2, beta3=β3, every=every, **options)
    ℓ, β1, rmsprop = options.get("lr", 1.0), options.get("beta1", 0.0), "preconditioner" in options
    average, n = 0.0, 0
    m = v = tuple(torch.zeros_like(p) for p in params)
    for k, (x, y) in enumerate(batches, start=1):
        before = [p.detach().clone() for p in params]
        mean = F.cross_entropy(net(x), y) + λ / 2 * sum(p.square().sum() for p in params)
        g = torch.autograd.grad(mean, params)
        m = [β1 * a + (1 - β1) * b for a, b in zip(m, g, strict=True)]
        v = [β2 * a + (1 - β2) * b * b for a, b in zip(v, g, strict=True)]
        d = [a / (1 - β1**k) for a in m]
        d = [a / ((b / (1 - β2**k)).sqrt() + 1e-8) for a, b in zip(d, v, strict=True)] if rmsprop else d
        bound = 0.0
        if (k - 1) % every == 0:
            q = per_sample(x, y, net, d, λ)
            c = (q.mean().abs() if "absolute" in options else q.abs().mean()) / inner(d, d)
            average, n, bound = β3 * average + (1 - β3) * c, n + 1, c
        bound = max(average / (1 - β3**n), bound)
        r = (1 if "factor" in options else 2) * inner(d, g).abs() / (inner(d, d) * bound)
        low, high, power = options.get("clamp", (0.0, math.inf, 1.0))
        length = (ℓ * r).clamp(low / k**power, high / k**power)
        train(net, [(x, y)], opt)
        for p, b, a in zip(params, before, d, strict=True):
            torch.testing.assert_close(p.detach(), b - length * a, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(opt.diagnostics["bound"], bound, **CLOSE)
        assert opt.diagnostics["curvature"].isnan() == bool((k - 1) % every)


def test_where_the_curvature_does_not_change_measuring_it_once_is_enough():
    """½h‖θ‖²: c = h at every point, so L = h in all steps, ℓ = ½ is at the minimum after one and ℓ = 1 jumps across."""
    for every in (1, 2, 100):
        θ = leaf(3.0, -1.0)
        opt = RED([θ], lr=1.0, weight_decay=0.0, every=every)
        for k in range(1, 6):
            opt.step(lambda θ=θ: (2.5 * θ.square().sum()).reshape(1))
            assert opt.diagnostics["bound"] == pytest.approx(5.0, rel=1e-12)
            torch.testing.assert_close(θ.detach(), (-1.0) ** k * leaf(3.0, -1.0).detach(), **CLOSE)
        opt.param_groups[0]["lr"] = 0.5
        opt.step(lambda θ=θ: (2.5 * θ.square().sum()).reshape(1))
        torch.testing.assert_close(θ.detach(), torch.zeros_like(θ), **CLOSE)


def test_every_one_is_the_default_bit_by_bit():
    paths = []
    for options in ({}, {"every": 1}):
        net, batches = random_net()
        paths.append(train(net, batches, RED(net.parameters(), preconditioner="rmsprop", **options)))
    assert all(torch.equal(a, b) for a, b in zip(*paths, strict=True))


def test_a_step_between_is_an_ordinary_pass():
    """It runs the network once; a measurement by autodiff twice more, once to look for what forward mode gets wrong."""
    net, batches = random_net()
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    opt = RED(net.parameters(), every=3, check_every=1, backend="autodiff")
    counts = []
    for batch in batches[:6]:
        passes.clear()
        train(net, [batch], opt)
        counts.append(len(passes))
    assert counts == [3, 1, 1, 3, 1, 1]


def test_between_measurements_groups_have_their_own_rate_and_decay():
    net, batches = random_net()
    first, second = list(net[0].parameters()), list(net[2].parameters())
    opt = RED(
        [{"params": first, "lr": 0.0}, {"params": second, "weight_decay": 0.1}], lr=0.5, weight_decay=0.0, every=4
    )
    train(net, batches, opt, 1)
    bound, held = opt.diagnostics["bound"], copy.deepcopy(first)
    for x, y in batches[1:4]:
        before = [p.detach().clone() for p in second]
        loss = F.cross_entropy(net(x), y) + 0.05 * sum(p.square().sum() for p in second)
        g = torch.autograd.grad(loss, first + second)
        train(net, [(x, y)], opt)
        assert all(torch.equal(a, b) for a, b in zip(held, first, strict=True))
        for p, b, a in zip(second, before, g[2:], strict=True):
            torch.testing.assert_close(p.detach(), b - 0.5 * 2 / bound * a, **CLOSE)  # r = 2/L, for d = g


@pytest.mark.parametrize("options", [{"every": 3}, {"every": 2, "preconditioner": "rmsprop"}], ids=str)
def test_between_measurements_too_a_batch_may_come_in_parts(options):
    net, batches = random_net()
    twin = copy.deepcopy(net)
    whole, parts = (RED(n.parameters(), check_every=1, **options) for n in (net, twin))
    for x, y in batches:
        train(net, [(x, y)], whole)
        pairs = [
            (lambda x=x[i]: twin(x), lambda o, y=y[i]: F.cross_entropy(o, y, reduction="none"))
            for i in (slice(3), slice(3, None))
        ]
        parts.step(pairs)
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_measurement_that_is_lost_with_its_step():
    """The first one is taken in the next step. A later one is not: L stays, and the step after waits for its turn."""
    net, batches = random_net()
    opt = RED(net.parameters(), every=3)
    broken = [(torch.full_like(x, math.nan), y) for x, y in batches]
    measured, bounds = [], []
    for i, (sound, bad) in enumerate(zip(batches, broken, strict=True)):
        lost = i in (0, 1, 5)
        with pytest.warns(SkippedStep) if lost else nullcontext():
            train(net, [bad if lost else sound], opt)
        measured.append(not opt.diagnostics["curvature"].isnan())
        bounds.append(float(opt.diagnostics["bound"]))
    assert [i for i, m in enumerate(measured) if m] == [2, 8, 11]  # 0, 1 and 5 had no number to show
    assert bounds[3] == bounds[4] == bounds[6] == bounds[7]
    assert opt.skipped == 3


def test_without_curvature_the_next_step_measures():
    """A locally linear first batch: there is no L for the steps between."""
    θ = leaf(2.0)
    opt = RED([θ], weight_decay=0.0, every=10, lr=0.5)
    with pytest.warns(SkippedStep, match="undefined"):
        opt.step(lambda: 3 * θ)
    opt.step(lambda: θ.square())
    assert opt.diagnostics["curvature"] == 2
    assert θ.item() == pytest.approx(0.0, abs=1e-12)


def test_a_checkpoint_of_steps_that_all_measured_can_be_continued():
    """Its state had neither the number of measurements nor the wait for the next one, its options no ``every``."""
    net, batches = random_net()
    opt = RED(net.parameters())
    train(net, batches, opt, 5)
    state, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(net.state_dict())
    del state["param_groups"][0]["every"], state["state"][0]["measurements"], state["state"][0]["wait"]
    through = train(net, batches[5:], opt)
    net.load_state_dict(weights)
    resumed = RED(net.parameters())
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(through, train(net, batches[5:], resumed), strict=True))


def test_on_a_network_with_effects_every_step_has_them_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    opt = RED(net.parameters(), check_every=1, every=4)
    losses = [float(opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y, reduction="none"))) for _ in range(30)]
    assert net[1].num_batches_tracked == 30
    assert losses[-1] < 0.5 * losses[0]
