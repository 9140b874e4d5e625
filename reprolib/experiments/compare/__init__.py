"""Experiments that compare the methods of several papers."""
