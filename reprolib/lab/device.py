"""Whether a device can be used, before anything is prepared for it."""

from __future__ import annotations

import re

import torch

from reprolib.errors import InvalidInput, UnknownName

KINDS = ("cpu", "cuda")


def check_device(name: str) -> str:
    """``name`` if there is such a device here.

    Raises:
        UnknownName: no kind of device is called so.
        InvalidInput: it is not here, or has no such number.

    >>> check_device("cpu")
    'cpu'
    """
    kind, colon, number = name.partition(":")
    if kind not in KINDS:
        raise UnknownName.among("device", name, KINDS)
    if colon and not re.fullmatch(r"\d+", number):
        raise InvalidInput(f"device {name!r}: give its number, as in 'cuda:1'")
    here = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= here:
        raise InvalidInput(f"device {name!r} is not here: " + (f"there are {here}" if here else f"no {kind} at all"))
    return name
