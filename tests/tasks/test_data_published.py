"""The published files themselves, where they are: skipped, with the command that gets them, where they are not."""

from __future__ import annotations

import pytest
import torch

from reprolib.tasks.batches import Batches
from reprolib.tasks.data import CATALOG, data_folder, load, mean_std
from reprolib.tasks.data.store import missing


def published(name: str):
    if missing(CATALOG[name], data_folder()):
        pytest.skip(f"{name} is not in {data_folder()}: `reprolib data fetch {name}` gets it")
    return load(name, download=False)


# Table 2 of the RED paper. Mutation: the coarse label of CIFAR-100 in place of the fine one, which leaves 20 classes.
@pytest.mark.claim(
    "red-tab2",
    file="tasks/data/formats.py",
    old="records[:, label_bytes - 1]",
    new="records[:, 0]",
    mutation="CIFAR-100's coarse label read as the class: 20 classes instead of 100",
)
@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        ("mnist", 60_000, 10_000, (1, 28, 28), 10),
        ("cifar10", 50_000, 10_000, (3, 32, 32), 10),
        ("cifar100", 50_000, 10_000, (3, 32, 32), 100),
    ],
)
def test_table_2(name, train, test, shape, classes):
    data = published(name)
    for split, count in ((data.train, train), (data.test, test)):
        assert split.x.shape == (count, *shape) and split.x.dtype == torch.uint8
        assert split.y.shape == (count,) and split.y.unique().tolist() == list(range(classes))
    assert data.classes == classes
    assert len(Batches(data.train.x, data.train.y, 256, seed=0)) == {"mnist": 235}.get(name, 196)  # Table 3


# the constants that everybody normalises with, as printed with the published data
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mnist", (0.1307,), (0.3081,)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_mean_and_standard_deviation(name, mean, std):
    found = mean_std(published(name))
    assert found[0] == pytest.approx(mean, abs=6e-5)
    assert found[1] == pytest.approx(std, abs=6e-5)


@pytest.mark.parametrize("name", ["fashion-mnist", "svhn"])
def test_other_images(name):
    data = published(name)
    assert len(data.train) == CATALOG[name].sizes[0]
    assert data.train.y.unique().tolist() == data.test.y.unique().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("a9a", 7_841, 24_720),
        ("w8a", 1_479, 48_270),
        ("mushrooms", 4_208, 3_916),
        ("phishing", 6_157, 4_898),
        ("german.numer_scale", 300, 700),
        ("australian", 307, 383),
    ],
)
def test_libsvm_labels(name, positive, negative):
    data = published(name)
    assert torch.bincount(data.train.y).tolist() == [negative, positive]
    assert data.train.x.isfinite().all() and data.train.x.dtype == torch.float32
    assert len(data.test) == (16_281 if name == "a9a" else 0)
