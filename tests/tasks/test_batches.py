"""Mini-batches and augmentations: functions of the seed and the epoch, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.errors import InvalidInput
from reprolib.tasks.augment import compose, horizontal_flip, random_crop, rotation
from reprolib.tasks.batches import Batches, stream

X = torch.randint(0, 256, (23, 3, 9, 7), dtype=torch.uint8, generator=stream(0, 0, "test images"))
Y = torch.arange(23)
AUGMENT = compose(random_crop(2), horizontal_flip(), rotation(15.0))


def run(batches: Batches, epoch: int) -> list:
    return [(x.tolist(), y.tolist()) for x, y in batches.epoch(epoch)]


# Table 3 of the RED paper: iterations per epoch at batch 256. Mutation: the last, smaller batch is forgotten (234, 195).
@pytest.mark.claim(
    "red-tab3",
    file="tasks/batches.py",
    old="-(-n // size)",
    new="n // size",
    mutation="rounding down the number of batches: 234 and 195 instead of 235 and 196",
)
@pytest.mark.parametrize(("task", "samples", "iterations"), [("mnist", 60_000, 235), ("cifar", 50_000, 196)])
def test_table_3_iterations_per_epoch(task, samples, iterations):
    batches = Batches(torch.zeros(samples), torch.zeros(samples), 256, seed=0)
    assert len(batches) == iterations
    assert sum(1 for _ in batches.epoch(0)) == iterations


@given(
    n=st.integers(1, 40),
    size=st.integers(1, 50),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 2**40),
    shuffle=st.booleans(),
)
def test_every_sample_exactly_once_and_with_its_target(n, size, seed, epoch, shuffle):
    batches = Batches(torch.arange(n) * 10, torch.arange(n), size, seed=seed, shuffle=shuffle)
    seen = list(batches.epoch(epoch))
    assert len(seen) == len(batches)
    assert all(len(y) == size for _, y in seen[:-1]) and 1 <= len(seen[-1][1]) <= size
    x, y = (torch.cat(part) for part in zip(*seen, strict=True))
    assert y.sort().values.tolist() == list(range(n))
    assert torch.equal(x, 10 * y)


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_an_epoch_does_not_depend_on_what_ran_before(augment):
    first = Batches(X, Y, 5, seed=3, augment=augment)
    wanted = run(first, 4)
    torch.manual_seed(1)
    second = Batches(X, Y, 5, seed=3, augment=augment)
    next(iter(second.epoch(0)))  # an epoch that was left in the middle
    run(second, 7)
    interleaved = second.epoch(5)
    next(interleaved)
    torch.rand(10)
    assert run(second, 4) == wanted == run(first, 4)


def test_seeds_and_epochs_differ():
    orders = {tuple(Batches(X, Y, 5, seed=seed).order(epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    one = Batches(X, Y, 5, seed=0, augment=random_crop(4), shuffle=False)
    assert run(one, 0) != run(one, 1)


def test_the_batches_of_one_epoch_are_augmented_differently():
    same = X[:1].expand(8, -1, -1, -1)
    a, b = (x for x, _ in Batches(same, torch.zeros(8), 4, seed=0, augment=random_crop(4)).epoch(0))
    assert not torch.equal(a, b)


def test_the_order_is_pinned():
    """Published records depend on it: if this changes, the `version` of every task has to."""
    batches = Batches(torch.arange(10), torch.arange(10), 3, seed=0)
    assert batches.order(0).tolist() == [8, 2, 6, 7, 4, 5, 0, 9, 3, 1]
    assert batches.order(1).tolist() == [8, 2, 6, 9, 7, 3, 5, 0, 1, 4]


def test_the_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    run(Batches(X, Y, 5, seed=0, augment=AUGMENT), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_split_is_not_changed():
    before = X.clone()
    for x, _ in Batches(X, Y, 5, seed=0, shuffle=False, augment=AUGMENT).epoch(0):
        x.zero_()
    assert torch.equal(X, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter():
    augment = compose(random_crop(2), horizontal_flip())
    on_cpu = run(Batches(X, Y, 5, seed=0, augment=augment), 2)
    assert run(Batches(X.cuda(), Y.cuda(), 5, seed=0, augment=augment), 2) == on_cpu


def test_drop_last():
    batches = Batches(X, Y, 5, seed=0, drop_last=True)
    assert len(batches) == 4 and [len(y) for _, y in batches.epoch(0)] == [5] * 4
    assert len(Batches(X, Y, 23, seed=0, drop_last=True)) == 1


def test_repeated_augmentation_draws_views_of_few_images():
    """Each image of a batch comes ``repeats`` times, as random views; the number of batches stays what it is."""
    n, views = 12, 3
    number = torch.arange(n * views)  # view v of image i is i + 12 v
    plain = Batches(number, number % n, 4, seed=0, views=views)
    assert len(plain) == 3
    assert sorted(int(i) for x, _ in plain.epoch(0) for i in x) == list(range(n))  # the first view of each
    repeated = Batches(number, number % n, 4, seed=0, views=views, repeats=2)
    assert len(repeated) == 3
    seen = []
    for epoch in range(20):
        for x, y in repeated.epoch(epoch):
            assert torch.equal(x % n, y)
            assert (y[0], y[2]) == (y[1], y[3]) and y[0] != y[2]
            seen += [int(i) for i in x]
    assert set(seen) == set(range(n * views))
    assert [x.tolist() for x, _ in repeated.epoch(5)] == [x.tolist() for x, _ in repeated.epoch(5)]


def test_without_shuffle_the_order_is_kept():
    assert [y.tolist() for _, y in Batches(Y, Y, 10, seed=0, shuffle=False).epoch(6)] == [
        list(range(10)),
        list(range(10, 20)),
        [20, 21, 22],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "the batch size is an integer >= 1, not 0"),
        ({"size": 2.0}, "the batch size is an integer >= 1, not 2.0"),
        ({"size": True}, "the batch size is an integer >= 1, not True"),
        ({"seed": "1"}, "the seed is an integer, not '1'"),
        ({"x": X[:0], "y": Y[:0]}, "there are no samples"),
        ({"y": Y[:-1]}, r"the same number of samples, not shapes \(23, 3, 9, 7\) and \(22,\)"),
        ({"y": torch.tensor(1)}, "the same number of samples"),
        ({"y": Y.to("meta")}, "x is on cpu and y on meta"),
        ({"views": 2}, "23 samples are not 2 views"),
        ({"repeats": 0}, "repeats is an integer >= 1, not 0"),
        ({"size": 24, "drop_last": True}, "drop_last leaves no batch: 23 samples, batches of 24"),
    ],
)
def test_what_cannot_be_batched(change, message):
    arguments = {"x": X, "y": Y, "size": 5, "seed": 0} | change
    with pytest.raises(InvalidInput, match=message):
        Batches(arguments.pop("x"), arguments.pop("y"), arguments.pop("size"), **arguments)


@pytest.mark.parametrize("epoch", [-1, 0.0, None])
def test_what_is_no_epoch_raises_at_the_call(epoch):
    with pytest.raises(InvalidInput, match="the epoch is an integer >= 0"):
        Batches(X, Y, 5, seed=0).epoch(epoch)


def test_numpy_integers_are_integers():
    assert run(Batches(X, Y, np.int64(5), seed=np.int64(3)), np.int64(1)) == run(Batches(X, Y, 5, seed=3), 1)


def test_an_augmentation_that_loses_samples():
    with pytest.raises(InvalidInput, match="made 4 samples of 5"):
        run(Batches(X, Y, 5, seed=0, augment=lambda x, generator: x[1:]), 0)


# ------------------------------------------------------------------------------------------------ augmentations


def test_every_crop_is_a_piece_of_the_padded_image():
    p, size = 2, (9, 7)
    seen = set()
    images = X[:4].repeat_interleave(60, 0)
    cropped = random_crop(p, fill=9)(images, stream(0, 0, "crop"))
    assert cropped.shape == images.shape and cropped.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (p, p, p, p), value=9)
    for image, out in zip(padded, cropped, strict=True):
        places = [
            (i, j)
            for i in range(2 * p + 1)
            for j in range(2 * p + 1)
            if torch.equal(image[:, i : i + size[0], j : j + size[1]], out)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == (2 * p + 1) ** 2  # all the places, the corners too


def test_fill_can_differ_between_channels():
    out = random_crop(9, fill=(1.0, 2.0, 3.0))(torch.zeros(50, 3, 4, 4), stream(0, 0, "fill"))
    assert [out[:, c].unique().tolist() for c in range(3)] == [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]
    with pytest.raises(InvalidInput, match="fill has 2 values for images with 3 channels"):
        random_crop(1, fill=(1.0, 2.0))(X, stream(0, 0, "fill"))


def test_about_half_of_the_images_are_mirrored():
    images = X[:1].expand(1000, -1, -1, -1)
    out = horizontal_flip()(images, stream(0, 0, "flip"))
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], images[~mirrored])
    assert 430 < mirrored.sum() < 570
    assert torch.equal(horizontal_flip(1.0)(images, stream(0, 0, "flip")), images.flip(-1))
    assert torch.equal(horizontal_flip(0.0)(images, stream(0, 0, "flip")), images)


def blob(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A smooth spot 5 pixels to the right of the centre, (1, 1, H, W)."""
    row = torch.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    column = torch.arange(width, dtype=dtype) - (width - 1) / 2
    return torch.exp(-(row**2 + (column - 5.0) ** 2) / 4.0)[None, None]


@pytest.mark.parametrize(("height", "width"), [(25, 25), (21, 35)])
def test_rotation_moves_a_spot_along_a_circle_by_up_to_the_angle(height, width):
    images = blob(height, width).expand(300, -1, -1, -1)
    out = rotation(15.0)(images, stream(0, 0, "rotate"))
    mass = out.sum((1, 2, 3))
    row = (out.sum(3).squeeze(1) * (torch.arange(height) - (height - 1) / 2)).sum(1) / mass
    column = (out.sum(2).squeeze(1) * (torch.arange(width) - (width - 1) / 2)).sum(1) / mass
    torch.testing.assert_close((row**2 + column**2).sqrt(), torch.full_like(row, 5.0), atol=0.05, rtol=0)
    angle = torch.rad2deg(torch.atan2(row, column))
    assert angle.min() < -14 and angle.max() > 14 and angle.abs().max() < 15.2
    assert abs(angle.mean()) < 1.5 and angle.std().item() == pytest.approx(15 / 3**0.5, rel=0.1)  # uniform


def test_rotation_by_nothing_changes_nothing():
    assert torch.equal(rotation(0.0)(X, stream(0, 0, "rotate")), X)


def test_rotation_keeps_dtype_and_fills_the_corners():
    out = rotation(15.0, fill=200)(torch.full((20, 3, 9, 9), 200, dtype=torch.uint8), stream(0, 0, "rotate"))
    assert out.dtype == torch.uint8 and (out == 200).all()
    assert (rotation(15.0)(torch.ones(20, 3, 9, 9), stream(0, 0, "rotate")) < 0.5).any()


def test_composed_steps_draw_one_after_the_other():
    crop, flip = random_crop(2), horizontal_flip()
    one = stream(5, 0, "compose")
    assert torch.equal(compose(crop, flip)(X, stream(5, 0, "compose")), flip(crop(X, one), one))
    assert compose()(X, one) is X


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_crop(-1), "padding is a number of pixels >= 0, not -1"),
        (lambda: random_crop(1.5), "padding is a number of pixels"),
        (lambda: horizontal_flip(1.1), r"probability lies in \[0, 1\], not 1.1"),
        (lambda: rotation(float("nan")), r"degrees lies in \[0, 180\], not nan"),
        (lambda: rotation()(X[0], stream(0, 0, "rotate")), r"images have shape \(B, C, H, W\), not \(3, 9, 7\)"),
    ],
)
def test_what_cannot_be_augmented(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
