"""How a run is trained: methods, plans, runs, their execution and their histories."""

from reprolib.lab.execute import execute
from reprolib.lab.run import Run
from reprolib.lab.train import History, train

__all__ = ["History", "Run", "execute", "train"]
