"""Where the data files are, and reading one of them so that what comes out is what was published.

The folder is ``$REPROLIB_DATA``, by default the user's cache folder (``reprolib data where`` prints it). In it:

    mnist/          train-images-idx3-ubyte.gz  train-labels-idx1-ubyte.gz  t10k-images-...  t10k-labels-...
    fashion-mnist/  the same four names         (Debian: ln -s /usr/share/datasets/fashion-mnist)
    cifar-10-batches-bin/   data_batch_{1..5}.bin  test_batch.bin     as the binary .tar.gz unpacks
    cifar-100-binary/       train.bin  test.bin                        as the binary .tar.gz unpacks
    svhn/           train_32x32.mat  test_32x32.mat
    libsvm/         a9a  a9a.t  w8a  mushrooms  phishing  german.numer_scale  australian

The files of ``mnist`` and ``libsvm`` are also found in the folder itself, so one flat folder of published files works too.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from reprolib.errors import DataError, UnknownName
from reprolib.tasks.data.catalog import CATALOG, Entry, File
from reprolib.tasks.data.formats import READERS, Arrays


def entry(name: str) -> Entry:
    """The catalogue entry of a data set; raises `UnknownName`."""
    if not isinstance(name, str) or name not in CATALOG:
        raise UnknownName.among("data set", name, CATALOG)
    return CATALOG[name]


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """``folder`` if given, else ``$REPROLIB_DATA``, else the user's cache folder. It need not exist."""
    if folder is None:
        folder = os.environ.get("REPROLIB_DATA") or None
    if folder is None:
        try:
            from platformdirs import user_cache_path
        except ModuleNotFoundError:
            return Path.home() / ".cache" / "reprolib"
        return user_cache_path("reprolib", appauthor=False)
    return Path(folder).expanduser()


def locate(file: File, folder: Path) -> Path | None:
    """The path of the file in the folder, None where it is absent."""
    places = [folder / file.path] + ([folder / file.also] if file.also else [])
    return next((place for place in places if os.path.isfile(place)), None)  # False, not an error, if not permitted


def missing(which: Entry, folder: Path) -> list[File]:
    """The files of the data set that are not in the folder."""
    return [file for file in which.files if locate(file, folder) is None]


def read(which: Entry, file: File, path: Path) -> Arrays:
    """The arrays in one file at ``path``, as its format's reader gives them, after comparing size and checksum.

    Each file is read once; the checksum of all of CIFAR-10 takes about 0.3 s, so it is done on every load.

    Raises:
        DataError: unreadable, truncated, malformed or altered; says which file, what was expected and found, what to do.
    """
    try:
        content = _content(path)
        if file.size is not None and len(content) < file.size:
            raise DataError(f"is truncated: {len(content)} bytes instead of {file.size}")
        if which.kind != "libsvm":
            _compare(file, "MD5", hashlib.md5(content, usedforsecurity=False).hexdigest())
        arrays = READERS[which.kind](content, which)
        if which.kind == "libsvm":
            _compare(file, "SHA-256 of the values", values_digest(arrays))
    except DataError as error:
        raise DataError(f"{path} {error}; delete it and run `reprolib data fetch {which.name}`") from error
    return arrays


def values_digest(arrays: Arrays) -> str:
    """SHA-256 of a LIBSVM set's numbers: x as row-major little-endian float32, then y as float64."""
    x, y = arrays
    digest = hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").data)
    digest.update(np.ascontiguousarray(y, dtype="<f8").data)
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    """The bytes of the file, uncompressed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise DataError(f"is truncated: its {len(content)} compressed bytes end too early") from error
    except (OSError, zlib.error) as error:  # BadGzipFile is an OSError
        raise DataError(f"is altered: it cannot be uncompressed ({error})") from error


def _compare(file: File, what: str, found: str) -> None:
    if found != file.digest:
        raise DataError(f"is altered: {what} {found} instead of {file.digest}")
