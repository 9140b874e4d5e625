"""The papers' optimizers, and what they compare with. All take ``step(closure, loss)``; see :class:`RED`."""

from reprolib.optim.adler import Adler
from reprolib.optim.curveball import CurveBall
from reprolib.optim.newtoncg import NewtonCG
from reprolib.optim.newtonsummary import NewtonSummary, plateau_schedule
from reprolib.optim.red import RED, ran_schedule, red_schedule
from reprolib.optim.steptuned import StepTunedSGD

__all__ = [
    "RED",
    "Adler",
    "CurveBall",
    "NewtonCG",
    "NewtonSummary",
    "StepTunedSGD",
    "plateau_schedule",
    "ran_schedule",
    "red_schedule",
]
