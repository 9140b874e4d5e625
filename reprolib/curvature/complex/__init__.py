"""The complex step: derivatives from the imaginary part of an ordinary evaluation (``backend.py``)."""
