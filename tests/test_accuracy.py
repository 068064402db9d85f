"""The accuracy targets: units in the last place against long double, on each ISA build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import softce_fast as sf
import truth
from tolerances import assert_ulp

# Around the lengths where the code changes its way: lanes, tiles, blocks, runs of vectors, chunks.
CLASS_COUNTS = (2, 3, 5, 10, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 127, 129, 255)
CLASS_COUNTS += (256, 512, 1000, 4095, 4096, 4097, 10_000, 131_072)

Array = truth.Array


@dataclass(frozen=True)
class Case:
    """An input with the truth of each operation."""

    inputs: truth.AccuracyInput
    expected: dict[str, Array]


def cases(classes: int, dtype: np.dtype) -> Iterator[Case]:
    elements = max(3000, 17 * classes) if classes < 4000 else min(3 * classes, 131_072)
    for inputs in truth.accuracy_inputs(
        dtype,
        class_counts=[classes],
        elements=elements,
        scales=(1.0, 30.0) if classes > 100_000 else truth.SCALES,
        offsets=(0.0, -3e5) if classes > 100_000 else truth.OFFSETS,
    ):
        logits, labels = inputs.logits, inputs.labels
        yield Case(
            inputs,
            {
                "softmax": truth.softmax(logits),
                "log_softmax": truth.log_softmax(logits),
                "logsumexp": truth.logsumexp(logits),
                "loss": truth.cross_entropy(logits, labels),
                "gradient": truth.gradient(logits, labels),
            },
        )


@pytest.fixture(scope="module", params=CLASS_COUNTS)
def classes(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture(scope="module", params=["float32", "float64"])
def accuracy_cases(request: pytest.FixtureRequest, classes: int) -> list[Case]:
    """The cases with their truth, computed once for all builds."""
    return list(cases(classes, np.dtype(request.param)))


def results(logits: Array, labels: Array, axis: int) -> dict[str, Array]:
    """Each operation, the classes moved back to the last axis, one row after the other."""
    losses, gradient = sf.cross_entropy_with_grad(logits, labels, axis, reduction="none")
    count = logits.shape[axis]
    matrices = {
        "softmax": sf.softmax(logits, axis),
        "log_softmax": sf.log_softmax(logits, axis),
        "gradient": gradient,
    }
    found = {
        name: np.moveaxis(array, axis, -1).reshape(-1, count) for name, array in matrices.items()
    }
    found["logsumexp"] = sf.logsumexp(logits, axis).reshape(-1)
    found["loss"] = losses.reshape(-1)
    return found


# Batches of 1 to 3 rows and of 4 and more rows go different ways through the kernels.
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 4)], ids=["all", "1", "3"])
@pytest.mark.parametrize("middle_axis", [False, True], ids=["last axis", "middle axis"])
def test_targets(isa: str, accuracy_cases: list[Case], rows: slice, middle_axis: bool) -> None:
    for case in accuracy_cases:
        logits, labels = case.inputs.logits[rows], case.inputs.labels[rows]
        if not len(logits):
            continue
        dtype = logits.dtype
        if middle_axis:
            logits, labels = np.ascontiguousarray(logits.T)[None], labels[None]
        for name, result in results(logits, labels, 1).items():
            try:
                assert_ulp(result, case.expected[name][rows], name, dtype)
            except AssertionError as error:
                raise AssertionError(f"{case.inputs.kind}: {error}") from None


@pytest.mark.parametrize("middle_axis", [False, True], ids=["last axis", "middle axis"])
@pytest.mark.parametrize("classes", [3, 17, 100, 5000])
def test_half_types_round_once(
    isa: str, half_dtype: np.dtype, classes: int, middle_axis: bool
) -> None:
    """Half types are computed in float32: rounding to them is all the error there is."""
    dtype = half_dtype
    for inputs in truth.accuracy_inputs(
        dtype, class_counts=[classes], elements=4000, offsets=(0.0, 100.0)
    ):
        logits, labels = inputs.logits, inputs.labels
        expected = {
            "softmax": truth.softmax(logits),
            "log_softmax": truth.log_softmax(logits),
            "logsumexp": truth.logsumexp(logits),
            "loss": truth.cross_entropy(logits, labels),
            "gradient": truth.gradient(logits, labels),
        }
        if middle_axis:
            logits, labels = np.ascontiguousarray(logits.T)[None], labels[None]
        for name, result in results(logits, labels, 1).items():
            assert_ulp(result, expected[name], name, dtype)
