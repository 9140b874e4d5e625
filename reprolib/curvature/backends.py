"""The backends: which module computes derivatives, what it answers, and how well.

A backend has the functions ``run`` (the ordinary pass), ``gradient``, ``jvp``, ``second``, ``hvp`` and ``summary`` of a
:class:`~reprolib.curvature.network.Network`; ``autodiff.py``, the shortest, says what each returns.

``ANSWERS[backend][question]`` is ``"exact"`` (to rounding), ``"approximate"`` (difference quotients, with the errors stated in
``finitediff.py``) or ``"no"`` (refused with an exception, never a wrong number). ``tests/curvature/test_backends.py`` asks
every question of every backend and compares with independent values.
"""

from __future__ import annotations

from types import ModuleType

from reprolib.curvature import autodiff, finitediff
from reprolib.curvature.complex import backend as complexstep
from reprolib.curvature.tape import backend as tape

BACKENDS: dict[str, ModuleType] = {
    "autodiff": autodiff,
    "complexstep": complexstep,
    "finitediff": finitediff,
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
    "tape": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "autodiff": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "complexstep": dict.fromkeys(QUESTIONS[:-2], "exact") | dict.fromkeys(QUESTIONS[-2:], "no"),
    "finitediff": dict.fromkeys(QUESTIONS, "approximate") | {"vjp": "exact"},
}
