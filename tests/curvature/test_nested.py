"""Nested forward mode is trusted where it agrees with reverse mode, operation by operation."""

from __future__ import annotations

import pytest
import torch

from reprolib.curvature import expand, nested
from reprolib.errors import UnsupportedOperation

torch.manual_seed(0)
W, D = torch.randn(2, 3, 4, 4, dtype=torch.float64)  # three matrices, three directions
W = W + 3 * torch.eye(4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(nested, "_WAY", {})


def curvature(f, x, d, **how):
    x = x.clone().requires_grad_()
    return expand(lambda: f(x), None, [x], **how).curvature((d,))


@pytest.mark.parametrize("backend", ["tape", "reverse"])
@pytest.mark.parametrize("name", ["logdet", "slogdet", "det"])
def test_determinants(backend, name):
    """d² log|det W| along D is −tr(W⁻¹D W⁻¹D); nested forward mode says 0."""
    f = {"logdet": torch.logdet, "slogdet": lambda x: torch.linalg.slogdet(x)[1], "det": torch.linalg.det}[name]
    positive = W @ W.transpose(1, 2)
    M = torch.linalg.solve(positive, D)
    expected = -torch.einsum("sij,sji->s", M, M)
    if name == "det":
        trace = torch.einsum("sii->s", M)
        expected = torch.linalg.det(positive) * (expected + trace.square())
    torch.testing.assert_close(curvature(f, positive, D, backend=backend), expected, rtol=1e-11, atol=1e-11)


def test_a_solution():
    """X = W⁻¹b: along D, ẍ = 2 W⁻¹D W⁻¹D W⁻¹b."""
    b = torch.randn(4, 1, dtype=torch.float64)
    x = torch.linalg.solve(W, b.expand(3, 4, 1))
    M = torch.linalg.solve(W, D)
    expected = (2 * M @ M @ x).sum((1, 2))
    found = curvature(lambda w: torch.linalg.solve(w, b.expand(3, 4, 1)).sum((1, 2)), W, D)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_what_is_wrong_in_forward_mode_is_refused_by_autodiff_and_named():
    with pytest.raises(UnsupportedOperation, match=r"logdet.*backend='tape' or backend='reverse'"):
        curvature(torch.logdet, W @ W.transpose(1, 2), D, backend="autodiff")
    torch.testing.assert_close(
        curvature(lambda w: w.sin().sum((1, 2)), W, D, backend="autodiff"), -(W.sin() * D**2).sum((1, 2))
    )


def way(f, *xs):
    return nested.way(f.__name__, f, lambda *x: (f(*x),), xs)


def test_the_way_is_forward_where_that_is_right_else_reverse():
    assert way(torch.sin, W) == "forward"
    assert way(torch.logdet, W @ W.transpose(1, 2)) == "reverse"
    assert {torch.sin: "forward", torch.logdet: "reverse"} == nested._WAY


def test_what_is_wrong_both_ways_is_refused():
    class Wrong(torch.autograd.Function):
        """x², whose third derivative in reverse mode is lost: its backward pass takes for constant what it keeps."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return Halved.apply(x, g)

    class Halved(torch.autograd.Function):
        """2xg, of which x counts only where g is a constant."""

        @staticmethod
        def forward(ctx, x, g):
            ctx.save_for_backward(x, g)
            return 2 * x * g

        @staticmethod
        def backward(ctx, h):
            x, g = ctx.saved_tensors
            return 2 * g * h, (2 * x * h).detach()

    f = lambda x: (Wrong.apply(x),)
    said = nested.way("square", "square", f, [W])
    assert said.startswith("square has no rule") and "wrong or missing" in said
    with pytest.raises(UnsupportedOperation, match="square has no rule"):
        nested.second_of("square", "square", f, [W], [D], None)


@pytest.mark.parametrize("how", nested.BY)
def test_both_ways_carry_a_second_derivative(how):
    """F = (x³, sin x): D²F[v, v] + DF u."""
    x, v, u = torch.randn(3, 5, dtype=torch.float64)
    first, second = nested.BY[how](lambda x: (x**3, x.sin()), [x], [v], [u])
    torch.testing.assert_close(first, (3 * x**2 * v, x.cos() * v))
    torch.testing.assert_close(second, (6 * x * v**2 + 3 * x**2 * u, -x.sin() * v**2 + x.cos() * u))


def test_kinds_of_a_call():
    kind = lambda *args, **kwargs: nested.kind_of(torch.norm, args, kwargs, lambda t: t.requires_grad)
    a, b = torch.zeros(2, 3), torch.zeros(4, 3)
    assert kind(a, p=1) == kind(b, p=1) != kind(b, p=2)
    assert kind(a) != kind(a.double()) and kind(a) != kind(a[0]) and kind(a) != kind(a.clone().requires_grad_())
    assert kind([a, b], "x", None) != kind([a], "x", None)
    hash(kind([a, (b, {"k": a})], dim=(1, 2)))
