"""The claims about Algorithm 2, its cost and its relatives, on the engine that runs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reprolib.curvature import expand
from reprolib.curvature.tree import inner
from reprolib.errors import InvalidInput, UnknownName
from tests.curvature.cases import case
from tests.curvature.reference import flat, hessian, jacobian, per_sample_hessians

LAYERS, WIDTH, BATCH = 9, 8, 16


def chain() -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
    """Nine square dense layers without bias, so that costs are counted in equal matrix products."""
    g = torch.Generator().manual_seed(0)
    params = [torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64) / 3 for _ in range(LAYERS)]
    d = tuple(torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64) for _ in params)
    return [p.requires_grad_() for p in params], torch.randn(BATCH, WIDTH, generator=g, dtype=torch.float64), d


def forward(params, x: Tensor) -> Tensor:
    for i, w in enumerate(params):
        x = F.linear(torch.tanh(x) if i else x, w)
    return x


def half_square(o: Tensor) -> Tensor:
    return o.square().sum(1) / 2


def products(f) -> float:
    """How many matrix products (BATCH × WIDTH × WIDTH) a call does."""
    with FlopCounterMode(display=False) as counter:
        f()
    total = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op))
    return total / (2 * BATCH * WIDTH * WIDTH)


def curvature_with(**options):
    params, x, d = chain()

    def run():
        model = expand(lambda: forward(params, x), half_square, params, check=False, **options)
        return model.gradient, model.curvature(d)

    return run


GRADIENT = 3 * LAYERS - 1  # the first layer needs no adjoint of its input


@pytest.mark.claim(
    "red-alg2",
    file="curvature/tape/backend.py",
    old="self.paid += self.recording.batch * parts",
    new="self.paid += parts",
)
@pytest.mark.parametrize("options", [{}, {"products": "shared"}, {"memory": "recompute"}])
@pytest.mark.parametrize("network", ["mlp", "conv", "batch-norm", "attention"])
def test_algorithm_2_gives_the_explicit_per_sample_curvature(network, options):
    c = case(network)
    q = expand(c.closure, c.loss, c.params, **options).curvature(c.d)
    d = flat(c.d)
    with sdpa_kernel(SDPBackend.MATH):  # for the reference: the fused kernel cannot be differentiated twice
        exact = torch.stack([d @ h @ d for h in per_sample_hessians(lambda: c.loss(c.closure()), c.params)])
    torch.testing.assert_close(q, exact, rtol=1e-10, atol=1e-10)


def test_by_index_is_another_split_of_the_same_sum():
    c = case("batch-norm")
    exact = expand(c.closure, c.loss, c.params).curvature(c.d)
    split = expand(c.closure, c.loss, c.params, batch_norm="by-index").curvature(c.d)
    torch.testing.assert_close(split.mean(), exact.mean(), rtol=1e-12, atol=1e-12)
    assert (split - exact).abs().max() > 1e-3 * exact.abs().max()


@pytest.mark.claim(
    "red-thm1", file="curvature/tape/backend.py", old="            if v.id in adjoints:", new="            if False:"
)
def test_theorem_1_in_matrix_products():
    """Passes 3 and 4 as printed; products 2 C (not 1.5 C) stored and 7/3 C (not 2 C) recomputed (E-red-6)."""
    params, x, _ = chain()
    loss = lambda: half_square(forward(params, x)).mean()
    assert products(lambda: torch.autograd.grad(loss(), params)) == GRADIENT
    # Wẋ and Ẇẋ in all layers but the first, Ẇx in all
    assert products(curvature_with()) == GRADIENT + 3 * LAYERS - 2
    assert products(curvature_with(products="shared")) == GRADIENT + 2 * LAYERS - 1
    recomputed = products(curvature_with(memory="recompute")) / GRADIENT
    assert 7 / 3 - 0.1 < recomputed < 7 / 3 + 0.1
    assert abs(products(curvature_with()) / GRADIENT - 2) < 0.05


@pytest.mark.claim("red-bbcost", file="curvature/tape/rules/layers.py", old="            s = 2 * product(dx, dw, None)", new="            s = product(dx, dw, None) + product(dx, dw, None)")  # fmt: skip
def test_the_stored_form_never_costs_more_than_two_gradients():
    assert products(curvature_with()) <= 2 * GRADIENT
    assert products(curvature_with(memory="recompute")) > 2 * GRADIENT  # the recomputing one does


@pytest.mark.claim("red-hvpcost", file="curvature/tape/backend.py", old="    if graph is None:", new="    if True:")  # fmt: skip
def test_a_hessian_vector_product_costs_three_gradients():
    params, x, d = chain()
    closure = lambda: forward(params, x)
    autodiff = products(lambda: expand(closure, half_square, params, backend="autodiff", check=False).product(d))
    tape = products(lambda: expand(closure, half_square, params).product(d))
    # backward of a backward: the weights of the last layer bend nothing, and the first input needs no adjoint
    assert abs(tape - 3 * GRADIENT) <= 2
    assert autodiff == tape + LAYERS  # which cannot use the ordinary pass


@pytest.mark.claim("red-hvp", file="curvature/autodiff.py", old="return tuple(x.detach() for x in g), _grad(g, at, d)", new="return tuple(x.detach() for x in g), _grad(g, at, g)")  # fmt: skip
def test_one_more_backward_sweep_gives_the_product():
    """Eqs. (23), (24) on the chain: x̃_s = (∂F)* x̃_{s+1} + A_s, θ̃_s = (∂_θF)* x̃_{s+1} + B_s, and θ̃ = Hd."""
    params, x, d = chain()
    with torch.no_grad():
        # forward and tangent: a_i the input of layer i, z_i its output
        a, z, da, dz = [x], [], [torch.zeros_like(x)], []
        for w, v in zip(params, d, strict=True):
            z.append(a[-1] @ w.T)
            dz.append(da[-1] @ w.T + a[-1] @ v.T)
            a.append(torch.tanh(z[-1]))
            da.append((1 - a[-1] ** 2) * dz[-1])
        adjoint, tilde = z[-1] / BATCH, dz[-1] / BATCH  # of ½‖z‖², and A of the loss
        answer = []
        for i in reversed(range(LAYERS)):
            answer.append(tilde.T @ a[i] + adjoint.T @ da[i])  # (∂_θF)* x̃ + B: the layer is bilinear
            if i:
                below, below_tilde = adjoint @ params[i], tilde @ params[i] + adjoint @ d[i]  # + A
                slope = 1 - a[i] ** 2
                adjoint = below * slope
                tilde = below_tilde * slope - 2 * below * a[i] * slope * dz[i - 1]  # + A of the activation
    answer = tuple(reversed(answer))
    model = expand(lambda: forward(params, x), half_square, params)
    for ours, theirs in zip(model.product(d), answer, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


E = lambda x: x.mean(0, keepdim=True)
EPS = 1e-3
TABLE = {  # name: (F(x, θ), r_s = ½ ⟨x̂, D²F[(ẋ, θ̇)²]⟩ by the corrected rows of Table 1)
    "activation": (lambda x, w: F.softplus(x, beta=5), lambda x, w, dx, dw, a: 0.5 * (a * 5 * torch.sigmoid(5 * x) * torch.sigmoid(-5 * x) * dx**2).sum()),
    "linear": (lambda x, w: x @ w.T, lambda x, w, dx, dw, a: (a * (dx @ dw.T)).sum()),
    "bias": (lambda x, w: x + w[0], lambda x, w, dx, dw, a: torch.zeros(())),
    "centering": (lambda x, w: x - E(x), lambda x, w, dx, dw, a: torch.zeros(())),
    "normalising": (lambda x, w: x * torch.rsqrt(E(x * x) + EPS), lambda x, w, dx, dw, a: normalising(x, dx, a)),
    "batch-norm": (lambda x, w: F.batch_norm(x, None, None, training=True, eps=EPS), lambda x, w, dx, dw, a: normalising(x - E(x), dx - E(dx), a)),
}  # fmt: skip


def normalising(x: Tensor, dx: Tensor, a: Tensor) -> Tensor:
    """Σ (γ̇ ẋ + ½ γ̈ x) x̂ with γ̈ = 3γ⁵E(xẋ)² − γ³E(ẋ²): the printed row has E(x²) and no square (E-red-4)."""
    γ = torch.rsqrt(E(x * x) + EPS)
    first, second = -(γ**3) * E(x * dx), 3 * γ**5 * E(x * dx) ** 2 - γ**3 * E(dx * dx)
    return ((first * dx + second * x / 2) * a).sum()


@pytest.mark.claim("red-tab1", file="curvature/tape/rules/norms.py", old="along_xh, along_dc = σ2 * (3 * m1 * m1 - mean(dc * dc))", new="along_xh, along_dc = σ2 * (3 * m1 - mean(dc * dc))")  # fmt: skip
@pytest.mark.parametrize("row", TABLE)
def test_table_1_row_by_row(row):
    g = torch.Generator().manual_seed(1)
    x, w, dx, dw, a = (torch.randn(5, 5, generator=g, dtype=torch.float64) for _ in range(5))
    layer, formula = TABLE[row]
    x, w = x.requires_grad_(), w.requires_grad_()
    model = expand(lambda: (a * layer(x, w)).sum().reshape(1, 1), lambda o: o[:, 0], [x, w], retain=True)
    expected = formula(x.detach(), w.detach(), dx, dw, a)
    torch.testing.assert_close(model.curvature((dx, dw)).sum() / 2, expected.double(), rtol=1e-10, atol=1e-12)
    d = torch.cat([dx.flatten(), dw.flatten()])
    torch.testing.assert_close(
        d @ hessian((a * layer(x, w)).sum(), [x, w]) @ d / 2, expected.double(), rtol=1e-10, atol=1e-12
    )


def test_figure_1_as_a_schedule():
    """Cost and memory of the phases in the paper's units (a pass over half of the net costs ¼ C, its storage ½ M)."""
    phases = [  # (passes over half of the net, halves of X and X̂ held after it)
        (3, 2),  # 1  F of both halves, B of the second without storing it
        (0, 1),  # 2  flush X of the second half
        (1, 2),  # 3  B of the first half, stored
        (1, 2),  # 4  T of the FIRST half (printed: s ≥ L, which has no tangent to start from, E-red-7)
        (0, 0),  # 5  flush
        (3, 2),  # 6  F, B and T of the second half
    ]
    cost = torch.tensor([c for c, _ in phases]).cumsum(0) / 4
    assert cost.tolist() == [0.75, 0.75, 1.0, 1.25, 1.25, 2.0]
    assert max(held for _, held in phases) / 2 == 1.0


@pytest.mark.claim(
    "red-fig1",
    file="curvature/tape/recompute.py",
    old="2 * sum(made[: start + 1]) <= total",
    new="sum(made[: start + 1]) <= total",
)
def test_the_recomputing_tape_follows_figure_1():
    params, x, d = chain()
    model = expand(lambda: forward(params, x), half_square, params, memory="recompute", retain=True)
    recording = model._net.recording
    start, nodes = recording.later.start, recording.nodes
    held = lambda part: sum(v.data.numel() for n in part for v in n.out if v.data is not None)
    made = [v.shape.numel() for n in nodes for v in n.out]
    assert abs(sum(made[:start]) / sum(made) - 0.5) < 0.1
    assert model.gradient is not None
    assert held(nodes[start:]) == 0  # phase 2: nothing of the second half is kept
    first = {v.id for n in nodes[:start] for v in n.out}
    assert recording.adjoints and set(recording.adjoints) <= first  # phase 3: adjoints of the first half only
    q = model.curvature(d)
    assert held(nodes[start:]) == 0  # and phase 6 leaves nothing behind
    stored = expand(lambda: forward(params, x), half_square, params).curvature(d)
    torch.testing.assert_close(q, stored, rtol=1e-12, atol=1e-12)


# ---- the other two operators of the tape


def moved(c, eta: Tensor) -> Tensor:
    """ψ(η): the loss with η_i d_i added to tensor i."""
    values = {n: p + eta[i] * c.d[i] for i, (n, p) in enumerate(c.net.named_parameters())}
    return c.loss(torch.func.functional_call(c.net, values, (c.x,))).mean()


@pytest.mark.claim(
    "summary-def",
    file="curvature/tape/blocks.py",
    old="self._cross(v, ids, riesz)",
    new="self._cross(v, ids, 0 * dx)",
)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_summary_tensors_are_derivatives_in_one_scalar_per_tensor(network):
    c = case(network)
    eta = torch.zeros(len(c.params), dtype=torch.float64)
    summary = expand(c.closure, c.loss, c.params).summary(c.d)
    psi = lambda e: moved(c, e)
    torch.testing.assert_close(summary.gradient, torch.func.grad(psi)(eta), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(summary.hessian, torch.func.jacrev(torch.func.grad(psi))(eta), rtol=1e-10, atol=1e-12)
    third = torch.func.jacrev(torch.func.jacrev(torch.func.grad(psi)))(eta)
    diagonal = torch.stack([third[i, i, i] for i in range(len(eta))])
    torch.testing.assert_close(summary.third, diagonal, rtol=1e-10, atol=1e-12)


@pytest.mark.claim("summary-eqtaylor", file="curvature/tape/blocks.py", old="part = rows.reshape(len(i), -1) @ columns.reshape(len(j), -1).T", new="part = 2 * rows.reshape(len(i), -1) @ columns.reshape(len(j), -1).T")  # fmt: skip
def test_the_taylor_terms_are_the_summary_tensors_contracted_with_ones():
    c = case("mlp")
    model = expand(c.closure, c.loss, c.params, retain=True)
    summary = model.summary(c.d)
    torch.testing.assert_close(summary.gradient.sum(), inner(model.gradient, c.d), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(summary.hessian.sum(), model.curvature(c.d).mean(), rtol=1e-10, atol=1e-12)
    one = model.summary(c.d, [list(range(len(c.d)))])  # one group: the third term along d itself
    along = lambda t: moved(c, t * torch.ones(len(c.d), dtype=torch.float64))
    third = torch.func.grad(torch.func.grad(torch.func.grad(along)))(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(one.third[0], third, rtol=1e-10, atol=1e-12)


@pytest.mark.claim("summary-appA", file="curvature/tape/blocks.py", old="3 * factor * torch", new="factor * torch")
def test_each_order_is_the_derivative_of_the_one_before():
    """Appendix A: the term of order n + 1 is the derivative, along u, of the term of order n."""
    c = case("mlp")
    u = c.d
    term = lambda: c.loss(c.closure()).mean()
    terms = []
    y = term()
    for _ in range(3):
        g = torch.autograd.grad(y, c.params, create_graph=True, materialize_grads=True)
        y = inner(g, u)
        terms.append(y.detach())
    s = expand(c.closure, c.loss, c.params).summary(u, [list(range(len(u)))])
    torch.testing.assert_close(
        torch.stack([s.gradient[0], s.hessian[0, 0], s.third[0]]), torch.stack(terms), rtol=1e-10, atol=1e-12
    )


@pytest.mark.claim(
    "curveball-hvp",
    file="curvature/model.py",
    old="pull_back(self.loss_hvp(self._tangent(d)))",
    new="pull_back(self._tangent(d))",
)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_the_ggn_product_is_one_tangent_and_one_backward_pass(loss):
    c = case("mlp", loss)
    model = expand(c.closure, c.loss, c.params, "ggn", retain=True)
    o, A = model.outputs, jacobian(c.closure(), c.params)
    if loss == "cross-entropy":
        p = torch.softmax(o, 1)
        Λ = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / len(o)
    else:
        Λ = 2 * torch.eye(o.numel(), dtype=torch.float64) / o.numel()  # mean over the 3 outputs and the batch
    torch.testing.assert_close(flat(model.product(c.d)), A.T @ (Λ @ (A @ flat(c.d))), rtol=1e-10, atol=1e-12)
    u = torch.randn(o.shape, dtype=torch.float64)
    torch.testing.assert_close(model.loss_hvp(u).flatten(), Λ @ u.flatten(), rtol=1e-10, atol=1e-12)


@pytest.mark.claim("curveball-fuse", file="curvature/model.py", old="(g,) = torch.autograd.grad(self._losses_of(o).mean(), o)", new="(g,) = torch.autograd.grad(self._losses_of(o).sum(), o)")  # fmt: skip
def test_curvature_and_gradient_share_their_backward_pass():
    """Eqs. (16), (17): Ĝz + ∇J = Aᵀ(Λ(Az) + ∂J/∂o), at one tangent and one backward pass after the forward pass."""
    params, x, z = chain()
    make = lambda: expand(lambda: forward(params, x), half_square, params, "ggn", check=False, retain=True)
    model = make()
    fused = model.vjp(model.loss_hvp(model.jvp(z)) + model.loss_gradient)
    apart = flat(model.product(z)) + flat(model.gradient)
    torch.testing.assert_close(flat(fused), apart, rtol=1e-10, atol=1e-12)
    tangent, backward = 2 * LAYERS - 1, 2 * LAYERS - 1
    assert products(lambda: model.vjp(model.loss_hvp(model.jvp(z)) + model.loss_gradient)) == tangent + backward


# ---- options


def test_options_are_checked():
    c = case("mlp")
    with pytest.raises(UnknownName, match="products"):
        expand(c.closure, c.loss, c.params, products="karatsuba")
    with pytest.raises(InvalidInput, match="option of the tape"):
        expand(c.closure, c.loss, c.params, backend="autodiff", memory="recompute")


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("network", ["mlp", "conv", "attention"])
def test_shared_products_are_as_accurate_in_float32(network, scale):
    """A step 10⁶ times shorter or longer than the weights: the scale of each layer keeps all digits."""
    exact = case(network, batch=16)
    q = expand(exact.closure, exact.loss, exact.params).curvature(exact.d)
    error = {}
    for products_ in ("plain", "shared"):
        c = case(network, dtype=torch.float32, batch=16)
        d = tuple(scale * v for v in c.d)
        ours = expand(c.closure, c.loss, c.params, products=products_).curvature(d).double() / scale**2
        error[products_] = float((ours - q).norm() / q.norm())
    assert error["shared"] < 5 * error["plain"] + 2e-6


@pytest.mark.parametrize("options", [{}, {"memory": "recompute"}, {"products": "shared"}])
def test_retain_answers_again(options):
    c = case("attention")
    model = expand(c.closure, c.loss, c.params, retain=True, **options)
    first = model.curvature(c.d)
    assert torch.equal(first, model.curvature(c.d))
    bilinear = model.curvature(c.d, c.e)
    reference = expand(c.closure, c.loss, c.params, backend="autodiff").curvature(c.d, c.e)
    torch.testing.assert_close(bilinear, reference, rtol=1e-9, atol=1e-9)


def test_vjp_after_the_gradient_has_freed_the_graph():
    c = case("mlp")
    model = expand(c.closure, c.loss, c.params)
    assert model.gradient is not None
    w = torch.randn_like(model.outputs)
    torch.testing.assert_close(
        flat(model.vjp(w)), jacobian(c.closure(), c.params).T @ w.flatten(), rtol=1e-10, atol=1e-12
    )


def test_recomputing_does_not_advance_batch_norm_again():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    ).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    loss = lambda o: F.cross_entropy(o, y, reduction="none")
    model = expand(lambda: net(x), loss, list(net.parameters()), memory="recompute")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model.curvature(model.gradient)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("network", ["mlp", "dropout", "batch-norm", "attention"])
def test_summary_after_the_gradient_has_freed_the_graph(network, memory):
    answers = []
    for early in (False, True):
        torch.manual_seed(0)
        c = case(network)
        torch.manual_seed(1)
        model = expand(c.closure, c.loss, c.params, memory=memory)
        if early:
            assert model.gradient is not None
        answers.append(model.summary(c.d))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
