"""What a result was measured on, without names or paths; numbers as tables and plots show them."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import softce_fast


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of core 0, where the system tells; in /proc/cpuinfo it is wrong."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().rstrip("K\n")) * 1024 for file in files), default=None)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def describe(packages: Iterable[str] = ("numpy", "softce_fast")) -> dict[str, Any]:
    """The head of every results file."""
    import cpuinfo

    cpu = cpuinfo.get_cpu_info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cpu": cpu.get("brand_raw", platform.machine()),
            "cores": available_cores(),
            "last_level_cache_bytes": last_level_cache_bytes(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": versions(packages),
        "softce_fast": softce_fast.show_config(mode="dicts"),
    }


def one_line(document: dict[str, Any]) -> str:
    """The machine, the kernels' build and the date, for tables and plots."""
    machine, build = document["machine"], document["softce_fast"]["isa"]["in use"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return f"{machine['cpu']}, {cores}, {build} build, {machine['system']}, {document['date']}"


def time_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def ratio_text(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
