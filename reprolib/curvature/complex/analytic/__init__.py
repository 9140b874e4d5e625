"""PyTorch's operations continued analytically, a file a family; ``registry.py`` says by which conventions."""

from reprolib.curvature.complex.analytic import (  # noqa: F401  # each registers its own
    attention,
    branches,
    conversions,
    elementwise,
    linear,
    losses,
    norms,
)
from reprolib.curvature.complex.analytic.registry import EXTENSIONS, call, real

__all__ = ["EXTENSIONS", "call", "real"]
