"""RED on four tasks: the numbers of the chapter's prose, where its captions say to look, its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reprolib.records.record import REPORTED
from reprolib.records.verdict import by_claim, in_words
from reprolib.show import words
from reprolib.show.red.comparison import PAIRS, Comparison, short
from reprolib.show.red.seen import SAYS, seen
from reprolib.show.report import Rows
from reprolib.show.tables import claims, ranges, title


def numbers(c: Comparison, judged: Rows) -> dict[str, Any]:
    """What the prose quotes, by name; the verdict on a claim is under its id."""
    costs, searches, pairs = c.costs[list(PAIRS)], c.searches, len(c.means)
    told = c.telling()
    return {
        "pairs": pairs,
        "silent": pairs - len(told),
        "lower": c.lower(),
        "lower gradients": c.lower("gradients"),
        "ahead gradients": pairs - c.lower("gradients"),
        "untuned below": int((c.means["untuned"] < 1).sum()),
        "lower seconds": c.lower("seconds"),
        "close": int(((c.means["epoch"] - 1).abs() < 0.02).sum()),
        "best": float(c.means["epoch"].min()),
        "worst": float(c.means["epoch"].max()),
        "worst gradients": float(c.means["gradients"].max()),
        "cost low": float(costs.to_numpy().min()),
        "cost high": float(costs.to_numpy().max()),
        "products low": float(c.costs["products"].min()),
        "products high": float(c.costs["products"].max()),
        "trials": int(searches["trials"].sum()),
        "lost trials": int(searches["diverged or failed"].sum()),
        "search low": float(searches["cost"].min()),
        "search high": float(searches["cost"].max()),
        "test below": int((c.test_ratios < 1).sum()),
        "ahead test": int((c.test_ratios > 1).sum()),
        "test worst": float(c.test_ratios.max()),
        "test peak": c.peak("cifar100"),
        "begun": words.listed(map(title, c.hardly_begun)) if c.hardly_begun else "none of the classifiers",
        "scales": words.listed(dict.fromkeys(record.scale for record in c.records.values())),
        **{f"seen {claim}": sentence for claim, sentence in seen(c).items() if claim in ("red-c01", "red-tab3-time")},
    } | {claim: in_words(verdicts) for claim, verdicts in by_claim(judged).items() if claim in SAYS}


def looks(c: Comparison) -> dict[str, str]:
    """Where to look in each figure: the first sentence of its caption."""
    m, costs = c.means, c.costs
    turned = (m["gradients"] / m["epoch"]).idxmax()
    lowest, highest = m["epoch"].idxmin(), m["epoch"].idxmax()
    dear = costs[list(PAIRS)].max(axis=1).idxmax()
    narrow = (c.searches["good"] / c.searches["rates"]).idxmin()
    far = m["epoch"].index[
        pd.Series(c.longer(0.5), c.ratios.index).groupby(["task", "method"], sort=False).mean().argmax()
    ]
    at = c.searches.loc[narrow]
    return {
        "look ratios": f"Compare left with right: {_who(turned)} goes from {m['epoch'][turned]:.2f} to {m['gradients'][turned]:.2f}.",
        "look losses": f"Look at where the lines end: lowest beside its baseline is {_who(lowest)}, highest {_who(highest)}.",
        "look steps": f"Look at the distance from solid to dashed: nobody chose the solid lines. It is largest for {_who(far)}.",
        "look test": (
            f"Look at {title(c.task_of('cifar100'))}: in the second half of training RED's test loss still reaches "
            f"{c.peak('cifar100'):.1f} times the tuned baseline's."
        ),
        "look tuning": (
            f"Look at how narrow the valleys are: for {short(narrow[1])} on {title(narrow[0])} "
            f"{words.counted(int(at['good']), 'rate')} of {words.number(int(at['rates']))} will do."
        ),
        "look price": f"Look at {title(dear)}, the dearest: {costs.loc[dear, list(PAIRS)].max():.2f} by the clock.",
    }


def standing(c: Comparison, judged: Rows) -> pd.DataFrame:
    """Each claim about the four tasks: verdict, what the paper says, what was seen."""
    return claims(judged, SAYS, seen(c))


def settings(c: Comparison, paper: Mapping[str, Any]) -> pd.DataFrame:
    """The size of each column beside the paper's: images, batch, epochs, rates tried, decays tried, epochs of a trial."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, column in c.tasks.items():
        record, theirs, note = c.records[name], paper[column], c.notes[name, "sgd"]
        here = next(r["specification"] for r in record.runs.values() if r["role"] == REPORTED)
        rows[column, "paper"] = {
            "task": title(theirs.task),
            "images": theirs.train_size or "all",
            "batch": theirs.batch_size,
            "epochs": theirs.epochs,
            "rates": len(theirs.steps),
            "decays": len(theirs.decays),
            "epochs of a trial": theirs.tuning_epochs,
        }
        rows[column, record.scale] = {
            "task": title(name),
            "images": here["train_size"] or "all",
            "batch": here["batch_size"],
            "epochs": here["epochs"],
            "rates": int(c.searches.loc[(name, "sgd"), "rates"]),
            "decays": len({row["decay"] for row in note["grid"]}),
            "epochs of a trial": note["grid"][0]["epochs"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["column", "scale"])


def ends(c: Comparison) -> pd.DataFrame:
    """Where every method ends on every task: mean and range over the seeds, with the baselines that nobody tuned."""
    shown = {"loss": "training loss", "test_loss": "test loss", "test_accuracy": "test accuracy", "step": "last step"}
    rate = {m: f"{short(m)}, rate {lr:g}" for m, lr in c.untuned_rates.items()}
    names = {m: short(m) for m in PAIRS} | {b: f"{short(b)}, tuned" for b in PAIRS.values()}
    both = pd.concat([c.final.reset_index().assign(method=lambda t: t["method"].map(names)),
                      c.untuned.reset_index().assign(method=lambda t: t["method"].map(rate))])  # fmt: skip
    both["task"] = pd.Categorical(both["task"].map(title), [title(name) for name in c.tasks])
    return ranges(both.sort_values(["task", "method"]).astype({"task": str}), ["task", "method"], shown)


def equal_price(c: Comparison) -> pd.DataFrame:
    """RED's training loss over the tuned baseline's at equal epochs, gradients and seconds: mean and range."""
    names = {"epoch": "equal epochs", "gradients": "equal gradients", "seconds": "equal seconds"}
    rows = c.ratios.reset_index()
    rows["task"], rows["method"] = rows["task"].map(title), rows["method"].map(short)
    return ranges(rows, ["task", "method"], names, "{:.2f}")


def _who(key: tuple[str, str]) -> str:
    return f"{short(key[1])} on {title(key[0])}"
