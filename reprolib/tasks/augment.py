"""Random changes of training images: functions ``(x, generator) -> x`` on a whole batch ``(B, C, H, W)``.

The random numbers come from the given CPU generator and are then moved, so a batch gets the same crop, flip and angle on
every device. The number of draws depends on the batch's size alone. ``x`` may be raw (uint8) or normalised (float);
``fill`` is what appears from outside the image, per channel or for all: 0 is black in raw values.

    augment = compose(random_crop(4), horizontal_flip(), rotation(15.0))
    Batches(x, y, 256, seed=0, augment=augment)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.errors import InvalidInput

Augment = Callable[[Tensor, torch.Generator], Tensor]


def compose(*steps: Augment) -> Augment:
    """One augmentation that does the given ones in order, each with its own draws; none at all changes nothing."""

    def composed(x: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            x = step(x, generator)
        return x

    return composed


def random_crop(padding: int, *, fill: float | Sequence[float] = 0.0) -> Augment:
    """Pad by ``padding`` pixels on each side, then cut out the old size at a uniformly drawn place."""
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise InvalidInput(f"random_crop: padding is a number of pixels >= 0, not {padding!r}")

    def crop(x: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = _image_shape(x)
        # shift s in 0..2p: the padded image's rows s .. s + H - 1, per image and direction
        shifts = torch.randint(2 * padding + 1, (2, batch), generator=generator).to(x.device)
        level = _fill(fill, x)
        padded = level.expand(batch, channels, height + 2 * padding, width + 2 * padding).clone()
        padded[:, :, padding : padding + height, padding : padding + width] = x
        rows = shifts[0, :, None] + torch.arange(height, device=x.device)  # (B, H)
        columns = shifts[1, :, None] + torch.arange(width, device=x.device)  # (B, W)
        image = torch.arange(batch, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    return crop


def horizontal_flip(probability: float = 0.5) -> Augment:
    """Mirror left and right, each image with the given probability."""
    if not 0.0 <= probability <= 1.0:
        raise InvalidInput(f"horizontal_flip: probability lies in [0, 1], not {probability!r}")

    def flip(x: Tensor, generator: torch.Generator) -> Tensor:
        batch, *_ = _image_shape(x)
        mirrored = torch.rand(batch, generator=generator).to(x.device) < probability
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    return flip


def rotation(degrees: float = 15.0, *, fill: float | Sequence[float] = 0.0) -> Augment:
    """Turn about the centre by an angle drawn uniformly from [-degrees, degrees], bilinear interpolation.

    Integer images are interpolated in float32 and rounded. Devices agree to rounding only, unlike with crop and flip.
    """
    if not 0.0 <= degrees <= 180.0:
        raise InvalidInput(f"rotation: degrees lies in [0, 180], not {degrees!r}")

    def rotate(x: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = _image_shape(x)
        angle = (2.0 * torch.rand(batch, generator=generator) - 1.0) * math.radians(degrees)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(batch)
        # affine_grid's coordinates run over [-1, 1] along each side: an oblong image needs its aspect ratio
        first = torch.stack([cos, -sin * (height / width), zero], 1)
        second = torch.stack([sin * (width / height), cos, zero], 1)
        real = x if x.is_floating_point() else x.float()
        theta = torch.stack([first, second], 1).to(real)  # (B, 2, 3)
        level = _fill(fill, real)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        turned = F.grid_sample(real - level, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + level
        return turned if x.is_floating_point() else turned.round().to(x.dtype)

    return rotate


def _fill(fill: float | Sequence[float], x: Tensor) -> Tensor:
    """``fill`` as ``(1, C or 1, 1, 1)`` in x's dtype, on its device."""
    level = torch.as_tensor(fill, dtype=torch.float64).reshape(1, -1, 1, 1)
    if level.shape[1] not in (1, x.shape[1]):
        raise InvalidInput(f"fill has {level.shape[1]} values for images with {x.shape[1]} channels")
    return level.to(x)


def _image_shape(x: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise InvalidInput(f"images have shape (B, C, H, W), not {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    return batch, channels, height, width
