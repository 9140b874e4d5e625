"""The toy losses against values and derivatives worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reprolib.errors import InvalidInput
from reprolib.tasks import toy


def derivatives(loss, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and Hessian of the mean loss."""
    mean = lambda t: loss(t).mean()
    return torch.autograd.functional.jacobian(mean, theta), torch.autograd.functional.hessian(mean, theta)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", [-3.0, -0.8, 0.0, 1.2, 40.0])
def test_sqrt_one_plus_has_the_derivatives_of_its_docstring(value: float) -> None:
    theta = torch.tensor([value], dtype=torch.float64)
    losses = toy.sqrt_one_plus(theta)
    assert losses.shape == (1,) and losses.dtype == torch.float64
    assert losses.item() == pytest.approx(np.hypot(1, value), rel=1e-15)
    slope, curvature = derivatives(toy.sqrt_one_plus, theta)
    assert slope.item() == pytest.approx(value / np.hypot(1, value), rel=1e-14, abs=1e-15)
    assert curvature.item() == pytest.approx((1 + value**2) ** -1.5, rel=1e-12)
    # Newton's step
    assert value - slope.item() / curvature.item() == pytest.approx(-(value**3), rel=1e-9, abs=1e-15)


def test_sqrt_one_plus_takes_a_vector_as_one_sample() -> None:
    assert toy.sqrt_one_plus(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist() == [26**0.5]


def test_stochastic_quadratic_pulls_to_the_batch_mean() -> None:
    theta, x = random(3), random(5, 3, seed=1)
    losses = toy.stochastic_quadratic(theta, x)
    assert losses.tolist() == pytest.approx([0.5 * float(((theta - s) ** 2).sum()) for s in x])
    gradient, hessian = derivatives(lambda t: toy.stochastic_quadratic(t, x), theta)
    torch.testing.assert_close(gradient, theta - x.mean(0))
    torch.testing.assert_close(hessian, torch.eye(3, dtype=torch.float64))


def test_stochastic_quadratic_refuses_samples_of_another_shape() -> None:
    with pytest.raises(InvalidInput, match="shaped like theta"):
        toy.stochastic_quadratic(random(3), random(5, 2))


def test_quadratic_has_its_matrices_as_hessians() -> None:
    theta, b = random(4), random(3, 4, seed=1)
    A = torch.stack([toy.with_spectrum([-1, 0, 2, 5], torch.Generator().manual_seed(s)) for s in range(3)])
    losses = toy.quadratic(theta, A, b)
    assert losses.tolist() == pytest.approx(
        [0.5 * float(theta @ M @ theta) - float(v @ theta) for M, v in zip(A, b, strict=True)]
    )
    gradient, hessian = derivatives(lambda t: toy.quadratic(t, A, b), theta)
    torch.testing.assert_close(gradient, (A @ theta - b).mean(0))
    torch.testing.assert_close(hessian, A.mean(0))
    torch.testing.assert_close(toy.quadratic(theta, A[1], b[1]), losses[1:2])  # a batch of one


def test_quadratic_refuses_what_does_not_fit() -> None:
    with pytest.raises(InvalidInput, match="give"):
        toy.quadratic(random(3), random(2, 4, 4), random(2, 4))
    with pytest.raises(InvalidInput, match="give"):
        toy.quadratic(random(4), random(2, 4, 4), random(4))


def test_linear_has_no_curvature() -> None:
    theta, slopes = random(4), random(3, 4, seed=1)
    assert toy.linear(theta, slopes).tolist() == pytest.approx([float(a @ theta) for a in slopes])
    # the Hessian of a function without a second derivative is zero, which autograd wants to be told
    gradient, hessian = derivatives(lambda t: toy.linear(t, slopes) + 0 * t.square().sum(), theta)
    torch.testing.assert_close(gradient, slopes.mean(0))
    assert hessian.abs().max() == 0


@pytest.mark.parametrize("values", [[2.0], [1, 1, 1], [-3, 0, 0.5, 100]])
def test_with_spectrum_has_exactly_these_eigenvalues(values: list[float]) -> None:
    A = toy.with_spectrum(values, torch.Generator().manual_seed(3))
    assert A.dtype == torch.float64 and torch.equal(A, A.T)
    np.testing.assert_allclose(np.linalg.eigvalsh(A.numpy()), sorted(values), rtol=0, atol=1e-12)


def test_with_spectrum_depends_on_its_generator_alone() -> None:
    first, again, other = (toy.with_spectrum([1, 2, 3], torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
