"""Baselines from libraries: what we drive is what the library does, with its defaults and our options."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from itertools import islice

import dadaptation
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch

from reprolib.errors import InvalidInput, UnknownName
from reprolib.lab import Run, train
from reprolib.lab.ensemble import train_together
from reprolib.lab.methods import METHODS, evaluating, further_data, method, take_step
from reprolib.lab.train import Training
from reprolib.optim import NewtonSummary
from reprolib.show.figures import COLOURS
from reprolib.tasks import task

BY_HAND = {  # a method, its options, and the same as one would write it
    "momentum": ({"lr": 0.05}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": ({"beta2": 0.99}, lambda p: torch.optim.Adam(p, betas=(0.9, 0.99))),
    "adamw": ({"lr": 0.01, "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "adagrad": ({}, torch.optim.Adagrad),
    "torch-rmsprop": ({"alpha": 0.9}, lambda p: torch.optim.RMSprop(p, alpha=0.9)),
    "lbfgs": (
        {"max_iter": 4, "line_search_fn": "strong_wolfe"},
        lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
    ),
    "shampoo": ({"lr": 0.05}, lambda p: pytorch_optimizer.Shampoo(p, lr=0.05)),
    "adahessian": ({"beta1": 0.8}, lambda p: pytorch_optimizer.AdaHessian(p, betas=(0.8, 0.999))),
    "prodigy": ({"d_coef": 2.0, "weight_decay": 0.1}, lambda p: prodigyopt.Prodigy(p, d_coef=2.0, weight_decay=0.1)),
    "schedule-free": ({"warmup_steps": 3}, lambda p: schedulefree.AdamWScheduleFree(p, warmup_steps=3)),
    "d-adaptation": ({}, dadaptation.DAdaptAdam),
}


def run(name: str, **fields) -> Run:
    tuned = {"sgd": {"lr": 0.1}, "rmsprop": {"lr": 0.01}, "step-tuned": {"lr": 0.1}, "robbins-monro": {"lr": 0.5}}
    options = tuned.get(name) or (BY_HAND[name][0] if name in BY_HAND else {})
    return Run.of(
        name, **{"task": "digits-classifier", "epochs": 4, "batch_size": 256, "seed": 0, "options": options} | fields
    )


def parameters(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def by_hand(r: Run, epochs: int, decay: float) -> tuple[torch.Tensor, list[float]]:
    """Parameters and losses of a loop as one would write it."""
    problem = task(r.task).build(r.seed, batch_size=r.batch_size)
    torch.manual_seed(r.seed)
    optimizer = BY_HAND[r.method][1](problem.net.parameters())
    if r.method == "schedule-free":
        optimizer.train()
    losses = []
    for epoch in range(epochs):
        for x, y in problem.batches.epoch(epoch):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(problem.net(x), y, reduction="none").mean()
                loss.backward(create_graph=r.method == "adahessian")
                return loss.detach()

            losses.append(float(optimizer.step(closure)))
        optimizer.param_groups[0]["lr"] *= decay
    optimizer.zero_grad()
    return parameters(problem.net), losses


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")  # by hand; ours has none
def test_a_library_is_used_as_by_hand(name, capsys):
    r = run(name)
    expected, losses = by_hand(r, epochs=2, decay=0.9)
    capsys.readouterr()
    problem = task(r.task).build(r.seed, batch_size=r.batch_size)
    torch.manual_seed(r.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer, scheduler = method(name).build(problem.net.parameters(), r.epochs, decay=0.9, **dict(r.options))
        reports = []
        for epoch in range(2):
            reports += [take_step(optimizer, *problem.pair(x, y)) for x, y in problem.batches.epoch(epoch)]
            scheduler.step()
        history = train(r)
    assert [float(report["loss"]) for report in reports] == losses
    assert torch.equal(parameters(problem.net), expected)
    assert history.first_losses == losses[:5]
    assert capsys.readouterr().out == ""  # nothing is announced


def test_every_library_method_is_compared_with_one_by_hand():
    ours = {"sgd", "rmsprop", "red-sgd", "red-rmsprop", "curveball", "adler", "summary", "csdd", "step-tuned"}
    ours.add("robbins-monro")
    assert set(METHODS) - ours == set(BY_HAND)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_loss(name):
    training = Training(run(name))
    before = training.problem.evaluate()["loss"]
    while not training.over:
        training.advance()
    with evaluating(training.optimizer):
        assert training.problem.evaluate()["loss"] < before


def test_options_of_our_own_methods_reach_them():
    p = [torch.nn.Parameter(torch.ones(2))]
    for name in ("red-sgd", "red-rmsprop"):
        assert method(name).build(p, 1, every=7)[0].param_groups[0]["every"] == 7
    options = {
        "lr": 0.3,
        "weight_decay": 0.1,
        "nu": 3.0,
        "beta": 0.8,
        "bounds": (0.2, 4.0),
        "delta": 0.1,
        "check_every": 9,
    }
    optimizer, scheduler = method("step-tuned").build(p, 1, decay=0.9, **options)
    assert set(options) | {"decay"} == method("step-tuned").options
    assert {name: optimizer.param_groups[0][name] for name in options} == options
    assert scheduler.gamma == 0.9


@pytest.mark.parametrize("name", METHODS)
def test_every_method_continues_from_a_checkpoint(name, tmp_path):
    whole, half, rest = (Training(run(name)) for _ in range(3))
    torch.manual_seed(0)
    whole.advance()
    whole.advance()
    torch.manual_seed(0)
    half.advance()
    half.save(tmp_path / "half.pt")
    torch.manual_seed(1)
    assert rest.restore(tmp_path / "half.pt")
    rest.advance()
    assert torch.equal(parameters(rest.problem.net), parameters(whole.problem.net))


SAMPLES = {
    "lr": 0.1, "decay": 0.9, "weight_decay": 0.01, "momentum": 0.5, "nesterov": True, "beta1": 0.8, "beta2": 0.9,
    "beta3": 0.9, "eps": 1e-6, "alpha": 0.9, "centered": True, "max_iter": 3, "max_eval": 4, "tolerance_grad": 1e-6,
    "tolerance_change": 1e-8, "history_size": 5, "line_search_fn": "strong_wolfe", "preconditioning_compute_steps": 2,
    "matrix_eps": 1e-5, "hessian_power": 0.5, "update_period": 2, "num_samples": 2, "d0": 1e-5, "d_coef": 2.0,
    "growth_rate": 1.5, "use_bias_correction": True, "safeguard_warmup": True, "warmup_steps": 3, "r": 1.0,
    "weight_lr_power": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_every_option_reaches_the_library(name):
    for option in method(name).options:
        value = SAMPLES[option]
        optimizer, scheduler = method(name).build([torch.nn.Parameter(torch.ones(2))], 1, **{option: value})
        group = optimizer.param_groups[0] | {"decay": scheduler.gamma}
        if option in ("beta1", "beta2"):
            assert group["betas"] == ((value, 0.999) if option == "beta1" else (0.9, value))
        else:
            assert group.get(option, getattr(optimizer, option, None)) == value
    with pytest.raises(UnknownName, match=f"option of {name}"):
        run(name, options={"speed": 1})


def test_the_reported_loss_has_the_term_that_the_step_minimises():
    for name, in_loss in {"momentum": True, "adam": True, "lbfgs": True, "adamw": False, "prodigy": False}.items():
        problem = task("digits-classifier").build(0, batch_size=64, dtype=torch.float64)
        theta = parameters(problem.net)
        x, y = next(problem.batches.epoch(0))
        plain = torch.nn.functional.cross_entropy(problem.net(x), y).detach()
        optimizer, _ = method(name).build(problem.net.parameters(), 1, weight_decay=0.5)
        loss = take_step(optimizer, *problem.pair(x, y))["loss"]
        torch.testing.assert_close(loss, plain + in_loss * 0.25 * theta.square().sum())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lbfgs_finds_the_minimum_of_a_quadratic(weight_decay):
    g = torch.Generator().manual_seed(0)
    root, b = torch.randn(6, 6, generator=g, dtype=torch.float64), torch.randn(6, generator=g, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6)
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    options = {"line_search_fn": "strong_wolfe", "max_iter": 100, "tolerance_grad": 1e-12, "tolerance_change": 0.0}
    optimizer, _ = method("lbfgs").build([theta], 1, weight_decay=weight_decay, **options)
    take_step(optimizer, lambda: theta, lambda t: (0.5 * t @ matrix @ t - b @ t)[None])
    minimum = torch.linalg.solve(matrix + weight_decay * torch.eye(6), b)
    torch.testing.assert_close(theta.detach(), minimum, rtol=1e-8, atol=1e-8)


def test_schedule_free_is_evaluated_at_the_average_of_its_iterates():
    problem = task("digits-classifier").build(0, batch_size=64, dtype=torch.float64)
    params = list(problem.net.parameters())
    optimizer, _ = method("schedule-free").build(params, 1)
    iterates = []
    for x, y in islice(problem.batches.epoch(0), 6):
        take_step(optimizer, *problem.pair(x, y))
        iterates.append(torch.cat([optimizer.state[p]["z"].flatten() for p in params]))
    here, mean = parameters(problem.net), torch.stack(iterates).mean(0)
    with evaluating(optimizer):
        torch.testing.assert_close(parameters(problem.net), mean)
        with pytest.raises(Exception, match="not in train mode"):
            optimizer.step()
    torch.testing.assert_close(parameters(problem.net), here)
    assert not torch.allclose(here, mean)
    torch.testing.assert_close(here, 0.9 * mean + 0.1 * iterates[-1])  # where its next gradient is taken


def test_training_evaluates_schedule_free_at_its_average():
    training = Training(run("schedule-free"))
    training.advance()
    there = training.problem.evaluate()["loss"]
    with evaluating(training.optimizer):
        average = training.problem.evaluate()["loss"]
    assert training.history().final["test_loss"] == pytest.approx(average, rel=1e-5)
    assert average != pytest.approx(there, rel=1e-3)


def test_evaluating_changes_nothing_for_the_others():
    training = Training(run("adam"))
    training.advance()
    before = parameters(training.problem.net)
    with evaluating(training.optimizer):
        assert torch.equal(parameters(training.problem.net), before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, NewtonSummary])
def test_an_optimizer_that_no_method_built_is_not_taken_for_one(optimizer):
    problem = task("digits-classifier").build(0, batch_size=64)
    by_hand = optimizer(problem.net.parameters())
    x, y = next(iter(problem.batches.epoch(0)))
    before = parameters(problem.net)
    for use in (
        lambda: further_data(by_hand, problem, 0),
        lambda: take_step(by_hand, *problem.pair(x, y)),
        lambda: evaluating(by_hand).__enter__(),
    ):
        with pytest.raises(InvalidInput, match=rf"{optimizer.__name__} was built by hand.*build it with"):
            use()
    assert torch.equal(parameters(problem.net), before)


@pytest.mark.parametrize(("name", "first"), [("prodigy", 1e-6), ("d-adaptation", 1e-6)])
def test_without_a_learning_rate_the_step_is_the_one_that_was_found(name, first):
    training = Training(run(name))
    steps = []
    for x, y in islice(training.problem.batches.epoch(0), 4):
        steps.append(training.optimizer.param_groups[0]["d"])
        assert take_step(training.optimizer, *training.problem.pair(x, y))["step"] == pytest.approx(steps[-1])
    assert steps[0] == first
    assert steps[-1] > 2 * first


def test_adahessian_lets_go_of_the_graph():
    training = Training(run("adahessian"))
    x, y = next(training.problem.batches.epoch(0))
    assert math.isfinite(take_step(training.optimizer, *training.problem.pair(x, y))["loss"])
    assert all(p.grad is None for p in training.problem.net.parameters())


@pytest.mark.parametrize(
    ("name", "package"),
    [("shampoo", "pytorch_optimizer"), ("prodigy", "prodigyopt"), ("schedule-free", "schedulefree"),
     ("d-adaptation", "dadaptation")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_cure(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInput, match=rf"{package}.*pip install 'reprolib\[baselines\]'"):
        train(run(name))
    assert train(run("adam", epochs=1)).status == "finished"


def test_every_method_has_a_colour_of_its_own():
    assert set(METHODS) <= set(COLOURS)
    assert len({colour.upper() for colour in COLOURS.values()}) == len(COLOURS)


# ---- what RED's appendix C compares with


@pytest.mark.claim("red-eq26", file="lab/methods.py", old='(seen["slope"] >= 0)', new='(seen["slope"] >= -1)')
@pytest.mark.claim("red-eq26", file="lab/train.py", old="{name: fmean(values[name])", new="{name: values[name][-1]")
@pytest.mark.claim("red-eq26", file="lab/methods.py", old="return sum(slopes) <= 0", new="return sum(slopes) >= 0")
@pytest.mark.claim("red-eq26", file="lab/ensemble.py", old="(slopes <= 0).to(losses)", new="torch.ones_like(losses)")
@pytest.mark.parametrize("name", ["momentum", "adam", "red-sgd", "red-rmsprop"])
def test_the_share_of_descent_directions_of_each_epoch(name):
    """Eq. (26) against the directions themselves, rebuilt from the gradients of each batch by their formulas."""
    β1, β2, λ = 0.9, 0.999, 1e-3
    options = {"lr": {"momentum": 0.1, "adam": 0.02}.get(name, 1.0), "weight_decay": λ}
    options |= {"beta1": β1} if name != "momentum" else {}
    r = run(name, options=options, epochs=12, batch_size=10, dtype="float64", train_size=100)
    training = Training(r)
    p = training.problem
    params, expected = list(p.net.parameters()), []
    m, v, k = [torch.zeros_like(q) for q in params], [torch.zeros_like(q) for q in params], 0
    for epoch in range(r.epochs):
        down = []
        for x, y in p.batches.epoch(epoch):
            k += 1
            closure, loss = p.pair(x, y)
            g = torch.autograd.grad(loss(closure()).mean(), params)
            g = [a + λ * q.detach() for a, q in zip(g, params, strict=True)]
            m = [β1 * a + (1 - β1) * b for a, b in zip(m, g, strict=True)]
            v = [β2 * a + (1 - β2) * b * b for a, b in zip(v, g, strict=True)]
            d = m
            if name in ("adam", "red-rmsprop"):
                d = [a / ((b / (1 - β2**k)).sqrt() + 1e-8) for a, b in zip(m, v, strict=True)]
            down.append(sum(float((a * b).sum()) for a, b in zip(g, d, strict=True)) >= 0)
            take_step(training.optimizer, closure, loss)
        expected.append(sum(down) / len(down))
        training.scheduler.step()
    history = train(r)
    assert history.table["descent"].dropna().tolist() == pytest.approx(expected)
    if name in ("momentum", "adam"):
        assert min(expected) < 1  # otherwise this test says little
        together, _ = train_together([r, replace(r, seed=1)])
        assert together.table["descent"].dropna().tolist() == pytest.approx(expected)


def test_robbins_monro_steps():
    """τ_k = τ0 k^(−α) from the first step to the last, across epochs and checkpoints."""
    r = run("robbins-monro", options={"lr": 0.5, "alpha": 0.7, "weight_decay": 0.1}, dtype="float64")
    training, by_hand = Training(r), task(r.task).build(r.seed, batch_size=r.batch_size, dtype=torch.float64)
    k = 0
    for epoch in range(2):
        training.advance()
        for x, y in by_hand.batches.epoch(epoch):
            k += 1
            loss = torch.nn.functional.cross_entropy(by_hand.net(x), y)
            params = list(by_hand.net.parameters())
            with torch.no_grad():
                for q, g in zip(params, torch.autograd.grad(loss, params), strict=True):
                    q -= 0.5 * k**-0.7 * (g + 0.1 * q)
        assert training.log.rows[-1]["iteration"] == k
    torch.testing.assert_close(parameters(training.problem.net), parameters(by_hand.net), rtol=1e-12, atol=1e-12)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (k + 1) ** -0.7)
    with pytest.raises(InvalidInput, match=r"alpha = 0\.5"):
        method("robbins-monro").build(by_hand.net.parameters(), 1, lr=0.1, alpha=0.5)


def test_schedules_of_red():
    def lengths(epochs: int, **options) -> list[float]:
        optimizer, scheduler = method("red-sgd").build([torch.nn.Parameter(torch.ones(2))], epochs, **options)
        found = []
        for _ in range(epochs):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer._opt_called = True  # no step is taken here, and PyTorch would warn
            scheduler.step()
        return found

    assert lengths(3, schedule="ran", cycle=(1, 1, 1)) == [1.0, 0.5, 2.0]
    assert lengths(21, schedule="ran") == [1.0] * 5 + [0.5] * 13 + [2.0] * 2 + [1.0]
    cosine = [0.25 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert lengths(4, schedule="cosine", lr=0.5) == pytest.approx(cosine)
    assert lengths(2, schedule="constant", lr=0.5) == [0.5, 0.5]
    with pytest.raises(InvalidInput, match="a cycle is of the schedule 'ran'"):
        lengths(2, cycle=(1, 1, 1))
    assert method("red-sgd").build([torch.nn.Parameter(torch.ones(2))], 1, batch_norm="by-index")[0].param_groups[0][
        "engine"
    ] == {"batch_norm": "by-index"}
