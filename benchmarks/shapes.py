"""The one list of operations, shapes and dtypes that every benchmark measures.

``CASES`` holds one ``Case`` per operation x shape x dtype, in an order that keeps cases with the
same input next to each other, so that the input is made once.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

MEBIBYTE = 2**20
HALF_DTYPES = ("float16", "bfloat16")
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

COLUMNS = {
    "few": "3-16 classes, 1 M rows",
    "medium": "64-1000 classes",
    "many": "32 k-128 k classes",
    "one_row": "1 row x 4 M",
    "one_call": "1 x 10 call",
    "batch": "32 x 1000",
    "middle": "class axis in the middle",
    "half": "half types, 64 MiB and more",
}


class Operation(NamedTuple):
    """A public function, with an output that is given (_out) or made by the call (_fresh)."""

    title: str
    full_arrays: int  # arrays of the size of the logits that must cross the memory bus


OPERATIONS = {
    "softmax_out": Operation("softmax, out=", 2),
    "softmax_fresh": Operation("softmax, fresh output", 2),
    "cross_entropy": Operation("cross_entropy", 1),
    "cross_entropy_with_grad_out": Operation("cross_entropy_with_grad, grad_out=", 2),
    "cross_entropy_with_grad_fresh": Operation("cross_entropy_with_grad, fresh gradient", 2),
    "log_softmax_out": Operation("log_softmax, out=", 2),
    "logsumexp": Operation("logsumexp", 1),
}


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    column: str = ""
    axis: int = -1

    @property
    def function(self) -> str:
        return self.operation.removesuffix("_out").removesuffix("_fresh")

    @property
    def fresh(self) -> bool:
        return self.operation.endswith("_fresh")

    @property
    def takes_labels(self) -> bool:
        return self.function.startswith("cross_entropy")

    @property
    def shape_name(self) -> str:
        name = "x".join(str(length) for length in self.shape)
        return name if self.axis == -1 else f"{name}-axis{self.axis}"

    @property
    def identifier(self) -> str:
        return f"{self.operation}-{self.dtype}-{self.shape_name}"

    def described(self) -> dict[str, Any]:
        """What results say of a case."""
        names = ("operation", "shape_name", "column", "dtype", "minimum_bytes")
        return {name.removesuffix("_name"): getattr(self, name) for name in names}

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.classes

    @property
    def array_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def minimum_bytes(self) -> int:
        """What any implementation has to move: each full array once, labels of int64, no more."""
        labels = self.rows * 8 if self.takes_labels else 0
        return OPERATIONS[self.operation].full_arrays * self.array_bytes + labels

    @property
    def limit_share_applies(self) -> bool:
        """Large rows and arrays; a fresh output is bound by page faults before it is by memory."""
        large = self.array_bytes >= 8 * MEBIBYTE and self.classes >= 64
        return large and self.axis == -1 and not self.fresh


# Shapes by column; classes are the last axis but in the column "middle".
Shapes = dict[str, tuple[tuple[int, ...], ...]]
_FLOAT32_SHAPES: Shapes = {
    "few": ((1_000_000, 3), (1_000_000, 10), (1_000_000, 16)),
    "medium": ((262_144, 64), (16_384, 1000)),
    "many": ((512, 32_768), (128, 131_072)),
    "one_row": ((1, 4_194_304),),
    "one_call": ((1, 10),),
    "batch": ((32, 1000),),
    "middle": ((64, 21, 128, 128),),
}
_HALF_SHAPES: Shapes = {"half": ((4_000_000, 10), (32_768, 1024))}
_PLAIN_SHAPES = {(1_000_000, 10), (16_384, 1000)}  # for what has no place in every column

CASES = tuple(
    Case(operation, shape, dtype, column, 1 if column == "middle" else -1)
    for dtype in ("float32", "float64", *HALF_DTYPES)
    for column, shapes in (_HALF_SHAPES if dtype in HALF_DTYPES else _FLOAT32_SHAPES).items()
    for shape in shapes
    if dtype != "float64" or shape not in {(1_000_000, 16), (128, 131_072)}
    for operation in OPERATIONS
    if operation not in ("log_softmax_out", "logsumexp") or shape in _PLAIN_SHAPES
)
_LONGER = {(1_000_000, 3), (1_000_000, 16), (262_144, 64), (128, 131_072)}
QUICK_CASES = tuple(c for c in CASES if c.dtype == "float32" and c.shape not in _LONGER)
# What ``make bench`` runs: all of float32, and enough of the rest to see it work.
BENCH_CASES = tuple(
    case
    for case in CASES
    if case.dtype == "float32"
    or (case.dtype == "float64" and case.shape in _PLAIN_SHAPES)
    or (case.dtype in HALF_DTYPES and case.operation == "softmax_out" and case.classes > 100)
)


# The cache holds one input: cases that share it follow each other.
@functools.lru_cache(maxsize=1)
def _inputs(shape: tuple[int, ...], axis: int, dtype: str) -> tuple[Array, Array]:
    generator = np.random.default_rng(20240229)
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  # NumPy knows the name from then on
    drawn_as = np.float64 if dtype == "float64" else np.float32
    logits = generator.standard_normal(shape, dtype=drawn_as).astype(dtype, copy=False)
    label_shape = tuple(np.delete(shape, axis).tolist())
    return logits, generator.integers(0, shape[axis], size=label_shape, dtype=np.int64)


@dataclass(frozen=True)
class Problem:
    """A case with its arrays: what everything that computes it is given."""

    case: Case
    logits: Array
    labels: Array
    reduction: str = "mean"

    @classmethod
    def of(cls, case: Case) -> Problem:
        """The case on random normal logits and labels, the same in every process."""
        # No mean for gradients in half types: over this many rows float16's would be 0.
        half_gradient = case.dtype in HALF_DTYPES and "grad" in case.operation
        logits, labels = _inputs(case.shape, case.axis, case.dtype)
        return cls(case, logits, labels, "none" if half_gradient else "mean")

    @property
    def index(self) -> Array:
        """The labels with the class axis."""
        return np.expand_dims(self.labels, self.case.axis)

    def output(self) -> Array | None:
        """None for a fresh one; else its pages are there, so that no call is charged for them."""
        return None if self.case.fresh else np.full_like(self.logits, 1)
