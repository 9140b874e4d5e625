"""A local model leaves what an ordinary training step leaves, and refuses what it cannot answer."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.curvature.backends import BACKENDS
from reprolib.errors import (
    InvalidInput,
    ModelConsumed,
    NotRepeatable,
    ReprolibError,
    UnknownName,
    UnsupportedOperation,
    UntrackedOperation,
)
from tests.curvature.cases import Squash, case


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def test_batch_norm_advances_once(backend):
    ordinary, measured = case("batch-norm"), case("batch-norm")
    ordinary.net(ordinary.x)
    model = expand(measured.closure, measured.loss, measured.params, retain=True, backend=backend)
    model.curvature(measured.d), model.product(measured.d), model.jvp(measured.d), model.summary(measured.d)
    for (name, a), (_, b) in zip(ordinary.net.named_buffers(), measured.net.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert measured.net[1].num_batches_tracked == 1


def test_random_state_is_that_of_one_pass(backend):
    c = case("dropout")
    torch.manual_seed(3)
    c.closure()
    expected = torch.rand(1)
    torch.manual_seed(3)
    model = expand(c.closure, c.loss, c.params, retain=True, backend=backend)
    model.curvature(c.d), model.product(c.d)
    assert torch.equal(torch.rand(1), expected)


def test_dropout_has_one_mask_in_all_passes(backend):
    c = case("dropout")
    model = expand(c.closure, c.loss, c.params, retain=True, backend=backend)
    assert torch.equal(
        model.curvature(c.d), model.curvature(c.d)
    )  # and the ⟨g, d⟩ check compares them with the first pass


def test_grad_fields_and_training_mode_are_untouched(backend):
    c = case("batch-norm")
    c.net.eval()
    expand(c.closure, c.loss, c.params, backend=backend).curvature(c.d)
    assert all(p.grad is None for p in c.params) and not c.net.training


def test_a_buffer_written_by_user_code_advances_once():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3, dtype=torch.float64)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
            self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))

        def forward(self, x):
            self.seen += 1
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            return torch.tanh(self.layer(x - self.mean))

    c, net = case("mlp"), Counting()
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    expected = 0.1 * c.x.mean(0)
    # the mean that the first pass used is not the one that a second pass would use: this closure cannot be repeated
    with pytest.raises(NotRepeatable):
        expand(lambda: net(c.x), c.loss, params, backend="autodiff").curvature(d)
    assert net.seen == 1
    torch.testing.assert_close(net.mean, expected)
    # the tape runs the closure once, so there is nothing to repeat
    assert expand(lambda: net(c.x), c.loss, params, backend="tape").curvature(d).isfinite().all()
    assert net.seen == 2


def test_an_exception_in_user_code_leaves_the_random_state_and_passes_through():
    c, calls = case("mlp"), []

    def closure():
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("mine")
        return c.closure()

    model = expand(closure, c.loss, c.params, backend="autodiff")
    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        model.curvature(c.d)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_is_freed_with_the_answer(backend):
    c = case("mlp")
    kept = []

    def closure():
        out = c.net[:2](c.x)
        kept.append(weakref.ref(out))
        return c.net[2:](out)

    model = expand(closure, c.loss, c.params, backend=backend)
    model.curvature(c.d)
    gc.collect()
    assert all(ref() is None for ref in kept)
    with pytest.raises(ModelConsumed, match="retain=True"):
        model.curvature(c.d)
    assert model.gradient  # read by the check, so it stays


def test_unused_parameters_count_as_zero(backend):
    c = case("mlp")
    extra = torch.randn(3, dtype=torch.float64, requires_grad=True)
    model = expand(c.closure, c.loss, [*c.params, extra], retain=True, backend=backend)
    assert torch.equal(model.gradient[-1], torch.zeros(3, dtype=torch.float64))
    d = (*c.d, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(model.curvature(d), expand(c.closure, c.loss, c.params, backend=backend).curvature(c.d))
    assert torch.equal(model.product(d)[-1], torch.zeros(3, dtype=torch.float64))


def test_batch_of_one(backend):
    c = case("mlp", batch=1)
    for loss in (c.loss, lambda o: c.loss(o).mean()):  # for one sample its mean is the per-sample loss
        assert expand(c.closure, loss, c.params, backend=backend).curvature(c.d).shape == (1,)


# ---- bad input


def strict(backend):
    """Options with which nobody takes over."""
    return {"fallback": "refuse"} if backend == "tape" else {}


def test_a_custom_function_never_passes_silently(backend):
    if backend in ("finitediff", "reverse"):
        pytest.skip("difference quotients only look at values, and reverse mode is what such a function defines")
    c = case("mlp")
    w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises((UntrackedOperation, UnsupportedOperation)):
        expand(lambda: c.x @ Squash.apply(w), c.loss, [w], backend=backend, **strict(backend)).curvature(
            (torch.ones_like(w),)
        )


def test_a_parameter_read_behind_our_back_is_noticed(backend):
    c = case("mlp")
    hidden = nn.Linear(5, 3, dtype=torch.float64)
    params = list(hidden.parameters())
    alias = [p.view_as(p) for p in params]  # made before: the closure reads the parameters through these
    d = tuple(torch.randn_like(p) for p in params)
    if backend == "reverse":  # it follows autograd's graph, where they are
        expected = expand(lambda: F.linear(c.x, *params), c.loss, params).curvature(d)
        found = expand(lambda: F.linear(c.x, *alias), c.loss, params, backend=backend).curvature(d)
        torch.testing.assert_close(found, expected)
        return
    with pytest.raises((UntrackedOperation, UnsupportedOperation), match="invisible"):
        expand(lambda: F.linear(c.x, *alias), c.loss, params, backend=backend, **strict(backend)).curvature(d)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_never_passes_silently(backend):
    c = case("mlp")
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double())
    params = list(scripted.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    if backend == "reverse":
        plain = lambda: torch.tanh(F.linear(c.x, *params))
        expected = expand(plain, c.loss, params).curvature(d)
        torch.testing.assert_close(
            expand(lambda: scripted(c.x), c.loss, params, backend=backend).curvature(d), expected
        )
        return
    with pytest.raises((UntrackedOperation, UnsupportedOperation)):
        expand(lambda: scripted(c.x), c.loss, params, backend=backend, **strict(backend)).curvature(d)


def test_an_operation_without_a_rule_is_named(backend):
    if backend == "finitediff":
        pytest.skip("difference quotients only look at values, and those are right")
    c = case("conv")
    grid = torch.zeros(6, 4, 4, 2, dtype=torch.float64)
    net = c.net
    closure = lambda: net[5:](net[4](net[3](F.max_pool2d(F.grid_sample(net[:2](c.x), grid, align_corners=False), 2))))
    if backend in ("tape", "reverse"):  # reverse mode knows its second derivative
        assert expand(closure, c.loss, c.params, backend=backend).curvature(c.d).shape == (6,)
        return
    with pytest.raises(UnsupportedOperation, match="grid_sample"):
        expand(closure, c.loss, c.params, backend=backend).curvature(c.d)


class Once(torch.autograd.Function):
    """Can be differentiated once."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


@pytest.mark.filterwarnings("ignore::reprolib.errors.HandedOver")
@pytest.mark.parametrize("fallback", ["reverse", "refuse"])
def test_what_nobody_can_differentiate_twice_is_refused(fallback):
    c = case("mlp")
    w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    d = (torch.ones_like(w),)
    with pytest.raises((UnsupportedOperation, UntrackedOperation)):
        expand(lambda: c.x @ Once.apply(w), c.loss, [w], fallback=fallback).curvature(d)
    with pytest.raises(UnsupportedOperation, match="once_differentiable"):
        expand(lambda: c.x @ Once.apply(w), c.loss, [w], backend="reverse").product(d)


def test_replicated_networks_are_refused():
    c = case("mlp")
    wrapped = nn.DataParallel(c.net)
    with pytest.raises(UnsupportedOperation, match=r"DataParallel.*\.module"):
        expand(lambda: wrapped(c.x), c.loss, c.params)
    assert expand(lambda: wrapped.module(c.x), c.loss, c.params).curvature(c.d).shape == (6,)


@pytest.mark.parametrize("repeating", ["autodiff", "complexstep"])
def test_a_closure_that_changes_is_noticed(repeating):
    c, count = case("mlp"), []

    def closure():
        count.append(1)
        return c.net(c.x * len(count))

    with pytest.raises(NotRepeatable):
        expand(closure, c.loss, c.params, backend=repeating).curvature(c.d)


def test_bad_arguments():
    c = case("mlp")
    ints = torch.ones(2, dtype=torch.int64)
    good = (c.closure, c.loss, c.params)
    shape = tuple(v[None] for v in c.d)
    cases = [
        (lambda: expand(*good, curvature="fisher"), UnknownName, "use one of ggn, hessian"),
        (lambda: expand(*good, backend="autodif"), UnknownName, "did you mean 'autodiff'"),
        (lambda: expand(c.closure, c.loss, []), InvalidInput, "at least one"),
        (lambda: expand(c.closure, c.loss, [ints]), InvalidInput, "int64"),
        (lambda: expand(c.closure, c.loss, [c.params[0] * 2]), InvalidInput, "leaf"),
        (lambda: expand(c.closure, c.loss, [c.params[0], c.params[0]]), InvalidInput, "twice"),
        (lambda: expand(c.closure, lambda o: c.loss(o).mean(), c.params), InvalidInput, 'reduction="none"'),
        (lambda: expand(lambda: c.loss(c.closure()).mean(), None, c.params), InvalidInput, 'reduction="none"'),
        (lambda: expand(c.closure, lambda o: c.loss(o)[:2], c.params), InvalidInput, "2 losses for 6 outputs"),
        (lambda: expand(lambda: c.net(c.x[:0]), lambda o: o.sum(1), c.params), InvalidInput, "empty"),
        (lambda: expand(lambda: [c.closure()], c.loss, c.params), InvalidInput, "list"),
        (lambda: expand(lambda: c.closure().detach(), c.loss, c.params), InvalidInput, "detached"),
        (lambda: expand(*good).curvature(c.d[0]), InvalidInput, "one tensor"),
        (lambda: expand(*good).curvature(c.d[:-1]), InvalidInput, "5 tensors for 6"),
        (lambda: expand(*good).curvature(shape), InvalidInput, r"direction\[0\]"),
        (lambda: expand(*good).curvature(c.d, shape), InvalidInput, r"e\[0\]"),
        (lambda: expand(*good).vjp(torch.ones(2)), InvalidInput, "vjp"),
        (lambda: expand(*good).summary(c.d, [[0], [0]]), InvalidInput, "disjoint"),
        (lambda: expand(*good, "ggn").summary(c.d), InvalidInput, "third=False"),
        (lambda: expand(lambda: c.loss(c.closure()), None, c.params, "ggn"), InvalidInput, "GGN"),
        (lambda: expand(lambda: c.loss(c.closure()), None, c.params).outputs, InvalidInput, "no loss"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            call()
        assert isinstance(caught.value, ReprolibError)


def test_losses_from_the_closure_alone():
    c = case("mlp")
    torch.testing.assert_close(
        expand(lambda: c.loss(c.closure()), None, c.params).curvature(c.d),
        expand(c.closure, c.loss, c.params).curvature(c.d),
    )


@pytest.mark.parametrize("options", [{}, {"memory": "recompute"}, {"products": "shared"}])
@pytest.mark.parametrize("question", ["curvature", "product", "summary"])
def test_memory_is_freed_without_the_garbage_collector(question, options):
    """A reference cycle would keep every activation until Python looks for cycles, a few steps later."""
    c, kept = case("mlp"), []

    def closure():
        h = torch.tanh(c.net[0](c.x))
        kept.append(weakref.ref(h))
        return c.net[2:](h)

    gc.collect()
    gc.disable()
    try:
        model = expand(closure, c.loss, c.params, **options)
        getattr(model, question)(c.d)
        del model
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_term_in_the_parameters_has_a_message_of_its_own():
    c = case("mlp")
    decayed = lambda out: c.loss(out) + 0.5 * sum(p.square().sum() for p in c.params)
    assert expand(c.closure, decayed, c.params).curvature(c.d).shape == (6,)  # the Hessian has it
    with pytest.raises(InvalidInput, match=r"weight_decay="):
        expand(c.closure, decayed, c.params, "ggn").curvature(c.d)


def test_parameters_that_changed_since_have_a_message_of_their_own():
    c = case("mlp")
    model = expand(c.closure, c.loss, c.params)
    kept = [p.detach().clone() for p in c.params]
    try:
        with torch.no_grad():
            for p in c.params:
                p.mul_(1.5)
        with pytest.raises(InvalidInput, match=r"wrote into the parameters after expand"):
            model.curvature(c.d)
    finally:
        with torch.no_grad():
            for p, before in zip(c.params, kept, strict=True):
                p.copy_(before)
