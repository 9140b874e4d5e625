"""A batch in parts, micro-batches and processes, against the whole batch, in float64."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprolib.curvature import LocalModel, expand
from reprolib.curvature.parts import Parts
from reprolib.errors import HandedOver, InvalidInput, ModelConsumed, NotRepeatable, UnknownName, UnsupportedOperation
from reprolib.optim import RED
from tests.curvature import two_ranks
from tests.curvature.cases import LOSSES, Case, Squash, case
from tests.curvature.reference import flat

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SIZES = [3, 1, 2]  # of the six samples of a case


def divided(c: Case, loss: str = "cross-entropy", sizes=SIZES):
    """The (closure, loss) pairs of the micro-batches of a case."""
    batches = zip(c.x.split(sizes), c.y.split(sizes), strict=True)
    return [(lambda x=x: c.net(x), lambda o, y=y: LOSSES[loss](o, y)) for x, y in batches]


@pytest.fixture(params=["tape", "autodiff"])
def backend(request):
    return request.param


@pytest.fixture(params=["mlp", "conv", "tied", "attention"])  # no batch-norm: a part normalises by itself
def network(request):
    return request.param


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("retain", [False, True])
def test_micro_batches_are_the_whole_batch(network, loss, operator, backend, retain):
    c = case(network, loss)
    whole = expand(c.closure, c.loss, c.params, operator, backend, retain=True)
    kept = expand(divided(c, loss), None, c.params, operator, backend, retain=True) if retain else None
    u = torch.randn_like(whole.outputs)

    def same(question):
        parts = kept or expand(divided(c, loss), None, c.params, operator, backend)
        assert isinstance(parts, Parts)
        for a, b in zip(question(parts), question(whole), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)

    same(lambda m: [m.loss, m.losses, m.outputs, m.loss_gradient, m.loss_hvp(u), m.inner(u, m.outputs)])
    same(lambda m: m.gradient)
    same(lambda m: [m.curvature(c.d)])
    same(lambda m: [m.curvature(c.d, c.e)])
    same(lambda m: m.product(c.d))
    same(lambda m: [*m.gradient, *m.product(c.d)])
    same(lambda m: [m.jvp(c.d)])
    same(lambda m: m.vjp(u))
    groups = [[0, 2], [1]]
    same(lambda m: m.summary(c.d, groups, third=operator == "hessian")[: 3 if operator == "hessian" else 2])
    if operator == "ggn":
        ad = whole.jvp(c.d)
        same(lambda m: [m.inner(ad, m.loss_hvp(ad)), flat(m.product(c.d)) @ flat(c.d)])


def test_least_squares_closed_form(backend):
    """J = (1/B) ‖Xθ − y‖²: H = 2XᵀX/B, ∇J = 2Xᵀ(Xθ − y)/B, whatever the division."""
    g = torch.Generator().manual_seed(0)
    x, y, theta, d = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((7, 4), (7, 1), (4, 1), (4, 1)))
    theta.requires_grad_()
    for sizes in ([7], [6, 1], [1, 2, 4], [1] * 7):
        parts = [
            (lambda a=a: a @ theta, lambda o, b=b: (o - b).square().squeeze(1))
            for a, b in zip(x.split(sizes), y.split(sizes), strict=True)
        ]
        for operator in ("hessian", "ggn"):
            model = expand(parts, None, [theta], operator, backend, retain=True)
            torch.testing.assert_close(model.gradient[0], 2 / 7 * x.T @ (x @ theta.detach() - y), **CLOSE)
            torch.testing.assert_close(model.product((d,))[0], 2 / 7 * x.T @ (x @ d), **CLOSE)
            torch.testing.assert_close(model.curvature((d,)), 2 * (x @ d).square().squeeze(1), **CLOSE)
            torch.testing.assert_close(model.loss_hvp(x @ d), 2 / 7 * x @ d, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [{"backend": "complexstep"}, {"memory": "recompute"}, {"products": "shared", "batch_norm": "by-index"}],
    ids=str,
)
def test_the_options_of_the_backend_reach_the_parts(options):
    c = case("conv")
    whole, parts = (expand(*f, c.params, **options) for f in ((c.closure, c.loss), (divided(c), None)))
    torch.testing.assert_close(parts.curvature(c.d), whole.curvature(c.d), **CLOSE)


def test_one_pair_is_the_batch_itself():
    c = case("mlp")
    model = expand([(c.closure, c.loss)], None, c.params)
    assert not isinstance(model, Parts)
    assert torch.equal(model.curvature(c.d), expand(c.closure, c.loss, c.params).curvature(c.d))


# ---- effects


class Noisy(nn.Module):
    """Everything that leaves a trace: batch-norm, also one that counts, dropout, buffers that are written (and read)."""

    def __init__(self, reads: bool):
        super().__init__()
        self.reads = reads
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.other = nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=None)
        self.drop = nn.Dropout(0.4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x):
        self.seen += 1
        h = self.drop(torch.tanh(self.norm(self.a(x))))
        with torch.no_grad():
            self.scale.mul_(0.9).add_(h.abs().mean(0), alpha=0.1)
        return self.head(self.drop(F.silu(self.other(self.b(h * self.scale if self.reads else h)))))


def noisy(reads: bool = False):
    torch.manual_seed(0)
    net, x, y = Noisy(reads).double(), torch.randn(9, 5).double(), torch.randint(0, 3, (9,))
    params = list(net.parameters())
    parts = [
        (lambda a=a: net(a), lambda o, b=b: F.cross_entropy(o, b, reduction="none"))
        for a, b in zip(x.split([4, 2, 3]), y.split([4, 2, 3]), strict=True)
    ]
    return net, params, parts, tuple(torch.randn_like(p) for p in params)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_the_trace_is_that_of_one_pass_per_part(operator, backend):
    ordinary, _, passes, _ = noisy()
    torch.manual_seed(5)
    losses = torch.cat([loss(closure()) for closure, loss in passes]).detach()
    drawn = torch.rand(1)
    net, params, parts, d = noisy()
    torch.manual_seed(5)
    model = expand(parts, None, params, operator, backend, retain=True)
    torch.testing.assert_close(model.losses, losses, **CLOSE)
    model.gradient, model.curvature(d), model.product(d), model.jvp(d), model.vjp(torch.ones_like(model.outputs))
    model.summary(d, third=False), model.curvature(d, d), model.loss_gradient
    assert torch.equal(torch.rand(1), drawn)
    for (name, a), (_, b) in zip(ordinary.named_buffers(), net.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert net.seen == net.norm.num_batches_tracked == 3


def test_a_part_that_reads_what_others_write_is_noticed(backend):
    net, params, parts, d = noisy(reads=True)
    model = expand(parts, None, params, backend=backend)
    with pytest.raises(NotRepeatable):
        model.curvature(d)
    assert net.seen == 3


def test_every_part_keeps_its_dropout_mask_and_statistics(backend):
    """An answer of all parts is the mean of those of models of the parts alone, opened from the same random state."""
    answers = []
    for alone in (True, False):
        c, other = case("dropout"), case("batch-norm")
        net = nn.Sequential(other.net, nn.Linear(3, 5, dtype=torch.float64), c.net)
        params = list(net.parameters())
        torch.manual_seed(1)
        d = tuple(torch.randn_like(p) for p in params)
        parts = [
            (lambda x=x: net(x), lambda o, y=y: F.cross_entropy(o, y, reduction="none"))
            for x, y in zip(c.x.split([4, 2]), c.y.split([4, 2]), strict=True)
        ]
        if alone:
            models = [expand(*pair, params, backend=backend, retain=True) for pair in parts]
            answers.append(
                [torch.cat([m.curvature(d) for m in models])]
                + [2 / 3 * a + 1 / 3 * b for a, b in zip(*(m.product(d) for m in models), strict=True)]
            )
        else:
            model = expand(parts, None, params, backend=backend, retain=True)
            answers.append([model.curvature(d), *model.product(d)])
    torch.testing.assert_close(*answers, **CLOSE)


class Token:
    """Lives as long as the node of the graph that it is put into."""


def token(h: torch.Tensor) -> Token:
    h.grad_fn.metadata["token"] = it = Token()
    return it


@dataclass
class Counted:
    """A case whose first layer's outputs are watched: how many passes, and how many graphs are alive."""

    c: Case
    passes: int = 0

    def __post_init__(self):
        self.alive: weakref.WeakSet = weakref.WeakSet()
        self.most = 0

    def pairs(self, sizes=(2, 2, 2)):
        def closure(x):
            h = self.c.net[0](x)
            self.alive.add(token(h))
            self.passes, self.most = self.passes + 1, max(self.most, len(self.alive))
            return self.c.net[1:](h)

        return [
            (lambda f=f, x=x: closure(x), l)
            for x, (f, l) in zip(self.c.x.split(sizes), divided(self.c, sizes=sizes), strict=True)
        ]


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("retain", [False, True])
def test_one_part_is_in_memory_at_a_time_and_the_last_is_not_run_again(operator, retain):
    w = Counted(case("mlp"))
    model = expand(w.pairs(), None, w.c.params, operator, retain=retain)
    assert w.passes == 3
    model.gradient, model.loss
    model.curvature(w.c.d)
    assert (w.passes, w.most) == (5, 1)
    if retain:
        model.product(w.c.d), model.jvp(w.c.d)
        assert (w.passes, w.most) == (11, 1)
    model.close()
    gc.collect()
    assert not w.alive


def test_a_closed_model_of_the_ggn_lets_go_of_its_graph():
    c, kept = case("mlp"), []

    def closure():
        h = c.net[0](c.x)
        kept.append(weakref.ref(token(h)))
        return c.net[1:](h)

    model = expand(closure, c.loss, c.params, "ggn")
    model.product(c.d)
    gc.collect()
    assert kept[0]() is None
    assert model.loss_hvp(model.outputs).isfinite().all()


def test_a_second_question_needs_retain():
    c = case("mlp")
    model = expand(divided(c), None, c.params)
    gradient = model.gradient
    model.product(c.d)
    for question in (model.curvature, model.product, model.jvp, model.summary):
        with pytest.raises(ModelConsumed, match="retain=True"):
            question(c.d)
    assert model.gradient is gradient
    with pytest.raises(ModelConsumed):
        model.outputs  # not read before
    ggn = expand(divided(c), None, c.params, "ggn")
    ggn.product(c.d)
    assert ggn.outputs.shape == (6, 3)


def test_the_gradient_can_be_read_late_from_a_kept_model(backend):
    c = case("mlp")
    model = expand(divided(c), None, c.params, backend=backend, retain=True, check=False)
    model.curvature(c.d), model.jvp(c.d)
    expected = torch.autograd.grad(c.loss(c.closure()).mean(), c.params)
    torch.testing.assert_close(model.gradient, expected, **CLOSE)


def test_a_part_that_changes_is_noticed(backend):
    c, count = case("mlp"), []

    def changing():
        count.append(1)
        return c.net(c.x * len(count))

    model = expand([(changing, c.loss), (c.closure, c.loss)], None, c.params, backend=backend)
    with pytest.raises(NotRepeatable):
        model.curvature(c.d)


def test_bad_arguments():
    c = case("mlp")
    parts, lone = divided(c), (c.closure, c.loss)
    good = lambda **options: expand(parts, None, c.params, **options)
    wrapped = nn.DataParallel(c.net)
    short = [(lambda: c.net(c.x[:, :2]), c.loss)]
    cases = [
        (lambda: expand([], None, c.params), InvalidInput, "empty"),
        (lambda: expand(parts, c.loss, c.params), InvalidInput, "its own loss"),
        (lambda: expand(lone, None, c.params), InvalidInput, "part 0"),
        (lambda: expand([lone, (c.closure,)], None, c.params), InvalidInput, "part 1"),
        (lambda: expand([lone, (c.closure, 3)], None, c.params), InvalidInput, "part 1"),
        (lambda: expand(3, None, c.params), InvalidInput, "a int"),
        (lambda: expand([lone, (c.closure, None)], None, c.params, "ggn"), InvalidInput, "GGN"),
        (lambda: expand([*parts, (lambda: c.net(c.x[:0]), lambda o: o.sum(1))], None, c.params), InvalidInput, "empty"),
        (lambda: good(curvature="fisher"), UnknownName, "use one of"),
        (lambda: good().curvature(c.d[:-1]), InvalidInput, "5 tensors for 6"),
        (lambda: good().vjp(torch.ones(2, 3)), InvalidInput, "6 samples"),
        (lambda: good().vjp(torch.ones(6, 2)), InvalidInput, "vjp"),
        (lambda: good().loss_hvp(torch.ones(2, 3)), InvalidInput, "6 samples"),
        (lambda: good().summary(c.d, [[0], [0]]), InvalidInput, "disjoint"),
        (lambda: good(curvature="ggn").summary(c.d), InvalidInput, "third=False"),
        (lambda: expand([(lambda: c.loss(c.closure()), None)] * 2, None, c.params).outputs, InvalidInput, "no loss"),
        (lambda: expand([*parts, *short], None, c.params), RuntimeError, "shapes"),
        (lambda: expand([*parts, (lambda: wrapped(c.x), c.loss)], None, c.params), UnsupportedOperation, r"\.module"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()


def test_outputs_of_different_lengths_answer_all_but_the_outputs():
    """Sequences of 3 and of 2 steps: losses (B_i, T_i) are averaged over T_i."""
    c = case("attention")
    net = c.net[0]
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    pairs = [(lambda x=x: net(x), lambda o: o.square().mean(2)) for x in (c.x[:4], c.x[4:, :2])]
    model = expand(pairs, None, params, retain=True)
    alone = [expand(*pair, params, retain=True) for pair in pairs]
    torch.testing.assert_close(model.curvature(d), torch.cat([m.curvature(d) for m in alone]), **CLOSE)
    with pytest.raises(InvalidInput, match="fit together"):
        model.outputs


# ---- optimizers


@pytest.mark.parametrize(
    "options", [{}, {"preconditioner": "rmsprop", "beta1": 0.5, "lr": 0.3}, {"backend": "autodiff"}]
)
def test_red_takes_the_steps_of_the_whole_batch(options):
    paths = []
    for sizes in ([9], [4, 1, 4]):
        net, batches = two_ranks.problem()
        opt = RED(net.parameters(), weight_decay=1e-3, check_every=1, **options)
        path = []
        for x, y in batches:
            loss = opt.step(two_ranks.pairs(net, x, y, [sizes], 0))
            path.append(torch.cat([loss.reshape(1), flat(net.parameters())]))
        paths.append(torch.stack(path))
    torch.testing.assert_close(*paths, **CLOSE)


def test_two_processes(tmp_path):
    """Real ones, on gloo: RED's path, every answer, and what happens where one of them fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(two_ranks.__file__)
    root = script.parents[2]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=env, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    alone = two_ranks.trajectory(two_ranks.SHARES["one process"], 0)
    for name in two_ranks.SHARES.keys() - {"one process"}:
        assert ranks[0][name] == ranks[1][name], name  # bit for bit
        torch.testing.assert_close(torch.tensor(ranks[0][name]), torch.tensor(alone), **CLOSE, msg=name)

    for operator in ("hessian", "ggn"):
        whole = two_ranks.answers(two_ranks.SHARES["one process"], 0, operator)
        seen = [rank["answers"][operator] for rank in ranks]
        for name, expected in whole.items():
            own = name.startswith("own")
            assert own or seen[0][name] == seen[1][name], name
            found = seen[0][name] + seen[1][name] if own else seen[0][name]
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **CLOSE, msg=name)

    here, there = (rank["refusals"] for rank in ranks)
    for name in ("closure", "no parts", "product", "curvature", "jvp"):
        assert here[name].startswith("RankFailed"), name
    assert there["closure"].startswith("ZeroDivisionError")
    for name in ("no parts", "product", "curvature", "jvp"):
        assert there[name].startswith("InvalidInput"), name
    for name, words in (("other network", "same network"), ("other parameters", "parameters of ranks 0 and 1 differ")):
        assert here[name] == there[name]
        assert words in here[name]
    assert here["still works"] == there["still works"]
    assert (here["alone"], there["alone"]) == ("6", "3")


def test_parts_have_everything_that_a_local_model_has():
    """By name: an answer that is only inherited would be of one part, or fail."""
    c = case("mlp")
    whole = expand(c.closure, c.loss, c.params)
    parts = expand([(c.closure, c.loss)] * 2, None, c.params)
    public = {name for name in (*vars(whole), *vars(LocalModel)) if not name.startswith("_")}
    own = {name for name in (*vars(parts), *vars(Parts)) if not name.startswith("_")}
    assert public <= own and {"curvature", "handed_over", "operator", "losses"} <= public


def test_parts_say_that_they_were_handed_over():
    c = case("mlp")
    w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    d = (torch.ones_like(w),)
    with pytest.warns(HandedOver, match="Squash"):
        parts = expand([(lambda: c.x @ Squash.apply(w), c.loss)] * 2, None, [w], retain=True)
        found = parts.curvature(d)
    assert "Squash" in parts.handed_over
    expected = expand(lambda: c.x @ w.tanh(), c.loss, [w]).curvature(d)
    torch.testing.assert_close(found, torch.cat([expected, expected]))
