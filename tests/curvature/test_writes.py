"""Writing in place: into values, into their views, into tensors made in the pass. The pass stays what it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import UnsupportedOperation
from tests.curvature.asked import assert_all_right

B = 4
INDEX = torch.tensor([2, 0, 3])
EVEN = torch.tensor([True, False, True, False, True])
G = torch.Generator().manual_seed(0)
X = torch.randn(B, 3, generator=G, dtype=torch.float64)


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=g, dtype=torch.float64) / 2).requires_grad_() for shape in shapes]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


# h is (B, 5) and recorded, each makes (B, n) of it


def item(h):
    y = h * h
    y[:, 1] = 0.5
    y[:, 3] = h[:, 0]
    return y * h


def items_by_tensors(h):
    y = h.sin()
    y[:, INDEX] = h[:, :3] * h[:, 2:]
    y[:, EVEN] = 1.5 * h[:, EVEN]
    return y.mul_(h)


def filled(h):
    both = zeros(B, 10)
    both[:, :5] = h
    both[:, 5:] = torch.sin(h)
    return both.tanh()


def filled_sample_by_sample(h):
    out = zeros(B, 5)
    for s in range(B):
        out[s] = h[s].sin() + out[s - 1]
    return out * h


def steps(h):
    out = zeros(3, B, 5)
    state = h
    for t in range(3):
        state = torch.tanh(state * h)
        out[t] = state
    return out.transpose(0, 1).flatten(1)


def scattered(h):
    out = zeros(B, 6).scatter_add_(1, torch.tensor([[0, 2, 2, 5, 1]]).expand(B, 5), h * h)
    return torch.cos(out).index_add_(1, INDEX, h[:, :3], alpha=2)


def masked(h):
    y = h.sin().masked_fill_(EVEN, 0.25)
    y.clamp_(min=-0.4)
    y.index_put_((torch.arange(B)[:, None], INDEX), h[:, :3], accumulate=True)
    return y * h


def view(h):
    y = h.sin()
    y[:, 1:3].mul_(h[:, :2])
    y[:, 4].pow_(3)
    return y + y.sin() * h


def view_taken_before(h):
    y = h.sin()
    left, middle = y[:, :2], y.narrow(1, 1, 3)
    y *= h
    middle += 1.5
    left.sigmoid_()
    return torch.cat([left * h[:, :2], middle, y], 1)


def view_of_a_constant(h):
    out = zeros(B, 2, 5)
    first, flat = out[:, 0], out.view(B, -1)
    first.copy_(h)
    first.mul_(h)
    flat[:, 5:].add_(h.sin())
    return flat.tanh()


def transposed(h):
    y = (h * h).t().contiguous().t()  # the samples are the last axis of its memory
    y[:, 1:].mul_(h[:, 1:])
    row = y.t()[2]
    row.square_()
    return y.sin()


def whole_view(h):
    y = (h.sin() * 2).view(-1)
    y.sigmoid_()
    return F.dropout(y.view(B, 5), 0.0, inplace=True) * h


def whole_view_of_an_unseen_base(h):
    y = torch.einsum("bi,ij->bj", h, zeros(5, 5).fill_(0.3))
    y += h
    return y.sin()


def in_place_functionals(h):
    y = F.silu(h + 1, inplace=True)
    y = F.hardtanh(y * h, -0.3, 0.4, inplace=True)
    return F.leaky_relu_(y * h) + F.elu(h * h - 1, inplace=True)


def dropout_on_a_view(h):
    return F.dropout((h * h).view(B, 5, 1), 0.4, training=True, inplace=True).squeeze(2) * h


def fresh_numbers(h):
    y = h * 2
    y[:, 0].normal_()
    y[:, 1].zero_()
    z = (h * h).uniform_(1, 2)
    z.requires_grad_()
    return y.sin() * z * h


def overwritten_in_turn(h):
    y = h.sin()
    read = y + h
    y.copy_(h.cos())
    both = y + read
    y.fill_(2.0)
    y.addcmul_(h, h, value=0.3)
    return both.sin() + y * h


def swapped_axes(h):
    y = h.sin()
    y.unsqueeze_(1)
    y.transpose_(1, 2)
    return y.squeeze_() * h


def under_no_grad(h):
    y = h * h
    read = y + h
    with torch.no_grad():
        y.clamp_(max=0.3)
        y[:, 1].add_(0.5)
    return (y @ zeros(5, 5).fill_(0.2)).sin() * read.sin() + y.square()


def lists(h):
    y = torch.stack([h, h.sin()], 1)
    y[:, [0, 1], [2, 3]] = h[:, :2]
    y[..., None, 0] = h[:, :2, None]
    y[1:, 0, :2] += h[1:, 3:]
    return y.flatten(1).sin()


WRITES = {f.__name__: f for f in (
    item, items_by_tensors, filled, filled_sample_by_sample, steps, scattered, masked, view, view_taken_before,
    view_of_a_constant, transposed, whole_view, whole_view_of_an_unseen_base, in_place_functionals, dropout_on_a_view,
    fresh_numbers, overwritten_in_turn, swapped_axes, under_no_grad, lists)}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_every_answer_is_right_and_the_pass_is_the_ordinary_one(name):
    w, u = weights((3, 5), (9, 2))

    def closure() -> Tensor:
        h = WRITES[name](torch.tanh(X @ w))
        return h @ u[:1].expand(h.shape[1], 2) + h.sum(1, keepdim=True) * u[1:2, :1]

    assert_all_right(closure, [w, u])
    torch.manual_seed(0)
    ordinary, number = closure(), torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(expand(closure, lambda o: o.sum(1), [w, u]).outputs, ordinary)
    assert torch.equal(torch.rand(()), number)


def test_after_a_write_the_samples_are_still_known():
    """What is written at a sample's place belongs to the sample: second derivatives are paid behind it, not carried."""
    w, u = weights((3, 5), (5, 2))

    def closure() -> Tensor:
        out = zeros(B, 2, 5)
        row = out[:, 0]
        row.copy_(torch.tanh(X @ w))
        out[:, 1] = torch.sin(X @ w)
        return out.sum(1) @ u

    recording = expand(closure, lambda o: o.square().sum(1), [w, u], retain=True)._net.recording
    made = {v.id for node in recording.nodes if node.name in ("matmul", "__matmul__") for v in node.inputs()}
    read = made - {0, 1}
    assert read and read <= set(recording.places)


def test_a_tensor_made_before_the_pass_holds_what_was_written():
    (w,) = weights((3, 5))
    buffer = zeros(B, 5)

    def closure() -> Tensor:
        out = buffer.clone()
        buffer.copy_(X @ w.detach())
        out.add_(X @ w)
        return out.sin()

    expand(closure, lambda o: o.sum(1), [w]).curvature((torch.ones_like(w),))
    torch.testing.assert_close(buffer, X @ w.detach())


def test_what_nobody_can_follow_is_refused():
    (w,) = weights((3, 5))

    def hidden() -> Tensor:
        y = torch.sin(X @ w)
        y.detach().mul_(2)
        return y * 1

    def parameter() -> Tensor:
        with torch.no_grad():
            w.clamp_(-1, 1)
        return X @ w

    for closure, message in ((hidden, "invisible"), (parameter, "clamp_")):
        with pytest.raises(UnsupportedOperation, match=message):
            expand(closure, lambda o: o.sum(1), [w], fallback="refuse")


def test_networks_that_write():
    """A message-passing layer, and a block of in-place activations and sums as in most image networks."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    source, target = torch.tensor([0, 1, 2, 3, 1, 0]), torch.tensor([1, 0, 3, 2, 3, 2])

    def hop(h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out.scatter_add_(0, target[:, None].expand(-1, h.shape[1]), h[source])
        return out

    assert_all_right(lambda: hop(second(torch.tanh(hop(first(X))))), [*first.parameters(), *second.parameters()])

    image = torch.randn(B, 2, 4, 4, generator=G, dtype=torch.float64)
    conv, norm = nn.Conv2d(2, 2, 3, padding=1).double(), nn.BatchNorm2d(2).double()

    def block() -> Tensor:
        y = norm(conv(image))
        y += image
        y = F.silu(y, inplace=True)
        return F.relu(conv(y), inplace=True).flatten(1)

    assert_all_right(block, [*conv.parameters(), *norm.parameters()])
