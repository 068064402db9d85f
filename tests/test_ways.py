"""Every combination of options goes through the kernels, and none makes a copy of its input."""

from __future__ import annotations

import inspect
import itertools
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from softce_fast._kernels import execute

Array = np.ndarray[Any, Any]
Choices = dict[str, list[Any]]

ROWS, CLASSES = 6, 5


def choices_of(name: str, rows: int, classes: int) -> Choices:
    """The positional arguments and the options of a function, each with values to take."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, classes)).astype(np.float32)
    labels = random.integers(0, classes, rows)
    probabilities = sf.softmax(x)
    mask = random.random(x.shape) < 0.9
    each = random.uniform(0.5, 2, x.shape)
    inputs = [
        x, np.asfortranarray(x), x[:, ::-1], x.astype(np.float16), x.astype(x.dtype.newbyteorder()),
        (4 * x).astype(np.int8),
    ]  # fmt: skip
    dtypes = [None, np.float32, np.float64]
    of_rows: Choices = {"dtype": dtypes, "where": [None, mask, mask[0]]}
    loss: Choices = {
        "target": [labels, labels.astype(np.uint8), probabilities, each],
        "weight": [None, each[0]],
        "sample_weight": [None, each[:, 0]],
        "ignore_index": [-100, 1],
        "reduction": ["mean", "sum", "none"],
        "denominator": [None, 2.5],
        "empty": ["nan", "zero"],
        "dtype": [None, np.float64],
    }
    # Of a mask and a cap every combination counts, not of what is done after all sums.
    of_logits: Choices = {
        **loss, "empty": ["nan"], "denominator": [None], "label_smoothing": [0.0, 0.1],
        "temperature": [1.0, 2.0], "where": of_rows["where"],
    }  # fmt: skip
    capped: Choices = {**of_logits, "softcap": [None, 5.0], "z_loss": [0.0, 0.1]}
    binary: Choices = {
        "target": [probabilities, each > 1],
        "weight": [None, each, each[0]],
        "reduction": ["mean", "sum", "none"],
        "dtype": dtypes,
    }
    backward: Choices = {
        "grad_output": inputs, "output": [probabilities, probabilities.astype(np.float64)],
        "temperature": [1.0, 2.0],
    }  # fmt: skip
    softmax: Choices = {"x": inputs, **of_rows, "temperature": [1.0, 2.0], "empty": ["nan", "zero"]}
    return {
        "softmax": softmax,
        "log_softmax": softmax,
        "logsumexp": {
            "x": inputs, **of_rows, "b": [None, each, each[0].astype(np.float32), 2],
            "keepdims": [False, True], "return_sign": [False, True],
        },
        "softmax_backward": backward,
        "log_softmax_backward": backward,
        "cross_entropy": {"logits": inputs, **capped},
        "cross_entropy_with_grad": {"logits": inputs, **capped},
        "cross_entropy_with_grad_and_hessian": {
            "logits": inputs, **of_logits, "hessian_scale": [1.0, 2.0],
            "hessian_floor": [None, 0.1],
        },
        "target_scores": {
            "logits": inputs, "target": loss["target"][:2], **of_rows, "softcap": [None, 5.0],
            "temperature": [1.0, 2.0], "ignore_index": [-100, 1], "top_k": [0, 1, 5],
            "entropy": [False, True], "ties": ["first", "min", "max"],
        },
        "nll_loss": {"log_probs": [np.log(probabilities), *inputs[1:]], **loss},
        "cross_entropy_from_probs": {"probs": [probabilities, each], **loss},
        "binary_cross_entropy": {"probs": [probabilities], **binary},
        "binary_cross_entropy_with_logits": {
            "logits": inputs, **binary, "pos_weight": [None, each[0]]
        },
        "binary_cross_entropy_with_logits_with_grad": {
            "logits": inputs, **binary, "pos_weight": [None, each[0]]
        },
    }[name]  # fmt: skip


NAMES = (
    "softmax", "log_softmax", "logsumexp", "softmax_backward", "log_softmax_backward",
    "cross_entropy", "cross_entropy_with_grad", "cross_entropy_with_grad_and_hessian",
    "target_scores", "nll_loss", "cross_entropy_from_probs", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "binary_cross_entropy_with_logits_with_grad",
)  # fmt: skip


def one_by_one(choices: Choices) -> Iterator[dict[str, Any]]:
    """The first value of all, and each other value with the first ones of the rest."""
    plain = {name: values[0] for name, values in choices.items()}
    yield plain
    for name, values in choices.items():
        for value in values[1:]:
            yield {**plain, name: value}


@pytest.mark.parametrize("name", NAMES)
def test_every_combination_goes_through_the_kernels(name: str) -> None:
    function, choices = getattr(sf, name), choices_of(name, ROWS, CLASSES)
    with np.errstate(all="ignore"):
        for values in itertools.product(*choices.values()):
            with execute.recording() as plans:
                function(**dict(zip(choices, values, strict=True)))
            assert plans, dict(zip(choices, values, strict=True))


def traced_growth(name: str, arguments: dict[str, Any], given: dict[str, Array]) -> int:
    """Bytes that a call takes at most at a time; results that are not `given` aside."""
    tracemalloc.start()
    result = getattr(sf, name)(**arguments, **given)
    growth = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = result if isinstance(result, tuple) else (result,)
    own = [item for item in results if not any(item is array for array in given.values())]
    return growth - sum(np.asarray(item).nbytes for item in own)


@pytest.mark.parametrize("name", NAMES)
def test_no_option_makes_a_full_size_temporary(name: str) -> None:
    """Python's memory; what the kernels take is in test_memory.py."""
    rows, classes = 20_000, 200
    names = {"out", "grad_out"} & set(inspect.signature(getattr(sf, name)).parameters)
    with sf.num_threads(1):
        for arguments in one_by_one(choices_of(name, rows, classes)):
            given = {}
            if names and name != "logsumexp":  # whose results are small
                result = getattr(sf, name)(**arguments)
                given = {names.copy().pop(): result[1] if "grad_out" in names else result}
            options = {key: getattr(value, "dtype", value) for key, value in arguments.items()}
            assert traced_growth(name, arguments, given) < (4 << 20) + 64 * rows, options


def test_a_full_size_temporary_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf, "softmax", sf.reference.softmax)
    x = np.zeros((20_000, 200), np.float32)
    assert traced_growth("softmax", {"x": x}, {"out": np.empty_like(x)}) >= x.nbytes
