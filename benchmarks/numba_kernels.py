"""Fused softmax and cross-entropy loops in Numba: prange, fastmath, bound outputs.

``build`` compiles a function's kernels around one exponential: ``numpy.exp``, which a stock Numba
calls element by element, or ``polynomial``, written below so that LLVM vectorises the loops. What a
function does not need is left out when it is compiled.

Three layouts: ``rows`` (rows, classes); ``columns`` (outer, classes, inner) with any strides, where
the loops run along the inner axis; ``flat``, rows whose elements are shared by all threads. Each
kernel takes logits, labels and an output, None where a function has none, and returns the mean
loss.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import njit, prange

WIDTH = 256  # inner elements that one step of the column kernels keeps in the first-level cache


def polynomial(dtype: str) -> Any:
    """exp(v) for v <= 0: 2**n times a Taylor polynomial, short for float32, long for float64."""
    real: Any
    whole: Any
    if dtype == "float32":
        real, whole = np.float32, np.int32
        mantissa_bits, bias, degree, underflow = 23, 127, 7, -87.0
        log_2_head = 0.693359375  # 9 bits of log(2): n * head is exact
        log_2_tail = math.log(2) - log_2_head
    else:
        real, whole = np.float64, np.int64
        mantissa_bits, bias, degree, underflow = 52, 1023, 13, -708.0
        log_2_head = 0.693147182464599609375  # 21 bits
        log_2_tail = -1.904654299957768e-09
    high, low = real(log_2_head), real(log_2_tail)
    log2_e, smallest = real(1 / math.log(2)), real(underflow)
    coefficients = tuple(real(1 / math.factorial(k)) for k in range(degree, -1, -1))
    shift, offset = whole(mantissa_bits), whole(bias)

    @njit(fastmath=True, inline="always")
    def exponential(value):  # type: ignore[no-untyped-def]
        value = max(value, smallest)
        count = np.rint(value * log2_e)
        rest = value - count * high - count * low
        result = coefficients[0]
        for coefficient in coefficients[1:]:
            result = result * rest + coefficient
        return result * whole((whole(count) + offset) << shift).view(real)

    return exponential


@functools.cache
def build(function: str, dtype: str, own_exponential: bool) -> SimpleNamespace:
    """A function's kernels, compiled on first use for the dtype they are called with."""
    exponential = polynomial(dtype) if own_exponential else np.exp
    compiled = njit(parallel=True, fastmath=True)
    inlined = njit(fastmath=True, inline="always")
    labelled = function.startswith("cross_entropy")
    writes = function != "cross_entropy"
    keeps = function in ("softmax", "cross_entropy_with_grad")  # writes exponentials, then scales

    def over_rows(steps: Any, steps_of_row: Any, helper: Any, kernel: Any) -> Any:
        """The threads share the rows, or the elements of each."""

        @helper
        def largest_of(row):  # type: ignore[no-untyped-def]
            largest = row[0]
            for column in steps_of_row(row.size):
                largest = max(largest, row[column])
            return largest

        @helper
        def total_of(row, largest, result):  # type: ignore[no-untyped-def]
            total = row[0] - row[0]
            for column in steps_of_row(row.size):
                value = exponential(row[column] - largest)
                if keeps:
                    result[column] = value
                total += value
            return total

        @helper
        def scale(result, factor):  # type: ignore[no-untyped-def]
            for column in steps_of_row(result.size):
                result[column] *= factor

        @kernel
        def loop(logits, labels, output):  # type: ignore[no-untyped-def]
            loss = 0.0
            count = logits.shape[0]
            for index in steps(count):
                row = logits[index]
                result = output[index] if writes else row
                largest = largest_of(row)
                total = total_of(row, largest, result)
                if keeps:
                    scale(result, 1 / (total * count) if labelled else 1 / total)
                    if labelled:
                        result[labels[index]] -= 1 / count
                if function == "logsumexp":
                    result[0] = largest + np.log(total)
                if function == "log_softmax":
                    shift = largest + np.log(total)
                    for column in range(row.size):
                        result[column] = row[column] - shift
                if labelled:
                    loss += np.log(total) + largest - row[labels[index]]
            return loss / count

        return loop

    @inlined
    def largest_columns(logits, largest):  # type: ignore[no-untyped-def]
        for inner in range(logits.shape[1]):
            largest[inner] = logits[0, inner]
        for column in range(1, logits.shape[0]):
            for inner in range(logits.shape[1]):
                largest[inner] = max(largest[inner], logits[column, inner])

    @compiled
    def columns(logits, labels, output):  # type: ignore[no-untyped-def]
        outer, classes, width = logits.shape
        blocks = (width + WIDTH - 1) // WIDTH
        count = outer * width
        loss = 0.0
        for step in prange(outer * blocks):
            start = step % blocks * WIDTH
            part = logits[step // blocks, :, start : start + WIDTH]
            result = output[step // blocks, :, start : start + WIDTH] if writes else part
            largest = np.empty(WIDTH, logits.dtype)
            total = np.zeros(WIDTH, logits.dtype)
            largest_columns(part, largest)
            for column in range(classes):
                for inner in range(part.shape[1]):
                    value = exponential(part[column, inner] - largest[inner])
                    if keeps:
                        result[column, inner] = value
                    total[inner] += value
            if labelled:
                index = labels[step // blocks, start : start + WIDTH]
                for inner in range(part.shape[1]):
                    loss += np.log(total[inner]) + largest[inner] - part[index[inner], inner]
            if keeps:
                for inner in range(part.shape[1]):
                    total[inner] = 1 / (total[inner] * count) if labelled else 1 / total[inner]
                for column in range(classes):
                    for inner in range(part.shape[1]):
                        result[column, inner] *= total[inner]
                if labelled:
                    for inner in range(part.shape[1]):
                        result[index[inner], inner] -= 1 / count
        return loss / count

    return SimpleNamespace(
        rows=over_rows(prange, range, inlined, compiled),
        flat=over_rows(range, prange, compiled, njit(fastmath=True)),
        columns=columns,
    )
