"""What curvature costs: time and memory as ratios to one gradient of the same network and batch.

Every quantity contains what it needs (the gradient too, where it says so). Candidates take turns in one process, and the
median over the rounds is reported, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import UnknownName
from reprolib.lab.provenance import environment
from reprolib.tasks import networks

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {  # how to make it, batch size, image
    "lenet": (networks.lenet5, 256, (1, 28, 28)),
    "mlp": (lambda: networks.dense([784, 512, 512, 512, 10], nn.Tanh), 256, (1, 28, 28)),
    "vgg11": (networks.vgg11, 32, (3, 32, 32)),
    "vgg11-bn": (lambda: networks.vgg11(batch_norm=True), 32, (3, 32, 32)),
    "resnet18": (networks.resnet18, 16, (3, 32, 32)),
    "vit": (networks.VisionTransformer, 32, (3, 32, 32)),
}


@dataclass
class Bench:
    """One network with a batch, and the quantities that are timed on it."""

    net: nn.Module
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, name: str, device: str) -> Bench:
        """Network ``name`` at its size, with random images and labels from a fixed seed."""
        if name not in NETWORKS:
            raise UnknownName.among("network", name, NETWORKS)
        make, batch, shape = NETWORKS[name]
        g = torch.Generator().manual_seed(0)
        net = networks.initialised(make(), g).to(device)
        return cls(
            net, torch.randn(batch, *shape, generator=g).to(device), torch.randint(10, (batch,), generator=g).to(device)
        )

    @property
    def params(self) -> list[Tensor]:
        """θ."""
        return list(self.net.parameters())

    def closure(self) -> Tensor:
        """The outputs."""
        return self.net(self.x)

    def loss(self, outputs: Tensor) -> Tensor:
        """The per-sample losses."""
        return F.cross_entropy(outputs, self.y, reduction="none")

    def gradient(self) -> Any:
        """The unit: one forward and one backward pass."""
        return torch.autograd.grad(self.loss(self.closure()).mean(), self.params)

    def quantities(self) -> dict[str, Callable[[], Any]]:
        """Name -> what is timed."""

        def along_gradient(operator: str, backend: str) -> Any:
            model = expand(self.closure, self.loss, self.params, operator, backend, check=False)
            g = model.gradient
            return g, model.curvature(g)

        def product(backend: str) -> Any:
            model = expand(self.closure, self.loss, self.params, "ggn", backend, check=False)
            return model.product(direction)

        direction = self.gradient()
        return {
            "gradient": self.gradient,
            "gradient and per-sample curvature, tape": lambda: along_gradient("hessian", "tape"),
            "gradient and per-sample curvature, autodiff": lambda: along_gradient("hessian", "autodiff"),
            "gradient and GGN curvature, tape": lambda: along_gradient("ggn", "tape"),
            "GGN-vector product, tape": lambda: product("tape"),
        }


def measure(name: str, *, device: str = "cpu", rounds: int = 7) -> list[dict[str, Any]]:
    """One row per quantity of network ``name``: seconds, and time and peak memory in gradients."""
    bench = Bench.of(name, device)
    todo = bench.quantities()
    seconds: dict[str, list[float]] = {k: [] for k in todo}
    memory = {k: peak_memory(f, device) for k, f in todo.items()}  # also the warm-up
    order = list(todo)
    for _ in range(rounds):
        for k in order:
            start = _clock(device)
            kept = todo[k]()
            seconds[k].append(_clock(device) - start)
            del kept
        order = order[1:] + order[:1]
    unit_time, unit_memory = median(seconds["gradient"]), memory["gradient"]
    return [
        {
            "network": name,
            "quantity": k,
            "seconds": median(seconds[k]),
            "time": median(seconds[k]) / unit_time,
            "spread": (max(seconds[k]) - min(seconds[k])) / unit_time,
            "memory": memory[k] / unit_memory,
        }
        for k in todo
    ]


def peak_memory(f: Callable[[], Any], device: str) -> int:
    """Largest number of bytes that a call has allocated at once (inputs and weights not counted)."""
    f()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = f()
        del kept
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def record(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Write the rows with their provenance."""
    rounded = [{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"environment": environment(device), "rows": rounded}, indent=1) + "\n", encoding="utf-8"
    )


def _clock(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
