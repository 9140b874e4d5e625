"""Adler against the paper's statements, in float64. The claim ids are those of book/claims.yaml."""

from __future__ import annotations

import copy
import io
import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reprolib.curvature import expand
from reprolib.curvature.tree import inner
from reprolib.errors import InvalidInput, SkippedStep, UnknownName
from reprolib.optim import Adler, adler
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


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


# ---- the matrix


@pytest.mark.claim(
    "adler-hess",
    file="curvature/model.py",
    old="answer = self._kept().pull_back(self.loss_hvp(self._tangent(d)))",
    new="answer = self._kept().pull_back(self._tangent(d))",
)
def test_the_hessian_is_the_ggn_and_the_curvature_of_the_outputs():
    """∇²h d = AᵀΛA d + Σ_μ e_μ ∇²o_μ d, the second term from reverse mode of ⟨e, outputs⟩ with e held."""
    net, ((x, y), *_) = random_net()
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    whole = expand(lambda: net(x), cross_entropy(y), params, "hessian").product(d)
    model = expand(lambda: net(x), cross_entropy(y), params, "ggn", retain=True)
    first, e = model.product(d), model.loss_gradient
    slopes = torch.autograd.grad((e * net(x)).sum(), params, create_graph=True)
    second = torch.autograd.grad(inner(slopes, d), params, materialize_grads=True)
    torch.testing.assert_close(flat(whole), flat(first) + flat(second), **CLOSE)
    torch.testing.assert_close(flat(first), ggn(net, x) @ flat(d), **CLOSE)
    assert flat(second).norm() > 1e-3 * flat(first).norm()


@pytest.mark.claim(
    "adler-psd",
    file="curvature/model.py",
    old="answer = batch * (self.loss_hvp(tangent) * other).reshape(batch, -1).sum(1)",
    new="answer = batch * (self.loss_gradient * other).reshape(batch, -1).sum(1)",
)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_the_ggn_has_no_negative_curvature(loss):
    for seed in range(10):
        net, ((x, y), *_) = random_net(seed)
        params = list(net.parameters())
        goal = F.one_hot(y, 3).double()
        f = cross_entropy(y) if loss == "cross-entropy" else lambda o, t=goal: (o - t).square().sum(1)
        model = expand(lambda: net(x), f, params, "ggn", retain=True)
        for _ in range(5):
            v = tuple(torch.randn_like(p) for p in params)
            per_sample = model.curvature(v)
            assert (per_sample >= 0).all()
            torch.testing.assert_close(per_sample.mean(), inner(v, model.product(v)), **CLOSE)
        assert torch.linalg.eigvalsh(ggn(net, x)).min() > -1e-12


@pytest.mark.claim(
    "adler-c10",
    file="curvature/model.py",
    old="answer = self._kept().pull_back(self.loss_hvp(self._tangent(d)))",
    new="answer = self._kept().pull_back(self._tangent(d))",
)
def test_conjugate_gradients_on_the_ggn_converge():
    """(Q + εI) x = g by CG with products of the local model alone, against the explicit matrix."""
    net, ((x, y), *_) = random_net()
    params, ε = list(net.parameters()), 1e-2
    model = expand(lambda: net(x), cross_entropy(y), params, "ggn", retain=True)
    g = flat(model.gradient)

    def product(v):
        parts = v.split([p.numel() for p in params])
        return flat(model.product(tuple(a.view_as(p) for a, p in zip(parts, params, strict=True)))) + ε * v

    solution, r = torch.zeros_like(g), g.clone()
    p, sizes = r, [r.norm()]
    for _ in range(2 * len(x) * 3):
        q = product(p)
        α = (r @ r) / (p @ q)
        solution, new = solution + α * p, r - α * q
        p, r = new + (new @ new) / (r @ r) * p, new
        sizes.append(r.norm())
        if sizes[-1] < 1e-13 * sizes[0]:
            break
    assert sizes[-1] < 1e-12 * sizes[0]
    assert len(sizes) <= 2 * len(x) * 2 + 5  # the rank of Q is at most B (classes − 1), and one for ε, but for rounding
    expected = torch.linalg.solve(ggn(net, x) + ε * torch.eye(len(g), dtype=g.dtype), g)
    torch.testing.assert_close(solution, expected, rtol=1e-9, atol=1e-11)


# ---- the three arguments for dropping the second term


def _spectral_norm(product, like, rounds=25) -> float:
    """The largest |eigenvalue| of a symmetric operator, by power iterations."""
    g = torch.Generator().manual_seed(1)
    v = tuple(torch.randn(p.shape, generator=g, dtype=p.dtype) for p in like)
    size = 0.0
    for _ in range(rounds):
        n = inner(v, v).sqrt()
        v = product(tuple(x / n for x in v))
        size = float(inner(v, v).sqrt())
    return size


@pytest.mark.claim(
    "adler-arg1",
    file="curvature/model.py",
    old="answer = self._kept().pull_back(self.loss_hvp(self._tangent(d)))",
    new="answer = self._kept().pull_back(self._tangent(d))",
)
def test_argument_1_the_dropped_term_falls_with_the_root_of_the_width_but_for_a_logarithm():
    """Outputs vᵀtanh(Wx)/√m with N(0, 1) entries: ‖Σ e ∇²o‖ / ‖Q‖ falls as √(ln m / m) does.

    The dropped term has a block per unit, so its norm is the largest of m blocks: that is the logarithm (E-adl-7).
    """
    widths, ratios = [32, 128, 512, 2048, 4096], []
    for m in widths:
        logs = []
        for seed in range(6):
            g = torch.Generator().manual_seed(seed)
            x, y = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((8, 5), (8,)))
            w, v = (torch.randn(*n, generator=g, dtype=torch.float64).requires_grad_() for n in ((m, 5), (m,)))
            closure = lambda: torch.tanh(x @ w.T) @ v / math.sqrt(m)
            loss = lambda o: (o - y).square()
            hessian, kept = (expand(closure, loss, [w, v], c, retain=True, check=False) for c in ("hessian", "ggn"))
            dropped = lambda d: tuple(a - b for a, b in zip(hessian.product(d), kept.product(d), strict=True))
            logs.append(math.log(_spectral_norm(dropped, [w, v]) / _spectral_norm(kept.product, [w, v])))
        ratios.append(sum(logs) / len(logs))
    m = torch.tensor(widths, dtype=torch.float64)
    values = torch.tensor(ratios, dtype=torch.float64)
    assert _slope(0.5 * (m.log() / m).log(), values) == pytest.approx(1, abs=0.15)
    assert -0.5 < _slope(m.log(), values) < -0.3  # what O(1/√m) would not give


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    x = x - x.mean()
    return float((x @ y) / (x @ x))


@pytest.mark.claim("adler-arg2", file="optim/adler.py", old="η = norm2 / (κ + ", new="η = 1e-3 * norm2 / (κ + ")
def test_argument_2_at_interpolation_the_dropped_term_vanishes_for_squared_error_only():
    """Dropped over kept along g: → 0 for MSE; for cross-entropy ∂ℓ and ∂²ℓ vanish alike, and it hardly falls (E-adl-4)."""
    ratios, kept = {}, {}
    for kind in ("squared error", "cross-entropy"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 1)).double()
        x = torch.randn(6, 4, dtype=torch.float64)
        y = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
        loss = (lambda o: (o[:, 0] - y).square()) if kind == "squared error" else (lambda o: F.softplus(-y * o[:, 0]))
        opt, params = Adler(net.parameters()), list(net.parameters())
        ratios[kind], kept[kind] = [], []
        for step in range(401):
            before = opt.step(lambda: net(x), loss)
            if step % 200 == 0:
                hessian = expand(lambda: net(x), loss, params, "hessian")
                g = hessian.gradient
                first = expand(lambda: net(x), loss, params, "ggn").curvature(g).mean()
                ratios[kind].append(float((hessian.curvature(g).mean() - first).abs() / first))
                kept[kind].append(float(first / inner(g, g)))
        assert before < 1e-6  # both interpolate
    assert kept["squared error"][-1] > 0.5 * kept["squared error"][0]  # what is kept stays, what is dropped vanishes
    assert ratios["squared error"][-1] < 1e-3 * ratios["squared error"][0]
    assert kept["cross-entropy"][-1] < 1e-6 * kept["cross-entropy"][0]  # both vanish
    assert ratios["cross-entropy"][-1] > 0.1 * ratios["cross-entropy"][0]
    margin = torch.linspace(0, 20, 9, dtype=torch.float64)
    q = 1 / (1 + margin.exp())
    assert ((q * (1 - q)) / q)[-1] == pytest.approx(1, abs=1e-8)  # |ℓ″| / |ℓ′|, the same order


@pytest.mark.claim(
    "adler-arg3",
    file="curvature/model.py",
    old="torch.autograd.grad(self._losses_of(o).mean(), o)",
    new="torch.autograd.grad(self._losses_of(o).sum(), o)",
)
def test_argument_3_holds_for_centred_squared_errors_and_not_for_three_classes():
    """E ℓ(ŷ) = E ℓ(−ŷ): for MSE iff E y = 0; for balanced cross-entropy with 2 classes, not with 3 (E-adl-3)."""
    g = torch.Generator().manual_seed(0)
    o = torch.randn(5, generator=g, dtype=torch.float64)
    for mean, symmetric in ((0.0, True), (0.7, False)):
        y = torch.tensor([-1.0, 1.0], dtype=torch.float64) + mean
        at = lambda s: (s * o[:, None] - y).square().mean(1)
        assert torch.allclose(at(1), at(-1), rtol=1e-12) == symmetric
        shifted = lambda s: at(s) + 5.0  # footnote 4's constant changes nothing
        assert torch.allclose(shifted(1), shifted(-1), rtol=1e-12) == symmetric
    for classes, symmetric in ((2, True), (3, False)):
        logits = torch.randn(classes, generator=g, dtype=torch.float64)
        at = lambda s: -torch.log_softmax(s * logits, 0).mean()
        assert torch.allclose(at(1), at(-1), rtol=1e-12) == symmetric

    # measured at initialisation, over networks with a sign-symmetric last layer: the mean of ∂ℓ/∂ŷ
    means = {}
    for mean in (0.0, 0.7):
        x = torch.randn(64, 4, generator=g, dtype=torch.float64)
        y = torch.tensor([-1.0, 1.0] * 32, dtype=torch.float64) + mean
        found = []
        for _ in range(200):
            w = torch.randn(16, 4, generator=g, dtype=torch.float64)
            v = torch.randn(16, generator=g, dtype=torch.float64).requires_grad_()
            model = expand(lambda: torch.tanh(x @ w.T) @ v, lambda o: (o - y).square(), [v], "ggn", check=False)
            e = model.loss_gradient
            torch.testing.assert_close(e, 2 * (model.outputs - y) / 64, **CLOSE)
            found.append(e.sum())
        means[mean] = float(torch.stack(found).mean())
    assert abs(means[0.0]) < 0.3
    assert means[0.7] == pytest.approx(-1.4, abs=0.3)  # −2 E y
    # and for one network it need not vanish, also where it does on average: ŷ ≡ ½, y = ±1
    half = leaf(0.5)
    model = expand(
        lambda: half * torch.ones(2, dtype=torch.float64), lambda o: (o - o.new_tensor([1, -1])) ** 2, [half], "ggn"
    )
    assert model.loss_gradient.sum() == pytest.approx(1.0, rel=1e-12)


# ---- the algorithm


@pytest.mark.claim("adler-eta", file="optim/adler.py", old="η = norm2 / (κ + ", new="η = 0.5 * norm2 / (κ + ")
def test_the_rate_minimises_the_model_along_the_gradient():
    """Least squares, where the model is the loss: no other length gives less, and the next slope along g is 0."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=g, dtype=torch.float64), torch.randn(12, generator=g, dtype=torch.float64)
    θ = torch.randn(5, generator=g, dtype=torch.float64).requires_grad_()
    start = θ.detach().clone()
    J = lambda t: (x @ t - y).square().mean()
    (slope,) = torch.autograd.grad(J(θ), θ)
    opt = Adler([θ], eps=0.0)
    assert opt.step(lambda: x @ θ, lambda o: (o - y).square()) == pytest.approx(float(J(start)), rel=1e-12)
    G = 2 * x.T @ x / 12
    η = (slope @ slope) / (slope @ G @ slope)
    torch.testing.assert_close(opt.diagnostics["rate"], η, **CLOSE)
    torch.testing.assert_close(θ.detach(), start - η * slope, **CLOSE)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert J(start - factor * η * slope) > J(θ.detach())
    # and of the model on a network that is not linear
    net, ((a, b), *_) = random_net()
    v, G = gradient(net, a, b), ggn(net, a)
    opt = Adler(net.parameters())
    opt.step(lambda: net(a), cross_entropy(b))
    torch.testing.assert_close(opt.diagnostics["rate"], (v @ v) / (v @ G @ v), rtol=1e-8, atol=0)


@pytest.mark.claim(
    "adler-alg1", file="optim/adler.py", old='c = options["beta"] * shared["weight"] + 1', new="c = s / s"
)
@pytest.mark.parametrize("λ", [0.0, 0.03])
def test_algorithm_1_line_by_line(λ):
    """η̂_k = exp(Σβ^(k−i) log η_i / Σβ^(k−i)), θ ← θ − η̂ g, from explicit matrices: five steps."""
    net, batches = random_net()
    β, ε = 0.8, 1e-3
    opt = Adler(net.parameters(), beta=β, eps=ε, weight_decay=λ)
    rates = []
    for k, (x, y) in enumerate(batches[:5]):
        θ, g = parameters(net), gradient(net, x, y, λ)
        C = ggn(net, x) + λ * torch.eye(len(g), dtype=g.dtype)
        rates.append((g @ g) / (g @ C @ g + ε * (g @ g)))
        weights = β ** torch.arange(k, -1, -1, dtype=torch.float64)
        average = torch.exp(weights @ torch.stack(rates).log() / weights.sum())
        train(net, [(x, y)], opt)
        torch.testing.assert_close(parameters(net), θ - average * g, **CLOSE)
        for name, value in (("rate", rates[-1]), ("average", average), ("step", average)):
            torch.testing.assert_close(opt.diagnostics[name], value, **CLOSE)
        torch.testing.assert_close(opt.diagnostics["curvature"], (g @ C @ g) / (g @ g), **CLOSE)
        torch.testing.assert_close(opt.diagnostics["objective"], opt.diagnostics["loss"] + λ / 2 * θ @ θ, **CLOSE)


@pytest.mark.claim(
    "adler-logavg",
    file="optim/adler.py",
    old="(η.log() if log else η)",
    new="η",
)
@pytest.mark.claim(
    "adler-logavg", file="optim/adler.py", old="average = (s / c).exp() if log else s / c", new="average = s / c"
)
def test_the_mean_of_logarithms_is_not_carried_away_by_one_estimate():
    """η = 1/u², u normal (no mean): the arithmetic mean is mostly its largest term, the geometric one near the median."""
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(200, generator=g, dtype=torch.float64)
    paths = {}
    for average in ("log", "linear"):
        θ = leaf(1.0)
        opt = Adler([θ], beta=1.0, eps=0.0, average=average, lr=0.0)  # θ stays; only the mean is watched
        paths[average] = []
        for u in draws:
            opt.step(lambda: u * θ, lambda o: 0.5 * o.square())
            paths[average].append(float(opt.diagnostics["average"]))
    η = draws**-2.0
    assert paths["linear"][-1] == pytest.approx(float(η.mean()), rel=1e-10)
    assert paths["log"][-1] == pytest.approx(float(η.log().mean().exp()), rel=1e-10)
    assert η.max() / η.sum() > 1 / 3  # of 200: dominated by the largest
    assert 1 / 4 < paths["log"][-1] / float(η.median()) < 4
    assert all(a <= b * (1 + 1e-12) for a, b in zip(paths["log"], paths["linear"], strict=True))
    jump = lambda path: max(abs(math.log(b / a)) for a, b in pairwise(path[20:]))
    assert jump(paths["log"]) < 0.5 < jump(paths["linear"])  # one batch moves the mean by a factor


@pytest.mark.claim("adler-cost", file="optim/adler.py", old='backend=options["backend"]', new='backend="autodiff"')
def test_cost_in_matrix_products():
    """Nine square layers: forward n, backward 2n − 1, tangent 2n − 1 (no ẋ into the first); 3n if it repeats the primal.

    So 5/3 of a gradient with the tape, 2 with a jvp of its own, but for the first layer.
    """
    n, width, batch = 9, 8, 16
    counts = {}
    for backend in ("tape", "autodiff"):
        torch.manual_seed(0)
        net = nn.Sequential(*(m for _ in range(n) for m in (nn.Linear(width, width, bias=False), nn.Tanh()))).double()
        x = torch.randn(batch, width, dtype=torch.float64)
        opt = Adler(net.parameters(), backend=backend)
        step = lambda: opt.step(lambda: net(x), lambda o: o.square().sum(1))
        step()  # checks
        with FlopCounterMode(display=False) as counter:
            step()
        counts[backend] = counter.get_total_flops() / (2 * batch * width * width)
    assert counts == {"tape": 5 * n - 2, "autodiff": 6 * n - 1}
    gradient = 3 * n - 1
    assert counts["tape"] / gradient == pytest.approx(5 / 3, abs=0.02)
    assert counts["autodiff"] / gradient == pytest.approx(2, abs=0.05)


# ---- its options


def test_the_readings_of_gauss_newton():
    """E-adl-1: batch reading η = 1/‖g‖²; per sample η = ‖g‖²/mean (g_sᵀg)² ≤ 1/‖g‖²; both averaged linearly."""
    for λ in (0.0, 0.02):
        rates = {"gauss-newton": [], "fisher": []}
        for kind, seen in rates.items():
            net, batches = random_net()
            opt = Adler(net.parameters(), beta=0.7, eps=0.0, curvature=kind, weight_decay=λ, lr=0.05)
            for k, (x, y) in enumerate(batches[:4]):
                g = gradient(net, x, y, λ)
                own = torch.stack([gradient(net, x[i : i + 1], y[i : i + 1], λ) @ g for i in range(len(x))])
                seen.append(1 / (g @ g) if kind == "gauss-newton" else (g @ g) / own.square().mean())
                assert seen[-1] <= 1 / (g @ g) * (1 + 1e-12)
                train(net, [(x, y)], opt)
                torch.testing.assert_close(opt.diagnostics["rate"], seen[-1], **CLOSE)
                weights = 0.7 ** torch.arange(k, -1, -1, dtype=torch.float64)
                torch.testing.assert_close(
                    opt.diagnostics["average"], weights @ torch.stack(seen) / weights.sum(), **CLOSE
                )
    assert Adler([leaf(1.0)]).defaults["average"] == "log"


def test_the_readings_of_epsilon():
    """(a ‖g‖² + ε‖g‖²) against a ‖g‖² + ε: with a small gradient only the second one limits the rate (E-adl-2)."""
    for size in (1.0, 1e-4):
        g2 = (4 * size) ** 2  # of ½ (2θ)² at θ = size
        for regularised, expected in (("hessian", 1 / (4 + 1e-3)), ("denominator", g2 / (4 * g2 + 1e-3))):
            θ = leaf(size)
            opt = Adler([θ], eps=1e-3, regularised=regularised)
            opt.step(lambda: 2 * θ, lambda o: 0.5 * o.square())
            assert opt.diagnostics["rate"] == pytest.approx(expected, rel=1e-12)


def test_micro_batches_are_the_whole_batch():
    for kind in ("ggn", "fisher", "gauss-newton"):
        paths = []
        for sizes in ([8], [3, 1, 4]):
            net, batches = random_net()
            opt = Adler(net.parameters(), curvature=kind, weight_decay=1e-2, lr=0.3)
            path = []
            for x, y in batches[:4]:
                parts = zip(x.split(sizes), y.split(sizes), strict=True)
                opt.step([(lambda a=a: net(a), cross_entropy(b)) for a, b in parts])
                path.append(parameters(net))
            paths.append(path)
        torch.testing.assert_close(*paths, **CLOSE)


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
        paths[backend] = train(net, batches, Adler(net.parameters(), backend=backend, check_every=1))
    for backend in ("autodiff", "complexstep"):
        torch.testing.assert_close(paths[backend], paths["tape"], rtol=1e-8, atol=1e-9)


# ---- as an optimizer


@pytest.mark.parametrize("options", [{}, {"curvature": "fisher"}, {"average": "linear", "weight_decay": 1e-2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_exactly(options, dtype):
    net, batches = random_net()
    net.to(dtype)
    batches = [(x.to(dtype), y) for x, y in batches]
    opt = Adler(net.named_parameters(), **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    train(net, batches, opt, 5)
    scheduler.step()
    file = io.BytesIO()
    torch.save((net.state_dict(), opt.state_dict(), scheduler.state_dict()), file)
    through = train(net, batches[5:], opt)
    file.seek(0)
    again, _ = random_net(seed=9)
    again.to(dtype)
    resumed = Adler(again.named_parameters(), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(resumed, 0.9)
    for thing, state in zip((again, resumed, schedule), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.9
    assert all(torch.equal(a, b) for a, b in zip(through, train(again, batches[5:], resumed), strict=True))


def test_copies_keep_their_options():
    net, batches = random_net()
    opt = Adler(net.parameters(), beta=0.5, eps=1e-3)
    train(net, batches, opt, 2)
    twin_net, twin = copy.deepcopy((net, opt))
    assert torch.equal(train(net, batches[2:], opt, 3)[-1], train(twin_net, batches[2:], twin, 3)[-1])


def test_groups_have_their_own_rate_and_decay():
    net, batches = random_net()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.0},
        {"params": list(net[2].parameters()), "weight_decay": 0.1},
    ]
    opt = Adler(groups)
    before, (x, y) = parameters(net), batches[0]
    first = sum(p.numel() for p in net[0].parameters())
    decay = torch.cat([before.new_zeros(first), before.new_full((len(before) - first,), 0.1)])
    g = gradient(net, x, y) + decay * before
    κ = g @ (ggn(net, x) + torch.diag(decay)) @ g
    train(net, [(x, y)], opt)
    η = (g @ g) / (κ + 1e-10 * (g @ g))
    torch.testing.assert_close(parameters(net), before - η * torch.where(decay > 0, g, 0.0), **CLOSE)
    with pytest.raises(InvalidInput, match="beta cannot differ"):
        Adler([{"params": list(net.parameters()), "beta": 0.1}])


def test_a_stationary_point_is_left_alone_and_teaches_nothing():
    θ = leaf(0.0)
    opt = Adler([θ])
    step = lambda: opt.step(lambda: θ, lambda o: 0.5 * o.square())
    assert step() == 0
    assert θ.item() == 0
    assert opt.skipped == 0
    with torch.no_grad():
        θ += 2
    step()
    assert opt.diagnostics["average"] == pytest.approx(1.0, rel=1e-9)  # the first estimate that counts
    assert θ.item() == pytest.approx(0.0, abs=1e-9)


def test_no_curvature_is_limited_by_epsilon_or_reported():
    θ = leaf(2.0)
    opt = Adler([θ], eps=1e-3)
    opt.step(lambda: 3 * θ, lambda o: o)  # a linear loss
    assert opt.diagnostics["rate"] == pytest.approx(1e3, rel=1e-12)
    θ = leaf(2.0)
    opt = Adler([θ], eps=0.0)
    with pytest.warns(SkippedStep, match="undefined"):
        opt.step(lambda: 3 * θ, lambda o: o)
    assert (θ.item(), opt.skipped) == (2.0, 1)
    opt.step(lambda: 3 * θ, lambda o: o.square())
    assert opt.diagnostics["average"] == pytest.approx(1 / 18, rel=1e-12)  # nothing was learnt from the skipped one
    with pytest.warns(SkippedStep, match="undefined"):
        opt.step(lambda: 3 * θ + 1, lambda o: -o.square())  # negative curvature


def test_overflow_changes_nothing():
    net, batches = random_net()
    net.float()
    opt = Adler(net.parameters())
    batches = [(x.float(), y) for x, y in batches]
    train(net, batches, opt, 2)
    before, state = parameters(net), copy.deepcopy(opt.state_dict()["state"])
    x, y = batches[0]
    for factor, words in ((1e14, "undefined"), (1e25, "finite"), (math.nan, "finite")):
        with pytest.warns(SkippedStep, match=words):
            opt.step(lambda: net(x), lambda o: factor * cross_entropy(y)(o))
    assert opt.skipped == 3
    assert torch.equal(parameters(net), before)
    after = opt.state_dict()["state"]
    assert all(torch.equal(v, after[k][name]) for k, values in state.items() for name, v in values.items())


@pytest.mark.parametrize("kind", adler.CURVATURES)
def test_a_step_reads_no_number_where_that_would_wait(monkeypatch, kind):
    """As on a GPU: between checks no number is read, an undefined step still changes nothing and is counted."""
    monkeypatch.setattr(adler, "free_to_look", lambda t: False)
    net, batches = random_net()
    looking = copy.deepcopy(net)
    opts = [Adler(n.parameters(), curvature=kind, lr=0.1, weight_decay=1e-3) for n in (net, looking)]
    for i, (x, y) in enumerate(batches):
        broken = torch.full_like(x, float("nan")) if i == 2 else x
        with NoLooking() if i else nullcontext():  # the first step checks
            opts[0].step(lambda: net(broken), cross_entropy(y))
        if i != 2:
            opts[1].step(lambda: looking(x), cross_entropy(y))
    assert opts[0].skipped == 1
    torch.testing.assert_close(parameters(net), parameters(looking), rtol=1e-12, atol=0)


def test_diagnostics_are_detached_numbers():
    net, batches = random_net()
    opt = Adler(net.parameters())
    train(net, batches, opt, 2)
    for name, value in opt.diagnostics.items():
        assert value.shape == (), name
        assert not value.requires_grad, name


def test_bad_use_has_one_clear_error():
    net, batches = random_net()
    x, y = batches[0]
    opt = Adler(net.parameters())
    before = parameters(net)
    for call, error, words in [
        (lambda: opt.step(), InvalidInput, "needs a closure"),
        (lambda: opt.step(lambda: cross_entropy(y)(net(x))), InvalidInput, "GGN"),
        (lambda: opt.step(lambda: net(x), lambda o: F.cross_entropy(o, y)), InvalidInput, 'reduction="none"'),
        (lambda: Adler(net.parameters(), curvature="fischer"), UnknownName, "fisher"),
        (lambda: Adler(net.parameters(), average="mean"), UnknownName, "linear"),
        (lambda: Adler(net.parameters(), regularised="g"), UnknownName, "denominator"),
        (lambda: Adler(net.parameters(), backend="tap"), UnknownName, "tape"),
        (lambda: Adler(net.parameters(), beta=1.1), InvalidInput, "beta = 1.1"),
        (lambda: Adler(net.parameters(), eps=-1.0), InvalidInput, "eps"),
        (lambda: Adler(net.parameters(), weight_decay=math.nan), InvalidInput, "weight_decay"),
        (lambda: Adler(net.parameters(), check_every=0), InvalidInput, "check_every"),
    ]:
        with pytest.raises(error, match=words):
            call()
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="autocast"):
        train(net, batches, opt, 1)
    assert torch.equal(parameters(net), before)


def test_a_scheduler_drives_the_factor():
    net, batches = random_net()
    opt = Adler(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for k, (x, y) in enumerate(batches[:3]):
        train(net, [(x, y)], opt)
        torch.testing.assert_close(opt.diagnostics["step"], 0.5**k * opt.diagnostics["average"], **CLOSE)
        scheduler.step()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_trains(kind):
    """Batch-norm (its statistics advance once a step) and dropout; attention; tokens with their own losses."""
    net, x, loss = architecture(kind)
    opt = Adler(net.parameters(), beta=0.9, check_every=1)
    losses = [float(opt.step(lambda: net(x), loss)) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert opt.skipped == 0
    if kind == "convolutions":
        assert net[1].num_batches_tracked == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_takes_the_same_steps():
    net, batches = random_net()
    twin = copy.deepcopy(net).cuda()
    a = train(net, batches, Adler(net.parameters()))
    b = train(twin, [(x.cuda(), y.cuda()) for x, y in batches], Adler(twin.parameters()))
    torch.testing.assert_close(a, [v.cpu() for v in b], rtol=1e-9, atol=1e-10)
