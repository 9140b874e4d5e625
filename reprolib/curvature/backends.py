"""Which backend answers what, and how well.

``ANSWERS[backend][question]`` is ``"exact"`` (to rounding), ``"approximate"`` (difference quotients, with the errors stated in
``finitediff.py``) or ``"no"`` (refused with an exception, never a wrong number). ``tests/curvature/test_backends.py`` asks
every question of every backend and compares with independent values.
"""

from __future__ import annotations

QUESTIONS = (
    "per-sample curvature",
    "bilinear form",
    "Hessian product",
    "GGN product",
    "jvp",
    "vjp",
    "summary",
    "summary, third order",
    "through fused norms",
    "through fused attention",
    "per sample through batch-norm",
    "through an operation without forward derivative",
    "through a custom autograd function",
)

ANSWERS: dict[str, dict[str, str]] = {
    "tape": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "autodiff": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "complexstep": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "finitediff": dict.fromkeys(QUESTIONS, "approximate") | {"vjp": "exact"},
}
