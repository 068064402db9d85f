"""Throw random arguments at every public function for a given time.

    python tools/fuzz.py [--seconds 60] [--calls N] [--seed N] [--case N]

Each call must end in the right answer (that of softce_fast.reference in long double, within a
tolerance that is generous; losses to the digits promised, too, by tests/truth.py, which is
compared with mpmath), or in one of the documented errors, in a
case where the reference raises one, too, with every buffer unchanged. A crash, a hang, a warning,
an undocumented error, a write beside an output or to an input is a failure. The seed and the case
are printed; with --seed and --case one case runs alone and shows its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import inspect
import itertools
import math
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import softce_fast as sf
import truth
from softce_fast import _checks, _dispatch, reference
from tolerances import ulp_limit

try:
    from ml_dtypes import bfloat16, finfo
except ImportError:
    bfloat16, finfo = None, np.finfo

Array = np.ndarray[Any, Any]
Random = np.random.Generator

DOCUMENTED = (TypeError, ValueError, IndexError)
SECONDS_OF_A_CASE = 60
# The largest class weight over the smallest up to which both count: see docs/promises.md.
WEIGHTS_APART = np.longdouble("1e540")
FILL = 0x5A

FLOATS: list[Any] = [np.float16, np.float32, np.float64, np.float32, np.float64]
if bfloat16 is not None:
    FLOATS.append(bfloat16)
OTHERS: list[Any] = [np.longdouble, np.int64, np.int8, np.uint8, np.bool_, np.uint64]
LABELS: list[Any] = [np.int64, np.int64, np.int32, np.int8, np.uint8, np.uint64, np.int16]


class Failure(Exception):
    """What a case did wrong."""


def pick(random: Random, chance: float) -> bool:
    return bool(random.random() < chance)


def one_of(random: Random, pool: Sequence[Any]) -> Any:
    """Return one of some values, as it is; NumPy's `choice` makes them its own."""
    return pool[int(random.integers(len(pool)))]


def any_dtype(random: Random) -> Any:
    return one_of(random, OTHERS if pick(random, 0.1) else FLOATS)


# Arrays


@dataclass
class Memory:
    """An array, all the memory around it, and what that held before the call."""

    array: Array
    base: Array  # bytes
    before: bytes = b""

    def remember(self) -> None:
        self.before = self.base.tobytes()

    def changed(self) -> bool:
        return self.base.tobytes() != self.before

    def changed_beside(self) -> bool:
        """Tell whether a byte that is not the array's was written."""
        address = self.array.__array_interface__["data"][0] - self.base.ctypes.data
        after = self.base.copy()
        inside, was = (
            np.ndarray(self.array.shape, f"V{self.array.itemsize}", x, address, self.array.strides)
            for x in (after, np.frombuffer(self.before, np.uint8))
        )
        inside[...] = was
        return after.tobytes() != self.before


def place(random: Random, shape: tuple[int, ...], dtype: Any) -> Memory:
    """Make an array of any strides, in the midst of other memory."""
    dtype = np.dtype(dtype)
    if dtype.itemsize > 1 and dtype.kind in "fiu" and random.random() < 0.05:
        dtype = dtype.newbyteorder(">")
    order = list(range(len(shape)))
    kind = random.random()
    if kind > 0.6:
        random.shuffle(order)
    steps = [1] * len(shape)
    if kind > 0.8:
        steps = [int(random.integers(1, 4)) for _ in shape]
    strides = [0] * len(shape)
    extent = dtype.itemsize
    for axis in reversed(order):
        strides[axis] = extent * steps[axis]
        extent *= max(1, shape[axis]) * steps[axis]
    start = int(random.integers(0, 3)) * 64
    if random.random() < 0.05:
        start += int(random.integers(1, 8))  # unaligned
    if random.random() < 0.3:
        start += dtype.itemsize * int(random.integers(0, 16))
    base = np.full(start + extent + 256, FILL, np.uint8)
    array: Array = np.ndarray(shape, dtype, base, start, strides)
    if shape and kind > 0.7:
        flips = tuple(slice(None, None, -1 if random.random() < 0.3 else 1) for _ in shape)
        array = array[flips]
    return Memory(array, base)


def random_shape(random: Random) -> tuple[int, ...]:
    kind = random.random()
    if kind < 0.02:
        classes = int(random.choice([1, 2, 10, 63, 64, 65, 1000, 65536, 70_000, 140_000]))
        rows = max(1, 150_000 // classes)
        return (rows, classes) if random.random() < 0.7 else (classes, rows)
    if kind < 0.05:
        return (int(random.integers(1, 40)), int(random.integers(1, 3000)))
    ndim = int(random.choice([0, 1, 2, 2, 2, 3, 3, 4, 5]))
    largest = [1, 200, 70, 20, 8, 5][ndim]
    lengths = [int(random.integers(1, largest + 1)) for _ in range(ndim)]
    for axis in range(ndim):
        if random.random() < 0.1:
            lengths[axis] = int(random.choice([0, 1, 1]))
    return tuple(lengths)


def fill(random: Random, array: Array, positive: bool = False, special: float = 0.2) -> None:
    """Put numbers of all sizes in; now and then some that are not finite."""
    if array.dtype.kind == "b":
        array[...] = random.random(array.shape) < 0.5
        return
    if array.dtype.kind in "iu":
        array[...] = random.integers(0, 50, array.shape)
        return
    scale = float(random.choice([0.1, 1, 3, 10, 100]))
    values: Array = np.asarray(random.normal(0, scale, array.shape))
    if positive:
        values = np.asarray(random.uniform(0, 1, array.shape))
    if random.random() < special and values.size:
        wild = [math.nan, math.inf, -math.inf, -math.inf, 0.0, 1e4, -1e4, 1e30, -1e30, 1e-30, -1e-9]
        if positive:
            wild = [0.0, 1.0, 1e-30, 0.0]
        where = random.random(values.shape) < random.choice([0.01, 0.2, 1.0])
        values = np.where(where, random.choice(wild, values.shape), values)
    with np.errstate(all="ignore"):
        array[...] = values


def new_input(
    random: Random, shape: tuple[int, ...], dtype: Any, positive: bool = False, special: float = 0.2
) -> Memory:
    memory = place(random, shape, dtype)
    fill(random, memory.array, positive, special)
    if random.random() < 0.1:
        memory.array.flags.writeable = False
    return memory


# Cases


@dataclass
class Case:
    """One call: its arguments, the memory they are in, and what is known about the result."""

    name: str
    shape: tuple[int, ...] = ()  # of the batch
    arguments: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    memories: list[Memory] = field(default_factory=list)
    outputs: dict[str, Memory] = field(default_factory=dict)  # by the option that names it
    cuts: tuple[float, ...] = ()  # where to part the classes, as shares of them
    threads: int = 1
    isa: str = ""

    def add(self, memory: Memory) -> Array:
        self.memories.append(memory)
        return memory.array

    def new(self, random: Random, shape: tuple[int, ...], dtype: Any, **kinds: Any) -> Array:
        return self.add(new_input(random, shape, dtype, **kinds))

    @property
    def class_axis(self) -> int:
        return int(self.options.get("axis", -1)) % len(self.shape)

    @property
    def rows(self) -> tuple[int, ...]:
        return self.shape[: self.class_axis] + self.shape[self.class_axis + 1 :]

    @property
    def is_binary(self) -> bool:
        return "binary" in self.name

    @property
    def is_loss(self) -> bool:
        return "entropy" in self.name or self.name == "nll_loss"


def draw_axis(random: Random, case: Case) -> Any:
    ndim = len(case.shape)
    if "softmax" in case.name or case.name == "logsumexp":
        if "backward" not in case.name and pick(random, 0.2):
            count = int(random.integers(0, ndim + 1))
            return tuple(int(item) for item in random.permutation(ndim)[:count])
        if "backward" not in case.name and pick(random, 0.1):
            return None
    return int(random.integers(-ndim, ndim)) if ndim else -1


def draw_batch(random: Random, case: Case) -> Array:
    """Draw the first argument."""
    special = 0.02 if "backward" in case.name else 0.05 if case.is_binary else 0.2
    positive = case.name in ("cross_entropy_from_probs", "binary_cross_entropy")
    batch = case.new(random, case.shape, any_dtype(random), positive=positive, special=special)
    is_rounded = case.name == "target_scores" and pick(random, 0.3)
    if is_rounded and batch.dtype.kind == "f" and batch.flags.writeable:
        batch[...] = np.round(batch)  # many are equal
    return batch


def draw_output_of_forward(random: Random, case: Case) -> Array:
    dtype = any_dtype(random)
    if pick(random, 0.7):
        dtype = case.memories[0].array.dtype.newbyteorder("=")
    positive = case.name == "softmax_backward"
    return case.new(random, case.shape, dtype, positive=positive, special=0.02)


def draw_target(random: Random, case: Case) -> Array:
    if case.is_binary:
        dtype = np.bool_ if pick(random, 0.2) else one_of(random, FLOATS)
        return case.new(random, case.shape, dtype, positive=True, special=0.05)
    if case.name != "target_scores" and pick(random, 0.3):
        return case.new(random, case.shape, one_of(random, FLOATS), positive=True)
    labels = case.add(place(random, case.rows, one_of(random, LABELS)))
    limits, classes = np.iinfo(labels.dtype), case.shape[case.class_axis]
    labels[...] = random.integers(0, max(1, min(classes, int(limits.max))), case.rows)
    ignored = case.options.get("ignore_index", -100)
    if limits.min <= ignored <= limits.max and (pick(random, 0.5) or not classes):
        labels[random.random(case.rows) < random.choice([0.1, 1.0])] = ignored
    return labels


def draw_weight(random: Random, case: Case) -> Array:
    """Draw weights of elements, or of classes."""
    shape = case.shape[int(random.integers(0, len(case.shape) + 1)) :]
    if case.is_binary:
        return case.new(random, shape, one_of(random, FLOATS), positive=True, special=0)
    return draw_factors(random, case, (case.shape[case.class_axis],))


def draw_factors(random: Random, case: Case, shape: tuple[int, ...]) -> Array:
    """Draw weights; now and then of sizes far apart, or all very small or very large, and zeros."""
    weights = case.new(random, shape, one_of(random, FLOATS), positive=True, special=0.05)
    if not weights.flags.writeable or pick(random, 0.7):
        return weights
    power = int(random.choice([30, 45] if weights.itemsize < 8 else [30, 250, 300]))
    powers: Array = np.asarray(random.integers(-power, power, shape))
    if pick(random, 0.3):
        powers = np.full(shape, random.choice([-power, power]))
    with np.errstate(all="ignore"):
        weights[...] = weights * 10.0**powers
    weights[random.random(shape) < random.choice([0, 0.3])] = 0
    return weights


def draw_sample_weight(random: Random, case: Case) -> Array:
    weights, target = draw_factors(random, case, case.rows), case.memories[1].array
    if weights.flags.writeable and target.dtype.kind in "iu":
        # What stands beside an ignored label must not matter.
        odd = random.choice([math.nan, math.inf, 0.0, 1e30, 1e250], case.rows)
        with np.errstate(all="ignore"):
            np.copyto(weights, odd, where=target == case.options.get("ignore_index", -100),
                      casting="unsafe")  # fmt: skip
    return weights


def draw_mask(random: Random, case: Case) -> Array:
    shape = tuple(1 if pick(random, 0.3) else n for n in case.shape)[int(pick(random, 0.2)) :]
    mask = case.add(place(random, shape, np.bool_))
    mask[...] = random.random(shape) < random.choice([0.1, 0.7, 1.0])
    if case.is_loss and mask.shape == case.shape and pick(random, 0.7):
        allow_target(case, mask)
    return mask


def draw_top_k(random: Random, case: Case) -> int:
    return int(min(case.shape[case.class_axis], random.choice([0, 1, 5, 17, 40, 1000])))


def allow_target(case: Case, mask: Array) -> None:
    """Leave nothing of the target to excluded classes, where the loss would be infinite."""
    target, axis = case.memories[1].array, case.class_axis
    if target.dtype.kind not in "iu":
        if target.flags.writeable:
            target[~mask] = 0
        return
    classes = np.arange(case.shape[axis])
    mask |= np.moveaxis(target[..., None] == classes, -1, axis)


def draw_output(random: Random, case: Case, name: str) -> Array | None:
    """Draw an output: a new array, the input itself, or one that overlaps an input."""
    source, shape = case.memories[0], case.shape
    dtypes = [memory.array.dtype for memory in case.memories[: 1 + ("backward" in case.name)]]
    results = [_checks.result_dtype(dtype, case.options.get("dtype")) for dtype in dtypes]
    dtype = np.dtype(_checks.promote(*results) if len(results) > 1 else results[0])
    if case.name == "logsumexp":
        axes = _checks.normalize_axes(case.options.get("axis", -1), len(shape))
        kept = (1,) if case.options.get("keepdims") else ()
        shape = tuple(n for i, m in enumerate(shape) for n in (kept if i in axes else (m,)))
    kind = random.random()
    if (
        kind < 0.25
        and source.array.dtype == dtype
        and source.array.shape == shape
        and (source.array.flags.writeable)
    ):
        memory = source
    elif kind < 0.4:
        # Somewhere in the memory of one of the inputs.
        host = case.memories[int(random.integers(len(case.memories)))]
        room = host.base.size - math.prod(shape) * dtype.itemsize
        if room < 64:
            return None
        offset = int(random.integers(0, room + 1))
        if pick(random, 0.8):
            offset -= offset % dtype.itemsize
        memory = Memory(np.ndarray(shape, dtype, host.base, offset), host.base)
        case.memories.append(memory)
    else:
        memory = place(random, shape, dtype)
        case.memories.append(memory)
    case.outputs[name] = memory
    return memory.array


Drawn = Callable[[Random, Case], Any]


def among(*values: Any) -> Drawn:
    return lambda random, case: one_of(random, values)


# Every argument of every function: how often it is given, and what; in the order of drawing, as
# some depend on others.
DRAWN: dict[str, tuple[float, Drawn]] = {
    "axis": (0.5, draw_axis),
    "ignore_index": (0.3, among(-100, -1, 0, 3, 255)),
    **dict.fromkeys(("x", "logits", "log_probs", "probs", "grad_output"), (1, draw_batch)),
    "output": (1, draw_output_of_forward),
    "target": (1, draw_target),
    "weight": (0.2, draw_weight),
    "pos_weight": (0.2, draw_weight),
    "sample_weight": (0.2, draw_sample_weight),
    "where": (0.15, draw_mask),
    "b": (0.1, lambda random, case: case.new(
        random, case.shape[int(random.integers(0, len(case.shape) + 1)) :], np.float64,
        positive=True)),
    "dtype": (0.15, among(*FLOATS)),
    "temperature": (0.2, among(0.1, 0.7, 1.0, 2.0, 30.0, 1e-30, 1e30)),
    "softcap": (0.2, among(None, 0.5, 5.0, 30.0, 1e4, 1e-18, 1e18, 1e-150, 1e150)),
    "label_smoothing": (0.2, among(0.0, 0.1, 1.0)),
    "z_loss": (0.2, among(0.0, 1e-3, 0.5, 1e30)),
    "reduction": (0.6, among("mean", "sum", "none")),
    "denominator": (0.1, among(1.0, 0.5, 1e3, -2.0, 0.0, 1e-35, 1e35, 1e-300)),
    "empty": (0.2, among("nan", "zero")),
    "top_k": (0.5, draw_top_k),
    "entropy": (0.5, among(True, False)),
    "ties": (0.6, among(*_checks.TIES)),
    "keepdims": (0.3, among(True)),
    "return_sign": (0.1, among(True)),
    "hessian_scale": (0.3, among(2.0, 0.3, 1e-9, 1e9)),
    "hessian_floor": (0.3, among(None, 0.0, 1e-16, 0.3)),
    "out": (0.4, partial(draw_output, name="out")),
    "grad_out": (0.5, partial(draw_output, name="grad_out")),
    "hessian_out": (0.5, partial(draw_output, name="hessian_out")),
}  # fmt: skip
OUTPUTS = ("out", "grad_out", "hessian_out")
FUNCTIONS = {
    name: signature
    for name in reference.__all__
    if (signature := inspect.signature(getattr(reference, name)).parameters).keys() <= DRAWN.keys()
}


def draw(random: Random, name: str) -> Case:
    """Draw the arguments of a call of that function."""
    shape = random_shape(random)
    while not shape and "axis" in FUNCTIONS[name] and "target" in FUNCTIONS[name]:
        shape = random_shape(random)
    case = Case(name, shape)
    for argument, (chance, drawn) in DRAWN.items():
        if argument not in FUNCTIONS[name] or not pick(random, chance):
            continue
        value = drawn(random, case)
        if FUNCTIONS[name][argument].default is inspect.Parameter.empty:
            case.arguments.append(value)
        elif argument not in OUTPUTS or value is not None:
            case.options[argument] = value
    return case


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
    "out": ["out", [1.0], np.ma.zeros(3), np.zeros((2, 2, 2, 2, 2, 2)), np.zeros(3, np.int32), 0.0],
    "grad_out": ["out", [1.0], np.ma.zeros(3), np.zeros((2,) * 6), np.zeros(3, np.int32)],
    "hessian_out": ["out", [1.0], np.ma.zeros(3), np.zeros((2,) * 6), np.zeros(3, np.int32)],
    "hessian_scale": [0, -1.0, math.nan, math.inf, "two", None],
    "hessian_floor": [-1.0, math.nan, math.inf, "none"],
}
ODD_ARRAYS: list[Callable[[Array], Any]] = [
    lambda x: np.ones(x.shape, complex), lambda x: x.astype(object), np.ma.masked_array,
    lambda x: np.full(x.shape, "a"), lambda _: None, lambda _: "text", lambda _: {},
    lambda _: [[1.0], [2.0, 3.0]], lambda x: x[..., None], lambda x: x.view(np.recarray),
]  # fmt: skip


def spoil(random: Random, case: Case) -> None:
    """Make one argument a wrong one, or at least an odd one."""
    kind = random.random()
    options = [name for name in FUNCTIONS[case.name] if name in BAD_OPTIONS]
    first, *others = case.arguments
    if kind < 0.55 and options:
        name = one_of(random, options)
        case.options[name] = one_of(random, BAD_OPTIONS[name])
        case.outputs.pop(name, None)
    elif kind < 0.65:
        position = int(random.integers(len(case.arguments)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.arguments[position] = one_of(random, ODD_ARRAYS)(case.arguments[position])
    elif kind < 0.8 and others and others[0].dtype.kind in "iu":
        labels, limits = others[0], np.iinfo(others[0].dtype)
        value = one_of(random, [limits.min, limits.max, -1, -101, first.size + 200])
        if labels.size and labels.flags.writeable and limits.min <= value <= limits.max:
            labels[tuple(int(random.integers(n)) for n in labels.shape)] = value
    elif kind < 0.9 and case.outputs:
        one_of(random, list(case.outputs.values())).array.flags.writeable = False
    elif first.size < 1000:
        case.arguments = [
            item.tolist() if item.dtype != bfloat16 else item for item in case.arguments
        ]


def make_case(seed: int, index: int) -> Case:
    random = np.random.default_rng([seed, index])
    case = draw(random, one_of(random, list(FUNCTIONS)))
    if pick(random, 0.2):
        spoil(random, case)
    case.threads = one_of(random, [1, 2, 3])
    case.isa = one_of(random, _dispatch.available())
    case.cuts = tuple(sorted(random.random(int(random.integers(0, 4)))))
    return case


# The reference


def copied(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    copy = value.copy()
    copy.flags.writeable = value.flags.writeable
    return copy


def wide(value: Any, dtype: Any = None) -> Any:
    """Return floating numbers in long double, rounded to `dtype` before."""
    if value is None:
        return None
    array = np.asarray(value)
    if dtype is not None:
        array = array.astype(dtype)
    if array.dtype.kind in "iub":
        return array
    return array.astype(np.longdouble)


@dataclass
class Expected:
    """The error that the reference raises, or its result in long double."""

    error: Exception | None = None
    result: Any = None
    divisor: float = 1.0  # of a mean


def expected_result(case: Case) -> Expected:
    function = getattr(reference, case.name)
    options = {name: copied(value) for name, value in case.options.items()}
    arguments = [copied(item) for item in case.arguments]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            plain = function(*arguments, **options)
        except DOCUMENTED as error:
            return Expected(error)
        for name in (*OUTPUTS, "dtype"):
            options.pop(name, None)
        # A result of fewer digits than the input is rounded at the end.
        dtype = _checks.compute_dtype(np.asarray(first_of(plain)).dtype)
        own = np.asarray(arguments[0]).dtype
        if own.newbyteorder("=") == np.float64:
            dtype = np.promote_types(dtype, np.float64)
        floats = [wide(arguments[0], dtype)]
        for item in arguments[1:]:
            is_labels = np.asarray(item).dtype.kind in "iu" and not case.is_binary
            is_empty_list = isinstance(item, list) and not np.asarray(item).size
            floats.append(item if is_labels or is_empty_list else wide(item, dtype))
        for name in ("weight", "pos_weight", "sample_weight", "b"):
            if name in options:
                options[name] = wide(options[name], dtype if name == "b" else None)
        result = function(*floats, **options)
        if case.name == "target_scores":
            # Logits are compared as they are given, not as the result is rounded.
            return Expected(None, result._replace(**{
                name: getattr(plain, name) for name in ("rank", "argmax", "top_indices")
            }))  # fmt: skip
        if options.get("reduction", "mean") != "mean" or not case.is_loss:
            return Expected(None, result)
        if options.get("denominator"):
            return Expected(None, result, abs(float(options["denominator"])))
        options.pop("denominator", None)
        total = function(*floats, **{**options, "reduction": "sum"})
        quotient = np.abs(np.divide(first_of(total), first_of(result)))
        return Expected(None, result, float(quotient) if quotient > 0 else 1.0)


def first_of(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def magnitudes(case: Case, divisor: float) -> tuple[float, float]:
    """Return bounds on the numbers that a result, and a gradient's entry, are put together from."""
    with np.errstate(all="ignore"):
        x = np.asarray(case.arguments[0]).astype(np.float64)
    options = case.options
    finite = np.abs(x[np.isfinite(x)])
    largest = float(finite.max()) if finite.size else 0.0
    if case.name in ("cross_entropy_from_probs", "binary_cross_entropy"):
        smallest = float(finite[finite > 0].min()) if (finite > 0).any() else 1.0
        largest = max(largest, abs(math.log(smallest)))
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
        value = options.get(name)
        if value is not None and np.asarray(value).size:
            # Not a NaN: next to one an infinite weight would go unseen.
            sizes = np.abs(np.asarray(value).astype(np.float64))
            weight *= max(1.0, float(np.fmax.reduce(sizes, axis=None)))
    if not case.is_binary and np.asarray(case.arguments[1]).dtype.kind not in "iu":
        weight *= max(1, x.shape[options.get("axis", -1)])  # the target's sum over the classes
    if options.get("reduction", "mean") != "none":
        result *= max(1, x.size)
    return result * weight / divisor, gradient * weight / divisor


def compare(case: Case, result: Any, expected: Any, label: str, size: float) -> bool:
    """Fail unless the result is the expected one, rounded to its dtype.

    Returns False, with nothing compared, so near the largest number that it may overflow on one way
    and not on the other.
    """
    got = np.asarray(result)
    compute = np.finfo(_checks.compute_dtype(got.dtype))
    limits = compute if got.dtype.itemsize > 2 else finfo(got.dtype)
    want = np.asarray(expected).astype(np.longdouble)
    if got.shape != want.shape:
        raise Failure(f"{label} has shape {got.shape}, not {want.shape}")
    if not want.size:
        return True
    values = got.astype(np.longdouble)
    # A half type's result is rounded; the 2000 is for sums of many terms.
    unit = 2000 * float(compute.eps) + (float(limits.eps) if limits is not compute else 0.0)
    largest = min(float(limits.max), float(compute.max)) / 1000
    if not size <= float(compute.max) / 1000:  # NaN: an infinite number over another
        return False
    if "backward" in case.name and not (np.abs(want) < largest).all():
        return False
    is_array_of_probabilities = case.name in ("softmax", "softmax_backward")
    with np.errstate(all="ignore"):
        scale = np.abs(want) if is_array_of_probabilities else np.abs(want) + size
        if "backward" in case.name:
            gradient = np.abs(np.asarray(case.arguments[0]).astype(np.longdouble))
            row_sum = gradient.sum() if gradient.size else 0
            scale = (np.abs(want) + 1 + gradient) * (1 + row_sum)
            scale = scale / min(1.0, float(case.options.get("temperature", 1.0)))
        elif is_array_of_probabilities and case.options.get("temperature", 1.0) != 1.0:
            scale = scale * size
        tolerance = unit * scale + float(limits.tiny)
        close = np.abs(values - want) <= tolerance
        # In a narrow dtype the tolerance of a small number may reach beyond the largest.
        close |= np.isinf(values) & (np.sign(values) * want + tolerance >= float(limits.max))
    same = close | (values == want) | (np.isnan(values) & np.isnan(want))
    if not same.all():
        worst = tuple(int(item) for item in np.argwhere(~np.atleast_1d(same))[0])
        where = worst if got.ndim else ()
        raise Failure(f"{label}{list(where)} is {values[where]}, should be {want[where]}")
    return True


# Running


def run_case(case: Case) -> bool:
    """Run a case; raise Failure if it went wrong; return whether it ended in a result."""
    expected = expected_result(case)
    # The call may overwrite an input: what is looked at afterwards are copies.
    original = replace(
        case,
        arguments=[copied(item) for item in case.arguments],
        options={name: copied(value) for name, value in case.options.items()},
    )
    for memory in case.memories:
        memory.remember()
    function = getattr(sf, case.name)
    raised: Exception | None = None
    result: Any = None
    # Neither warnings nor NumPy's own errors, also for those who ask NumPy for them.
    with warnings.catch_warnings(), np.errstate(all="raise"), \
            sf.num_threads(case.threads), _dispatch.using(case.isa):  # fmt: skip
        warnings.simplefilter("error")
        try:
            result = function(*case.arguments, **case.options)
        except DOCUMENTED as problem:
            raised = problem
        except Exception as problem:
            raise Failure(f"raised {type(problem).__name__}: {problem}") from problem
    outputs = list(case.outputs.values())
    for memory in case.memories:
        if raised is None and any(np.shares_memory(memory.base, item.base) for item in outputs):
            continue
        if memory.changed():
            what = "an output" if any(memory is item for item in outputs) else "an input"
            raise Failure(f"{what} was changed; raised: {raised!r}")
    if raised is not None:
        if expected.error is None and not re.search("overlap|must not share memory", str(raised)):
            raise Failure(f"raised {raised!r}, the reference has a result")
        if not str(raised):
            raise Failure(f"raised {raised!r} without a word")
        return False
    if expected.error is not None:
        raise Failure(f"has a result, the reference raised {expected.error!r}")
    for name, output in case.outputs.items():
        hosts = sum(np.shares_memory(output.base, other.base) for other in outputs)
        if hosts == 1 and output.changed_beside():
            raise Failure(f"memory beside {name} was written")
        place = {"grad_out": 1, "hessian_out": 2}.get(name, 0)
        if (result[place] if isinstance(result, tuple) else result) is not output.array:
            raise Failure(f"the result is not {name}")
    check_numbers(original, result, expected)
    if has_shards(original):
        with contextlib.suppress(NotImplementedError):
            check_numbers(original, in_shards(original), expected)
    return True


def has_shards(case: Case) -> bool:
    """Tell whether softce_fast.sharded has this call."""
    x, *others = (np.asarray(item) for item in case.arguments)
    options = case.options.keys() & {"dtype", "b", "return_sign", "keepdims"}
    if case.name in ("softmax", "log_softmax"):
        options |= case.options.keys() & {"empty"}
    elif case.name not in ("logsumexp", "cross_entropy", "cross_entropy_with_grad"):
        return False
    is_single = bool(x.ndim) and isinstance(case.options.get("axis", -1), int)
    return is_single and not options and all(item.dtype.kind in "iu" for item in others)


def in_shards(case: Case) -> Any:
    """Return the result of the call, its classes shared out."""
    options = {name: item for name, item in case.options.items() if name not in OUTPUTS}
    x, axis = np.asarray(case.arguments[0]), options.pop("axis", -1)
    where, weight = options.pop("where", None), options.pop("weight", None)
    of_logits: dict[str, Any] = {
        name: options.pop(name) for name in ("temperature", "softcap") if name in options
    }
    ends = [0, *(int(cut * x.shape[axis]) for cut in case.cuts), x.shape[axis]]
    module: Any = sf.sharded
    shards: list[Any] = []
    for start, stop in itertools.pairwise(ends):
        classes = (*(slice(None),) * (axis % x.ndim), slice(start, stop))
        more = dict(of_logits)
        if where is not None:
            more["where"] = np.broadcast_to(where, x.shape)[classes]
        of_class = {} if weight is None else {"weight": np.asarray(weight)[start:stop]}
        shards.append((x[classes], more, {"class_offset": start, **of_class}))
    target = case.arguments[1:]  # if there is one
    states = module.merge(
        *(module.row_states(part, *target, axis=axis, **a, **b) for part, a, b in shards)
    )
    if case.name == "logsumexp":
        return module.logsumexp(states)
    if not target:
        function = getattr(sf.sharded, case.name)
        results = [function(part, states, axis, **more) for part, more, _ in shards]
        return np.concatenate(results, axis=axis)
    loss = module.cross_entropy(states, **options)
    if case.name == "cross_entropy":
        return loss
    gradients = [
        module.cross_entropy_grad(part, target[0], states, axis, **a, **b, **options)
        for part, a, b in shards
    ]
    return loss, np.concatenate(gradients, axis=axis)


def check_numbers(case: Case, result: Any, expected: Expected) -> None:
    if "b" in case.options and not (np.asarray(case.options["b"]) >= 0).all():
        return
    if case.name.startswith("cross_entropy") and "probs" not in case.name:
        check_digits(case, result)
    size, gradient_size = magnitudes(case, expected.divisor)
    if case.options.get("denominator") == 0 and np.isnan(first_of(result)).all():
        return  # a sum that is below the smallest normal number may be 0, and that over 0 is NaN
    if case.name == "target_scores":
        for name, found, right in zip(result._fields, result, expected.result, strict=True):
            if (found is None) != (right is None):
                raise Failure(f"{name} is {found}, should be {right}")
            if found is not None and _checks.is_floating(found.dtype):
                compare(case, found, right, name, size)
            elif found is not None and not np.array_equal(found, right):
                raise Failure(f"{name} is {found}, should be {right}")
        return
    compared = compare(case, first_of(result), first_of(expected.result), "result", size)
    if not (compared and isinstance(result, tuple)) or case.options.get("denominator") == 0:
        return
    is_mean = case.options.get("reduction", "mean") == "mean"
    # Of labels alone the mean is over their classes' weights.
    no_weight = not np.any(case.options.get("weight", 1.0)) and (
        not case.is_binary and np.asarray(case.arguments[1]).dtype.kind in "iu"
    )
    if is_mean and (no_weight or np.isinf(first_of(expected.result)).all()):
        return  # perhaps over a sum of weights of 0: of an entry that is too small, this is NaN
    if "grad" in case.name:
        compare(case, result[1], expected.result[1], "gradient", gradient_size)
        if "hessian" in case.name:
            scale = float(case.options.get("hessian_scale", 1.0))
            scale /= float(case.options.get("temperature", 1.0))
            compare(case, result[2], expected.result[2], "hessian", gradient_size * scale)
    else:
        compare(case, result[1], expected.result[1], "sign", 1.0)


def check_digits(case: Case, result: Any) -> None:
    """Compare a loss and its gradient with the truth, in units in the last place.

    Left out: another dtype than the logits' own, what is not finite, softcaps
    (tests/test_digits.py has them), huge z-losses, class weights too far apart, results next to
    the largest number.
    """
    x, target = (np.asarray(item) for item in case.arguments)
    options = {name: value for name, value in case.options.items() if name not in NOT_NUMBERS}
    dtype = np.asarray(first_of(result)).dtype
    own = dtype in (x.dtype.newbyteorder("="), np.dtype(np.float64)) and "dtype" not in case.options
    is_labels = target.dtype.kind in "iu"
    if not (own and dtype.itemsize <= 8 and x.size and (is_labels or target.dtype == x.dtype)):
        return
    factors = [np.asarray(options[name]) for name in ("weight", "sample_weight") if name in options]
    factors += [] if is_labels else [target]
    with np.errstate(all="ignore"):
        usable = all(((item >= 0) & np.isfinite(item)).all() for item in factors)
    allowed = np.broadcast_to(options.get("where", True), x.shape)
    if not usable or not np.isfinite(x[allowed]).all() or options.get("denominator") == 0:
        return
    if "softcap" in options or options.get("z_loss", 0) > 1:
        return
    sizes = np.asarray(options.get("weight", 1.0)).astype(np.longdouble)
    if sizes.max(initial=0) > WEIGHTS_APART * sizes.min(initial=np.inf, where=sizes != 0):
        return
    axis = case.options.get("axis", -1)
    if "where" in options:
        options["where"] = np.moveaxis(allowed, axis, -1)
    right = truth.cross_entropy_with_options(
        np.moveaxis(x, axis, -1), target if is_labels else np.moveaxis(target, axis, -1), **options
    )
    # Over a sum of weights of 0 the mean is infinite, and what a gradient is nobody knows.
    is_mean = options.get("reduction", "mean") == "mean"
    if np.isnan(right.loss).any() or (is_mean and np.isinf(right.loss)):
        return
    doubts = doubts_of(right, options, dtype)
    if doubts is None:
        return
    lost = lost_below_normal(np.moveaxis(x, axis, -1), right, options, dtype)
    # A sum of many losses has the roundings of its additions; the digits are promised of each.
    if options.get("reduction") == "none" or x.size < 100:
        check_units("loss", np.asarray(first_of(result)), right.loss, lost.loss, doubts.loss)
    if isinstance(result, tuple):
        gradient = np.moveaxis(np.asarray(result[1]), axis, -1)
        check_units("gradient", gradient, right.gradient, lost.gradient, doubts.gradient,
                    right.gradient_scale)  # fmt: skip
    if "hessian" in case.name and case.options.get("hessian_floor") is None:
        scale = np.longdouble(case.options.get("hessian_scale", 1.0))
        hessian = np.moveaxis(np.asarray(result[2]), axis, -1)
        right_hessian = scale * right.hessian
        check_units("hessian", hessian, right_hessian, scale * lost.hessian, 0.0)


class Parts(NamedTuple):
    """Parts of a loss and of its derivatives that a result need not have."""

    loss: Any
    gradient: Any
    hessian: Any = 0.0


def doubts_of(right: truth.Loss, options: dict[str, Any], dtype: Any) -> Parts | None:
    """Return what capped logits, and a logsumexp near 0, may make of a result.

    None where capped logits are all that it tells.
    """
    step = float(np.finfo(_checks.compute_dtype(dtype)).eps)
    if step * (options.get("softcap") or 0.0) / options.get("temperature", 1.0) > 0.01:
        return None
    # Two units in the last place of what a logsumexp near 0 is the difference of.
    return Parts(
        step * (right.loss_doubt + 2 * right.z_loss_doubt),
        step * (right.gradient_doubt + 2 * right.z_loss_gradient_doubt),
    )


@np.errstate(all="ignore")
def lost_below_normal(x: Array, right: truth.Loss, options: dict[str, Any], dtype: Any) -> Parts:
    """Return the parts whose probability, or what it misses of 1, may be 0 or have few digits.

    That is where all of its digits are not above the smallest normal number over 2**HEADROOM
    (numbers.pxd), also where a large weight makes of it what the result can hold.
    """
    temperature = np.longdouble(options.get("temperature", 1.0))
    of_row = {
        name: options[name] for name in ("where", "temperature", "softcap") if name in options
    }
    logarithms = truth.log_softmax(x, **of_row)
    _, slope = truth.softcapped(x, options.get("softcap"))
    compute = np.finfo(_checks.compute_dtype(dtype))
    smallest = np.ldexp(np.longdouble(compute.tiny), -343 if compute.bits == 64 else -20)
    # p (1 - p), times the weight of that in the gradient: the smaller of p and 1 - p is tiny.
    share = right.hessian * temperature
    of_z_loss = np.divide(right.z_loss_gradient, slope, where=slope != 0, out=np.zeros_like(share))
    of_rest = np.where(-np.expm1(logarithms) < smallest, share, 0)
    loss = temperature * of_rest.sum(axis=-1)
    return Parts(
        loss if right.loss.shape else loss.sum(),
        np.where(np.exp(logarithms) < smallest, share + of_z_loss, -of_rest) * slope,
        np.where((np.exp(logarithms) < smallest) | (of_rest != 0), right.hessian, 0),
    )


def check_units(
    label: str, values: Array, right: Array, lost: Array, doubt: Any, scale: Any = 0.0
) -> None:
    dtype = values.dtype
    largest = float(finfo(dtype).max)
    error = truth.ulp_error(values, right, dtype, floor=scale, doubt=doubt)
    without = right - lost
    error_without = truth.ulp_error(values, without, dtype, floor=scale, doubt=doubt)
    np.minimum(error, error_without, out=error)
    wide = values.astype(np.longdouble)
    # An exponential that is nearly too small may be a power of two only: up to 2**0.5 times it.
    more = right + lost * 0.42
    error[(np.minimum(more, without) <= wide) & (wide <= np.maximum(more, without))] = 0
    error[np.abs(right) > 0.99 * largest] = 0
    if error.max() > ulp_limit(label, dtype):
        place = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
        units = f"{error.max():.4g} ULP"
        raise Failure(f"{label}{list(place)} is {values[place]!r}, {units} from {right[place]!r}")


NOT_NUMBERS = ("axis", "dtype", "empty", *OUTPUTS, "hessian_scale", "hessian_floor")


def describe(case: Case) -> str:
    """Say what the arguments of a case are."""

    def of(value: Any) -> str:
        if isinstance(value, np.ndarray):
            text = f"{type(value).__name__} {value.dtype} {value.shape} strides {value.strides}"
            return text + (f" {value.tolist()}" if value.size <= 40 else "")
        return repr(value) if len(repr(value)) < 300 else repr(value)[:300] + "..."

    lines = [f"softce_fast.{case.name}, {case.threads} threads, {case.isa}"]
    lines += [f"  argument {i}: {of(item)}" for i, item in enumerate(case.arguments)]
    lines += [f"  {name}={of(value)}" for name, value in case.options.items()]
    return "\n".join(lines)


def work(seed: int, seconds: float, calls: int, note: mmap.mmap) -> int:
    """Run cases until the time is over, or the calls are made; return the number of failures."""
    stop = time.monotonic() + seconds
    index = results = failures = 0
    while index < calls and time.monotonic() < stop and failures < 20:
        note[:20] = str(index).rjust(20).encode()
        faulthandler.dump_traceback_later(SECONDS_OF_A_CASE, exit=True)
        case = make_case(seed, index)
        try:
            results += run_case(case)
        except Exception as problem:
            failures += 1
            if not isinstance(problem, Failure):
                problem = Failure(f"the fuzzer itself: {type(problem).__name__}: {problem}")
            print(f"--seed {seed} --case {index}: {problem}\n{describe(case)}\n", flush=True)
        index += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{index} calls, {results} results, {index - results - failures} errors as documented, "
          f"{failures} failures", flush=True)  # fmt: skip
    return failures


def main() -> int:
    """Run one case, or a process that runs many; return 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--case", type=int)
    parser.add_argument("--note", help=argparse.SUPPRESS)  # of the process that runs the cases
    options = parser.parse_args()
    faulthandler.enable()
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    if options.case is not None:
        case = make_case(seed, options.case)
        print(describe(case), flush=True)
        print("a result" if run_case(case) else "an error as documented")
        return 0
    if options.note is not None:
        with open(options.note, "r+b") as file, mmap.mmap(file.fileno(), 0) as note:
            return int(work(seed, options.seconds, options.calls, note) > 0)
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case")
        path.write_bytes(b" " * 20)
        arguments = [*sys.argv[1:], "--seed", str(seed), "--note", str(path)]
        status = subprocess.run([sys.executable, __file__, *arguments], check=False).returncode
        if status not in (0, 1):
            print(f"exit status {status} in --seed {seed} --case {path.read_text().strip()}")
    return 0 if status == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
