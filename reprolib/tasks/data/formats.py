"""The published file formats, from bytes to arrays. Nothing here executes what it reads: no pickle.

Every reader takes the content of one file (uncompressed) and the `Entry` it belongs to, and returns ``(x, y)``; ``x`` or
``y`` is None where the file holds only the other. It raises `DataError` with a message that starts in mid-sentence: the
caller, `store.read`, puts the file's name in front.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable

import numpy as np

from reprolib.errors import DataError
from reprolib.tasks.data.catalog import Entry

Arrays = tuple[np.ndarray | None, np.ndarray | None]


def read_idx(content: bytes, entry: Entry | None = None) -> Arrays:
    """IDX: two zero bytes, type (8: uint8), number of dimensions, each dimension as big-endian uint32, then the values.

    Source: Y. LeCun's MNIST page. One dimension: labels ``(n,)``; three: images ``(n, H, W)``, returned as
    ``(n, 1, H, W)``.

    >>> x, y = read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))
    >>> x, y
    (None, array([7, 3], dtype=uint8))
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (1, 3):
        raise DataError(f"is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    dims = content[3]
    start = 4 + 4 * dims
    if len(content) < start:
        raise DataError(f"is truncated: its header has {len(content)} of {start} bytes")
    shape = struct.unpack(f">{dims}I", content[4:start])
    _expect_bytes(content, start + math.prod(shape))
    values = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    return (None, values) if dims == 1 else (values[:, None], None)


def read_cifar10(content: bytes, entry: Entry | None = None) -> Arrays:
    """CIFAR-10, binary version: records of 1 label byte and a 3 x 32 x 32 image, channels first."""
    return _cifar_records(content, label_bytes=1)


def read_cifar100(content: bytes, entry: Entry | None = None) -> Arrays:
    """CIFAR-100, binary version: records of a coarse and a fine label byte and a 3 x 32 x 32 image; y is the fine one."""
    return _cifar_records(content, label_bytes=2)


def _cifar_records(content: bytes, label_bytes: int) -> Arrays:
    record = label_bytes + 3 * 32 * 32
    if not content or len(content) % record:
        raise DataError(f"is truncated: {len(content)} bytes are not a whole number of records of {record} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def read_svhn(content: bytes, entry: Entry | None = None) -> Arrays:
    """SVHN, cropped digits: a MATLAB 5 file with X ``(32, 32, 3, n)`` and y ``(n, 1)`` in 1..10, where 10 is the digit 0."""
    from scipy.io import loadmat  # comes with scikit-learn; only this format needs it

    try:
        data = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        x, y = data["X"], data["y"]
    except Exception as error:  # loadmat has no exception class of its own: anything can come out of a damaged file
        raise DataError(f"is not a MATLAB file with X and y: {error}") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or y.size != x.shape[3]:
        raise DataError(f"has X {x.shape} {x.dtype} and y {y.shape} instead of X (32, 32, 3, n) uint8 and y (n, 1)")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.reshape(-1) % 10


def read_libsvm(content: bytes, entry: Entry) -> Arrays:
    """LIBSVM text: lines ``label index:value ...``, indices from 1, what is not named is 0.

    Returns x dense float32 ``(n, features)`` and the labels as they are written, float64 ``(n,)``. A line that is
    malformed, not finite, out of the feature range or has another label than the entry's raises, with its number.
    """
    (features,) = entry.shape
    x_rows: list[int] = []
    tokens: list[bytes] = []
    labels: list[float] = []
    for number, line in enumerate(content.rstrip().splitlines()):
        label, *pairs = line.replace(b":", b" : ").split() or [b""]
        # index, colon, value in turn: checked by counting here, by value below and, where that fails, in words
        if len(pairs) % 3 or any(p != b":" for p in pairs[1::3]) or not label:
            raise DataError(f"has a malformed line {number + 1}: {_show(line)}")
        try:
            labels.append(float(label))
        except ValueError:
            raise DataError(f"has a malformed label in line {number + 1}: {_show(line)}") from None
        if labels[-1] not in entry.labels:
            known = " or ".join(map(str, entry.labels))
            raise DataError(f"has a label other than {known} in line {number + 1}: {_show(line)}")
        tokens += pairs
        x_rows += [number] * (len(pairs) // 3)
    if not labels:
        raise DataError("is empty")
    lines = np.array(x_rows, dtype=np.int64)
    columns = _numbers(tokens[0::3], np.int64, lines, content) - 1
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is reported below
        values = _numbers(tokens[2::3], np.float64, lines, content).astype(np.float32)
    for bad, what in (
        ((columns < 0) | (columns >= features), f"a feature index outside 1..{features}"),
        (~np.isfinite(values), "a value that is not finite"),
    ):
        if bad.any():
            row = int(lines[bad.argmax()])
            raise DataError(f"has {what} in line {row + 1}: {_show(content.splitlines()[row])}")
    x = np.zeros((len(labels), features), dtype=np.float32)
    x[lines, columns] = values
    return x, np.array(labels)


def _numbers(tokens: list[bytes], dtype: type, lines: np.ndarray, content: bytes) -> np.ndarray:
    """The tokens as an array; the slow search for the bad one only runs when there is one."""
    try:
        if len(max(tokens, key=len, default=b"")) > 40:  # the array below has room for the longest in every place
            raise ValueError
        return np.array(tokens, dtype=np.bytes_).astype(dtype)
    except (ValueError, OverflowError):
        convert = int if dtype is np.int64 else float
        for token, row in zip(tokens, lines, strict=True):
            try:
                if len(token) > 40 or not -(2.0**63) <= float(convert(token)) < 2.0**63:
                    raise ValueError
            except ValueError:
                line = content.splitlines()[row]
                raise DataError(f"has a malformed number {_show(token)} in line {row + 1}: {_show(line)}") from None
        raise


def _show(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _expect_bytes(content: bytes, expected: int) -> None:
    if len(content) != expected:
        word = "is truncated" if len(content) < expected else "is too long"
        raise DataError(f"{word}: {len(content)} bytes instead of {expected}")


READERS: dict[str, Callable[[bytes, Entry], Arrays]] = {
    "idx": read_idx,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "svhn": read_svhn,
    "libsvm": read_libsvm,
}
