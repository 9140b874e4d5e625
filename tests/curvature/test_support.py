"""The table of supported operations in the book is the one that the tests find."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.curvature import support


@pytest.mark.kernels
def test_the_published_table_is_that_of_the_tests():
    published = pd.read_csv(support.TABLE, keep_default_na=False)
    pd.testing.assert_frame_equal(published, support.table())
