"""Where and with what a result was made."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def environment(device: str | torch.device = "cpu", also: Iterable[str] = ()) -> dict[str, Any]:
    """Device, numerical modes, threads, versions (of the packages ``also`` too), commit and date; no path, no host name.

    ``capability``: the instructions that PyTorch's own kernels use on the processor (AVX2, AVX512, ...).
    """
    device = torch.device(device)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "tf32": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
        "versions": {name: _version(name) for name in ("reprolib", "torch", "numpy", "pandas", *also)}
        | {"python": platform.python_version(), "cuda": torch.version.cuda}
        | _kernels(),
        "commit": commit(),
    }


@cache
def commit() -> str:
    """The commit of the source tree when first asked, with ``+`` if a tracked file differs from it; else ``unknown``."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _kernels() -> dict[str, str | None]:
    """Versions of the libraries that multiply matrices and convolve for PyTorch."""
    built = torch.__config__.show()
    found = {"mkl": r"Math Kernel Library Version ([\d.]+)", "onednn": r"MKL-DNN v([\d.]+)"}
    return {name: match[1] if (match := re.search(pattern, built)) else None for name, pattern in found.items()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
