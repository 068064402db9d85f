"""No slow way: the time of each way to call over that of the plain call on as many elements.

Plain is contiguous, classes last, one dtype, no mask. A way is what users have instead: classes in
front or in the middle, gaps, masks, other dtypes, options. Where PyTorch has the way, its time over
ours is measured, too. `WAYS` is the one table of them, with the targets. One round of the plain
call, the way and PyTorch follows the other, in one process; each after a pause, in which the
threads of the one before fall asleep, and with the first call untimed. All of it takes hours:
--only, --operation, --classes, --dtype and --megabytes choose.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import machine
import peers
import report
import softce_fast
import timing
import waiting
from plots import BESIDE, PLAIN_WAY
from shapes import HALF_DTYPES, ITEM_SIZES, Array
from softce_fast import sharded
from timing import Call

CLASSES = (10, 100, 1000, 32_000)
MEGABYTES = (32, 128)
PAUSE = 0.01  # seconds that no library's threads stay awake for
ENOUGH = 0.01  # seconds of calls in a row: threads that they have woken are awake in most of them


class Operation(NamedTuple):
    """A public function: its inputs of the size of the batch, and where its output goes."""

    inputs: tuple[str, ...]
    output: str = ""
    labels: bool = False
    more: str = ""  # a function of the same arguments that gives more, too


OPERATIONS = {
    "softmax": Operation(("x",), "out"),
    "log_softmax": Operation(("x",), "out"),
    "logsumexp": Operation(("x",)),
    "cross_entropy": Operation(("logits",), labels=True, more="target_scores"),
    "cross_entropy_with_grad": Operation(
        ("logits",), "grad_out", labels=True, more="cross_entropy_with_grad_and_hessian"
    ),
    "softmax_backward": Operation(("grad_output", "output"), "out"),
    "log_softmax_backward": Operation(("grad_output", "output"), "out"),
    "binary_cross_entropy_with_logits": Operation(("logits", "target")),
    "binary_cross_entropy_with_logits_with_grad": Operation(("logits", "target"), "grad_out"),
    "nll_loss": Operation(("log_probs",), labels=True),
    "cross_entropy_from_probs": Operation(("probs",), labels=True),
}
LABEL_LOSSES = ("nll_loss", "cross_entropy_from_probs")
BACKWARD = ("softmax_backward", "log_softmax_backward")
ANY = tuple(name for name in OPERATIONS if name not in LABEL_LOSSES)
FORWARD = tuple(name for name in ANY if name not in BACKWARD)
WITH_TARGET = ("cross_entropy", "cross_entropy_with_grad")
MASKED = ("softmax", "log_softmax", "logsumexp", *WITH_TARGET)


Move = Callable[[Array], Array]


@dataclass(frozen=True)
class Arguments:
    """What a function is called with."""

    function: str
    batch: dict[str, Array]  # of rows x classes, the output among them
    rows: dict[str, Array] = field(default_factory=dict)  # an element for each row
    options: dict[str, Any] = field(default_factory=dict)
    shards: int = 1  # that the classes are shared out over
    more: bool = False  # the function that gives more

    @classmethod
    def plain(cls, function: str, rows: int, classes: int, dtype: str) -> Arguments:
        """Random ones, the same in every process."""
        operation = OPERATIONS[function]
        generator = np.random.default_rng(0)
        number = np.float64 if dtype == "float64" else np.float32

        def values(name: str) -> Array:
            x: Array = generator.standard_normal((rows, classes), number)
            if name == "probs" or (name, function) == ("output", "softmax_backward"):
                x = softce_fast.softmax(x)
            elif name in ("output", "log_probs"):
                x = softce_fast.log_softmax(x)
            elif name == "target":
                x = 1 / (1 + np.exp(x))
            return x.astype(dtype, copy=False)

        batch = {name: values(name) for name in operation.inputs}
        options: dict[str, Any] = {} if function.startswith("binary") else {"axis": -1}
        if operation.output:
            batch[operation.output] = np.full_like(batch[operation.inputs[0]], 1)  # its pages
        if operation.output == "grad_out":
            options["reduction"] = "sum"  # a mean's gradient would be 0 in float16
        # Of every ten classes the last one is nobody's: see `class_mask`.
        labels = generator.integers(0, max(1, classes // 10 * 9), rows)
        target = {"target": labels + labels // 9} if operation.labels else {}
        return cls(function, batch, target, options)

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.function]

    @property
    def x(self) -> Array:
        """The first input."""
        return self.batch[self.operation.inputs[0]]

    def each(self, change: Move, of_rows: Move) -> Arguments:
        """With the arrays changed: those of the batch, and those of rows."""
        batch = {name: change(array) for name, array in self.batch.items()}
        rows = {name: of_rows(array) for name, array in self.rows.items()}
        return replace(self, batch=batch, rows=rows)

    def having(self, **options: Any) -> Arguments:
        return replace(self, options=self.options | options)

    def call(self) -> Call:
        if self.shards > 1:
            return through_states(self)
        name = self.operation.more if self.more else self.function
        return partial(getattr(softce_fast, name), **self.batch, **self.rows, **self.options)


def through_states(arguments: Arguments) -> Call:
    """The call by softce_fast.sharded: shares of the classes, in arrays of their own, in turn."""
    name, output = arguments.function, arguments.operation.output
    rows: dict[str, Any] = arguments.rows
    reduction = arguments.options.get("reduction", "mean")
    cuts = np.linspace(0, arguments.x.shape[1], arguments.shards + 1).astype(int).tolist()
    shards: list[tuple[int, dict[str, Any]]] = [
        (start, {name: array[:, start:stop].copy() for name, array in arguments.batch.items()})
        for start, stop in itertools.pairwise(cuts)
    ]
    inputs = arguments.operation.inputs[0]

    def call() -> None:
        of_shards = (
            sharded.row_states(batch[inputs], class_offset=start, **rows) for start, batch in shards
        )
        states = sharded.merge(*of_shards)
        if output == "out":
            for _, batch in shards:
                getattr(sharded, name)(batch["x"], states, out=batch["out"])
        elif name == "logsumexp":
            sharded.logsumexp(states)
        else:
            sharded.cross_entropy(states, reduction=reduction)
        if output == "grad_out":
            for start, batch in shards:
                sharded.cross_entropy_grad(
                    **batch, **rows, states=states, class_offset=start, reduction=reduction
                )

    return call


Change = Callable[[Arguments], Arguments]


def moved(plain: Arguments, axis: int, move: Move, *inner: int) -> Arguments:
    """With the class axis elsewhere, and rows in groups of `inner`."""
    found = plain.each(
        lambda array: np.ascontiguousarray(move(array)), lambda array: array.reshape(-1, *inner)
    )
    return found.having(axis=axis) if "axis" in plain.options else found


def middle(plain: Arguments, inner: int) -> Arguments:
    """Classes in the middle, `inner` rows beside one another behind them."""

    def move(array: Array) -> Array:
        return array.reshape(-1, inner, array.shape[-1]).transpose(0, 2, 1)

    return moved(plain, 1, move, inner)


def spaced(array: Array, part: slice, length: int) -> Array:
    """The same numbers as a part of longer rows."""
    memory = np.ones_like(array, shape=(len(array), length))
    memory[:, part] = array
    return memory[:, part]


def gaps(array: Array) -> Array:
    classes = array.shape[1]
    return spaced(array, slice(classes), classes + max(1, classes // 8))


def class_mask(plain: Arguments) -> Array:
    """Without those that are nobody's label."""
    return np.asarray(np.arange(plain.x.shape[1]) % 10 != 9)


def of_all(plain: Arguments) -> Arguments:
    mask = np.random.default_rng(1).random(plain.x.shape, np.float32) < 0.5
    return plain.having(where=mask | class_mask(plain))


def own_dtype(plain: Arguments) -> Arguments:
    return plain.having(dtype=plain.x.dtype)


def wider(plain: Arguments) -> Arguments:
    dtype = np.dtype(np.float32 if plain.x.itemsize == 2 else np.float64)
    output = plain.operation.output
    outputs = {output: np.ones_like(plain.x, dtype=dtype)} if output else {}
    return replace(plain.having(dtype=dtype), batch=plain.batch | outputs)


def integers(plain: Arguments, dtype: str) -> Arguments:
    """Logits of integers, results of what was plain."""
    values = (plain.x.astype(np.float32) * 4 + 32).clip(0, 127).astype(dtype)
    return replace(own_dtype(plain), batch=plain.batch | {plain.operation.inputs[0]: values})


def weights(plain: Arguments, each: bool) -> Arguments:
    b: Array = np.ones_like(plain.x if each else plain.x[0])
    b[..., ::2] = 0.5
    return plain.having(b=b)


def probabilities(plain: Arguments, other_dtype: bool = False) -> Arguments:
    name = plain.x.dtype.name
    dtype = ("float32" if name != "float32" else "float64") if other_dtype else name
    target = softce_fast.softmax(plain.x[::-1], dtype="float32").astype(dtype, copy=False)
    return replace(plain, batch=plain.batch | {"target": target}, rows={})


def hessian(plain: Arguments) -> Arguments:
    return replace(plain, more=True, batch=plain.batch | {"hessian_out": np.ones_like(plain.x)})


def inputs_as(change: Move) -> Change:
    """Other inputs and the same output."""

    def changed(plain: Arguments) -> Arguments:
        inputs = {name: change(plain.batch[name]) for name in plain.operation.inputs}
        return replace(plain, batch=plain.batch | inputs)

    return changed


def having(**options: Any) -> Change:
    return lambda plain: plain.having(**options)


def scores(**options: Any) -> Change:
    return lambda plain: replace(plain.having(**options), more=True)


def as_it_is(plain: Arguments) -> Arguments:
    return plain


class Way(NamedTuple):
    """A way to call, and the most that it is to take."""

    target: float  # times the plain call's time, or, without one, PyTorch's
    change: Change
    operations: tuple[str, ...] = ANY
    ahead: float = 0  # least of PyTorch's times over ours; 0: whatever
    long_target: float = 0  # above 1000 classes; 0: the same
    dtypes: tuple[str, ...] = tuple(ITEM_SIZES)
    inner: int = 1  # rows come in groups of so many
    plain: Change | None = as_it_is  # what it is compared with; None: PyTorch alone


WAYS = {
    "class axis first": Way(
        1.5, lambda plain: moved(plain, 0, np.transpose), ahead=1.5, long_target=2
    ),
    **{
        f"class axis in the middle, inner {inner}": Way(
            2 if inner < 16 else 1.5, partial(middle, inner=inner), ahead=1.5, long_target=2,
            inner=inner,
        )
        for inner in (2, 7, 16, 64, 100, 1000, 1024)
    },
    "rows with gaps": Way(1.5, inputs_as(gaps)),
    "classes reversed": Way(2, inputs_as(lambda x: x[:, ::-1].copy()[:, ::-1])),
    "every second class": Way(
        3, inputs_as(lambda x: spaced(x, slice(None, None, 2), 2 * x.shape[1]))
    ),
    "where= of all elements": Way(1.6, of_all, MASKED, ahead=1),
    "where= of classes": Way(
        1.6, lambda plain: plain.having(where=class_mask(plain)), MASKED, ahead=1
    ),
    "dtype= the input's own": Way(1.6, own_dtype, FORWARD),
    "half type to float32": Way(1.6, wider, FORWARD, dtypes=HALF_DTYPES),
    "float32 to float64": Way(2.5, wider, FORWARD, dtypes=("float32",)),
    # The results of int32 are float64.
    **{
        dtype: Way(most, partial(integers, dtype=dtype), FORWARD, dtypes=("float32", "float64"))
        for dtype, most in {"int32": 2.5, "uint8": 1.6}.items()
    },
    "other byte order": Way(
        1.6, inputs_as(lambda x: x.astype(x.dtype.newbyteorder())),
        dtypes=("float16", "float32", "float64"),
    ),
    "b= of all elements": Way(2, partial(weights, each=True), ("logsumexp",)),
    "b= of classes": Way(2, partial(weights, each=False), ("logsumexp",)),
    "return_sign=": Way(2, having(return_sign=True), ("logsumexp",)),
    "probabilities of another dtype": Way(
        2, partial(probabilities, other_dtype=True), WITH_TARGET, plain=probabilities
    ),
    "class probabilities": Way(1.5, probabilities, ("cross_entropy_with_grad",)),
    "label smoothing": Way(1.3, having(label_smoothing=0.1), ("cross_entropy_with_grad",)),
    "target_scores": Way(1.3, scores(), ("cross_entropy",)),
    "target_scores, entropy=True": Way(1.6, scores(entropy=True), ("cross_entropy",)),
    "target_scores, top_k=5": Way(2, scores(top_k=5), ("cross_entropy",)),
    "the Hessian, too": Way(1.5, hessian, ("cross_entropy_with_grad",)),
    "softcap=": Way(1.5, having(softcap=30.0), WITH_TARGET),
    "classes in four shards": Way(1.2, lambda plain: replace(plain, shards=4), MASKED),
    "losses of labels, over PyTorch": Way(1, as_it_is, LABEL_LOSSES, plain=None),
}  # fmt: skip


def torch_call(arguments: Arguments) -> Call | None:
    """The same by PyTorch; None where it has no such way, or is not installed."""
    unknown = {"b", "return_sign", "softcap"} & set(arguments.options) or arguments.shards > 1
    if unknown or arguments.more or peers.PEERS["torch"].missing():
        return None
    try:
        call = _torch_call(arguments)
        call()
    except (TypeError, ValueError, RuntimeError):  # strides below 0, a dtype that it has not
        return None
    return call


def _torch_call(arguments: Arguments) -> Call:
    import torch

    torch.set_num_threads(machine.available_cores())
    function, options = arguments.function, arguments.options
    given = {n: peers.to_tensor(a) for n, a in (arguments.batch | arguments.rows).items()}
    axis, mask = options.get("axis", -1), options.get("where")
    excluded = None if mask is None else torch.from_numpy(~mask)
    dtype = getattr(torch, np.dtype(options["dtype"]).name) if "dtype" in options else None
    x, functional = given[arguments.operation.inputs[0]], torch.nn.functional
    out = given.get("out")

    def converted(x: Any) -> Any:
        x = x if excluded is None else x.masked_fill(excluded, -math.inf)
        return x if dtype is None else x.to(dtype)

    def loss(x: Any) -> Any:
        reduction, target = options.get("reduction", "mean"), given["target"]
        if function.startswith("binary"):
            return functional.binary_cross_entropy_with_logits(
                converted(x), target.to(dtype or x.dtype), reduction=reduction
            )
        if target.ndim == x.ndim:
            target = target.movedim(axis, 1)
        return functional.cross_entropy(
            converted(x).movedim(axis, 1), target, reduction=reduction,
            label_smoothing=options.get("label_smoothing", 0.0),
        )  # fmt: skip

    def with_gradient() -> Any:
        leaf = x.detach().requires_grad_()
        value = loss(leaf)
        return value, torch.autograd.grad(value, leaf)[0]

    def normalized() -> Any:
        masked = x if excluded is None else converted(x)
        return getattr(torch, function)(masked, axis, dtype=dtype, out=out)

    calls: dict[str, Call] = {
        "softmax": normalized,
        "log_softmax": normalized,
        "logsumexp": lambda: torch.logsumexp(converted(x), axis),
        "softmax_backward": lambda: torch._softmax_backward_data(x, given["output"], axis, x.dtype),
        "log_softmax_backward": lambda: torch._log_softmax_backward_data(
            x, given["output"], axis, x.dtype
        ),
        "nll_loss": lambda: functional.nll_loss(x, given["target"]),
        "cross_entropy_from_probs": lambda: -x.gather(1, given["target"][:, None]).log().mean(),
    }
    other = with_gradient if arguments.operation.output else partial(loss, x)
    return calls.get(function, other)


def calls(way: Way, arguments: Arguments) -> dict[str, Call]:
    """The plain call, the way, and PyTorch's, those that there are."""
    rows = slice(len(arguments.x) // way.inner * way.inner)
    arguments = arguments.each(lambda array: array[rows], lambda array: array[rows])
    changed = way.change(arguments)
    found = {"way": changed.call(), "peer": torch_call(changed)}
    if way.plain is not None:
        found[PLAIN_WAY] = way.plain(arguments).call()
    return {name: call for name, call in found.items() if call is not None}


def seconds(way: Way, arguments: Arguments, rounds: int, busy: bool) -> dict[str, float]:
    chosen = calls(way, arguments)
    alternate = partial(timing.alternate, rounds=rounds, seconds=ENOUGH, least=1, pause=PAUSE)
    found = timing.medians(alternate(chosen))
    if busy:
        with waiting.busy_process():
            found |= timing.medians(alternate({BESIDE: chosen["way"]}))
    return found


def sizes(way: Way, options: Any, dtype: str) -> Iterator[tuple[int, int, int]]:
    """Rows, classes and megabytes."""
    for megabytes, classes in itertools.product(options.megabytes, options.classes):
        rows = megabytes * 2**20 // ITEM_SIZES[dtype] // classes
        if rows >= way.inner:
            yield rows, classes, megabytes


def cells(options: Any) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(ImportError):
        import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 from then on
    wanted = [
        (operation, dtype, size, name)
        for name, way in WAYS.items()
        if not options.only or any(text in name for text in options.only)
        for operation in way.operations
        if operation in options.operation
        for dtype in way.dtypes
        if dtype in options.dtype
        for size in sizes(way, options, dtype)
    ]
    plain = functools.lru_cache(maxsize=1)(Arguments.plain)  # ways of the same follow each other
    for operation, dtype, size, name in tqdm(sorted(wanted, key=lambda entry: entry[:3])):
        way, (rows, classes, megabytes) = WAYS[name], size
        target = way.long_target if classes > 1000 and way.long_target else way.target
        arguments = plain(operation, rows, classes, dtype)
        yield {
            "way": name, "operation": operation, "dtype": dtype, "classes": classes,
            "megabytes": megabytes, "target": target, "ahead": way.ahead,
            "seconds": seconds(way, arguments, options.rounds, options.busy),
        }  # fmt: skip


CHOICES: dict[str, tuple[Any, ...]] = {
    "operation": tuple(OPERATIONS), "dtype": tuple(ITEM_SIZES), "classes": CLASSES,
    "megabytes": MEGABYTES,
}  # fmt: skip


def measure(options: Any) -> dict[str, Any]:
    quick = {"dtype": ("float32",), "classes": (1000,), "megabytes": (1,)} if options.quick else {}
    for name, values in (CHOICES | quick).items():
        setattr(options, name, getattr(options, name) or values)
    options.rounds = 1 if options.quick else options.rounds
    order = list(WAYS)
    return {"cells": sorted(cells(options), key=lambda cell: order.index(cell["way"]))}


if __name__ == "__main__":
    arguments: dict[str, dict[str, Any]] = {
        "--only": {"action": "append", "help": "ways with this in their name; repeatable"},
        "--busy": {"action": "store_true", "help": f"each way also {BESIDE}"},
        "--rounds": {"type": int, "default": 7},
    }
    for name, values in CHOICES.items():
        text = f"repeatable; default: {values}"
        arguments[f"--{name}"] = {"action": "append", "type": type(values[0]), "help": text}
    report.run("ways", __doc__, measure, ["numpy", "torch"], arguments)
