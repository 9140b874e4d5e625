"""The one exception family of the project.

Every message says what was wrong, with which value, and what to do. Where a builtin class fits it is a second base, so
``except ValueError`` keeps working for people who do not know ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ReprolibError(Exception):
    """Base of everything that reprolib raises on purpose."""


class InvalidInput(ReprolibError, ValueError):
    """A value, shape or type that a public function cannot use."""


class UnknownName(InvalidInput):
    """A name (data set, scale, backend, option, ...) that is not in its list."""

    @classmethod
    def among(cls, what: str, name: object, known: Iterable[str]) -> UnknownName:
        """The error for ``name``, listing the known names and guessing the one that was meant.

        >>> print(UnknownName.among("data set", "minst", ["mnist", "svhn"]))
        unknown data set 'minst': use one of mnist, svhn (did you mean 'mnist'?)
        """
        known = sorted(known)
        close = get_close_matches(str(name), known, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        return cls(f"unknown {what} {name!r}: use one of {', '.join(known)}{guess}")


class DataError(ReprolibError):
    """A data file that is missing, truncated, altered, unreadable or cannot be downloaded."""


class UnsupportedOperation(ReprolibError, NotImplementedError):
    """An operation of the network that the chosen backend cannot differentiate."""


class UntrackedOperation(ReprolibError, RuntimeError):
    """The derivative along d disagrees with <gradient, d>: part of the network escaped the local model."""


class NotRepeatable(ReprolibError, RuntimeError):
    """The closure gave other losses when it was run again with the same parameters and random state."""


class ModelConsumed(ReprolibError, RuntimeError):
    """A local model was asked again after it freed its memory (``retain=True`` keeps it)."""


class RankFailed(ReprolibError, RuntimeError):
    """Another process of a data-parallel step raised; its message is in its own log."""


class NotDescent(ReprolibError, ValueError):
    """A direction d with <gradient, d> <= 0, where the method needs descent along -d."""


class RecordError(ReprolibError):
    """A result record that is missing, incomplete or does not belong to the code that reads it."""


class NotebookFailed(ReprolibError, RuntimeError):
    """A notebook raised while the book was built."""


class HandedOver(UserWarning):
    """Part of a network cannot be recorded, so that a slower backend answers."""


class SkippedStep(UserWarning):
    """A step that was non-finite or undefined and therefore changed nothing."""
