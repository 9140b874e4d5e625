"""Data sets from files: formats, verification, downloads. Every file here is made by the test; nothing leaves the machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import re
import struct
import subprocess
import sys
import tarfile
import threading
import types
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from reprolib.errors import DataError, InvalidInput, UnknownName
from reprolib.tasks.data import CATALOG, Split, data_folder, dataset, load, mean_std
from reprolib.tasks.data.catalog import Entry, File, Remote
from reprolib.tasks.data.fetch import fetch
from reprolib.tasks.data.formats import read_idx, read_libsvm, read_svhn
from reprolib.tasks.data.store import values_digest

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)  # n, H, W
LABELS = np.array([0, 2, 1, 1, 0], dtype=np.uint8)
LIBSVM = b"-1 1:0.5 3:-2\n+1\n-1 2:1e-3 4:7\n+1 4:1\n"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def cifar(x: np.ndarray, *labels: np.ndarray) -> bytes:
    return np.concatenate([*(y[:, None] for y in labels), x.reshape(len(x), -1)], axis=1).tobytes()


def entry(name: str, kind: str, sizes: tuple[int, int], shape: tuple[int, ...], classes: int = 3, **more) -> Entry:
    return Entry(name, kind, sizes, shape, classes, 255.0, "none", "made by a test", **more)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> Path:
    """Keeps every test out of the user's data folder, and off any proxy."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("REPROLIB_DATA", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def tiny(own_folder, monkeypatch) -> dict[str, bytes]:
    """The data set "tiny" in IDX files: in the catalogue and on disk. Returns path in the folder -> content."""
    contents = {"tiny/train-x.gz": idx(IMAGES), "tiny/train-y.gz": idx(LABELS), "tiny/test-x.gz": idx(IMAGES[:2]),
                "tiny/test-y.gz": idx(LABELS[:2])}  # fmt: skip
    files = [File(path, md5(content), len(content)) for path, content in contents.items()]
    item = entry("tiny", "idx", (5, 2), (1, 4, 3), train=tuple(files[:2]), test=tuple(files[2:]))
    monkeypatch.setitem(CATALOG, "tiny", item)
    (own_folder / "tiny").mkdir()
    for path, content in contents.items():
        (own_folder / path).write_bytes(gzip.compress(content))
    return contents


# ---------------------------------------------------------------------------------------------------- reading


def test_idx_files_become_raw_tensors(tiny):
    data = load("tiny")
    assert data.train.x.dtype == torch.uint8 and data.train.y.dtype == torch.int64
    assert np.array_equal(data.train.x.numpy(), IMAGES[:, None]) and data.train.y.tolist() == LABELS.tolist()
    assert np.array_equal(data.test.x.numpy(), IMAGES[:2, None]) and len(data.test) == 2
    assert (data.name, data.classes, data.scale) == ("tiny", 3, 255.0)


def test_a_loaded_set_belongs_to_the_caller(tiny):
    load("tiny").train.x.zero_()
    assert load("tiny").train.x.any()


def test_another_compression_of_the_same_content_passes(tiny, own_folder):
    (own_folder / "tiny/train-x.gz").write_bytes(gzip.compress(tiny["tiny/train-x.gz"], compresslevel=1, mtime=7))
    assert len(load("tiny").train) == 5


def test_cifar_records_keep_channels_first_and_the_fine_label(own_folder, monkeypatch):
    x = RNG.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    fine, coarse = np.array([9, 0, 4], np.uint8), np.array([1, 1, 2], np.uint8)
    for kind, content in (("cifar10", cifar(x, fine)), ("cifar100", cifar(x, coarse, fine))):
        (own_folder / "a.bin").write_bytes(content)
        (own_folder / "b.bin").write_bytes(content)
        file = File("a.bin", md5(content), len(content))
        both = (file, replace(file, path="b.bin"))
        monkeypatch.setitem(CATALOG, kind, entry(kind, kind, (6, 3), (3, 32, 32), train=both, test=(file,)))
        data = load(kind)
        assert np.array_equal(data.train.x.numpy(), np.concatenate([x, x]))
        assert data.train.y.tolist() == [9, 0, 4] * 2


def test_svhn_mat_file(own_folder):
    from scipy.io import savemat

    x = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    savemat(buffer, {"X": x, "y": np.array([[10], [1], [9], [5]], dtype=np.uint8)})
    images, labels = read_svhn(buffer.getvalue())
    assert labels.tolist() == [0, 1, 9, 5]  # SVHN writes the digit 0 as 10
    assert np.array_equal(images[2], x[:, :, :, 2].transpose(2, 0, 1))
    with pytest.raises(DataError, match="not a MATLAB file"):
        read_svhn(buffer.getvalue()[:90])
    buffer = io.BytesIO()
    savemat(buffer, {"X": x[:16], "y": np.ones((4, 1), dtype=np.uint8)})
    with pytest.raises(DataError, match=r"has X \(16, 32, 3, 4\)"):
        read_svhn(buffer.getvalue())


LIBSVM_ENTRY = entry("lib", "libsvm", (4, 0), (4,), classes=2, labels=(-1, 1))


def test_libsvm_text_is_dense_and_its_layout_does_not_matter(own_folder, monkeypatch):
    arrays = read_libsvm(LIBSVM, LIBSVM_ENTRY)
    file = File("libsvm/lib", values_digest(arrays), also="lib")
    monkeypatch.setitem(CATALOG, "lib", replace(LIBSVM_ENTRY, train=(file,)))
    (own_folder / "lib").write_bytes(LIBSVM.replace(b"+1", b"1").replace(b"\n", b" \r\n") + b"\n")
    data = load("lib")
    assert data.train.x.tolist() == torch.tensor([[0.5, 0, -2, 0], [0] * 4, [0, 1e-3, 0, 7], [0, 0, 0, 1]]).tolist()
    assert data.train.y.tolist() == [0, 1, 0, 1] and data.train.y.dtype == torch.int64
    assert data.test.x.shape == (0, 4) and data.test.x.dtype == torch.float32 and len(data.test.y) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"-1 1:nan", "a value that is not finite in line 3"),
        (b"-1 1:inf", "a value that is not finite in line 3"),
        (b"-1 1:1e99", "a value that is not finite in line 3"),  # not in float32
        (b"-1 5:1", r"a feature index outside 1\.\.4 in line 3"),
        (b"-1 0:1", r"a feature index outside 1\.\.4 in line 3"),
        (b"-1 x:1", "a malformed number 'x' in line 3"),
        (b"-1 1:one", "a malformed number 'one' in line 3"),
        (b"-1 1.5:1", "a malformed number '1.5' in line 3"),
        (b"-1 1:" + b"1" * 99, "a malformed number '1111"),
        (b"-1 1:99999999999999999999 99999999999999999999:1", "a malformed number '9999"),
        (b"-1 1:1 2", "a malformed line 3"),
        (b"-1 1:", "a malformed line 3"),
        (b"-1 1:2:3", "a malformed line 3"),
        (b"2 1:1", "a label other than -1 or 1 in line 3"),
        (b"nan 1:1", "a label other than -1 or 1 in line 3"),
        (b"yes 1:1", "a malformed label in line 3"),
        (b"", "a malformed line 3"),
        (b"\xff\xfe\x00", "a malformed label in line 3"),
    ],
)
def test_libsvm_errors_name_the_line(line, message):
    rows = LIBSVM.splitlines()
    with pytest.raises(DataError, match=message):
        read_libsvm(b"\n".join([*rows[:2], line, *rows[2:]]), LIBSVM_ENTRY)


def test_an_empty_libsvm_file():
    with pytest.raises(DataError, match="is empty"):
        read_libsvm(b"\n", LIBSVM_ENTRY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of bytes: it starts with nothing"),
        (b"\x89PNG....", "not an IDX file of bytes: it starts with 89 50 4e 47"),
        (b"\0\0\x0d\x01\0\0\0\0", "not an IDX file"),  # float32 values
        (idx(IMAGES)[:9], "truncated: its header has 9 of 16 bytes"),
        (idx(IMAGES)[:-1], "truncated: 75 bytes instead of 76"),
        (idx(IMAGES) + b"\0", "too long: 77 bytes instead of 76"),
    ],
)
def test_idx_errors(content, message):
    with pytest.raises(DataError, match=message):
        read_idx(content)


# ----------------------------------------------------------------------------------------- verification and absence


def test_an_altered_byte_is_found_and_both_checksums_named(tiny, own_folder):
    content = bytearray(tiny["tiny/train-x.gz"])
    content[-1] ^= 1
    path = own_folder / "tiny/train-x.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError) as caught:
        load("tiny")
    text = str(caught.value)
    assert str(path) in text and md5(bytes(content)) in text and md5(tiny["tiny/train-x.gz"]) in text
    assert text.endswith("delete it and run `reprolib data fetch tiny`") and "\n" not in text


def test_an_altered_number_in_a_libsvm_file_is_found(own_folder, monkeypatch):
    file = File("lib", values_digest(read_libsvm(LIBSVM, LIBSVM_ENTRY)))
    monkeypatch.setitem(CATALOG, "lib", replace(LIBSVM_ENTRY, train=(file,)))
    (own_folder / "lib").write_bytes(LIBSVM.replace(b"4:7", b"4:8"))
    with pytest.raises(DataError, match="lib is altered: SHA-256 of the values"):
        load("lib")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-12], "truncated: its .* compressed bytes end too early"),
        (lambda b: b"", "truncated: 0 bytes instead of 76"),
        (
            lambda b: b[:20] + bytes([b[20] ^ 255]) + b[21:],
            "altered: it cannot be uncompressed|is altered|is truncated",
        ),
        (lambda b: b"<html>404</html>", "altered: it cannot be uncompressed"),
        (lambda b: gzip.compress(gzip.decompress(b)[:-3]), "truncated: 73 bytes instead of 76"),
        (lambda b: gzip.compress(gzip.decompress(b) + b"x"), "altered: MD5"),
    ],
)
def test_a_damaged_file(tiny, own_folder, damage, message):
    path = own_folder / "tiny/train-x.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load("tiny")


def test_a_right_file_with_the_wrong_number_of_samples(tiny, monkeypatch):
    monkeypatch.setitem(CATALOG, "tiny", replace(CATALOG["tiny"], sizes=(5, 3)))
    with pytest.raises(DataError, match=r"tiny: images \(2, 1, 4, 3\) and labels \(2,\) instead of \(3, 1, 4, 3\)"):
        load("tiny")


def test_an_absent_file_without_download(tiny, own_folder):
    (own_folder / "tiny/test-y.gz").unlink()
    with pytest.raises(DataError, match=r"test-y\.gz is missing: run `reprolib data fetch tiny`"):
        load("tiny", download=False)


def test_an_unreadable_file(tiny, own_folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load("tiny")


@pytest.mark.parametrize("name", ["minst", "", None, ["mnist"]])
def test_an_unknown_name(name):
    with pytest.raises(UnknownName, match=r"unknown data set .* use one of a9a, australian, cifar10"):
        load(name)


def test_the_folder_argument_goes_before_the_variable_and_that_before_the_cache(tmp_path, monkeypatch):
    assert data_folder(tmp_path / "x") == tmp_path / "x"
    assert data_folder() == tmp_path / "data"
    monkeypatch.setenv("REPROLIB_DATA", "")  # set but empty: as if it were not set
    assert data_folder().name == "reprolib"
    assert data_folder("~/d") == Path.home() / "d"


def test_the_published_layout_and_the_flat_one():
    paths = [file.path for item in CATALOG.values() for file in item.files]
    assert len(set(paths)) == len(paths)
    flat = [file.also or file.path for item in CATALOG.values() for file in item.files]
    assert len(set(flat)) == len(flat)  # fashion-mnist has MNIST's names, so it has no place in the flat layout
    assert "train-images-idx3-ubyte.gz" in flat and "a9a" in flat and "cifar-100-binary/train.bin" in flat


def test_every_file_of_the_catalogue_has_an_address_and_a_checksum():
    for item in CATALOG.values():
        for file in item.files:
            assert (file.remote or item.archive).url.startswith(("http://", "https://"))
            assert len(file.digest) == (64 if item.kind == "libsvm" else 32) and int(file.digest, 16)


# ------------------------------------------------------------------------------------------------------- digits


def test_digits_are_embedded_and_split_once_and_for_all():
    data = load("digits", folder="/nonexistent", download=False)
    assert data.train.x.shape == (1437, 1, 8, 8) and data.test.x.shape == (360, 1, 8, 8)
    assert data.train.x.dtype == torch.uint8 and data.train.x.max() == 16 == data.scale
    assert torch.bincount(data.test.y).tolist() == [33, 38, 28, 30, 40, 41, 34, 39, 38, 39]
    digest = hashlib.sha256(data.test.x.numpy().tobytes() + data.test.y.numpy().tobytes()).hexdigest()
    assert digest[:16] == "d3a0f05beeab112c"


def test_digits_split_is_a_partition():
    from sklearn.datasets import load_digits

    data = load("digits")
    ours = torch.cat([data.train.x, data.test.x]).reshape(1797, 64).tolist()
    assert sorted(ours) == sorted(load_digits().data.astype(int).tolist())


def test_mean_std_are_those_of_the_float_images(tiny):
    (mean,), (std,) = mean_std("tiny")
    assert mean == pytest.approx((IMAGES / 255).mean(), rel=1e-12)
    assert std == pytest.approx((IMAGES / 255).std(), rel=1e-12)


def test_mean_std_refuses_features():
    data = load("digits")
    with pytest.raises(InvalidInput, match="needs uint8 images"):
        mean_std(replace(data, train=Split(data.train.x.float(), data.train.y)))


# ---------------------------------------------------------------------------------------------------- downloads


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: (its folder, its address)."""
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_address[1]}/"
        http.shutdown()
        thread.join()


@pytest.fixture
def online(tiny, own_folder, server, monkeypatch) -> Path:
    """The data set "tiny" on the server, file by file, and not in the data folder; returns the server's folder."""
    www, url = server
    for path in tiny:
        (own_folder / path).rename(www / Path(path).name)
    (own_folder / "tiny").rmdir()

    def with_address(files):
        content = {f: (www / f.name).read_bytes() for f in files}
        return tuple(replace(f, remote=Remote(url + f.name, md5(content[f]))) for f in files)

    item = CATALOG["tiny"]
    monkeypatch.setitem(CATALOG, "tiny", replace(item, train=with_address(item.train), test=with_address(item.test)))
    return www


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_absent_files_are_downloaded_once(online, own_folder):
    assert load("tiny").train.y.tolist() == LABELS.tolist()
    assert everything_in(own_folder) == [
        "tiny",
        *(f"tiny/{n}" for n in ("test-x.gz", "test-y.gz", "train-x.gz", "train-y.gz")),
    ]
    for path in online.iterdir():
        path.unlink()  # from now on a download would fail
    assert fetch("tiny") == []
    assert len(load("tiny").test) == 2
    assert (own_folder / "tiny/train-x.gz").stat().st_mode & 0o444 == 0o444


def test_only_what_is_absent_is_downloaded(online, own_folder):
    fetch("tiny")
    (own_folder / "tiny/test-y.gz").unlink()
    assert fetch("tiny") == [own_folder / "tiny/test-y.gz"]


def test_progress_goes_to_standard_error(online, capsys):
    fetch("tiny", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err


def test_no_network_leaves_no_file(tiny, own_folder, monkeypatch):
    item = CATALOG["tiny"]
    nowhere = tuple(replace(f, remote=Remote("http://127.0.0.1:9/" + f.name)) for f in item.train)
    monkeypatch.setitem(CATALOG, "tiny", replace(item, train=nowhere))
    before = everything_in(own_folder)
    (own_folder / "tiny/train-y.gz").unlink()
    with pytest.raises(
        DataError, match=r"cannot download tiny from http://127\.0\.0\.1:9/train-y\.gz: .*; try again"
    ) as caught:
        load("tiny")
    assert "\n" not in str(caught.value) and "`digits` needs no download" in str(caught.value)
    assert everything_in(own_folder) == [p for p in before if p != "tiny/train-y.gz"]


@pytest.mark.parametrize("published", [True, False])
def test_a_download_with_another_content_is_not_kept(online, own_folder, monkeypatch, published):
    """With a published checksum of the download pooch refuses it, without one our verification does."""
    content = bytearray(idx(LABELS))
    content[-1] ^= 1
    (online / "train-y.gz").write_bytes(gzip.compress(bytes(content)))
    if not published:
        item = CATALOG["tiny"]
        bare = tuple(replace(f, remote=replace(f.remote, md5=None)) for f in item.train)
        monkeypatch.setitem(CATALOG, "tiny", replace(item, train=bare))
    with pytest.raises(DataError, match=r"train-y\.gz"):
        load("tiny")
    assert everything_in(own_folder) == []


def test_an_http_error_leaves_no_file(online, own_folder):
    (online / "test-x.gz").unlink()
    with pytest.raises(DataError, match=r"cannot download tiny from .*test-x\.gz: HTTPError: 404"):
        fetch("tiny")
    assert everything_in(own_folder) == []


def test_a_connection_that_breaks_off_leaves_no_file(online, own_folder, monkeypatch):
    class Breaking(Quiet):
        def copyfile(self, source, outputfile):
            outputfile.write(source.read()[:-10])  # fewer bytes than Content-Length says

    monkeypatch.setattr(Quiet, "copyfile", Breaking.copyfile)
    with pytest.raises(DataError, match="cannot download tiny"):
        fetch("tiny")
    assert everything_in(own_folder) == []


@pytest.fixture
def packed(own_folder, server, monkeypatch) -> Path:
    """The data set "packed" as a .tar.gz on the server; returns the archive."""
    www, url = server
    x = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    content = cifar(x, np.array([1, 2], np.uint8))
    archive = www / "packed.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, body in (("bin/a.bin", content), ("../escaped", b"outside"), ("bin/other.bin", b"unwanted")):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    file = File("bin/a.bin", md5(content), len(content))
    remote = Remote(url + "packed.tar.gz", md5(archive.read_bytes()))
    monkeypatch.setitem(
        CATALOG, "packed", entry("packed", "cifar10", (2, 0), (3, 32, 32), train=(file,), archive=remote)
    )
    return archive


def test_an_archive_gives_its_wanted_members_only(packed, own_folder):
    assert load("packed").train.y.tolist() == [1, 2]
    assert everything_in(own_folder) == ["bin", "bin/a.bin"]
    assert not (own_folder.parent / "escaped").exists()


@pytest.mark.parametrize("content", ["not an archive", "another member", "cut off"])
def test_an_archive_that_is_not_the_expected_one(packed, own_folder, monkeypatch, content):
    if content == "not an archive":
        packed.write_bytes(b"<html></html>")
    elif content == "another member":
        with tarfile.open(packed, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("bin/b.bin"), io.BytesIO())
    else:
        packed.write_bytes(packed.read_bytes()[:3000])
    item = CATALOG["packed"]
    remote = replace(item.archive, md5=md5(packed.read_bytes()))
    monkeypatch.setitem(CATALOG, "packed", replace(item, archive=remote))
    with pytest.raises(DataError, match=r"the archive packed\.tar\.gz of packed is not the expected one"):
        load("packed")
    assert everything_in(own_folder) == []


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write tiny into"):
        fetch("tiny", folder=tmp_path / "file")


def test_without_pooch_there_is_an_instruction(online, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"needs pooch: pip install 'reprolib\[data\]'"):
        load("tiny")


def test_without_scikit_learn_there_is_an_instruction(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    dataset._scikit_digits.cache_clear()
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load("digits")


@pytest.mark.parametrize(
    "content",
    [None, gzip.compress(b"1,2,x\n"), gzip.compress(b"1,2\n"), gzip.compress(b"1,2\n" * 1000)[:-20]],
    ids=["missing", "no number", "a column short", "truncated"],  # the bytes hold the time
)
def test_a_damaged_copy_of_the_digits_is_named(tmp_path, monkeypatch, content):
    path = tmp_path / "datasets" / "data" / "digits.csv.gz"
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    found = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(dataset, "find_spec", lambda name: found)
    dataset._scikit_digits.cache_clear()
    with pytest.raises(DataError, match=re.escape(str(path))):
        load("digits")


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    dataset._scikit_digits.cache_clear()
    published, (x, y, _) = load_digits(), dataset._scikit_digits(1)
    assert np.array_equal(x[:, 0], published.images)
    assert np.array_equal(y, published.target)


def test_the_data_modules_import_without_the_data_extra(tmp_path):
    """As on a GPU machine with PyTorch and NumPy only."""
    code = "import sys\nfor m in ('pooch', 'tqdm', 'platformdirs', 'sklearn', 'scipy', 'click', 'requests'): sys.modules[m] = None\n"
    code += "import reprolib.tasks.data, reprolib.tasks.batches; print(reprolib.tasks.data.data_folder().name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "reprolib"
