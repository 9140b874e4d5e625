"""Every answer of a local model against explicit matrices and closed forms, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.curvature.backends import BACKENDS
from reprolib.curvature.tree import inner
from tests.curvature.cases import LOSSES, NETWORKS, case
from tests.curvature.reference import flat, hessian, jacobian, per_sample_hessians

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=[(n, l) for n in NETWORKS for l in LOSSES], ids=lambda p: f"{p[0]}-{p[1]}")
def c(request):
    return case(*request.param)


@pytest.fixture(params=sorted(set(BACKENDS) - {"finitediff"}))  # exact ones; quotients: test_finitediff.py
def backend(request):
    return request.param


def losses_again(c):
    """The losses of the same pass: same dropout mask."""
    state = torch.get_rng_state()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel cannot be differentiated twice
        out = c.loss(c.closure())
    torch.set_rng_state(state)
    return out if out.dim() == 1 else out.flatten(1).mean(1)


def outputs_again(c):
    state = torch.get_rng_state()
    out = c.closure()
    torch.set_rng_state(state)
    return out


@pytest.mark.claim(
    "red-alg2",
    file="curvature/replay.py",
    old="F.layer_norm: _layer_norm,",
    new="",
)
def test_hessian_answers(c, backend):
    H_s = per_sample_hessians(lambda: losses_again(c), c.params)
    H, d, e = H_s.mean(0), flat(c.d), flat(c.e)
    model = expand(c.closure, c.loss, c.params, backend=backend, retain=True)
    torch.testing.assert_close(model.curvature(c.d), torch.einsum("i,sij,j->s", d, H_s, d), **CLOSE)
    torch.testing.assert_close(model.curvature(c.d, c.e), torch.einsum("i,sij,j->s", d, H_s, e), **CLOSE)
    torch.testing.assert_close(model.curvature(c.d).mean(), d @ H @ d, **CLOSE)
    torch.testing.assert_close(flat(model.product(c.d)), H @ d, **CLOSE)


def test_ggn_answers(c, backend):
    outputs = outputs_again(c)
    A = jacobian(outputs, c.params)
    o = outputs.detach().requires_grad_()
    losses = c.loss(o)
    losses = losses if losses.dim() == 1 else losses.mean(1)
    blocks = hessian(losses.mean(), [o])  # Λ of J
    model = expand(c.closure, c.loss, c.params, curvature="ggn", backend=backend, retain=True)
    d, e = flat(c.d), flat(c.e)
    torch.testing.assert_close(flat(model.product(c.d)), A.T @ blocks @ A @ d, **CLOSE)
    torch.testing.assert_close(model.curvature(c.d, c.e).mean(), (A @ d) @ blocks @ (A @ e), **CLOSE)
    n = outputs.shape[0]
    Ad, Ae = (A @ d).view(n, -1), (A @ e).view(n, -1)
    width = Ad.shape[1]
    for s in range(n):
        block = n * blocks[s * width : (s + 1) * width, s * width : (s + 1) * width]
        torch.testing.assert_close(model.curvature(c.d, c.e)[s], Ad[s] @ block @ Ae[s], **CLOSE)
    torch.testing.assert_close(model.jvp(c.d).flatten(), A @ d, **CLOSE)
    w = torch.randn_like(outputs).detach()
    torch.testing.assert_close(flat(model.vjp(w)), A.T @ w.flatten(), **CLOSE)
    torch.testing.assert_close(model.loss_hvp(w).flatten(), blocks @ w.flatten(), **CLOSE)
    torch.testing.assert_close(flat(model.gradient), A.T @ model.loss_gradient.flatten(), **CLOSE)


def test_first_order(c, backend):
    expected = losses_again(c)
    grads = torch.autograd.grad(expected.mean(), c.params)
    model = expand(c.closure, c.loss, c.params, backend=backend)
    torch.testing.assert_close(model.losses, expected.detach(), **CLOSE)
    torch.testing.assert_close(model.loss, expected.detach().mean(), **CLOSE)
    torch.testing.assert_close(flat(model.gradient), flat(grads), **CLOSE)


def test_summary_is_the_derivative_of_block_steps(c):
    """Against the explicit Hessian, and third derivatives against central differences of the block curvature."""
    H, d = per_sample_hessians(lambda: losses_again(c), c.params).mean(0), flat(c.d)
    model = expand(c.closure, c.loss, c.params, retain=True)
    summary = model.summary(c.d)
    edges = [0]
    for p in c.params:
        edges.append(edges[-1] + p.numel())
    blocks = torch.zeros(len(c.params), len(d), dtype=d.dtype)
    for i, (a, b) in enumerate(pairwise(edges)):
        blocks[i, a:b] = d[a:b]
    torch.testing.assert_close(summary.hessian, blocks @ H @ blocks.T, **CLOSE)
    torch.testing.assert_close(summary.gradient, blocks @ flat(model.gradient), **CLOSE)
    i, h = 0, 1e-4
    only = tuple(x if j == i else torch.zeros_like(x) for j, x in enumerate(c.d))
    values = []
    state = torch.get_rng_state()
    for sign in (1, -1):
        with torch.no_grad():
            c.params[i] += sign * h * c.d[i]
        torch.set_rng_state(state)
        values.append(expand(c.closure, c.loss, c.params).curvature(only).mean())
        with torch.no_grad():
            c.params[i] -= sign * h * c.d[i]
    slope = (values[0] - values[1]) / (2 * h)
    torch.set_rng_state(state)
    again = expand(c.closure, c.loss, c.params).summary(c.d)
    torch.testing.assert_close(again.third[i], slope, rtol=1e-5, atol=1e-6)


def test_summary_groups_and_ggn():
    c = case("mlp")
    groups = [[0, 2, 4], [1, 3, 5]]
    model = expand(c.closure, c.loss, c.params, retain=True)
    per_tensor, grouped = model.summary(c.d).hessian, model.summary(c.d, groups).hessian
    for i, a in enumerate(groups):
        for j, b in enumerate(groups):
            torch.testing.assert_close(grouped[i, j], per_tensor[a][:, b].sum(), **CLOSE)
    ggn = expand(c.closure, c.loss, c.params, "ggn", retain=True)
    result = ggn.summary(c.d, groups, third=False)
    torch.testing.assert_close(result.hessian.sum(), ggn.curvature(c.d).mean(), **CLOSE)
    assert result.third.isnan().all()


# ---- closed forms: a channel of their own


def test_least_squares_closed_form():
    """J_s = (xᵀθ − y)²: H = 2 XᵀX / B, the GGN is the same."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((7, 4), (7, 1)))
    theta = torch.randn(4, 1, generator=g, dtype=torch.float64, requires_grad=True)
    d = torch.randn(4, 1, generator=g, dtype=torch.float64)
    for operator in ("hessian", "ggn"):
        model = expand(lambda: x @ theta, lambda o: (o - y).square().squeeze(1), [theta], operator, retain=True)
        torch.testing.assert_close(model.product((d,))[0], 2 * x.T @ x @ d / 7, **CLOSE)
        torch.testing.assert_close(model.curvature((d,)), 2 * (x @ d).square().squeeze(1), **CLOSE)


def test_softmax_regression_closed_form():
    """H = E[(diag p − p pᵀ) ⊗ x xᵀ] for weights (classes, features)."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    w = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    d = torch.randn(3, 4, generator=g, dtype=torch.float64)
    p = torch.softmax(x @ w.detach().T, 1)
    H = torch.stack(
        [torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(v, v)) for q, v in zip(p, x, strict=True)]
    )
    for operator in ("hessian", "ggn"):
        model = expand(lambda: x @ w.T, lambda o: F.cross_entropy(o, y, reduction="none"), [w], operator, retain=True)
        torch.testing.assert_close(model.product((d,))[0].flatten(), H.mean(0) @ d.flatten(), **CLOSE)
        torch.testing.assert_close(
            model.curvature((d,)), torch.einsum("i,sij,j->s", d.flatten(), H, d.flatten()), **CLOSE
        )


def test_two_layer_linear_net_closed_form():
    """J_s = ½(bᵀWx − y)²: dᵀH_s d = ḟ² + 2 (f − y) ḃᵀẆx, and the GGN keeps the first term only."""
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    W, dW = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    b, db = (torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2))
    f, f_dot, f_ddot = x @ W.T @ b, x @ dW.T @ b + x @ W.T @ db, 2 * x @ dW.T @ db
    W.requires_grad_(), b.requires_grad_()
    args = (lambda: x @ W.T @ b, lambda o: 0.5 * (o - y).square(), [W, b])
    torch.testing.assert_close(expand(*args).curvature((dW, db)), f_dot**2 + (f - y) * f_ddot, **CLOSE)
    torch.testing.assert_close(expand(*args, "ggn").curvature((dW, db)), f_dot**2, **CLOSE)


def test_third_derivative_closed_form():
    """ψ(η) = Σ_i (θ_i + η_i u_i)³: ψ‴ = 6 u³ on the diagonal."""
    theta = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, -2.0)]
    u = tuple(torch.tensor(v, dtype=torch.float64) for v in (3.0, 0.25))
    summary = expand(lambda: (theta[0] ** 3 + theta[1] ** 3).reshape(1), None, theta).summary(u)
    torch.testing.assert_close(summary.third, torch.stack([6 * v**3 for v in u]), **CLOSE)
    torch.testing.assert_close(
        summary.hessian,
        torch.diag(torch.stack([6 * t.detach() * v**2 for t, v in zip(theta, u, strict=True)])),
        **CLOSE,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_per_sample_curvature_against_finite_differences_of_the_loss(name, backend):
    """No autograd at all on the other side: second central difference of the per-sample losses along d."""
    c, h = case(name), 1e-4
    state = torch.get_rng_state()
    q = expand(c.closure, c.loss, c.params, backend=backend).curvature(c.d)
    values = []
    for t in (-h, 0.0, h):
        with torch.no_grad():
            for p, v in zip(c.params, c.d, strict=True):
                p += t * v
            torch.set_rng_state(state)
            values.append(c.loss(c.closure()))
            for p, v in zip(c.params, c.d, strict=True):
                p -= t * v
    numeric = (values[0] - 2 * values[1] + values[2]) / h**2
    torch.testing.assert_close(q, numeric, rtol=2e-5, atol=2e-5 * float(q.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_loses_what_rounding_takes(name, backend):
    single, double = case(name, dtype=torch.float32), case(name)
    results = []
    for c in (single, double):
        torch.manual_seed(7)  # one dropout mask for both
        results.append(expand(c.closure, c.loss, c.params, backend=backend).curvature(c.d))
    if name == "dropout":
        pytest.skip("float32 and float64 draw different dropout masks from one seed")
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-5 * float(results[1].abs().max()))


def test_losses_over_time_are_averaged():
    """(B, T) losses of a sequence model: J_s is their mean over T."""
    c = case("attention")
    y = torch.randn(6, 3, 4, dtype=torch.float64)
    net = c.net[0]
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    a = expand(lambda: net(c.x), lambda o: (o - y).square().mean(2), params).curvature(d)
    b = expand(lambda: net(c.x), lambda o: (o - y).square().mean((1, 2)), params).curvature(d)
    torch.testing.assert_close(a, b, **CLOSE)


def test_multi_head_attention_module(backend):
    """nn.MultiheadAttention arrives as one call; both its forms give exact curvature."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    x, y = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    params = list(attention.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    both = []
    for weights in (True, False):
        closure = lambda weights=weights: attention(x, x, x, need_weights=weights)[0]
        model = expand(closure, lambda o: (o - y).square(), params, backend=backend, retain=True)
        both.append(model.curvature(d))
        torch.testing.assert_close(both[-1].mean(), inner(model.product(d), d), **CLOSE)
    torch.testing.assert_close(*both, **CLOSE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "dropout"])
def test_cuda_agrees_with_cpu(name):
    a, b = case(name), case(name)
    b.net.cuda()
    b.x, b.y = b.x.cuda(), b.y.cuda()
    b.loss = lambda o: LOSSES["cross-entropy"](o, b.y)
    b.params, b.d = list(b.net.parameters()), tuple(v.cuda() for v in b.d)
    torch.testing.assert_close(
        expand(b.closure, b.loss, b.params).curvature(b.d).cpu(),
        expand(a.closure, a.loss, a.params).curvature(a.d),
        **CLOSE,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_direction(backend):
    c = case("mlp")
    zero = tuple(torch.zeros_like(v) for v in c.d)
    model = expand(c.closure, c.loss, c.params, backend=backend, retain=True)
    assert not model.curvature(zero).any() and not flat(model.product(zero)).any() and not model.jvp(zero).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_after_the_parameters_went_and_came_back(backend):
    """As a line search does: somebody writes into the parameters and puts them back before the local model is asked."""
    c = case("mlp")
    expected = expand(c.closure, c.loss, c.params, backend=backend).product(c.d)
    model = expand(c.closure, c.loss, c.params, backend=backend, retain=True)
    assert model.gradient  # autograd cannot give it afterwards
    before = [p.detach().clone() for p in c.params]
    with torch.no_grad():
        for p, x in zip(c.params, before, strict=True):
            p.add_(1.0)
            p.copy_(x)
    for a, b in zip(model.product(c.d), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rounding_errors_where_nothing_moves_are_no_alarm():
    """A vector of one entry, normalised, is a sign: slope and curvature are 0, and what is computed is rounding."""
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    w, b = torch.randn(4, 1).double().requires_grad_(), torch.full((1,), -50.0, dtype=torch.float64, requires_grad=True)
    for f in (lambda: F.normalize(x @ w, dim=1), lambda: F.relu(x @ w + b) + F.normalize(x @ w, dim=1)):
        model = expand(f, lambda o: (o - 3).square().sum(1), [w, b])
        assert model.curvature((torch.ones_like(w), torch.ones_like(b))).abs().max() < 1e-12
