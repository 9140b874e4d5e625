"""The benchmark of steps measures and counts what it says; how fast anything is, is not tested."""

from __future__ import annotations

import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from reprolib.bench import harness
from reprolib.bench import step as bench_step
from reprolib.bench.curvature import relative_error
from reprolib.bench.harness import Bench, Costs
from reprolib.cli.bench import command
from reprolib.errors import SkippedStep, UnknownName
from reprolib.lab.cost import count, gradients_per_step, per_step, period
from reprolib.lab.run import Run
from reprolib.optim import RED, Adler, CurveBall, NewtonCG, NewtonSummary, StepTunedSGD
from reprolib.records.record import published
from reprolib.tasks import networks, task

WIDTH, BATCH = 10, 6
DEPTHS = [1, 3]
SMALL = 0.02  # the matrices of the cubic model, with a row for each tensor
PAID = 1 / WIDTH  # an inner product with the adjoint, sample by sample, in products of layer size


@pytest.fixture(params=DEPTHS)
def layers(request, monkeypatch):
    """How many equal dense layers the network "tiny" has: a gradient takes 3n − 1 products of layer size."""
    net = lambda: networks.dense([WIDTH] * (request.param + 1), nn.Tanh)
    monkeypatch.setitem(harness.NETWORKS, "tiny", (net, BATCH, (1, 1, WIDTH)))
    return request.param


def in_layers(f) -> float:
    """Matrix products of layer size in ``f``."""
    return count(f) / (2 * BATCH * WIDTH**2)


def problem_of(optimizer, b: Bench):
    """A step of ``optimizer`` on the first batch."""
    return lambda: optimizer.step(b.closure, b.loss)


@pytest.mark.parametrize(
    ("name", "make", "products"),
    [
        ("RED, 2", RED, lambda n: 6 * n - 3 + PAID * (n - 1)),
        (
            "RED, shared, 5/3",
            lambda p, **o: RED(p, engine={"products": "shared"}, **o),
            lambda n: 5 * n - 2 + PAID * (n - 1),
        ),
        # three gradients, and what a curvature adds
        (
            "RED, every fourth",
            lambda p, **o: RED(p, every=4, **o),
            lambda n: (3 * (3 * n - 1) + 6 * n - 3 + PAID * (n - 1)) / 4,
        ),
        ("Step-Tuned SGD, 2", lambda p, **o: StepTunedSGD(p, lr=0.1, **o), lambda n: 2 * (3 * n - 1)),
        ("ADLER, 5/3", Adler, lambda n: 5 * n - 2),
        ("CurveBall, 7/3", lambda p, **o: CurveBall(p, auto_damping=False, **o), lambda n: 7 * n - 3),
        ("CurveBall, a forward pass more in 5 steps", CurveBall, lambda n: 7 * n - 3 + n / 5),
        ("CurveBall, in 3", lambda p, **o: CurveBall(p, test_every=3, **o), lambda n: 7 * n - 3 + n / 3),
        # two gradients, and a curvature step which tests every second time
        (
            "CurveBall, now and then",
            lambda p, **o: CurveBall(p, every=3, test_every=2, **o),
            lambda n: (2 * (3 * n - 1) + 7 * n - 3 + n / 2) / 3,
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_products_of_a_step_in_a_dense_network(layers, name, make, products):
    b = Bench.of("tiny", "cpu")
    assert in_layers(b.gradient) == 3 * layers - 1
    # the invariant's check of the first step is counted for a method without a period
    optimizer = make(b.params)
    optimizer._calls = 1
    assert per_step(optimizer, problem_of(optimizer, b)) / (2 * BATCH * WIDTH**2) == pytest.approx(products(layers))


@pytest.mark.parametrize(("options", "third"), [({}, True), ({"period": 3}, True), ({"cubic": 0.0}, False)])
def test_products_of_a_period_with_a_summary(layers, options, third):
    b = Bench.of("tiny", "cpu")
    optimizer = NewtonSummary(b.params, **options)
    summary = in_layers(lambda: b.model().summary(b.d, third=third))
    found = per_step(optimizer, problem_of(optimizer, b)) / (2 * BATCH * WIDTH**2)
    p = optimizer.param_groups[0]["period"]
    assert found == pytest.approx(3 * layers - 1 + summary / p, abs=SMALL)


def test_a_period_is_counted_where_nothing_moves():
    """A rate that would lead to infinity changes no product, and neither do the numbers."""
    b = Bench.of("mlp", "cpu").first(4)
    for make in (NewtonSummary, CurveBall, lambda p: RED(p, every=3)):
        counted = []
        for lr in (1.0, 1e30):
            optimizer = make(b.params)
            optimizer.param_groups[0]["lr"] = lr
            before = [p.detach().clone() for p in b.params]
            counted.append(per_step(optimizer, problem_of(optimizer, b)))
            assert all(torch.equal(p, q) for p, q in zip(b.params, before, strict=True))
        assert counted[0] == counted[1]


def test_periods():
    p = [nn.Parameter(torch.ones(2))]
    assert period(NewtonSummary(p, period=7)) == 7
    assert period(CurveBall(p)) == 5
    assert period(CurveBall(p, every=3, test_every=2)) == 6
    assert period(CurveBall(p, every=3, auto_damping=False)) == 3
    assert period(RED(p, every=4)) == 4
    assert (
        period(RED(p))
        == period(StepTunedSGD(p, lr=0.1))
        == period(NewtonCG(p))
        == period(torch.optim.SGD(p, lr=0.1))
        == 1
    )


def test_runs_are_told_apart_by_what_they_multiply():
    """A rate that is zero, or not given, can spare products: its value is part of what a known cost belongs to."""

    def cost(method, **options):
        run = Run.of(method, task="digits-classifier", epochs=1, batch_size=50, seed=0, options=options)
        problem = task("digits-classifier").build(0, batch_size=50)
        return gradients_per_step(run, problem)

    assert cost("summary") == cost("summary", cubic=2.0) >= cost("summary", cubic=0.0)
    assert cost("curveball", lr=0.1, momentum=0.9) == cost("curveball", lr=0.2, momentum=0.9) < cost("curveball")
    assert cost("sgd", lr=0.1) == 1
    assert cost("step-tuned", lr=0.1) == 2
    whole = cost("red-sgd")
    for every in (1, 2, 5):
        assert cost("red-rmsprop", every=every) == pytest.approx(1 + (whole - 1) / every, rel=1e-12)


@pytest.mark.parametrize("layers", [2], indirect=True)
def test_every_method_is_measured(layers, tmp_path):
    said: list[str] = []
    rows = bench_step.measure("tiny", rounds=2, say=said.append)
    assert [r["method"] for r in rows] == ["gradient", *bench_step.OPTIMIZERS]
    assert {r["method"]: r["steps"] for r in rows} == {
        "gradient": 1,
        "red-sgd": 1,
        "adler": 1,
        "curveball": 5,
        "summary": 10,
        "csdd": 1,
    }
    assert said[-2:] == ["tiny: round 1 of 2", "tiny: round 2 of 2"]
    assert rows[0]["time"] == rows[0]["memory"] == rows[0]["products"] == 1
    gradient = 3 * layers - 1
    red, adler, curveball, summary, csdd = (r["products"] * gradient for r in rows[1:])
    assert red == pytest.approx(6 * layers - 3 + PAID * (layers - 1))
    assert adler == pytest.approx(5 * layers - 2)
    assert curveball == pytest.approx(7.2 * layers - 3)
    # a tenth of a summary on ten batches
    b = Bench.of("tiny", "cpu")
    assert summary == pytest.approx(gradient + in_layers(lambda: b.model().summary(b.d, third=True)), abs=SMALL)
    # the gradient, twenty for the global one, CG's products and the forward passes that try a length
    ask = lambda: b.model(retain=True).product(b.d)
    product = in_layers(ask) - layers
    more = csdd - 21 * gradient - rows[-1]["tries"] * layers
    assert more >= -1e-9
    assert more == pytest.approx(rows[-1]["iterations"] * product, abs=2 * product + gradient)
    shares = [rows[-1][f"share_{part}"] for part in bench_step.PARTS]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) < 1
    costs = bench_step.costs(rows, "cpu", 2, 0.5)
    costs.save(tmp_path / "step-cost.cpu")
    back = Costs.load(tmp_path / "step-cost.cpu")
    assert list(back.table.columns) == list(bench_step.COLUMNS)
    assert back.about == costs.about
    assert back.about["batches"] == {"summary": 10, "csdd": 20}
    assert back.about["networks"]["tiny"]["batch"] == BATCH
    assert published(tmp_path) == []  # it is not taken for the record of an experiment
    always = back.table.drop(columns=[f"share_{part}" for part in bench_step.PARTS] + ["iterations", "tries"])
    assert always.notna().all(axis=None)


def test_all_rounds_do_the_same_work(monkeypatch):
    monkeypatch.setitem(harness.NETWORKS, "tiny", (lambda: networks.dense([4, 3, 10], nn.Tanh), BATCH, (1, 2, 2)))
    data = Bench.of("tiny", "cpu", batches=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStep)
        for name in bench_step.OPTIMIZERS:
            steps, ends = bench_step.Steps(name, data, BATCH), []
            assert steps.batch.x.shape == (BATCH, 1, 2, 2)
            for _ in range(2):
                steps.reset()
                start = [p.detach().clone() for p in steps.batch.params]
                steps()
                ends.append([p.detach().clone() for p in steps.batch.params])
            assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True)), name
            assert relative_error(ends[0], start) > 0, name  # and it moves
            assert all(torch.equal(p, q) for p, q in zip(data.params, Bench.of("tiny", "cpu").params, strict=True))


def test_parts_of_a_step_by_the_clock(layers, monkeypatch):
    """With a clock that ticks when it is asked, each part lasts one second."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(bench_step, "clock", lambda device: float(next(seconds)))
    b = Bench.of("tiny", "cpu", batches=2)
    pair, own = (b.closure, b.loss), b.first(BATCH)
    optimizer = bench_step.Timed(b.params)
    optimizer.step(own.closure, own.loss, full=[pair])
    assert optimizer.log == [{"global": 1.0, "cg": 1.0, "tries": 1.0}]
    twin = Bench.of("tiny", "cpu", batches=2)
    own = twin.first(BATCH)
    NewtonCG(twin.params).step(own.closure, own.loss, full=[(twin.closure, twin.loss)])
    assert all(torch.equal(p, q) for p, q in zip(b.params, twin.params, strict=True))  # it is NewtonCG


def test_memory_before_a_call_is_not_counted():
    held = []
    f = lambda: torch.zeros(1000)
    assert harness.peak_memory(f, "cpu", lambda: held.append(torch.zeros(10**6))) == pytest.approx(4000, rel=0.1)
    assert len(held) == 2


def test_goals():
    assert bench_step.goal("adler", "mlp") == 1.9
    assert bench_step.goal("csdd", "mlp") is bench_step.goal("adler", "vit") is None
    assert all(len(row) == len(bench_step.SELECTION) for row in bench_step.GOALS.values())


@pytest.mark.parametrize("layers", [1], indirect=True)
def test_the_command_writes_a_record(layers, tmp_path):
    path, threads = tmp_path / "step-cost.cpu", torch.get_num_threads()
    words = ["step", "--network", "tiny", "--rounds", "1", "--threads", str(threads), "--write", str(path)]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert "curveball" in result.output
    assert Costs.load(path).about["environment"]["threads"] == threads


def test_unknown_network():
    with pytest.raises(UnknownName, match="network"):
        bench_step.measure("vgg1")
