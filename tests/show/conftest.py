"""Figures of the tests are drawn on no screen and do not outlive their test."""

from __future__ import annotations

import matplotlib as mpl
import pytest

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _figures():
    import matplotlib.pyplot as plt

    from reprolib.show.style import use_style

    with mpl.rc_context():
        use_style()
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()  # what is drawn can be drawn
        plt.close("all")
