"""The one list of operations, shapes and dtypes that every benchmark measures.

``CASES`` holds one ``Case`` per operation x shape x dtype, in an order that keeps cases with the
same input next to each other, so that the input is made once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

LABEL_BYTES = 8  # labels are int64
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Operation:
    """One thing that is measured: a public function with or without a given output."""

    name: str
    title: str
    full_arrays: int  # arrays of the size of the logits that must cross the memory bus
    takes_labels: bool
    fresh: bool  # the output is allocated by the call


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("softmax_out", "softmax, out=", 2, False, False),
        Operation("softmax_fresh", "softmax, fresh output", 2, False, True),
        Operation("cross_entropy", "cross_entropy", 1, True, False),
        Operation("cross_entropy_with_grad_out", "cross_entropy_with_grad, grad_out=", 2, True,
                  False),
        Operation("cross_entropy_with_grad_fresh", "cross_entropy_with_grad, fresh gradient", 2,
                  True, True),
        Operation("log_softmax_out", "log_softmax, out=", 2, False, False),
        Operation("logsumexp", "logsumexp", 1, False, False),
    )
}  # fmt: skip

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

# Best peer's time over ours, float32.
FLOAT32_TARGETS: dict[str, dict[str, float]] = {
    "softmax_out": {
        "few": 4, "medium": 1.5, "many": 1.5, "one_row": 1.8, "one_call": 1, "batch": 1.5,
        "middle": 1.5,
    },
    "softmax_fresh": {
        "few": 2.5, "medium": 1.2, "many": 1.2, "one_row": 1.2, "one_call": 1, "batch": 1.5,
        "middle": 1.5,
    },
    "cross_entropy": {
        "few": 4, "medium": 3, "many": 2.5, "one_row": 1.8, "one_call": 1.5, "batch": 2,
    },
    "cross_entropy_with_grad_out": {
        "few": 8, "medium": 8, "many": 8, "one_row": 3, "one_call": 2, "batch": 5,
    },
}  # fmt: skip
FLOAT64_TARGET = 1.5
HALF_TARGET = 1.0  # float32's time over ours on the same shape
LIMIT_SHARE_TARGET = 0.8
LIMIT_SHARE_SMALLEST_ARRAY = 8 * MEBIBYTE
LIMIT_SHARE_FEWEST_CLASSES = 64

HALF_DTYPES = ("float16", "bfloat16")
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    column: str
    axis: int = -1

    @property
    def shape_name(self) -> str:
        name = "x".join(str(length) for length in self.shape)
        return name if self.axis == -1 else f"{name}-axis{self.axis}"

    @property
    def identifier(self) -> str:
        return f"{self.operation}-{self.dtype}-{self.shape_name}"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return self.elements // self.classes

    @property
    def array_bytes(self) -> int:
        return self.elements * ITEM_SIZES[self.dtype]

    @property
    def minimum_bytes_per_element(self) -> int:
        """What any implementation has to move: each full array once, nothing read twice."""
        return OPERATIONS[self.operation].full_arrays * ITEM_SIZES[self.dtype]

    @property
    def minimum_bytes(self) -> int:
        labels = self.rows * LABEL_BYTES if OPERATIONS[self.operation].takes_labels else 0
        return self.elements * self.minimum_bytes_per_element + labels

    @property
    def target(self) -> float | None:
        """The ratio to beat: of the best peer's time, for half types of float32's, over ours."""
        float32_target = FLOAT32_TARGETS.get(self.operation, {}).get(self.column)
        if self.dtype in HALF_DTYPES:
            return HALF_TARGET if self.operation in FLOAT32_TARGETS else None
        if self.dtype == "float64" and float32_target is not None:
            return FLOAT64_TARGET
        return float32_target

    @property
    def limit_share_applies(self) -> bool:
        """Large rows and arrays; a fresh output is bound by page faults before it is by memory."""
        return (
            self.array_bytes >= LIMIT_SHARE_SMALLEST_ARRAY
            and self.classes >= LIMIT_SHARE_FEWEST_CLASSES
            and self.axis == -1
            and not OPERATIONS[self.operation].fresh
        )


# (shape, axis, column)
_FLOAT32_SHAPES: tuple[tuple[tuple[int, ...], int, str], ...] = (
    ((1_000_000, 3), -1, "few"),
    ((1_000_000, 10), -1, "few"),
    ((1_000_000, 16), -1, "few"),
    ((262_144, 64), -1, "medium"),
    ((16_384, 1000), -1, "medium"),
    ((512, 32_768), -1, "many"),
    ((128, 131_072), -1, "many"),
    ((1, 4_194_304), -1, "one_row"),
    ((1, 10), -1, "one_call"),
    ((32, 1000), -1, "batch"),
    ((64, 21, 128, 128), 1, "middle"),
)
_FLOAT64_SHAPES = tuple(
    entry for entry in _FLOAT32_SHAPES if entry[0] not in {(1_000_000, 16), (128, 131_072)}
)
_HALF_SHAPES: tuple[tuple[tuple[int, ...], int, str], ...] = (
    ((4_000_000, 10), -1, "half"),
    ((32_768, 1024), -1, "half"),
)
_PLAIN_SHAPES = {(1_000_000, 10), (16_384, 1000)}  # for operations that have no target
_UNTARGETED = ("log_softmax_out", "logsumexp")


def _cases() -> Iterable[Case]:
    for dtype, entries in (
        ("float32", _FLOAT32_SHAPES),
        ("float64", _FLOAT64_SHAPES),
        *((dtype, _HALF_SHAPES) for dtype in HALF_DTYPES),
    ):
        for shape, axis, column in entries:
            for operation in OPERATIONS:
                if operation not in _UNTARGETED or shape in _PLAIN_SHAPES:
                    yield Case(operation, shape, dtype, column, axis)


CASES: tuple[Case, ...] = tuple(_cases())

_QUICK_SHAPES = {
    (1_000_000, 10), (16_384, 1000), (512, 32_768), (1, 4_194_304), (1, 10), (32, 1000),
    (64, 21, 128, 128),
}  # fmt: skip


def quick_cases() -> tuple[Case, ...]:
    """One float32 shape per column."""
    return tuple(c for c in CASES if c.dtype == "float32" and c.shape in _QUICK_SHAPES)


def bench_cases() -> tuple[Case, ...]:
    """What ``make bench`` runs: all of float32, and enough of the rest to see it work."""
    return tuple(
        case
        for case in CASES
        if case.dtype == "float32"
        or (case.dtype == "float64" and case.shape in _PLAIN_SHAPES)
        or (case.dtype in HALF_DTYPES and case.operation == "softmax_out" and case.classes > 100)
    )


def select(
    cases: Iterable[Case],
    operations: Iterable[str] | None = None,
    shapes: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
) -> tuple[Case, ...]:
    """The cases whose operation, shape ("16384x1000", or a column's name) and dtype were named."""
    operations, shapes, dtypes = (
        None if names is None else set(names) for names in (operations, shapes, dtypes)
    )
    return tuple(
        case
        for case in cases
        if (operations is None or case.operation in operations)
        and (shapes is None or shapes & {case.shape_name, case.column})
        and (dtypes is None or case.dtype in dtypes)
    )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name; bfloat16 needs ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


# The cache holds one input: cases that share it follow each other.
@functools.lru_cache(maxsize=1)
def _inputs(
    shape: tuple[int, ...], axis: int, dtype: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(20240229)
    drawn_as = np.float64 if dtype == "float64" else np.float32
    logits = generator.standard_normal(shape, dtype=drawn_as).astype(numpy_dtype(dtype), copy=False)
    label_shape = tuple(np.delete(shape, axis).tolist())
    labels = generator.integers(0, shape[axis], size=label_shape, dtype=np.int64)
    return logits, labels


def inputs(case: Case) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random normal logits and labels of a case, the same in every process."""
    return _inputs(case.shape, case.axis, case.dtype)


def faulted_output(case: Case) -> np.ndarray[Any, Any]:
    """An output whose pages are already there, so that no call is charged for them."""
    output = np.empty(case.shape, dtype=numpy_dtype(case.dtype))
    output.fill(1)
    return output
