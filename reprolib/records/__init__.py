"""What came out: records, the claims that they are judged by, verdicts, statistics."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprolib.records.record import Record

__all__ = ["Record"]


def __getattr__(name: str) -> Any:
    """``Record``, when it is asked for: whoever wants the scales or the verdicts need not wait for PyTorch and pandas."""
    if name == "Record":
        from reprolib.records.record import Record

        return Record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
