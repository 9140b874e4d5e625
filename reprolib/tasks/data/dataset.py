"""``load`` a data set by name: tensors of the raw, published values, verified on each load."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from reprolib.errors import DataError, InvalidInput
from reprolib.tasks.data.catalog import Entry, File
from reprolib.tasks.data.store import data_folder, entry, locate, missing, read


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        x: raw values; images uint8 ``(n, C, H, W)``, LIBSVM sets float32 ``(n, features)``.
        y: int64 ``(n,)`` in ``0 .. classes - 1``.
    """

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: as in ``load(name)``.
        train: the published training part.
        test: the published test part; empty (n = 0) for LIBSVM sets that come as a single file.
        classes: number of classes.
        scale: what a raw value is divided by to lie in [0, 1]: 255 for images, 16 for digits, 1 for LIBSVM sets.
        images: where the training part holds several views of each image, how many images there are; else 0.
        files: checksums of what it was read from, by name.
        published: whether everybody has the same; features are what somebody's machine made of them.
    """

    name: str
    train: Split
    test: Split
    classes: int
    scale: float
    images: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    published: bool = True


def load(name: str, *, folder: str | os.PathLike | None = None, download: bool = True) -> Dataset:
    """Read a data set, downloading what is absent from the data folder first.

    Args:
        name: ``digits`` (needs scikit-learn and no file), ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` (fine
            labels), ``svhn`` (cropped, without the extra part), or of LIBSVM ``a9a``, ``w8a``, ``mushrooms``,
            ``phishing``, ``german.numer_scale``, ``australian`` (the smaller label in the file is class 0).
        folder: the data folder; None: ``$REPROLIB_DATA``, else the user's cache folder. Layout: see `store`.
        download: False: absent files are an error.

    Raises:
        UnknownName: no such data set.
        DataError: a file is absent, truncated, altered or cannot be downloaded.
    """
    which = entry(name)
    if which.kind == "digits":
        return _digits(which)
    place = data_folder(folder)
    absent = missing(which, place)
    if absent and not download:
        raise DataError(
            f"{place / absent[0].path} is missing: run `reprolib data fetch {name}`, or set $REPROLIB_DATA to the folder "
            "that has it"
        )
    if absent:
        from reprolib.tasks.data.fetch import fetch  # pooch is only needed here

        fetch(name, folder=place)
    train, test = (_split(which, files, part, place) for part, files in enumerate((which.train, which.test)))
    kind = "sha256 of the values" if which.kind == "libsvm" else "md5"  # as the catalogue has them, and just compared
    files = {file.name: f"{kind} {file.digest}" for file in which.files}
    return Dataset(name, train, test, which.classes, which.scale, files=files)


def _split(which: Entry, files: tuple[File, ...], part: int, folder: Path) -> Split:
    """The files of one split, one after the other."""
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    for file in files:
        path = locate(file, folder)
        if path is None:  # removed since we looked
            raise DataError(f"{folder / file.path} is missing: run `reprolib data fetch {which.name}`")
        x, y = read(which, file, path)
        xs += [] if x is None else [x]
        ys += [] if y is None else [y]
    if not files:
        return Split(torch.zeros((0, *which.shape)), torch.zeros(0, dtype=torch.int64))
    x, y = np.concatenate(xs), np.concatenate(ys)
    if which.labels:
        y = y == which.labels[1]
    expected = (which.sizes[part], *which.shape)
    if x.shape != expected or y.shape != expected[:1]:
        raise DataError(f"{which.name}: images {x.shape} and labels {y.shape} instead of {expected} and {expected[:1]}")
    return Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))


def _digits(which: Entry) -> Dataset:
    """scikit-learn's 1797 digits; within each part the order is the published one."""
    x, y, is_test = (torch.from_numpy(a.copy()) for a in _scikit_digits(which.sizes[1]))
    expected = (sum(which.sizes), *which.shape)
    if tuple(x.shape) != expected:
        raise DataError(f"scikit-learn's digits have shape {tuple(x.shape)} instead of {expected}")
    train, test = Split(x[~is_test], y[~is_test]), Split(x[is_test], y[is_test])
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    files = {"digits of scikit-learn": f"sha256 of the values {digest}"}
    return Dataset(which.name, train, test, which.classes, which.scale, files=files)


@functools.cache
def _scikit_digits(tests: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 1, 8, 8), labels (n,), and which are test samples (n,).

    Read from scikit-learn's file, not by scikit-learn: its import takes longer than many a run. Sample i is a test sample if SHA-256("reprolib digits i") is among the ``tests`` smallest: a hash and not a random
    generator, whose stream may change between versions.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None:
        raise DataError("digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path((sklearn.submodule_search_locations or [""])[0], "datasets", "data", "digits.csv.gz")
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
        x, y = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1]
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): install scikit-learn anew") from error
    order = sorted(range(len(x)), key=lambda i: hashlib.sha256(f"reprolib digits {i}".encode()).digest())
    is_test = np.zeros(len(x), dtype=bool)
    is_test[order[:tests]] = True
    return x, y, is_test


def mean_std(data: Dataset | str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (1/n) per channel of the training images, in units of ``raw / scale``.

    Computed from exact counts of the 256 values, so there is no rounding to speak of: MNIST (0.1307,), (0.3081,).

    Raises:
        InvalidInput: the data set has no uint8 images.
    """
    data = load(data) if isinstance(data, str) else data
    x = data.train.x
    if x.dtype != torch.uint8 or x.dim() != 4 or len(x) == 0:
        raise InvalidInput(f"mean_std needs uint8 images (n, C, H, W), and {data.name} has {x.dtype} {tuple(x.shape)}")
    means, stds = [], []
    value = torch.arange(256, dtype=torch.float64) / data.scale
    for channel in range(x.shape[1]):
        share = torch.bincount(x[:, channel].reshape(-1), minlength=256).double()
        share /= share.sum()
        mean = (share * value).sum()
        means.append(mean.item())
        stds.append((share * (value - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(stds)
