"""A run: everything that determines one training, frozen, hashable and JSON-able."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from reprolib.errors import InvalidInput
from reprolib.lab import methods
from reprolib.tasks import task

# What a specification always says. Frozen: another field is stated where it has not its default, so it has one, and the
# keys of all runs that were made without it stay what they are.
STATED = frozenset(
    [
        "task",
        "method",
        "options",
        "epochs",
        "batch_size",
        "seed",
        "train_size",
        "held_out",
        "stop_after",
        "dtype",
        "versions",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: ``method`` with ``options`` on ``task`` for ``epochs``, from ``seed``.

    ``key`` is the SHA-256 of the canonical specification, the versions of the task and of the method included, so a
    record does not outlive the code that made it.
    """

    task: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()  # sorted pairs: a dictionary that can be hashed
    epochs: int
    batch_size: int
    seed: int
    train_size: int | None = None
    held_out: int = 0  # training samples kept for validation: then the test set is not looked at
    stop_after: int | None = None  # epochs really run of the ``epochs`` that the schedule is made for
    dtype: str = "float32"
    test_size: int | None = None  # evaluate on the first so many test samples only
    batch_seed: int | None = None  # of the order of the batches, if it is not ``seed``
    keeps_end: bool = field(default=False, compare=False)  # its last weights are kept; does not change what it is
    versions: tuple[int, int] = field(init=False)  # of the task and of the method

    def __post_init__(self) -> None:
        method = methods.method(self.method)
        object.__setattr__(self, "versions", (task(self.task).version, method.version))
        method.check(dict(self.options))
        if self.epochs < 1 or self.batch_size < 1:
            raise InvalidInput(f"epochs = {self.epochs}, batch_size = {self.batch_size}: give at least 1")

    @property
    def specification(self) -> dict[str, Any]:
        """The run as plain JSON data: what is in ``STATED``, and of other fields that are compared what is no default."""
        known = asdict(self)
        plain = {
            f.name: known[f.name]
            for f in fields(self)
            if f.name in STATED or (f.compare and known[f.name] != f.default)
        }
        return plain | {"options": dict(self.options), "versions": list(self.versions)}

    @property
    def key(self) -> str:
        """SHA-256 of the canonical specification, first 16 hex digits.

        >>> a = Run(task="digits-classifier", method="sgd", options=(("lr", 0.1),), epochs=1, batch_size=8, seed=0)
        >>> a.key == Run(task="digits-classifier", method="sgd", options=(("lr", 0.1),), epochs=1, batch_size=8, seed=0).key
        True
        """
        return self.key_of(self.specification)

    @staticmethod
    def key_of(specification: dict[str, Any]) -> str:
        """The key of a specification, of today or of a record."""
        canonical = json.dumps(specification, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, method: str, **fields: Any) -> Run:
        """A run whose ``options`` are given as a dictionary."""
        options = fields.pop("options", {})
        return cls(method=method, options=tuple(sorted(options.items())), **fields)
