"""Functions that are written out, entered, or have a rule of their own: every question, against double backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import UnsupportedOperation
from tests.curvature.asked import assert_all_right

B = 3
G = torch.Generator().manual_seed(0)
X = torch.randn(B, 2, generator=G, dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1])
MASK = torch.tensor([[True, False, True, False]]).expand(B, 4)
SIGNS = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64).expand(B, 4)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


def tokens(h: Tensor) -> Tensor:
    """(B, heads, positions, features) = (B, 2, 2, 1)."""
    return h.view(B, 2, 2, 1)


def matrices(h: Tensor) -> Tensor:
    """A well-conditioned 2 × 2 matrix for each sample."""
    return h.view(B, 2, 2) + 2 * EYE


def positive(h: Tensor) -> Tensor:
    return matrices(h) @ matrices(h).mT


# h (B, 4) = tanh(X w) depends on all parameters; each takes it to something with B rows
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bce, target moves": lambda h: F.binary_cross_entropy_with_logits(h, h.square(), WEIGHT, pos_weight=WEIGHT, reduction="none"),
    "cross entropy, target moves": lambda h: F.cross_entropy(h, h.softmax(1), reduction="none"),
    "cross entropy of one": lambda h: torch.stack([F.cross_entropy(row, k) for row, k in zip(h, CLASSES, strict=True)]),
    "mse, target moves": lambda h: F.mse_loss(h, h.sin(), reduction="none"),
    "huber": lambda h: F.huber_loss(2 * h, SIGNS, reduction="none", delta=0.7),
    "huber, mean of both": lambda h: h * F.huber_loss(h, h.sin().flip(0), delta=0.1),
    "soft margin": lambda h: F.soft_margin_loss(h, SIGNS, reduction="none"),
    "Gaussian": lambda h: F.gaussian_nll_loss(h, SIGNS, h.square(), reduction="none", eps=0.1),
    "pad with a value": lambda h: F.pad(h, (1, 2), value=3.0).sin(),
    "pad by reflection": lambda h: F.pad(h[:, None], (1, 2), mode="reflect")[:, 0].sin(),
    "expand as": lambda h: h * (h * h).sum().expand_as(h),
    "glu": lambda h: F.glu(h, 1),
    "hard sigmoid": lambda h: F.hardsigmoid(4 * h) * h,
    "hard swish": lambda h: F.hardswish(4 * h),
    "relu6": lambda h: F.relu6(9 * h) * h,
    "log sigmoid": lambda h: F.logsigmoid(3 * h),
    "masked fill": lambda h: (h * h).masked_fill(MASK, 2.0) * h,
    "where": lambda h: torch.where(MASK, h.sin(), h * h) + h.where(MASK, torch.tensor(0.5, dtype=torch.float64)) * h,
    "scatter": lambda h: torch.scatter(h.sin(), 1, CLASSES[:, None], h[:, :1] * h[:, 1:2]).scatter(1, CLASSES[:, None], 0.3) * h,
    "scatter into zeros": lambda h: torch.zeros_like(h).scatter_add(0, CLASSES[:, None].expand(-1, 4), h * h).sin(),
    "index add": lambda h: h.sin().index_add(1, CLASSES, h[:, :3], alpha=2) * h,
    "tensor split": lambda h: h.tensor_split([1, 3], 1)[1] * h[:, :2],
    "embedding bag, mean with weights": lambda h: F.embedding_bag(CLASSES[:, None], h, mode="sum", per_sample_weights=h[:, :1]) + F.embedding_bag(CLASSES[:, None].expand(-1, 2), h * h),
    "embedding bag": lambda h: F.embedding_bag(CLASSES[:, None].expand(-1, 2), h, mode="sum").sin(),
    "attention with a bias": lambda h: F.scaled_dot_product_attention(tokens(h), tokens(h), tokens(h), attn_mask=h[:, :2, None, None] * h[:2, 0]),
    "attention in groups": lambda h: F.scaled_dot_product_attention(tokens(h), tokens(h)[:, :1], tokens(h)[:, 1:], enable_gqa=True),
    "normalize": lambda h: F.normalize(h) * h,
    "cosine": lambda h: F.cosine_similarity(h, h.sin() + 1)[:, None] * h,
    "weight norm": lambda h: torch._weight_norm(h, h[:, :1].exp(), 0).sin(),
    "weight norm, last": lambda h: torch._weight_norm(h, h[:1].exp(), 1) * h,
    "native layer norm": lambda h: torch.native_layer_norm(h, (4,), WEIGHT, None, 1e-5)[0],
    "native batch norm": lambda h: torch.native_batch_norm(h, WEIGHT, None, None, None, True, 0.1, 1e-5)[0],
    "inverse": lambda h: torch.linalg.inv(matrices(h)),
    "solve": lambda h: torch.linalg.solve(matrices(h), h.view(B, 2, 2)),
    "solve a vector": lambda h: torch.linalg.solve(matrices(h), h[:, :2]),
    "solve, shared matrix": lambda h: torch.linalg.solve(matrices(h)[0], h[:, :2].T).T,
    "solve from the right": lambda h: torch.linalg.solve(matrices(h), h.view(B, 2, 2).sin(), left=False),
    "determinant": lambda h: torch.det(matrices(h))[:, None] * h,
    "log determinant": lambda h: torch.linalg.slogdet(matrices(h))[1][:, None] * h + positive(h).logdet()[:, None],
    "Cholesky": lambda h: torch.linalg.cholesky(positive(h)),
    "Cholesky, upper": lambda h: torch.linalg.cholesky(positive(h), upper=True),
    "randn_like": lambda h: (h + torch.randn_like(h) * h.exp()).tanh(),
    "bernoulli": lambda h: torch.bernoulli(h.sigmoid()) * h + h.sigmoid().bernoulli() * torch.normal(h, 1.0) * h,
    "comparisons": lambda h: (h > 0) * h.square() + torch.zeros_like(h).where(h.argmax(1, keepdim=True) > 0, h),
    "Gumbel": lambda h: F.gumbel_softmax(h, tau=0.7),
    "hard Gumbel": lambda h: F.gumbel_softmax(h, hard=True) + h,
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.4, training=True) * h,
    "feature alpha dropout": lambda h: F.feature_alpha_dropout(h.view(B, 2, 2), 0.4, training=True).flatten(1) * h,
    "alpha dropout in place": lambda h: F.alpha_dropout(h * h, 0.4, training=True, inplace=True) * h,
    "rrelu": lambda h: F.rrelu(h, training=True) * h,
    "torch.dropout": lambda h: torch.dropout(h, 0.4, True) * h,
    "fractional pool": lambda h: F.fractional_max_pool2d(h.view(B, 1, 2, 2).repeat(1, 1, 2, 2), 2, output_size=2).flatten(1) * h,
}  # fmt: skip

# what PyTorch cannot differentiate twice, or not thrice
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "hard sigmoid": lambda h: (4 * h / 6 + 0.5).clamp(0, 1) * h,
    "embedding bag": lambda h: (2 * h[CLASSES]).sin(),
    "embedding bag, mean with weights": lambda h: h[CLASSES] * h[:, :1] + h[CLASSES].square(),
    "native layer norm": lambda h: F.layer_norm(h, (4,), WEIGHT),
    "native batch norm": lambda h: F.batch_norm(h, None, None, WEIGHT, None, True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_answer_is_right(name):
    g = torch.Generator().manual_seed(1)
    params = [torch.randn(2, 4, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64)]
    params = [p.div_(2).requires_grad_() for p in params]

    def outputs(function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(torch.tanh(X @ params[0]) + 0.3 * params[1]).reshape(B, -1)

    plain = PLAIN.get(name, FUNCTIONS[name])
    assert_all_right(lambda: outputs(FUNCTIONS[name]), params, lambda: outputs(plain))


SEQUENCE = torch.randn(B, 4, 2, generator=G, dtype=torch.float64)
RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(2, 2, batch_first=True),
    "LSTM, two layers, both directions": lambda: nn.LSTM(2, 2, 2, batch_first=True, bidirectional=True, dropout=0.3),
    "LSTM with projection, no bias": lambda: nn.LSTM(2, 3, batch_first=True, proj_size=2, bias=False),
    "GRU": lambda: nn.GRU(2, 2, 2, batch_first=True, bidirectional=True),
    "tanh": lambda: nn.RNN(2, 3, batch_first=True),
    "relu": lambda: nn.RNN(2, 3, batch_first=True, nonlinearity="relu", bias=False),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    torch.manual_seed(0)
    net = RECURRENT[name]().double()

    def outputs() -> Tensor:
        made, last = net(SEQUENCE)
        last = last if isinstance(last, tuple) else (last,)
        return torch.cat([made[:, -2:].flatten(1), *(s.transpose(0, 1).flatten(1) for s in last)], 1)

    assert_all_right(outputs, list(net.parameters()))
    net.eval()
    model = expand(outputs, lambda o: o.square().sum(1), list(net.parameters()))
    torch.testing.assert_close(model.outputs, outputs().detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(cell):
    torch.manual_seed(0)
    net = cell(2, 2).double()

    def outputs() -> Tensor:
        state = None
        for x in SEQUENCE[:, :3].unbind(1):
            state = net(x, state)
        return torch.cat(state, 1) if isinstance(state, tuple) else state

    assert_all_right(outputs, list(net.parameters()))


@pytest.mark.parametrize(
    "options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True}]
)
def test_multi_head_attention_with_additional_keys(options):
    torch.manual_seed(0)
    net = nn.MultiheadAttention(2, 2, batch_first=True, **options).double()
    x, hidden = SEQUENCE[:, :3], torch.tensor([[False, False, True]] * B)

    def outputs() -> Tensor:
        made, weights = net(x, x, x, key_padding_mask=hidden)
        return torch.cat([made.flatten(1), weights.flatten(1)], 1)

    assert_all_right(outputs, list(net.parameters()))
    torch.testing.assert_close(
        expand(outputs, lambda o: o.sum(1), list(net.parameters())).outputs, outputs().detach(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_weights(wrap):
    torch.manual_seed(0)
    net = nn.Sequential(wrap(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 2)).double()
    net(X)
    net.eval()  # the reference runs it again: the power iteration stands still
    assert_all_right(lambda: net(X), list(net.parameters()))
    net.train()
    before = [b.clone() for b in net.buffers()]
    expand(lambda: net(X), lambda o: o.square().sum(1), list(net.parameters())).curvature(
        tuple(torch.ones_like(p) for p in net.parameters())
    )
    assert all(not torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_log_determinant_has_the_curvature_of_the_closed_form():
    """D² log|det W|[d, d] = −tr (W⁻¹ d)²."""
    w = (torch.randn(3, 3, generator=G, dtype=torch.float64) + 2 * torch.eye(3)).requires_grad_()
    d = torch.randn(3, 3, generator=G, dtype=torch.float64)
    rows = torch.ones(B, 1, dtype=torch.float64)
    model = expand(lambda: rows * torch.linalg.slogdet(w)[1], lambda o: o.sum(1), [w])
    m = torch.linalg.solve(w.detach(), d)
    torch.testing.assert_close(model.curvature((d,)), -torch.trace(m @ m).expand(B), rtol=1e-12, atol=1e-12)


def test_weight_norm_has_the_curvature_of_finite_differences():
    """PyTorch's own second derivative of its kernel has not, in reverse mode either: it keeps |v| as a constant."""
    v = torch.randn(B, 4, generator=G, dtype=torch.float64).requires_grad_()
    g = (torch.rand(B, 1, generator=G, dtype=torch.float64) + 0.5).requires_grad_()
    d, e = torch.randn(B, 4, generator=G, dtype=torch.float64), torch.randn(B, 1, generator=G, dtype=torch.float64)

    def losses(h: float = 0.0) -> Tensor:
        return torch._weight_norm(v + h * d, g + h * e, 0).sin().sum(1)

    with torch.no_grad():
        expected = (losses(1e-4) + losses(-1e-4) - 2 * losses()) / 1e-8
    for backend in ("tape", "autodiff"):
        found = expand(losses, None, [v, g], backend=backend).curvature((d, e))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_drawn_numbers_are_those_of_the_ordinary_pass():
    w = torch.randn(2, 4, generator=G, dtype=torch.float64).requires_grad_()
    for name in (
        "randn_like",
        "bernoulli",
        "Gumbel",
        "alpha dropout",
        "feature alpha dropout",
        "rrelu",
        "fractional pool",
    ):
        results = []
        for take in (lambda f: f().detach(), lambda f: expand(f, lambda o: o.sum(1), [w]).outputs):
            torch.manual_seed(4)
            results.append((take(lambda n=name: FUNCTIONS[n](X @ w).reshape(B, -1)), torch.rand(())))
        assert torch.equal(results[0][0], results[1][0]), name
        assert torch.equal(results[0][1], results[1][1]), name


def test_a_derivative_inside_the_closure_is_refused_by_name():
    w = torch.randn(2, 1, generator=G, dtype=torch.float64).requires_grad_()

    def residual() -> Tensor:
        x = X.clone().requires_grad_()
        return torch.autograd.grad(torch.sin(x @ w).sum(), x, create_graph=True)[0]

    with pytest.raises(UnsupportedOperation, match="grad inside the closure"):
        expand(residual, lambda o: o.sum(1), [w], fallback="refuse")
