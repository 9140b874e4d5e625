"""Slices of a loss against functions whose values are known on paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import InvalidInput
from reprolib.show.slices import Quadratic, loss_along, loss_on_plane, losses_at, quadratic

D = torch.float64


def bowl():
    """J(θ) = mean over two samples of w_s · θ_s², with θ = (3, 1)."""
    θ = torch.tensor([3.0, 1.0], dtype=D, requires_grad=True)
    w = torch.tensor([1.0, 2.0], dtype=D)
    return (lambda: θ), (lambda o: w * o.square()), [θ]


def net_pair(norm: bool = False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(0.3))
    net.append(nn.Linear(6, 3)).to(D)
    x, y = torch.randn(8, 4, dtype=D), torch.randint(3, (8,))
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    e = tuple(torch.randn_like(p) for p in params)
    return net, (lambda: net(x)), (lambda o: F.cross_entropy(o, y, reduction="none")), params, d, e


def test_values_on_a_line_and_a_plane():
    closure, loss, params = bowl()
    d, e = (torch.tensor([1.0, 0.0], dtype=D),), (torch.tensor([0.0, 1.0], dtype=D),)
    ts, us = torch.tensor([0.0, 1.0, 3.0], dtype=D), [0.0, 2.0]
    torch.testing.assert_close(loss_along(closure, loss, params, d, ts), ((3 - ts) ** 2 + 2) / 2)
    want = torch.tensor([[((3 - float(t)) ** 2 + 2 * (1 - u) ** 2) / 2 for u in us] for t in ts], dtype=D)
    torch.testing.assert_close(loss_on_plane(closure, loss, params, d, e, ts, us), want)
    per_sample = losses_at(closure, loss, params, [d, e], [[1.0, 2.0]])
    torch.testing.assert_close(per_sample, torch.tensor([[4.0, 2.0]], dtype=D))


def test_the_model_of_a_quadratic_is_the_quadratic():
    closure, loss, params = bowl()
    d, e = (torch.tensor([1.0, 1.0], dtype=D),), (torch.tensor([0.0, 1.0], dtype=D),)
    m = quadratic(closure, loss, params, [d, e])
    ts, us = torch.linspace(-1, 4, 4, dtype=D), torch.linspace(-3, 2, 3, dtype=D)
    grid = torch.stack(torch.meshgrid(ts, us, indexing="ij"), -1)
    torch.testing.assert_close(m(grid), loss_on_plane(closure, loss, params, d, e, ts, us))
    torch.testing.assert_close(m.minimiser, torch.tensor([3.0, -2.0], dtype=D))
    line = quadratic(closure, loss, params, [d])
    torch.testing.assert_close(line.along(ts), loss_along(closure, loss, params, d, ts))
    assert line.along(ts[0]).shape == () and line.along(ts[:1]).shape == (1,)


@pytest.mark.parametrize("matrix", [[[-1.0]], [[0.0]], [[1.0, 2.0], [2.0, 1.0]]])
def test_no_minimiser_without_positive_curvature(matrix):
    q = torch.tensor(matrix, dtype=D)
    assert Quadratic(torch.zeros((), dtype=D), torch.ones(len(q), dtype=D), q).minimiser is None


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_matrix_entries_are_those_of_the_local_model(curvature):
    _, closure, loss, params, d, e = net_pair()
    torch.manual_seed(5)
    m = quadratic(closure, loss, params, [d, e], curvature)
    torch.manual_seed(5)
    model = expand(closure, loss, params, curvature, retain=True)
    torch.testing.assert_close(m.matrix[0, 1], model.curvature(d, e).mean())
    torch.testing.assert_close(m.matrix[1, 1], model.curvature(e).mean())
    torch.testing.assert_close(m.loss, model.loss)


def test_a_slice_leaves_no_trace_and_keeps_the_dropout_mask():
    net, closure, loss, params, d, _ = net_pair(norm=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    values = loss_along(closure, loss, params, d, [0.0, 0.1, 0.0])
    assert torch.equal(values[0], values[2])  # the same mask at each point
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_one_length_for_each_direction():
    closure, loss, params = bowl()
    with pytest.raises(InvalidInput, match="1 lengths for 2 directions"):
        losses_at(closure, loss, params, [params, params], [[1.0]])
