"""Which data sets there are: names, sizes, files, checksums, addresses, licences. Data only; nothing is read here.

A checksum belongs to the *content* of a file, so that a harmless repackaging passes and a changed value does not:

- ``.gz`` files: MD5 of the uncompressed bytes (Debian's Fashion-MNIST is compressed anew, its images are the same);
- CIFAR and SVHN: MD5 of the file, the one that its authors or the common loaders publish;
- LIBSVM text: SHA-256 of the numbers that it holds, features as a row-major float32 matrix and then the labels as
  written, both little-endian. Trailing spaces, line ends, ``1`` or ``+1`` do not change it.
"""

from __future__ import annotations

from dataclasses import dataclass

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
LIBSVM_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"


@dataclass(frozen=True)
class Remote:
    """Something to download: its address and, where one is published, the MD5 of what arrives."""

    url: str
    md5: str | None = None


@dataclass(frozen=True)
class File:
    """One data file: path inside the data folder, checksum of its content (see above), size of it in bytes if known."""

    path: str
    digest: str
    size: int | None = None
    remote: Remote | None = None  # None: the file is a member of the entry's archive
    also: str | None = None  # a second place in the data folder where it is looked for

    @property
    def name(self) -> str:
        """The name without folders, as it is published."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Entry:
    """One data set. ``shape`` is that of one sample, ``sizes`` counts (train, test) samples, ``scale`` see `Dataset`."""

    name: str
    kind: str  # the format, a key of formats.READERS; "digits" comes with scikit-learn
    sizes: tuple[int, int]
    shape: tuple[int, ...]
    classes: int
    scale: float
    licence: str
    source: str
    train: tuple[File, ...] = ()
    test: tuple[File, ...] = ()
    archive: Remote | None = None  # a .tar.gz with all the files
    labels: tuple[int, ...] = ()  # LIBSVM: the labels in the file, in the order of the classes 0, 1

    @property
    def files(self) -> tuple[File, ...]:
        """Train files, then test files."""
        return self.train + self.test


def _idx(folder: str, url: str, part: str, count: int, images: tuple[str, str], labels: tuple[str, str]) -> tuple:
    """The two files of one MNIST-like split; ``images`` and ``labels`` are the MD5 of (content, published .gz)."""
    return tuple(
        File(f"{folder}/{name}", digest, size, Remote(url + name, md5), also=name if folder == "mnist" else None)
        for name, size, (digest, md5) in (
            (f"{part}-images-idx3-ubyte.gz", 16 + 784 * count, images),
            (f"{part}-labels-idx1-ubyte.gz", 8 + count, labels),
        )
    )


def _libsvm(name: str, rows: tuple[int, int], features: int, digests: dict[str, str], **more) -> Entry:
    files = [File(f"libsvm/{f}", d, remote=Remote(LIBSVM_URL + f), also=f) for f, d in digests.items()]
    return Entry(
        name=name,
        kind="libsvm",
        sizes=rows,
        shape=(features,),
        classes=2,
        scale=1.0,
        train=tuple(files[:1]),
        test=tuple(files[1:]),
        **{"labels": (-1, 1), "licence": "CC BY 4.0 (UCI repository)", **more},
    )


_CIFAR_SOURCE = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; binary version"

_ENTRIES = (
    Entry(
        name="digits",
        kind="digits",
        sizes=(1437, 360),
        shape=(1, 8, 8),
        classes=10,
        scale=16.0,
        licence="CC BY 4.0 (UCI repository)",
        source="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, 1998; test part, in scikit-learn",
    ),
    Entry(
        name="mnist",
        kind="idx",
        sizes=(60_000, 10_000),
        shape=(1, 28, 28),
        classes=10,
        scale=255.0,
        licence="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998",
        train=_idx(
            "mnist",
            MNIST_URL,
            "train",
            60_000,
            ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        ),
        test=_idx(
            "mnist",
            MNIST_URL,
            "t10k",
            10_000,
            ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
            ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    Entry(
        name="fashion-mnist",
        kind="idx",
        sizes=(60_000, 10_000),
        shape=(1, 28, 28),
        classes=10,
        scale=255.0,
        licence="MIT",
        source="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, Zalando SE; Debian: dataset-fashion-mnist",
        train=_idx(
            "fashion-mnist",
            FASHION_URL,
            "train",
            60_000,
            ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        ),
        test=_idx(
            "fashion-mnist",
            FASHION_URL,
            "t10k",
            10_000,
            ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
            ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    Entry(
        name="cifar10",
        kind="cifar10",
        sizes=(50_000, 10_000),
        shape=(3, 32, 32),
        classes=10,
        scale=255.0,
        licence="none stated",
        source=_CIFAR_SOURCE,
        train=tuple(
            File(f"cifar-10-batches-bin/data_batch_{i}.bin", digest, 30_730_000)
            for i, digest in enumerate(
                (
                    "5dd7e06a14cb22eb9f671a540d1b7c25",
                    "5ea93a67294ea407fff1d09f752e9692",
                    "942cd6a4bcdd0dd3c604fbe906cb4421",
                    "ae636b3ba5c66a11e91e8cb52e771fcb",
                    "53f37980c15c3d472c316c40844f3f0d",
                ),
                start=1,
            )
        ),
        test=(File("cifar-10-batches-bin/test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d", 30_730_000),),
        archive=Remote(CIFAR_URL + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    Entry(
        name="cifar100",
        kind="cifar100",
        sizes=(50_000, 10_000),
        shape=(3, 32, 32),
        classes=100,
        scale=255.0,
        licence="none stated",
        source=_CIFAR_SOURCE,
        train=(File("cifar-100-binary/train.bin", "6172c7755cfe09b2fe270c85cebc1b15", 153_700_000),),
        test=(File("cifar-100-binary/test.bin", "4499cfba6c016c1be1438163640a0898", 30_740_000),),
        archive=Remote(CIFAR_URL + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ),
    Entry(
        name="svhn",
        kind="svhn",
        sizes=(73_257, 26_032),
        shape=(3, 32, 32),
        classes=10,
        scale=255.0,
        licence="non-commercial use",
        source="Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011; cropped",
        train=(
            File(
                "svhn/train_32x32.mat",
                "e26dedcc434d2e4c54c9b2d4a06d8373",
                remote=Remote(SVHN_URL + "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ),
        ),
        test=(
            File(
                "svhn/test_32x32.mat",
                "eb5a983be6a315427106f1b164d9cef3",
                remote=Remote(SVHN_URL + "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
            ),
        ),
    ),
    _libsvm(
        "a9a",
        (32_561, 16_281),
        123,
        {
            "a9a": "82fc731b17333e4461d024bb28832c13d850e53d57a4fb0534216fbaff49e121",
            "a9a.t": "5fdda9460c4e4288fef9d80f492977282d1ecae251dd9a98066dacde96590d36",
        },
        source="B. Becker, R. Kohavi, Adult, 1996; LIBSVM",
    ),
    _libsvm(
        "w8a",
        (49_749, 0),
        300,
        {"w8a": "2c2cff3f8660edd5d8a08536a73c373d54602a4dc51fc583514e82eb6b840e74"},
        source="J. Platt, Fast training of SVMs using sequential minimal optimization, 1998; LIBSVM",
        licence="none stated",
    ),
    _libsvm(
        "mushrooms",
        (8_124, 0),
        112,
        {"mushrooms": "208e1e1e5b4cde8c6ebe3d8c9c4fc4612e19652ac6f347cd42fc4a07cd148cca"},
        source="J. Schlimmer, Mushroom, 1981; LIBSVM",
        labels=(1, 2),
    ),
    _libsvm(
        "phishing",
        (11_055, 0),
        68,
        {"phishing": "31c24078f6e06d5c5eedec8a32019a0fa12e17dffc449faa6be70ea8fa59118a"},
        source="R. Mohammad, L. McCluskey, Phishing Websites, 2012; LIBSVM",
        labels=(0, 1),
    ),
    _libsvm(
        "german.numer_scale",
        (1_000, 0),
        24,
        {"german.numer_scale": "91d295fcd158ba7b3b5c2b243b31e641cd7b00ffb40247601dc45458a680d41c"},
        source="H. Hofmann, Statlog (German Credit Data), 1994; LIBSVM",
    ),
    _libsvm(
        "australian",
        (690, 0),
        14,
        {"australian": "1157958b45d1af7d73f5c81d07298982c6fc021a916350de283e53ee4101b92b"},
        source="R. Quinlan, Statlog (Australian Credit Approval), 1987; LIBSVM, not scaled",
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
