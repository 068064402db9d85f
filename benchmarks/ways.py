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
from plots import PLAIN_WAY
from report import BESIDE
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


# --------------------------------------------------------------------------------- arguments


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
    def inputs(self) -> tuple[str, ...]:
        return OPERATIONS[self.function].inputs

    @property
    def output(self) -> str:
        return OPERATIONS[self.function].output

    @property
    def x(self) -> Array:
        """The first input."""
        return self.batch[self.inputs[0]]

    def first(self, rows: int) -> Arguments:
        """Those of so many rows."""
        return replace(
            self,
            batch={name: array[:rows] for name, array in self.batch.items()},
            rows={name: array[:rows] for name, array in self.rows.items()},
        )

    def having(self, **options: Any) -> Arguments:
        return replace(self, options=self.options | options)

    def as_inputs(self, change: Callable[[Array], Array]) -> Arguments:
        """With other inputs and the same output."""
        changed = {name: change(self.batch[name]) for name in self.inputs}
        return replace(self, batch=self.batch | changed)

    def call(self) -> Call:
        if self.shards > 1:
            return partial(through_states, self, cut(self))
        name = OPERATIONS[self.function].more if self.more else self.function
        return partial(getattr(softce_fast, name), **self.batch, **self.rows, **self.options)


Shard = tuple[int, dict[str, Any]]  # its first class, and its part of the batch


def cut(arguments: Arguments) -> list[Shard]:
    """Shares of the classes, each in arrays of its own."""
    cuts = np.linspace(0, arguments.x.shape[1], arguments.shards + 1).astype(int)
    return [
        (start, {name: array[:, start:stop].copy() for name, array in arguments.batch.items()})
        for start, stop in itertools.pairwise(cuts.tolist())
    ]


def through_states(arguments: Arguments, shards: list[Shard]) -> None:
    """The call by softce_fast.sharded, one shard after the other."""
    name = arguments.function
    rows: dict[str, Any] = arguments.rows
    states = sharded.merge(
        *(
            sharded.row_states(batch[arguments.inputs[0]], **rows, class_offset=start)
            for start, batch in shards
        )
    )
    reduction = arguments.options.get("reduction", "mean")
    if arguments.output == "out":
        for _, batch in shards:
            getattr(sharded, name)(batch["x"], states, out=batch["out"])
    elif name == "logsumexp":
        sharded.logsumexp(states)
    else:
        sharded.cross_entropy(states, reduction=reduction)
    if arguments.output == "grad_out":
        for start, batch in shards:
            sharded.cross_entropy_grad(
                **batch, **rows, states=states, class_offset=start, reduction=reduction
            )


# -------------------------------------------------------------------------------------- ways

Change = Callable[[Arguments], Arguments]


def moved(plain: Arguments, axis: int, move: Callable[[Array], Array], *inner: int) -> Arguments:
    """With the class axis elsewhere, and rows in groups of `inner`."""
    batch = {name: np.ascontiguousarray(move(array)) for name, array in plain.batch.items()}
    rows = {name: array.reshape(-1, *inner) for name, array in plain.rows.items()}
    options = plain.options | ({"axis": axis} if "axis" in plain.options else {})
    return replace(plain, batch=batch, rows=rows, options=options)


def first(plain: Arguments) -> Arguments:
    """Classes in front."""
    return moved(plain, 0, lambda array: array.T)


def middle(inner: int) -> Change:
    """Classes in the middle, `inner` rows beside one another behind them."""

    def move(array: Array) -> Array:
        return array.reshape(-1, inner, array.shape[-1]).transpose(0, 2, 1)

    return lambda plain: moved(plain, 1, move, inner)


def spaced(array: Array, part: slice, length: int) -> Array:
    """The same numbers as a part of longer rows."""
    memory = np.ones_like(array, shape=(len(array), length))
    memory[:, part] = array
    return memory[:, part]


def gaps(plain: Arguments) -> Arguments:
    classes = plain.x.shape[1]
    length = classes + max(1, classes // 8)
    return plain.as_inputs(lambda array: spaced(array, slice(classes), length))


def reversed_classes(plain: Arguments) -> Arguments:
    return plain.as_inputs(lambda array: array[:, ::-1].copy()[:, ::-1])


def every_second(plain: Arguments) -> Arguments:
    return plain.as_inputs(lambda array: spaced(array, slice(None, None, 2), 2 * array.shape[1]))


def class_mask(plain: Arguments) -> Array:
    """Without those that are nobody's label."""
    return np.asarray(np.arange(plain.x.shape[1]) % 10 != 9)


def of_all(plain: Arguments) -> Arguments:
    mask = np.random.default_rng(1).random(plain.x.shape, np.float32) < 0.5
    return plain.having(where=mask | class_mask(plain))


def of_classes(plain: Arguments) -> Arguments:
    return plain.having(where=class_mask(plain))


def own_dtype(plain: Arguments) -> Arguments:
    return plain.having(dtype=plain.x.dtype)


def wider(plain: Arguments) -> Arguments:
    dtype = np.dtype(np.float32 if plain.x.itemsize == 2 else np.float64)
    outputs = {plain.output: np.ones_like(plain.x, dtype=dtype)} if plain.output else {}
    return replace(plain.having(dtype=dtype), batch=plain.batch | outputs)


def integers(dtype: str) -> Change:
    """Logits of integers, results of what was plain."""

    def change(plain: Arguments) -> Arguments:
        values = (plain.x.astype(np.float32) * 4 + 32).clip(0, 127).astype(dtype)
        return replace(own_dtype(plain), batch=plain.batch | {plain.inputs[0]: values})

    return change


def byte_order(plain: Arguments) -> Arguments:
    return plain.as_inputs(lambda array: array.astype(array.dtype.newbyteorder()))


def weights(each: bool) -> Change:
    def change(plain: Arguments) -> Arguments:
        b: Array = np.ones_like(plain.x if each else plain.x[0])
        b[..., ::2] = 0.5
        return plain.having(b=b)

    return change


def probabilities(other_dtype: bool) -> Change:
    def change(plain: Arguments) -> Arguments:
        name = plain.x.dtype.name
        dtype = ("float32" if name != "float32" else "float64") if other_dtype else name
        target = softce_fast.softmax(plain.x[::-1], dtype="float32").astype(dtype, copy=False)
        return replace(plain, batch=plain.batch | {"target": target}, rows={})

    return change


def shared_out(plain: Arguments) -> Arguments:
    return replace(plain, shards=4)


def scores(**options: Any) -> Change:
    return lambda plain: replace(plain.having(**options), more=True)


def hessian(plain: Arguments) -> Arguments:
    return replace(plain, more=True, batch=plain.batch | {"hessian_out": np.ones_like(plain.x)})


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

    def most(self, classes: int) -> float:
        return self.long_target if classes > 1000 and self.long_target else self.target


WAYS = {
    "class axis first": Way(1.5, first, ahead=1.5, long_target=2),
    **{
        f"class axis in the middle, inner {inner}": Way(
            2 if inner < 16 else 1.5, middle(inner), ahead=1.5, long_target=2, inner=inner
        )
        for inner in (2, 7, 16, 64, 100, 1000, 1024)
    },
    "rows with gaps": Way(1.5, gaps),
    "classes reversed": Way(2, reversed_classes),
    "every second class": Way(3, every_second),
    "where= of all elements": Way(1.6, of_all, MASKED, ahead=1),
    "where= of classes": Way(1.6, of_classes, MASKED, ahead=1),
    "dtype= the input's own": Way(1.6, own_dtype, FORWARD),
    "half type to float32": Way(1.6, wider, FORWARD, dtypes=HALF_DTYPES),
    "float32 to float64": Way(2.5, wider, FORWARD, dtypes=("float32",)),
    "int32": Way(1.6, integers("int32"), FORWARD, dtypes=("float32", "float64")),
    "uint8": Way(1.6, integers("uint8"), FORWARD, dtypes=("float32", "float64")),
    "other byte order": Way(1.6, byte_order, dtypes=("float16", "float32", "float64")),
    "b= of all elements": Way(2, weights(True), ("logsumexp",)),
    "b= of classes": Way(2, weights(False), ("logsumexp",)),
    "return_sign=": Way(2, lambda plain: plain.having(return_sign=True), ("logsumexp",)),
    "probabilities of another dtype": Way(
        2, probabilities(True), WITH_TARGET, plain=probabilities(False)
    ),
    "class probabilities": Way(1.5, probabilities(False), ("cross_entropy_with_grad",)),
    "label smoothing": Way(
        1.3, lambda plain: plain.having(label_smoothing=0.1), ("cross_entropy_with_grad",)
    ),
    "target_scores": Way(1.3, scores(), ("cross_entropy",)),
    "target_scores, entropy=True": Way(1.6, scores(entropy=True), ("cross_entropy",)),
    "target_scores, top_k=5": Way(2, scores(top_k=5), ("cross_entropy",)),
    "the Hessian, too": Way(1.5, hessian, ("cross_entropy_with_grad",)),
    "softcap=": Way(1.5, lambda plain: plain.having(softcap=30.0), WITH_TARGET),
    "classes in four shards": Way(1.2, shared_out, MASKED),
    "losses of labels, over PyTorch": Way(1, as_it_is, LABEL_LOSSES, plain=None),
}


# ----------------------------------------------------------------------------------- PyTorch


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
    x, functional = given[arguments.inputs[0]], torch.nn.functional
    out = given.get("out")

    def converted(x: Any) -> Any:
        x = x if excluded is None else x.masked_fill(excluded, -math.inf)
        return x if dtype is None else x.to(dtype)

    def label_loss() -> Any:
        if function == "nll_loss":
            return functional.nll_loss(x, given["target"])
        return -x.gather(1, given["target"][:, None]).log().mean()

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

    def backward() -> Any:
        return getattr(torch, f"_{function}_data")(x, given["output"], axis, x.dtype)

    def normalized() -> Any:
        masked = x if excluded is None else converted(x)
        return getattr(torch, function)(masked, axis, dtype=dtype, out=out)

    calls: dict[str, Call] = {
        "softmax": normalized,
        "log_softmax": normalized,
        "logsumexp": lambda: torch.logsumexp(converted(x), axis),
        **dict.fromkeys(BACKWARD, backward),
        **dict.fromkeys(LABEL_LOSSES, label_loss),
    }
    return calls.get(function) or (with_gradient if arguments.output else partial(loss, x))


# ---------------------------------------------------------------------------------- measuring


def calls(way: Way, arguments: Arguments) -> dict[str, Call]:
    """The plain call, the way, and PyTorch's, those that there are."""
    arguments = arguments.first(len(arguments.x) // way.inner * way.inner)
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
            beside = alternate({BESIDE: chosen["way"]})
        found |= timing.medians(beside)
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
        arguments = plain(operation, rows, classes, dtype)
        yield {
            "way": name, "operation": operation, "dtype": dtype, "classes": classes,
            "megabytes": megabytes, "target": way.most(classes), "ahead": way.ahead,
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
