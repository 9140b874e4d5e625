"""Each rule of the tape, alone, against PyTorch's own reverse mode in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.errors import UnsupportedOperation

CLASSES = torch.tensor([0, 2, 1, 3])
IGNORED = torch.tensor([0, -100, 1, 3])
SOFT = torch.softmax(torch.arange(16.0, dtype=torch.float64).view(4, 4).sin(), 1)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)


def image(x: Tensor) -> Tensor:
    return x.view(4, 1, 2, 2)


# x is (4, 4), positive and away from kinks; each takes it to something that depends on it
OPERATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "neg": lambda x: -(x * x),
    "pow": lambda x: x**3,
    "pow -1.5": lambda x: x.pow(-1.5),
    "x to the x": lambda x: x**x,
    "square": torch.square,
    "relu": lambda x: F.relu(x - 1) * x,
    "leaky relu": lambda x: F.leaky_relu(x - 1, 0.2) * x,
    "abs": lambda x: (x - 1).abs() * x,
    "softplus": F.softplus,
    "softplus 5": lambda x: F.softplus(x - 1, beta=5),
    "softplus linear": lambda x: F.softplus(40 * x) * x,
    "elu": lambda x: F.elu(x - 1, alpha=0.7),
    "selu": lambda x: F.selu(x - 1),
    "silu": lambda x: F.silu(x - 1),
    "gelu": lambda x: F.gelu(x - 1),
    "gelu tanh": lambda x: F.gelu(x - 1, approximate="tanh"),
    "mish (no rule)": F.mish,
    "product": lambda x: x * x.T,
    "matmul": lambda x: x @ x.T,
    "bmm": lambda x: torch.bmm(x.view(2, 2, 4), x.view(2, 4, 2)),
    "vector": lambda x: x @ x[0],
    "constant matmul": lambda x: (SOFT @ x) * x,
    "quotient": lambda x: x / (1 + x.T),
    "constant over": lambda x: 2 / x,
    "over constant": lambda x: (x / 3) * x,
    "floor": lambda x: torch.div(x, 0.3, rounding_mode="floor") * x,
    "sum of unequal shapes": lambda x: (x + x[0]) * (1 - x[:, :1]),
    "add with alpha": lambda x: torch.add(x, x.T, alpha=3) * torch.sub(x, x.T, alpha=0.5),
    "softmax": lambda x: F.softmax(x, 1),
    "log softmax": lambda x: F.log_softmax(x, 0),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True) * x,
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "layer norm, own weights": lambda x: F.layer_norm(x, (4,), x[0], x[1]),
    "rms norm": lambda x: F.rms_norm(x, (4,), x[0]),
    "batch norm": lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True),
    "batch norm, evaluation": lambda x: F.batch_norm(x, WEIGHT, WEIGHT + 1, x[0], x[1]),
    "batch norm, evaluation, frozen": lambda x: F.batch_norm(x, WEIGHT, WEIGHT + 1) * x,
    "instance norm": lambda x: F.instance_norm(x.view(2, 2, 4)),
    "group norm": lambda x: F.group_norm(x.view(2, 4, 2), 2, x[0], x[1]),
    "linear": lambda x: F.linear(x, x, x[0]),
    "linear, bias alone": lambda x: F.linear(SOFT, SOFT, x[0]) * x,
    "conv2d": lambda x: F.conv2d(image(x), x[:2].view(2, 1, 2, 2), x[0, :2], padding=1),
    "conv2d, bias alone": lambda x: F.conv2d(image(SOFT), SOFT[:2].view(2, 1, 2, 2), x[0, :2]).square(),
    "conv1d": lambda x: F.conv1d(x.view(4, 1, 4), x[0, :2].view(1, 1, 2), stride=2),
    "embedding": lambda x: F.embedding(CLASSES, x) * x,
    "max pool": lambda x: F.max_pool2d(image(x), 2) * image(x),
    "max pool, indices": lambda x: F.max_pool2d(image(x), 2, return_indices=True)[0] * image(x),
    "average pool": lambda x: F.avg_pool2d(image(x), 2) * image(x),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(image(x), 1) * F.adaptive_max_pool2d(image(x), 1),
    "dropout": lambda x: F.dropout(x, 0.5) * x,
    "cat and stack": lambda x: torch.cat([x, x * x, SOFT], 1) * torch.stack([x] * 3, 1).reshape(4, 12),
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "views": lambda x: x.t().reshape(2, 8).unsqueeze(0).permute(2, 0, 1).flatten(1).expand(8, 2) * x.view(8, 2),
    "slices": lambda x: x[1:, ::2] * x[:-1, 1::2],
    "mean and sum": lambda x: x.mean(0) * x.sum(1, keepdim=True) * x,
    "variance (no rule)": lambda x: x.var(1),
    "norm (no rule)": lambda x: x.norm(dim=1),
    "einsum (no rule)": lambda x: torch.einsum("ij,jk->ik", x, x),
    "where (no rule)": lambda x: torch.where(x > 1, x * x, x),
    "prod (no rule)": lambda x: x.prod(1),
    "max (no rule)": lambda x: x.max(1).values * x.amax(0),
    "cross entropy": lambda x: F.cross_entropy(x, CLASSES, reduction="none"),
    "cross entropy, weights and smoothing": lambda x: F.cross_entropy(x, CLASSES, WEIGHT, reduction="none", label_smoothing=0.2),
    "cross entropy, ignored": lambda x: F.cross_entropy(x, IGNORED, WEIGHT, label_smoothing=0.1, reduction="none"),
    "cross entropy, mean": lambda x: F.cross_entropy(x, IGNORED, WEIGHT) * x,
    "cross entropy, sum": lambda x: F.cross_entropy(x, CLASSES, reduction="sum") * x,
    "cross entropy, soft target": lambda x: F.cross_entropy(x, SOFT, WEIGHT, reduction="none", label_smoothing=0.1),
    "cross entropy, soft target, mean": lambda x: F.cross_entropy(x, SOFT) * x,
    "cross entropy, images": lambda x: F.cross_entropy(x.view(2, 4, 2), CLASSES.view(2, 2), reduction="none"),
    "nll": lambda x: F.nll_loss(x.log(), CLASSES, WEIGHT, reduction="none"),
    "mse": lambda x: F.mse_loss(x, x.T * SOFT, reduction="none"),
    "mse, mean": lambda x: F.mse_loss(x, SOFT) * x,
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, SOFT, WEIGHT, pos_weight=WEIGHT, reduction="none"),
    "squared hinge (basic operations)": lambda x: F.relu(1 - x * SOFT).square(),
    "attention": lambda x: F.scaled_dot_product_attention(x.view(1, 2, 4, 2), x.view(1, 2, 4, 2), x.view(1, 2, 4, 2)),
    "attention, causal": lambda x: F.scaled_dot_product_attention(x.view(1, 4, 4), x.view(1, 4, 4), x.view(1, 4, 4), is_causal=True),
    "attention, masked": lambda x: F.scaled_dot_product_attention(x[None], SOFT[None], x[None], attn_mask=SOFT > 0.1, scale=0.3),
    "attention, grouped (no rule)": lambda x: F.scaled_dot_product_attention(x.view(1, 4, 2, 2), x[:2].view(1, 2, 2, 2), x[:2].view(1, 2, 2, 2), enable_gqa=True),
    "relu_": lambda x: (x - 1).relu_() * x,
    "F.relu in place": lambda x: F.relu(x * x - 1, inplace=True) * x,
    "+=": lambda x: augmented(x * x, x),
    "*= and no return value read": lambda x: written(x * x, x),
}  # fmt: skip


def augmented(y: Tensor, x: Tensor) -> Tensor:
    y += x
    y *= x
    return y


def written(y: Tensor, x: Tensor) -> Tensor:
    y.mul_(x)
    y.add_(1, alpha=2)
    return y * x


def point() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 4, generator=g, dtype=torch.float64) + 0.5
    return x.requires_grad_(), torch.randn(4, 4, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATIONS)
def test_against_double_reverse_mode(name):
    f, (x, d) = OPERATIONS[name], point()
    state = torch.get_rng_state()
    with sdpa_kernel(SDPBackend.MATH):  # for the reference: the fused kernel cannot be differentiated twice
        y = f(x)
    w = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (g,) = torch.autograd.grad((w * y).sum(), x, create_graph=True)
    slope = (g * d).sum()
    bend = (
        (torch.autograd.grad(slope, x, materialize_grads=True)[0] * d).sum() if slope.requires_grad else torch.zeros(())
    )
    torch.set_rng_state(state)
    batch = len(y) if y.dim() else 1
    model = expand(lambda: f(x).reshape(batch, -1), lambda o: (w.reshape(batch, -1) * o).sum(1), [x], retain=True)
    torch.testing.assert_close(model.losses.sum(), (w * y).sum().detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.curvature((d,)).sum(), bend.double(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.jvp((d,)).flatten() @ w.flatten(), slope.detach(), rtol=1e-10, atol=1e-10)


def test_the_tape_agrees_with_autodiff_per_sample():
    for name, f in OPERATIONS.items():
        x, d = point()
        y = f(x)
        if name == "dropout" or y.dim() == 0:
            continue

        def flat(f=f, x=x):
            return f(x).reshape(len(y), -1)

        answers = []
        for backend in ("tape", "autodiff"):
            try:
                answers.append(expand(flat, lambda o: o.square().sum(1), [x], backend=backend).curvature((d,)))
            except UnsupportedOperation:
                assert backend == "autodiff", name
        if len(answers) == 2:
            torch.testing.assert_close(*answers, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_a_buffer_may_take_note_of_an_activation():
    """A running mean written under no_grad is written once and for real; it is a constant of the model."""
    x, d = point()
    mean = torch.zeros(4, dtype=torch.float64)

    def closure():
        y = x * x
        with torch.no_grad():
            mean.add_(y.mean(0))
        return y - mean

    model = expand(closure, lambda o: o.square().sum(1), [x])
    torch.testing.assert_close(mean, (x.detach() ** 2).mean(0))
    expected = (8 * x.detach() ** 2 * d * d + 4 * (x.detach() ** 2 - mean) * d * d).sum(1)
    torch.testing.assert_close(model.curvature((d,)), expected, rtol=1e-10, atol=1e-10)


def test_a_sum_that_starts_from_zeros():
    x, d = point()

    def closure():
        total = torch.zeros(4, 4, dtype=torch.float64)
        for power in (1, 2, 3):
            total += x**power
        return total

    expected = ((2 + 6 * x.detach()) * d * d).sum(1)
    torch.testing.assert_close(
        expand(closure, lambda o: o.sum(1), [x]).curvature((d,)), expected, rtol=1e-10, atol=1e-10
    )


def test_attention_with_dropout_keeps_its_mask():
    x, d = point()
    q = x.detach().view(1, 4, 4)

    def closure():
        return F.scaled_dot_product_attention(q * x, q, q * x, dropout_p=0.5)

    torch.manual_seed(0)
    model = expand(closure, lambda o: o.square().sum(2), [x], retain=True)
    first = model.curvature((d,))  # the ⟨g, d⟩ check compares its mask with that of the gradient
    assert torch.equal(first, model.curvature((d,)))
    assert first.abs().min() > 0


def test_softplus_keeps_its_digits_where_it_is_flat():
    """softplus(x) ≈ eˣ for x ≪ 0, and so are its derivatives."""
    x = torch.tensor([-60.0, -20.0], dtype=torch.float64, requires_grad=True)
    model = expand(lambda: F.softplus(x), lambda o: o, [x], retain=True, check=False)
    one = (torch.ones_like(x),)
    torch.testing.assert_close(model.jvp(one), x.detach().exp(), rtol=1e-8, atol=0)
    torch.testing.assert_close(model.curvature(one), x.detach().exp(), rtol=1e-8, atol=0)
