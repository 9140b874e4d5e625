"""A task: data, network and per-sample loss under one name. ``build`` makes the live thing for a seed and a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.errors import InvalidInput, UnknownName
from reprolib.tasks import networks
from reprolib.tasks.augment import Augment, compose, horizontal_flip, random_crop, rotation
from reprolib.tasks.batches import Batches, stream
from reprolib.tasks.data import Dataset, load, mean_std
from reprolib.tasks.features import cifar100_features, digits_features, imagenet_features
from reprolib.tasks.memory import WithMemory
from reprolib.tasks.text import LENGTH, SYMBOLS, prose

Pair = tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]  # closure and loss


@dataclass(frozen=True)
class Task:
    """What is trained on what. ``version`` is raised whenever the behaviour changes: records depend on it."""

    name: str
    dataset: str | Callable[..., Dataset]  # a name that `load` knows, or a function that returns your own; see `_data`
    network: Callable[[], nn.Module]
    kind: str  # the loss: a key of LOSSES
    standardise: bool  # pixel values minus mean over standard deviation of the training images; else just within [0, 1]
    version: int = 1
    augment: Augment | None = None  # random changes of the (standardised) training images
    smoothing: float = 0.0  # of the labels, in training
    repeats: int = 1  # samples of a batch that come from one image, see `Batches`
    memory: int = 0  # the last layer also sees the features of so many samples before, see `WithMemory`

    @property
    def title(self) -> str:
        """The name for a reader: "MNIST classifier".

        >>> task("mnist-classifier").title, task("digits-autoencoder").title
        ('MNIST classifier', 'digits autoencoder')
        """
        title = self.name.replace("-", " ")
        for short, long in TITLES.items():
            title = title.replace(short, long)
        return title

    def build(
        self,
        seed: int,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        train_size: int | None = None,
        held_out: int = 0,
        test_size: int | None = None,
        batch_seed: int | None = None,
        download: bool = True,
    ) -> Problem:
        """The task at its start, a function of the seeds alone (initial weights, order of the batches).

        Args:
            seed: of the initial weights, and of the batches unless they have their own.
            batch_size: samples per step; the last batch of an epoch may be smaller.
            device: where data, network and batches live.
            dtype: of images and parameters.
            train_size: use only the first so many training samples.
            held_out: the last so many training samples (counted after ``train_size``) are kept for validation: then
                ``evaluate`` sees them, and not the test set.
            test_size: evaluate on the first so many test samples only.
            batch_seed: of the order of the batches and of the augmentation.
            download: fetch the data set if it is not here.
        """
        data = self._data(download)
        views = len(data.train) // data.images if data.images else 1
        if views > 1 and (train_size or held_out):
            raise InvalidInput(f"{self.name} has {views} views of each image: train on all of them")
        x, y = data.train.x[:train_size], data.train.y[:train_size]
        if not 0 <= held_out < len(x):
            raise InvalidInput(f"held_out = {held_out} of {len(x)} training samples: some must be left to train on")
        mean, std = torch.zeros(()), torch.ones(())
        if self.standardise:
            mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in mean_std(data))

        def prepared(x: Tensor) -> Tensor:
            if self.kind == "tokens":
                return x.to(device)
            return ((x.double() / data.scale - mean) / std).to(device, dtype)

        other = (data.test.x[:test_size], data.test.y[:test_size])
        if held_out:
            other = (x[-held_out:], y[-held_out:])
            x, y = x[:-held_out], y[:-held_out]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of what `initialised` leaves as its layer draws it: embeddings
            net = networks.initialised(self.network(), torch.Generator().manual_seed(seed))
        if self.memory:
            net = WithMemory(net, self.memory)
        batches = Batches(
            prepared(x),
            y.to(device),
            batch_size,
            seed=seed if batch_seed is None else batch_seed,
            augment=self.augment,
            views=views,
            repeats=self.repeats,
        )
        return Problem(
            task=self,
            net=net.to(device, dtype),
            batches=batches,
            held_out=(prepared(other[0]), other[1].to(device)),
            files=data.files,
            published=data.published,
        )

    def _data(self, download: bool) -> Dataset:
        """The data set; a function that fetches or makes something is told whether it may, if it has that parameter."""
        if not callable(self.dataset):
            return load(self.dataset, download=download)
        told = "download" in signature(self.dataset).parameters
        return self.dataset(download=download) if told else self.dataset()


@dataclass(frozen=True)
class Problem:
    """A task that runs: the network, its training batches, and what it is evaluated on."""

    task: Task
    net: nn.Module
    batches: Batches
    held_out: tuple[Tensor, Tensor]
    files: Mapping[str, str]  # of the data set, see `Dataset`
    published: bool  # the data set, see there

    def pair(self, x: Tensor, y: Tensor) -> Pair:
        """(closure, loss) of a batch, as the optimizers take them."""
        if isinstance(self.net, WithMemory):
            closure, targets = self.net.recalling(x, y)
            return closure, (lambda outputs: self.losses(outputs, x, targets, self.task.smoothing))
        return (lambda: self.net(self.inputs(x))), (lambda outputs: self.losses(outputs, x, y, self.task.smoothing))

    def inputs(self, x: Tensor) -> Tensor:
        """What the network sees of a sample: all of it, or all tokens but the last, which has no successor."""
        return x[:, :-1] if self.task.kind == "tokens" else x

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

            return (lambda: self.net(self.inputs(batches.x[chosen()]))), losses

        return [pair(start) for start in range(0, size, batches.size)]

    def whole(self) -> Sequence[Pair]:
        """Pairs that are all training data together, in their order and without augmentation."""
        x, y, size = self.batches.x, self.batches.y, self.batches.size
        return [self.pair(*chunk) for chunk in _chunks(x, y, size)]

    def losses(self, outputs: Tensor, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Per-sample losses (B,), see LOSSES; ``smoothing`` of the labels is for training only."""
        if self.task.kind == "classes":
            return F.cross_entropy(outputs, y, reduction="none", label_smoothing=smoothing)
        if self.task.kind == "tokens":
            return F.cross_entropy(outputs.transpose(1, 2), x[:, 1:], reduction="none").mean(1)
        return (outputs - x.flatten(1)).square().mean(1)

    def right(self, outputs: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
        """The share of right answers to each sample (B,); ``None`` where there is no right or wrong."""
        if self.task.kind == "classes":
            return (outputs.argmax(1) == y).double()
        if self.task.kind == "tokens":
            return (outputs.argmax(2) == x[:, 1:]).double().mean(1)
        return None

    @torch.no_grad()
    def evaluate(self, chunk: int = 1000) -> dict[str, float]:
        """Mean loss and, where answers are right or wrong, accuracy in [0, 1] on what was held out."""
        x, y = self.held_out
        training, loss, right = self.net.training, 0.0, 0.0
        self.net.eval()
        for xs, ys in _chunks(x, y, chunk):
            outputs = self.net(self.inputs(xs))
            loss += self.losses(outputs, xs, ys).double().sum().item()
            if (answers := self.right(outputs, xs, ys)) is not None:
                right += answers.sum().item()
        self.net.train(training)
        metrics = {"loss": loss / len(x)}
        return metrics if answers is None else metrics | {"accuracy": right / len(x)}


def _chunks(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(size), y.split(size), strict=True)


LOSSES = {
    "classes": "cross-entropy in nats; accuracy",
    "input": "squared error against the input itself, mean over the pixels",
    "tokens": "cross-entropy of each next token in nats, mean over the sample; accuracy",
}
TITLES = {
    "mnist": "MNIST",
    "cifar": "CIFAR-",
    "vgg": "VGG",
    "resnet18": "ResNet-18",
    "resnet": "ResNet",
    "vit": "ViT",
    "gpt": "GPT",
}

_CROP_AND_FLIP = compose(random_crop(4), horizontal_flip())  # RED's table 3; it states no padding
_AND_TURN = compose(_CROP_AND_FLIP, rotation(15.0))


def _digits_vit() -> nn.Module:
    return networks.VisionTransformer(width=16, heads=2, depth=1, patch=2, pixels=8, channels=1)


def _classes(name: str, dataset: str | Callable[[], Dataset], network: Callable[[], nn.Module], **more) -> Task:
    return Task(name, dataset, network, "classes", True, **more)


def _on_features(name: str, dataset: Callable[[], Dataset], inputs: int, classes: int) -> list[Task]:
    """A linear classifier on frozen features, and the same with repeated augmentation and label smoothing."""

    def network() -> nn.Module:
        return nn.Linear(inputs, classes)

    plain = Task(f"{name}-linear", dataset, network, "classes", False)
    return [plain, replace(plain, name=f"{plain.name}-with-tricks", repeats=4, smoothing=0.1)]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _classes("digits-classifier", "digits", lambda: networks.dense([64, 48, 24, 10], nn.Tanh)),
        Task("digits-autoencoder", "digits", lambda: networks.autoencoder(64, (48, 24, 8)), "input", False),
        _classes("digits-convnet", "digits", lambda: networks.convnet((1, 8, 16), 8)),
        _classes("digits-convnet-with-memory", "digits", lambda: networks.convnet((1, 8, 16), 8), memory=256),
        _classes("digits-convnet-with-batch-norm", "digits", lambda: networks.convnet((1, 8, 16), 8, batch_norm=True)),
        _classes("digits-resnet", "digits", lambda: networks.resnet((1, 2), width=4, channels=1)),
        _classes("digits-vit", "digits", _digits_vit),
        *_on_features("digits-features", digits_features, 32, 10),
        _classes("mnist-classifier", "mnist", networks.lenet_dense),
        _classes("mnist-lenet5", "mnist", networks.lenet5),
        Task("mnist-autoencoder", "mnist", networks.autoencoder, "input", False),
        _classes("cifar10-convnet", "cifar10", networks.convnet),
        _classes("cifar10-convnet-with-memory", "cifar10", networks.convnet, memory=256),
        _classes("cifar10-convnet-with-batch-norm", "cifar10", lambda: networks.convnet(batch_norm=True)),
        _classes("cifar10-vgg11", "cifar10", networks.vgg11, augment=_CROP_AND_FLIP),
        _classes("cifar10-vgg11-with-memory", "cifar10", networks.vgg11, augment=_CROP_AND_FLIP, memory=256),
        _classes("cifar10-small-vgg11", "cifar10", lambda: networks.vgg11(width=1 / 8), augment=_CROP_AND_FLIP),
        _classes("cifar10-resnet18", "cifar10", lambda: networks.resnet18(width=16), augment=_CROP_AND_FLIP),
        _classes(
            "cifar10-vit", "cifar10", lambda: networks.VisionTransformer(width=96, depth=4), augment=_CROP_AND_FLIP
        ),
        _classes("cifar100-convnet", "cifar100", lambda: networks.convnet(classes=100)),
        _classes("cifar100-convnet-with-memory", "cifar100", lambda: networks.convnet(classes=100), memory=256),
        _classes(
            "cifar100-convnet-with-batch-norm",
            "cifar100",
            lambda: networks.convnet(classes=100, batch_norm=True),
            augment=_AND_TURN,
        ),
        _classes("cifar100-vgg19", "cifar100", networks.vgg19, augment=_AND_TURN),
        _classes("cifar100-vgg19-with-memory", "cifar100", networks.vgg19, augment=_AND_TURN, memory=256),
        *_on_features("cifar100-features", cifar100_features, 128, 100),
        *_on_features("imagenet-features", imagenet_features, 2048, 1000),
        Task(
            "prose-small-gpt",
            lambda: prose(limit=40_000, length=32),
            lambda: networks.LanguageModel(SYMBOLS, width=16, heads=2, depth=1, length=32),
            "tokens",
            False,
        ),
        Task(
            "prose-gpt",
            prose,
            lambda: networks.LanguageModel(SYMBOLS, width=128, depth=4, length=LENGTH),
            "tokens",
            False,
            version=2,  # 1: the embedding was drawn from what the run before had left of the global generator
        ),
    )
}


def task(name: str) -> Task:
    """The task called ``name``."""
    if name not in TASKS:
        raise UnknownName.among("task", name, TASKS)
    return TASKS[name]


def register(task: Task) -> Task:
    """Make a task of your own known by its name.

    Other processes know it if the module that does this is a plug-in, see :mod:`reprolib.lab.plugins`.

    Raises:
        InvalidInput: the name is taken.
    """
    if task.name in TASKS:
        raise InvalidInput(f"there is a task {task.name!r} already: choose another name")
    TASKS[task.name] = task
    return task
