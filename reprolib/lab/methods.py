"""Methods by name: how to build the optimizer and its schedule, and how to take one step with either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

from reprolib.errors import InvalidInput, UnknownName
from reprolib.optim import (
    RED,
    Adler,
    CurveBall,
    NewtonCG,
    NewtonSummary,
    StepTunedSGD,
    plateau_schedule,
    ran_schedule,
    red_schedule,
)
from reprolib.tasks.task import Problem

RAN = (1.0, 0.5, 2.0)  # the phases of RAn: exploration, convergence, hyperexploration
# what a step reports: "loss" (with the L² term), "step" (the length that multiplies d), the method's traces and means
Step = dict[str, Tensor]
Make = Callable[..., tuple[torch.optim.Optimizer, LRScheduler]]  # (params, epochs, **options)


@dataclass(frozen=True)
class Method:
    """A training method. ``version`` is raised whenever its behaviour changes; the switches say what a step needs."""

    name: str
    label: str  # for legends; its colour is in figures.COLOURS
    make: Make
    options: frozenset[str]
    version: int = 1
    second: bool = False  # a step differentiates the gradient again
    closure: bool = False  # a step evaluates the loss and its gradient as often as it likes
    averages: bool = False  # what is evaluated is an average of the iterates, see `evaluating`
    decoupled: bool = False  # weight decay shrinks the weights beside the step, so the loss has no L² term
    separable: bool = False  # a weight moves by lr times a function of its own past gradients, see `ensemble`
    wants: str = ""  # further data: "summary", a batch of its own for the summary; "full", all training data
    traces: tuple[str, ...] = ()  # diagnostics that a history keeps beside loss and step
    means: tuple[str, ...] = ()  # those of which it keeps the mean over each epoch

    def build(self, params: Iterable[Tensor], epochs: int, **options: Any) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimizer, which `take_step` knows as one of this method, and its schedule by epochs.

        Raises:
            InvalidInput: the library that has it is not installed.
        """
        optimizer, scheduler = self.make(params, epochs, **options)
        optimizer.method = self  # type: ignore[attr-defined]
        return optimizer, scheduler

    def check(self, options: dict[str, Any]) -> None:
        """Raise :class:`UnknownName` for an option that the method does not have."""
        for name in options:
            if name not in self.options:
                raise UnknownName.among(f"option of {self.name}", name, self.options)


def _sgd(params: Iterable[Tensor], epochs: int, *, lr: float, decay: float = 1.0, weight_decay: float = 1e-7):
    optimizer = torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)
    return optimizer, ExponentialLR(optimizer, decay)


def _rmsprop(
    params: Iterable[Tensor],
    epochs: int,
    *,
    lr: float,
    decay: float = 1.0,
    beta2: float = 0.999,
    weight_decay: float = 1e-7,
):
    # Algorithm 3 with r = 1: RMSProp with bias correction, which is Adam without its first moment
    optimizer = torch.optim.Adam(params, lr=lr, betas=(0.0, beta2), eps=1e-8, weight_decay=weight_decay)
    return optimizer, ExponentialLR(optimizer, decay)


def _robbins_monro(params: Iterable[Tensor], epochs: int, *, lr: float, alpha: float = 0.6, weight_decay: float = 1e-7):
    """SGD with τ_k = τ0 k^(−α): what RED's figure 9 compares with; its α is not stated, only ½ < α < 1."""
    if not 0.5 < alpha < 1:
        raise InvalidInput(f"alpha = {alpha}: ½ < α < 1, for convergence")
    optimizer = torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)
    group = optimizer.param_groups[0]
    group |= {"first": lr, "taken": 0}

    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["taken"] += 1
            group["lr"] = group["first"] * (group["taken"] + 1) ** -alpha

    optimizer.register_step_post_hook(decay)
    return optimizer, ExponentialLR(optimizer, 1.0)


def _red(
    params: Iterable[Tensor],
    epochs: int,
    *,
    schedule: str = "red",
    cycle: Sequence[int] | None = None,
    batch_norm: str | None = None,
    **options: Any,
):
    engine = {} if batch_norm is None else {"batch_norm": batch_norm}
    optimizer = RED(params, engine=engine, **options)
    if cycle is not None and schedule != "ran":
        raise InvalidInput("a cycle is of the schedule 'ran'")
    if schedule == "red":
        return optimizer, red_schedule(optimizer, epochs)
    if schedule == "ran":
        phases = () if cycle is None else (list(zip(cycle, RAN, strict=True)),)
        return optimizer, ran_schedule(optimizer, *phases)
    if schedule == "cosine":
        return optimizer, CosineAnnealingLR(optimizer, epochs)
    if schedule == "constant":
        return optimizer, ExponentialLR(optimizer, 1.0)
    raise UnknownName.among("schedule", schedule, ("red", "ran", "cosine", "constant"))


def _summary(params: Iterable[Tensor], epochs: int, *, schedule: str = "plateau", **options: Any):
    plateau = {name: options.pop(name) for name in ("factor", "patience") if name in options}
    optimizer = NewtonSummary(params, **options)
    if schedule == "plateau":
        return optimizer, plateau_schedule(optimizer, **plateau)
    if schedule == "constant":
        return optimizer, ExponentialLR(optimizer, 1.0)
    raise UnknownName.among("schedule", schedule, ("plateau", "constant"))


def _csdd(params: Iterable[Tensor], epochs: int, *, decay: float = 1.0, **options: Any):
    optimizer = NewtonCG(params, **options)
    return optimizer, ExponentialLR(optimizer, decay)


def _curveball(params: Iterable[Tensor], epochs: int, *, decay: float = 1.0, **options: Any):
    optimizer = CurveBall(params, **options)
    return optimizer, ExponentialLR(optimizer, decay)


def _adler(params: Iterable[Tensor], epochs: int, *, decay: float = 1.0, **options: Any):
    optimizer = Adler(params, **options)
    return optimizer, ExponentialLR(optimizer, decay)


def _step_tuned(params: Iterable[Tensor], epochs: int, *, decay: float = 1.0, **options: Any):
    optimizer = StepTunedSGD(params, **options)
    return optimizer, ExponentialLR(optimizer, decay)


def _library(module: str, name: str, **fixed: Any) -> Make:
    """The optimizer ``name`` of a library, with the library's defaults for what is neither ``fixed`` nor given."""

    def make(params: Iterable[Tensor], epochs: int, *, decay: float = 1.0, **options: Any):
        if "beta1" in options or "beta2" in options:  # all of them have the same defaults
            options["betas"] = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
        kind = getattr(_imported(module), name)
        with redirect_stdout(StringIO()):  # some announce their kind of weight decay
            optimizer = kind(params, **fixed | options)
        return optimizer, ExponentialLR(optimizer, decay)

    return make


def _imported(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        message = f"the package {error.name!r} is not installed: pip install 'reprolib[baselines]'"
        raise InvalidInput(message) from error


def _lbfgs(params: Iterable[Tensor], epochs: int, *, weight_decay: float = 0.0, **options: Any):
    optimizer, scheduler = _library("torch.optim", "LBFGS")(params, epochs, **options)
    optimizer.param_groups[0]["weight_decay"] = weight_decay  # the loss that it minimises has it, see `take_step`
    return optimizer, scheduler


def _schedule_free(params: Iterable[Tensor], epochs: int, **options: Any):
    optimizer: Any
    optimizer, scheduler = _library("schedulefree", "AdamWScheduleFree")(params, epochs, **options)
    optimizer.train()
    return optimizer, scheduler


L2 = "l2"  # the L² term of the loss
DESCENT = "descent"  # whether a step went downhill on its batch: the mean over an epoch is RED's eq. (26)
_COMMON = frozenset({"lr", "decay", "weight_decay"})
_ADAM = _COMMON | {"beta1", "beta2", "eps"}
_RED_OPTIONS = frozenset(
    [
        "schedule",
        "cycle",
        "batch_norm",
        "lr",
        "beta1",
        "beta2",
        "beta3",
        "eps",
        "weight_decay",
        "clamp",
        "factor",
        "absolute",
        "every",
        "backend",
        "check_every",
    ]
)
_SUMMARY_OPTIONS = frozenset(
    [
        "schedule",
        "factor",
        "patience",
        "groups",
        "damping",
        "cubic",
        "period",
        "momentum",
        "eta_momentum",
        "weight_decay",
        "dampening",
        "average",
        "window",
        "positive",
        "metric",
        "ridge",
        "backend",
        "check_every",
    ]
)
_CSDD_OPTIONS = frozenset(
    [
        "lr",
        "decay",
        "weight_decay",
        "taylor_ratio",
        "max_iter",
        "tolerance",
        "warm_start",
        "tries",
        "fallback",
        "truncate",
        "search",
        "curvature",
        "printed",
        "backend",
        "check_every",
    ]
)
_CURVEBALL_OPTIONS = _COMMON | {
    "momentum",
    "damping",
    "auto_damping",
    "factor",
    "test_every",
    "every",
    "backend",
    "check_every",
}
_STEP_TUNED_OPTIONS = _COMMON | {"nu", "beta", "bounds", "delta", "check_every"}
_ADLER_OPTIONS = _COMMON | {"beta", "eps", "curvature", "average", "regularised", "backend", "check_every"}
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", "SGD, tuned", _sgd, _COMMON, separable=True),
        Method("rmsprop", "RMSProp, tuned", _rmsprop, _COMMON | {"beta2"}, separable=True),
        Method("red-sgd", "RED-SGD", _red, _RED_OPTIONS, means=(DESCENT, L2)),
        Method(
            "red-rmsprop",
            "RED-RMSProp",
            lambda p, n, **o: _red(p, n, preconditioner="rmsprop", **o),
            _RED_OPTIONS,
            means=(DESCENT, L2),
        ),
        Method("curveball", "CurveBall", _curveball, _CURVEBALL_OPTIONS, traces=("momentum", "damping", "ratio")),
        Method("adler", "ADLER", _adler, _ADLER_OPTIONS),
        Method(
            "summary",
            "NewtonSummary",
            _summary,
            _SUMMARY_OPTIONS,
            version=2,  # 1: the summary's batch was the training batch
            wants="summary",
            traces=("eta_min", "eta_max", "negative"),
        ),
        Method(
            "csdd",
            "NewtonCG",
            _csdd,
            _CSDD_OPTIONS,
            version=2,  # 1: the batch of the step stood for the data, so none was skipped
            wants="full",
            traces=("iterations", "tries", "negative_curvature", "screened"),
        ),
        # what RED's Figure 9 compares with
        Method("step-tuned", "Step-Tuned SGD", _step_tuned, _STEP_TUNED_OPTIONS, traces=("gamma",)),
        Method("robbins-monro", "SGD, Robbins–Monro", _robbins_monro, frozenset({"lr", "alpha", "weight_decay"})),
        # from libraries: an option that is not given has the library's default
        Method(
            "momentum",
            "SGD with momentum",
            _library("torch.optim", "SGD", momentum=0.9),
            _COMMON | {"momentum", "nesterov"},
            separable=True,
            means=(DESCENT,),
        ),
        Method("adam", "Adam", _library("torch.optim", "Adam"), _ADAM, separable=True, means=(DESCENT,)),
        Method("adamw", "AdamW", _library("torch.optim", "AdamW"), _ADAM, decoupled=True, separable=True),
        Method("adagrad", "AdaGrad", _library("torch.optim", "Adagrad"), _COMMON | {"eps"}, separable=True),
        Method(
            "torch-rmsprop",
            "RMSProp of PyTorch",
            _library("torch.optim", "RMSprop"),
            _COMMON | {"alpha", "eps", "momentum", "centered"},
            separable=True,
        ),
        Method(
            "lbfgs",
            "L-BFGS",
            _lbfgs,
            _COMMON | {"max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"},
            closure=True,
        ),
        Method(
            "shampoo",
            "Shampoo",
            _library("pytorch_optimizer", "Shampoo"),
            _COMMON | {"momentum", "preconditioning_compute_steps", "matrix_eps"},
        ),
        Method(
            "adahessian",
            "AdaHessian",
            _library("pytorch_optimizer", "AdaHessian"),
            _ADAM | {"hessian_power", "update_period", "num_samples"},
            second=True,
            decoupled=True,
        ),
        # without a learning rate: lr = 1 is a factor on what they find
        Method(
            "prodigy",
            "Prodigy",
            _library("prodigyopt", "Prodigy"),
            _ADAM | {"beta3", "d0", "d_coef", "growth_rate", "use_bias_correction", "safeguard_warmup"},
            decoupled=True,
        ),
        Method(
            "schedule-free",
            "Schedule-Free AdamW",
            _schedule_free,
            _ADAM | {"warmup_steps", "r", "weight_lr_power"},
            averages=True,
            decoupled=True,
        ),
        Method(
            "d-adaptation",
            "D-Adaptation, Adam",
            _library("dadaptation", "DAdaptAdam"),
            _ADAM | {"d0", "growth_rate", "use_bias_correction"},
        ),
    )
}


def method(name: str) -> Method:
    """The method called ``name``."""
    if name not in METHODS:
        raise UnknownName.among("method", name, METHODS)
    return METHODS[name]


def register(method: Method) -> Method:
    """Make a method of your own known by its name.

    Other processes know it if the module that does this is a plug-in, see :mod:`reprolib.lab.plugins`.

    Raises:
        InvalidInput: the name is taken.
    """
    if method.name in METHODS:
        raise InvalidInput(f"there is a method {method.name!r} already: choose another name")
    METHODS[method.name] = method
    return method


def further_data(optimizer: torch.optim.Optimizer, problem: Problem, step: int) -> dict[str, Any]:
    """What step number ``step`` of a method needs beside its batch, as :func:`take_step` takes it.

    For a summary every p steps, a batch p times as large: the summary then sees as many samples as the steps between.
    """
    wants = _kind(optimizer).wants
    if wants == "summary":
        return {"summary": problem.sample(optimizer.param_groups[0]["period"] * problem.batches.size, step)}
    return {"full": problem.whole()} if wants == "full" else {}


def take_step(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor], loss: Callable[[Tensor], Tensor], **further: Any
) -> Step:
    """One step of any method on one batch. Nothing in it waits for the device, unless the optimizer itself does.

    ``further``: see :func:`further_data`.
    """
    kind = _kind(optimizer)
    if hasattr(optimizer, "diagnostics"):
        optimizer.step(closure, loss, **further)  # type: ignore[call-overload]
        seen = optimizer.diagnostics
        nan = seen["loss"].new_tensor(torch.nan)  # of what a step that was skipped does not know
        report = {"loss": seen["objective"], "step": seen["step"]} | {name: seen.get(name, nan) for name in kind.traces}
        if DESCENT in kind.means:
            report[DESCENT] = (seen["slope"] >= 0).to(nan)
        if L2 in kind.means:
            report[L2] = seen["objective"] - seen["loss"]
        return report
    group = optimizer.param_groups[0]
    length = group["lr"] * group.get("d", 1.0)  # d: what a method without a learning rate puts in its place
    with torch.no_grad():
        l2 = 0.0 if kind.closure or kind.decoupled else _l2(group)

    def gradient() -> Tensor:
        """The loss of the batch; its gradient is left in the parameters."""
        optimizer.zero_grad(set_to_none=True)
        mean = loss(closure()).mean()
        if kind.closure:
            mean = mean + _l2(group)  # it knows nothing of weight decay
        if kind.second:
            params = group["params"]
            for p, g in zip(params, torch.autograd.grad(mean, params, create_graph=True), strict=True):
                p.grad = g
        else:
            mean.backward()
        return mean.detach()

    before = [p.clone() for p in group["params"]] if DESCENT in kind.means else []
    if kind.closure:
        mean: Tensor = optimizer.step(gradient)  # type: ignore[arg-type, assignment]
    else:
        mean = gradient()
        optimizer.step()
    report = {"loss": mean + l2, "step": torch.as_tensor(length, dtype=mean.dtype)}
    if before:
        report[DESCENT] = _downhill(group["params"], before, group["weight_decay"]).to(mean.dtype)
    if kind.second:
        optimizer.zero_grad(set_to_none=True)  # a gradient with a graph and its parameter keep each other alive
    return report


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the parameters are those that the method wants evaluated, outside those that it continues from."""
    if not _kind(optimizer).averages:
        yield
        return
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]


def _kind(optimizer: torch.optim.Optimizer) -> Method:
    """The method that built it, which says what a step needs."""
    if not hasattr(optimizer, "method"):
        raise InvalidInput(
            f"this {type(optimizer).__name__} was built by hand, so what its step needs is not known: build it with "
            "reprolib.lab.methods.method(NAME).build(params, epochs, **options), or call its step yourself"
        )
    return optimizer.method


@torch.no_grad()
def _downhill(params: list[Tensor], before: list[Tensor], weight_decay: float) -> Tensor:
    """Whether ⟨∇J, Δθ⟩ ≤ 0, with the gradient of the loss in ``grad``: the sign in eq. (26), whatever the optimizer."""
    slopes = (
        torch.sum((p.grad + weight_decay * old) * (p - old))  # type: ignore[operator]
        for p, old in zip(params, before, strict=True)
    )
    return sum(slopes) <= 0  # type: ignore[return-value]


def _l2(group: dict[str, Any]) -> Tensor | float:
    """λ/2 ‖θ‖²."""
    if not group["weight_decay"]:
        return 0.0
    return sum(0.5 * group["weight_decay"] * p.square().sum() for p in group["params"])
