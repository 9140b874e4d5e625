"""Which tensors share a step size, and that nothing is ever spread over the wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprolib.errors import InvalidInput, UnknownName
from reprolib.optim import NewtonSummary
from reprolib.optim.groups import SCALARS, partition
from reprolib.tasks import networks


def deep(layers: int = 5):
    """(tensors, names) of a perceptron."""
    net = networks.dense([3] * (layers + 1), nn.Tanh)
    return [p for _, p in net.named_parameters()], [n for n, _ in net.named_parameters()]


def test_per_tensor_and_all():
    params, names = deep()
    tensors = partition("tensor", params, names)
    assert tensors.labels == tuple(names)
    assert tensors.members == tuple((i,) for i in range(10))
    assert partition("all", params).members == (tuple(range(10)),)
    assert partition("tensor", params).labels[:2] == ("tensor 0", "tensor 1")


@pytest.mark.parametrize("named", [True, False])
def test_roles_and_chunks(named):
    params, names = deep()
    names = names if named else None
    roles = partition("role", params, names)
    assert roles.labels == ("weights", "biases")
    assert roles.members == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
    chunks = partition(("chunks", 2), params, names)
    assert chunks.labels == ("weights 1", "weights 2", "biases 1", "biases 2")
    assert chunks.members == ((0, 2, 4), (6, 8), (1, 3, 5), (7, 9))
    assert len(partition(["chunks", 5], params, names)) == 10  # a list, as JSON has it


def test_appendix_g_has_ten_subsets():
    with torch.device("meta"):
        params, names = deep(100)
    found = partition(("chunks", 5), params, names)
    assert [len(g) for g in found.members] == [20] * 10
    assert sorted(i for g in found.members for i in g) == list(range(200))


def test_a_norm_has_weights_by_name_and_biases_by_shape():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    params, names = zip(*((p, n) for n, p in net.named_parameters()), strict=True)
    assert partition("role", params, names).members == ((0, 2), (1, 3))
    assert partition("role", params).members == ((0,), (1, 2, 3))
    assert partition("role", params[:1]).labels == ("weights",)  # no empty group


def test_names_in_the_order_given():
    params, names = deep(2)
    groups = [[names[3], names[0]], [names[2]], [names[1]]]
    found = partition(groups, params, names)
    assert found.members == ((3, 0), (2,), (1,))
    eta = torch.tensor([1.0, 2.0, 3.0])
    assert [float(x) for x in found.spread(eta, params)] == [1.0, 3.0, 2.0, 1.0]


def test_scalars():
    params = [torch.arange(6.0).view(2, 3), torch.tensor(7.0)]
    found = partition("scalar", params)
    assert len(found) == 7
    assert found.labels[5:] == ("tensor 0[5]", "tensor 1[0]")
    pieces = found.pieces(params)
    assert [float(x) for x in pieces] == [0, 1, 2, 3, 4, 5, 7]
    for a, b in zip(found.joined(pieces, params), params, strict=True):
        assert torch.equal(a, b)
    assert found.spread(torch.arange(7.0), params)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_bad_descriptions_are_refused():
    params, names = deep(2)
    for groups, given, error, words in [
        ("tensors", names, UnknownName, "did you mean 'tensor'"),
        (("chunks", 3), names, InvalidInput, "2 layers"),
        (("chunks", 0), names, InvalidInput, "give 1…2"),
        (("chunks", "2"), names, InvalidInput, "2 layers"),
        ([], names, InvalidInput, "non-empty lists"),
        ([[]], names, InvalidInput, "non-empty lists"),
        ([["0.weight"]], None, InvalidInput, "named_parameters"),
        ([["1.wait"]], names, UnknownName, "did you mean '1.weight'"),
        ([[names[0], names[1]], [names[1]]], names, InvalidInput, "in two groups"),
        ([[names[0]], [names[1]]], names, InvalidInput, "in no group"),
        (3, names, InvalidInput, "lists of names"),
        ([3], names, InvalidInput, "lists of names"),
    ]:
        with pytest.raises(error, match=words):
            partition(groups, params, given)
    with pytest.raises(InvalidInput, match=f"at most {SCALARS}"):
        partition("scalar", [torch.zeros(SCALARS + 1)])
    with pytest.raises(InvalidInput, match="step sizes for 4 groups"):
        partition("tensor", params, names).spread(torch.ones(3), params)
    with pytest.raises(InvalidInput, match="in no group"):  # at once, not at the first step
        NewtonSummary(zip(names, [p.detach().requires_grad_() for p in params], strict=True), groups=[[names[0]]])
