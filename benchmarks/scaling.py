"""Time against rows, against classes and, with --threads, against threads.

Rows from 10^3 to 10^7 at 10 and at 1000 classes; classes from 2 to 10^6 at 2^22 elements in all.
A cliff shows as a jump of the time per element.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import machine
import softce_fast

RESULTS = Path(__file__).with_name("results")
Array = np.ndarray[Any, Any]

FUNCTIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")
ROW_COUNTS = tuple(round(10 ** (power / 2)) for power in range(6, 15))  # 10^3 to 10^7
CLASS_COUNTS = (
    2, 3, 4, 5, 7, 8, 10, 12, 15, 16, 17, 20, 31, 32, 33, 48, 64, 65, 100, 128, 200, 256, 400,
    512, 700, 1000, 1024, 2000, 4096, 10_000, 16_384, 32_768, 65_536, 131_072, 300_000, 1_000_000,
)  # fmt: skip
TOTAL_ELEMENTS = 2**22
LARGEST_ARRAY_BYTES = 2**30
THREADED_SHAPES = ((1_000_000, 10), (65_536, 1000), (256, 131_072), (1, 2**26))


def measured(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Median and quartiles of single calls over about that many seconds, after a warm-up."""
    call()
    start = time.perf_counter()
    call()
    number = max(int(2e-4 / max(time.perf_counter() - start, 1e-9)), 1)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(number):
            call()
        times.append((time.perf_counter() - start) / number)
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "low_quartile": low, "high_quartile": high}


def calls(rows: int, classes: int, dtype: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The three functions on normal logits of that shape, outputs faulted in."""
    generator = np.random.default_rng(0)
    drawn_as = np.float64 if dtype == "float64" else np.float32
    logits = generator.standard_normal((rows, classes), dtype=drawn_as).astype(dtype, copy=False)
    labels = generator.integers(0, classes, size=rows)
    output = np.ones_like(logits)
    yield "softmax_out", lambda: softce_fast.softmax(logits, out=output)
    yield "cross_entropy", lambda: softce_fast.cross_entropy(logits, labels)
    yield (
        "cross_entropy_with_grad_out",
        lambda: softce_fast.cross_entropy_with_grad(logits, labels, grad_out=output),
    )


def points(
    study: str, shapes: list[tuple[int, int]], dtype: str, seconds: float
) -> list[dict[str, Any]]:
    found = []
    for rows, classes in tqdm(shapes, desc=study, unit="shape"):
        for function, call in calls(rows, classes, dtype):
            times = measured(call, seconds)
            found.append(
                {
                    "study": study,
                    "function": function,
                    "dtype": dtype,
                    "rows": rows,
                    "classes": classes,
                    "seconds": times,
                    "nanoseconds_per_element": times["median"] / (rows * classes) * 1e9,
                }
            )
    return found


def row_shapes(classes: int, dtype: str) -> list[tuple[int, int]]:
    item_size = np.dtype(dtype).itemsize
    return [
        (rows, classes) for rows in ROW_COUNTS if rows * classes * item_size <= LARGEST_ARRAY_BYTES
    ]


def class_shapes() -> list[tuple[int, int]]:
    return [(-(-TOTAL_ELEMENTS // classes), classes) for classes in CLASS_COUNTS]


def thread_points(counts: list[int], dtype: str, seconds: float) -> list[dict[str, Any]]:
    """Time with each number of threads, and the speed-up over the smallest number."""
    found: list[dict[str, Any]] = []
    for rows, classes in tqdm(THREADED_SHAPES, desc="threads", unit="shape"):
        for function, call in calls(rows, classes, dtype):
            base = None
            for threads in counts:
                with softce_fast.num_threads(threads):
                    times = measured(call, seconds)
                base = base or times["median"]
                found.append(
                    {
                        "study": "threads",
                        "function": function,
                        "dtype": dtype,
                        "rows": rows,
                        "classes": classes,
                        "threads": threads,
                        "seconds": times,
                        "speedup": base / times["median"],
                    }
                )
    return found


def cliffs(found: list[dict[str, Any]], factor: float = 1.5) -> list[str]:
    """Neighbouring points whose time per element jumps up by more than ``factor``."""
    jumps = []
    for function in FUNCTIONS:
        for study in dict.fromkeys(point["study"] for point in found):
            line = [p for p in found if p["function"] == function and p["study"] == study]
            for before, after in itertools.pairwise(line):
                jump = after["nanoseconds_per_element"] / before["nanoseconds_per_element"]
                if jump > factor:
                    jumps.append(
                        f"{function}: {before['rows']} x {before['classes']} to "
                        f"{after['rows']} x {after['classes']}: {jump:.2f} times the time "
                        f"per element"
                    )
    return jumps


def plot(document: dict[str, Any], path: Path) -> None:
    import report

    pyplot = report.pyplot_module()
    found = document["points"]
    studies = list(dict.fromkeys(point["study"] for point in found))
    if studies == ["threads"]:
        panels = [(f"{rows} x {classes}", [p for p in found if p["rows"] == rows])
                  for rows, classes in THREADED_SHAPES]  # fmt: skip
        horizontal, vertical = "threads", "speedup"
    else:
        panels = [(study, [p for p in found if p["study"] == study]) for study in studies]
        vertical = "nanoseconds_per_element"
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(5 * len(panels), 4.2),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, (title, chosen) in zip(axes.flat, panels, strict=True):
        if vertical == "nanoseconds_per_element":
            horizontal = "classes" if title == "classes" else "rows"
        for function in FUNCTIONS:
            line = [point for point in chosen if point["function"] == function]
            axis.plot(
                [point[horizontal] for point in line],
                [point[vertical] for point in line],
                "o-",
                markersize=3.5,
                label=function,
            )
        if vertical == "speedup":
            most = max(point["threads"] for point in chosen)
            axis.plot([1, most], [1, most], "k:", linewidth=1, label="linear")
        else:
            axis.set_xscale("log")
            axis.set_yscale("log")
        axis.set_xlabel(horizontal)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(color="#e4e4e4", linewidth=0.6, which="both")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes.flat[0].set_ylabel(
        "time on one thread over time" if vertical == "speedup" else "ns per element"
    )
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"softce_fast, {found[0]['dtype']}: {machine.one_line(document)}", fontsize=10)
    report.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", action="store_true", help="1 to 16 threads instead")
    parser.add_argument("--quick", action="store_true", help="every third shape, briefly")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--json", type=Path, help="default: results/local/scaling[-threads].json")
    options = parser.parse_args()
    seconds = 0.03 if options.quick else 0.25
    step = 3 if options.quick else 1

    if options.threads:
        most = min(machine.available_cores(), 16)
        found = thread_points(list(range(1, most + 1)), options.dtype, seconds)
    else:
        found = [
            *points("rows of 10 classes", row_shapes(10, options.dtype)[::step], options.dtype,
                    seconds),
            *points("rows of 1000 classes", row_shapes(1000, options.dtype)[::step],
                    options.dtype, seconds),
            *points("classes", class_shapes()[::step], options.dtype, seconds),
        ]  # fmt: skip
    document = {"kind": "scaling", **machine.describe(), "points": found}
    if not options.threads:
        document["cliffs"] = cliffs(found)
        for cliff in document["cliffs"]:
            print(cliff)
    name = "scaling-threads" if options.threads else "scaling"
    path = options.json or RESULTS / "local" / f"{name}.json"
    machine.record(document, path)
    plot(document, path.with_suffix(".png"))
    print(f"saved {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
