"""Time against rows, against classes and, with --threads, against threads.

Rows from 10^3 to 10^7 at 10 and at 1000 classes; classes from 2 to 10^6 at 2^22 elements in all.
A cliff shows as a jump of the time per element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

import machine
import peers
import report
import softce_fast
import timing
from shapes import ITEM_SIZES, Case, Problem

FUNCTIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")
ROW_COUNTS = tuple(round(10 ** (power / 2)) for power in range(6, 15))  # 10^3 to 10^7
CLASS_COUNTS = (
    2, 3, 4, 5, 7, 8, 10, 12, 15, 16, 17, 20, 31, 32, 33, 48, 64, 65, 100, 128, 200, 256, 400,
    512, 700, 1000, 1024, 2000, 4096, 10_000, 16_384, 32_768, 65_536, 131_072, 300_000, 1_000_000,
)  # fmt: skip
TOTAL_ELEMENTS = 2**22
LARGEST_ARRAY_BYTES = 2**30
THREADED_SHAPES = ((1_000_000, 10), (65_536, 1000), (256, 131_072), (1, 2**26))


def studies(dtype: str) -> dict[str, list[tuple[int, int]]]:
    """The shapes of each study but that of threads."""
    most = LARGEST_ARRAY_BYTES // ITEM_SIZES[dtype]
    return {
        **{
            f"rows of {classes} classes": [(n, classes) for n in ROW_COUNTS if n * classes <= most]
            for classes in (10, 1000)
        },
        "classes": [(-(-TOTAL_ELEMENTS // classes), classes) for classes in CLASS_COUNTS],
    }


def points(
    study: str, shapes: Iterable[tuple[int, int]], dtype: str, seconds: float
) -> Iterator[dict[str, Any]]:
    """The times of the three functions; in the study of threads by their number."""
    for shape in tqdm(shapes, desc=study, unit="shape"):
        calls = {
            function: peers.call(softce_fast, Problem.of(Case(function, shape, dtype)))
            for function in FUNCTIONS
        }
        counts = range(1, min(machine.available_cores(), 16) + 1) if study == "threads" else [None]
        base: dict[str, timing.Timing] = {}
        for threads in counts:
            with softce_fast.num_threads(threads or softce_fast.get_num_threads()):
                times = timing.alternate(calls, 5, seconds / 5, least=1)
            base = base or times
            for function, found in times.items():
                point: dict[str, Any] = {"study": study, "function": function, "dtype": dtype}
                point |= {"rows": shape[0], "classes": shape[1], "seconds": found._asdict()}
                if threads:
                    point |= {"threads": threads, "speedup": base[function].median / found.median}
                else:
                    point["nanoseconds_per_element"] = found.median / math.prod(shape) * 1e9
                yield point


def cliffs(found: Iterable[dict[str, Any]], factor: float = 1.5) -> Iterator[str]:
    """Neighbouring points whose time per element jumps up by more than ``factor``."""
    key = lambda point: (point["study"], point["function"])  # noqa: E731
    for (_, function), line in itertools.groupby(sorted(found, key=key), key):
        for before, after in itertools.pairwise(line):
            jump = after["nanoseconds_per_element"] / before["nanoseconds_per_element"]
            if jump > factor:
                yield (
                    f"{function}: {before['rows']} x {before['classes']} to {after['rows']} x "
                    f"{after['classes']}: {jump:.2f} times the time per element"
                )


def main() -> None:
    parser = report.parser("scaling", __doc__)
    parser.add_argument("--threads", action="store_true", help="1 to 16 threads instead")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    options = parser.parse_args()
    chosen = {"threads": [*THREADED_SHAPES]} if options.threads else studies(options.dtype)
    found = [
        point
        for study, shapes in chosen.items()
        for point in points(
            study,
            shapes[:: 3 if options.quick else 1],
            options.dtype,
            0.03 if options.quick else 0.25,
        )
    ]
    path = options.json.with_stem("scaling-threads") if options.threads else options.json
    jumps = {} if options.threads else {"cliffs": list(cliffs(found))}
    report.finish("scaling", path, {**machine.describe(), **jumps, "points": found})


if __name__ == "__main__":
    main()
