"""No byte too far (guard pages), no byte too many (leaks, copies), and arrays beyond 32 bits."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import softce_fast as sf
from softce_fast import _dispatch, reference
from softce_fast._kernels import execute
from subprocesses import ending, run_function

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
needs_mprotect = pytest.mark.skipif(os.name != "posix", reason="this system has no mprotect")

# Threads that wait without spinning: these tests start more of them than there may be CPUs.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}

DTYPES = ("float16", "bfloat16", "float32", "float64")


def dtype_of(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


# Guard pages

PATTERN = 0xA5
MARGIN = 256  # bytes beside an output that are looked at for strays


class Layout(NamedTuple):
    """Where the elements of an array lie: strides in elements, and the class axis."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axis: int


def last_axis(rows: int, classes: int) -> Layout:
    return Layout((rows, classes), (classes, 1), 1)


def middle_axis(rows: int, classes: int) -> Layout:
    return Layout((2, classes, rows), (classes * rows, rows, 1), 1)


def strided(rows: int, classes: int) -> Layout:
    return Layout((rows, classes), (2 * classes + 1, 2), 1)


def backwards(rows: int, classes: int) -> Layout:
    return Layout((rows, classes), (-classes, -1), 1)


LAYOUTS = (last_axis, middle_axis, strided, backwards)


class Guarded:
    """Memory between two pages that may be neither read nor written."""

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        size = -(-size // page) * page
        self.memory = mmap.mmap(-1, size + 2 * page)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self.start, self.stop = page, page + size
        self.bytes[self.start : self.stop] = PATTERN
        library = ctypes.CDLL(None, use_errno=True)
        address = self.bytes.ctypes.data
        for guard in (address, address + page + size):
            status = library.mprotect(
                ctypes.c_void_p(guard), ctypes.c_size_t(page), ctypes.c_int(0)
            )
            assert status == 0, os.strerror(ctypes.get_errno())

    def place(self, layout: Layout, dtype: np.dtype, at_end: bool) -> np.ndarray:
        """Return an array that begins, or ends, at a guard page."""
        strides = [stride * dtype.itemsize for stride in layout.strides]
        reach = [(n - 1) * stride for n, stride in zip(layout.shape, strides, strict=True)]
        low = sum(min(0, way) for way in reach)
        high = sum(max(0, way) for way in reach) + dtype.itemsize
        offset = self.stop - high if at_end else self.start - low
        self.first = max(self.start, offset + low - MARGIN)
        self.last = min(self.stop, offset + high + MARGIN)
        assert offset + low >= self.start, "the memory is too small for this array"
        assert offset + high <= self.stop, "the memory is too small for this array"
        return np.ndarray(layout.shape, dtype, self.memory, offset, strides)

    def check(self, array: np.ndarray) -> None:
        """Fail if anything beside the array was written."""
        array.view(f"u{array.itemsize}")[...] = PATTERN * (
            0x0101010101010101 & ((1 << 8 * array.itemsize) - 1)
        )
        assert (self.bytes[self.first : self.last] == PATTERN).all(), "written beside the array"


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    bits = f"u{first.itemsize}"
    return bool((np.asarray(first).view(bits) == np.asarray(second).view(bits)).all())


OPTIONS: dict[str, Any] = {
    "label_smoothing": 0.1,
    "z_loss": 1e-3,
    "temperature": 0.7,
    "reduction": "none",
}


BACKWARD = (
    ("softmax_backward", sf.softmax_backward),
    ("log_softmax_backward", sf.log_softmax_backward),
)
FROM_OUTPUTS = (
    ("nll_loss", sf.nll_loss),
    ("cross_entropy_from_probs", sf.cross_entropy_from_probs),
)


class Expected(NamedTuple):
    """Inputs and results for rows of one length, in ordinary memory."""

    values: np.ndarray
    labels: np.ndarray
    target: np.ndarray  # probabilities
    weight: np.ndarray
    sample_weight: np.ndarray
    results: dict[str, np.ndarray]


def expected_for(rows: int, classes: int, dtype: np.dtype) -> Expected:
    random = np.random.default_rng(classes)
    values = random.normal(scale=3, size=(rows, classes)).astype(dtype)
    labels = random.integers(0, classes, rows)
    target = random.uniform(size=(rows, classes)).astype(dtype)
    # Of the dtype that the kernels take weights in, so that they are not copied.
    weight_dtype = np.float64 if dtype == np.float64 else np.float32
    weight = random.uniform(size=classes).astype(weight_dtype)
    sample_weight = random.uniform(size=rows).astype(weight_dtype)
    results = {
        "softmax": sf.softmax(values),
        "log_softmax": sf.log_softmax(values),
        "logsumexp": sf.logsumexp(values),
    }
    every_option = {**OPTIONS, "weight": weight, "sample_weight": sample_weight}
    for name, function in BACKWARD:
        results[name] = function(values, target)
    for name, function in FROM_OUTPUTS:
        results[name] = function(target, labels, reduction="none")
        results[name + " of target"] = function(target, target, reduction="none")
    results["binary"] = sf.binary_cross_entropy(target, target, reduction="none")
    results["binary losses"], results["binary gradient"] = (
        sf.binary_cross_entropy_with_logits_with_grad(
            values, target, pos_weight=weight, reduction="none"
        )
    )
    for name, result in (
        ("", sf.cross_entropy_with_grad(values, labels, reduction="none")),
        (" with options", sf.cross_entropy_with_grad(values, labels, **every_option)),
        (" of target", sf.cross_entropy_with_grad(values, target, **every_option)),
    ):
        results["losses" + name], results["gradient" + name] = result
    return Expected(values, labels, target, weight, sample_weight, results)


def contiguous(*shape: int) -> Layout:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Layout(shape, strides, 0)


class Bench:
    """The guarded buffers, and a file that names the case that runs, should it be the last one."""

    def __init__(self, size: int, rows_size: int, note: str, streamed: bool = False):
        # What writes an output of the logits' size goes past the caches, as it does in large ones.
        fields = {"stream": True, "keep": False, "keep_in_output": False} if streamed else {}
        self.planned = partial(execute.forcing, **fields)
        self.logits, self.output, self.target = Guarded(size), Guarded(size), Guarded(size)
        self.labels, self.sample_weight = Guarded(rows_size), Guarded(rows_size)
        self.weight = Guarded(size)
        with open(note, "r+b") as file:
            self.note = mmap.mmap(file.fileno(), 0)

    def run(
        self, expected: Expected, layout_of: Callable[[int, int], Layout], rows: int, at_end: bool,
        title: str,
    ) -> int:  # fmt: skip
        """Call every kernel on arrays at the edge; compare all bits; return the number of calls."""
        classes = expected.values.shape[1]
        dtype = expected.values.dtype
        layout = layout_of(rows, classes)
        axis = layout.axis
        row_shape = layout.shape[:axis] + layout.shape[axis + 1 :]
        count = int(np.prod(row_shape))
        place = "ends" if at_end else "begins"
        title = f"{title}, {rows} x {classes} {dtype}, {layout_of.__name__}, {place} at the guard"
        calls = 0

        def classes_last(array: np.ndarray) -> np.ndarray:
            return np.moveaxis(array, axis, -1)

        def guarded(memory: Guarded, layout: Layout, values: np.ndarray) -> np.ndarray:
            array = memory.place(layout, values.dtype, at_end)
            array[...] = values
            return array

        x = self.logits.place(layout, dtype, at_end)
        classes_last(x)[...] = expected.values[:count].reshape(*row_shape, classes)
        target = self.target.place(layout, dtype, at_end)
        classes_last(target)[...] = expected.target[:count].reshape(*row_shape, classes)
        rows_layout = contiguous(*row_shape)
        labels = guarded(self.labels, rows_layout, expected.labels[:count].reshape(row_shape))
        weight = guarded(self.weight, contiguous(classes), expected.weight)
        sample_weight = guarded(
            self.sample_weight, rows_layout, expected.sample_weight[:count].reshape(row_shape)
        )
        every_option = {**OPTIONS, "weight": weight, "sample_weight": sample_weight}

        def announce(call: str) -> None:
            nonlocal calls
            calls += 1
            self.note[:] = f"{call}, {title}".encode().ljust(len(self.note))[: len(self.note)]

        def check(name: str, result: np.ndarray) -> None:
            wanted = expected.results[name][:count]
            if result.ndim == x.ndim:
                result, wanted = classes_last(result), wanted.reshape(*row_shape, classes)
            else:
                wanted = wanted.reshape(row_shape)
            assert same_bits(result, wanted), f"other bits of {name}: {title}"

        # The last axis by its usual name: so small calls take their short way.
        along = -1 if axis == x.ndim - 1 else axis
        for name, function in (("softmax", sf.softmax), ("log_softmax", sf.log_softmax)):
            announce(name)
            with self.planned():
                check(name, function(x, along))
            announce(f"{name} with out")
            out = self.output.place(layout, dtype, at_end)
            with self.planned():
                check(name, function(x, along, out=out))
            self.output.check(out)
        announce("logsumexp")
        check("logsumexp", sf.logsumexp(x, along))
        announce("cross_entropy")
        check("losses", sf.cross_entropy(x, labels, along, reduction="none"))
        announce("mean cross_entropy")
        sf.cross_entropy(x, labels, along)
        announce("mean cross_entropy_with_grad")
        with self.planned():
            sf.cross_entropy_with_grad(x, labels, along)
        for name, goal, options in (
            ("", labels, {"reduction": "none"}),
            (" with options", labels, every_option),
            (" of target", target, every_option),
        ):
            announce(f"cross_entropy_with_grad{name}")
            out = self.output.place(layout, dtype, at_end)
            with self.planned():
                losses, _ = sf.cross_entropy_with_grad(x, goal, along, grad_out=out, **options)
            check("losses" + name, losses)
            check("gradient" + name, out)
            self.output.check(out)
        for name, function in BACKWARD:
            announce(name)
            out = self.output.place(layout, dtype, at_end)
            check(name, function(x, target, along, out=out))
            self.output.check(out)
        for name, function in FROM_OUTPUTS:
            announce(name)
            check(name, function(target, labels, along, reduction="none"))
            check(name + " of target", function(target, target, along, reduction="none"))
        announce("binary_cross_entropy")
        check("binary", sf.binary_cross_entropy(target, target, reduction="none"))
        announce("binary_cross_entropy_with_logits_with_grad")
        out = self.output.place(layout, dtype, at_end)
        along_classes = weight.reshape(classes, *[1] * (x.ndim - axis - 1))
        losses, _ = sf.binary_cross_entropy_with_logits_with_grad(
            x, target, pos_weight=along_classes, reduction="none", grad_out=out
        )
        check("binary losses", losses)
        check("binary gradient", out)
        self.output.check(out)
        # The gradient in place: writes past the logits' edge show here.
        announce("cross_entropy_with_grad in place")
        sf.cross_entropy_with_grad(x, labels, along, reduction="none", grad_out=x)
        check("gradient", x)
        self.logits.check(x)
        return calls


ROWS = (1, 3, 16, 17)


def short_rows(note: str, isa: str, dtype_name: str) -> None:
    bench = Bench(1 << 17, 1 << 12, note)
    dtype = dtype_of(dtype_name)
    calls = 0
    with _dispatch.using(isa):
        for classes in range(1, 131):
            expected = expected_for(2 * max(ROWS), classes, dtype)
            for rows in ROWS:
                # The two last layouts take turns: both go through the same copy of a row.
                for layout_of in (*LAYOUTS[:2], LAYOUTS[2 + classes % 2]):
                    for at_end in (True, False):
                        calls += bench.run(expected, layout_of, rows, at_end, isa)
    print(calls)


# Rows and batches around every size at which the kernels change their way: groups and tasks of
# rows, chunks of a row, shares for threads; for stores past the caches that is up to the plan.
LONG_ROWS = (
    *((35, 255), (33, 256), (33, 257), (17, 511), (16, 512), (33, 512), (17, 513)),
    *((130, 1023), (67, 1024), (9, 4097), (2, 32769)),
    *((1, 65535), (1, 65536), (3, 65537), (1, 131072), (2, 131073), (1, 200_001)),
    *((5000, 17), (2049, 64), (2047, 65), (40_000, 3)),
)
STREAMED = ((1, 200_001), (2, 8193), (1031, 129), (4099, 17))


def long_rows(note: str, isa: str, dtype_name: str, streamed: str) -> None:
    dtype = dtype_of(dtype_name)
    shapes = STREAMED if streamed else LONG_ROWS
    layouts = (last_axis, middle_axis) if streamed else LAYOUTS
    largest = max(rows * (2 * classes + 1) for rows, classes in shapes)
    bench = Bench(8 * largest, 8 * max(rows for rows, _ in shapes), note, bool(streamed))
    sf.set_num_threads(3)
    calls = 0
    with _dispatch.using(isa):
        for rows, classes in shapes:
            with sf.num_threads(1):
                expected = expected_for(rows, classes, dtype)
            for layout_of in layouts:
                count = (rows + 1) // 2 if layout_of is middle_axis and rows > 1 else rows
                if layout_of is middle_axis and 2 * count > rows:
                    continue
                for at_end in (True, False):
                    calls += bench.run(expected, layout_of, count, at_end, isa)
    print(calls)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "case"
    path.write_bytes(b" " * 200)
    return path


def run_guarded(function: Callable[..., None], note: Path, *arguments: str) -> None:
    if arguments[0] not in _dispatch.available():
        pytest.skip(f"the {arguments[0]} build is not in this package, or the CPU cannot run it")
    if arguments[1] == "bfloat16":
        pytest.importorskip("ml_dtypes")
    result = run_function(
        function, str(note), *arguments, timeout=200, environment=PASSIVE, check=False
    )
    if result.returncode:
        pytest.fail(
            f"{ending(result.returncode)} in {note.read_text().strip()}\n{result.stderr[-3000:]}"
        )
    assert int(result.stdout) > 0


@needs_mprotect
@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_short_rows_at_a_guard_page(isa, dtype_name, note):
    run_guarded(short_rows, note, isa, dtype_name)


@needs_mprotect
@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_long_rows_at_a_guard_page(isa, dtype_name, note):
    run_guarded(long_rows, note, isa, dtype_name, "")


@needs_mprotect
@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_streamed_rows_at_a_guard_page(isa, dtype_name, note):
    run_guarded(long_rows, note, isa, dtype_name, "streamed")


def touch_the_guard(at_end: str) -> None:
    memory = Guarded(8192)
    array = memory.place(Layout((10,), (1,), 0), np.dtype(np.float32), bool(at_end))
    shape = as_strided(array if at_end else array[::-1], (11,))
    print(shape[10])


@needs_mprotect
@pytest.mark.parametrize("at_end", ["yes", ""])
def test_the_guard_catches_one_element_too_far(at_end):
    assert run_function(touch_the_guard, at_end, check=False).returncode < 0


# Leaks


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def call_often() -> None:
    x = np.random.default_rng(0).normal(size=(64, 1100)).astype(np.float32)
    labels = np.zeros(64, np.int64)
    labels_with_fault = labels.copy()
    labels_with_fault[-1] = 5000
    long_row = np.zeros((1, 200_000), np.float32)
    sf.set_num_threads(2)

    def once() -> None:
        sf.softmax(x)
        sf.logsumexp(x)
        sf.log_softmax(x.T, axis=0)
        sf.cross_entropy_with_grad(x, labels)
        sf.cross_entropy(x, labels, reduction="none")
        sf.logsumexp(long_row)
        for fault in (
            lambda: sf.cross_entropy_with_grad(x, labels_with_fault),
            lambda: sf.softmax(x, out=np.empty(3, np.float32)),
        ):
            with pytest.raises((IndexError, ValueError)):
                fault()

    for _ in range(50):
        once()
    before = anonymous_bytes()
    for _ in range(300):
        once()
    grown = anonymous_bytes() - before
    assert grown < 1 << 20, f"{grown} bytes more after 300 rounds"


@on_linux
def test_nothing_leaks():
    run_function(call_often, timeout=120, environment=PASSIVE)


# Scale


class AnonymousPeak:
    """The largest growth of the process's anonymous memory in the body."""

    def __enter__(self) -> AnonymousPeak:
        self.before = anonymous_bytes()
        self.growth = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.growth = max(self.growth, anonymous_bytes() - self.before)
            time.sleep(0.002)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder whose files are gone afterwards, whatever pytest keeps."""
    path = tmp_path / "large"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def sparse(path: Path, size: int) -> Path:
    """Make a file of `size` bytes that takes no space yet; skip where there are no such files."""
    try:
        with open(path, "wb") as file:
            file.truncate(size)
    except OSError as error:
        pytest.skip(f"no sparse file of {size} bytes here: {error}")
    if path.stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    return path


def mapped_training_step(path: str, rows_text: str, classes_text: str, in_place: str) -> None:
    """Loss and gradient of memory-mapped logits, zero but for a few rows."""
    rows, classes = int(rows_text), int(classes_text)
    shape = (rows, classes)
    logits = np.memmap(path, np.float32, "r+", shape=shape)
    gradient = logits if in_place else np.memmap(path + ".grad", np.float32, "w+", shape=shape)
    labels = np.arange(rows) * 7919 % classes
    checked = [0, rows // 2, rows - 1]
    for row in checked:
        logits[row, -3:] = 2, 4, 8
    inputs = np.array(logits[checked])
    with sf.num_threads(4), AnonymousPeak() as peak:
        loss = sf.cross_entropy(logits, labels)
        loss_again, result = sf.cross_entropy_with_grad(logits, labels, grad_out=gradient)
    assert result is gradient
    assert loss == loss_again
    assert abs(loss - np.log(classes)) < 1
    wanted = reference.cross_entropy_with_grad(
        inputs.astype(np.float64), labels[checked], denominator=rows
    )[1]
    np.testing.assert_allclose(gradient[checked], wanted, rtol=1e-5)
    # Every row has exactly one negative number, at its label.
    for row in range(0, rows, max(1, rows // 50)):
        assert np.flatnonzero(gradient[row] < 0).tolist() == [labels[row]]
    # A few rows for each thread, and the losses; nothing the size of the logits.
    allowed = 8 * rows + (32 << 20)
    assert peak.growth < allowed, f"{peak.growth} bytes of anonymous memory, {allowed} allowed"


def calls_without_copies() -> None:
    """Every function and option, on an array of 64 MB."""
    rows, classes = 2048, 8192
    x = np.random.default_rng(0).standard_normal((rows, classes), np.float32)
    other = np.full_like(x, 1 / classes)
    out = np.ones_like(x)
    labels = np.arange(rows) % classes
    weight, sample_weight = np.ones(classes, np.float32), np.ones(rows, np.float32)
    where = np.ones((1, classes), bool)
    losses: dict[str, dict[str, Any]] = {
        "plain": {},
        "weight": {"weight": weight},
        "sample_weight": {"sample_weight": sample_weight},
        "tiny weights": {"sample_weight": sample_weight * np.float32(1e-36)},
        "ignore_index": {"ignore_index": 5},
        "denominator": {"denominator": 1e-35},
        "none": {"reduction": "none"},
    }
    from_logits: dict[str, dict[str, Any]] = {
        "label_smoothing": {"label_smoothing": 0.1, "weight": weight},
        "z_loss": {"z_loss": 0.1},
        "temperature": {"temperature": 2.0},
        "hot": {"temperature": 1e30},
    }
    calls: dict[str, Any] = {}
    for function in (sf.softmax, sf.log_softmax):
        for options in ({}, {"axis": 0}, {"axis": None}, {"where": where}, {"temperature": 1e30}):
            calls[f"{function.__name__} {options}"] = partial(function, x, **options, out=out)
    for options in (
        {}, {"axis": 0}, {"axis": None}, {"where": where}, {"b": sample_weight[:, None]},
        {"return_sign": True},
    ):  # fmt: skip
        calls[f"logsumexp {options}"] = partial(sf.logsumexp, x, **options)
    for backward in (sf.softmax_backward, sf.log_softmax_backward):
        for axis in (-1, None):
            calls[f"{backward.__name__} {axis}"] = partial(backward, x, other, axis, out=out)
    for target in (labels, other):
        for name, options in (losses | from_logits).items():
            calls[f"cross_entropy_with_grad {name} {target.ndim}"] = partial(
                sf.cross_entropy_with_grad, x, target, **options, grad_out=out
            )
        for name, options in losses.items():
            calls[f"nll_loss {name} {target.ndim}"] = partial(sf.nll_loss, x, target, **options)
            calls[f"cross_entropy_from_probs {name} {target.ndim}"] = partial(
                sf.cross_entropy_from_probs, other, target, **options
            )
    calls["binary"] = partial(sf.binary_cross_entropy, other, other)
    calls["binary, with gradient"] = partial(
        sf.binary_cross_entropy_with_logits_with_grad, x, other, weight=weight, pos_weight=weight,
        grad_out=out)  # fmt: skip
    sf.softmax(x[:4])
    for name, call in calls.items():
        with AnonymousPeak() as peak:
            call()
        assert peak.growth < 16 << 20, f"{name}: {peak.growth} bytes of anonymous memory"


@on_linux
def test_no_copy_of_the_input():
    run_function(calls_without_copies, timeout=200)


@on_linux
@pytest.mark.parametrize("in_place", ["", "in place"], ids=["grad_out", "in-place"])
def test_memory_mapped_training_step(folder, in_place):
    rows, classes = 1000, 65536
    path = sparse(folder / "logits", 4 * rows * classes)
    run_function(mapped_training_step, str(path), str(rows), str(classes), in_place, timeout=200)


@pytest.mark.slow
@on_linux
def test_memory_mapped_training_step_of_10_gigabytes(folder):
    rows, classes = 20_000, 131_072
    size = 4 * rows * classes
    free = shutil.disk_usage(folder).free
    if free < size * 5 // 4:
        pytest.skip(f"needs {size * 5 // 4} bytes of disk, {free} are free")
    path = sparse(folder / "logits", size)
    run_function(mapped_training_step, str(path), str(rows), str(classes), "", timeout=1200)


GAP = 5 << 30  # bytes from one row to the next
WIDE = ((3, 1001), (20, 10))  # shapes that go row by row, and by tiles


def wide_row_strides(path: str, output: str) -> None:
    """Rows far apart, then classes far apart."""
    source = np.memmap(path, np.uint8, "r+")
    target = np.memmap(output, np.uint8, "r+")
    for shape in WIDE:
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        x, out = (
            as_strided(memory[: 4 * shape[1]].view(np.float32), shape, (GAP, 4))
            for memory in (source, target)
        )
        x[...] = values
        for axis in (1, 0):
            labels = np.arange(shape[1 - axis]) % shape[axis]
            wanted_loss, wanted = sf.cross_entropy_with_grad(values, labels, axis)
            loss, _ = sf.cross_entropy_with_grad(x, labels, axis, grad_out=out)
            assert loss == wanted_loss
            assert np.array_equal(out, wanted)
            assert np.array_equal(sf.softmax(x, axis, out=out), sf.softmax(values, axis))
            assert np.array_equal(sf.logsumexp(x, axis), sf.logsumexp(values, axis))
            probs = sf.softmax(values, axis)
            for backward in (sf.softmax_backward, sf.log_softmax_backward):
                wanted = backward(values, probs, axis)
                assert np.array_equal(backward(x, probs, axis, out=out), wanted)
            for classes in (labels, probs):
                assert sf.nll_loss(x, classes, axis) == sf.nll_loss(values, classes, axis)
            binary = sf.binary_cross_entropy_with_logits_with_grad
            loss, _ = binary(x, probs, grad_out=out)
            wanted_loss, wanted = binary(values, probs)
            assert loss == wanted_loss
            assert np.array_equal(out, wanted)
            out[...] = probs
            wanted_loss = sf.cross_entropy_from_probs(probs, labels, axis)
            assert sf.cross_entropy_from_probs(out, labels, axis) == wanted_loss
            assert sf.binary_cross_entropy(out, probs) == sf.binary_cross_entropy(probs, probs)
        assert np.array_equal(sf.log_softmax(x[::-1]), sf.log_softmax(values[::-1]))


def test_strides_beyond_32_bits(folder):
    size = max(rows for rows, _ in WIDE) * GAP
    paths = [str(sparse(folder / name, size)) for name in ("logits", "output")]
    run_function(wide_row_strides, *paths)


def many_elements() -> None:
    """More than 2**31 elements that share a row's memory."""
    classes = 1000
    rows = (1 << 31) // classes + 3
    row = np.random.default_rng(0).normal(size=classes).astype(np.float32)
    x = np.broadcast_to(row, (rows, classes))
    assert x.size > 1 << 31
    probs = np.broadcast_to(sf.softmax(row), (rows, classes))
    labels = np.full(rows, 3)
    labels[-1] = 999
    for function, given in (
        (sf.cross_entropy, x),
        (sf.nll_loss, x),
        (sf.cross_entropy_from_probs, probs),
    ):
        losses = function(given, labels, reduction="none")
        wanted = function(given[:2], np.array([3, 999]), reduction="none")
        assert (losses[:-1] == wanted[0]).all()
        assert losses[-1] == wanted[1]
    wanted = sf.cross_entropy_from_probs(probs[0], probs[0])
    assert abs(sf.cross_entropy_from_probs(probs, probs) / wanted - 1) < 1e-6
    labels[-1] = classes
    for function in (sf.cross_entropy, sf.nll_loss, sf.cross_entropy_from_probs):
        with pytest.raises(IndexError, match=str(rows - 1)):
            function(x, labels)


def long_row() -> None:
    """One row of more than 2**31 classes."""
    classes = (1 << 31) + 7
    x = np.broadcast_to(np.float32(0.5), (1, classes))
    assert abs(sf.logsumexp(x)[0] - (0.5 + np.log(classes))) < 1e-5
    loss = sf.cross_entropy(x, np.array([classes - 1]))
    assert abs(loss - np.log(classes)) < 1e-5
    with pytest.raises(IndexError, match=str(classes)):
        sf.cross_entropy(x, np.array([classes]))


def many_probabilities() -> None:
    """More than 2**31 elements of a binary loss; memory that was only read takes no space."""
    probs, target = np.zeros((2, (1 << 31) + 7), np.float16)
    probs[-1], target[-1] = 0.25, 1
    loss = sf.binary_cross_entropy(probs, target, reduction="sum")
    assert loss == np.float16(np.log(4))
    logits = probs
    logits[-1] = 8
    loss = sf.binary_cross_entropy_with_logits(logits, target)
    assert loss == np.float16(np.log(2))


@pytest.mark.parametrize(
    "case", [many_elements, many_probabilities, long_row], ids=lambda case: case.__name__
)
def test_more_than_two_to_the_31_elements(case):
    run_function(case, timeout=200)


def large_output(path: str) -> None:
    """Softmax, and a gradient by it, in place of more than 2**31 float16 numbers in a file."""
    classes = 32_768
    rows = (1 << 31) // classes + 2
    x = np.memmap(path, np.float16, "r+", shape=(rows, classes))
    x[-1, -1] = 12
    with AnonymousPeak() as peak:
        sf.softmax(x, out=x)
    wanted = sf.softmax(np.concatenate([np.zeros(classes - 1), [12]]).astype(np.float16))
    assert np.array_equal(x[-1], wanted)
    for row in range(0, rows - 1, rows // 20):
        assert (x[row] == np.float16(1 / classes)).all()
    assert peak.growth < 32 << 20
    gradient = np.arange(classes, dtype=np.float16)
    checked = [0, rows // 2, rows - 1]
    wanted = sf.softmax_backward(np.stack([gradient] * 3), x[checked])
    with AnonymousPeak() as peak:
        sf.softmax_backward(np.broadcast_to(gradient, x.shape), x, out=x)
    assert np.array_equal(x[checked], wanted)
    assert peak.growth < 32 << 20


@pytest.mark.slow
@on_linux
def test_softmax_of_more_than_two_to_the_31_elements(folder):
    size = 2 * ((1 << 31) + (1 << 16))
    if shutil.disk_usage(folder).free < size * 5 // 4:
        pytest.skip("not enough disk")
    run_function(large_output, str(sparse(folder / "x", size)), timeout=600)
