"""Every question to one network, against double backward of its own losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from reprolib.curvature import expand
from reprolib.curvature.replay import written_out
from tests.curvature.reference import flat, gradient_graph, jacobian, per_sample_hessians


def assert_all_right(
    closure: Callable[[], Tensor],
    params: Sequence[Tensor],
    reference: Callable[[], Tensor] | None = None,
    seed: int = 3,
) -> None:
    """``closure`` () -> outputs (B, n), B ≥ 2; the losses are ½ |outputs|² + Σ sin(outputs).

    ``reference``: the same in basic operations, where reverse mode of ``closure`` cannot be trusted.
    """

    def loss(o: Tensor) -> Tensor:
        return o.square().sum(1) / 2 + o.sin().sum(1)

    params = list(params)
    g = torch.Generator().manual_seed(seed)
    d, e = (tuple(torch.randn(p.shape, generator=g, dtype=p.dtype) for p in params) for _ in range(2))

    torch.manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH), _WrittenOut():
        outputs = (reference or closure)()
        losses = loss(outputs)
        per_sample = per_sample_hessians(lambda: losses, params)
        A = jacobian(outputs, params)
        o = outputs.detach().requires_grad_()
        gradient = torch.autograd.grad(loss(o).sum(), o, create_graph=True)[0].flatten()
        curved = torch.stack([torch.autograd.grad(x, o, retain_graph=True)[0].flatten() for x in gradient])
        psi, second, third = _psi(losses.mean(), params, d)
    assert len(losses) >= 2

    def asked(question, **options):
        torch.manual_seed(seed)
        return question(expand(closure, loss, params, **options))

    v, w = flat(d), flat(e)
    curvature, bilinear = per_sample @ v @ v, per_sample @ v @ w
    for options in ({}, {"products": "shared"}, {"memory": "recompute"}, {"retain": True}):
        assert_close(asked(lambda m: m.curvature(d), **options), curvature)
    assert_close(asked(lambda m: m.curvature(d, e)), bilinear)
    assert_close(flat(asked(lambda m: m.product(d))), per_sample.mean(0) @ v)
    assert_close(asked(lambda m: m.jvp(d)).flatten(), A @ v)
    assert_close(flat(asked(lambda m: m.product(d), curvature="ggn")), A.T @ (curved @ (A @ v)) / len(losses))
    summary = asked(lambda m: m.summary(d))
    assert_close(summary.gradient, psi)
    assert_close(summary.hessian, second)
    assert_close(summary.third, third)


class _WrittenOut(TorchFunctionMode):
    """The fused norms in basic operations: their third derivative is wrong in PyTorch's reverse mode too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return written_out(func, args, kwargs or {})


def _psi(loss: Tensor, params: list[Tensor], d: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """∇ψ, ∇²ψ and the diagonal of ψ‴ for a group per tensor."""
    first = [(g * x).sum() for g, x in zip(_split(gradient_graph(loss, params), params), d, strict=True)]
    rows, cubes = [], []
    for i, y in enumerate(first):
        grads = _grads(y, params)
        row = [(g * x).sum() for g, x in zip(grads, d, strict=True)]
        rows.append(torch.stack([r.detach() for r in row]))
        cubes.append((_grads(row[i], params)[i] * d[i]).sum().detach())
    return torch.stack([y.detach() for y in first]), torch.stack(rows), torch.stack(cubes)


def _grads(y: Tensor, params: list[Tensor]) -> tuple[Tensor, ...]:
    if not y.requires_grad:
        return tuple(torch.zeros_like(p) for p in params)
    return torch.autograd.grad(y, params, create_graph=True, materialize_grads=True)


def _split(x: Tensor, params: list[Tensor]) -> list[Tensor]:
    return [part.view(p.shape) for part, p in zip(x.split([p.numel() for p in params]), params, strict=True)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        found, expected.detach(), rtol=1e-9, atol=1e-9 * (1 + float(expected.detach().abs().max()))
    )
