"""Every row of the contract's table of errors, by name, for every function concerned.

Each call is made to softce_fast and to its reference, and must leave every array as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import softce_fast as sf
from layouts import Array

pytestmark = pytest.mark.filterwarnings("error")

AxisError = np.exceptions.AxisError
NAN, INF = np.nan, np.inf

X = np.random.default_rng(0).normal(size=(2, 3))
Y = np.array([0, 2])
P = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])

SOFTMAXES = ("softmax", "log_softmax")
NORMALISERS = (*SOFTMAXES, "logsumexp")
BACKWARD = ("softmax_backward", "log_softmax_backward")
FROM_LOGITS = ("cross_entropy", "cross_entropy_with_grad")
SCORES = ("target_scores",)
WITH_MASKS = (*NORMALISERS, *FROM_LOGITS, *SCORES)
LOSSES = (*FROM_LOGITS, "nll_loss", "cross_entropy_from_probs")
WITH_LOGITS = (
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
)
BINARY = ("binary_cross_entropy", *WITH_LOGITS)
WITH_CLASSES = (*LOSSES, *SCORES)
FUNCTIONS = (*NORMALISERS, *BACKWARD, *WITH_CLASSES, *BINARY)
FIRST_ARGUMENT = {
    **dict.fromkeys(NORMALISERS, "x"),
    **dict.fromkeys(BACKWARD, "grad_output"),
    **dict.fromkeys((*FROM_LOGITS, *WITH_LOGITS, *SCORES), "logits"),
    "nll_loss": "log_probs",
    "cross_entropy_from_probs": "probs",
    "binary_cross_entropy": "probs",
}
OUTPUT = {
    **dict.fromkeys((*SOFTMAXES, *BACKWARD), "out"),
    "cross_entropy_with_grad": "grad_out",
    "binary_cross_entropy_with_logits_with_grad": "grad_out",
}


def arguments_of(name: str) -> tuple[Any, ...]:
    """Return valid positional arguments."""
    if name in NORMALISERS:
        return (X,)
    return (X, Y) if name in WITH_CLASSES else (P, P)


class Case(NamedTuple):
    function: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    error: type[Exception]
    words: list[str]  # that the message must hold


def complaint(function: Callable[..., Any], case: Case) -> str | None:
    """Say what is wrong with the error of a call, or with what it left behind."""
    keywords = dict(case.keywords)
    output = OUTPUT.get(case.function)
    if output and output not in keywords:
        keywords[output] = np.full(np.shape(case.arguments[0]), 7.0)
    arrays = [
        item for item in (*case.arguments, *keywords.values()) if isinstance(item, np.ndarray)
    ]
    before = [item.copy() for item in arrays]
    call = f"{case.function}{case.arguments[1:]} {case.keywords}"
    try:
        function(*case.arguments, **keywords)
    except Exception as error:
        if not isinstance(error, case.error):
            return f"{call}: {error!r} instead of {case.error.__name__}"
        missing = [word for word in case.words if word not in str(error)]
        if missing:
            return f"{call}: {missing} not in {str(error)!r}"
    else:
        return f"{call}: no {case.error.__name__}"
    for array, copy in zip(arrays, before, strict=True):
        if np.asarray(array).tobytes() != np.asarray(copy).tobytes():
            return f"{call}: wrote to an array before it raised"
    return None


# The table


def axis_out_of_range_or_repeated() -> Iterator[Case]:
    for name in (*NORMALISERS, *BACKWARD):
        arguments = arguments_of(name)
        for axis in (2, -3, (0, 2), 2**40):
            yield Case(name, (*arguments, axis), {}, AxisError, ["axis", "2"])
        for axis in ((0, 0), (0, -2), (1, 0, 1)):
            yield Case(name, (*arguments, axis), {}, ValueError, ["axis", str(axis)])
        for axis in ([0], 1.0, -1.0, np.array([-1]), "1", (0.5,)):
            yield Case(name, (*arguments, axis), {}, TypeError, ["axis"])
    for name in NORMALISERS:
        yield Case(name, (1.0, 1), {}, AxisError, ["axis", "0"])
    for name in WITH_CLASSES:
        for axis in (2, -3):
            yield Case(name, (X, Y, axis), {}, AxisError, ["axis", "2"])
        for axis in (None, (1,), 1.0, -1.0, np.array([-1]), "1"):
            yield Case(name, (X, Y, axis), {}, TypeError, ["axis", str(axis)])
        yield Case(name, (1.0, 0), {}, AxisError, ["axis"])


def label_out_of_range() -> Iterator[Case]:
    for name in WITH_CLASSES:
        for labels, words in [
            ([0, 3], ["target[1] is 3", "[0, 3)", "-100"]),
            ([-1, 7], ["target[0] is -1", "[0, 3)"]),
            ([2, -101], ["target[1] is -101"]),
            (np.int8([1, -128]), ["target[1] is -128"]),
            (np.uint64([2**63, 0]), ["target[0] is 9223372036854775808"]),
            (np.uint64([0, 2**64 - 100]), ["target[1] is 18446744073709551516"]),
            (np.int64([0, 2**62]), ["target[1] is 4611686018427387904"]),
            (np.array([0, 5], ">i4"), ["target[1] is 5"]),
        ]:
            yield Case(name, (X, labels), {}, IndexError, words)
            if isinstance(labels, list):
                yield Case(name, (X, np.array(labels)), {}, IndexError, words)
        for values in (X.astype("f4"), X.astype("f2"), X.astype(">f8"), X.astype(np.longdouble)):
            output = {OUTPUT[name]: np.full_like(values, 7)} if name in OUTPUT else {}
            yield Case(name, (values, [0, 3]), output, IndexError, ["target[1] is 3"])
        yield Case(name, (X[0], 5), {}, IndexError, ["target is 5", "[0, 3)"])
        yield Case(name, (X, [0, 1, 2], 0), {}, IndexError, ["target[2] is 2", "[0, 2)"])
        yield Case(name, (X, [-100, 1]), {"ignore_index": 1}, IndexError, ["target[0] is -100"])
        yield Case(name, (X, [5, 3]), {"ignore_index": 5}, IndexError, ["target[1] is 3", "5"])
        yield Case(
            name, (np.zeros((2, 3, 4)), np.array([[0, 1, 2, 2], [1, 9, 8, 0]]), 1),
            {}, IndexError, ["target[1, 1] is 9"],
        )  # fmt: skip
        four = np.zeros((2, 3, 2, 3, 2)).transpose(3, 1, 2, 0, 4)
        labels = np.zeros((3, 2, 2, 2), int)
        labels[2, 1, 0, 1] = -7
        yield Case(name, (four, labels, 1), {}, IndexError, ["target[2, 1, 0, 1] is -7"])
    for name in LOSSES:
        for options in (
            {"weight": np.ones(3)}, {"sample_weight": np.ones(2)}, {"denominator": 3.0},
            {"dtype": np.float64, "reduction": "none"}, {"reduction": "sum"},
        ):  # fmt: skip
            yield Case(name, (X, [0, 3]), options, IndexError, ["target[1] is 3"])
    for options in ({"top_k": 2}, {"entropy": True}, {"where": X < 9}, {"dtype": np.float32}):
        yield Case("target_scores", (X, [0, 3]), options, IndexError, ["target[1] is 3"])
    for name in FROM_LOGITS:
        for options in (
            {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"temperature": 2.0}, {"softcap": 2.0},
            {"where": X > 9},
        ):  # fmt: skip
            yield Case(name, (X, [0, 3]), options, IndexError, ["target[1] is 3"])


def wrong_shape() -> Iterator[Case]:
    for name in WITH_CLASSES:
        first = FIRST_ARGUMENT[name]
        for target in ([[0, 1, 2]], [0, 1, 2], 0, [[0], [2]], np.zeros((2, 3), int)):
            words = ["target", first, "(2,)", str(np.shape(target))]
            yield Case(name, (X, target), {}, ValueError, words)
        for target in ([0.0, 1.0], X.T, X[None], np.zeros(0)):
            words = ["target", first, "(2, 3)", str(np.shape(target)), "integer"]
            yield Case(name, (X, target), {}, ValueError, words)
    for name in LOSSES:
        first = FIRST_ARGUMENT[name]
        for weight in ([1, 2], [[1, 2, 3]], 2.0, np.ones(4), np.ones(1)):
            words = ["weight", "class", "(3,)", str(np.shape(weight))]
            yield Case(name, (X, Y), {"weight": weight}, ValueError, words)
            yield Case(name, (X, P), {"weight": weight}, ValueError, words)
        for weight in (X, np.ones(3), np.ones((2, 1)), np.ones((1, 2))):
            words = ["sample_weight", first, "(2,)", str(np.shape(weight))]
            yield Case(name, (X, Y), {"sample_weight": weight}, ValueError, words)
            yield Case(name, (X, P), {"sample_weight": weight}, ValueError, words)
    for name in BINARY:
        words = ["target", FIRST_ARGUMENT[name], "(2, 3)", "(3,)"]
        yield Case(name, (P, P[0]), {}, ValueError, words)
        words = ["weight", "(2, 3)", "(2,)"]
        yield Case(name, (P, P), {"weight": [1, 2]}, ValueError, words)
        if name in WITH_LOGITS:
            words = ["pos_weight", "(2, 3)", "(1, 2, 3)"]
            yield Case(name, (P, P), {"pos_weight": P[None]}, ValueError, words)
    for name in WITH_MASKS:
        for where in ([True, False], np.ones((3, 2), bool), np.ones((1, 2, 3), bool)):
            words = ["where", FIRST_ARGUMENT[name], "(2, 3)", str(np.shape(where))]
            yield Case(name, arguments_of(name), {"where": where}, ValueError, words)
    yield Case("logsumexp", (X,), {"b": [1, 2]}, ValueError, ["b", "(2, 3)", "(2,)"])
    for name in BACKWARD:
        words = ["grad_output", "output", "(1, 3)", "(2, 3)"]
        yield Case(name, (X[:1], X), {}, ValueError, words)
    for name, output in OUTPUT.items():
        for out in (np.zeros((3, 2)), np.zeros(6), np.zeros((1, 2, 3)), np.zeros(())):
            words = [output, "(2, 3)", str(out.shape)]
            yield Case(name, arguments_of(name), {output: out}, ValueError, words)


class NotAnArray:
    shape, dtype = (2, 3), np.dtype(np.float64)


def unfit_out() -> Iterator[Case]:
    read_only = np.full((2, 3), 7.0)
    read_only.flags.writeable = False
    for name, output in OUTPUT.items():
        arguments = arguments_of(name)
        for out in (np.zeros((2, 3), "f4"), np.zeros((2, 3), int), np.zeros((2, 3), complex)):
            words = [output, "float64", str(out.dtype)]
            yield Case(name, arguments, {output: out}, TypeError, words)
        for thing, word in [
            (NotAnArray(), "NotAnArray"),
            ([[0.0] * 3] * 2, "list"),
            (np.ma.zeros((2, 3)), "MaskedArray"),
            (memoryview(np.zeros((2, 3))), "memoryview"),
            (7.0, "float"),
        ]:
            yield Case(name, arguments, {output: thing}, TypeError, [output, word])
        for out in (read_only, np.broadcast_to(0.0, (2, 3))):
            yield Case(name, arguments, {output: out}, ValueError, [output, "read-only"])
        if name not in BACKWARD:
            single = (X.astype("f4"), *arguments[1:])
            words = [output, "float32", "float64"]
            yield Case(name, single, {output: np.zeros((2, 3))}, TypeError, words)
            yield Case(name, arguments, {output: X, "dtype": "f4"}, TypeError, words)


NOT_REAL: list[tuple[Any, str]] = [
    (X + 0j, "complex128"),
    (X.astype(np.complex64), "complex64"),
    (X.astype(object), "object"),
    (X.astype(str), "<U"),
    (X.astype(bytes), "|S"),
    (X.astype("M8[s]"), "datetime64"),
    (np.ma.array(X), "where="),
    (np.ma.array(X, mask=X > 0), "where="),
    ([["a"] * 3] * 2, "<U1"),
    ([[None] * 3] * 2, "object"),
]


def not_real_numbers() -> Iterator[Case]:
    for name in FUNCTIONS:
        arguments = arguments_of(name)
        for bad, word in NOT_REAL:
            words = [FIRST_ARGUMENT[name], word]
            yield Case(name, (bad, *arguments[1:]), {}, TypeError, words)
        if name in BACKWARD:
            for bad, word in NOT_REAL:
                yield Case(name, (arguments[0], bad), {}, TypeError, ["output", word])
        if name in (*WITH_CLASSES, *BINARY):
            for bad, word in [*NOT_REAL, (np.ma.array(Y), "masked")]:
                yield Case(name, (arguments[0], bad), {}, TypeError, ["target", word])
        for option in ("weight", "sample_weight", "pos_weight", "b"):
            if option in inspect.signature(getattr(sf, name)).parameters:
                for bad, word in [(np.ones(3) * 1j, "complex"), (["1", "2", "3"], "<U1"),
                                  (np.ma.ones(3), "masked")]:  # fmt: skip
                    yield Case(name, arguments, {option: bad}, TypeError, [option, word])
    for name in WITH_MASKS:
        masked = np.ma.array([True, False, True])
        yield Case(name, arguments_of(name), {"where": masked}, TypeError, ["where", "masked"])


def not_the_right_kind() -> Iterator[Case]:
    for dtype in ("f2", "f4", "f8", np.longdouble):
        words = ["target", "class indices", "probabilities", np.dtype(dtype).name]
        yield Case("target_scores", (X, P.astype(dtype)), {}, TypeError, words)
    for name in WITH_CLASSES:
        for labels in ([True, False], np.array([True, False])):
            words = ["target", "boolean", "integers"]
            yield Case(name, (X, labels), {}, TypeError, words)
        yield Case(name, (X, X > 0), {}, TypeError, ["target", "boolean"])
    for name in WITH_MASKS:
        arguments = arguments_of(name)
        for where in ([1, 0, 1], np.ones((2, 3)), 1, np.ones(3, np.uint8)):
            dtype = str(np.asarray(where).dtype)
            yield Case(name, arguments, {"where": where}, TypeError, ["where", "boolean", dtype])
        yield Case(name, arguments, {"where": "abc"}, TypeError, ["where"])


def option_out_of_range() -> Iterator[Case]:
    for name in FROM_LOGITS:
        for value in (-0.1, 1.5, NAN, INF, -INF, np.float32(2)):
            words = ["label_smoothing", "[0, 1]", repr(value)]
            yield Case(name, (X, Y), {"label_smoothing": value}, ValueError, words)
        for bad in (None, "0.1", [0.1], np.array([0.1]), np.zeros(1)):
            yield Case(name, (X, Y), {"label_smoothing": bad}, TypeError, ["label_smoothing"])
        for value in (INF, -INF, NAN):
            words = ["z_loss", "finite", repr(value)]
            yield Case(name, (X, Y), {"z_loss": value}, ValueError, words)
        for bad in ("1", np.zeros(1), None):
            yield Case(name, (X, Y), {"z_loss": bad}, TypeError, ["z_loss", repr(bad)])
    for name in (*FROM_LOGITS, *SCORES):
        for value in (0, -0.0, -1, INF, -INF, NAN, 10**400):
            words = ["softcap", "> 0", "None", repr(value)[:10]]
            yield Case(name, (X, Y), {"softcap": value}, ValueError, words)
        for bad in ("1", [30.0], np.ones(1)):
            yield Case(name, (X, Y), {"softcap": bad}, TypeError, ["softcap", repr(bad)])
    for name in (*SOFTMAXES, *BACKWARD, *FROM_LOGITS, *SCORES):
        arguments = arguments_of(name)
        for value in (0, 0.0, -0.0, -1, INF, -INF, NAN, 10**400):
            words = ["temperature", "> 0", repr(value)[:10]]
            yield Case(name, arguments, {"temperature": value}, ValueError, words)
        for bad in (None, [1.0], "1", np.ones(1)):
            yield Case(name, arguments, {"temperature": bad}, TypeError, ["temperature"])
    for name in (*LOSSES, *BINARY):
        for bad in ("avg", "", None, "MEAN", 0):
            words = ["reduction", repr(bad), "'none'", "'mean'", "'sum'"]
            yield Case(name, arguments_of(name), {"reduction": bad}, ValueError, words)
    for name in (*SOFTMAXES, *LOSSES):
        for bad in ("none", None, 0, "NaN"):
            words = ["empty", repr(bad), "'nan'", "'zero'"]
            yield Case(name, arguments_of(name), {"empty": bad}, ValueError, words)
    for name in LOSSES:
        for value in (NAN, INF, -INF):
            words = ["denominator", "finite", repr(value)]
            yield Case(name, (X, Y), {"denominator": value}, ValueError, words)
        yield Case(name, (X, Y), {"denominator": "4"}, TypeError, ["denominator", "'4'"])
    for value in (-1, 4, 10**30):
        words = ["top_k", "[0, 3]", "3 classes", str(value)]
        yield Case("target_scores", (X, Y), {"top_k": value}, ValueError, words)
    for bad in (None, 1.0, "1", [1]):
        words = ["top_k", "integer", repr(bad)]
        yield Case("target_scores", (X, Y), {"top_k": bad}, TypeError, words)
    for bad in ("last", "", None, 0, "FIRST"):
        words = ["ties", repr(bad), "'first'", "'min'", "'max'"]
        yield Case("target_scores", (X, Y), {"ties": bad}, ValueError, words)
    for name in WITH_CLASSES:
        for bad in (1.5, None, "1"):
            words = ["ignore_index", "integer", repr(bad)]
            yield Case(name, (X, Y), {"ignore_index": bad}, TypeError, words)
    for name in FUNCTIONS:
        if name not in BACKWARD:
            for bad in (int, complex, "nonsense", object, "?", "M8[s]"):
                words = ["dtype", "float32"]
                yield Case(name, arguments_of(name), {"dtype": bad}, TypeError, words)


TABLE = (
    axis_out_of_range_or_repeated,
    label_out_of_range,
    wrong_shape,
    unfit_out,
    not_real_numbers,
    not_the_right_kind,
    option_out_of_range,
)


@pytest.fixture(scope="module", autouse=True)
def kernels_in_use() -> None:
    """Load the kernels: from then on small calls take a short way, which must refuse the same."""
    for dtype in (np.float16, np.float32, np.float64):
        sf.softmax(X.astype(dtype))
        sf.cross_entropy(X.astype(dtype), Y)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.__name__)
@pytest.mark.parametrize("module", [sf, sf.reference], ids=["softce_fast", "reference"])
def test_errors(module: Any, row: Callable[[], Iterator[Case]], name: str) -> None:
    cases = [case for case in row() if case.function == name]
    found = [complaint(getattr(module, name), case) for case in cases]
    complaints = [item for item in found if item]
    assert not complaints, "\n".join(complaints)


# Errors in large arrays and in place


@pytest.mark.parametrize("place", [0, 1, 70_000, 149_999])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bad_label_in_many(threads: int, place: int) -> None:
    """The first bad label is named wherever it is, and however many threads look for it."""
    x = np.zeros((150_000, 2), np.float32)
    labels = np.zeros(150_000, int)
    labels[place:] = 2
    labels[place] = -3
    out = np.full_like(x, 7)
    with sf.num_threads(threads):
        words = rf"target\[{place}\] is -3.*\[0, 2\)"
        for function in (sf.cross_entropy, sf.nll_loss, sf.cross_entropy_from_probs):
            with pytest.raises(IndexError, match=words):
                function(x, labels)
        more: list[dict[str, Any]] = [{}, {"weight": np.ones(2)}, {"reduction": "none"}]
        for options in [*more, {"label_smoothing": 0.1}]:
            with pytest.raises(IndexError, match=words):
                sf.cross_entropy_with_grad(x, labels, grad_out=out, **options)
            assert (out == 7).all()
            with pytest.raises(IndexError, match=words):
                sf.cross_entropy_with_grad(x, labels, grad_out=x, **options)
            assert (x == 0).all()


@pytest.mark.parametrize("shape", [(3, 10), (40, 10), (3, 10_000), (1, 100_000)])
@pytest.mark.parametrize("axis", [0, 1])
def test_bad_label_leaves_logits_in_place(shape: tuple[int, int], axis: int) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    labels = np.zeros(shape[1 - axis], int)
    labels[-1] = shape[axis]
    before = x.copy()
    with pytest.raises(IndexError, match=rf"target\[{len(labels) - 1}\] is {shape[axis]}"):
        sf.cross_entropy_with_grad(x, labels, axis, grad_out=x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("options", [{"temperature": -1}, {"empty": "none"}, {"where": [1, 0, 1]}])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_bad_option_leaves_the_input_in_place(name: str, options: dict[str, Any]) -> None:
    x = X.copy()
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        getattr(sf, name)(x, out=x, **options)
    np.testing.assert_array_equal(x, X)


def test_bad_label_beside_nan() -> None:
    x = np.full((2, 3), NAN)
    with pytest.raises(IndexError, match="target"):
        sf.cross_entropy(x, [0, 3])


# Numbers of threads, and configuration


@pytest.mark.parametrize("count", [0, -1, -(2**40)])
def test_fewer_than_one_thread(count: int) -> None:
    before = sf.get_num_threads()
    with pytest.raises(ValueError, match=rf"n must be >= 1 .*threads.*{count}"):
        sf.set_num_threads(count)
    with pytest.raises(ValueError, match="n must be >= 1"), sf.num_threads(count):
        pass
    assert sf.get_num_threads() == before


@pytest.mark.parametrize("count", [1.5, "2", None, [2]])
def test_a_number_of_threads_that_is_no_integer(count: Any) -> None:
    before = sf.get_num_threads()
    with pytest.raises(TypeError, match=r"n must be an integer >= 1 .*threads"):
        sf.set_num_threads(count)
    with pytest.raises(TypeError, match=r"n must be an integer"), sf.num_threads(count):
        pass
    assert sf.get_num_threads() == before


def test_unknown_mode_of_show_config() -> None:
    with pytest.raises(ValueError, match="mode must be 'stdout' or 'dicts', got 'json'"):
        sf.show_config(mode="json")


def test_the_message_of_a_masked_array_points_to_where() -> None:
    with pytest.raises(TypeError, match=r"x is a masked array.*where=~mask"):
        sf.softmax(np.ma.array([1.0, 2.0], mask=[True, False]))
    with pytest.raises(TypeError, match=r"x holds a masked array.*where=~mask"):
        sf.softmax([np.ma.array([1.0, 2.0], mask=[True, False]), np.array([1.0, 2.0])])


@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.full(3, 7.0), ValueError, r"out .*\(2,\).*\(3,\)"),
        (np.full((2, 1), 7.0), ValueError, r"out .*\(2,\).*\(2, 1\)"),
        (np.full(2, 7, np.float32), TypeError, "out .*float64.*float32"),
        ([7.0, 7.0], TypeError, "out .*array.*list"),
        (np.broadcast_to(7.0, 2), ValueError, "out .*read-only"),
    ],
    ids=["length", "shape", "dtype", "list", "read-only"],
)
def test_output_of_logsumexp(out: Any, error: Any, words: str, return_sign: bool) -> None:
    for function in (sf.logsumexp, sf.reference.logsumexp):
        with pytest.raises(error, match=words):
            function(X, return_sign=return_sign, out=out)
    assert np.array_equal(out, np.full(np.shape(out), 7))


@pytest.mark.parametrize("name", ["reduction", "empty"])
def test_a_word_that_is_an_array(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        sf.cross_entropy(X, Y, **{name: np.array(["mean", "nan"])})


def test_unknown_keyword() -> None:
    for name in FUNCTIONS:
        with pytest.raises(TypeError, match="nonsense"):
            getattr(sf, name)(*arguments_of(name), nonsense=1)


def test_options_are_keywords_only() -> None:
    array: Array = X
    with pytest.raises(TypeError, match="positional"):
        sf.softmax(array, -1, None)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        sf.cross_entropy(array, Y, -1, None)  # type: ignore[misc]
