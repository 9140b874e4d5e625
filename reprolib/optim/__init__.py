"""The papers' optimizers. All take ``step(closure, loss)``; see :class:`RED`."""

from reprolib.optim.adler import Adler
from reprolib.optim.curveball import CurveBall
from reprolib.optim.newtoncg import NewtonCG
from reprolib.optim.newtonsummary import NewtonSummary, plateau_schedule
from reprolib.optim.red import RED, ran_schedule, red_schedule

__all__ = ["RED", "Adler", "CurveBall", "NewtonCG", "NewtonSummary", "plateau_schedule", "ran_schedule", "red_schedule"]
