"""What curvature costs: time and memory as ratios to one gradient of the same network and batch.

A row is a quantity of a network, computed by a library. What belongs together in a step is measured together: curvature
contains the gradient, a product does not. Candidates take turns in one process, and the median over the rounds is
reported, so that what else the machine does falls on all of them alike. Each value is also compared once with a float64
reference: a fast wrong answer should be seen.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.curvature.tree import inner
from reprolib.errors import RecordError, UnknownName
from reprolib.lab import peers
from reprolib.lab.provenance import environment
from reprolib.lab.record import write
from reprolib.tasks import networks

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {  # how to make it, batch size, image
    "lenet": (lambda: networks.lenet5(pool=nn.MaxPool2d), 256, (1, 28, 28)),
    "mlp": (lambda: networks.dense([784, 512, 512, 512, 10], nn.Tanh), 256, (1, 28, 28)),
    "vgg11": (networks.vgg11, 32, (3, 32, 32)),
    "vgg11-bn": (lambda: networks.vgg11(batch_norm=True), 32, (3, 32, 32)),
    "resnet18": (networks.resnet18, 16, (3, 32, 32)),
    "vit": (networks.VisionTransformer, 32, (3, 32, 32)),
}
TENSOR_GROUPS = ("lenet", "mlp", "vgg11")  # few enough tensors for a group each


@dataclass
class Bench:
    """A network with a batch and a direction d, its gradient: what every candidate works on."""

    net: nn.Module
    x: Tensor
    y: Tensor
    d: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, name: str, device: str, batches: int = 1) -> Bench:
        """Network ``name`` at its size, with so many batches of random images and labels from a fixed seed."""
        if name not in NETWORKS:
            raise UnknownName.among("network", name, NETWORKS)
        make, batch, shape = NETWORKS[name]
        g = torch.Generator().manual_seed(0)
        net = networks.initialised(make(), g).to(device)
        n = batches * batch
        x, y = torch.randn(n, *shape, generator=g), torch.randint(10, (n,), generator=g)
        bench = cls(net, x.to(device), y.to(device))
        bench.d = bench.first(batch).gradient()
        return bench

    def first(self, samples: int | None) -> Bench:
        """The same with fewer samples."""
        return Bench(self.net, self.x[:samples], self.y[:samples], self.d)

    def double(self) -> Bench:
        """The same in float64."""
        return Bench(deepcopy(self.net).double(), self.x.double(), self.y, tuple(v.double() for v in self.d))

    @property
    def params(self) -> list[Tensor]:
        """θ."""
        return list(self.net.parameters())

    @property
    def couples(self) -> bool:
        """Whether a batch-norm makes the losses depend on the other samples."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.net.modules())

    def closure(self) -> Tensor:
        """The outputs."""
        return self.net(self.x)

    def loss(self, outputs: Tensor) -> Tensor:
        """The per-sample losses."""
        return F.cross_entropy(outputs, self.y, reduction="none")

    def gradient(self, create_graph: bool = False) -> tuple[Tensor, ...]:
        """The unit: one forward and one backward pass."""
        return torch.autograd.grad(self.loss(self.closure()).mean(), self.params, create_graph=create_graph)

    def model(self, curvature: str = "hessian", backend: str = "tape", **options: Any) -> Any:
        """The local model, without the check that no optimizer needs twice."""
        return expand(self.closure, self.loss, self.params, curvature, backend, check=False, **options)


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


def take_turns(
    calls: Sequence[Callable[[], Any]],
    device: str,
    rounds: int,
    say: Callable[[str], None],
    before: Sequence[Callable[[], Any]] = (),
) -> list[list[float]]:
    """Seconds of each call in each round; every round begins with another one. ``before``: done first, and not timed."""
    seconds: list[list[float]] = [[] for _ in calls]
    for k in range(rounds):
        say(f"round {k + 1} of {rounds}")
        for i in ((i + k) % len(calls) for i in range(len(calls))):
            if before:
                before[i]()
            start = _clock(device)
            kept = calls[i]()
            seconds[i].append(_clock(device) - start)
            del kept
    return seconds


class _Once:
    """The float64 references of one network, each computed when it is first asked for."""

    def __init__(self, bench: Bench):
        self.bench, self.known = bench, dict[str, Any]()

    def of(self, name: str, samples: int | None) -> Any:
        if name not in self.known:
            self.known[name] = REFERENCES[name](self.bench.first(samples))
        return self.known[name]


def peak_memory(f: Callable[[], Any], device: str, before: Callable[[], Any] = lambda: None) -> int:
    """Largest number of bytes that a call has allocated at once (inputs and weights not counted, nor ``before`` it)."""
    before()
    f()
    before()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        return torch.cuda.max_memory_allocated() - held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = f()
        del kept
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _clock(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


# ---- keeping the result

COLUMNS = ("network", "quantity", "library", "seconds", "time", "spread", "memory", "error", "threads", "note")


@dataclass
class Costs:
    """The rows of a benchmark (``table``, one column per name in its ``COLUMNS``) and where and with what they were made."""

    table: pd.DataFrame
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        rows: list[dict[str, Any]],
        device: str,
        rounds: int,
        minutes: float,
        columns: Sequence[str] = COLUMNS,
        also: Iterable[str] = tuple(peers.PACKAGES.values()),
        **more: Any,
    ) -> Costs:
        """The rows with their provenance; ``minutes`` of processor time is what they took, ``more`` is kept with it."""
        sizes = {}
        for name in dict.fromkeys(row["network"] for row in rows):
            make, batch, shape = NETWORKS[name]
            parameters = sum(p.numel() for p in make().parameters())
            sizes[name] = {"batch": batch, "image": list(shape), "parameters": parameters}
        about = {
            "environment": environment(device, also),
            "rounds": rounds,
            "minutes": round(minutes, 1),
            "networks": sizes,
            **more,
        }
        return cls(pd.DataFrame(rows, columns=list(columns)), about)

    def save(self, path: Path) -> None:
        """Write ``path``.csv and ``path``.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        csv, meta = _files(path)
        write(csv, self.table.to_csv(index=False, float_format="%.4g", lineterminator="\n"))
        write(meta, json.dumps(self.about, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Costs:
        """Read them again.

        Raises:
            RecordError: there are none.
        """
        csv, meta = _files(path)
        if not (csv.exists() and meta.exists()):
            raise RecordError(f"no measurements {path.name!r} in {path.parent}: make them with `make bench`")
        return cls(pd.read_csv(csv, keep_default_na=True), json.loads(meta.read_text(encoding="utf-8")))

    def value(self, network: str, quantity: str, column: str = "time", library: str = "reprolib") -> float:
        """One number of the table; NaN if there is none."""
        t = self.table
        found = t.loc[(t["network"] == network) & (t["quantity"] == quantity) & (t["library"] == library), column]
        return float(found.iloc[0]) if len(found) else float("nan")


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".csv"), path.with_name(path.name + ".json")
