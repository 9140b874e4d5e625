"""The papers' optimizers. All take ``step(closure, loss)``; see :class:`RED`."""

from reprolib.optim.red import RED, ran_schedule, red_schedule

__all__ = ["RED", "ran_schedule", "red_schedule"]
