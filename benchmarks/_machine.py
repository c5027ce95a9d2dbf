"""What a figure was measured with, and on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import sampler

_PACKAGES = (
    *("numpy", "torch", "transformers", "llama-cpp-python", "jax", "mlx"),
    *("pytest-benchmark", "matplotlib"),
)


def describe() -> dict[str, object]:
    """Versions of what is installed, the instruction set, the processor and its caches."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "sampler": sampler.__version__,
        **{name: str(value) for name, value in sampler.build_info().items() if name != "isas"},
        "python": platform.python_version(),
        "packages": packages,
        "processor": processor(),
        "cores": cores(),
        "cache_bytes": cache_bytes(),
    }


def processor() -> str:
    """The processor's name, where the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_bytes() -> int:
    """The largest cache; 64 MiB where the system does not report it, and at most 512 MiB."""
    sizes = [
        int(file.read_text().strip().removesuffix("K")) * 1024
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return min(max(sizes, default=64 << 20), 512 << 20)
