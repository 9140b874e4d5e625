"""The table of backends: every cell is asked, and the answer compared with an independent value."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.curvature.backends import ANSWERS, BACKENDS, QUESTIONS
from reprolib.errors import UnsupportedOperation, UntrackedOperation
from tests.curvature.cases import Squash, case
from tests.curvature.reference import flat, gradient_graph, hessian, jacobian, per_sample_hessians


@cache
def second_derivatives(network="mlp"):
    """∇²J_s d (B, P) of a case, sample by sample in reverse mode."""
    c = case(network)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel cannot be differentiated twice
        losses = c.loss(c.closure())
    slopes = [torch.dot(gradient_graph(loss, c.params), flat(c.d)) for loss in losses]
    rows = [torch.autograd.grad(slope, c.params, retain_graph=True, materialize_grads=True) for slope in slopes]
    return torch.stack([flat(row) for row in rows])


def model(c, backend, operator="hessian"):
    return expand(c.closure, c.loss, c.params, operator, backend, retain=True)


def ggn(c):
    """A and Λ of J."""
    outputs = c.closure()
    o = outputs.detach().requires_grad_()
    return jacobian(outputs, c.params), hessian(c.loss(o).mean(), [o])


def per_sample(backend, network="mlp"):
    c = case(network)
    return model(c, backend).curvature(c.d), second_derivatives(network) @ flat(c.d)


def bilinear(backend):
    c = case("mlp")
    return model(c, backend).curvature(c.d, c.e), second_derivatives() @ flat(c.e)


def hessian_product(backend, network="mlp"):
    c = case(network)
    return flat(model(c, backend).product(c.d)), second_derivatives(network).mean(0)


def ggn_product(backend):
    c = case("mlp")
    A, L = ggn(c)
    return flat(model(c, backend, "ggn").product(c.d)), A.T @ L @ A @ flat(c.d)


def tangent(backend):
    c = case("mlp")
    return model(c, backend).jvp(c.d).flatten(), ggn(c)[0] @ flat(c.d)


def cotangent(backend):
    c = case("mlp")
    w = torch.randn(6, 3, dtype=torch.float64)
    return flat(model(c, backend).vjp(w)), ggn(c)[0].T @ w.flatten()


def summary(backend):
    c = case("mlp")
    H, d = hessian(c.loss(c.closure()).mean(), c.params), flat(c.d)
    edges = [0, *torch.tensor([p.numel() for p in c.params]).cumsum(0).tolist()]
    blocks = torch.stack([torch.cat([d.new_zeros(a), d[a:b], d.new_zeros(len(d) - b)]) for a, b in pairwise(edges)])
    return model(c, backend).summary(c.d, third=False).hessian, blocks @ H @ blocks.T


def third(backend):
    """Against three reverse modes in the length t of each block step."""
    c = case("mlp")
    names, cubes = [n for n, _ in c.net.named_parameters()], []
    for i, name in enumerate(names):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = c.loss(functional_call(c.net, {name: c.params[i].detach() + t * c.d[i]}, (c.x,))).mean()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, t, create_graph=True)
        cubes.append(y.detach())
    return model(c, backend).summary(c.d).third, torch.stack(cubes)


def norms(backend):
    """Layer norm, and batch-norm in training mode as a whole."""
    a, b = per_sample(backend, "layer-norm"), hessian_product(backend, "batch-norm")
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


def unknown_operation(backend):
    """``grid_sample`` is linear: its matrix, column by column, is the reference."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, 1, 2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    d = torch.randn(6, 1, 2, 2, generator=g, dtype=torch.float64)
    grid = torch.rand(6, 3, 3, 2, generator=g, dtype=torch.float64) - 0.5
    sample = lambda image: F.grid_sample(image, grid, align_corners=False)
    units = torch.eye(4, dtype=torch.float64).view(4, 1, 1, 2, 2).expand(4, 6, 1, 2, 2)
    G = torch.stack([sample(unit).flatten(1) for unit in units], 2)  # (6, 9, 4)
    losses = lambda: torch.einsum("sij,sj->si", G, w.square().flatten(1)).square().sum(1)
    H = per_sample_hessians(losses, [w])
    answer = expand(lambda: sample(w.square()), lambda o: o.square().flatten(1).sum(1), [w], backend=backend)
    return answer.curvature((d,)), torch.einsum("i,sij,j->s", d.flatten(), H, d.flatten())


def custom_function(backend):
    c = case("mlp")
    w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    d = torch.randn(5, 3, dtype=torch.float64)
    H = per_sample_hessians(lambda: c.loss(c.x @ w.tanh()), [w])
    answer = expand(lambda: c.x @ Squash.apply(w), c.loss, [w], backend=backend)
    return answer.curvature((d,)), torch.einsum("i,sij,j->s", d.flatten(), H, d.flatten())


ASK = {
    "per-sample curvature": per_sample,
    "bilinear form": bilinear,
    "Hessian product": hessian_product,
    "GGN product": ggn_product,
    "jvp": tangent,
    "vjp": cotangent,
    "summary": summary,
    "summary, third order": third,
    "through fused norms": norms,
    "through fused attention": lambda backend: per_sample(backend, "attention"),
    "per sample through batch-norm": lambda backend: per_sample(backend, "batch-norm"),
    "through an operation without forward derivative": unknown_operation,
    "through a custom autograd function": custom_function,
}


def answered(backend, question):
    try:
        found, expected = ASK[question](backend)
    except (UnsupportedOperation, UntrackedOperation):
        return "no"
    error = float((found - expected).norm() / expected.norm())
    return "exact" if error < 1e-12 else "approximate" if error < 1e-5 else f"wrong by {error:.1e}"


@pytest.mark.filterwarnings("ignore::reprolib.errors.HandedOver")
@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("backend", BACKENDS)
def test_which_backend_answers_what(backend, question):
    assert answered(backend, question) == ANSWERS[backend][question]


def test_the_table_is_complete():
    assert set(ANSWERS) == set(BACKENDS) and set(ASK) == set(QUESTIONS)
    assert all(set(row) == set(QUESTIONS) for row in ANSWERS.values())


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"finitediff"}))
def test_norms_called_by_their_kernels_names(backend):
    """``torch.batch_norm`` takes its arguments in another order than ``F.batch_norm``."""
    g = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    w, mean, var = torch.rand(3, 3, generator=g, dtype=torch.float64) + 0.5
    w.requires_grad_()
    rest = (True, 0.1, 1e-5, False)
    pairs = [
        (lambda: torch.batch_norm(x * w, w, w**3, mean, var, False, *rest[1:]), lambda: F.batch_norm(x * w, mean, var, w, w**3)),
        (lambda: torch.batch_norm(x * w, w, w**3, None, None, *rest), lambda: F.batch_norm(x * w, None, None, w, w**3, True)),
        (
            lambda: torch.instance_norm((x * w)[None], None, None, None, None, *rest)[0] * w,
            lambda: F.instance_norm((x * w)[None])[0] * w,
        ),
    ]  # fmt: skip
    for kernel, functional in pairs:
        found, expected = (
            expand(f, lambda o: o.square().sum(1), [w], backend=backend, retain=True) for f in (kernel, functional)
        )
        torch.testing.assert_close(found.curvature((d[0],)), expected.curvature((d[0],)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.product((d[0],)), expected.product((d[0],)), rtol=1e-10, atol=1e-10)
