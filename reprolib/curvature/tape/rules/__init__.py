"""The rules of the tape, a file a family; ``registry.py`` says what a rule is."""

from reprolib.curvature.tape.rules import (  # noqa: F401  # each registers its own
    arithmetic,
    attention,
    elementwise,
    layers,
    linalg,
    losses,
    norms,
    random,
    shapes,
    writes,
)
from reprolib.curvature.tape.rules.expanded import EXPANDED
from reprolib.curvature.tape.rules.registry import RULES, Rule

__all__ = ["EXPANDED", "RULES", "Rule"]
