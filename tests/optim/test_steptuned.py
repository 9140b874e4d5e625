"""Step-Tuned SGD by hand, in float64."""

from __future__ import annotations

import copy
import io
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.errors import InvalidInput, SkippedStep
from reprolib.optim import StepTunedSGD, steptuned
from reprolib.tasks.toy import with_spectrum
from tests.optim.common import CLOSE, NoLooking, gradient, leaf, parameters, random_net, train


def quadratic(eigenvalues, seed: int = 0):
    """(θ, J, H) with J = ½ θᵀHθ, of one sample."""
    g = torch.Generator().manual_seed(seed)
    H = with_spectrum(eigenvalues, g)
    θ = torch.randn(len(eigenvalues), generator=g, dtype=torch.float64).requires_grad_()
    return θ, lambda: (0.5 * θ @ H @ θ).reshape(1), H


WIDE = (1e-6, 1e6)  # bounds that no quotient reaches


@pytest.mark.parametrize("λ", [0.0, 0.02])
@pytest.mark.parametrize("bounds", [(2.0, 9.0), WIDE])
def test_the_algorithm_line_by_line(λ, bounds):
    """θ½, θ, G, Ĝ, γ and the decay, over twelve batches."""
    net, batches = random_net()
    α, ν, β, δ = 0.4, 1.7, 0.8, 0.1
    opt = StepTunedSGD(net.parameters(), lr=α, nu=ν, beta=β, bounds=bounds, delta=δ, weight_decay=λ)
    γ, G, seen = 1.0, torch.zeros_like(parameters(net)), []
    for k, (x, y) in enumerate(batches):
        there, θ = copy.deepcopy(net), parameters(net)
        η = α * γ / (k + 1) ** (0.5 + δ)
        g = gradient(there, x, y, λ)
        before = F.cross_entropy(there(x), y).detach()
        nn.utils.vector_to_parameters(θ - η * g, there.parameters())
        h = gradient(there, x, y, λ)
        train(net, [(x, y)], opt)
        torch.testing.assert_close(parameters(net), θ - η * g - η * h, **CLOSE)
        d = opt.diagnostics
        torch.testing.assert_close(d["loss"], before, **CLOSE)
        torch.testing.assert_close(d["objective"], before + λ / 2 * θ @ θ, **CLOSE)
        torch.testing.assert_close(d["direction_norm"], g.norm(), **CLOSE)
        assert (float(d["step"]), float(d["gamma"])) == pytest.approx((η, γ), rel=1e-9)
        Δθ = -η * g
        G = β * G + (1 - β) * (h - g)
        bend = float(G @ Δθ / (1 - β ** (k + 1)))
        assert float(d["curvature"]) == pytest.approx(bend / float(Δθ @ Δθ), rel=1e-7)
        γ = min(max(float(Δθ @ Δθ) / bend if bend > 0 else ν, bounds[0]), bounds[1])
        seen.append(γ)
    assert len(set(seen)) > 3
    assert ((min(seen), max(seen)) == bounds) == (bounds == (2.0, 9.0))  # both of them are met


@pytest.mark.parametrize(("beta", "steps"), [(0.0, 8), (0.9, 1)])
def test_on_a_quadratic_gamma_is_the_inverse_rayleigh_quotient(beta, steps):
    """Δg = HΔθ, so γ_{k+1} = gᵀg / gᵀHg: in all steps without averaging, in the first one with any."""
    θ, J, H = quadratic([0.7, 1.0, 1.9])
    opt = StepTunedSGD([θ], lr=0.3, beta=beta, bounds=WIDE)
    for _ in range(steps):
        g = H @ θ.detach()
        opt.step(J)
        γ = float(opt.state[θ]["gamma"])
        assert pytest.approx(float((g @ g) / (g @ H @ g)), rel=1e-9) == γ
        assert 1 / 1.9 <= γ <= 1 / 0.7
        assert float(opt.diagnostics["curvature"]) == pytest.approx(1 / γ, rel=1e-9)


def test_the_average_has_the_bias_of_its_beginning_removed():
    """In one dimension with equal Δg in all steps Ĝ would be Δg at once; here Ĝ of the second step by hand."""
    h, α, β = 2.0, 0.1, 0.6
    θ = leaf(1.0)
    opt = StepTunedSGD([θ], lr=α, beta=β, bounds=WIDE)
    changes = []
    for k in (1, 2):
        η = α * (1.0 if k == 1 else 1 / h) / k**0.501
        changes.append(-h * η * h * θ.item())  # Δg = h Δθ
        opt.step(lambda: 0.5 * h * θ**2)
    average = (β * changes[0] + changes[1]) * (1 - β) / (1 - β**2)
    assert float(opt.state[θ]["gamma"]) == pytest.approx(changes[1] / h / average, rel=1e-9)


@pytest.mark.parametrize(
    ("h", "nu", "gamma"),
    [
        (1.25, 2.0, 0.8),
        (5.0, 2.0, 0.5),  # 1/5 is below m
        (0.1, 2.0, 2.0),  # 10 is above M
        (-1.0, 1.5, 1.5),  # bends downwards
        (-1.0, 7.0, 2.0),  # ν too is kept within the bounds
        (0.0, 1.5, 1.5),  # no curvature at all
    ],
)
def test_bounds_and_what_replaces_a_quotient_that_is_not_positive(h, nu, gamma):
    θ = leaf(1.0)
    opt = StepTunedSGD([θ], lr=0.1, nu=nu)
    opt.step(lambda: 0.5 * h * θ**2 + θ)
    opt.step(lambda: 0.5 * h * θ**2 + θ)
    assert float(opt.diagnostics["gamma"]) == pytest.approx(gamma, rel=1e-9)
    assert float(opt.diagnostics["step"]) == pytest.approx(0.1 * gamma / 2**0.501, rel=1e-9)


def test_with_equal_bounds_it_is_sgd_of_two_steps_for_each_batch():
    net, batches = random_net()
    twin = copy.deepcopy(net)
    opt = StepTunedSGD(net.parameters(), lr=0.3, bounds=(1.0, 1.0), delta=0.2, weight_decay=0.01)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.3, weight_decay=0.01)
    for k, (x, y) in enumerate(batches, start=1):
        train(net, [(x, y)], opt)
        sgd.param_groups[0]["lr"] = 0.3 / k**0.7
        for _ in range(2):
            sgd.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            sgd.step()
        torch.testing.assert_close(parameters(net), parameters(twin), **CLOSE)


def test_groups_have_their_own_rate_and_decay():
    net, batches = random_net()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.0},
        {"params": list(net[2].parameters()), "weight_decay": 0.1},
    ]
    opt = StepTunedSGD(groups, lr=0.5)
    x, y = batches[0]
    before = [p.detach().clone() for p in net.parameters()]
    there = copy.deepcopy(net)
    for _ in range(2):
        loss = F.cross_entropy(there(x), y) + 0.05 * sum(p.square().sum() for p in there[2].parameters())
        g = torch.autograd.grad(loss, list(there[2].parameters()))
        with torch.no_grad():
            for p, v in zip(there[2].parameters(), g, strict=True):
                p -= 0.5 * v
    train(net, [(x, y)], opt)
    assert all(torch.equal(a, p) for a, p in zip(before[:2], net[0].parameters(), strict=True))
    for a, p in zip(there[2].parameters(), net[2].parameters(), strict=True):
        torch.testing.assert_close(a, p, **CLOSE)
    with pytest.raises(InvalidInput, match="beta cannot differ"):
        StepTunedSGD([{"params": list(net.parameters()), "beta": 0.1}], lr=0.1)


def test_both_gradients_are_of_the_same_function():
    """With dropout and batch-norm: same mask, statistics and random numbers move on once; so γ is 1/curvature of it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    twin, α = copy.deepcopy(net), 1e-6
    opt = StepTunedSGD(net.parameters(), lr=α, beta=0.0, bounds=WIDE)
    torch.manual_seed(7)
    opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y, reduction="none"))
    after = torch.get_rng_state()
    torch.manual_seed(7)
    params = list(twin.parameters())
    g = torch.autograd.grad(F.cross_entropy(twin(x), y), params, create_graph=True)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    d = [v.detach() for v in g]
    h = torch.autograd.grad(g, params, d)
    rayleigh = sum((a * b).sum() for a, b in zip(h, d, strict=True)) / sum((a * a).sum() for a in d)
    assert float(opt.diagnostics["curvature"]) == pytest.approx(float(rayleigh), rel=1e-4)


@pytest.mark.parametrize("sizes", [[3, 5], [1, 1, 6]])
def test_a_batch_may_come_in_parts(sizes):
    net, batches = random_net()
    twin = copy.deepcopy(net)
    whole, parts = (StepTunedSGD(n.parameters(), lr=0.5, weight_decay=1e-3, check_every=1) for n in (net, twin))
    for x, y in batches:
        train(net, [(x, y)], whole)
        pieces = zip(x.split(sizes), y.split(sizes), strict=True)
        parts.step([(lambda x=a: twin(x), lambda o, y=b: F.cross_entropy(o, y, reduction="none")) for a, b in pieces])
        torch.testing.assert_close(parameters(net), parameters(twin), **CLOSE)


def test_losses_themselves_may_be_returned():
    ends = []
    for apart in (True, False):
        net, batches = random_net()
        opt = StepTunedSGD(net.parameters(), lr=0.5)
        for x, y in batches:
            loss = lambda o, y=y: F.cross_entropy(o, y, reduction="none")
            opt.step(*((lambda x=x: net(x), loss) if apart else (lambda x=x, loss=loss: loss(net(x)),)))
        ends.append(parameters(net))
    assert torch.equal(*ends)


@pytest.mark.parametrize("options", [{}, {"beta": 0.0, "weight_decay": 1e-2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_exactly(options, dtype):
    net, batches = random_net()
    net.to(dtype)
    batches = [(x.to(dtype), y) for x, y in batches]
    opt = StepTunedSGD(net.named_parameters(), lr=0.5, **options)
    train(net, batches, opt, 5)
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict()), file)
    through = train(net, batches[5:], opt)
    file.seek(0)
    again, _ = random_net(seed=9)
    again.to(dtype)
    resumed = StepTunedSGD(again.named_parameters(), lr=0.1, **options)
    for thing, state in zip((again, resumed), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(through, train(again, batches[5:], resumed), strict=True))
    assert resumed.diagnostics["gamma"] == opt.diagnostics["gamma"] != 1


def states(opt) -> list[torch.Tensor]:
    return [torch.as_tensor(v).clone() for values in opt.state_dict()["state"].values() for v in values.values()]


@pytest.mark.parametrize("first", [True, False])
def test_non_finite_steps_change_nothing(first):
    """Whether it is found at θ or at θ½."""
    net, batches = random_net()
    opt = StepTunedSGD(net.parameters(), lr=0.5)
    train(net, batches, opt, 3)
    before, state, passes = parameters(net), states(opt), []
    x, y = batches[3]

    def closure():
        passes.append(1)
        return net(x) * (math.nan if first or len(passes) == 2 else 1.0)

    with pytest.warns(SkippedStep, match="finite"):
        opt.step(closure, lambda o: F.cross_entropy(o, y, reduction="none"))
    assert opt.skipped == 1
    assert torch.equal(parameters(net), before)
    assert all(torch.equal(a, b) for a, b in zip(state, states(opt), strict=True))


def test_a_pass_that_fails_halfway_leaves_the_parameters():
    net, batches = random_net()
    opt = StepTunedSGD(net.parameters(), lr=0.5)
    before, passes = parameters(net), []
    x, y = batches[0]

    def closure():
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return net(x)

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure, lambda o: F.cross_entropy(o, y, reduction="none"))
    assert torch.equal(parameters(net), before)


def test_a_stationary_point_is_left_alone():
    θ = leaf(0.0)
    opt = StepTunedSGD([θ], lr=0.1)
    assert opt.step(lambda: θ**2) == 0
    assert (θ.item(), opt.skipped) == (0.0, 0)
    assert opt.diagnostics["curvature"].isnan()


def test_a_step_reads_no_number_where_that_would_wait(monkeypatch):
    """As on a GPU: between checks no number is read, an undefined step still changes nothing and is counted."""
    monkeypatch.setattr(steptuned, "free_to_look", lambda t: False)
    net, batches = random_net()
    looking = copy.deepcopy(net)
    opts = [StepTunedSGD(n.parameters(), lr=0.5) for n in (net, looking)]
    for i, (x, y) in enumerate(batches):
        broken = torch.full_like(x, math.nan) if i == 2 else x
        with NoLooking() if i else nullcontext():  # the first step checks
            opts[0].step(lambda: net(broken), lambda out: F.cross_entropy(out, y, reduction="none"))
        if i != 2:
            train(looking, [(x, y)], opts[1])
    assert opts[0].skipped == 1
    torch.testing.assert_close(parameters(net), parameters(looking), rtol=1e-12, atol=0)


def test_copies_keep_their_options():
    net, batches = random_net()
    opt = StepTunedSGD(net.parameters(), lr=0.5, beta=0.5, bounds=(0.1, 9.0))
    train(net, batches, opt, 2)
    twin_net, twin = copy.deepcopy((net, opt))
    assert torch.equal(train(net, batches[2:], opt, 3)[-1], train(twin_net, batches[2:], twin, 3)[-1])


def test_bad_use_has_one_clear_error():
    net, batches = random_net()
    x, y = batches[0]
    opt = StepTunedSGD(net.parameters(), lr=0.1)
    make = lambda **options: StepTunedSGD(net.parameters(), **{"lr": 0.1} | options)
    for call, words in [
        (lambda: opt.step(), "needs a closure"),
        (lambda: opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y)), 'reduction="none"'),
        (lambda: make(lr=-1.0), "lr = -1.0"),
        (lambda: make(nu=-1.0), "nu = -1.0"),
        (lambda: make(weight_decay=math.nan), "weight_decay = nan"),
        (lambda: make(beta=1.0), "beta = 1.0"),
        (lambda: make(bounds=(0.0, 1.0)), "bounds"),
        (lambda: make(bounds=(2.0, 1.0)), "bounds"),
        (lambda: make(bounds=(1.0,)), "bounds"),
        (lambda: make(delta=0.0), "delta = 0.0"),
        (lambda: make(delta=0.5), "delta = 0.5"),
        (lambda: make(check_every=0), "check_every = 0"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="autocast"):
        train(net, batches, opt, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_steps():
    net, batches = random_net()
    twin = copy.deepcopy(net).cuda()
    a = train(net, batches, StepTunedSGD(net.parameters(), lr=0.5))
    b = train(twin, [(x.cuda(), y.cuda()) for x, y in batches], StepTunedSGD(twin.parameters(), lr=0.5))
    torch.testing.assert_close(a, [v.cpu() for v in b], rtol=1e-9, atol=1e-10)
