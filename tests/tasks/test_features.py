"""Frozen features and text as data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reprolib.errors import DataError, InvalidInput
from reprolib.tasks import networks, task
from reprolib.tasks.augment import horizontal_flip, random_crop
from reprolib.tasks.data import Dataset, Split, load
from reprolib.tasks.features import (
    VIEWS,
    digits_features,
    imagenet_features,
    load_features,
    pretrain,
    pretrained,
    write_features,
)
from reprolib.tasks.text import ALPHABET, LENGTH, SYMBOLS, prose


@pytest.fixture(scope="module")
def few() -> Dataset:
    digits = load("digits")
    return Dataset("few", *(Split(s.x[:300], s.y[:300]) for s in (digits.train, digits.test)), 10, 16.0)


def flat(x):
    return x.flatten(1)


def test_a_folder_of_features_is_what_was_written(tmp_path, few):
    write_features(tmp_path, flat, few, random_crop(1), views=3)
    data = load_features(tmp_path, 10)
    assert (data.images, len(data.train), len(data.test)) == (300, 900, 300)
    first = data.train.x[:300]
    assert first.mean(0).abs().max() < 1e-6
    spread = first.std(0)
    assert ((spread - 1).abs() < 1e-3)[few.train.x.float().flatten(1).std(0) > 0].all()
    assert torch.equal(data.train.y, few.train.y.repeat(3))
    assert not torch.equal(data.train.x[300:600], first) and not torch.equal(data.train.x[600:], data.train.x[300:600])


def test_views_of_an_image_are_of_that_image(tmp_path, few):
    write_features(tmp_path, flat, few, horizontal_flip(1.0), views=2)
    x = np.load(tmp_path / "train-x.npy").reshape(2, 300, 8, 8)
    assert np.array_equal(x[1], x[0][:, :, ::-1])


def test_further_views_need_an_augmentation(tmp_path, few):
    write_features(tmp_path, flat, few, None, views=1)
    assert load_features(tmp_path, 10).images == 300
    with pytest.raises(InvalidInput, match="give an augmentation"):
        write_features(tmp_path, flat, few, None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train-y.npy").unlink(), "no features in"),
        (lambda f: (f / "test-x.npy").write_bytes(b"no array"), "no features in"),
        (lambda f: np.save(f / "train-y.npy", np.zeros(7, int)), "features"),
        (lambda f: np.save(f / "test-y.npy", np.full(300, 99)), "labels beyond the 10 classes"),
    ],
)
def test_a_folder_that_is_none(tmp_path, few, spoil, message):
    write_features(tmp_path, flat, few, None, views=1)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load_features(tmp_path, 10)


def test_imagenet_is_asked_for_where_it_should_be(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"imagenet-features: it needs train-x\.npy"):
        imagenet_features()
    assert pretrained("imagenet-features") is None


def test_pretraining_learns(few):
    net = nn.Sequential(*networks.convnet((1, 8, 16), 8)[:-1], nn.Linear(64, 10))
    networks.initialised(net, torch.Generator().manual_seed(0))
    found = pretrain(net, few, None, epochs=20)
    assert 0.5 < found["accuracy"] < found["top5"] <= 1 and found["loss"] < 2
    assert not net.training


def test_random_features_of_the_digits():
    data = digits_features()
    assert (data.images, len(data.train)) == (1437, VIEWS * 1437)
    p = task("digits-features-linear-with-tricks").build(0, batch_size=8)
    for _, y in p.batches.epoch(0):
        assert len(set(y[:4].tolist())) == 1  # four views of an image
    with pytest.raises(InvalidInput, match="4 views of each image: train on all of them"):
        task("digits-features-linear").build(0, batch_size=8, train_size=100)


def test_the_text_is_cut_into_samples_that_join():
    data = prose(limit=20_000, length=LENGTH)
    x = data.train.x
    assert x.shape[1] == LENGTH + 1 and x.dtype == torch.int64
    assert int(x.min()) >= 0 and int(x.max()) < SYMBOLS
    assert torch.equal(x[1:, 0], x[:-1, -1])
    text = "".join(ALPHABET[i] for row in x.tolist() for i in row[:-1])
    assert "torch" in text and "Args:" in text
    assert len(data.test) == pytest.approx(0.1 * (len(x) + len(data.test)), abs=1)


def test_a_language_model_is_judged_on_each_next_token():
    p = task("prose-small-gpt").build(0, batch_size=4)
    x, _ = next(iter(p.batches.epoch(0)))
    outputs = torch.full((4, 32, SYMBOLS), -100.0)
    outputs.scatter_(2, x[:, 1:, None], 0.0)  # certain, and right
    assert float(p.losses(outputs, x, x[:, 0]).max()) < 1e-6
    assert p.right(outputs, x, x[:, 0]).tolist() == [1.0] * 4
    assert p.inputs(x).shape == (4, 32)
