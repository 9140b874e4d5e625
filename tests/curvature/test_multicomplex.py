"""Complex and bicomplex steps against mpmath and explicit Hessians: what the CSDD paper says of them."""

from __future__ import annotations

import math
from itertools import pairwise, product

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from reprolib.curvature import expand
from reprolib.curvature.complex import multicomplex as mc
from reprolib.curvature.complex.backend import STEP
from reprolib.curvature.complex.multicomplex import Multicomplex, component, order, real, variable
from reprolib.curvature.finitediff import _quotient
from reprolib.errors import InvalidInput
from tests.curvature.cases import case
from tests.curvature.reference import flat, hessian

mpmath.mp.dps = 50
FUNCTIONS = {  # ours, mpmath's
    "exp": (mc.exp, mpmath.exp),
    "expm1": (mc.expm1, mpmath.expm1),
    "log": (mc.log, mpmath.log),
    "log1p": (mc.log1p, mpmath.log1p),
    "sqrt": (mc.sqrt, mpmath.sqrt),
    "sin": (mc.sin, mpmath.sin),
    "cos": (mc.cos, mpmath.cos),
    "sinh": (mc.sinh, mpmath.sinh),
    "cosh": (mc.cosh, mpmath.cosh),
    "tanh": (mc.tanh, mpmath.tanh),
    "atan": (mc.atan, mpmath.atan),
    "x³": (lambda x: x**3,) * 2,
    "x⁻²": (lambda x: x**-2,) * 2,
    "x^2.5": (lambda x: x**2.5, lambda x: x ** mpmath.mpf(2.5)),
    "3^x": (lambda x: 3**x, lambda x: mpmath.mpf(3) ** x),
    "x^x": (lambda x: x**x,) * 2,
    "arithmetic": (lambda x: (1 - x) / (x * x + 2) - 3 / x + 2 * x - 1,) * 2,
}
TINY = [10.0**-k for k in (*range(8, 21), 30, 50, 100, 150)]


def error(value: float, exact) -> float:
    return abs(float((value - exact) / exact))


# ---- the numbers


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("x", [0.2, 0.7, 3.0, 20.0])
def test_first_and_second_derivatives_are_exact(name, x):
    ours, theirs = FUNCTIONS[name]
    exact = [mpmath.diff(theirs, mpmath.mpf(x), n) for n in (0, 1, 2)]
    for h in (1e-15, 1e-20, 1e-100):
        assert error(ours(x), exact[0]) < 1e-14
        assert error(mc.first(ours, x, h), exact[1]) < 2e-14
        assert error(mc.second(ours, x, h), exact[2]) < 2e-14


@pytest.mark.parametrize("name", ["sin", "cos", "exp", "sinh", "cosh", "tanh", "atan", "expm1", "x³", "x⁻²"])
def test_negative_arguments(name):
    ours, theirs = FUNCTIONS[name]
    for x in (-0.7, -3.0, -30.0):
        assert error(mc.first(ours, x), mpmath.diff(theirs, mpmath.mpf(x))) < 2e-14
        assert error(mc.second(ours, x), mpmath.diff(theirs, mpmath.mpf(x), 2)) < 2e-14


def test_it_is_true_multicomplex_arithmetic_not_dual_numbers():
    """Order 1 are the complex numbers, order 2 pairs of them, the parts on the idempotents e± = ½(1 ± i₁i₂)."""
    for name in FUNCTIONS:
        ours, theirs = FUNCTIONS[name]
        z = ours(Multicomplex(1.1, 0.3))
        exact = theirs(mpmath.mpc(1.1, 0.3))
        assert abs(complex(z.a, z.b) - complex(exact)) < 1e-14 * abs(exact)
        w = ours(Multicomplex(Multicomplex(1.1, 0.3), Multicomplex(0.2, 0.0)))  # e₊: i₂ is −i₁, e₋: i₂ is i₁
        plus, minus = theirs(mpmath.mpc(1.1, 0.1)), theirs(mpmath.mpc(1.1, 0.5))
        assert abs(complex(component(w), component(w, 1)) - complex((plus + minus) / 2)) < 1e-14 * abs(plus)
        # i₁i₂ (plus − minus)/2
        assert abs(complex(component(w, 1, 2), -component(w, 2)) - complex((plus - minus) / 2)) < 1e-14 * abs(plus)


def test_units_commute_and_square_to_minus_one():
    one, i1, i2 = (Multicomplex(Multicomplex(*a), Multicomplex(*b)) for a, b in [((1.0, 0.0), (0.0, 0.0)), ((0.0, 1.0), (0.0, 0.0)), ((0.0, 0.0), (1.0, 0.0))])  # fmt: skip
    assert i1 * i1 == i2 * i2 == -one
    assert i1 * i2 == i2 * i1
    assert component(i1 * i2, 1, 2) == 1
    assert (i1 * i2) * (i1 * i2) == one  # so there are divisors of zero: (1 − i₁i₂)(1 + i₁i₂) = 0
    with pytest.raises(ZeroDivisionError):
        one / (one + i1 * i2)
    assert order(i2) == 2 and order(i2.a) == 1 and order(0.5) == 0
    assert Multicomplex(1.0, 2.0) + i2 == i2 + Multicomplex(1.0, 2.0)


def test_bad_arguments():
    with pytest.raises(InvalidInput, match="units"):
        variable(1.0, 3)
    with pytest.raises(InvalidInput, match="positive"):
        mc.sqrt(variable(-1.0, 1))
    with pytest.raises(ValueError, match="math domain"):
        mc.log(variable(-1.0, 1))
    assert variable(2.0) == 2.0
    assert component(2.0, 1) == 0.0


# ---- Figure 1: f = eˣ/(x² + 1) at 10


def f(x):
    return mc.exp(x) / (x**2 + 1)


def exact(n: int):
    return mpmath.diff(lambda x: mpmath.exp(x) / (x**2 + 1), 10, n)


def quotients(h: float) -> tuple[float, float]:
    """Errors of the forward and of the central difference."""
    forward, central = (error(_quotient(lambda t: f(10 + t), h, s), exact(1)) for s in ("forward", "central"))
    return forward, central


@pytest.mark.claim("csdd-fig1", file="curvature/complex/multicomplex.py", old="(z.b * w.a - z.a * w.b) / size", new="(z.b * w.a + z.a * w.b) / size")  # fmt: skip
def test_figure_1():
    grid = [10.0**-k for k in range(1, 16)]
    forward, central = zip(*map(quotients, grid), strict=True)
    # errors near the best h are rounding noise, so "≈" is a factor of three; which h wins is noise for FFD too
    assert 7e-8 / 3 < forward[7] < 7e-8 * 3  # h = 1e-8
    assert min(forward) > 7e-8 / 10
    assert min(central) == central[4] == pytest.approx(3e-11, rel=0.1)  # h = 1e-5
    for h in (1e-2, 1e-4):  # truncation: O(h), O(h²), and the complex step as the central difference
        assert quotients(h)[0] == pytest.approx(0.41 * h, rel=0.05)
        assert error(mc.first(f, 10.0, h), exact(1)) == pytest.approx(quotients(h)[1], rel=0.01)
    for h in (*TINY, 1e-200, 1e-300):
        assert error(mc.first(f, 10.0, h), exact(1)) <= 3e-16


@pytest.mark.claim("csdd-c01", file="curvature/complex/multicomplex.py", old="return Multicomplex(size * cos(z.b), size * sin(z.b))", new="return Multicomplex(size * cos(z.b), exp(z.a + z.b) - size)")  # fmt: skip
def test_the_complex_step_is_stable_for_any_smaller_h():
    for k in range(8, 301):
        assert error(mc.first(f, 10.0, 10.0**-k), exact(1)) <= 3e-16


@pytest.mark.claim(
    "csdd-c02", file="curvature/complex/backend.py", old="torch.float32: 1e-12", new="torch.float32: 2e-24"
)
def test_the_step_of_the_paper_underflows_in_float32():
    """Contradicted: √ε = 1.05e-8, not 2e-24 (E-cs-1). Harmless in float64; in float32 the second order is 0/0."""
    assert math.sqrt(1.11e-16) == pytest.approx(1.05e-8, rel=0.01)
    assert error(mc.first(f, 10.0, 1.05e-8), exact(1)) <= 3e-16  # and is small enough
    assert error(mc.first(f, 10.0, 2e-24), exact(1)) <= 3e-16
    assert error(mc.second(f, 10.0, 2e-24), exact(2)) <= 5e-16
    h = torch.tensor(2e-24, dtype=torch.float32)
    assert h * h == 0
    for dtype, step in STEP.items():  # ours can be squared, and its square vanishes beside 1
        square = torch.tensor(step, dtype=dtype) ** 2
        assert 0 < square < torch.finfo(dtype).eps


@pytest.mark.claim("csdd-c03", file="curvature/finitediff.py", old="(f(h) - f(-h)) / (2 * h)", new="(f(h) - f(-h)) / h")
def test_both_differences_suffer_alike_from_a_small_h():
    """Contradicted: below 1e-8 the errors are of the same order, in the mean and at nearly every h."""
    ratios = [b / a for h in (10.0 ** -(8 + k / 8) for k in range(56)) for a, b in [quotients(h)]]
    logs = torch.tensor(ratios, dtype=torch.float64).log10()
    assert abs(logs.mean()) < 0.3
    assert (logs.abs() < 1).double().mean() > 0.85


@pytest.mark.claim("csdd-eq7", file="curvature/complex/multicomplex.py", old="z.a * w.b + z.b * w.a)", new="(z.a + z.b) * (w.a + w.b) - z.a * w.a - z.b * w.b)")  # fmt: skip
def test_second_order_cancels_in_idempotents_but_not_in_components():
    for h in TINY:
        assert error(mc.second(f, 10.0, h), exact(2)) <= 5e-16
    errors = {k: error(mc.idempotent(f, 10.0, 10.0**-k), exact(2)) for k in (2, 5, 8, 10)}
    assert errors[2] == pytest.approx(2.4e-5, rel=0.1)  # truncation
    assert 1e-7 < errors[5] < 1e-5
    assert errors[8] > 5e-3  # 1.6 % of luck: one unit in the last place of f is 100 %
    assert errors[10] >= 1


# ---- directions


def mlp_loss(theta):
    """A scalar network 2-2-1 with a squared error on two samples, of numbers of any kind."""
    total = 0.0
    for (x, y), target in (((0.5, -1.0), 0.3), ((1.5, 0.2), -0.7)):
        hidden = [mc.tanh(theta[3 * i] * x + theta[3 * i + 1] * y + theta[3 * i + 2]) for i in range(2)]
        out = hidden[0] * theta[6] + hidden[1] * theta[7] + theta[8]
        total = total + 0.25 * (out - target) * (out - target)
    return total


THETA = [0.4, -0.3, 0.1, 0.8, 0.5, -0.2, 1.1, -0.6, 0.05]
P = [1.0, -2.0, 0.5, 0.3, 0.0, -1.0, 0.7, 0.2, -0.4]


def torch_loss(t: torch.Tensor) -> torch.Tensor:
    x = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
    out = torch.tanh(x @ t[:6].view(2, 3)[:, :2].T + t[[2, 5]]) @ t[6:8] + t[8]
    return 0.25 * (out - torch.tensor([0.3, -0.7], dtype=torch.float64)).square().sum()


@pytest.mark.claim("csdd-eq10", file="curvature/complex/backend.py", old="return tuple(z.real for z in g), tuple(z.imag / h for z in g)", new="return tuple(z.real for z in g), tuple(-z.imag / h for z in g)")  # fmt: skip
@pytest.mark.parametrize("network", ["mlp", "conv", "batch-norm"])
def test_a_hessian_product_by_the_complex_step(network):
    c = case(network)
    found = flat(expand(c.closure, c.loss, c.params, backend="complexstep").product(c.d))
    expected = hessian(c.loss(c.closure()).mean(), c.params) @ flat(c.d)
    assert float((found - expected).norm() / expected.norm()) < 1e-14


@pytest.mark.claim(
    "csdd-eq11", file="curvature/complex/multicomplex.py", old="Multicomplex(h, 0.0)", new="Multicomplex(2 * h, 0.0)"
)
def test_curvature_along_a_direction_by_one_bicomplex_evaluation():
    """pᵀHp of eq. (11); redundant, since with Hp it is a dot product (E-cs-9)."""
    t = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(P, dtype=torch.float64)
    value, slope, curvature = mc.along(mlp_loss, THETA, P)
    H = hessian(torch_loss(t), [t])
    assert value == pytest.approx(float(torch_loss(t).detach()), rel=1e-14)
    assert slope == pytest.approx(float(torch.autograd.grad(torch_loss(t), t)[0] @ p), rel=1e-13)
    assert curvature == pytest.approx(float(p @ H @ p), rel=1e-13)
    (product,) = expand(lambda: torch_loss(t)[None], None, [t], backend="complexstep").product((p,))
    assert curvature == pytest.approx(float(p @ product), rel=1e-13)


@pytest.mark.claim("csdd-perturb", file="curvature/complex/multicomplex.py", old="[[entry(k, l) for l", new="[[(entry(k, l) + entry(l, k)) / 2 for l")  # fmt: skip
def test_how_many_perturbed_evaluations_are_needed():
    calls = []

    def counted(theta):
        calls.append(sum(order(v) > 0 for v in theta))
        return mlp_loss(theta)

    n = len(THETA)
    g = mc.gradient(counted, THETA)
    assert len(calls) == n and set(calls) == {1}
    calls.clear()
    H = mc.hessian(counted, THETA)
    assert len(calls) == n * n
    calls.clear()
    mc.along(counted, THETA, P)
    assert calls == [n]
    t = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        torch.tensor(g, dtype=torch.float64), torch.autograd.grad(torch_loss(t), t)[0], rtol=1e-13, atol=1e-15
    )
    torch.testing.assert_close(
        torch.tensor(H, dtype=torch.float64), hessian(torch_loss(t), [t]), rtol=1e-13, atol=1e-15
    )
    assert all(H[k][l] == pytest.approx(H[l][k], rel=1e-12, abs=1e-15) for k, l in product(range(n), repeat=2))


# ---- costs in matrix products

LAYERS, WIDTH, BATCH = 9, 8, 16


class Products(TorchDispatchMode):
    """Counts real matrix products of the size of a layer; one of complex numbers is four of them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = (args if func is torch.ops.aten.mm.default else args[1:])[:2]
            self.count += (1 + a.is_complex()) * (1 + b.is_complex())
        return func(*args, **(kwargs or {}))


def units(call) -> float:
    """Products per layer."""
    with Products() as products:
        call()
    return products.count / LAYERS


def chain():
    g = torch.Generator().manual_seed(0)
    params = [torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64) / 3 for _ in range(LAYERS)]
    d = tuple(torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64) for _ in params)
    x = torch.randn(BATCH, WIDTH, generator=g, dtype=torch.float64)

    def closure(*weights):
        y = x
        for i, w in enumerate(weights or params):
            y = F.linear(torch.tanh(y) if i else y, w)
        return y

    return closure, [p.requires_grad_() for p in params], d


def half_square(o):
    return o.square().sum(1) / 2


def three_products():
    """(name -> a function that returns Hp): complex step, forward over reverse (dual numbers), reverse over reverse."""
    closure, params, d = chain()

    def by(backend):
        return lambda: expand(closure, half_square, params, backend=backend, check=False).product(d)

    def gradient(*weights):
        return torch.func.grad(lambda w: half_square(closure(*w)).mean())(weights)

    at = tuple(p.detach() for p in params)
    dual = lambda: torch.func.jvp(gradient, at, d)[1]
    return {"complex": by("complexstep"), "dual": dual, "reverse": by("autodiff")}, closure, params


@pytest.mark.claim("csdd-c06", file="curvature/complex/backend.py", old="        conjugate = torch.autograd.grad(y, x, torch.ones_like(y), materialize_grads=True)", new="        torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)\n        conjugate = torch.autograd.grad(y, x, torch.ones_like(y), materialize_grads=True)")  # fmt: skip
def test_the_complex_step_takes_more_products_than_others():
    """Contradicted: 12 units against 9 and 8.5 (E-cs-12). The ordinary pass of ``expand``, one unit, is not counted."""
    products, closure, params = three_products()
    forward = units(closure)
    gradient = units(lambda: torch.autograd.grad(half_square(closure()).mean(), params))
    counts = {name: units(f) - (name != "dual") * forward for name, f in products.items()}
    assert forward == 1
    assert gradient == pytest.approx(3, abs=0.15)
    assert counts["complex"] == pytest.approx(12, abs=0.8)
    assert counts["dual"] == pytest.approx(9, abs=0.5)
    assert counts["reverse"] == pytest.approx(8.5, abs=0.3)
    answers = [flat(f()) for f in products.values()]
    for other in answers[1:]:
        torch.testing.assert_close(answers[0], other, rtol=1e-12, atol=1e-13)


@pytest.mark.claim("csdd-c04", file="curvature/autodiff.py", old="return tuple(x.detach() for x in g), _grad(g, at, d)", new="return tuple(x.detach() for x in g), _grad(g, at, g)")  # fmt: skip
def test_second_derivatives_by_automatic_differentiation_are_feasible():
    """Contradicted: forward over reverse, and reverse over reverse, give Hp for the price of three gradients."""
    products, closure, params = three_products()
    gradient = units(lambda: torch.autograd.grad(half_square(closure()).mean(), params))
    H = hessian(half_square(closure()).mean(), params)
    exact = H @ flat(chain()[2])
    for name in ("dual", "reverse"):
        assert units(products[name]) < 3.5 * gradient
        torch.testing.assert_close(flat(products[name]()), exact, rtol=1e-12, atol=1e-13)


@pytest.mark.claim("csdd-s-c1", file="curvature/tape/backend.py", old="replay.at(r.ends[1], replay.second) + replay.paid", new="replay.paid")  # fmt: skip
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_a_network_without_smooth_activations_has_curvature(activation):
    """Contradicted (E-cs-7): the loss bends. One linear layer, cross-entropy: the variance of the logits' change."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 5).double(), torch.randint(0, 3, (32,))
    for depth in (1, 2, 3, 4):
        sizes = [5, *[6] * (depth - 1), 3]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())][:-1]
        net = nn.Sequential(*layers).double()
        model = expand(lambda net=net: net(x), lambda o: F.cross_entropy(o, y, reduction="none"), list(net.parameters()), retain=True)  # fmt: skip
        g = model.gradient
        size = sum(v.square().sum() for v in g)
        curvature = model.curvature(g)
        assert curvature.mean() > 0.05 * size
        if depth == 1:
            p, change = net(x).softmax(1).detach(), model.jvp(g)
            variance = (p * change**2).sum(1) - (p * change).sum(1) ** 2
            torch.testing.assert_close(curvature, variance, rtol=1e-12, atol=1e-14)


def test_real_and_component_of_nested_numbers():
    z = f(variable(10.0, 1, 2))
    assert real(z) == component(z) == pytest.approx(f(10.0), rel=1e-15)
    assert component(z, 1) == component(z, 2)
    assert component(z, 1, 2) == component(z, 2, 1)
