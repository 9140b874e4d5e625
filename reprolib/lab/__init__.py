"""Runs, records and figures: what was tried, and what came out."""

from reprolib.lab.execute import execute
from reprolib.lab.record import Record
from reprolib.lab.run import Run
from reprolib.lab.train import History, train

__all__ = ["History", "Record", "Run", "execute", "train"]
