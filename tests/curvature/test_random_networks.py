"""Property: on random networks drawn from the supported operations, the tape equals double reverse mode to rounding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.curvature.tree import inner

N = 4  # all values are (6, 4): a batch of six


def heads(qkv: Tensor) -> Tensor:
    """Two heads over two tokens of width one, in the way of most transformers."""
    q, k, v = qkv.view(6, 2, 3, 2, 1).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(6, N)


# layer(x, weight (4, 4), bias (4,)) -> (6, 4)
LAYERS = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "matmul": lambda x, w, b: x @ w + b,
    "shared": lambda x, w, b: F.linear(torch.tanh(F.linear(x, w)), w.T, b),
    "residual": lambda x, w, b: x + torch.tanh(F.linear(x, w, b)),
    "gate": lambda x, w, b: torch.sigmoid(F.linear(x, w)) * (x + b),
    "layer norm": lambda x, w, b: F.layer_norm(x, (N,), w[0], b),
    "batch norm": lambda x, w, b: F.batch_norm(x, None, None, w[0], b, training=True),
    "rms norm": lambda x, w, b: F.rms_norm(x, (N,), w[0] + b),
    "group norm": lambda x, w, b: F.group_norm(x, 2, w[0], b),
    "conv": lambda x, w, b: F.conv1d(x[:, None], w[:1, None, :3].expand(1, 1, 3), b[:1], padding=1)[:, 0],
    "attention": lambda x, w, b: F.scaled_dot_product_attention(*(F.linear(x, w, b).view(6, 1, 2, 2),) * 3).reshape(
        6, N
    ),
    "softmax": lambda x, w, b: F.softmax(F.linear(x, w, b), 1) @ w,
    "quotient": lambda x, w, b: F.linear(x, w) / (1 + b.square()),
    "pool": lambda x, w, b: F.avg_pool1d(F.linear(x, w, b)[:, None], 3, stride=1, padding=1)[:, 0],
    "concatenation": lambda x, w, b: F.linear(torch.cat([x, torch.sin(x)], 1), torch.cat([w, w.T], 1), b),
    "samples last": lambda x, w, b: (w @ x.T).T + b,
    "tokens": lambda x, w, b: F.linear(x.reshape(12, 2), w[:2, :2], b[:2]).reshape(6, 2, 2).transpose(1, 2).flatten(1),
    "heads": lambda x, w, b: heads(F.linear(x, torch.cat([w, w.T, w * b]))),
    "attention over samples": lambda x, w, b: torch.softmax(F.linear(x, w) @ x.T, 1) @ x + b,
    "mean over samples": lambda x, w, b: F.linear(x - x.mean(0), w, b),
    "softmax over samples": lambda x, w, b: F.linear(torch.softmax(x, 0), w, b),
    "stack": lambda x, w, b: F.linear(torch.stack([x, torch.sin(x)], 1), w, b).mean(1),
    "slices": lambda x, w, b: F.linear(torch.cat([x[:, 2:], x[:, :2]], 1), w, b),
    "weight norm": lambda x, w, b: F.linear(x, w / w.norm(dim=1, keepdim=True), b),
    "dropout": lambda x, w, b: F.dropout(F.linear(x, w, b), 0.3),
    "variance, no rule": lambda x, w, b: F.linear(x, w, b) * x.var(1, keepdim=True),
}
ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": lambda x: F.softplus(x, beta=5), "gelu": F.gelu,
               "silu": F.silu, "elu": F.elu, "relu": F.relu, "none": lambda x: x}  # fmt: skip
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])
LOSSES = {
    "cross-entropy": lambda o: F.cross_entropy(o, TARGET, reduction="none", label_smoothing=0.1),
    "squared error": lambda o: F.mse_loss(o, torch.ones_like(o), reduction="none"),
    "logistic": lambda o: F.binary_cross_entropy_with_logits(o, torch.full_like(o, 0.3), reduction="none"),
    "squared hinge": lambda o: F.relu(1 - o).square().sum(1),
}


@given(
    layers=st.lists(
        st.tuples(st.sampled_from(sorted(LAYERS)), st.sampled_from(sorted(ACTIVATIONS))), min_size=1, max_size=5
    ),
    loss=st.sampled_from(sorted(LOSSES)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
    products=st.sampled_from(["plain", "shared"]),
    memory=st.sampled_from(["store", "recompute"]),
)
def test_the_tape_is_double_reverse_mode(layers, loss, scale, seed, products, memory):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(6, N, generator=g, dtype=torch.float64)
    params = [torch.randn(*shape, generator=g, dtype=torch.float64) / 2 for _ in layers for shape in ((N, N), (N,))]
    for p in params:
        p.requires_grad_()
    d = tuple(scale * torch.randn(p.shape, generator=g, dtype=torch.float64) for p in params)

    def closure() -> Tensor:
        y = x
        for i, (layer, activation) in enumerate(layers):
            y = ACTIVATIONS[activation](LAYERS[layer](y, params[2 * i], params[2 * i + 1]))
        return y

    def model(**options):
        torch.manual_seed(seed)  # the same dropout mask
        return expand(closure, LOSSES[loss], params, **options)

    def nudged(question) -> Tensor:
        """The answer where the parameters are a rounding error away."""
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p.mul_(1 + 2e-16 * torch.randint(-2, 3, p.shape, generator=g, dtype=p.dtype))
            try:
                return question()
            finally:
                for p, x in zip(params, before, strict=True):
                    p.copy_(x)

    def assert_close(got: Tensor, wanted: Tensor, question, magnitude: Tensor) -> None:
        """Ten digits, or as many as the number has: a norm of nearly equal values multiplies rounding errors."""
        error = (got - wanted).abs().max()
        if not error <= 1e-10 * magnitude:
            determined = max((nudged(question) - wanted).abs().max() for _ in range(3))
            rounding = 1e-15 * scale  # of dead units only the loss's own rounding errors are left
            assert error <= 30 * determined + rounding
            assert error <= 1e-4 * magnitude + rounding

    exact = {
        "curvature": lambda: model(backend="autodiff").curvature(d),
        "mean": lambda: model(backend="autodiff").curvature(d).mean(),
        "summary": lambda: model(backend="autodiff").summary(d, groups),
    }
    groups = [[i for i in range(len(params)) if i % 3 == k] for k in range(min(3, len(params)))]
    own = model(products=products, memory=memory, retain=True)
    curvature, expected = own.curvature(d), exact["curvature"]()
    product = inner(own.product(d), d)  # double reverse mode
    size = (expected.abs().max() + abs(product)).clamp(min=1e-30)  # a network of dead ReLUs bends nowhere
    assert_close(curvature, expected, exact["curvature"], size)
    assert_close(product, expected.mean(), exact["mean"], size)

    split = model(products=products, memory=memory, batch_norm="by-index").curvature(d)
    assert_close(split.mean(), expected.mean(), exact["mean"], size + split.abs().max())  # shares may cancel
    if not any(layer == "batch norm" for layer, _ in layers):
        assert_close(split, expected, exact["curvature"], size)

    summary = exact["summary"]()
    for name, got in model().summary(d, groups)._asdict().items():
        wanted = getattr(summary, name)
        magnitude = wanted.abs().max() + scale * size.sqrt()
        assert_close(got, wanted, lambda name=name: getattr(exact["summary"](), name), magnitude)
