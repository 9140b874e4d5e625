"""A task: data, network and per-sample loss under one name. ``build`` makes the live thing for a seed and a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.errors import InvalidInput, UnknownName
from reprolib.tasks import networks
from reprolib.tasks.batches import Batches, stream
from reprolib.tasks.data import Dataset, load, mean_std

Pair = tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]  # closure and loss


@dataclass(frozen=True)
class Task:
    """What is trained on what. ``version`` is raised whenever the behaviour changes: records depend on it."""

    name: str
    dataset: str | Callable[[], Dataset]  # a name that `load` knows, or a function that returns your own
    network: Callable[[], nn.Module]
    kind: (
        str  # "classes": cross-entropy and accuracy; "input": squared error, mean over pixels, against the input itself
    )
    standardise: bool  # pixel values minus mean over standard deviation of the training images; else just within [0, 1]
    version: int = 1

    @property
    def title(self) -> str:
        """The name for a reader: "MNIST classifier".

        >>> task("mnist-classifier").title, task("digits-autoencoder").title
        ('MNIST classifier', 'digits autoencoder')
        """
        data, _, kind = self.name.partition("-")
        return f"{data.replace('mnist', 'MNIST').replace('cifar', 'CIFAR-')} {kind.replace('-', ' ')}"

    def build(
        self,
        seed: int,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        train_size: int | None = None,
        held_out: int = 0,
        download: bool = True,
    ) -> Problem:
        """The task at its start, a function of ``seed`` alone (initial weights, order of the batches).

        Args:
            seed: of the initial weights and of the batch order.
            batch_size: samples per step; the last batch of an epoch may be smaller.
            device: where data, network and batches live.
            dtype: of images and parameters.
            train_size: use only the first so many training samples.
            held_out: the last so many training samples (counted after ``train_size``) are kept for validation: then
                ``evaluate`` sees them, and not the test set.
            download: fetch the data set if it is not here.
        """
        data = self.dataset() if callable(self.dataset) else load(self.dataset, download=download)
        x, y = data.train.x[:train_size], data.train.y[:train_size]
        if not 0 <= held_out < len(x):
            raise InvalidInput(f"held_out = {held_out} of {len(x)} training samples: some must be left to train on")
        mean, std = torch.zeros(()), torch.ones(())
        if self.standardise:
            mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in mean_std(data))

        def prepared(images: Tensor) -> Tensor:
            return ((images.double() / data.scale - mean) / std).to(device, dtype)

        other = (data.test.x, data.test.y)
        if held_out:
            other = (x[-held_out:], y[-held_out:])
            x, y = x[:-held_out], y[:-held_out]
        net = networks.initialised(self.network(), torch.Generator().manual_seed(seed))
        return Problem(
            task=self,
            net=net.to(device, dtype),
            batches=Batches(prepared(x), y.to(device), batch_size, seed=seed),
            held_out=(prepared(other[0]), other[1].to(device)),
        )


@dataclass(frozen=True)
class Problem:
    """A task that runs: the network, its training batches, and what it is evaluated on."""

    task: Task
    net: nn.Module
    batches: Batches
    held_out: tuple[Tensor, Tensor]

    def pair(self, x: Tensor, y: Tensor) -> Pair:
        """(closure, loss) of a batch, as the optimizers take them."""
        return (lambda: self.net(x)), (lambda outputs: self.losses(outputs, x, y))

    def sample(self, size: int, step: int) -> Sequence[Pair]:
        """Pairs, of at most a batch each, that are ``size`` training samples (all, if there are fewer) of this seed and step.

        For what must not be estimated on the step's own batch. Nothing is fetched before a closure is called.
        """
        batches, size = self.batches, min(size, len(self.batches.x))

        @cache
        def order() -> Tensor:
            drawn = torch.randperm(len(batches.x), generator=stream(batches.seed, step, "sample"))
            return drawn[:size].to(batches.x.device)

        def pair(start: int) -> Pair:
            def chosen() -> Tensor:
                return order()[start : start + batches.size]

            def losses(outputs: Tensor) -> Tensor:
                return self.losses(outputs, batches.x[chosen()], batches.y[chosen()])

            return (lambda: self.net(batches.x[chosen()])), losses

        return [pair(start) for start in range(0, size, batches.size)]

    def whole(self) -> Sequence[Pair]:
        """Pairs that are all training data together, in their order and without augmentation."""
        x, y, size = self.batches.x, self.batches.y, self.batches.size
        return [self.pair(*chunk) for chunk in _chunks(x, y, size)]

    def losses(self, outputs: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Per-sample losses (B,): cross-entropy in nats, or the squared error averaged over the pixels."""
        if self.task.kind == "classes":
            return F.cross_entropy(outputs, y, reduction="none")
        return (outputs - x.flatten(1)).square().mean(1)

    @torch.no_grad()
    def evaluate(self, chunk: int = 2000) -> dict[str, float]:
        """Mean loss and, for classifiers, accuracy in [0, 1] on what was held out (the test set, or validation)."""
        x, y = self.held_out
        training, loss, right = self.net.training, 0.0, 0.0
        self.net.eval()
        for xs, ys in _chunks(x, y, chunk):
            outputs = self.net(xs)
            loss += self.losses(outputs, xs, ys).double().sum().item()
            if self.task.kind == "classes":
                right += (outputs.argmax(1) == ys).sum().item()
        self.net.train(training)
        metrics = {"loss": loss / len(x)}
        return metrics | ({"accuracy": right / len(x)} if self.task.kind == "classes" else {})


def _chunks(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(size), y.split(size), strict=True)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits-classifier", "digits", lambda: networks.dense([64, 48, 24, 10], nn.Tanh), "classes", True),
        Task("digits-autoencoder", "digits", lambda: networks.autoencoder(64, (48, 24, 8)), "input", False),
        Task("digits-convnet", "digits", lambda: networks.convnet((1, 8, 16), 8), "classes", True),
        Task(
            "digits-convnet-with-batch-norm",
            "digits",
            lambda: networks.convnet((1, 8, 16), 8, batch_norm=True),
            "classes",
            True,
        ),
        Task("mnist-classifier", "mnist", networks.lenet_dense, "classes", True),
        Task("mnist-lenet5", "mnist", networks.lenet5, "classes", True),
        Task("mnist-autoencoder", "mnist", networks.autoencoder, "input", False),
        Task("cifar10-convnet", "cifar10", networks.convnet, "classes", True),
        Task("cifar10-convnet-with-batch-norm", "cifar10", lambda: networks.convnet(batch_norm=True), "classes", True),
    )
}


def task(name: str) -> Task:
    """The task called ``name``."""
    if name not in TASKS:
        raise UnknownName.among("task", name, TASKS)
    return TASKS[name]
