"""The same products by other libraries: BackPACK, curvlinops, hessian-eigenthings (``pip install 'reprolib[peers]'``).

They are imported when they are first used. What a library wants to have beforehand is done in ``prepare`` and not timed.
Attention is switched to plain matrix products for them, because PyTorch's fused kernel has no second derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from reprolib.bench.harness import Bench

Work = Callable[[], tuple[None, Any]]


@contextmanager
def quiet() -> Iterator[None]:
    """Attention as products; warnings of the libraries about themselves are theirs to mind."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def backpack_hessian(b: Bench) -> Callable[[], Any]:
    """∇²J d by double backward, the outer derivative as an R-operator."""
    from backpack.hessianfree.hvp import hessian_vector_product

    return lambda: hessian_vector_product(b.loss(b.closure()).mean(), b.params, list(b.d))


def backpack_ggn(b: Bench) -> Callable[[], Any]:
    """G d: A d by the double-backward trick, then back."""
    from backpack.hessianfree.ggnvp import ggn_vector_product

    def work() -> Any:
        outputs = b.closure()
        return ggn_vector_product(b.loss(outputs).mean(), outputs, b.net, list(b.d))

    return work


def curvlinops_operator(name: str) -> Callable[[Bench], Callable[[], Any]]:
    """A linear operator of curvlinops, applied to d."""

    def prepare(b: Bench) -> Callable[[], Any]:
        import curvlinops

        batch = [(b.x, b.y)]
        operator = getattr(curvlinops, name)(b.net, nn.CrossEntropyLoss(), b.params, batch, check_deterministic=False)
        d = _vector(b)
        return lambda: operator @ d

    return prepare


def eigenthings_hessian(b: Bench) -> Callable[[], Any]:
    """∇²J d by double backward."""
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(b.net, [(b.x, b.y)], lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))
    d = _vector(b)
    return lambda: operator.matvec(d)


def eigenthings_ggn(b: Bench) -> Callable[[], Any]:
    """G d: a tangent pass, then back."""
    from hessian_eigenthings import GGNOperator

    operator = GGNOperator(
        b.net, [(b.x, b.y)], lambda net, batch: net(batch[0]), lambda outputs, batch: F.cross_entropy(outputs, batch[1])
    )
    d = _vector(b)
    return lambda: operator.matvec(d)


def _vector(b: Bench) -> Tensor:
    return torch.cat([v.flatten() for v in b.d])


def _quietly(prepare: Callable[[Bench], Callable[[], Any]]) -> Callable[[Bench], Work]:
    def prepared(b: Bench) -> Work:
        with quiet():
            work = prepare(b)

        def run() -> tuple[None, Any]:
            with quiet():
                return None, work()

        return run

    return prepared


PACKAGES = {
    "BackPACK": "backpack-for-pytorch",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
}
PRODUCTS: dict[tuple[str, str], Callable[[Bench], Work]] = {  # (library, operator) -> d ↦ C d
    ("BackPACK", "hessian"): _quietly(backpack_hessian),
    ("BackPACK", "ggn"): _quietly(backpack_ggn),
    ("curvlinops", "hessian"): _quietly(curvlinops_operator("HessianLinearOperator")),
    ("curvlinops", "ggn"): _quietly(curvlinops_operator("GGNLinearOperator")),
    ("hessian-eigenthings", "hessian"): _quietly(eigenthings_hessian),
    ("hessian-eigenthings", "ggn"): _quietly(eigenthings_ggn),
}
