"""Seconds that calls take, each called in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm


def medians(
    calls: Mapping[str, Callable[[], Any]], rounds: int, description: str
) -> dict[str, float]:
    """Return the median of `rounds` times of each call, after one that warms it up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), desc=description, unit="round"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
