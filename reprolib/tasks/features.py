"""Frozen features of images: what a trained network makes of them before its last layer, as a data set of vectors.

A folder has four arrays: ``train-x.npy`` (views · n, D), ``train-y.npy`` (n,), ``test-x.npy`` (m, D), ``test-y.npy`` (m,).
Several views of each training image (the first one not augmented) lie one set after the other; they are what repeated
augmentation draws from. :func:`write_features` makes such a folder from any network and data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.errors import DataError, InvalidInput
from reprolib.tasks import networks
from reprolib.tasks.augment import Augment, compose, horizontal_flip, random_crop
from reprolib.tasks.batches import Batches, stream
from reprolib.tasks.data import Dataset, Split, data_folder, load, mean_std

VIEWS = 4
PRETRAINED = "pretrained.json"
CHUNK = 1000
Forward = Callable[[Tensor], Tensor]


def load_features(folder: Path, classes: int) -> Dataset:
    """The features in ``folder`` as a data set, standardised per feature by the training images' first views.

    Raises:
        DataError: files are missing or do not belong together.
    """
    paths = [folder / f"{part}-{what}.npy" for part in ("train", "test") for what in ("x", "y")]
    try:
        x, y, test_x, test_y = (torch.from_numpy(np.load(path)) for path in paths)
        files = {path.name: f"sha256 {_digest(path)}" for path in paths}
    except (OSError, ValueError) as error:
        raise DataError(
            f"no features in {folder}: it needs train-x.npy, train-y.npy, test-x.npy, test-y.npy ({error})"
        ) from error
    n = len(y)
    if not n or len(x) % n or len(test_x) != len(test_y) or x.shape[1:] != test_x.shape[1:]:
        raise DataError(f"{folder}: features {tuple(x.shape)}, {tuple(test_x.shape)} of {n} and {len(test_y)} labels")
    if int(max(y.max(), test_y.max())) >= classes:
        raise DataError(f"{folder}: there are labels beyond the {classes} classes")
    mean, std = x[:n].double().mean(0), x[:n].double().std(0).clamp_min(1e-6)
    x, test_x = (((part.double() - mean) / std).float() for part in (x, test_x))
    train = Split(x, y.long().repeat(len(x) // n))
    test = Split(test_x, test_y.long())
    return Dataset(folder.name, train, test, classes, 1.0, images=n, files=files, published=False)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def write_features(folder: Path, body: Forward, data: Dataset, augment: Augment | None, views: int = VIEWS) -> None:
    """Write what ``body`` makes of the images of ``data`` (standardised), float16; views after the first are augmented."""
    if views > 1 and augment is None:
        raise InvalidInput("further views of an image are augmented ones: give an augmentation")
    prepare, parts = _standardised(data), []
    for view in range(views):
        for i, images in enumerate(data.train.x.split(CHUNK)):
            x = prepare(images)
            if view and augment:
                x = augment(x, stream(view, i, "features"))
            parts.append(body(x).half())
    test = [body(prepare(images)).half() for images in data.test.x.split(CHUNK)]
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"train-x": torch.cat(parts), "train-y": data.train.y, "test-x": torch.cat(test), "test-y": data.test.y}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.numpy())


def pretrain(
    net: nn.Sequential, data: Dataset, augment: Augment | None, epochs: int, lr: float = 3e-3
) -> dict[str, float]:
    """Train ``net`` by AdamW with a cosine schedule, batches of 128, seed 0; its accuracy and loss on the test images."""
    prepare = _standardised(data)
    batches = Batches(prepare(data.train.x), data.train.y, 128, seed=0, augment=augment)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for epoch in range(epochs):
        for x, y in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        outputs = torch.cat([net(prepare(images)) for images in data.test.x.split(CHUNK)])
    right = outputs.argsort(1, descending=True)[:, :5] == data.test.y[:, None]
    return {
        "accuracy": right[:, 0].double().mean().item(),
        "top5": right.any(1).double().mean().item(),
        "loss": F.cross_entropy(outputs, data.test.y).item(),
    }


def cifar100_features(download: bool = True) -> Dataset:
    """128 features of CIFAR-100 in four views, of a convolutional network that is trained at the first call (minutes).

    They lie in the data folder, with the network's own accuracy beside them (PRETRAINED). How a network ends depends on the
    machine: those of another one are others.

    Raises:
        DataError: they are not there, and neither they nor the images are to be fetched.
    """
    folder = data_folder() / "cifar100-features"
    if not (folder / PRETRAINED).exists():  # written last
        if not download:
            raise DataError(f"{folder} is missing: it is made by the first run on it, in some minutes")
        data, augment = load("cifar100"), compose(random_crop(4), horizontal_flip())
        net = _extractor(128, 100)
        found = pretrain(net, data, augment, epochs=8)
        write_features(folder, net[:-1].eval(), data, augment)
        (folder / PRETRAINED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return _kept(folder, 100)


def pretrained(name: str) -> dict[str, float] | None:
    """What the network behind the features in the data folder reached on the test images, if that is known."""
    try:
        return json.loads((data_folder() / name / PRETRAINED).read_text(encoding="utf-8"))
    except OSError:
        return None


def imagenet_features() -> Dataset:
    """Features of ImageNet-1K from a folder ``imagenet-features`` in the data folder, of a pretrained ResNet-50 (D = 2048).

    ImageNet is given out on registration only; :func:`write_features` shows the format.
    """
    return _kept(data_folder() / "imagenet-features", 1000)


@cache
def digits_features() -> Dataset:
    """32 features of scikit-learn's digits in four views: random convolutions, nothing trained, so alike on every machine."""
    data, prepare = load("digits"), _standardised(load("digits"))
    body = networks.initialised(networks.convnet((1, 16, 32), 8), torch.Generator().manual_seed(0))[:-2]  # type: ignore[index]
    shift = random_crop(1)
    with torch.no_grad():
        views = [
            body(x).mean((2, 3))
            for view in range(VIEWS)
            for x in [shift(prepare(data.train.x), stream(view, 0, "features")) if view else prepare(data.train.x)]
        ]
        test = body(prepare(data.test.x)).mean((2, 3))
    mean, std = views[0].mean(0), views[0].std(0)
    x, test = ((part - mean) / std for part in (torch.cat(views), test))
    train = Split(x, data.train.y.repeat(VIEWS))
    rest, images = Split(test, data.test.y), len(data.train)
    return Dataset("digits-features", train, rest, data.classes, 1.0, images=images, files=data.files)


@cache
def _kept(folder: Path, classes: int) -> Dataset:
    return load_features(folder, classes)


def _extractor(features: int, classes: int) -> nn.Sequential:
    """Four convolutions that halve the image, with batch-norm, and the mean over what is left of it."""
    body = networks.convnet((3, 32, 64, features), batch_norm=True)[:-2]  # type: ignore[index]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))
    networks.initialised(net, torch.Generator().manual_seed(0))
    return net


def _standardised(data: Dataset) -> Forward:
    """Raw images to what a network sees."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in mean_std(data))
    return lambda images: ((images.double() / data.scale - mean) / std).float()
