"""Which operations the tape can carry, read off what the rule tests record (``make references`` writes the table)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from reprolib.curvature import expand
from reprolib.curvature.tape.samples import nowhere
from tests.curvature.test_rules import OPERATIONS, point

TABLE = Path(__file__).resolve().parents[2] / "book" / "records" / "operations.csv"


def table() -> pd.DataFrame:
    """One row per operation that the tests of the rules meet."""
    rows: dict[str, dict[str, str]] = {}
    for test, f in OPERATIONS.items():
        x, _ = point()
        batch = len(f(x)) if f(x).dim() else 1
        model = expand(lambda f=f, x=x, n=batch: f(x).reshape(n, -1), lambda o: o.square().sum(1), [x], retain=True)
        for node in model._net.recording.nodes:
            row = rows.setdefault(node.name.strip("_"), {"second derivative": "", "samples": "", "tested in": test})
            if node.rule is None:
                row["second derivative"] = row["second derivative"] or "nested forward mode of the operation"
                row["samples"] = row["samples"] or "carried on"
                continue
            row["second derivative"] = (
                "affine"
                if node.rule.many
                else "bilinear"
                if node.rule.bilinear
                else "elementwise"
                if node.rule.derivatives
                else "rule"
            )
            row["samples"] = "carried on" if node.rule.samples is nowhere else "followed"
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("operation").reset_index()
    return frame.sort_values(["second derivative", "operation"], ignore_index=True)


if __name__ == "__main__":
    table().to_csv(TABLE, index=False)
