"""What all benchmarks share: networks with a batch, candidates that take turns, peak memory, and the file of the result."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import RecordError, UnknownName
from reprolib.lab.files import write
from reprolib.lab.provenance import environment
from reprolib.tasks import networks

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {  # how to make it, batch size, image
    "lenet": (lambda: networks.lenet5(pool=nn.MaxPool2d), 256, (1, 28, 28)),
    "mlp": (lambda: networks.dense([784, 512, 512, 512, 10], nn.Tanh), 256, (1, 28, 28)),
    "vgg11": (networks.vgg11, 32, (3, 32, 32)),
    "vgg11-bn": (lambda: networks.vgg11(batch_norm=True), 32, (3, 32, 32)),
    "resnet18": (networks.resnet18, 16, (3, 32, 32)),
    "vit": (networks.VisionTransformer, 32, (3, 32, 32)),
}


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
            start = clock(device)
            kept = calls[i]()
            seconds[i].append(clock(device) - start)
            del kept
    return seconds


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


def clock(device: str) -> float:
    """Seconds of process time; on a GPU, of wall time after the device has caught up."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


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
        columns: Sequence[str],
        also: Iterable[str] = (),
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

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether both files are there."""
        return all(file.exists() for file in _files(path))

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
