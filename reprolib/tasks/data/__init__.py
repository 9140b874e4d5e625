"""Data sets: the published files, verified, as tensors of raw values.

``catalog``  which sets there are            ``formats``  bytes to arrays
``store``    the data folder, checksums      ``fetch``    downloads
``dataset``  ``load(name)``                  ``cli``      ``reprolib data ...``
"""

from reprolib.tasks.data.catalog import CATALOG, Entry
from reprolib.tasks.data.dataset import Dataset, Split, load, mean_std
from reprolib.tasks.data.store import data_folder

__all__ = ["CATALOG", "Dataset", "Entry", "Split", "data_folder", "load", "mean_std"]
