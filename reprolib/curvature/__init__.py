"""Curvature of a loss along directions, exact, through user code as it is."""

from reprolib.curvature.expansion import expand
from reprolib.curvature.model import LocalModel, Summary

__all__ = ["LocalModel", "Summary", "expand"]
