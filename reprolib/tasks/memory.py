"""The memory layer of RED's appendix C.2: the last layer is trained on more samples than the batch has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reprolib.errors import InvalidInput


class WithMemory(nn.Module):
    """A network whose affine last layer also sees the features of the samples before, ``size`` with the batch's own.

    Remembered features are constants: they are what the rest of the network made of their samples then. In evaluation the
    network is the one that it was given. The memory is part of ``state_dict``.

    Source: ``gournay2022``, appendix C.2.

    Raises:
        InvalidInput: the network is no ``nn.Sequential`` that ends with an ``nn.Linear``.
    """

    def __init__(self, net: nn.Module, size: int):
        super().__init__()
        if not (isinstance(net, nn.Sequential) and isinstance(net[-1], nn.Linear)):
            raise InvalidInput(f"{type(net).__name__}: a memory lies before the nn.Linear that ends an nn.Sequential")
        self.net, self.size = net, size
        self._remembered: tuple[Tensor, Tensor] | None = None  # features (m, D) and targets (m,), newest first
        self._latest: tuple[Tensor, Tensor] | None = None  # those of the batch whose step is under way

    def forward(self, x: Tensor) -> Tensor:
        """As without memory."""
        return self.net(x)

    def recalling(self, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
        """A closure () -> outputs (B + m, K) of this batch and of what is remembered, and the targets (B + m,) of both.

        With the next call the batch is remembered, with the features that it had when the closure was last called.
        """
        self._commit()
        old = self._remembered
        room = max(0, self.size - len(x))
        targets = y if old is None else torch.cat([y, old[1][:room].to(y.device)])

        def closure() -> Tensor:
            new = self.net[:-1](x)  # type: ignore[index]
            self._latest = (new.detach(), y)
            features = new if old is None else torch.cat([new, old[0][:room].to(new)])
            return self.net[-1](features)  # type: ignore[index]

        return closure, targets

    def _commit(self) -> None:
        if self._latest is not None:
            old = self._remembered
            pairs = [(new,) if old is None else (new, old[i].to(new)) for i, new in enumerate(self._latest)]
            features, targets = (torch.cat(pair)[: self.size] for pair in pairs)
            self._remembered, self._latest = (features, targets), None

    def get_extra_state(self) -> dict[str, Tensor]:
        """The memory, for ``state_dict``."""
        self._commit()
        return {} if self._remembered is None else dict(zip(("features", "targets"), self._remembered, strict=True))

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take the memory of a ``state_dict`` up again."""
        self._latest = None
        self._remembered = (state["features"], state["targets"]) if state else None
