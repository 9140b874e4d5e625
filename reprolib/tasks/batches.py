"""Mini-batches whose order depends on the seed and the epoch, and on nothing else.

Not on what ran before, the device, the number of threads or the global random state: a run that resumes at epoch 7 sees
the batches that it would have seen, and two methods with the same seed see the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from reprolib.errors import InvalidInput
from reprolib.tasks.augment import Augment


def stream(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each (seed, epoch, purpose), so that no two uses share random numbers.

    >>> bool((torch.rand(3, generator=stream(0, 1, "order")) == torch.rand(3, generator=stream(0, 1, "order"))).all())
    True
    """
    digest = hashlib.sha256(f"reprolib {seed} {epoch} {purpose}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Batches:
    """The mini-batches of a split, epoch by epoch.

    Args:
        x: inputs ``(n, ...)``; batches come on its device.
        y: targets ``(n, ...)``, on the same device.
        size: samples per batch B; the last batch of an epoch has the rest.
        seed: any integer.
        augment: applied to the inputs of each batch, see `reprolib.tasks.augment`; its random numbers depend on
            (seed, epoch, number of the batch) alone.
        drop_last: leave out a last batch that is smaller than ``size``.
        shuffle: a new order in every epoch; False: the order of x.
        views: x holds so many views of each image, one whole set of images after the other; an epoch has n / views samples.
            With ``repeats`` = 1 the first view is used.
        repeats: repeated augmentation: so many samples of a batch, which are one after the other, come from one image, each
            a random view of it; an epoch then has n / (views · repeats) of the images.

    ``len(batches)`` is the number of iterations per epoch: ⌈n / B⌉, with ``drop_last`` ⌊n / B⌋, n counted without views.

    Raises:
        InvalidInput: no samples, as many x as y do not exist, a size below 1, or no batch left by ``drop_last``.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), 2, seed=0)
    >>> len(batches), [len(y) for x, y in batches.epoch(0)]
    (3, [2, 2, 1])
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        size: int,
        *,
        seed: int,
        augment: Augment | None = None,
        drop_last: bool = False,
        shuffle: bool = True,
        views: int = 1,
        repeats: int = 1,
    ) -> None:
        if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
            raise InvalidInput(
                f"x and y need the same number of samples, not shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if len(x) == 0:
            raise InvalidInput("there are no samples to make batches of")
        if x.device != y.device:
            raise InvalidInput(f"x is on {x.device} and y on {y.device}: move them to one device")
        _check_integer("the batch size", size, 1)
        _check_integer("the seed", seed)
        _check_integer("views", views, 1)
        _check_integer("repeats", repeats, 1)
        if len(x) % views:
            raise InvalidInput(f"{len(x)} samples are not {views} views of each of some images")
        if drop_last and len(x) // views < size:
            raise InvalidInput(f"drop_last leaves no batch: {len(x) // views} samples, batches of {size}")
        self.x, self.y, self.size, self.seed = x, y, size, seed
        self.augment, self.drop_last, self.shuffle = augment, drop_last, shuffle
        self.views, self.repeats = views, repeats

    def __len__(self) -> int:
        n, size = len(self.x) // self.views, self.size
        return n // size if self.drop_last else -(-n // size)

    def order(self, epoch: int) -> Tensor:
        """The indices of the samples in the order of that epoch, int64 ``(n,)`` on the CPU."""
        _check_integer("the epoch", epoch, 0)
        n = len(self.x) // self.views
        if not self.shuffle:
            return torch.arange(n)
        order = torch.randperm(n, generator=stream(self.seed, epoch, "order"))
        if self.repeats == 1:
            return order
        images = order.repeat_interleave(self.repeats)[:n]
        return images + n * torch.randint(self.views, (n,), generator=stream(self.seed, epoch, "views"))

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The (x, y) batches of epoch 0, 1, 2, ...; ask in any order, as often as you like."""
        order = self.order(epoch).to(self.x.device)  # here and not in the generator: bad input raises at the call
        return (self._batch(order, epoch, number) for number in range(len(self)))

    def _batch(self, order: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        chosen = order[number * self.size : (number + 1) * self.size]
        x, y = self.x[chosen], self.y[chosen]
        if self.augment is not None:
            x = self.augment(x, stream(self.seed, epoch, f"augment {number}"))
            if len(x) != len(y):
                raise InvalidInput(f"the augmentation made {len(x)} samples of {len(y)}")
        return x, y


def _check_integer(what: str, value: object, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        raise InvalidInput(f"{what} is an integer{'' if least is None else f' >= {least}'}, not {value!r}")
