"""The tape: one recorded pass, and tangents replayed through it (``backend.py``)."""
