"""What the records of the four tasks show where a verdict is not simply *reproduced*: a sentence a claim."""

from __future__ import annotations

import numpy as np

from reprolib.show import words
from reprolib.show.red.comparison import PAIRS, Comparison, short
from reprolib.show.search import trials
from reprolib.show.tables import title

SAYS = {
    "red-c01": "RED, untuned, is competitive in training loss on every task",
    "red-c02": "RED's step warms up by itself",
    "red-c03": "on CIFAR-100 and the autoencoder tuned steps are a tenth of RED's, and larger ones diverge",
    "red-c04": "on CIFAR the test loss rises early, more so with RED",
    "red-c05": "tuned RMSProp generalises worse than SGD on CIFAR-100, RED-RMSProp does not",
    "red-c06": "one configuration for all tasks",
    "red-c28": "RED's step grows while the losses fall",
    "red-fig2": "Figure 2: four columns, four methods in each",
    "red-tab3-time": "Table 3: an epoch of RED takes 1.1 to 1.4 times as long as the baseline's on dense tasks, 1.8 times on convolutional ones",
}


def seen(c: Comparison) -> dict[str, str]:
    """A sentence with the numbers that decide each claim about the four tasks."""
    return {
        "red-c01": competitive(c),
        "red-c02": warm_up(c),
        "red-c03": smaller(c),
        "red-c04": overfitting(c),
        "red-c05": generalisation(c),
        "red-tab3-time": affordable(c),
    }


def competitive(c: Comparison) -> str:
    """Claim red-c01: where the criterion could fail at all, and where RED meets it."""
    told = c.telling()
    silent = [key for key in c.means.index if key not in told]
    highest = c.ratios.groupby(["task", "method"], sort=False)["epoch"].max()
    met = sum(highest[key] <= 2 for key in told)
    said = f"{words.number(met).capitalize()} of {words.counted(len(told), 'comparison')} that could fail hold in every seed."
    if silent:
        by_task: dict[str, list[str]] = {}
        for name, red in silent:
            by_task.setdefault(name, []).append(short(red))
        where = "; ".join(f"{words.listed(labels)} on {title(name)}" for name, labels in by_task.items())
        said += f" In the others an untrained network has at most twice the loss, too: {where}."
    return said


def warm_up(c: Comparison) -> str:
    """Claim red-c02: by which factor the step changes after the first epoch, on the classifiers."""
    found = []
    for name in c.tasks:
        if c.guessing(name) is None:
            continue
        for red in PAIRS:
            late = [c.at(name, red, s, 0.25) / c.at(name, red, s, 1 / c.epochs(name)) for s in _seeds(c, name, red)]
            found.append(f"{np.mean(late):.2f} ({short(red)} on {title(name)})")
    return f"From the end of the first epoch to a quarter of training the step changes by {words.listed(found)}; 1.5 is asked for."


def smaller(c: Comparison) -> str:
    """Claim red-c03: how much longer RED's steps are, and what the grid's next larger rate does."""
    found = []
    for name, fraction in ((c.task_of("autoencoder"), 0.02), (c.task_of("cifar100"), 1 / 16)):
        for red, baseline in PAIRS.items():
            longer = [c.at(name, red, s, fraction) / c.at(name, baseline, s, fraction) for s in _seeds(c, name, red)]
            found.append(f"{words.between(longer)} times that of {short(baseline)} on {title(name)}")
    edges = []
    for baseline in PAIRS.values():
        note = c.notes[c.task_of("cifar100"), baseline]
        rows = trials(note)
        above = rows[rows["lr"] > 1.0001 * note["options"]["lr"]]
        next_up = above[above["lr"] == above["lr"].min()]
        lost = int((next_up["status"] != "finished").sum())
        edges.append(
            f"{words.number(lost) if lost else 'none'} of {words.counted(len(next_up), 'trial')} with the next larger rate of {short(baseline)}"
        )
    return f"RED's step is {words.listed(found)}; 5 is asked for. On CIFAR-100 {words.listed(edges)} diverged."


def overfitting(c: Comparison) -> str:
    """Claim red-c04: when the test loss is lowest, and where it ends beside the baseline's."""
    found = []
    for name in (c.task_of("cifar10"), c.task_of("cifar100")):
        final = c.final["test_loss"][name]
        for red, baseline in PAIRS.items():
            runs = [c.runs[name, red, s] for s in _seeds(c, name, red)]
            lowest = [float(run.loc[run["test_loss"].idxmin(), "epoch"]) for run in runs]
            over = final[red].mean() / final[baseline].mean()
            at = words.between(lowest, "{:.0f}")
            found.append(
                f"{short(red)} on {title(name)}: lowest in epoch {at} of {c.epochs(name)}, in the end {over:.2f} times the baseline's"
            )
    return f"Test loss of {'; '.join(found)}."


def generalisation(c: Comparison) -> str:
    """Claim red-c05: the order of the test accuracies on CIFAR-100."""
    name = c.task_of("cifar100")
    accuracy = 100 * c.final["test_accuracy"][name].groupby("method").mean()
    tuned, red = accuracy["rmsprop"] - accuracy["sgd"], accuracy["red-rmsprop"] - accuracy["rmsprop"]
    return (
        f"Tuned RMSProp ends {_gap(tuned)} tuned SGD in test accuracy, and RED-RMSProp {_gap(red)} tuned RMSProp, "
        f"while the training loss is still {c.final['loss'][name].min():.1f} at best."
    )


def affordable(c: Comparison) -> str:
    """Claim red-tab3-time: the highest ratios, and whether dense tasks are the cheaper ones."""
    costs = c.costs[list(PAIRS)]
    dense = [name for name, column in c.tasks.items() if column in ("mnist", "autoencoder")]
    highest, lowest = costs.loc[dense].to_numpy().max(), costs.drop(index=dense).to_numpy().min()
    return (
        f"In seconds a step costs {words.between(costs.to_numpy().ravel(), '{:.2f}')} steps of the baseline. "
        f"The dearest dense case costs {highest:.2f}, the cheapest convolutional one {lowest:.2f}; "
        f"in the paper dense tasks are the cheap ones."
    )


def _gap(points: float) -> str:
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _seeds(c: Comparison, name: str, method: str) -> list[int]:
    return list(c.final.loc[(name, method)].index)
