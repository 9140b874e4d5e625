"""The five methods as one family: what they share exactly, in float64. The claim ids are those of book/claims.yaml."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from reprolib.optim import RED, Adler, CurveBall, NewtonCG, NewtonSummary, newtoncg
from reprolib.tasks.toy import with_spectrum
from tests.optim.common import CLOSE, ggn, gradient, parameters, random_net, train

NEWTON = {"damping": 1.0, "momentum": 0.0, "positive": None, "cubic": 0.0}  # NewtonSummary's eq. (1) and nothing else
PLAIN = {"damping": 0.0, "auto_damping": False}  # CurveBall with λ = 0


def half_square(o):
    return 0.5 * o.square().sum(1)


def least_squares(H: torch.Tensor, start: torch.Tensor, samples: int = 1):
    """(θ, closure): J = ½ θᵀHθ by ``samples`` identical samples of outputs H^½ θ, so that H_s = H = G."""
    root = torch.linalg.cholesky(H)
    θ = start.clone().requires_grad_()
    return θ, lambda: (θ @ root).expand(samples, -1)


# ---- family-1: the first step

FIRST = {
    "RED": lambda p, **options: RED(p, lr=0.5, weight_decay=0.0, **options),
    "ADLER": lambda p: Adler(p, eps=0.0),
    "CurveBall": lambda p: CurveBall(p, **PLAIN),
    "NewtonSummary": lambda p: NewtonSummary(p, groups="all", **NEWTON),
    "NewtonCG": lambda p, **options: NewtonCG(p, max_iter=1, **options),
}


def first_step(name: str, H: torch.Tensor, start: torch.Tensor, samples: int = 1, **options) -> torch.Tensor:
    θ, closure = least_squares(H, start, samples)
    FIRST[name]([θ], **options).step(closure, half_square)
    return θ.detach() - start


def problems():
    """(H, θ, Cauchy's step), with gradients of lengths around 0.1, 1 and 10."""
    for seed, size in enumerate((0.1, 1.0, 10.0)):
        g = torch.Generator().manual_seed(seed)
        H = with_spectrum([0.3, 1.0, 2.0, 5.0, 20.0], g)
        θ = torch.randn(5, generator=g, dtype=torch.float64)
        θ *= size / (H @ θ).norm()
        slope = H @ θ
        yield H, θ, -(slope @ slope) / (slope @ H @ slope) * slope


@pytest.mark.claim("family-1", file="optim/red.py", old='"corrected": 2.0', new='"corrected": 1.0')
@pytest.mark.claim("family-1", file="optim/adler.py", old="η = norm2 / (κ + ", new="η = 0.5 * norm2 / (κ + ")
@pytest.mark.claim(
    "family-1", file="optim/curveball.py", old="plus, minus = (0.5 * x * _inv", new="plus, minus = (x * _inv"
)
@pytest.mark.claim("family-1", file="optim/newtonsummary.py", old="star = found.eta.to(seen.gradient)", new="star = found.eta.to(seen.gradient) / 2")  # fmt: skip
@pytest.mark.claim("family-1", file="optim/cg.py", old="Δ, r = _plus(Δ, α, p), ", new="Δ, r = _plus(Δ, 0.5 * α, p), ")
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", FIRST)
def test_the_five_first_steps_are_cauchys(name, samples):
    """−(gᵀg / gᵀHg) g, on a convex quadratic with one sample or identical ones, where H_s = H = G."""
    for H, start, cauchy in problems():
        torch.testing.assert_close(first_step(name, H, start, samples), cauchy, rtol=1e-10, atol=1e-10)


@pytest.mark.claim("family-1", file="optim/red.py", old='"line7": 0.5', new='"line7": 1.0')
@pytest.mark.claim("family-1", file="optim/cg.py", old='math.sqrt(rr) if "alpha" in printed', new='rr if "alpha" in printed')  # fmt: skip
def test_as_printed_two_of_them_are_not():
    """RED by line 7 takes ¼ of it, by eq. (10) ½; CSDD, all lines as printed, 1/‖g‖: if that overshoots, it climbs."""
    for H, start, cauchy in problems():
        length = (H @ start).norm()
        torch.testing.assert_close(first_step("RED", H, start, factor="line7"), cauchy / 4, **CLOSE)
        torch.testing.assert_close(first_step("RED", H, start, factor="eq10"), cauchy / 2, **CLOSE)
        printed = first_step("NewtonCG", H, start, printed=sorted(newtoncg.PRINTED))
        torch.testing.assert_close(printed, cauchy / length, rtol=1e-9, atol=1e-11)
        end = start + printed
        assert (end @ H @ end > start @ H @ start) == (length < 0.5)


def test_samples_that_bend_both_ways_shorten_reds_step():
    """Two samples H ± D with the mean H: RED's mean of |gᵀH_s g| is gᵀHg only while none of them bends downwards."""
    g = torch.Generator().manual_seed(0)
    H, D = with_spectrum([1.0, 2.0, 4.0], g), with_spectrum([-0.9, 0.0, 0.9], g)
    start = torch.randn(3, generator=g, dtype=torch.float64)
    slope = H @ start
    cauchy = -(slope @ slope) / (slope @ H @ slope) * slope
    for size in (1.0, 10.0):
        A = torch.stack([H + size * D, H - size * D])
        ends = {}
        for name in ("RED", "NewtonSummary", "NewtonCG"):
            θ = start.clone().requires_grad_()
            FIRST[name]([θ]).step(lambda θ=θ, A=A: 0.5 * torch.einsum("i,sij,j->s", θ, A, θ))
            ends[name] = θ.detach() - start
        torch.testing.assert_close(ends["NewtonSummary"], cauchy, **CLOSE)
        torch.testing.assert_close(ends["NewtonCG"], cauchy, **CLOSE)
        bends = torch.einsum("i,sij,j->s", slope, A, slope)
        torch.testing.assert_close(ends["RED"], bends.sum() / bends.abs().sum() * cauchy, **CLOSE)
        assert (bends.min() < 0) == (size > 1)


# ---- family-3: partitions

SHAPES = ((2, 3), (3,), (2, 2), (), (4,), (2,))


def refinements(seed: int) -> list[list[list[str]]]:
    """Partitions of the tensors, from one group to one for each; every one splits a group of the one before."""
    g = torch.Generator().manual_seed(seed)
    names = [f"p{i}" for i in torch.randperm(len(SHAPES), generator=g).tolist()]
    chain = [[[name] for name in names]]
    while len(chain[-1]) > 1:
        groups = [list(group) for group in chain[-1]]
        i, j = torch.randperm(len(groups), generator=g)[:2].tolist()
        groups[i] += groups[j]
        del groups[j]
        chain.append(groups)
    return chain[::-1]


def quadratic(seed: int):
    """(named tensors, losses, H, b): ½ θᵀHθ − bᵀθ over tensors of several shapes, with a random H of condition 100."""
    g = torch.Generator().manual_seed(seed)
    sizes = [int(torch.tensor(s).prod()) if s else 1 for s in SHAPES]
    H = with_spectrum(torch.logspace(-1, 1, sum(sizes), dtype=torch.float64).tolist(), g)
    b, start = torch.randn(2, sum(sizes), generator=g, dtype=torch.float64)
    named = [(f"p{i}", x.view(s).clone().requires_grad_()) for i, (x, s) in enumerate(zip(start.split(sizes), SHAPES, strict=True))]  # fmt: skip

    def J():
        θ = torch.cat([p.reshape(-1) for _, p in named])
        return (0.5 * θ @ H @ θ - b @ θ).reshape(1)

    return named, J, H, b


def flat(named) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for _, p in named])


@pytest.mark.claim("family-3", file="optim/newtonsummary.py", old="star = found.eta.to(seen.gradient)", new="star = 0.9 * found.eta.to(seen.gradient)")  # fmt: skip
@pytest.mark.claim("family-3", file="optim/newtonsummary.py", old="h = (h + h.T) / 2  #", new="h = torch.diag(torch.diag(h))  #")  # fmt: skip
@pytest.mark.parametrize("seed", range(6))
def test_refining_a_partition_can_only_lower_the_model(seed):
    """Its minimum −½ ḡᵀH̄⁻¹ḡ (λ_int = 0, H̄ ≻ 0) along random nested partitions, from Cauchy's step (S = 1) to Newton's.

    On a quadratic the model is the loss, so the loss after the step must say the same.
    """
    falls = []
    for groups in [*refinements(seed), "scalar"]:
        named, J, H, b = quadratic(seed)
        start = flat(named)
        g = H @ start - b
        opt = NewtonSummary(named, groups=groups, **NEWTON)
        before = opt.step(J)
        members = opt.partition.members
        if len(members) == 1:
            torch.testing.assert_close(flat(named) - start, -(g @ g) / (g @ H @ g) * g, **CLOSE)
        if groups == "scalar":
            torch.testing.assert_close(flat(named), torch.linalg.solve(H, b), rtol=1e-9, atol=1e-10)
        ḡ, H̄, _ = opt.summary
        assert torch.linalg.eigvalsh(H̄)[0] > 0
        torch.testing.assert_close(opt.diagnostics["model"], -0.5 * ḡ @ torch.linalg.solve(H̄, ḡ), **CLOSE)
        falls.append(float(J().detach() - before))
        assert falls[-1] == pytest.approx(float(opt.diagnostics["model"]), rel=1e-9)
    assert len(falls) == len(SHAPES) + 1
    assert all(fine <= coarse + 1e-12 for coarse, fine in pairwise(falls))
    assert falls[-1] < 1.1 * falls[0] < 0  # not only equal


@pytest.mark.parametrize("seed", range(3))
def test_refining_a_partition_lowers_the_model_of_a_network(seed):
    """The same for the model alone, on a network with so much weight decay that H is positive definite."""
    values = []
    for groups in ("all", "role", "tensor", "scalar"):  # nested, too
        net, ((x, y), *_) = random_net(seed)
        opt = NewtonSummary(net.named_parameters(), groups=groups, weight_decay=3.0, **NEWTON)
        train(net, [(x, y)], opt)
        assert torch.linalg.eigvalsh(opt.summary.hessian)[0] > 0
        values.append(float(opt.diagnostics["model"]))
    assert all(fine <= coarse + 1e-12 for coarse, fine in pairwise(values))
    assert values[-1] < values[0] < 0


# ---- family-4: subspaces


def along(direction: torch.Tensor, g: torch.Tensor, C: torch.Tensor) -> float:
    """The minimum of gᵀv + ½ vᵀCv on a line, −½ (gᵀd)² / dᵀCd."""
    return float(-0.5 * (g @ direction) ** 2 / (direction @ C @ direction))


@pytest.mark.claim("family-4", file="optim/curveball.py", old="model.inner(b, model.loss_hvp(b)) +", new="model.inner(b, b) +")  # fmt: skip
@pytest.mark.claim("family-4", file="optim/adler.py", old="v = model.jvp(g)", new="v = 2 * model.jvp(g)")
@pytest.mark.parametrize("seed", range(4))
def test_at_z_zero_the_plane_has_adlers_line_and_no_more(seed):
    """CurveBall, ρ free, takes ADLER's first step: here on a network, where G is not H (family-1 has a quadratic)."""
    ends = []
    for make in (lambda p: CurveBall(p, **PLAIN), lambda p: Adler(p, eps=0.0)):
        net, ((x, y), *_) = random_net(seed)
        opt, before, g, G = make(net.parameters()), parameters(net), gradient(net, x, y), ggn(net, x)
        train(net, [(x, y)], opt)
        ends.append(parameters(net) - before)
        if isinstance(opt, CurveBall):
            assert opt.diagnostics["momentum"] == 0
            assert float(opt.diagnostics["predicted"]) == pytest.approx(along(g, g, G), rel=1e-10)
    torch.testing.assert_close(*ends, **CLOSE)


@pytest.mark.claim("family-4", file="optim/curveball.py", old="_quotient(plus + minus, s1), _quotient(minus - plus, s2)", new="_quotient(u, s1), _quotient(0 * v, s2)")  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_later_the_plane_is_never_worse_than_a_line_in_it(seed):
    """For z ≠ 0 the minimum on span{Δ, z} is at most that on the lines of Δ and of z, and that for any ρ held fixed."""
    net, batches = random_net(seed)
    opt = CurveBall(net.parameters(), damping=0.1, auto_damping=False)
    eye = 0.1 * torch.eye(len(parameters(net)), dtype=torch.float64)
    train(net, batches, opt, 3)
    for x, y in batches[3:8]:
        z = torch.cat([opt.state[p]["z"].flatten() for p in net.parameters()]).clone()
        assert z.norm() > 0
        g, C = gradient(net, x, y), ggn(net, x) + eye
        Δ = C @ z + g
        train(net, [(x, y)], opt)
        plane = float(opt.diagnostics["predicted"])
        assert plane <= along(Δ, g, C) + 1e-12
        assert plane <= along(z, g, C) + 1e-12
        for ρ in (0.0, 0.5, 0.9, 1.0):
            β = (g @ Δ + ρ * (z @ C @ Δ)) / (Δ @ C @ Δ)
            v = ρ * z - β * Δ
            assert plane <= float(g @ v + 0.5 * v @ C @ v) + 1e-12


def test_later_the_gradient_may_leave_the_plane():
    """Only at z = 0 is g in span{Δ, z} for sure, Δ = Cz + g: here ADLER's line has the minimum, the plane does not."""
    C = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    g, z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    θ, closure = least_squares(C, torch.linalg.solve(C, g))
    opt = CurveBall([θ], **PLAIN)
    opt.state[θ]["z"] = z
    opt.step(closure, half_square)
    whole = float(-0.5 * g @ torch.linalg.solve(C, g))
    assert along(g, g, C) == pytest.approx(whole)
    V = torch.stack([C @ z + g, z], 1)
    plane = float(-0.5 * (V.T @ g) @ torch.linalg.solve(V.T @ C @ V, V.T @ g))
    assert float(opt.diagnostics["predicted"]) == pytest.approx(plane)
    assert plane > 0.5 * whole  # both are negative
