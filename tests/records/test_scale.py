"""The scales are one list, and cost nothing to look at."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reprolib.book import execute, layout
from reprolib.errors import UnknownName
from reprolib.records import Record, record, scale


def test_there_is_one_list_of_scales():
    assert scale.SCALES == ("smoke", "desk", "night", "paper")
    assert tuple(scale.CONCLUSIVE) == scale.SCALES[1:]
    assert record.SCALES is execute.SCALES is scale.SCALES
    assert not hasattr(layout, "SCALES")
    for name in scale.SCALES:
        assert scale.check_scale(name) == name
    with pytest.raises(UnknownName, match=r"unknown scale 'nite': use one of .*did you mean 'night'"):
        scale.check_scale("nite")


def test_the_largest_record_is_the_default_and_night_lies_below_paper(tmp_path):
    import pandas as pd

    for name in ("desk", "paper", "night"):
        Record("red/some", name, pd.DataFrame({"key": [], "seconds": []}), {}, {}).save(tmp_path)
        assert Record.load("red/some", None, tmp_path).scale == ("desk" if name == "desk" else "paper")
    assert [name for _, name in record.published(tmp_path)] == ["desk", "night", "paper"]


def test_scales_verdicts_and_claims_need_neither_pytorch_nor_pandas():
    code = (
        "import reprolib.records.claims, reprolib.records.scale, reprolib.records.verdict, sys; "
        "print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Recrod'"):
        import reprolib.records

        reprolib.records.Recrod
