"""What curvature costs: time and memory as ratios to one gradient of the same network and batch.

A row is a quantity of a network, computed by a library. What belongs together in a step is measured together: curvature
contains the gradient, a product does not. Candidates take turns in one process, and the median over the rounds is
reported, so that what else the machine does falls on all of them alike. Each value is also compared once with a float64
reference: a fast wrong answer should be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from statistics import median
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.bench import peers
from reprolib.bench.harness import Bench, Costs, peak_memory, take_turns
from reprolib.curvature.tree import inner

TENSOR_GROUPS = ("lenet", "mlp", "vgg11")  # few enough tensors for a group each
COLUMNS = ("network", "quantity", "library", "seconds", "time", "spread", "memory", "error", "threads", "note")


# ---- what is timed


class Quantity(NamedTuple):
    """A candidate. ``prepare`` sets it up; the function it returns is timed, and gives what a step keeps and the answer."""

    name: str
    prepare: Callable[[Bench], Callable[[], tuple[Any, Any]]]
    reference: str  # what the answer is compared with
    library: str = "reprolib"
    samples: int | None = None  # how many of the batch are compared; all


def gradient_and(question: str, *arguments: Any, **options: Any) -> Callable[[Bench], Callable[[], tuple[Any, Any]]]:
    """The gradient and the answer to ``question`` along d, as one step of a method needs them."""

    def prepare(b: Bench) -> Callable[[], tuple[Any, Any]]:
        def step() -> tuple[Any, Any]:
            model = b.model(**options)
            return model.gradient, getattr(model, question)(b.d, *arguments)

        return step

    return prepare


def summary(third: bool) -> Callable[[Bench], Callable[[], tuple[Any, Any]]]:
    """The summary of a batch of its own, along a direction that is given: its gradient is part of the answer."""
    return lambda b: lambda: (None, b.model().summary(b.d, third=third))


def product(**options: Any) -> Callable[[Bench], Callable[[], tuple[Any, Any]]]:
    """C d alone."""
    return lambda b: lambda: (None, b.model(**options).product(b.d))


def double_backward(b: Bench, d: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
    """∇²J d as one would write it in PyTorch; attention as plain products, its fused kernel has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.grad(b.gradient(create_graph=True), b.params, b.d if d is None else d)


def quantities(name: str, couples: bool) -> list[Quantity]:
    """The candidates for network ``name``. By index: the split by sample of RED's Algorithm 2, where samples are coupled."""
    by_index = partial(gradient_and, "curvature", batch_norm="by-index")
    found = [
        Quantity("gradient", lambda b: lambda: (None, b.gradient()), "gradient"),
        Quantity("curvature", by_index(), "curvature by index"),
        Quantity("curvature-shared", by_index(products="shared"), "curvature by index"),
        Quantity("curvature-recompute", by_index(products="shared", memory="recompute"), "curvature by index"),
        Quantity("curvature-autodiff", gradient_and("curvature", backend="autodiff"), "curvature"),
        Quantity("ggn-curvature", gradient_and("curvature", curvature="ggn"), "ggn-curvature"),
        Quantity("ggn-product", product(curvature="ggn"), "ggn-product"),
        Quantity("hessian-product", product(), "hessian-product"),
        Quantity("hessian-product", lambda b: lambda: (None, double_backward(b)), "hessian-product", "torch"),
        Quantity("hessian-product-finitediff", product(backend="finitediff"), "hessian-product"),
    ]
    if couples:
        found += [
            Quantity("curvature-exact", gradient_and("curvature", batch_norm="exact"), "curvature"),
            Quantity(
                "curvature-exact-shared",
                gradient_and("curvature", batch_norm="exact", products="shared"),
                "curvature",
            ),
        ]
    if name in TENSOR_GROUPS:
        found += [
            Quantity("summary", summary(third=False), "summary", samples=4),  # many products in float64
            Quantity("summary-third", summary(third=True), "summary-third", samples=4),
            Quantity("hessian-product-complexstep", product(backend="complexstep"), "hessian-product"),
        ]
    return found + [
        Quantity(f"{operator}-product", prepare, f"{operator}-product", library)
        for (library, operator), prepare in peers.PRODUCTS.items()
    ]


# ---- the float64 values


def summary_by_products(b: Bench, third: bool) -> tuple[Tensor, ...]:
    """The summary's Hessian from S products by double backward; its third order from central differences of products."""
    blocks = [tuple(v if i == k else torch.zeros_like(v) for i, v in enumerate(b.d)) for k in range(len(b.d))]
    rows = [double_backward(b, block) for block in blocks]
    hessian = torch.stack([torch.stack([torch.sum(x * v) for x, v in zip(row, b.d, strict=True)]) for row in rows])
    if not third:
        return (hessian,)

    def curvature_at(k: int, h: float) -> Tensor:  # d_kᵀ∇²J(θ + h d_k) d_k
        at = Bench(deepcopy(b.net), b.x, b.y, b.d)
        with torch.no_grad():
            at.params[k].add_(h * b.d[k])
        return inner(blocks[k], double_backward(at, blocks[k]))

    steps = [1e-6 / float(v.norm()) for v in b.d]  # so short that hardly a maximum changes its place
    cubes = [(curvature_at(k, h) - curvature_at(k, -h)) / (2 * h) for k, h in enumerate(steps)]
    return hessian, torch.stack(cubes)


REFERENCES: dict[str, Callable[[Bench], Any]] = {
    "gradient": Bench.gradient,
    "curvature": lambda b: b.model(backend="autodiff").curvature(b.d),
    # where samples are coupled the terms have no meaning of their own, only their mean dᵀ∇²J d
    "curvature by index": lambda b: inner(b.d, double_backward(b)) if b.couples else REFERENCES["curvature"](b),
    "ggn-curvature": lambda b: b.model("ggn", "autodiff").curvature(b.d),
    "ggn-product": lambda b: b.model("ggn", "autodiff").product(b.d),
    "hessian-product": double_backward,
    "summary": lambda b: summary_by_products(b, third=False),
    "summary-third": lambda b: summary_by_products(b, third=True),
}


def relative_error(answer: Any, reference: Any) -> float:
    """‖answer − reference‖ / ‖reference‖, of a summary the largest of its parts; one number is a mean over the samples."""
    if hasattr(answer, "hessian"):
        parts = zip((answer.hessian, answer.third), reference, strict=False)
        return max(relative_error(a, r) for a, r in parts)
    a, r = _flat(answer), _flat(reference)
    return float((a.mean() - r if r.numel() == 1 else a - r).norm() / r.norm())


def _flat(x: Any) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in ([x] if isinstance(x, Tensor) else x)])


# ---- measuring


def measure(
    name: str, *, device: str = "cpu", rounds: int = 7, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """One row per quantity of network ``name``: seconds, time and peak memory in gradients, error, or why there is none."""
    bench = Bench.of(name, device)
    rows: list[dict[str, Any]] = []
    todo: list[tuple[dict[str, Any], Callable[[], Any]]] = []
    right = _Once(bench.double())
    for q in quantities(name, bench.couples):
        row: dict[str, Any] = {"network": name, "quantity": q.name, "library": q.library}
        rows.append(row)
        say(f"{name}: trying {q.name} of {q.library}")
        try:
            run = q.prepare(bench)
            answer = q.prepare(bench.first(q.samples))()[1]
            row["error"] = relative_error(answer, right.of(q.reference, q.samples))
            del answer
            row["memory"] = peak_memory(run, device)
            todo.append((row, run))
        except ModuleNotFoundError as error:
            row["note"] = f"not installed: {error.name}"
        except Exception as error:
            line = shorten((str(error).splitlines() or [""])[0], 160, placeholder=" …")
            row["note"] = f"fails: {type(error).__name__}: {line}"
    del right
    seconds = take_turns([run for _, run in todo], device, rounds, lambda line: say(f"{name}: {line}"))
    unit_time, unit_memory = median(seconds[0]), rows[0]["memory"]
    for (row, _), taken in zip(todo, seconds, strict=True):
        row["seconds"] = median(taken)
        row["time"] = median(taken) / unit_time
        row["spread"] = (max(taken) - min(taken)) / unit_time
        row["memory"] /= unit_memory
    return [{**row, "threads": torch.get_num_threads()} for row in rows]


class _Once:
    """The float64 references of one network, each computed when it is first asked for."""

    def __init__(self, bench: Bench):
        self.bench, self.known = bench, dict[str, Any]()

    def of(self, name: str, samples: int | None) -> Any:
        if name not in self.known:
            self.known[name] = REFERENCES[name](self.bench.first(samples))
        return self.known[name]


def costs(rows: list[dict[str, Any]], device: str, rounds: int, minutes: float) -> Costs:
    """The rows with their provenance."""
    return Costs.of(rows, device, rounds, minutes, COLUMNS, also=peers.PACKAGES.values())
