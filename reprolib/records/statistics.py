"""Centre and spread over seeds, defined once; each caption names what its figure shows (``.words``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

Statistic = str | Callable[[pd.Series], float]


@dataclass(frozen=True)
class Spread:
    """A centre and the two ends of a band, as pandas aggregates them."""

    words: str
    centre: Statistic
    low: Statistic
    high: Statistic

    def over(self, table: pd.DataFrame, y: str, by: str | list[str]) -> pd.DataFrame:
        """``centre``, ``low``, ``high`` and ``n`` of column ``y`` in each group, missing values left out.

        >>> table = pd.DataFrame({"method": ["a"] * 3, "loss": [1.0, 2.0, 6.0]})
        >>> MEAN.over(table, "loss", "method").loc["a"].tolist()
        [3.0, 1.0, 6.0, 3.0]
        >>> MEDIAN.over(table, "loss", "method").loc["a"].tolist()
        [2.0, 1.5, 4.0, 3.0]
        """
        groups = table.dropna(subset=[y]).groupby(by)[y]
        return groups.agg(centre=self.centre, low=self.low, high=self.high, n="count")


MEAN = Spread("mean and minimum–maximum band", "mean", "min", "max")  # RED's figures
MEDIAN = Spread(
    "median and quartiles", "median", partial(pd.Series.quantile, q=0.25), partial(pd.Series.quantile, q=0.75)
)
