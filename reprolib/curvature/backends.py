"""The backends: which module computes derivatives, what it answers, and how well.

Each is a module with the functions of :class:`~reprolib.curvature.network.Backend`; ``autodiff.py`` is the shortest.

``ANSWERS[backend][question]`` is ``"exact"`` (to rounding), ``"approximate"`` (difference quotients, with the errors stated in
``finitediff.py``) or ``"no"`` (refused with an exception, never a wrong number). ``tests/curvature/test_backends.py`` asks
every question of every backend and compares with independent values.
"""

from __future__ import annotations

from reprolib.curvature import autodiff, finitediff, reverse
from reprolib.curvature.complex import backend as complexstep
from reprolib.curvature.network import Backend
from reprolib.curvature.tape import backend as tape

BACKENDS: dict[str, Backend] = {
    "autodiff": autodiff,
    "complexstep": complexstep,
    "finitediff": finitediff,
    "reverse": reverse,
    "tape": tape,
}

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
    "tape": dict.fromkeys(QUESTIONS, "exact"),
    "reverse": dict.fromkeys(QUESTIONS, "exact"),
    "autodiff": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "complexstep": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "finitediff": dict.fromkeys(QUESTIONS, "approximate") | {"vjp": "exact"},
}
