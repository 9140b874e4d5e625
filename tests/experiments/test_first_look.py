"""What the comparison of all five stands on: data beside the batch, what a step cost, traces, and its list of runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reprolib.experiments.compare.first_look import DEFAULTS, FIVE, SIZES, plan
from reprolib.lab import Run
from reprolib.lab.methods import further_data, method, take_step
from reprolib.lab.plan import follow
from reprolib.lab.price import price
from reprolib.lab.train import Training
from reprolib.records.record import DEFAULT, REPORTED, TRIAL, Record
from reprolib.tasks import task


def problem(**fields):
    return task("digits-classifier").build(0, **({"batch_size": 32, "train_size": 100} | fields))


def gradient(net, closure, loss):
    return torch.autograd.grad(loss(closure()).mean(), list(net.parameters()))


# ---- data beside the batch


def test_a_sample_is_a_function_of_seed_and_step_and_has_no_sample_twice():
    p = problem(dtype=torch.float64)
    p.batches.x.copy_(torch.arange(100.0).view(-1, 1, 1, 1).expand(p.batches.x.shape))  # each sample is its number
    seen = {}
    for step in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(p.net, "forward", lambda x: x[:, 0, 0, 0])
            seen[step], again = (torch.cat([closure() for closure, _ in p.sample(40, step)]) for _ in range(2))
        assert torch.equal(seen[step], again)
        assert len(set(seen[step].tolist())) == 40
    assert not torch.equal(seen[0], seen[1])
    sizes = [len(closure()) for closure, _ in p.sample(1000, 0)]
    assert sizes == [32, 32, 32, 4]  # a batch at a time, and not more than there are


def test_a_sample_pairs_images_and_targets():
    p = problem()
    p.batches.y.fill_(7)
    p.batches.y[:50] = 3
    ((closure, loss),) = p.sample(10, 4)
    assert loss(closure()).shape == (10,)
    x, y = p.batches.x, p.batches.y
    order = [int((x == image).flatten(1).all(1).nonzero()[0]) for image in images_of(p, closure)]
    expected = p.losses(p.net(x[order]), x[order], y[order])
    assert torch.allclose(loss(closure()), expected)


def images_of(p, closure):
    kept = []
    handle = p.net.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    closure()
    handle.remove()
    return kept[0]


def test_the_whole_is_all_training_data_once():
    p = problem(dtype=torch.float64)
    pairs = p.whole()
    sizes = [len(closure()) for closure, _ in pairs]
    assert sizes == [32, 32, 32, 4]
    mean = [
        sum(n * g for n, g in zip(sizes, gs, strict=True)) / 100
        for gs in zip(*(gradient(p.net, *pair) for pair in pairs), strict=True)
    ]
    for g, m in zip(gradient(p.net, *p.pair(p.batches.x, p.batches.y)), mean, strict=True):
        assert torch.allclose(g, m, rtol=1e-12)


def test_each_method_gets_what_it_wants():
    p = problem()
    for name, wanted in {"sgd": set(), "red-sgd": set(), "summary": {"summary"}, "csdd": {"full"}}.items():
        optimizer, _ = method(name).build(p.net.parameters(), 1, **({"lr": 0.1} if name == "sgd" else {}))
        assert further_data(optimizer, p, 0).keys() == wanted
    optimizer, _ = method("summary").build(p.net.parameters(), 1, period=2)
    pairs = further_data(optimizer, p, 0)["summary"]
    assert [len(closure()) for closure, _ in pairs] == [32, 32]  # p B


def test_the_summary_is_of_the_other_batch():
    fields = {"epochs": 1, "batch_size": 32, "train_size": 64, "dtype": "float64"}
    run = Run.of("summary", task="digits-classifier", seed=0, options={"period": 1}, **fields)
    training = Training(run)
    training.advance()
    p = task(run.task).build(0, batch_size=32, train_size=64, dtype=torch.float64)
    optimizer, _ = method("summary").build(p.net.parameters(), 1, period=1)
    for number, (x, y) in enumerate(p.batches.epoch(0)):
        optimizer.step(*p.pair(x, y), summary=p.sample(32, number))
    for a, b in zip(p.net.parameters(), training.problem.net.parameters(), strict=True):
        assert torch.equal(a, b)
    own, _ = method("summary").build(task(run.task).build(0, batch_size=32).net.parameters(), 1)
    assert own.eta is None and not torch.equal(optimizer.eta, torch.zeros_like(optimizer.eta))


# ---- what it cost


@pytest.mark.parametrize("name", ["digits-classifier", "digits-convnet"])
def test_the_price_of_newton_cg_is_what_its_steps_multiply(name):
    """Counted over whole steps, global gradient, CG and tries included, against the price by parts."""
    run = Run.of("csdd", task=name, seed=0, epochs=1, batch_size=50, train_size=200)
    training = Training(run)
    p, optimizer = training.problem, training.optimizer
    x, y = next(iter(p.batches.epoch(0)))
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(p.losses(p.net(x), x, y).mean(), list(p.net.parameters()))
    one = counter.get_total_flops()
    take_step(optimizer, *p.pair(x, y), **further_data(optimizer, p, 0))  # the first one checks its products
    before = dict(optimizer.counts)
    with FlopCounterMode(display=False) as counter:
        for batch in p.batches.epoch(1):
            take_step(optimizer, *p.pair(*batch), **further_data(optimizer, p, 0))
    counts = {name: n - before[name] for name, n in optimizer.counts.items()}
    assert counts["pairs"] > 0 and counts["iterations"] > 0 and counts["tries"] > 0
    assert price(run, p).of(4, counts) == pytest.approx(counter.get_total_flops() / one, rel=1e-3)


def test_a_history_of_newton_cg_adds_up_its_price():
    run = Run.of("csdd", task="digits-classifier", seed=0, epochs=2, batch_size=50, train_size=200)
    training = Training(run)
    while not training.over:
        training.advance()
    table = training.history().table
    expected = price(run, training.problem).of(8, training.optimizer.counts)
    assert table["gradients"].iloc[-1] == pytest.approx(expected)
    assert table["gradients"].is_monotonic_increasing and table["gradients"].iloc[-1] > 8 * 5  # 4 pairs, CG, ...


# ---- traces


@pytest.mark.parametrize("name", FIVE)
def test_a_history_keeps_what_its_method_traces(name):
    run = Run.of(name, task="digits-classifier", seed=0, epochs=1, batch_size=50, train_size=200)
    training = Training(run)
    training.advance()
    table = training.history().table
    assert set(method(name).traces) <= set(table.columns)
    for trace in method(name).traces:
        assert table[trace].iloc[-1] == pytest.approx(float(training.optimizer.diagnostics[trace]), nan_ok=True)


# ---- the list of runs


def test_the_plan_has_everything_once_and_few_images_where_a_step_sees_all():
    asked = []

    def execute(runs):
        asked.extend(runs)
        return [Training(run).history() for run in runs]

    histories, notes = follow(plan("smoke"), execute)
    size = SIZES["smoke"]
    tasks, seeds = len(size.columns), len(size.seeds)
    assert len(histories[REPORTED]) == tasks * seeds * (len(FIVE) + 1)
    assert len(histories[DEFAULT]) == tasks * seeds * len(DEFAULTS)
    assert len(histories[TRIAL]) == sum(len(column.steps) for column in size.columns)
    assert len({run.key for run in asked}) == len(asked)
    for run in asked:
        assert run.train_size == (512 if run.method == "csdd" else None)
        assert (run.held_out > 0) == (run.seed not in size.seeds)  # the test set is not looked at in tuning
        if run.method in FIVE:
            assert run.options == ()
    assert [note["task"] for note in notes["tuning"]] == [column.task for column in size.columns]


def test_its_record_has_the_traces(tmp_path):
    runs = [
        Run.of(name, task="digits-classifier", seed=0, epochs=1, batch_size=50, train_size=100) for name in FIVE[2:4]
    ]
    histories = []
    for run in runs:
        training = Training(run)
        training.advance()
        histories.append(training.history())
        histories[-1].environment = {"date": "2000-01-01", "device": "cpu", "threads": 1, "commit": ""}
    Record.of("compare/first-look", "smoke", histories).save(tmp_path)
    table = Record.load("compare/first-look", "smoke", tmp_path).table
    assert table["damping"].notna().sum() == (table["method"] == "curveball").sum()
    assert table["eta_max"].notna().sum() == (table["method"] == "summary").sum()
