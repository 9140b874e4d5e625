"""Curvature of a loss along directions, exact, through user code as it is."""

from reprolib.curvature.model import LocalModel, Summary, expand

__all__ = ["LocalModel", "Summary", "expand"]
