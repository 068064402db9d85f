"""Throw random calls at every public function for a given time.

    python tools/fuzz.py [--seconds 60] [--calls N] [--seed N] [--case N]

Each call must end in the right answer (that of softce_fast.reference in long double, within a
tolerance that is generous; losses to the digits promised, too, by tests/truth.py, which is
compared with mpmath), or in one of the documented errors, in a case where the reference raises
one, too, with every buffer unchanged. A crash, a hang, a warning, an undocumented error, a write
beside an output or to an input is a failure.

Hypothesis draws the calls, each from random bytes of its own. It makes a call that fails smaller
for some seconds; the smallest is printed, and the seed and the case. With --seed and --case one
case runs alone and shows its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import inspect
import itertools
import math
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.database import InMemoryExampleDatabase
from ml_dtypes import bfloat16, finfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import softce_fast as sf
import truth
from shards import Sharded
from softce_fast import _checks, _dispatch, reference
from tolerances import ulp_limit

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

DOCUMENTED = (TypeError, ValueError, IndexError)
MOST_FAILURES = 20
SECONDS_OF_A_CALL = 60
SECONDS_OF_SHRINKING = 20
BYTES_OF_A_CASE = 4096  # more than any takes
SOME_FAILED = 10  # an exit status that no crash has
# The largest class weight over the smallest up to which both count: see docs/promises.md.
WEIGHTS_APART = np.longdouble("1e540")
FILL, GUARD = 0x5A, 128

# The first is the simplest of each: what Hypothesis tries to make do with.
FLOATS: list[Any] = [np.float64, np.float32, np.float16, np.float64, np.float32, bfloat16]
OTHERS: list[Any] = [np.longdouble, np.int64, np.int8, np.uint8, np.bool_, np.uint64]
LABELS: list[Any] = [np.int64, np.int64, np.int32, np.int8, np.uint8, np.uint64, np.int16]
ANY_DTYPE = FLOATS * 15 + OTHERS * 2  # about a hundred: numbers below 100 choose
NUMBERS = [st.integers(0, 100**count - 1) for count in range(5)]
SEED = st.integers(0, 2**32 - 1)
CLASSES = st.sampled_from([1, 2, 10, 63, 64, 65, 1000, 65536, 70_000, 140_000])
DIMENSIONS = [st.sampled_from([1, 2, 2, 2, 3, 3, 4, 5, *range(least, 1)]) for least in (0, 1)]
LENGTHS = [st.integers(1, longest) for longest in (1, 200, 70, 20, 8, 5)]  # of 0 to 5 axes
SHORT = st.sampled_from([1, 1, 0])
ORDERS = [st.sampled_from(list(itertools.permutations(range(ndim)))) for ndim in range(6)]
STEP = st.sampled_from([1, 1, 1, 1, 2, 3, -1, -1, -2, -3])
TOP_K = st.sampled_from([0, 1, 5, 17, 40, 1000])
ISA = st.sampled_from(_dispatch.available())
SCALES = [0.1, 1.0, 3.0, 10.0, 100.0]
SHARES = [0.01, 0.2, 1.0]
WILD = [math.nan, math.inf, -math.inf, -math.inf, 0.0, 1e4, -1e4, 1e30, -1e30, 1e-30, -1e-9]
WILD_POSITIVE = [0.0, 1.0, 1e-30, 0.0]


class Failure(Exception):
    """What a case did wrong."""


@dataclass(repr=False)
class Case:
    """One call: its arguments, and the memory they are in."""

    draw: st.DrawFn
    random: np.random.Generator  # of what arrays hold
    name: str
    shape: Shape = ()  # of the batch
    arguments: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    memories: list[Array] = field(default_factory=list)  # bytes, with the arrays inside
    cuts: Sequence[float] = ()  # where to part the classes, as shares of them
    threads: int = 1
    isa: str = ""

    def __repr__(self) -> str:
        lines = [f"softce_fast.{self.name}, {self.threads} threads, {self.isa}"]
        lines += [f"  argument {i}: {described(item)}" for i, item in enumerate(self.arguments)]
        lines += [f"  {name}={described(value)}" for name, value in self.options.items()]
        return "\n".join(lines)

    def numbers(self, count: int) -> list[int]:
        """Return numbers below 100, in one draw, as each draw takes long."""
        number = self.draw(NUMBERS[count])
        return [number // 100**place % 100 for place in range(count)]

    def chance(self, percent: int) -> bool:
        return self.draw(NUMBERS[1]) >= 100 - percent

    def copy(self) -> Case:
        """Return the case with copies of all that its call may overwrite."""
        options = {name: copied(value) for name, value in self.options.items()}
        return replace(self, arguments=[copied(item) for item in self.arguments], options=options)

    @property
    def class_axis(self) -> int:
        return int(self.options.get("axis", -1)) % len(self.shape)

    @property
    def rows(self) -> Shape:
        return self.shape[: self.class_axis] + self.shape[self.class_axis + 1 :]

    @property
    def is_binary(self) -> bool:
        return "binary" in self.name

    @property
    def is_loss(self) -> bool:
        return "entropy" in self.name or self.name == "nll_loss"

    def has_labels(self) -> bool:
        return not self.is_binary and np.asarray(self.arguments[1]).dtype.kind in "iu"


def described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        text = f"{type(value).__name__} {value.dtype} {value.shape} strides {value.strides}"
        return text + (f" {value.tolist()}" if value.size <= 40 else "")
    return repr(value) if len(repr(value)) < 300 else repr(value)[:300] + "..."


def copied(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    copy = value.copy()
    copy.flags.writeable = value.flags.writeable
    return copy


# Arrays


def place(case: Case, shape: Shape, dtypes: list[Any]) -> Array:
    """Make an array of one of the dtypes and of any strides, in the midst of other memory."""
    choice, oddity, rarity = case.numbers(3)
    order = case.draw(ORDERS[len(shape)]) if oddity >= 60 else range(len(shape))
    steps = [case.draw(STEP) if oddity >= 70 else 1 for _ in shape]
    start = GUARD
    dtype = np.dtype(dtypes[choice * len(dtypes) // 100])
    if rarity >= 60:
        start += dtype.itemsize * case.draw(st.integers(0, 15))
    if rarity >= 95:
        start += case.draw(st.integers(1, 7))
    elif rarity >= 90 and dtype.itemsize > 1 and dtype.kind in "fiu":
        dtype = dtype.newbyteorder(">")
    lengths = [shape[axis] * abs(steps[axis]) for axis in order]
    size = dtype.itemsize * math.prod(max(1, length) for length in lengths)
    base = np.full(start + size + 2 * GUARD, FILL, np.uint8)
    case.memories.append(base)
    array = np.ndarray(lengths, dtype, base, start).transpose(np.argsort(order))
    every: Any = (..., *(slice(None, None, step) for step in steps))
    return array[every]


def new(
    case: Case, shape: Shape, dtypes: list[Any], positive: bool = False, wild: int = 20,
    whole: int = 10,
) -> Array:  # fmt: skip
    """Make an array of numbers of all sizes, in some percent of the cases wild, or whole ones."""
    (kind,) = case.numbers(1)
    array, random = place(case, shape, dtypes), case.random
    values: Any = random.uniform(0, 1, shape)
    if array.dtype.kind == "b":
        values = values < 0.5
    elif array.dtype.kind in "iu":
        values = random.integers(0, 50, shape)
    elif not positive:
        values = random.normal(0, random.choice(SCALES), shape)
    if kind < whole:
        values = np.ceil(values)
    elif kind >= 100 - wild and array.dtype.kind not in "biu":
        odd = random.choice(WILD_POSITIVE if positive else WILD, shape)
        values = np.where(random.random(shape) < random.choice(SHARES), odd, values)
    with np.errstate(all="ignore"):
        array[...] = values
    return array


def draw_shape(case: Case, least: int) -> Shape:
    """Draw the shape of the batch, of so many axes at least."""
    (kind,) = case.numbers(1)
    if kind >= 98:
        classes = case.draw(CLASSES)
        shape = max(1, 150_000 // classes), classes
        return shape[::-1] if case.chance(30) else shape
    if kind >= 95:
        return case.draw(st.integers(1, 39)), case.draw(st.integers(1, 2999))
    ndim = case.draw(DIMENSIONS[least])
    lengths = [case.draw(LENGTHS[ndim]) for _ in range(ndim)]
    if kind >= 75 and ndim:
        lengths[case.draw(st.integers(0, ndim - 1))] = case.draw(SHORT)
    return tuple(lengths)


# Arguments


def draw_axis(case: Case) -> Any:
    draw, ndim = case.draw, len(case.shape)
    takes_many = case.name in ("softmax", "log_softmax", "logsumexp")
    if takes_many and case.chance(20):
        return tuple(draw(st.permutations(range(ndim)))[: draw(st.integers(0, ndim))])
    if takes_many and case.chance(10):
        return None
    return draw(st.integers(-ndim, ndim - 1)) if ndim else -1


def draw_batch(case: Case) -> Array:
    """Draw the first argument."""
    wild = 2 if "backward" in case.name else 5 if case.is_binary else 20
    whole = 30 if case.name == "target_scores" else 10  # many are equal
    positive = case.name in ("cross_entropy_from_probs", "binary_cross_entropy")
    return new(case, case.shape, ANY_DTYPE, positive, wild, whole)


def draw_output_of_forward(case: Case) -> Array:
    own = case.arguments[0].dtype.newbyteorder("=")
    dtypes = ANY_DTYPE if case.chance(30) else [own]
    return new(case, case.shape, dtypes, positive=case.name == "softmax_backward", wild=2)


def draw_target(case: Case) -> Array:
    if case.is_binary:
        dtypes = [np.bool_] if case.chance(20) else FLOATS
        return new(case, case.shape, dtypes, positive=True, wild=5)
    if case.name != "target_scores" and case.chance(30):
        return new(case, case.shape, FLOATS, positive=True)
    labels = place(case, case.rows, LABELS)
    limits, classes = np.iinfo(labels.dtype), case.shape[case.class_axis]
    labels[...] = case.random.integers(0, max(1, min(classes, int(limits.max))), case.rows)
    ignored = case.options.get("ignore_index", -100)
    if limits.min <= ignored <= limits.max and (case.chance(50) or not classes):
        labels[case.random.random(case.rows) < case.random.choice([0.1, 1.0])] = ignored
    return labels


def draw_last_axes(case: Case) -> Shape:
    return case.shape[case.draw(st.integers(0, len(case.shape))) :]


def draw_weight(case: Case) -> Array:
    """Draw weights of elements, or of classes."""
    if case.is_binary:
        return new(case, draw_last_axes(case), FLOATS, positive=True, wild=0)
    return draw_factors(case, (case.shape[case.class_axis],))


def draw_factors(case: Case, shape: Shape) -> Array:
    """Draw weights; now and then of sizes far apart, or all very small or very large, and zeros."""
    weights = new(case, shape, FLOATS, positive=True, wild=5)
    if not case.chance(30):
        return weights
    random = case.random
    power = int(random.choice([30, 45] if weights.itemsize < 8 else [30, 250, 300]))
    powers: Any = random.integers(-power, power, shape)
    if random.random() < 0.3:
        powers = np.full(shape, random.choice([-power, power]))
    with np.errstate(all="ignore"):
        weights[...] = weights * 10.0**powers
    weights[random.random(shape) < random.choice([0, 0.3])] = 0
    return weights


def draw_sample_weight(case: Case) -> Array:
    weights, target = draw_factors(case, case.rows), case.arguments[1]
    if "weight" in case.options and case.chance(30):
        # Both far from 1, but their products are not.
        of_class = case.options["weight"].astype(np.float64)
        row = case.random.integers(0, max(1, len(of_class)), case.rows)
        if target.dtype.kind in "iu":
            row = np.clip(target.astype(np.float64), 0, max(0, len(of_class) - 1)).astype(int)
        with np.errstate(all="ignore"):
            factors = of_class[row] if len(of_class) else 1.0
            weights[...] = np.where(factors > 0, weights / factors, weights)
    if target.dtype.kind in "iu":
        # What stands beside an ignored label must not matter.
        is_ignored = target == case.options.get("ignore_index", -100)
        odd = case.random.choice([math.nan, math.inf, 0.0, 1e30, 1e250], case.rows)
        with np.errstate(all="ignore"):
            np.copyto(weights, odd, where=is_ignored, casting="unsafe")
    return weights


def draw_mask(case: Case) -> Array:
    shape = tuple(1 if case.chance(30) else n for n in case.shape)[int(case.chance(20)) :]
    mask = place(case, shape, [np.bool_])
    mask[...] = case.random.random(shape) < case.random.choice([0.1, 0.7, 1.0])
    if case.is_loss and mask.shape == case.shape and case.chance(70):
        # Nothing of the target is left to excluded classes, where the loss would be infinite.
        target, axis = case.arguments[1], case.class_axis
        if target.dtype.kind in "iu":
            mask |= np.moveaxis(target[..., None] == np.arange(case.shape[axis]), -1, axis)
        else:
            target[~mask] = 0
    return mask


def draw_output(case: Case) -> Array:
    """Draw an output: a new array, the input itself, or one that overlaps an input."""
    source, shape = case.arguments[0], case.shape
    dtypes = [item.dtype for item in case.arguments[: 1 + ("backward" in case.name)]]
    results = [_checks.result_dtype(dtype, case.options.get("dtype")) for dtype in dtypes]
    dtype = np.dtype(_checks.promote(results[0], results[-1]))
    if case.name == "logsumexp":
        axes = _checks.normalize_axes(case.options.get("axis", -1), len(shape))
        kept = case.options.get("keepdims", False)
        shape = np.broadcast_to(False, shape).any(axes, keepdims=kept).shape
    (kind,) = case.numbers(1)
    if kind >= 75 and source.dtype == dtype and source.shape == shape:
        return source
    if kind >= 60:
        base = case.draw(st.sampled_from(case.memories))
        room = base.size - math.prod(shape) * dtype.itemsize
        if room >= 64:
            offset = case.draw(st.integers(0, room))
            if not case.chance(20):
                offset -= offset % dtype.itemsize
            return np.ndarray(shape, dtype, base, offset)
    return place(case, shape, [dtype])


Drawn = Callable[[Case], Any]


def among(*values: Any) -> Drawn:
    strategy = st.sampled_from(values)
    return lambda case: case.draw(strategy)


# Every argument of every function: in how many percent of the calls it is given, and what; in the
# order of drawing, as some depend on others.
DRAWN: dict[str, tuple[int, Drawn]] = {
    "axis": (50, draw_axis),
    "ignore_index": (30, among(-100, -1, 0, 3, 255)),
    **dict.fromkeys(("x", "logits", "log_probs", "probs", "grad_output"), (100, draw_batch)),
    "output": (100, draw_output_of_forward),
    "target": (100, draw_target),
    "weight": (20, draw_weight),
    "pos_weight": (20, draw_weight),
    "sample_weight": (20, draw_sample_weight),
    "where": (15, draw_mask),
    "b": (10, lambda case: new(case, draw_last_axes(case), [np.float64], positive=True)),
    "dtype": (15, among(*FLOATS)),
    "temperature": (20, among(1.0, 0.1, 0.7, 2.0, 30.0, 1e-30, 1e30)),
    "softcap": (20, among(None, 0.5, 5.0, 30.0, 1e4, 1e-18, 1e18, 1e-150, 1e150)),
    "label_smoothing": (20, among(0.0, 0.1, 1.0)),
    "z_loss": (20, among(0.0, 1e-3, 0.5, 1e30)),
    "reduction": (60, among("mean", "sum", "none")),
    "denominator": (10, among(1.0, 0.5, 1e3, -2.0, 0.0, 1e-35, 1e35, 1e-300)),
    "empty": (20, among("nan", "zero")),
    "top_k": (50, lambda case: min(case.shape[case.class_axis], case.draw(TOP_K))),
    "entropy": (50, among(True, False)),
    "ties": (60, among(*_checks.TIES)),
    "keepdims": (30, among(True)),
    "return_sign": (10, among(True)),
    "hessian_scale": (30, among(2.0, 0.3, 1e-9, 1e9)),
    "hessian_floor": (30, among(None, 0.0, 1e-16, 0.3)),
    "out": (40, draw_output),
    "grad_out": (50, draw_output),
    "hessian_out": (50, draw_output),
}
OUTPUTS = ("out", "grad_out", "hessian_out")  # in the order of the results
SHARDED = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_with_grad")
FACTORS = ("weight", "pos_weight", "sample_weight", "b")
NOT_NUMBERS = ("axis", "dtype", "empty", *OUTPUTS, "hessian_scale", "hessian_floor")
FUNCTIONS = {
    name: signature
    for name in reference.__all__
    if (signature := inspect.signature(getattr(reference, name)).parameters).keys() <= DRAWN.keys()
}

# A byte for each argument says whether it is given: one draw takes less long than many.
LUCK = {name: st.binary(min_size=len(x), max_size=len(x)) for name, x in FUNCTIONS.items()}

BAD_OUTPUTS = ["out", [1.0], np.ma.zeros(3), np.zeros((2,) * 6), np.zeros(3, np.int32), 0.0]
BAD_OPTIONS: dict[str, list[Any]] = {
    "axis": [7, -9, (0, 0), 1.5, "0", [0], 2**70],
    "temperature": [0, -1.0, math.nan, math.inf, "warm", None, 10**400],
    "empty": ["none", None, 3],
    "dtype": [np.complex64, "int32", object, "S3", "no such type"],
    "reduction": ["average", None, 1],
    "softcap": [0, -1.0, math.nan, math.inf, "soft"],
    "label_smoothing": [-0.1, 1.5, math.nan, "much", None, [0.1]],
    "z_loss": [math.nan, math.inf, "z"],
    "denominator": [math.nan, math.inf, "three"],
    "ignore_index": [1.5, "none", 2**63, -(2**64), None],
    "weight": [np.ones(3, np.complex64), np.ones((2, 2, 2, 2, 2, 2)), "heavy", object()],
    "top_k": [-1, 10**6, 1.5, "five", None],
    "entropy": [0, 1],
    "ties": ["last", None, 0],
    "pos_weight": [np.ones(3, np.complex64), "heavy"],
    "sample_weight": [np.ones((1, 9, 1)), "light", [None]],
    "where": [1, np.ones((4, 1, 3, 1, 9, 2), bool), "all", [2]],
    "b": [np.ones((3, 1, 4, 1, 9, 2)), "b", [1j]],
    **dict.fromkeys(OUTPUTS, BAD_OUTPUTS),
    "hessian_scale": [0, -1.0, math.nan, math.inf, "two", None],
    "hessian_floor": [-1.0, math.nan, math.inf, "none"],
}
ODD_ARRAYS: list[Callable[[Array], Any]] = [
    lambda x: np.ones(x.shape, complex), lambda x: x.astype(object), np.ma.masked_array,
    lambda x: np.full(x.shape, "a"), lambda _: None, lambda _: "text", lambda _: {},
    lambda _: [[1.0], [2.0, 3.0]], lambda x: x[..., None], lambda x: x.view(np.recarray),
]  # fmt: skip


def spoil(case: Case) -> None:
    """Make one argument a wrong one, or at least an odd one."""
    draw, (kind,) = case.draw, case.numbers(1)
    options = [name for name in FUNCTIONS[case.name] if name in BAD_OPTIONS]
    first, *others = case.arguments
    if kind < 55 and options:
        name = draw(st.sampled_from(options))
        case.options[name] = draw(st.sampled_from(BAD_OPTIONS[name]))
    elif kind < 65:
        position = draw(st.integers(0, len(others)))
        case.arguments[position] = draw(st.sampled_from(ODD_ARRAYS))(case.arguments[position])
    elif kind < 80 and others and others[0].dtype.kind in "iu":
        labels, limits = others[0], np.iinfo(others[0].dtype)
        value = draw(st.sampled_from([-1, -101, first.size + 200, limits.min, limits.max]))
        if labels.size and limits.min <= value <= limits.max:
            labels[tuple(draw(st.integers(0, n - 1)) for n in labels.shape)] = value
    elif first.size < 1000:
        case.arguments = [x.tolist() if x.dtype != bfloat16 else x for x in case.arguments]


@st.composite
def calls(
    draw: st.DrawFn, functions: tuple[str, ...] = tuple(FUNCTIONS), spoiled: int = 20
) -> Case:
    """Draw a call of one of these functions; some percent are spoiled."""
    case = Case(draw, np.random.default_rng(draw(SEED)), draw(st.sampled_from(functions)))
    parameters = FUNCTIONS[case.name]
    case.shape = draw_shape(case, int({"axis", "target"} <= parameters.keys()))
    luck = dict(zip(parameters, draw(LUCK[case.name]), strict=True))
    for argument, (percent, drawn) in DRAWN.items():
        if luck.get(argument, -1) >= 256 * (1 - percent / 100):
            value = drawn(case)
            if parameters[argument].default is inspect.Parameter.empty:
                case.arguments.append(value)
            else:
                case.options[argument] = value
    kind, threads = case.numbers(2)
    if kind >= 100 - spoiled:
        spoil(case)
    elif kind >= 60:
        given = (*case.arguments, *case.options.values())
        arrays = [item for item in given if isinstance(item, np.ndarray)]
        draw(st.sampled_from(arrays)).flags.writeable = False
    case.threads = 1 + threads // 34
    if case.name in SHARDED:
        count, *cuts = case.numbers(4)
        case.cuts = sorted(cut / 100 for cut in cuts[: count // 25])
    case.isa = draw(ISA)  # last, as machines differ in it
    return case


# The reference


def wide(value: Any, dtype: Any = None) -> Any:
    """Return floating numbers in long double, rounded to `dtype` before."""
    array = np.asarray(value) if dtype is None else np.asarray(value).astype(dtype)
    return array if array.dtype.kind in "iub" else array.astype(np.longdouble)


def first_of(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def ended(function: Callable[..., Any], case: Case) -> tuple[Any, Exception | None]:
    """Return the result of the call, or the documented error."""
    try:
        return function(*case.arguments, **case.options), None
    except DOCUMENTED as error:
        return None, error


@np.errstate(all="ignore")
def right_result(case: Case, plain: Any) -> tuple[Any, float]:
    """Return the result in long double, and what a mean was divided by.

    `plain` is the result in the dtype of the call.
    """
    function, options = getattr(reference, case.name), case.options
    first, *others = case.arguments
    # A result of fewer digits than the input is rounded at the end.
    dtype = _checks.compute_dtype(np.asarray(first_of(plain)).dtype)
    own = np.asarray(first).dtype
    if own.kind == "f" and own.itemsize >= 8:
        dtype = np.promote_types(dtype, own)
    floats = [wide(first, dtype)]
    for item in others:
        is_empty_list = isinstance(item, list) and not np.size(item)
        floats.append(item if case.has_labels() or is_empty_list else wide(item, dtype))
    exact = {
        name: wide(value, dtype if name == "b" else None) if name in FACTORS else value
        for name, value in options.items()
        if name not in (*OUTPUTS, "dtype")
    }
    result = function(*floats, **exact)
    if case.name == "target_scores":
        # Logits are compared as they are given, not as the result is rounded.
        ranks = {name: getattr(plain, name) for name in ("rank", "argmax", "top_indices")}
        return result._replace(**ranks), 1.0
    if options.get("reduction", "mean") != "mean" or not case.is_loss:
        return result, 1.0
    if options.get("denominator"):
        return result, abs(float(options["denominator"]))
    exact.pop("denominator", None)
    total = first_of(function(*floats, **exact | {"reduction": "sum"}))
    quotient = float(np.abs(np.divide(total, first_of(result))))
    return result, quotient if quotient > 0 else 1.0


def magnitudes(case: Case, divisor: float) -> tuple[float, float]:
    """Return bounds on the numbers that a result, and a gradient's entry, are put together from."""
    with np.errstate(all="ignore"):
        x = np.asarray(case.arguments[0]).astype(np.float64)
    options = case.options
    finite = np.abs(x[np.isfinite(x)])
    largest = float(finite.max(initial=0))
    if case.name in ("cross_entropy_from_probs", "binary_cross_entropy"):
        largest = max(largest, -math.log(finite.min(initial=1.0, where=finite > 0)))
    temperature, softcap = float(options.get("temperature", 1.0)), options.get("softcap")
    logit = 1 + (largest if softcap is None else min(largest, softcap)) / temperature
    if logit > 1e150 or divisor == 0:
        return math.inf, math.inf
    z_loss = abs(float(options.get("z_loss", 0.0)))
    result, gradient = logit + z_loss * logit**2, (1 + 2 * z_loss * logit) / temperature
    if temperature != 1.0 or softcap is not None:
        gradient *= logit  # a divided or capped logit is rounded: an error of its exponential
    if not case.is_loss:
        return result, gradient
    weight = 1.0
    for name in ("weight", "sample_weight", "pos_weight"):
        sizes = np.abs(np.asarray(options.get(name, 1.0)).astype(np.float64))
        # Not a NaN: next to one an infinite weight would go unseen.
        weight *= float(np.fmax.reduce(sizes, axis=None, initial=1.0))
    if not case.is_binary and not case.has_labels():
        weight *= max(1, x.shape[options.get("axis", -1)])  # the target's sum over the classes
    if options.get("reduction", "mean") != "none":
        result *= max(1, x.size)
    return result * weight / divisor, gradient * weight / divisor


def compare(case: Case, result: Any, expected: Any, label: str, size: float) -> bool:
    """Fail unless the result is the expected one, rounded to its dtype.

    Returns False, with nothing compared, so near the largest number that it may overflow on one way
    and not on the other.
    """
    got, want = np.asarray(result), np.asarray(expected)
    if got.shape != want.shape:
        raise Failure(f"{label} has shape {got.shape}, not {want.shape}")
    if not _checks.is_floating(got.dtype):
        if not np.array_equal(got, want):
            raise Failure(f"{label} is {got}, should be {want}")
        return True
    values, want = got.astype(np.longdouble), want.astype(np.longdouble)
    compute = np.finfo(_checks.compute_dtype(got.dtype))
    limits = compute if got.dtype.itemsize > 2 else finfo(got.dtype)
    # A half type's result is rounded; the 2000 is for sums of many terms.
    unit = 2000 * float(compute.eps) + (float(limits.eps) if limits is not compute else 0.0)
    largest = min(float(limits.max), float(compute.max)) / 1000
    if not size <= float(compute.max) / 1000:  # NaN: an infinite number over another
        return False
    if "backward" in case.name and not (np.abs(want) < largest).all():
        return False
    temperature = float(case.options.get("temperature", 1.0))
    with np.errstate(all="ignore"):
        if "backward" in case.name:
            gradient = np.abs(np.asarray(case.arguments[0]).astype(np.longdouble))
            scale = (np.abs(want) + 1 + gradient) * (1 + gradient.sum()) / min(1.0, temperature)
        elif case.name == "softmax":
            scale = np.abs(want) * (1.0 if temperature == 1.0 else size)
        else:
            scale = np.abs(want) + size
        tolerance = unit * scale + float(limits.tiny)
        close = np.abs(values - want) <= tolerance
        # In a narrow dtype the tolerance of a small number may reach beyond the largest.
        close |= np.isinf(values) & (np.sign(values) * want + tolerance >= float(limits.max))
    same = close | (values == want) | (np.isnan(values) & np.isnan(want))
    if not same.all():
        worst = tuple(map(int, np.argwhere(~same)[0]))
        raise Failure(f"{label}{list(worst)} is {values[worst]}, should be {want[worst]}")
    return True


# Running


def run_case(case: Case) -> bool:
    """Run a case; raise Failure if it went wrong; return whether it ended in a result."""
    faulthandler.dump_traceback_later(SECONDS_OF_A_CALL, exit=True)
    original = case.copy()
    plain, expected = ended(getattr(reference, case.name), case.copy())
    before = [memory.copy() for memory in case.memories]
    # Neither warnings nor NumPy's own errors, also for those who ask NumPy for them.
    with warnings.catch_warnings(), np.errstate(all="raise"), \
            sf.num_threads(case.threads), _dispatch.using(case.isa):  # fmt: skip
        warnings.simplefilter("error")
        try:
            result, raised = ended(getattr(sf, case.name), case)
        except Exception as problem:
            raise Failure(f"raised {type(problem).__name__}: {problem}") from problem
    outputs = [] if raised else [name for name in OUTPUTS if name in case.options]
    for name in outputs:
        own = result[OUTPUTS.index(name)] if isinstance(result, tuple) else result
        if own is not case.options[name]:
            raise Failure(f"the result is not {name}")
    result = copy.deepcopy(result)
    for name in outputs:  # all else must be as it was
        case.options[name][...] = original.options[name]
    if not all(map(np.array_equal, case.memories, before)):
        raise Failure(f"memory was written that is in none of the outputs {outputs}")
    if raised is not None:
        if expected is None and not re.search("overlap|must not share memory", str(raised)):
            raise Failure(f"raised {raised!r}, the reference has a result")
        if not str(raised):
            raise Failure(f"raised {raised!r} without a word")
        return False
    if expected is not None:
        raise Failure(f"has a result, the reference raised {expected!r}")
    dtypes = [dtypes_of(given) for given in (result, plain)]
    if dtypes[0] != dtypes[1]:
        raise Failure(f"the result is of {dtypes[0]}, should be of {dtypes[1]}")
    right = right_result(original, plain)
    check_numbers(original, result, *right)
    with contextlib.suppress(NotImplementedError):
        check_numbers(original, in_shards(original), *right)
    return True


def dtypes_of(result: Any) -> list[Any]:
    return [np.asarray(item).dtype for item in (result if isinstance(result, tuple) else [result])]


def in_shards(case: Case) -> Any:
    """Return the result of the call, its classes shared out, where softce_fast.sharded has it."""
    without = {"dtype", "b", "return_sign", "keepdims"}
    without |= {"empty"} if case.name in ("softmax", "log_softmax") else set()
    is_single = isinstance(case.options.get("axis", -1), int) and np.ndim(case.arguments[0])
    if case.name not in SHARDED or not is_single or without & case.options.keys():
        raise NotImplementedError
    if len(case.arguments) > 1 and not case.has_labels():
        raise NotImplementedError
    x, *targets = (np.asarray(item) for item in case.arguments)
    options = {name: value for name, value in case.options.items() if name not in OUTPUTS}
    if "where" in options:
        options["where"] = np.broadcast_to(options["where"], x.shape)
    cuts = [int(cut * x.shape[options.get("axis", -1)]) for cut in case.cuts]
    shards = Sharded(x, targets[0] if targets else None, cuts, **options)
    if not targets:
        return getattr(shards, case.name)
    return (shards.loss, shards.gradient) if "grad" in case.name else shards.loss


def check_numbers(case: Case, result: Any, right: Any, divisor: float) -> None:
    options = case.options
    if "b" in options and not (np.asarray(options["b"]) >= 0).all():
        return
    if case.name.startswith("cross_entropy") and "probs" not in case.name:
        check_digits(case, result)
    size, gradient_size = magnitudes(case, divisor)
    is_over_0 = options.get("denominator") == 0
    if is_over_0 and np.isnan(first_of(result)).all():
        return  # a sum that is below the smallest normal number may be 0, and that over 0 is NaN
    if case.name == "target_scores":
        for name, found, want in zip(result._fields, result, right, strict=True):
            compare(case, found, want, name, size)
        return
    compared = compare(case, first_of(result), first_of(right), "result", size)
    if not (compared and isinstance(result, tuple)) or is_over_0:
        return
    is_mean = options.get("reduction", "mean") == "mean"
    # Of labels alone the mean is over their classes' weights.
    no_weight = not np.any(options.get("weight", 1.0)) and case.has_labels()
    if is_mean and (no_weight or np.isinf(first_of(right)).all()):
        return  # perhaps over a sum of weights of 0: of an entry that is too small, this is NaN
    if "grad" not in case.name:
        compare(case, result[1], right[1], "sign", 1.0)
        return
    compare(case, result[1], right[1], "gradient", gradient_size)
    if "hessian" in case.name:
        scale = float(options.get("hessian_scale", 1.0)) / float(options.get("temperature", 1.0))
        compare(case, result[2], right[2], "hessian", gradient_size * scale)


def check_digits(case: Case, result: Any) -> None:
    """Compare a loss and its gradient with the truth, in units in the last place.

    Left out: another dtype than the logits' own, what is not finite, softcaps
    (tests/test_digits.py has them), huge z-losses, class weights too far apart, results next to
    the largest number.
    """
    x, target = (np.asarray(item) for item in case.arguments)
    options = {name: value for name, value in case.options.items() if name not in NOT_NUMBERS}
    dtype, has_labels = np.asarray(first_of(result)).dtype, case.has_labels()
    own = dtype in (x.dtype.newbyteorder("="), np.dtype(np.float64)) and "dtype" not in case.options
    if not (own and dtype.itemsize <= 8 and x.size and (has_labels or target.dtype == x.dtype)):
        return
    if options.pop("softcap", None) is not None or options.get("z_loss", 0) > 1:
        return
    factors = [np.asarray(options.get(name, 1.0)) for name in ("weight", "sample_weight")]
    factors += [] if has_labels else [target]
    allowed = np.broadcast_to(options.get("where", True), x.shape)
    with np.errstate(all="ignore"):
        usable = all(((item >= 0) & np.isfinite(item)).all() for item in factors)
    if not usable or not np.isfinite(x[allowed]).all() or options.get("denominator") == 0:
        return
    sizes = factors[0].astype(np.longdouble)
    if sizes.max(initial=0) > WEIGHTS_APART * sizes.min(initial=np.inf, where=sizes != 0):
        return
    last = partial(np.moveaxis, source=case.options.get("axis", -1), destination=-1)
    if "where" in options:
        options["where"] = last(allowed)
    right = truth.cross_entropy_with_options(
        last(x), target if has_labels else last(target), **options
    )
    # Over a sum of weights of 0 the mean is infinite, and what a gradient is nobody knows.
    is_mean = options.get("reduction", "mean") == "mean"
    if np.isnan(right.loss).any() or (is_mean and np.isinf(right.loss)):
        return
    # Two units in the last place of what a logsumexp near 0 is the difference of.
    step = 2 * float(np.finfo(_checks.compute_dtype(dtype)).eps)
    lost = lost_below_normal(last(x), right, options, dtype)
    # A sum of many losses has the roundings of its additions; the digits are promised of each.
    if options.get("reduction") == "none" or x.size < 100:
        doubt = step * right.z_loss_doubt
        check_units("loss", np.asarray(first_of(result)), right.loss, lost.loss, doubt)
    if isinstance(result, tuple):
        doubt = step * right.z_loss_gradient_doubt
        check_units("gradient", last(result[1]), right.gradient, lost.gradient, doubt,
                    right.gradient_scale)  # fmt: skip
    if "hessian" in case.name and case.options.get("hessian_floor") is None:
        scale = np.longdouble(case.options.get("hessian_scale", 1.0))
        check_units("hessian", last(result[2]), scale * right.hessian, scale * lost.hessian, 0.0)


@np.errstate(all="ignore")
def lost_below_normal(
    x: Array, right: truth.Loss, options: dict[str, Any], dtype: Any
) -> truth.Loss:
    """Return the parts of a loss and of its derivatives that a result need not have.

    They are those whose probability, or what it misses of 1, may be 0 or have few digits: where
    not all of its digits are above the smallest normal number over 2**HEADROOM (numbers.pxd), also
    where a large weight makes of it what the result can hold; above the smallest normal number
    where that is the largest number squared.
    """
    temperature = np.longdouble(options.get("temperature", 1.0))
    logarithms = truth.log_softmax(x, where=options.get("where", True), temperature=temperature)
    compute = np.finfo(_checks.compute_dtype(dtype))
    smallest = np.ldexp(np.longdouble(compute.tiny), -343 if compute.bits == 64 else -20)
    # p (1 - p), times the weight of that in the gradient: the smaller of p and 1 - p is tiny.
    share = right.hessian * temperature
    probabilities, rest = np.exp(logarithms), -np.expm1(logarithms)
    weight = np.abs(share / (probabilities * rest)) * np.fmax(1, 1 / temperature)
    is_huge = weight > np.ldexp(np.longdouble(1), 2 * compute.maxexp - 8)
    smallest = np.where(is_huge, compute.tiny * np.longdouble(8), smallest)
    is_tiny = probabilities < smallest
    of_rest = np.where(rest < smallest, share, 0)
    loss = temperature * of_rest.sum(axis=-1)
    return replace(
        right,
        loss=loss if right.loss.shape else loss.sum(),
        gradient=np.where(is_tiny, share + right.z_loss_gradient, -of_rest),
        hessian=np.where(is_tiny | (of_rest != 0), right.hessian, 0),
    )


def check_units(
    label: str, values: Array, right: Array, lost: Array, doubt: Any, scale: Any = 0.0
) -> None:
    dtype, without = values.dtype, right - lost
    error = truth.ulp_error(values, right, dtype, floor=scale, doubt=doubt)
    error_without = truth.ulp_error(values, without, dtype, floor=scale, doubt=doubt)
    np.minimum(error, error_without, out=error)
    # An exponential that is nearly too small may be a power of two only: up to 2**0.5 times it.
    more = right + lost * 0.42
    found = values.astype(np.longdouble)
    error[(np.minimum(more, without) <= found) & (found <= np.maximum(more, without))] = 0
    error[np.abs(right) > 0.99 * float(finfo(dtype).max)] = 0
    if error.max() > ulp_limit(label, dtype):
        place = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
        units = f"{error.max():.4g} ULP"
        raise Failure(f"{label}{list(place)} is {values[place]!r}, {units} from {right[place]!r}")


# Campaigns


class Enough(BaseException):
    """There is no time to look for a smaller call."""


def as_test(check: Callable[[Case], None]) -> Any:
    """Return a test of Hypothesis in which `check` takes a call."""
    chosen = settings(
        database=InMemoryExampleDatabase(), deadline=None, phases=(Phase.reuse, Phase.shrink),
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )  # fmt: skip
    return chosen(given(calls())(check))


def smallest(choices: bytes, problem: Exception) -> str:
    """Run a case that failed, and smaller ones; say what is wrong with the smallest that fails."""
    found = f"{problem!r}, but not when it ran once more"
    stop = time.monotonic() + SECONDS_OF_SHRINKING

    def check(case: Case) -> None:
        nonlocal found
        if time.monotonic() > stop:
            raise Enough
        text = repr(case)  # now, as the call may write to its arguments
        try:
            run_case(case)
        except Exception as smaller:
            found = f"{smaller!r}\n{text}"
            raise

    test = as_test(check)
    for run in (partial(test.hypothesis.fuzz_one_input, choices), test):  # remembers it; shrinks it
        with contextlib.suppress(Exception, Enough):
            run()
    return found


def work(seed: int, seconds: float, cases: range, current: Any, shows: bool = False) -> NoReturn:
    """Run cases until the time is over, and leave the process."""
    faulthandler.enable()
    warnings.simplefilter("ignore")  # of NumPy in the reference
    stop = time.monotonic() + seconds
    results: list[bool] = []
    failures = 0

    def check(case: Case) -> None:
        if shows:
            print(case, flush=True)
        results.append(run_case(case))

    run = as_test(check).hypothesis.fuzz_one_input
    with contextlib.suppress(KeyboardInterrupt):
        for current.value in cases:
            choices = np.random.default_rng([seed, current.value]).bytes(BYTES_OF_A_CASE)
            try:
                run(choices)
            except Exception as problem:
                failures += 1
                found = smallest(choices, problem)
                print(f"--seed {seed} --case {current.value}: {found}\n", flush=True)
            if failures == MOST_FAILURES or time.monotonic() > stop:
                break
    faulthandler.cancel_dump_traceback_later()
    ends = f"{sum(results)} results, {results.count(False)} errors as documented"
    print(f"{len(results) + failures} calls, {ends}, {failures} failures", flush=True)
    sys.exit(SOME_FAILED if failures else 0)


def main() -> int:
    """Run cases in a process of their own, which may crash; return 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--case", type=int, help="this one alone")
    options = parser.parse_args()
    shows = options.case is not None
    cases = range(options.case, options.case + 1) if shows else range(options.calls)
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    context = multiprocessing.get_context("spawn")
    current = context.Value("q", lock=False)
    arguments = options.seed, options.seconds, cases, current, shows
    process = context.Process(target=work, args=arguments)
    process.start()
    while process.is_alive():
        with contextlib.suppress(KeyboardInterrupt):  # the process has it, too, and ends
            process.join()
    if process.exitcode not in (0, SOME_FAILED):
        print(f"exit status {process.exitcode} in --seed {options.seed} --case {current.value}")
    return int(process.exitcode != 0)


if __name__ == "__main__":
    raise SystemExit(main())
