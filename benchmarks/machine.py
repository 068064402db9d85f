"""What a result was measured on: machine, versions and date, without names or paths; its record."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of core 0, where the system tells."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]])
    return max(sizes, default=None)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def softce_fast_config() -> dict[str, Any]:
    """What the package says about itself, less where it is installed."""
    import softce_fast

    config = softce_fast.show_config(mode="dicts") or {}
    return {
        key: value
        for key, value in config.items()
        if not (isinstance(value, str) and (os.sep in value or "\\" in value))
    }


def describe(packages: Iterable[str] = ("numpy", "softce_fast")) -> dict[str, Any]:
    """The head of every results file."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cpu": cpu_model(),
            "cores": available_cores(),
            "last_level_cache_bytes": last_level_cache_bytes(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": versions(packages),
        "softce_fast": softce_fast_config(),
    }


def one_line(description: dict[str, Any]) -> str:
    """The machine, the kernels' build and the date in one line, for tables and plots."""
    machine = description["machine"]
    cores = machine["cores"]
    return (
        f"{machine['cpu']}, {cores} core{'s' if cores != 1 else ''}, "
        f"{description['softce_fast']['isa']['in use']} build, {machine['system']}, "
        f"{description['date']}"
    )


def record(document: dict[str, Any], path: Path) -> None:
    """Write results down, where a report is made from them later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"saved {path}")
