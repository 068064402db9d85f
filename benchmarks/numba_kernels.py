"""Fused softmax and cross-entropy loops in Numba: prange, fastmath, bound outputs.

``build(exponential)`` compiles the set around one exponential: ``numpy.exp``, which a stock Numba
calls element by element, or ``polynomial(dtype)``, written below so that LLVM vectorises the loops.

Three layouts: ``rows`` (rows, classes); ``columns`` (outer, classes, inner) with any strides, where
the loops run along the inner axis; ``flat``, one row whose elements are shared by all threads.
"""

from __future__ import annotations

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


def build(exponential: Any) -> SimpleNamespace:
    """All kernels, compiled on first use for the dtype they are called with."""
    compiled = njit(parallel=True, fastmath=True)

    @njit(fastmath=True, inline="always")
    def largest_of(row):  # type: ignore[no-untyped-def]
        largest = row[0]
        for column in range(row.size):
            largest = max(largest, row[column])
        return largest

    @compiled
    def softmax_rows(logits, output):  # type: ignore[no-untyped-def]
        for index in prange(logits.shape[0]):
            row, result = logits[index], output[index]
            largest = largest_of(row)
            total = row[0] - row[0]
            for column in range(row.size):
                value = exponential(row[column] - largest)
                result[column] = value
                total += value
            factor = 1 / total
            for column in range(row.size):
                result[column] *= factor

    @compiled
    def logsumexp_rows(logits, output):  # type: ignore[no-untyped-def]
        for index in prange(logits.shape[0]):
            row = logits[index]
            largest = largest_of(row)
            total = row[0] - row[0]
            for column in range(row.size):
                total += exponential(row[column] - largest)
            output[index] = largest + np.log(total)

    @compiled
    def log_softmax_rows(logits, output):  # type: ignore[no-untyped-def]
        for index in prange(logits.shape[0]):
            row, result = logits[index], output[index]
            largest = largest_of(row)
            total = row[0] - row[0]
            for column in range(row.size):
                total += exponential(row[column] - largest)
            shift = largest + np.log(total)
            for column in range(row.size):
                result[column] = row[column] - shift

    @compiled
    def loss_rows(logits, labels):  # type: ignore[no-untyped-def]
        loss = 0.0
        for index in prange(logits.shape[0]):
            row = logits[index]
            largest = largest_of(row)
            total = row[0] - row[0]
            for column in range(row.size):
                total += exponential(row[column] - largest)
            loss += np.log(total) + largest - row[labels[index]]
        return loss / logits.shape[0]

    @compiled
    def gradient_rows(logits, labels, gradient):  # type: ignore[no-untyped-def]
        loss = 0.0
        count = logits.shape[0]
        for index in prange(count):
            row, result = logits[index], gradient[index]
            at_label = row[labels[index]]  # read before an output in place could overwrite it
            largest = largest_of(row)
            total = row[0] - row[0]
            for column in range(row.size):
                value = exponential(row[column] - largest)
                result[column] = value
                total += value
            factor = 1 / (total * count)
            for column in range(row.size):
                result[column] *= factor
            result[labels[index]] -= 1 / count
            loss += np.log(total) + largest - at_label
        return loss / count

    @compiled
    def flat_largest(row):  # type: ignore[no-untyped-def]
        largest = row[0]
        for column in prange(row.size):
            largest = max(largest, row[column])
        return largest

    @compiled
    def flat_total(row, largest):  # type: ignore[no-untyped-def]
        total = row[0] - row[0]
        for column in prange(row.size):
            total += exponential(row[column] - largest)
        return total

    @compiled
    def flat_exponentials(row, largest, result):  # type: ignore[no-untyped-def]
        total = row[0] - row[0]
        for column in prange(row.size):
            value = exponential(row[column] - largest)
            result[column] = value
            total += value
        return total

    @compiled
    def flat_scale(result, factor):  # type: ignore[no-untyped-def]
        for column in prange(result.size):
            result[column] *= factor

    @njit(fastmath=True)
    def softmax_flat(logits, output):  # type: ignore[no-untyped-def]
        for index in range(logits.shape[0]):
            row, result = logits[index], output[index]
            total = flat_exponentials(row, flat_largest(row), result)
            flat_scale(result, 1 / total)

    @njit(fastmath=True)
    def loss_flat(logits, labels):  # type: ignore[no-untyped-def]
        loss = 0.0
        for index in range(logits.shape[0]):
            row = logits[index]
            largest = flat_largest(row)
            loss += np.log(flat_total(row, largest)) + largest - row[labels[index]]
        return loss / logits.shape[0]

    @njit(fastmath=True)
    def gradient_flat(logits, labels, gradient):  # type: ignore[no-untyped-def]
        loss = 0.0
        count = logits.shape[0]
        for index in range(count):
            row, result = logits[index], gradient[index]
            at_label = row[labels[index]]
            largest = flat_largest(row)
            total = flat_exponentials(row, largest, result)
            flat_scale(result, 1 / (total * count))
            result[labels[index]] -= 1 / count
            loss += np.log(total) + largest - at_label
        return loss / count

    @njit(fastmath=True, inline="always")
    def largest_columns(logits, largest):  # type: ignore[no-untyped-def]
        for inner in range(logits.shape[1]):
            largest[inner] = logits[0, inner]
        for column in range(1, logits.shape[0]):
            for inner in range(logits.shape[1]):
                largest[inner] = max(largest[inner], logits[column, inner])

    @compiled
    def softmax_columns(logits, output):  # type: ignore[no-untyped-def]
        outer, classes, width = logits.shape
        blocks = (width + WIDTH - 1) // WIDTH
        for step in prange(outer * blocks):
            start = step % blocks * WIDTH
            part = logits[step // blocks, :, start : start + WIDTH]
            result = output[step // blocks, :, start : start + WIDTH]
            largest = np.empty(WIDTH, logits.dtype)
            total = np.zeros(WIDTH, logits.dtype)
            largest_columns(part, largest)
            for column in range(classes):
                for inner in range(part.shape[1]):
                    value = exponential(part[column, inner] - largest[inner])
                    result[column, inner] = value
                    total[inner] += value
            for inner in range(part.shape[1]):
                total[inner] = 1 / total[inner]
            for column in range(classes):
                for inner in range(part.shape[1]):
                    result[column, inner] *= total[inner]

    @compiled
    def loss_columns(logits, labels):  # type: ignore[no-untyped-def]
        outer, classes, width = logits.shape
        blocks = (width + WIDTH - 1) // WIDTH
        loss = 0.0
        for step in prange(outer * blocks):
            start = step % blocks * WIDTH
            part = logits[step // blocks, :, start : start + WIDTH]
            index = labels[step // blocks, start : start + WIDTH]
            largest = np.empty(WIDTH, logits.dtype)
            total = np.zeros(WIDTH, logits.dtype)
            largest_columns(part, largest)
            for column in range(classes):
                for inner in range(part.shape[1]):
                    total[inner] += exponential(part[column, inner] - largest[inner])
            for inner in range(part.shape[1]):
                loss += np.log(total[inner]) + largest[inner] - part[index[inner], inner]
        return loss / (outer * width)

    @compiled
    def gradient_columns(logits, labels, gradient):  # type: ignore[no-untyped-def]
        outer, classes, width = logits.shape
        blocks = (width + WIDTH - 1) // WIDTH
        count = outer * width
        loss = 0.0
        for step in prange(outer * blocks):
            start = step % blocks * WIDTH
            part = logits[step // blocks, :, start : start + WIDTH]
            result = gradient[step // blocks, :, start : start + WIDTH]
            index = labels[step // blocks, start : start + WIDTH]
            largest = np.empty(WIDTH, logits.dtype)
            total = np.zeros(WIDTH, logits.dtype)
            largest_columns(part, largest)
            for inner in range(part.shape[1]):
                loss += largest[inner] - part[index[inner], inner]
            for column in range(classes):
                for inner in range(part.shape[1]):
                    value = exponential(part[column, inner] - largest[inner])
                    result[column, inner] = value
                    total[inner] += value
            for inner in range(part.shape[1]):
                loss += np.log(total[inner])
                total[inner] = 1 / (total[inner] * count)
            for column in range(classes):
                for inner in range(part.shape[1]):
                    result[column, inner] *= total[inner]
            for inner in range(part.shape[1]):
                result[index[inner], inner] -= 1 / count
        return loss / count

    return SimpleNamespace(
        softmax_rows=softmax_rows,
        softmax_flat=softmax_flat,
        softmax_columns=softmax_columns,
        log_softmax_rows=log_softmax_rows,
        logsumexp_rows=logsumexp_rows,
        loss_rows=loss_rows,
        loss_flat=loss_flat,
        loss_columns=loss_columns,
        gradient_rows=gradient_rows,
        gradient_flat=gradient_flat,
        gradient_columns=gradient_columns,
    )
