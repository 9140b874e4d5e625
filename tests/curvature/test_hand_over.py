"""What the tape cannot record, reverse mode answers: every question, per sample, against explicit matrices."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import HandedOver, UnsupportedOperation, UntrackedOperation
from reprolib.optim import RED, Adler, CurveBall, NewtonCG, NewtonSummary
from tests.curvature.cases import Squash
from tests.curvature.reference import flat, hessian, jacobian, per_sample_hessians


class Case:
    def __init__(self, params, closure, loss):
        self.params, self.closure, self.loss = params, closure, loss
        g = torch.Generator().manual_seed(1)
        self.d, self.e = (tuple(torch.randn(p.shape, generator=g, dtype=p.dtype) for p in params) for _ in range(2))

    def losses(self):
        return self.loss(self.closure())


def custom():
    """A custom autograd function on a parameter itself."""
    w, v = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4, 2)))
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(2, (4,))
    return Case([w, v], lambda: (x @ Squash.apply(w)) @ v, lambda out: F.cross_entropy(out, y, reduction="none"))


def pde():
    """The residual u″ + u of a network at points x: derivatives inside the closure."""
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    points = torch.linspace(0.1, 1, 5, dtype=torch.float64).view(5, 1)

    def residual():
        x = points.clone().requires_grad_()
        u = net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bent,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return bent + u

    return Case(list(net.parameters()), residual, lambda r: r.square().flatten(1).sum(1))


def adapted():
    """One step of gradient descent inside the closure (MAML)."""
    w = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)

    def closure():
        inner = (torch.tanh(x @ w) - y).square().mean()
        (g,) = torch.autograd.grad(inner, w, create_graph=True)
        return torch.tanh(x @ (w - 0.3 * g))

    return Case([w], closure, lambda out: (out - y).square().sum(1))


CASES = {f.__name__: f for f in (custom, pde, adapted)}


@cache
def case(name):
    torch.manual_seed(0)
    return CASES[name]()


@cache
def matrices(name):
    """∇²J_s (B, P, P), A, Λ of J."""
    c = case(name)
    outputs = c.closure()
    o = outputs.detach().requires_grad_()
    return per_sample_hessians(c.losses, c.params), jacobian(outputs, c.params), hessian(c.loss(o).mean(), [o])


def opened(name, backend, operator="hessian"):
    c = case(name)
    return expand(c.closure, c.loss, c.params, operator, backend, retain=True)


@pytest.mark.filterwarnings("ignore::reprolib.errors.HandedOver")
@pytest.mark.parametrize("backend", ["tape", "reverse"])
@pytest.mark.parametrize("name", CASES)
class TestEveryQuestion:
    def test_per_sample_curvature_and_bilinear_form(self, name, backend):
        c, (H, *_) = case(name), matrices(name)
        model = opened(name, backend)
        d, e = flat(c.d), flat(c.e)
        torch.testing.assert_close(model.curvature(c.d), torch.einsum("i,sij,j->s", d, H, d), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            model.curvature(c.d, c.e), torch.einsum("i,sij,j->s", d, H, e), rtol=1e-10, atol=1e-12
        )
        assert bool(model.handed_over) == (backend == "tape")

    def test_products(self, name, backend):
        c, (H, A, L) = case(name), matrices(name)
        torch.testing.assert_close(
            flat(opened(name, backend).product(c.d)), H.mean(0) @ flat(c.d), rtol=1e-10, atol=1e-12
        )
        found = opened(name, backend, "ggn").product(c.d)
        torch.testing.assert_close(flat(found), A.T @ L @ A @ flat(c.d), rtol=1e-10, atol=1e-12)

    def test_tangent_and_cotangent(self, name, backend):
        c, (_, A, _) = case(name), matrices(name)
        model = opened(name, backend, "ggn")
        torch.testing.assert_close(model.jvp(c.d).flatten(), A @ flat(c.d), rtol=1e-10, atol=1e-12)
        w = torch.randn(model.outputs.shape, dtype=torch.float64)
        torch.testing.assert_close(flat(model.vjp(w)), A.T @ w.flatten(), rtol=1e-10, atol=1e-12)

    def test_summary_with_third_order(self, name, backend):
        c, (H, *_) = case(name), matrices(name)
        sizes = [p.numel() for p in c.params]
        blocks = torch.block_diag(*[x.flatten() for x in c.d])
        found = opened(name, backend).summary(c.d)
        torch.testing.assert_close(found.hessian, blocks @ H.mean(0) @ blocks.T, rtol=1e-10, atol=1e-12)
        assert blocks.shape == (len(sizes), sum(sizes))
        for k, p in enumerate(
            c.params
        ):  # by a central difference of d_kᵀH d_k, whose error is h² times a fifth derivative
            h, ends = 1e-4, []
            for sign in (1, -1):
                with torch.no_grad():
                    p.add_(c.d[k], alpha=sign * h)
                ends.append(blocks[k] @ hessian(c.losses().mean(), c.params) @ blocks[k])
                with torch.no_grad():
                    p.sub_(c.d[k], alpha=sign * h)
            torch.testing.assert_close(found.third[k], (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-6)


METHODS = {
    "red": lambda p: RED(p),
    "adler": lambda p: Adler(p),
    "curveball": lambda p: CurveBall(p),
    "summary": lambda p: NewtonSummary(p),
    "newtoncg": lambda p: NewtonCG(p),
}


@pytest.mark.filterwarnings("ignore::reprolib.errors.HandedOver")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_all_five_optimizers_step_as_with_reverse_mode_alone(name, method):
    """Also in the steps that check nothing: what is invisible to the tape is noticed while it records."""
    ends = []
    for backend in ("tape", "reverse"):
        torch.manual_seed(0)
        c = CASES[name]()
        opt = METHODS[method](c.params)
        for group in opt.param_groups:
            group["backend"] = backend
        for _ in range(3):
            opt.step(c.closure, c.loss)
        ends.append(flat(c.params))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


def test_it_is_said_and_can_be_forbidden():
    c = case("custom")
    with pytest.warns(HandedOver, match=r"Squash.*reverse mode answers instead"):
        model = expand(c.closure, c.loss, c.params)
        model.curvature(c.d)
    assert "Squash" in model.handed_over
    with pytest.raises((UnsupportedOperation, UntrackedOperation), match="Squash"):
        expand(c.closure, c.loss, c.params, fallback="refuse").curvature(c.d)


def test_the_pass_happens_once_where_it_is_handed_over():
    """Statistics advance by one step, and the random numbers are those of the ordinary pass."""
    norm, w = nn.BatchNorm1d(3).double(), torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x, count = torch.randn(5, 3, dtype=torch.float64), []

    def closure():
        count.append(1)
        return F.dropout(norm(x @ Squash.apply(w)), 0.5)

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HandedOver)
        model = expand(closure, lambda o: o.square().sum(1), [w, *norm.parameters()])
    assert len(count) == 1 and int(norm.num_batches_tracked) == 1
    torch.manual_seed(3)
    expected = F.dropout(norm(x @ w.tanh()), 0.5).square().sum(1)
    torch.testing.assert_close(model.losses, expected.detach())


def test_a_compiled_network_runs_as_it_was_before(recwarn):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(2, (4,))
    params, loss = list(net.parameters()), lambda out: F.cross_entropy(out, y, reduction="none")
    d = tuple(torch.randn_like(p) for p in params)
    compiled = torch.compile(net)
    found = expand(lambda: compiled(x), loss, params).curvature(d)
    assert torch.equal(found, expand(lambda: net(x), loss, params).curvature(d))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::reprolib.errors.HandedOver")
@pytest.mark.parametrize("method", METHODS)
def test_a_scripted_network_is_trained_as_what_it_was_made_of(method):
    """Nobody sees inside, and lengths are tried: the loss at another point must be that of the other point."""
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(2, (8,))
    ends = []
    for script in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        network = torch.jit.script(net) if script else net
        opt = METHODS[method](network.parameters())
        for _ in range(3):
            opt.step(lambda: network(x), lambda out: F.cross_entropy(out, y, reduction="none"))
        ends.append(flat(network.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)
