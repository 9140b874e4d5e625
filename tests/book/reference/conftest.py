"""What nbval does not compare: pictures, and the values that the prose quotes (``test_numbers.py`` has their tolerances)."""

from __future__ import annotations

from typing import Any

SKIP = ("image/png", "image/svg+xml", "image/jpeg", "text/html", "application/papermill.record/text/plain", "stderr")


def pytest_collectstart(collector: Any) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIP
