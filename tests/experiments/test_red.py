"""RED's experiments: their lists of runs, what they compute from histories, and the claims that need no training."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from reprolib.curvature import expand
from reprolib.experiments import conduct, experiments, module, verdicts_of
from reprolib.experiments.column import Column
from reprolib.experiments.package import portable
from reprolib.experiments.red import (
    annealing as red_annealing,
)
from reprolib.experiments.red import (
    averaging as red_averaging,
)
from reprolib.experiments.red import (
    batches as red_batches,
)
from reprolib.experiments.red import (
    beyond as red_beyond,
)
from reprolib.experiments.red import (
    cifar100 as red_cifar100,
)
from reprolib.experiments.red import (
    comparison as red_comparison,
)
from reprolib.experiments.red import (
    hyperconvergence as red_hyperconvergence,
)
from reprolib.experiments.red import (
    momentum as red_momentum,
)
from reprolib.experiments.red import (
    protocol as red_protocol,
)
from reprolib.experiments.red import (
    regularisation as red_regularisation,
)
from reprolib.experiments.red.protocol import COLUMNS, SEEDS, Figures
from reprolib.lab import Run, execute, train
from reprolib.lab.plan import follow, outstanding
from reprolib.lab.store import Store
from reprolib.lab.train import History, Training
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record
from reprolib.tasks import task

RED = sorted(name for name in experiments() if name.startswith("red/"))


def pretended(runs):
    """Histories without training: a loss that depends on the run alone, two epoch ends."""
    out = []
    for r in runs:
        loss = 1.0 + int(r.key[:4], 16) / 2**16
        rows = pd.DataFrame(
            {
                "epoch": [1.0, float(r.epochs)],
                "iteration": [1, 2],
                "loss": loss,
                "epoch_loss": [2 * loss, loss],
                "epoch_std": 0.1,
                "step": 0.1,
                "gradients": [1.0, 2.0],
                "seconds": [1.0, 2.0],
                "wall": [1.0, 2.0],
                "test_loss": [2 * loss, loss],
                "test_accuracy": 1 / loss,
                "descent": 1.0,
                "l2": 0.0,
            }
        )
        out.append(
            History(r, rows, [loss], environment={"date": "2000-01-01", "device": "cpu", "threads": 1, "commit": ""})
        )
    return out


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
@pytest.mark.parametrize("name", RED)
def test_every_plan_records_what_it_asks_for_and_keeps_the_test_set_out_of_tuning(name, scale):
    asked: list[Run] = []

    def execute(runs):
        asked.extend(runs)
        return pretended(runs)

    record = conduct(name, scale, execute)
    assert set(record.runs) == {run.key for run in asked}
    for run in asked:
        role = record.runs[run.key]["role"]
        assert (role == TRIAL) == bool(run.held_out) == (run.seed not in SEEDS)
        if scale == "paper":
            assert run.train_size is None and run.test_size is None
    claims = [row["claim"] for row in verdicts_of(record)]
    assert claims or name.startswith("red/beyond-")
    assert all(row.keys() == {"claim", "statement", "task", "criterion", "verdict"} for row in verdicts_of(record))


def test_the_paper_scale_is_the_paper():
    """Appendix B: epochs, batches, grid, decays; and the networks by name."""
    paper = COLUMNS["paper"]
    assert {name: (c.epochs, c.batch_size) for name, c in paper.items() if name != "short autoencoder"} == {
        "mnist": (200, 256),
        "autoencoder": (500, 256),
        "cifar10": (500, 256),
        "cifar100": (500, 256),
    }
    assert paper["short autoencoder"] == paper["autoencoder"]
    assert (paper["cifar10"].task, paper["cifar100"].task) == ("cifar10-vgg11", "cifar100-vgg19")
    assert all(len(c.steps) == 14 for c in paper.values())
    assert paper["mnist"].decays == (0.97, 0.98, 0.99, 1.0)
    assert all(paper[name].decays == (0.99, 0.995, 1.0) for name in ("cifar10", "cifar100", "autoencoder"))
    assert (paper["mnist"].tuning_epochs, paper["cifar10"].tuning_epochs) == (40, 100)
    assert red_annealing.CYCLES["paper"] == (5, 13, 2)
    assert red_averaging.BETAS == (0.0, 0.5, 0.9, 0.99)
    assert red_batches.BATCHES == (4, 8, 16, 32, 64, 128, 256) and red_batches.SIZES["paper"]["cifar10"].epochs == 100
    assert red_momentum.BETA == 0.9 and pytest.approx((1.0, 0.1)) == red_momentum.ELLS
    assert red_regularisation.LAMBDAS == red_comparison.LAMBDAS == (1e-7, 1e-4)


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_figures_share_the_runs_that_they_have_in_common(scale):
    """RED on CIFAR-10 at its defaults is trained once for Figures 2, 3, 5, 8 and 9."""

    def keys(name):
        record = conduct(name, scale, pretended)
        return {k for k, r in record.runs.items() if r["specification"]["method"] == "red-sgd"}

    figure2 = keys("red/cifar10")
    assert len(figure2) == 3
    for name in ("red/averaging", "red/annealing-cifar10", "red/regularisation", "red/comparison-cifar10"):
        assert figure2 < keys(name)
    assert keys("red/cifar100") < keys("red/momentum")
    assert keys("red/cifar100") < keys("red/annealing-cifar100")


def test_what_can_be_done_now_does_not_depend_on_weights(tmp_path):
    known, missing = outstanding(module("red/annealing-cifar10").plan("smoke"), Store(tmp_path).read)
    assert not known and len(missing) == 4


# ---- annealing


def test_phases_and_changes():
    losses = [5.0, 4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 9.0, 4.0, 3.5]
    assert red_annealing.changes(losses, (2, 5, 1)) == [(1.0, -1.0), (0.5, -3.0), (2.0, 8.0), (1.0, -5.5)]
    assert red_annealing.changes([3.0, 2.0], (1, 1, 1)) == [(0.5, -1.0)]  # one epoch is no change
    assert [ell for _, _, ell in red_annealing.phases((5, 13, 2), 40)] == [1.0, 0.5, 2.0] * 2


def test_the_barrier_on_a_segment_in_closed_form():
    """Two ends of a linear classifier that differ in the sign of all weights: in the middle every class is equally likely."""
    run = Run.of(
        "red-sgd", task="digits-features-linear", seed=0, epochs=1, batch_size=64, dtype="float64", keeps_end=True
    )
    a = train(run)
    b = replace(a, end={name: -value for name, value in a.end.items()})
    found = red_annealing.segment(a, b)
    middle = found["loss"][red_annealing.POINTS // 2]
    assert middle == pytest.approx(math.log(10), abs=1e-6)
    ends = found["loss"][0], found["loss"][-1]
    assert ends[0] < math.log(10) < ends[1]
    assert found["barrier"] == pytest.approx(max(found["loss"]) / max(ends) - 1, abs=1e-5)
    same = red_annealing.segment(a, a)
    assert same["barrier"] == 0 and len(set(same["loss"])) == 1
    training = Training(run)
    training.problem.net.load_state_dict(a.end)
    p = training.problem
    few = p.losses(p.net(p.batches.x[:1000]), p.batches.x[:1000], p.batches.y[:1000]).mean()
    assert same["loss"][0] == pytest.approx(float(few.detach()), abs=1e-5)


def test_a_store_keeps_the_end_of_a_run_that_wants_it(tmp_path):
    fields = {"task": "digits-classifier", "seed": 0, "epochs": 1, "batch_size": 256, "options": {"lr": 0.1}}
    plain, kept = Run.of("sgd", **fields), Run.of("sgd", keeps_end=True, **fields)
    assert plain == kept and plain.key == kept.key
    (without,) = execute([plain], keep=tmp_path)
    assert without.end is None and Store(tmp_path).read(kept) is None  # so it is trained again, with its end
    (history,) = execute([kept], keep=tmp_path)
    again = Store(tmp_path).read(kept)
    assert history.end is not None and history.end.keys() == again.end.keys()
    assert all(torch.equal(history.end[name], again.end[name]) for name in again.end)
    assert Store(tmp_path).read(plain).end is None
    Store(tmp_path).end(kept).write_bytes(b"half a file")
    assert Store(tmp_path).read(kept) is None


def test_a_campaign_that_is_carried_leaves_out_weights():
    def carried(runs):
        return pretended([portable(run) for run in runs])

    _, notes = follow(red_annealing.annealing("smoke", "cifar10"), carried)
    assert notes["segments"] == []


# ---- what the verdicts look at


def record(name, rows, **more):
    """A record of made-up runs: (run, {column: values}); where they have one seed, there is a second like it."""
    histories = []
    if len({run.seed for run, _ in rows}) == 1:  # one seed is inconclusive
        rows = rows + [(replace(run, seed=run.seed + 1), columns) for run, columns in rows]
    for run, columns in rows:
        n = max(len(v) for v in columns.values())
        table = {"epoch": [float(i + 1) for i in range(n)], "iteration": list(range(1, n + 1)), "seconds": [1.0] * n}
        histories.append(History(run, pd.DataFrame(table | columns), [1.0], environment=ENVIRONMENT))
    return Record.of(name, "smoke", {REPORTED: histories, DEFAULT: [], TRIAL: []}, more)


ENVIRONMENT = {"date": "2000-01-01", "device": "cpu", "threads": 1, "commit": ""}


def of(record):
    """Verdicts by statement, but for those that say that a figure can be drawn."""
    return {row["statement"]: row["verdict"] for row in verdicts_of(record) if "-fig" not in row["claim"]}


def columns(loss, **more):
    return {
        "epoch_loss": loss,
        "loss": loss,
        "test_loss": loss,
        "test_accuracy": [1 / x for x in loss],
        "step": [0.1] * len(loss),
    } | more


@pytest.mark.parametrize("rises", [True, False])
def test_annealing_is_judged_by_its_phases(rises):
    column = COLUMNS["smoke"]["cifar10"]
    high = 3.0 if rises else 0.9
    rows = []
    for name in red_protocol.RED_METHODS:
        red = column.runs(name, [0, 1])
        ran = column.runs(name, [0, 1], {"schedule": "ran", "cycle": (2, 5, 1)})
        rows += [(r, columns([2.0, 1.5, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7])) for r in red]
        rows += [(r, columns([2.0, 1.8, 1.5, 1.3, 1.2, 1.1, 1.0, high])) for r in ran]
    barriers = [
        {"task": column.task, "method": name, "seed": s, "t": [0, 1], "loss": [1, 1], "barrier": 0.2 if rises else 0.05}
        for name in red_protocol.RED_METHODS
        for s in (0, 1)
    ]
    verdict = "reproduced" if rises else "not reproduced"
    found = of(record("red/annealing-cifar10", rows, segments=barriers))
    assert found["with RED-SGD hyperexploration raises the training loss"] == verdict
    assert found["with RED-SGD \u2113 = 1 does not raise the training loss"] == "reproduced"
    assert found["RED-SGD with and without annealing end in different basins"] == verdict
    left_open = "RED-RMSProp with and without annealing end in different basins"  # on CIFAR-10, the first column
    assert found[left_open] == "not testable here"


def test_averaging_is_judged_by_spikes_and_by_who_is_first():
    column = COLUMNS["smoke"]["cifar10"]
    rows = []
    for i, beta in enumerate(red_averaging.BETAS):
        options = {} if beta == 0.9 else {"beta3": beta}
        loss = [2.0, 1.0, 1.5, 0.9] if beta == 0 else [2.0, 1.8, 1.5, 1.0]
        rows += [(r, columns(loss, step=[0.5 - 0.1 * i] * 4)) for r in column.runs("red-sgd", [0, 1], options)]
    made = record("red/averaging", rows)
    assert set(of(made).values()) == {"reproduced"}
    table = red_averaging.summary(made)
    assert table.loc[(0.0, 0), "spike"] == pytest.approx(0.5)
    assert table.loc[(0.0, 0), "reached"] == 2 and table.loc[(0.9, 0), "reached"] == 4
    assert table.loc[(0.99, 1), "step"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([0.1, 0.12, 0.14], True), ([0.1, 0.12, 0.2], False), ([1.8, 1.9, 2.2], None), ([1.8, 1.9, 9.0], False)],
)
def test_final_losses_are_similar_only_where_guessing_is_not(losses, expected):
    assert red_averaging.similar(pd.Series(losses)) is expected


@pytest.mark.parametrize(
    ("plain", "memory", "expected"),
    [([0.1, 0.4], [0.31, 0.46], True), ([0.1, 0.4], [0.29, 0.46], False), ([0.5, 0.6], [0.1, 0.1], None)],
)
def test_only_what_was_lost_can_be_restored(plain, memory, expected):
    assert red_batches.restored(pd.Series(plain), pd.Series(memory), 0.5) is expected


@pytest.mark.parametrize(
    ("small", "remembered", "collapse", "repair"), [(0.2, 0.6, 1, 1), (0.6, 0.65, 0, 0), (0.2, 0.4, 1, 0)]
)
def test_batches_are_judged_against_the_number_of_classes(small, remembered, collapse, repair):
    rows = []
    for kind in ("", red_batches.MEMORY):
        for batch in (4, 16, 256):
            accuracy = 0.8 if batch > 4 else remembered if kind else small
            run = Run.of("red-sgd", task="digits-convnet" + kind, seed=0, epochs=2, batch_size=batch)
            rows.append((run, columns([1.0, 1.0], test_accuracy=[0.1, accuracy])))
    found = of(record("red/batches-cifar10", rows, classes={"digits-convnet": 10}))
    assert list(found.values()) == [("not reproduced", "reproduced")[x] for x in (collapse, repair)]


def test_hyperconvergence_is_judged_by_rows():
    rows = []
    for batch, spread, plain, gain in ((8, 0.3, 0.5, 0.05), (30, 0.2, 0.6, 0.001), (120, 0.1, 0.7, 0.0)):
        for kind, schedule in (
            ("", "constant"),
            (red_hyperconvergence.TRICKS, "constant"),
            (red_hyperconvergence.TRICKS, "cosine"),
        ):
            accuracy = plain + (gain if schedule == "cosine" else 0.001 if kind else 0.0)
            run = Run.of(
                "red-sgd",
                task="digits-features-linear" + kind,
                seed=0,
                epochs=1,
                batch_size=batch,
                options={"lr": 0.5, "schedule": schedule},
            )
            rows.append((run, columns([1.0], epoch_std=[spread], test_accuracy=[accuracy])))
    made = record("red/hyperconvergence", rows, classes=10, pretrained={"accuracy": 0.702})
    assert set(of(made).values()) == {"reproduced"}
    made.notes["pretrained"]["accuracy"] = 0.75
    assert of(made)["the largest batch reaches the pretrained accuracy"] == "not reproduced"


@pytest.mark.claim(
    "red-c11", file="experiments/red/hyperconvergence.py", old="range(1, classes + 1)", new="range(2, classes + 1)"
)
def test_the_coupon_number():
    """K (1 + \u00bd + \u2026 + 1/K): 7485.5 of 1000 classes, where 7.3K is printed (E-red-8); and as a simulation finds it."""
    assert red_hyperconvergence.draws(1000) == pytest.approx(7485.47, abs=0.005)
    assert abs(red_hyperconvergence.draws(1000) - 7300) > 180
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(4000):
        order = torch.randint(10, (400,), generator=generator).tolist()
        seen.append(max(order.index(k) for k in range(10)) + 1)
    mean, error = torch.tensor(seen).double().mean(), torch.tensor(seen).double().std() / len(seen) ** 0.5
    assert abs(float(mean) - red_hyperconvergence.draws(10)) < 4 * float(error)


def test_momentum_counts_torch_steps_as_ten():
    column = COLUMNS["smoke"]["cifar100"]
    rows = []
    for line in red_momentum.LINES:
        lr = {"lr": 0.1, "decay": 1.0, "weight_decay": 1e-7}
        share = [0.9, 0.9] if line.tuned == "momentum" else [0.7, 0.7]
        rows += [(r, columns([2.0, 1.0], descent=share)) for r in column.runs(line.tuned, [0], lr)]
        rows += [(r, columns([2.0, 1.0], descent=[1.0, 1.0])) for r in column.runs(line.red, [0])]
        high = columns([4.0, 4.0], descent=[0.5, 0.5], step=[101.0 * line.scale * 0.1] * 2)
        rows += [(r, high) for r in column.runs(line.red, [0], {"beta1": 0.9})]
        low = columns([2.0, 1.5], descent=[1.0, 1.0])
        rows += [(r, low) for r in column.runs(line.red, [0], {"beta1": 0.9, "lr": 1 - 0.9})]
    assert [line.scale for line in red_momentum.LINES] == pytest.approx([10.0, 1.0])
    assert set(of(record("red/momentum", rows)).values()) == {"reproduced"}


def test_regularisation_compares_losses_without_the_l2_term():
    column = COLUMNS["smoke"]["cifar10"]
    rows, notes = [], []
    for name in (*red_protocol.RED_METHODS, "sgd", "rmsprop"):
        for λ in red_regularisation.LAMBDAS:
            large = λ == red_regularisation.LARGE
            options = {} if not large else {"weight_decay": λ}
            lr = {"lr": 0.1 if large else 0.01, "decay": 1.0} if "red" not in name else {}
            # at the larger λ the whole loss is higher, the loss of the data is not
            loss = columns([2.0, 1.5, 1.2, 1.1], l2=[0.3 * large] * 4)
            if large:
                loss |= {"epoch_loss": [2.2, 1.7, 1.5, 1.3], "test_loss": [1.0, 1.0, 3.0, 1.0]}
            rows += [(r, loss) for r in column.runs(name, [0], lr | options)]
            notes += [{"method": name, "options": lr | options}] if lr else []
    found = list(of(record("red/regularisation", rows, tuning=notes)).values())
    assert found == ["not reproduced", "not reproduced", "inconclusive", "reproduced"]  # tuned with one seed


def test_comparison_has_four_panels():
    rows = []
    for name in ("cifar10", "short autoencoder"):
        column = COLUMNS["smoke"][name]
        for λ in red_comparison.LAMBDAS:
            decay = {} if λ == red_comparison.DEFAULT_LAMBDA else {"weight_decay": λ}
            accuracy = [0.5, 0.6, 0.7, 0.8] if name == "cifar10" else [math.nan] * 4
            red = columns([2.0, 1.5, 1.2, 1.1], test_accuracy=accuracy, test_loss=[2.0, 1.5, 1.2, 1.1])
            tuned = columns([2.0, 1.5, 1.2, 1.0], test_loss=[2.0, 1.5, 2.2, 1.2])
            tuned |= {"test_accuracy": [0.5, 0.6, 0.6, 0.6] if name == "cifar10" else accuracy}
            if name == "cifar10":  # it trains longer: halves are of each task
                red, tuned = ({k: v[:1] * 4 + v for k, v in values.items()} for values in (red, tuned))
            rows += [(r, red) for r in column.runs("red-sgd", [0], decay)]
            rows += [(r, tuned) for r in column.runs("step-tuned", [0], {"lr": 0.1, "weight_decay": λ})]
    found = [row["verdict"] for row in verdicts_of(record("red/comparison-cifar10", rows)) if row["claim"] == "red-c24"]
    assert found == ["reproduced"] * 12


def test_a_figure_with_a_run_that_ended_early_is_not_complete():
    run = Run.of("red-sgd", task="digits-classifier", seed=0, epochs=4, batch_size=256)
    made = record("red/mnist", [(run, columns([4.0, 3.0])), (replace(run, seed=1), columns([4.0, 3.0]))])
    assert [row["verdict"] for row in Figures(made).drawn("fig2")] == ["drawn"]
    made.runs[run.key]["status"] = "diverged"
    (row,) = Figures(made).drawn("fig2")
    assert (row["claim"], row["statement"], row["verdict"]) == ("red-fig2", "Figure 2", "drawn in part")


@pytest.mark.parametrize(
    ("untrained", "red", "expected"), [(9.0, 1.9, True), (9.0, 2.1, False), (1.9, 1.9, None), (1.9, 2.1, False)]
)
def test_who_learns_nothing_is_not_competitive(untrained, red, expected):
    def rows(value):
        of = {"task": "digits-classifier", "seed": 0, "epochs": 2, "batch_size": 256}
        pairs = [(name, value) for name in red_protocol.RED_METHODS] + [(name, 1.0) for name in red_protocol.BASELINES]
        return [(Run.of(name, **of), columns([value, value])) for name, value in pairs]

    made = record("red/mnist", rows(red))
    for run in made.runs.values():
        run["first_losses"] = [untrained]
    verdict = {True: "reproduced", False: "not reproduced", None: "not testable here"}[expected]
    assert {row["verdict"] for row in Figures(made).competitive("digits-classifier")} == {verdict}


def test_a_figure_with_a_curve_that_breaks_off_is_not_complete():
    run = Run.of("red-sgd", task="digits-classifier", seed=0, epochs=2, batch_size=256)
    whole = (run, columns([4.0, 3.0]))
    for column in ("step", "loss"):  # RED that finds no finite step any more finishes, and has not moved
        broken = columns([4.0, 3.0]) | {column: [1.0, math.nan]}
        (row,) = Figures(record("red/mnist", [whole, (replace(run, seed=1), broken)])).drawn("fig2")
        assert row["verdict"] == "drawn in part"


def test_an_epoch_is_affordable_up_to_a_factor():
    rows = []
    for factor, (red, baseline) in zip((2.2, 2.4), red_protocol.PAIRS, strict=True):
        for name, seconds in ((red, factor), (baseline, 1.0)):
            run = Run.of(
                name,
                task="digits-classifier",
                seed=0,
                epochs=4,
                batch_size=256,
                options={} if name == red else {"lr": 0.1},
            )
            rows.append((run, columns([4.0, 3.0], seconds=[seconds, 2 * seconds])))
    assert [row["verdict"] for row in Figures(record("red/mnist", rows)).affordable("digits-classifier")] == [
        "reproduced",
        "not reproduced",
    ]


def test_the_edge_of_the_grid():
    task = COLUMNS["smoke"]["cifar100"].task
    tried = [{"lr": lr, "status": status} for lr, status in ((0.1, "finished"), (1.0, "diverged"), (10.0, "finished"))]
    notes = {"tuning": [{"method": "sgd", "options": {"lr": 0.1}, "first_round": tried, "grid": tried[:1]}]}
    made = Record("red/cifar100", "smoke", pd.DataFrame(), {}, notes)
    assert red_cifar100._edge(made, task, "sgd")["verdict"] == "reproduced"
    notes["tuning"][0]["options"]["lr"] = 1.0
    assert red_cifar100._edge(made, task, "sgd")["verdict"] == "not reproduced"
    notes["tuning"][0]["options"]["lr"] = 10.0  # nothing is larger
    assert red_cifar100._edge(made, task, "sgd")["verdict"] == "not reproduced"


def test_figures_find_a_value_after_a_fraction_of_training():
    run = Run.of("red-sgd", task="digits-classifier", seed=0, epochs=4, batch_size=256)
    seen = Figures(record("red/mnist", [(run, columns([4.0, 3.0, 2.0, 1.0], step=[0.1, 0.2, 0.3, 0.4]))]))
    assert [seen.at(run.task, "red-sgd", 0, f) for f in (0.25, 0.5, 1.0)] == [0.1, 0.2, 0.4]
    assert seen.at(run.task, "red-sgd", 0, 0.1, "epoch_loss") == 4.0


def test_overfitting_is_three_statements():
    column = replace(COLUMNS["smoke"]["cifar10"], task="digits-classifier")
    early = [2.0, 0.5, *[0.45] * 18]
    rows = []
    for red, baseline in red_protocol.PAIRS:
        up = columns(early, test_loss=[2.0, 1.0, *[1.0 + 0.1 * i for i in range(1, 19)]])
        rows += [(r, up) for r in column.runs(red, [0])]
        rows += [(r, columns(early, test_loss=[1.0] * 20)) for r in column.runs(baseline, [0], {"lr": 0.1})]
    found = [row["verdict"] for row in Figures(record("red/cifar10", rows)).overfits("digits-classifier")]
    assert found == ["reproduced"] * 6


def test_a_column_translates_its_decay_and_limits_what_it_looks_at():
    column = Column("digits-classifier", 10, 64, decays=(0.9, 1.0), paper_epochs=100, train_size=500, test_size=40)
    assert column.decay(0.9) == pytest.approx(0.9**10)
    (run,) = column.runs("sgd", [3], {"lr": 0.1})
    assert (run.train_size, run.test_size, run.keeps_end) == (500, 40, False)
    other = replace(column, fields_of={"red-sgd": {"keeps_end": True}, "csdd": {"epochs": 2, "train_size": 100}})
    assert other.runs("red-sgd", [3])[0].keeps_end
    assert not other.runs("sgd", [3], {"lr": 0.1})[0].keeps_end
    assert [(r.epochs, r.train_size) for r in other.runs("csdd", [3])] == [(2, 100)]


def test_beyond_has_both_definitions_only_with_batch_norm():
    every = {"", "every 2", "every 5", "every 10"}
    expected = {"resnet18": every | {"by-index"}, "vit": every, "gpt": every}
    for name, column in red_beyond.SIZES["paper"].columns.items():
        assert {red_beyond.variant({"options": o}) for _, o in red_beyond.variants(name)} == expected[name]
        norms = [m for m in task(column.task).network().modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert bool(norms) == ("by-index" in expected[name])


# ---- kinks


@pytest.mark.claim(
    "red-c25",
    file="curvature/tape/rules/elementwise.py",
    old="return torch.sigmoid(-z), (beta, torch.sigmoid(z))",
    new="return torch.sigmoid(-z), None",
)
@pytest.mark.claim(
    "red-c25",
    file="curvature/tape/rules/elementwise.py",
    old="return (node.y > 0).to(node.y.dtype), None",
    new="return (node.y > 0).to(node.y.dtype), (1.0, (node.y > 0).to(node.y.dtype))",
)
@pytest.mark.parametrize("backend", ["tape", "autodiff"])
def test_curvature_at_a_point_misses_the_kinks_of_relu(backend):
    """\u03c6(t) = mean of max(0, t \u2212 k_s): its second difference over [\u2212h, h] is mean of (h \u2212 |k_s|)\u208a / h\u00b2, its second derivative 0.

    With softplus the second derivative is there, and its average over the segment, weighted by h \u2212 |t|, is the difference.
    """
    kinks = torch.tensor([-0.7, -0.2, 0.1, 0.4, 1.5], dtype=torch.float64)
    h = 1.0

    def second(activation, t: float = 0.0) -> torch.Tensor:
        θ = torch.tensor([t], dtype=torch.float64, requires_grad=True)
        model = expand(lambda: activation(θ - kinks), None, [θ], backend=backend)
        return model.curvature([torch.ones_like(θ)])

    def difference(activation) -> float:
        φ = [activation(t - kinks).mean() for t in (-h, 0.0, h)]
        return float(φ[0] - 2 * φ[1] + φ[2]) / h**2

    relu, expected = torch.relu, float((h - kinks.abs()).clamp_min(0).mean()) / h**2
    assert difference(relu) == pytest.approx(expected, rel=1e-12) and expected > 0.4
    assert second(relu).abs().max() == 0

    def softplus(x):
        return torch.nn.functional.softplus(x, beta=5.0)

    ts = torch.linspace(-h, h, 2001, dtype=torch.float64)
    curvatures = torch.stack([second(softplus, float(t)).mean() for t in ts[::20]])
    average = torch.trapezoid(curvatures * (h - ts[::20].abs()), ts[::20]) / h**2
    assert float(average) == pytest.approx(difference(softplus), rel=1e-3)
    σ = torch.sigmoid(-5 * kinks)
    torch.testing.assert_close(second(softplus), 5 * σ * (1 - σ), rtol=1e-12, atol=1e-12)
