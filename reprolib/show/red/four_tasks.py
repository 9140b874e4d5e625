"""RED on four tasks: the pictures of the chapter. A title says what its picture shows, with the numbers of the record."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

from reprolib.show import words
from reprolib.show.curves import NAMES, Line, curves
from reprolib.show.panel import few_ticks, label, legend, level, name_rows, sheet, ticks
from reprolib.show.points import dots, seeds
from reprolib.show.red.comparison import PAIRS, Comparison, short
from reprolib.show.search import chosen, search
from reprolib.show.style import INK, NEUTRAL, colour
from reprolib.show.tables import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMIT = 2.0  # times the tuned baseline's loss: RED counts as competitive (claim red-c01)
EDGES = (0.15, 6.0)  # of the ratios that are drawn
MARKERS = {"red-sgd": "o", "red-rmsprop": "s"}
LINES = [  # what was tuned is dashed
    Line(name, short(name), style={"ls": "-" if name in PAIRS else "--"})
    for pair in PAIRS.items()
    for name in pair[::-1]
]
PAPER = {"mnist": 1.43, "cifar10": 1.84, "cifar100": 1.79, "autoencoder": 1.12}  # Table 3: RED-SGD's seconds over SGD's


def ratios(c: Comparison) -> Figure:
    """RED's training loss over the tuned baseline's at equal epochs and at equal gradients, a mark a seed."""
    equal, all_ = {unit: words.number(c.lower(unit)) for unit in ("epoch", "gradients")}, words.number(len(c.means))
    said = f"At equal epochs untuned RED is below the tuned baseline in {equal['epoch']} of {all_} comparisons, "
    figure, axes = sheet(
        2, title=said + f"at equal gradients in {equal['gradients']}", height=3.7, sharex=True, sharey=True
    )
    for ax, unit in zip(axes, equal, strict=True):
        name_rows(ax, [fill(title(name), 16) for name in c.tasks])
        for row, name in enumerate(c.tasks):
            _ratios_of(ax, c, name, row, unit)
        level(ax, 1.0, axis="x")
        level(ax, LIMIT, axis="x", ls=":")
        label(ax, f"at equal {unit.removesuffix('s')}s", x="training loss / that of the tuned baseline")
        ax.set(xscale="log", xlim=EDGES)
        ticks(ax, [0.2, 0.5, 1, 2, 5])
    axes[0].plot([], [], "|", ms=13, color=NEUTRAL, label="untrained network")
    legend(figure)
    return figure


def _ratios_of(ax: Axes, c: Comparison, name: str, row: int, unit: str) -> None:
    """The marks of a task; at equal epochs also of untuned baselines, and of untrained networks where they are near."""
    for shift, (red, baseline) in zip((-0.2, 0.2), PAIRS.items(), strict=True):
        mine, first = c.pair(name, red), row == 0  # the first row names what all have
        look = {"color": colour(red), "marker": MARKERS[red], "alpha": 0.85, "zorder": 3}
        seeds(ax, row + shift - 0.06, mine[unit], EDGES, label=short(red) if first else None, **look)
        if unit == "epoch":
            rate = f"{short(baseline)}, rate {c.untuned_rates[baseline]:g}"
            look = {"color": colour(baseline), "marker": "x", "mew": 1.6}
            seeds(ax, row + shift + 0.12, mine["untuned"], EDGES, label=rate if first else None, **look)
            if (mine["untrained"] <= EDGES[1]).all():
                seeds(ax, row + shift + 0.03, mine["untrained"], EDGES, color=NEUTRAL, marker="|", ms=15)


def losses(c: Comparison) -> Figure:
    """Training loss of the four methods, a panel a task, with the loss of guessing."""
    ends = words.between(c.means["epoch"], "{:.2f}")
    figure = _panels(c, "loss", f"Untuned RED ends at {ends} times the training loss of its tuned baseline")
    for ax, name in zip(figure.axes, c.tasks, strict=True):
        guess = c.guessing(name)
        if guess and guess < 1.3 * ax.get_ylim()[1]:  # a line far above would flatten the curves
            level(ax, guess, "guessing")
    return figure


def steps(c: Comparison) -> Figure:
    """The length that multiplies the direction, a panel a task."""
    longer = words.between(c.longer(0.5))
    return _panels(c, "step", f"Half way through, RED's step is {longer} times the one that tuning chose")


def test(c: Comparison) -> Figure:
    """Test loss of the four methods, a panel a task."""
    over = c.test_ratios
    (name, red), below = over.idxmax(), words.number(int((over < 1).sum()))
    said = f"On test images RED ends below its tuned baseline in {below} of {words.number(len(over))} comparisons, "
    said += f"and at up to {over.max():.2f} times its loss ({short(red)}, {title(name)})"
    return _panels(c, "test_loss", said)


def tuning(c: Comparison) -> Figure:
    """What the search for the baselines' rate saw, a panel a task; RED's loss after as many epochs as a level."""
    share = words.between(100 * c.searches["good"] / c.searches["rates"], "{:.0f}")
    said = f"{share} % of the rates on a grid come half as far as its best one: finding those is what tuning costs"
    figure, axes = sheet(len(c.tasks), title=said, height=2.5)
    for ax, name in zip(axes, c.tasks, strict=True):
        top = 1.1 * max(c.begun(name, baseline) for baseline in PAIRS.values())
        lowest = []
        for red, baseline in PAIRS.items():
            note = c.notes[name, baseline]
            search(ax, note, color=colour(baseline), label=f"{short(baseline)}, the search", top=top)
            ended = c.after(name, red, note["grid"][0]["epochs"])
            level(ax, ended, color=colour(red), ls=":").set(label=f"{short(red)}, one run", lw=1.8)
            lowest += [ended, chosen(note)["train_loss"]]
        label(ax, title(name), ylim=(0.93 * min(lowest), top))
        few_ticks(ax)
    for ax in axes[-2:]:
        ax.set_xlabel("initial rate τ₀")
    for ax in axes[::2]:
        ax.set_ylabel("training loss")
    legend(figure)
    return figure


def price(c: Comparison) -> Figure:
    """What a step of RED costs in steps of its baseline: the clock, the matrix products, and the paper's clock."""
    costs = c.costs.assign(paper=[PAPER[column] for column in c.tasks.values()])
    costs.index = [title(name) for name in costs.index]
    longer = words.between(costs[list(PAIRS)].to_numpy().ravel(), "{:.1f}")
    figure, (ax,) = sheet(1, title=f"A step of RED takes {longer} times as long as one of its baseline", height=2.6)
    styles: dict[str, dict[str, Any]] = {
        red: {"label": f"{short(red)} / {short(b)}, seconds", "color": colour(red), "marker": MARKERS[red]}
        for red, b in PAIRS.items()
    }
    styles["products"] = {"label": "matrix products", "color": INK, "marker": "|", "ms": 13, "mew": 2}
    styles["paper"] = {"label": "RED-SGD / SGD, the paper's seconds", "color": NEUTRAL, "marker": "x", "mew": 1.6}
    dots(ax, costs[list(styles)], styles)
    level(ax, 1.0, axis="x")
    label(ax, x="cost of a step / that of a step of the baseline", xlim=(0.9, None))
    legend(figure)
    return figure


def _panels(c: Comparison, y: str, said: str) -> Figure:
    """Column ``y`` of all methods, a panel a task."""
    return curves({title(name): c.of(name) for name in c.tasks}, {y: NAMES[y]}, title=said, lines=LINES)
