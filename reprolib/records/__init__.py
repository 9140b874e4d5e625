"""What came out: records, the claims that they are judged by, verdicts, statistics."""

from reprolib.records.record import Record

__all__ = ["Record"]
