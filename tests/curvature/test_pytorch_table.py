"""PyTorch's own table of operations: no number is wrong, no error is another's, and the published table is kept true.

A tenth of the entries in every run, with one sample and two questions; all of it in `make test-deep`, with other samples, too.
"""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch

pytest.importorskip("expecttest", reason="PyTorch's table of operations needs expecttest")

from tests.curvature import pytorch_table as table

ENTRIES = {table.name_of(op): op for op in table.operations()}
PUBLISHED = pd.read_csv(table.TABLE.with_suffix(".csv"), keep_default_na=False).set_index("operation")
ABOUT = json.loads(table.TABLE.with_suffix(".json").read_text())
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
ONCE_WRONG = (
    "det", "logdet", "linalg.slogdet", "linalg.solve", "linalg.tensorsolve", "linalg.eigvalsh", "linalg.householder_product",
    "_native_batch_norm_legit", "_batch_norm_with_update", "linalg.lu", "lu_unpack", "nn.functional.cross_entropy",
    "nn.functional.normalize", "corrcoef", "nn.functional.glu", "nn.functional.huber_loss", "logcumsumexp",
)  # fmt: skip
CHOSEN = sorted(ENTRIES) if DEEP else sorted({*sorted(ENTRIES)[::10], *ONCE_WRONG} & ENTRIES.keys())
same_version = pytest.mark.skipif(
    torch.__version__.split("+")[0] != ABOUT["torch"].split("+")[0], reason="the published table is of another PyTorch"
)


def test_the_published_table_has_nothing_wrong_leaked_or_late():
    counts = PUBLISHED["is"].value_counts()
    assert not {"wrong", "leaked", "late"} & set(counts.index)
    assert counts["right"] >= 510
    assert (PUBLISHED["answered by"] == "reverse").sum() <= 40


@same_version
@pytest.mark.parametrize("name", CHOSEN)
def test_an_entry_is_what_is_published(name):
    found = table.entry(ENTRIES[name], questions=("curvature", "bilinear form"), samples=1)
    if found is None:
        return  # nothing of its first sample can be differentiated
    allowed = {PUBLISHED.loc[name, "is"], "right", "unknown"}  # of its first sample PyTorch itself may know nothing
    assert found["is"] in allowed, found["note"]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", sorted(ENTRIES) if DEEP else [])
def test_no_entry_is_ever_wrong(name, seed):
    found = table.entry(ENTRIES[name], samples=8, seed=seed)
    assert found is None or found["is"] in ("right", "refused", "unknown"), found["note"]
