"""Inverses, determinants and the Cholesky factor; PyTorch's nested forward mode of them is silently wrong.

With M = A⁻¹ Ȧ:

    inverse       Ẏ = −Y Ȧ Y                 D²[Ȧ, Ȧ] = −2 Y Ȧ Ẏ
    A X = B       Ẋ = A⁻¹ (Ḃ − Ȧ X)          D²       = −2 A⁻¹ Ȧ Ẋ
    log |det A|   tr M                       D²       = −tr M²
    det A         det A · tr M               D²       = det A ((tr M)² − tr M²)
    A = L Lᵀ      L̇ = L Φ(L⁻¹ Ȧ L⁻ᵀ)         D²       = −2 L Φ(L⁻¹ L̇ L̇ᵀ L⁻ᵀ)

Φ keeps the lower triangle and half of the diagonal, and Ȧ counts by its symmetric part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprolib.curvature.tape import samples
from reprolib.curvature.tape.node import Node
from reprolib.curvature.tape.rules.registry import Answer, Tangents, plus, rule


def _real(args: tuple, kwargs: dict) -> bool:
    return not (args[0] if args else kwargs["A"]).is_complex()


@rule("inverse", "linalg_inv", "linalg_inv_ex", names="A", reads="y", samples=samples.trailing(2), makes=(0,))
def inverse(node: Node, t: Tangents, curved: bool) -> Answer:
    y, dA = node.y, t(node.args["A"])
    first = -y @ dA @ y
    return first, -2 * y @ dA @ first if curved else None


def _columns(node: Node) -> bool:
    """Whether B is a vector for each A."""
    a, b = node.args["A"].shape, node.args["B"].shape
    return len(b) == 1 or (len(a) - 1 == len(b) and tuple(b) == tuple(a[:-1]))


@rule("linalg_solve", "linalg_solve_ex", names="A B", reads="A y", moves="A B", makes=(0,))
def solve(node: Node, t: Tangents, curved: bool) -> Answer:
    A, x, dA, dB = node["A"], node.y, t(node.args["A"]), t(node.args["B"])
    left, vector = node.args.get("left", True), _columns(node)

    def solved(b: Tensor) -> Tensor:
        return torch.linalg.solve(A, b, left=left)

    def times(z: Tensor) -> Tensor:
        return (dA @ z[..., None])[..., 0] if vector else dA @ z if left else z @ dA

    first = solved(plus(dB, None if dA is None else -times(x)).expand(x.shape))  # type: ignore[union-attr]
    return first, -2 * solved(times(first)) if curved and dA is not None else None


def _trace(m: Tensor) -> Tensor:
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)


def _determined(node: Node, t: Tangents) -> tuple[Tensor, Tensor]:
    """Tr M and tr M²."""
    m = torch.linalg.solve(node["A"], t(node.args["A"]))
    return _trace(m), _trace(m @ m)


@rule("logdet", names="A", reads="A", when=_real)
@rule("slogdet", "linalg_slogdet", names="A", reads="A", makes=(1,), when=_real)
def log_determinant(node: Node, t: Tangents, curved: bool) -> Answer:
    once, twice = _determined(node, t)
    return once, -twice if curved else None


def _regular(args: tuple, kwargs: dict) -> bool:
    A = args[0] if args else kwargs["A"]
    return bool((torch.linalg.det(A.detach()) != 0).all())


@rule("det", "linalg_det", names="A", reads="A y", when=_regular)
def determinant(node: Node, t: Tangents, curved: bool) -> Answer:
    once, twice = _determined(node, t)
    return node.y * once, node.y * (once * once - twice) if curved else None


@rule("cholesky", "linalg_cholesky", "linalg_cholesky_ex", names="A upper", reads="y", makes=(0,), when=_real)
def cholesky(node: Node, t: Tangents, curved: bool) -> Answer:
    upper = node.args.get("upper", False)
    L, dA = node.y.mT if upper else node.y, t(node.args["A"])

    def factor(s: Tensor) -> Tensor:
        """L Φ(L⁻¹ S L⁻ᵀ)."""
        m = torch.linalg.solve_triangular(L, s, upper=False)
        m = torch.linalg.solve_triangular(L.mT, m, upper=True, left=False)
        return L @ (m.tril() - m.diagonal(dim1=-2, dim2=-1).diag_embed() / 2)

    first = factor((dA + dA.mT) / 2)
    second = -2 * factor(first @ first.mT) if curved else None
    return (first.mT, None if second is None else second.mT) if upper else (first, second)
