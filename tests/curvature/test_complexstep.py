"""The backend ``complexstep``: exact to rounding, operation by operation, and refusing by name what it cannot continue."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.curvature.complex import backend as complexstep
from reprolib.curvature.complex.analytic import EXTENSIONS
from reprolib.errors import UnsupportedOperation
from tests.curvature.cases import LOSSES, NETWORKS, case
from tests.curvature.reference import flat
from tests.curvature.test_rules import CLASSES, OPERATIONS, SOFT, image, point

SIGNED = torch.tensor([[-1.0, 2.0, -3.0, 0.5]], dtype=torch.float64)


def assigned(x):
    y = torch.zeros(4, 4, dtype=torch.float64)
    y[1:] = x[1:] * x[:3]
    y[0, CLASSES] = x[0] ** 2
    return y


def asking(x):
    """Code that asks for dtypes and numbers."""
    assert x.is_floating_point() and not x.is_complex() and x.dtype == torch.float64
    scale = torch.full((4,), torch.finfo(x.dtype).max ** 0.01, dtype=x.dtype).to(x)
    steps = torch.arange(4).to(x) + torch.zeros_like(x) + x.new_ones(4)
    bound = float(x.detach().max()) + x.max().item()
    return x.double().to(torch.float64).type_as(x) ** 2 * scale * steps * bound * (x > 1).to(x.dtype) * len(x)


# in addition to those of the tape, so that every entry of EXTENSIONS is met
MORE = {
    "negative base": lambda x: (x * SIGNED) ** 3 + (x * SIGNED).pow(5) + (x * SIGNED) ** -3,
    "tensor exponent": lambda x: (x * SIGNED) ** torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64),
    "number to the x": lambda x: 2**x,
    "sigmoid of both signs": lambda x: torch.sigmoid(100 * (x * SIGNED)) + torch.sigmoid(x * SIGNED),
    "relu6": lambda x: F.relu6(x * SIGNED) * x,
    "hardtanh": lambda x: F.hardtanh(x * SIGNED, -0.5, 0.7) * x,
    "hardswish": lambda x: F.hardswish(x * SIGNED),
    "clamp": lambda x: (x * SIGNED).clamp(-1, 0.7) * x.clamp_min(0.8) * x.clamp(max=1.1) * x.clip(SOFT),
    "clamp_max": lambda x: x.clamp_max(1.0) * x,
    "prelu": lambda x: F.prelu(x * SIGNED, x[0]),
    "celu": lambda x: F.celu(x * SIGNED, 0.5),
    "elu in place": lambda x: F.elu(x * SIGNED, inplace=True) * x,
    "silu in place": lambda x: F.silu(x * SIGNED, inplace=True) * x,
    "softsign": lambda x: F.softsign(x * SIGNED),
    "tanhshrink": lambda x: F.tanhshrink(x * SIGNED),
    "logsigmoid": lambda x: F.logsigmoid(30 * x * SIGNED),
    "erfc": lambda x: torch.erfc(x * SIGNED) + torch.special.erf(x),
    "gelu of both signs": lambda x: F.gelu(x * SIGNED) + F.gelu(x * SIGNED, approximate="tanh"),
    "var": lambda x: x.var(1, keepdim=True) * x.var(0, unbiased=False) * x.var(False) * x.var(1, correction=2, keepdim=True),
    "std": lambda x: x.std(0) * x,
    "norms": lambda x: torch.linalg.vector_norm(x, dim=1) * x.norm() * (x * SIGNED).norm(p=1, dim=0),
    "normalize": lambda x: F.normalize(x * SIGNED, dim=0),
    "min": lambda x: x.min(1, keepdim=True)[0] * x.amin(0) * x.min() * x.max(),
    "maximum": lambda x: torch.maximum(x, SOFT + 0.7) * torch.max(x, x.T) * torch.minimum(x, x.T) * x.max(other=SOFT),
    "sort and topk": lambda x: x.sort(1).values * x.sort(0, descending=True)[0] * x.topk(2, dim=1)[0].sum(1) * x.topk(4)[0],
    "cumsum and cumprod": lambda x: x.cumsum(1) * (x * SIGNED).cumprod(0),
    "linalg": lambda x: torch.linalg.inv(x + x.T) * torch.linalg.solve(x + 3 * torch.eye(4).double(), x) * torch.linalg.det(x),
    "addmm and lerp": lambda x: torch.addmm(SOFT, x, x, beta=2) * x.lerp(SOFT, 0.3) * torch.addcdiv(x, SOFT, x),
    "transposed convolution": lambda x: F.conv_transpose2d(image(x), x[:2].view(1, 2, 2, 2), x[0, :2], stride=2),
    "conv3d": lambda x: F.conv3d(x.view(2, 1, 2, 2, 2), x[:2].reshape(1, 1, 2, 2, 2), padding=1),
    "constant image": lambda x: F.conv2d(image(SOFT), x[:2].view(2, 1, 2, 2)).square(),
    "frozen kernel": lambda x: F.conv2d(image(x), SOFT[:2].view(2, 1, 2, 2)).square(),
    "pad": lambda x: F.pad(x, (1, 2)).square() * F.pad(x[None], (2, 1), mode="reflect")[0],
    "interpolate": lambda x: F.interpolate(image(x), scale_factor=2, mode="bilinear").square(),
    "unfold": lambda x: F.unfold(image(x), 2, padding=1).square().sum(2) * x.unfold(1, 2, 2).reshape(4, 4).sum(1, keepdim=True),
    "fold": lambda x: F.fold(x.view(4, 4, 1), (2, 2), 2).square(),
    "embedding with padding": lambda x: F.embedding(CLASSES, x * x, padding_idx=2),
    "dropout2d": lambda x: F.dropout2d(image(x), 0.5).square() + F.dropout1d(x[None], 0.5)[0].view(4, 1, 2, 2),
    "average pool 1d": lambda x: F.avg_pool1d(x[None], 2)[0].square() * F.adaptive_avg_pool1d(x[None], 2)[0],
    "max pool 1d": lambda x: F.max_pool1d(x[None], 2, stride=1)[0].square() * F.adaptive_max_pool1d(x[None], 3)[0],
    "max pool 3d": lambda x: F.max_pool3d(x.view(1, 1, 4, 2, 2), 2) * F.adaptive_max_pool3d(x.view(1, 1, 4, 2, 2), 1) * x.sum(),
    "average pool 3d": lambda x: F.avg_pool3d(x.view(1, 1, 4, 2, 2), 2) * F.adaptive_avg_pool3d(x.view(1, 1, 4, 2, 2), 1) * x,
    "adaptive max pool, indices": lambda x: F.adaptive_max_pool2d(image(x), 1, return_indices=True)[0].square(),
    "softmax of large numbers": lambda x: F.softmax(1e4 * x, 1) * x + F.log_softmax(1e4 * x * SIGNED, 1) * x,
    "softmax to a dtype": lambda x: F.softmax(x, 1, dtype=torch.float64) * torch.log_softmax(x, 1, torch.float64),
    "l1": lambda x: F.l1_loss(x, SOFT, reduction="none") * x + F.l1_loss(x, x.T) * x,
    "bce, mean": lambda x: F.binary_cross_entropy_with_logits(30 * x * SIGNED, SOFT) * x,
    "conjugates": lambda x: x.conj() @ x.mH * x.real.adjoint() * x.H,
    "assignment": assigned,
    "masks": lambda x: x.masked_fill(SOFT > 0.2, 0.0) * x + torch.where(SOFT > 0.2, 1.0, x * x),
    "indices": lambda x: x.gather(1, CLASSES[:, None]) * x.index_select(0, CLASSES) * x[CLASSES] * x[x > 1].sum(),
    "to a number": asking,
    "sum to a dtype": lambda x: x.sum(1, dtype=torch.float64) * torch.mean(x, 1, dtype=torch.float64) * x.cumsum(1)[:, 2],
    "rounding in place": lambda x: (3 * x).round_() * x + (x * x).floor_() * x + (x * SIGNED).sign_() * x,
}  # fmt: skip
EVERY = OPERATIONS | MORE


def double_reverse(f, x, d):
    """(y, weights w, ⟨w, y⟩ along d, and its second derivatives ∇²⟨w, y⟩ d)."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel cannot be differentiated twice
        y = f(x)
    w = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (g,) = torch.autograd.grad((w * y).sum(), x, create_graph=True)
    slope = (g * d).sum()
    if not slope.requires_grad:
        return y, w, slope.detach(), torch.zeros_like(x)
    return y, w, slope.detach(), torch.autograd.grad(slope, x, materialize_grads=True)[0]


def relative(a, b):
    a, b = (flat(v) if isinstance(v, tuple) else v.detach() for v in (a, b))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


@pytest.mark.parametrize("name", EVERY)
def test_operation_against_double_reverse_mode(name):
    f, (x, d) = EVERY[name], point()
    state = torch.get_rng_state()
    y, w, slope, product = double_reverse(f, x, d)
    batch = len(y) if y.dim() else 1
    w = w.reshape(batch, -1)
    torch.set_rng_state(state)
    model = expand(lambda: f(x).reshape(batch, -1), lambda o: batch * (w * o).sum(1), [x], "hessian", "complexstep", retain=True)  # fmt: skip
    size = 1 + float(product.norm())
    assert abs(float((model.jvp((d,)) * w).sum() - slope)) < 1e-12 * (1 + abs(float(slope)) + size)
    assert float((model.product((d,))[0] - product).norm()) < 1e-11 * size
    assert abs(float(model.curvature((d,)).mean() - (d * product).sum())) < 1e-11 * size


def test_hardsigmoid():
    """It has no second derivative in PyTorch."""
    x, d = point()
    for f in (F.hardsigmoid, lambda z: F.relu6(z + 3) / 6):
        model = expand(lambda: f(x * SIGNED) * x, lambda o: o.sum(1), [x], backend="complexstep")
        assert relative(model.curvature((d,)), (2 * d * d * SIGNED / 6 * (x * SIGNED + 3 > 0)).sum(1)) < 1e-14


def test_every_extension_is_met():
    met = set()

    def spied(name, f):
        return lambda *args, **kwargs: (met.add(name), f(*args, **kwargs))[1]

    original = dict(EXTENSIONS)
    try:
        EXTENSIONS.update({name: spied(name, f) for name, f in original.items()})
        for f in EVERY.values():
            x, d = point()
            expand(lambda: f(x).reshape(1, -1), lambda o: o.sum(1), [x], backend="complexstep", check=False).jvp((d,))
    finally:
        EXTENSIONS.update(original)
    synonyms = {"absolute", "divide", "true_divide", "truediv", "ipow", "float_power", "float", "feature_dropout", "dropout3d",
                "conj_physical", "logsigmoid", "log_sigmoid", "conv_transpose1d", "conv_transpose3d",
                "hardsigmoid", "multi_head_attention_forward"}  # fmt: skip
    assert set(EXTENSIONS) - met - synonyms <= {n for n in EXTENSIONS if n.endswith("_with_indices")}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_answer_is_that_of_autodiff(network, loss):
    models = []
    for operator in ("hessian", "ggn"):
        for backend in ("autodiff", "complexstep"):
            c = case(network, loss)
            models.append(expand(c.closure, c.loss, c.params, operator, backend, retain=True))
    a, b, ggn_a, ggn_b = models
    assert relative(b.jvp(c.d), a.jvp(c.d)) < 1e-12
    assert relative(b.product(c.d), a.product(c.d)) < 1e-12
    assert relative(b.curvature(c.d), a.curvature(c.d)) < 1e-12
    assert relative(b.curvature(c.d, c.e), a.curvature(c.d, c.e)) < 1e-12
    for mine, theirs in zip(b.summary(c.d), a.summary(c.d), strict=True):
        assert relative(mine, theirs) < 1e-12
    groups = [[0, 2], [1]]
    for mine, theirs in zip(
        b.summary(c.d, groups, third=False)[:2], a.summary(c.d, groups, third=False)[:2], strict=True
    ):
        assert relative(mine, theirs) < 1e-12
    assert relative(ggn_b.product(c.d), ggn_a.product(c.d)) < 1e-12
    assert relative(ggn_b.curvature(c.d, c.e), ggn_a.curvature(c.d, c.e)) < 1e-12
    assert relative(ggn_b.summary(c.d, third=False).hessian, ggn_a.summary(c.d, third=False).hessian) < 1e-12


@pytest.mark.parametrize("dtype, h", [(torch.float64, 1e-20), (torch.float32, 1e-12)])
def test_convolution_keeps_a_tiny_imaginary_part(dtype, h):
    """PyTorch's own complex convolution loses it below h ~ eps (2.13: three real products, a cancelling difference)."""
    x, d, w, v = (t.to(dtype) for t in torch.randn(4, 2, 2, 6, 6, generator=torch.Generator().manual_seed(0)))
    w, v = w[..., :3, :3], v[..., :3, :3]
    expected = F.conv2d(x.double(), v.double()) + F.conv2d(d.double(), w.double())
    ours = EXTENSIONS["conv2d"](torch.complex(x, h * d), torch.complex(w, h * v)).imag / h
    assert relative(ours.double(), expected) < 4 * torch.finfo(dtype).eps


def test_the_answer_does_not_depend_on_the_size_of_the_step_or_the_direction(monkeypatch):
    answers = []
    for step in (1e-12, 1e-20, 1e-60, 1e-100):
        monkeypatch.setitem(complexstep.STEP, torch.float64, step)
        c = case("conv")
        answers.append(expand(c.closure, c.loss, c.params, backend="complexstep").product(c.d))
    assert max(relative(a, answers[0]) for a in answers) < 1e-14
    for scale in (1e-30, 1e30):
        scaled = tuple(scale * v for v in c.d)
        product = expand(c.closure, c.loss, c.params, backend="complexstep").product(scaled)
        assert relative(tuple(v / scale for v in product), answers[1]) < 1e-13


@pytest.mark.parametrize("network", [n for n in NETWORKS if n != "dropout"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_float32(network, scale):
    single, double = case(network, dtype=torch.float32), case(network)
    d = tuple(scale * v for v in single.d)
    reference = expand(double.closure, double.loss, double.params, backend="autodiff", retain=True)
    model = expand(single.closure, single.loss, single.params, backend="complexstep", retain=True)
    assert relative(tuple(v.double() / scale for v in model.product(d)), reference.product(double.d)) < 3e-5
    bilinear = model.curvature(d, single.e).double() / scale
    assert relative(bilinear, reference.curvature(double.d, double.e)) < 3e-5
    assert relative(model.jvp(d).double() / scale, reference.jvp(double.d)) < 1e-5


# ---- what is constant


def test_no_grad_and_detach_stop_the_imaginary_part_as_they_stop_the_gradient():
    x, d = point()

    def closure():
        with torch.no_grad():
            stopped = torch.tanh(x)
        return stopped * x.detach() * x.square() * x.data

    value = torch.tanh(x.detach()) * x.detach() ** 2
    model = expand(closure, lambda o: o.sum(1), [x], backend="complexstep", retain=True)
    assert relative(model.curvature((d,)), (2 * value * d * d).sum(1)) < 1e-14
    assert relative(model.product((d,))[0], 2 * value * d / 4) < 1e-14


def test_a_closure_may_return_a_parameter():
    x, d = point()
    model = expand(lambda: x, lambda o: o.square().sum(1), [x], "ggn", "complexstep", retain=True)
    assert relative(model.jvp((d,)), d) < 1e-15
    assert relative(model.product((d,))[0], d / 2) < 1e-15


def test_a_sum_that_starts_from_zeros_is_widened_in_place():
    x, d = point()

    def closure():
        total = torch.zeros(4, 4, dtype=torch.float64)
        for power in (1, 2, 3):
            total += x**power
        return total

    model = expand(closure, lambda o: o.sum(1), [x], backend="complexstep", retain=True)
    assert relative(model.curvature((d,)), ((2 + 6 * x.detach()) * d * d).sum(1)) < 1e-14
    assert relative(model.product((d,))[0], (2 + 6 * x.detach()) * d / 4) < 1e-14


def test_writing_into_a_view_of_a_constant_is_refused():
    x, d = point()

    def closure():
        y = torch.zeros(4, 4, dtype=torch.float64)
        y[0].copy_(x[0] * x[0])
        return y + x

    with pytest.raises(UnsupportedOperation, match="view of a constant"):
        expand(closure, lambda o: o.sum(1), [x], backend="complexstep").curvature((d,))


# ---- traces


def test_statistics_and_random_state_are_those_of_one_pass():
    for network in ("batch-norm", "dropout"):
        ordinary, measured = case(network), case(network)
        torch.manual_seed(3)
        ordinary.closure()
        expected = torch.rand(1)
        torch.manual_seed(3)
        model = expand(measured.closure, measured.loss, measured.params, backend="complexstep", retain=True)
        model.curvature(measured.d), model.product(measured.d), model.jvp(measured.d), model.summary(measured.d)
        assert torch.equal(torch.rand(1), expected)
        for a, b in zip(ordinary.net.buffers(), measured.net.buffers(), strict=True):
            assert torch.equal(a, b) and not b.is_complex()
        assert all(p.grad is None and not p.is_complex() for p in measured.params)


def test_an_exception_leaves_no_trace():
    c, calls = case("batch-norm"), []

    def closure():
        calls.append(1)
        out = c.closure()
        if len(calls) > 1:
            raise KeyError("mine")
        return out

    model = expand(closure, c.loss, c.params, backend="complexstep", retain=True)
    before, statistics = torch.get_rng_state(), [b.clone() for b in c.net.buffers()]
    for ask in (model.curvature, model.product, model.summary, model.jvp):
        with pytest.raises(KeyError, match="mine"):
            ask(c.d)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(statistics, c.net.buffers(), strict=True))
    assert torch.is_grad_enabled() and not torch.tanh(c.params[0]).is_complex()


# ---- refusals, by name

REFUSED = {
    "fft_fft": lambda x: torch.fft.fft(x).abs(),
    "view_as_complex": lambda x: torch.view_as_complex(x.view(4, 2, 2)).abs(),
    "linalg_svd": lambda x: torch.linalg.svd(x)[1],
    "lgamma": torch.lgamma,
    "cdist": lambda x: torch.cdist(x, x),
    "grid_sampl": lambda x: F.grid_sample(image(x), torch.zeros(4, 2, 2, 2, dtype=torch.float64), align_corners=False),
    "norm": lambda x: x.norm(p=3),
    "huber_loss": lambda x: F.huber_loss(x, SOFT, reduction="none"),
    "cross_entropy": lambda x: F.cross_entropy(x, CLASSES, None, False, reduction="none"),
    "embedding": lambda x: F.embedding(CLASSES, x * 1, max_norm=1.0),
    "softmax": lambda x: torch.nn.functional.softmax(x),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice", "ignore:size_average and reduce", "ignore:torch.cross")
def test_refused_by_name(name):
    f, (x, d) = REFUSED[name], point()
    model = expand(lambda: f(x).reshape(1, -1), lambda o: o.sum(1), [x], backend="complexstep", retain=True)
    for ask in (model.curvature, model.product, model.jvp):
        with pytest.raises(UnsupportedOperation, match=name):
            ask((d,))


def test_half_precision_is_refused():
    w = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    model = expand(lambda: (w * w)[None], lambda o: o.sum(1), [w], backend="complexstep")
    with pytest.raises(UnsupportedOperation, match="bfloat16"):
        model.jvp((torch.ones_like(w),))


def test_recurrent_kernels_are_refused_and_written_out_cells_work():
    """nn.LSTM is one fused call; its cell in basic operations is as good as any network."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 4, batch_first=True, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    params = list(lstm.parameters())
    d = tuple(torch.randn_like(p) for p in params)

    def written_out():
        h = c = torch.zeros(2, 4, dtype=torch.float64)
        for t in range(5):
            i, f, g, o = (F.linear(x[:, t], params[0], params[2]) + F.linear(h, params[1], params[3])).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h

    def fused():
        return lstm(x)[0][:, -1]

    assert relative(written_out(), fused()) < 1e-14
    with pytest.raises(UnsupportedOperation, match="lstm"):
        expand(fused, lambda o: o.square().sum(1), params, backend="complexstep").product(d)
    answers = [expand(written_out, lambda o: o.square().sum(1), params, backend=b).curvature(d) for b in ("autodiff", "complexstep")]  # fmt: skip
    assert relative(*answers) < 1e-12
