"""The backend ``finitediff``: as good as its docstring says, and near the best that its step allows."""

from __future__ import annotations

import pytest
import torch

from reprolib.curvature import expand, finitediff
from reprolib.curvature.network import Network
from reprolib.errors import UnknownName
from tests.curvature.cases import LOSSES, NETWORKS, case
from tests.curvature.reference import flat

EPS = torch.finfo(torch.float64).eps
# errors relative to derivatives of order one; the derivatives of these networks are up to some hundred times larger
FIRST = {"central": 1000 * EPS ** (2 / 3), "forward": 100 * EPS ** (1 / 2)}
SECOND = {"central": 1000 * EPS ** (1 / 2), "forward": 100 * EPS ** (1 / 3)}


def relative(a, b):
    a, b = (flat(v) if isinstance(v, tuple) else v for v in (a, b))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def exact(network, loss="cross-entropy", operator="hessian"):
    c = case(network, loss)
    return expand(c.closure, c.loss, c.params, operator, "autodiff", retain=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_answer_is_near_that_of_autodiff(network, loss):
    a, c = exact(network, loss), case(network, loss)
    b = expand(c.closure, c.loss, c.params, backend="finitediff", retain=True)
    assert relative(b.jvp(c.d), a.jvp(c.d)) < FIRST["central"]
    assert relative(b.product(c.d), a.product(c.d)) < FIRST["central"]
    assert relative(b.curvature(c.d), a.curvature(c.d)) < SECOND["central"]
    assert relative(b.curvature(c.d, c.e), a.curvature(c.d, c.e)) < SECOND["central"]
    mine, theirs = b.summary(c.d), a.summary(c.d)
    assert relative(mine.gradient, theirs.gradient) < 1e-12
    assert relative(mine.hessian, theirs.hessian) < FIRST["central"]
    assert relative(mine.third, theirs.third) < SECOND["central"]
    assert b.summary(c.d, third=False).third.isnan().all()
    a, c = exact(network, loss, "ggn"), case(network, loss)
    b = expand(c.closure, c.loss, c.params, "ggn", backend="finitediff", retain=True)
    assert relative(b.product(c.d), a.product(c.d)) < FIRST["central"]
    assert relative(b.curvature(c.d, c.e), a.curvature(c.d, c.e)) < FIRST["central"]


@pytest.mark.parametrize("scheme", finitediff.FIRST)
@pytest.mark.parametrize("network", ["mlp", "batch-norm", "attention"])
def test_both_schemes(network, scheme):
    a, c = exact(network), case(network)
    net, groups = Network(c.closure, c.loss, c.params), [[0, 1], [2]]
    assert relative(finitediff.jvp(net, c.d, scheme), a.jvp(c.d)) < FIRST[scheme]
    assert relative(finitediff.hvp(net, c.d, scheme)[1], a.product(c.d)) < FIRST[scheme]
    slopes, curvature, losses = finitediff.second(net, c.d, c.e, scheme)
    assert torch.equal(losses, losses.detach()) and relative(losses, a.losses) < 1e-14
    assert abs(float(slopes.mean() - torch.dot(flat(a.gradient), flat(c.d)))) < FIRST[scheme] * float(slopes.norm())
    assert relative(curvature, a.curvature(c.d, c.e)) < SECOND[scheme]
    summary = finitediff.summary(net, c.d, groups, True, scheme)
    for mine, theirs, error in zip(
        summary, a.summary(c.d, groups), (1e-12, FIRST[scheme], SECOND[scheme]), strict=True
    ):
        assert relative(mine, theirs) < error


ERRORS = {
    "jvp": (finitediff.FIRST, lambda net, c, *how: finitediff.jvp(net, c.d, *how), lambda a, c: a.jvp(c.d)),
    "hvp": (finitediff.FIRST, lambda net, c, *how: finitediff.hvp(net, c.d, *how)[1], lambda a, c: a.product(c.d)),
    "second": (finitediff.SECOND, lambda net, c, *how: finitediff.second(net, c.d, c.e, *how).curvature, lambda a, c: a.curvature(c.d, c.e)),
}  # fmt: skip


@pytest.mark.parametrize("scheme", finitediff.FIRST)
@pytest.mark.parametrize("name", ERRORS)
def test_the_error_is_a_v_with_the_stated_step_near_its_bottom(name, scheme):
    """Over steps from c/1000 to 100c: rounding on the left, truncation on the right."""
    powers, quotient, answer = ERRORS[name]
    a, c = exact("mlp"), case("mlp")
    net, expected, best = Network(c.closure, c.loss, c.params), answer(a, c), EPS ** powers[scheme]
    errors = [relative(quotient(net, c, scheme, best * 10**k), expected) for k in (-3, -2, -1, 0, 1, 2)]
    assert errors[0] > 10 * min(errors) and errors[-1] > 10 * min(errors)
    assert errors[3] < 30 * min(errors) and min(errors) in errors[2:5]
    assert relative(quotient(net, c, scheme), expected) == errors[3]
    order = 1 if scheme == "forward" else 2
    assert 0.5 * 10**order < errors[-1] / errors[-2] < 2 * 10**order  # the slope of the truncation


def test_the_step_is_relative_to_parameters_and_direction():
    c = case("mlp")
    net = Network(c.closure, c.loss, c.params)
    for scale in (1e-8, 1e8):
        scaled = tuple(scale * v for v in c.d)
        assert relative(finitediff.jvp(net, scaled) / scale, finitediff.jvp(net, c.d)) < FIRST["central"]
        curvature = finitediff.second(net, scaled, c.e).curvature / scale
        assert relative(curvature, finitediff.second(net, c.d, c.e).curvature) < SECOND["central"]


@pytest.mark.parametrize("network", [n for n in NETWORKS if n != "dropout"])
def test_float32(network):
    c, a = case(network, dtype=torch.float32), exact(network)
    d = tuple(v.double() for v in c.d)
    model = expand(c.closure, c.loss, c.params, backend="finitediff", retain=True)
    assert relative(model.jvp(c.d).double(), a.jvp(d)) < 2e-2  # ε^(2/3) is 2e-5, ε^(1/2) 3e-4
    assert relative(tuple(v.double() for v in model.product(c.d)), a.product(d)) < 5e-2


def test_statistics_and_random_state_are_those_of_one_pass():
    for network in ("batch-norm", "dropout"):
        ordinary, measured = case(network), case(network)
        torch.manual_seed(3)
        ordinary.closure()
        expected = torch.rand(1)
        torch.manual_seed(3)
        model = expand(measured.closure, measured.loss, measured.params, backend="finitediff", retain=True)
        before = [p.detach().clone() for p in measured.params]
        model.curvature(measured.d), model.product(measured.d), model.jvp(measured.d), model.summary(measured.d)
        assert torch.equal(torch.rand(1), expected)
        for a, b in zip(ordinary.net.buffers(), measured.net.buffers(), strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(a, p) and p.grad is None for a, p in zip(before, measured.params, strict=True))


def test_an_exception_leaves_no_trace():
    c, calls = case("mlp"), []

    def closure():
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("mine")
        return c.closure()

    model = expand(closure, c.loss, c.params, backend="finitediff", retain=True)
    before, params = torch.get_rng_state(), [p.detach().clone() for p in c.params]
    for ask in (model.curvature, model.product, model.summary, model.jvp):
        with pytest.raises(KeyError, match="mine"):
            ask(c.d)
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    assert all(torch.equal(a, p) for a, p in zip(params, c.params, strict=True))


def test_an_unknown_scheme():
    c = case("mlp")
    with pytest.raises(UnknownName, match="did you mean 'central'"):
        finitediff.jvp(Network(c.closure, c.loss, c.params), c.d, "centra")
