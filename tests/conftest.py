"""Shared by all tests: their markers, and how thoroughly properties are tried."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "claim(id, file, old, new): the test of a claim; `old` -> `new` in reprolib/`file` must turn it red (tests/mutants.py)",
    )
    config.addinivalue_line(
        "markers",
        "kernels: compares numbers that may depend on the processor; `make test-kernels` runs it with other instructions",
    )
    config.addinivalue_line(
        "markers", "mutant(name, file, old, new): the same for a case of a test that stands for no claim"
    )
    try:
        from hypothesis import settings
    except ImportError:
        return
    settings.register_profile("default", deadline=None, derandomize=True, max_examples=100)
    settings.register_profile("deep", deadline=None, max_examples=10_000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
