"""Text for a character model: the documentation that PyTorch ships with, so that nothing is downloaded."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from reprolib.errors import DataError
from reprolib.tasks.data import Dataset, Split

LENGTH = 128  # characters that a model sees at once
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
SYMBOLS = len(ALPHABET)
TEST = 0.1  # of the text, its end


@cache
def prose(limit: int | None = None, length: int = LENGTH) -> Dataset:
    """Samples of ``length`` + 1 characters as numbers in ALPHABET, each begins with the last character of the one before.

    The text is ``torch/_torch_docs.py``, the docstrings of the installed PyTorch (BSD licence), its first ``limit``
    characters; what is not in the alphabet is left out. Another version of PyTorch has another text.
    """
    spec = find_spec("torch")
    path = Path(spec.origin).parent / "_torch_docs.py" if spec and spec.origin else Path("_torch_docs.py")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} is not part of this PyTorch, so there is no text: {error}") from error
    text = content.decode()[:limit]
    number = {symbol: i for i, symbol in enumerate(ALPHABET)}
    tokens = torch.tensor([number[symbol] for symbol in text if symbol in number])
    samples = tokens.unfold(0, length + 1, length)
    train = round((1 - TEST) * len(samples))
    labels = torch.zeros(len(samples), dtype=torch.int64)  # every sample is its own target
    first, rest = Split(samples[:train].clone(), labels[:train]), Split(samples[train:].clone(), labels[train:])
    files = {path.name: f"sha256 {hashlib.sha256(content).hexdigest()}"}
    return Dataset("prose", first, rest, SYMBOLS, 1.0, files=files)
