"""What a figure was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """Name the versions and the processor."""
    packages = {"sampler": "token-sampler", "NumPy": "numpy"}
    packages |= {name: name for name in ("torch", "transformers")}
    versions = [f"{name} {version(package)}" for name, package in packages.items()]
    return ", ".join([*versions, f"Python {platform.python_version()}", processor()])


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
