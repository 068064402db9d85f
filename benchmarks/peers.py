"""The libraries that are measured beside softce_fast, each at its best.

One class per peer, registered in ``PEERS``. A peer turns a case into variants: ways of computing it
that are worth a try (bound output or not, blocked or not). The worker process of the peer runs each
variant a few times and measures the fastest; its name is recorded. All peers use all cores, are
compiled and warmed up before any timing, and get outputs whose pages are already there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from machine import available_cores
from shapes import HALF_DTYPES, OPERATIONS, Case, faulted_output, inputs

Array = np.ndarray[Any, Any]
# work(output, rows, scratch) computes those rows and returns the sum of their losses
Work = Callable[[Array, slice, Array], float]


class UnsupportedError(Exception):
    """The peer has no way to compute this case; the message says why."""


@dataclass
class Result:
    """What a call computed, for the comparison of the peers with each other."""

    array: Array | None = None
    loss: Any = None  # a number, or one per row


@dataclass
class Variant:
    """One way to compute a case. ``run`` returns when the work is done."""

    name: str
    run: Callable[[], Any]
    collect: Callable[[Any], Result]  # from what ``run`` returned, outside the timing


def function_name(case: Case) -> str:
    """The operation without its kind of output, which is the name of a peer's method."""
    return case.operation.removesuffix("_out").removesuffix("_fresh")


def is_fresh(case: Case) -> bool:
    return OPERATIONS[case.operation].fresh


def loss_reduction(case: Case) -> str:
    """The mean, but for gradients in half types: over this many rows float16's would be 0."""
    half_gradient = case.dtype in HALF_DTYPES and "grad" in case.operation
    return "none" if half_gradient else "mean"


def expand_labels(labels: Array, case: Case) -> Array:
    return np.expand_dims(labels, case.axis)


class Peer:
    """Base class: an adaptor has one method per function, which gives the variants of a case."""

    name = ""
    title = ""
    modules: tuple[str, ...] = ()  # what must be importable
    packages: tuple[str, ...] = ()  # distributions whose versions are recorded
    counted = True  # whether it can be the best peer
    dtypes: tuple[str, ...] = ("float32", "float64")

    @classmethod
    def missing_modules(cls) -> list[str]:
        return [module for module in cls.modules if importlib.util.find_spec(module) is None]

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def variants(self, case: Case) -> list[Variant]:
        if case.dtype not in self.dtypes:
            raise UnsupportedError(f"no {case.dtype}")
        method = getattr(self, function_name(case), None)
        if method is None:
            raise UnsupportedError(f"no {function_name(case)}")
        variants: list[Variant] = method(case)
        return variants


class SoftceFast(Peer):
    """The package under test."""

    name = "softce_fast"
    title = "softce_fast"
    modules = ("softce_fast",)
    packages = ("softce_fast",)
    counted = False
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import softce_fast

        self.module = softce_fast

    def _map(self, function: Callable[..., Any], case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        axis = case.axis
        if is_fresh(case):
            return [Variant("fresh", lambda: function(logits, axis), Result)]
        out = faulted_output(case)
        return [Variant("out=", lambda: function(logits, axis, out=out), Result)]

    def softmax(self, case: Case) -> list[Variant]:
        return self._map(self.module.softmax, case)

    def log_softmax(self, case: Case) -> list[Variant]:
        return self._map(self.module.log_softmax, case)

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        return [Variant("", lambda: self.module.logsumexp(logits, case.axis), Result)]

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        function, axis = self.module.cross_entropy, case.axis
        return [Variant("", lambda: function(logits, labels, axis), lambda loss: Result(loss=loss))]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        function, axis, reduction = (
            self.module.cross_entropy_with_grad,
            case.axis,
            loss_reduction(case),
        )

        def collect(result: tuple[Any, Array]) -> Result:
            return Result(loss=result[0], array=result[1])

        if is_fresh(case):
            return [
                Variant(
                    "fresh", lambda: function(logits, labels, axis, reduction=reduction), collect
                )
            ]
        grad_out = faulted_output(case)
        return [
            Variant(
                "grad_out=",
                lambda: function(logits, labels, axis, reduction=reduction, grad_out=grad_out),
                collect,
            )
        ]


class SoftceFastFloat32(SoftceFast):
    """The package on the same shape in float32: what its half types have to beat."""

    name = "softce_fast_float32"
    title = "softce_fast in float32"
    dtypes: tuple[str, ...] = HALF_DTYPES

    def variants(self, case: Case) -> list[Variant]:
        if case.dtype not in self.dtypes:
            raise UnsupportedError("only beside half types")
        wide = Case(case.operation, case.shape, "float32", case.column, case.axis)
        # The same reduction as the half type has, so that both do the same work.
        reduction = loss_reduction(case)
        if reduction == "mean":
            variants: list[Variant] = getattr(self, function_name(case))(wide)
            return variants
        logits, labels = inputs(wide)
        options = {} if is_fresh(case) else {"grad_out": faulted_output(wide)}
        function = self.module.cross_entropy_with_grad
        return [
            Variant(
                "",
                lambda: function(logits, labels, case.axis, reduction=reduction, **options),
                lambda result: Result(loss=result[0], array=result[1]),
            )
        ]


class MemoryLimit(Peer):
    """What memory gives on the same bytes: a non-temporal copy, or a read for losses."""

    name = "memory_limit"
    title = "memory"
    counted = False
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")

    @classmethod
    def missing_modules(cls) -> list[str]:
        return [] if cls.compiler() else ["a C compiler"]

    @staticmethod
    def compiler() -> str | None:
        return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        source = Path(__file__).with_name("memory_limit.c")
        with tempfile.TemporaryDirectory() as folder:
            library_path = os.path.join(folder, "memory_limit.so")
            command = [str(self.compiler()), "-O3", "-march=native", "-shared", "-fPIC"]
            command += ["-o", library_path, str(source)]
            try:
                subprocess.run([*command, "-fopenmp"], check=True, capture_output=True)
            except subprocess.CalledProcessError:
                # A compiler without OpenMP: one thread, and the name of the variant says so.
                subprocess.run(command, check=True, capture_output=True)
                self.threads = 1
            library = ctypes.CDLL(library_path)
        self.copy, self.read = library.parallel_copy, library.parallel_read
        self.copy.restype, self.read.restype = None, ctypes.c_uint64
        pointer, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self.copy.argtypes, self.read.argtypes = (
            (pointer, pointer, size, count),
            (pointer, size, count),
        )

    def variants(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        source, size = logits.ctypes.data, logits.nbytes
        suffix = f"on {self.threads} thread{'s' if self.threads > 1 else ''}"
        if OPERATIONS[case.operation].full_arrays == 1:
            return [
                Variant(
                    f"read {suffix}",
                    lambda: self.read(source, size, self.threads),
                    lambda _: Result(),
                )
            ]
        output = faulted_output(case)

        def run() -> None:
            self.copy(output.ctypes.data, source, size, self.threads)

        return [Variant(f"copy {suffix}", run, lambda _: Result())]


class NumPy(Peer):
    """Hand-written with bound outputs; in blocks that stay in the cache, on one or all threads."""

    name = "numpy"
    title = "NumPy"
    modules = ("numpy",)
    packages = ("numpy",)
    block_bytes = 256 * 1024

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.pool = ThreadPoolExecutor(threads)

    def _schedules(self, case: Case, work: Work) -> list[tuple[str, Callable[[Array], float]]]:
        """Ways to do ``work`` on all rows of an output; each returns the sum of the losses."""
        logits, _ = inputs(case)
        length = case.shape[0]
        rows_per_block = max(self.block_bytes * length // logits.nbytes, 1)
        everything = np.empty_like(logits)
        ways: list[tuple[str, Callable[[Array], float]]] = [
            ("whole array", lambda output: work(output, slice(0, length), everything))
        ]
        if length <= rows_per_block:
            return ways

        def blocks(output: Array, first: int, last: int, scratch: Array) -> float:
            total = 0.0
            for start in range(first, last, rows_per_block):
                stop = min(start + rows_per_block, last)
                total += work(output, slice(start, stop), scratch[: stop - start])
            return total

        edges = np.linspace(0, length, self.threads + 1).astype(int).tolist()
        parts = list(itertools.pairwise(edges))
        scratches = [np.empty((rows_per_block, *case.shape[1:]), logits.dtype) for _ in parts]

        def threaded(output: Array) -> float:
            jobs = [
                self.pool.submit(blocks, output, first, last, scratch)
                for (first, last), scratch in zip(parts, scratches, strict=True)
            ]
            return sum(job.result() for job in jobs)

        return [
            *ways,
            ("blocks", lambda output: blocks(output, 0, length, scratches[0])),
            (f"blocks on {self.threads} threads", threaded),
        ]

    def _variants(self, case: Case, work: Work, *, writes: bool, has_loss: bool) -> list[Variant]:
        """``work`` under each schedule, on a bound or a fresh output."""
        logits, _ = inputs(case)
        # Work that writes no full-size array is handed the logits and leaves them alone.
        bound = faulted_output(case) if writes else logits
        fresh = writes and is_fresh(case)
        variants = []
        for name, schedule in self._schedules(case, work):

            def run(schedule: Callable[[Array], float] = schedule) -> tuple[float, Array]:
                output = np.empty_like(logits) if fresh else bound
                return schedule(output), output

            def collect(result: tuple[float, Array]) -> Result:
                loss, output = result
                return Result(
                    loss=np.float64(loss / case.rows) if has_loss else None,
                    array=output if writes else None,
                )

            variants.append(Variant(name, run, collect))
        return variants

    def softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        axis = case.axis

        def work(output: Array, rows: slice, scratch: Array) -> float:
            part, result = logits[rows], output[rows]
            np.subtract(part, part.max(axis, keepdims=True), out=result)
            np.exp(result, out=result)
            np.multiply(result, 1 / result.sum(axis, keepdims=True), out=result)
            return 0.0

        return self._variants(case, work, writes=True, has_loss=False)

    def log_softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        axis = case.axis

        def work(output: Array, rows: slice, scratch: Array) -> float:
            part, result = logits[rows], output[rows]
            np.subtract(part, part.max(axis, keepdims=True), out=result)
            np.exp(result, out=scratch)
            np.subtract(result, np.log(scratch.sum(axis, keepdims=True)), out=result)
            return 0.0

        return self._variants(case, work, writes=True, has_loss=False)

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        axis = case.axis
        totals = np.empty(tuple(np.delete(case.shape, axis)), logits.dtype)

        def work(output: Array, rows: slice, scratch: Array) -> float:
            part = logits[rows]
            largest = part.max(axis, keepdims=True)
            np.subtract(part, largest, out=scratch)
            np.exp(scratch, out=scratch)
            totals[rows] = np.log(scratch.sum(axis)) + largest.squeeze(axis)
            return 0.0

        variants = self._variants(case, work, writes=False, has_loss=False)
        for variant in variants:
            variant.collect = lambda _: Result(array=totals)
        return variants

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        axis, index = case.axis, expand_labels(labels, case)

        def work(output: Array, rows: slice, scratch: Array) -> float:
            part = logits[rows]
            largest = part.max(axis, keepdims=True)
            np.subtract(part, largest, out=scratch)
            np.exp(scratch, out=scratch)
            losses = np.log(scratch.sum(axis, keepdims=True))
            losses += largest
            losses -= np.take_along_axis(part, index[rows], axis)
            return float(losses.sum(dtype=np.float64))

        return self._variants(case, work, writes=False, has_loss=True)

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        axis, index = case.axis, expand_labels(labels, case)

        def work(output: Array, rows: slice, scratch: Array) -> float:
            part, result, at_label = logits[rows], output[rows], index[rows]
            largest = part.max(axis, keepdims=True)
            np.subtract(part, largest, out=result)
            np.exp(result, out=result)
            total = result.sum(axis, keepdims=True)
            losses = np.log(total)
            losses += largest
            losses -= np.take_along_axis(part, at_label, axis)
            np.multiply(result, 1 / (total * case.rows), out=result)
            less_one = np.take_along_axis(result, at_label, axis) - logits.dtype.type(1 / case.rows)
            np.put_along_axis(result, at_label, less_one, axis)
            return float(losses.sum(dtype=np.float64))

        return self._variants(case, work, writes=True, has_loss=True)


class SciPy(Peer):
    """scipy.special; it has no outputs to bind and no threads."""

    name = "scipy"
    title = "SciPy"
    modules = ("scipy",)
    packages = ("scipy",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import scipy.special

        self.special = scipy.special

    def softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        return [Variant("", lambda: self.special.softmax(logits, axis=case.axis), Result)]

    def log_softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        return [Variant("", lambda: self.special.log_softmax(logits, axis=case.axis), Result)]

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        return [Variant("", lambda: self.special.logsumexp(logits, axis=case.axis), Result)]

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        axis, index = case.axis, expand_labels(labels, case)

        def run() -> Any:
            at_label = np.take_along_axis(logits, index, axis)
            return np.mean(self.special.logsumexp(logits, axis=axis, keepdims=True) - at_label)

        return [Variant("", run, lambda loss: Result(loss=loss))]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        axis, index = case.axis, expand_labels(labels, case)

        def run() -> tuple[Any, Array]:
            gradient = self.special.softmax(logits, axis=axis)
            at_label = np.take_along_axis(gradient, index, axis)
            np.put_along_axis(gradient, index, at_label - 1, axis)
            gradient /= case.rows
            return -np.mean(np.log(at_label)), gradient

        return [Variant("", run, lambda result: Result(loss=result[0], array=result[1]))]


class ScikitLearn(Peer):
    """extmath.softmax and HalfMultinomialLoss on all threads with outputs of its own."""

    name = "sklearn"
    title = "scikit-learn"
    modules = ("sklearn",)
    packages = ("scikit-learn",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from sklearn._loss.loss import HalfMultinomialLoss
        from sklearn.utils.extmath import softmax

        self.extmath_softmax, self.loss_class = softmax, HalfMultinomialLoss

    def variants(self, case: Case) -> list[Variant]:
        if len(case.shape) != 2:
            raise UnsupportedError("only two dimensions")
        return super().variants(case)

    def softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        if is_fresh(case):
            return [Variant("copy=True", lambda: self.extmath_softmax(logits), Result)]
        out = faulted_output(case)

        def run() -> Array:
            np.copyto(out, logits)  # it works in place
            return self.extmath_softmax(out, copy=False)  # type: ignore[no-any-return]

        return [Variant("copy=False", run, Result)]

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        loss = self.loss_class(n_classes=case.classes)
        y_true = labels.astype(logits.dtype)
        loss_out = np.zeros(case.rows, logits.dtype)

        def run() -> Any:
            loss.loss(y_true, logits, loss_out=loss_out, n_threads=self.threads)
            return loss_out.mean()

        return [Variant("loss", run, lambda result: Result(loss=result))]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        loss = self.loss_class(n_classes=case.classes)
        y_true = labels.astype(logits.dtype)
        bound = None if is_fresh(case) else faulted_output(case)
        loss_out = np.zeros(case.rows, logits.dtype)

        def run() -> tuple[Any, Array]:
            _, gradient = loss.loss_gradient(
                y_true, logits, loss_out=loss_out, gradient_out=bound, n_threads=self.threads
            )
            return loss_out.mean(), gradient

        # Its gradient is that of the sum; the division is left out of its time.
        return [Variant("loss_gradient", run, lambda r: Result(loss=r[0], array=r[1] / case.rows))]


class Torch(Peer):
    """PyTorch, op by op, with out= where it has one."""

    name = "torch"
    title = "PyTorch"
    modules = ("torch",)
    packages = ("torch",)
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def tensor(self, array: Array) -> Any:
        """A tensor on the array's memory."""
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def array(self, tensor: Any) -> Array:
        values: Array = tensor.detach().float().numpy()
        return tensor.detach().numpy() if tensor.dtype == self.torch.float64 else values

    def as_result(self, tensor: Any) -> Result:
        return Result(array=self.array(tensor))

    def as_loss(self, pair: tuple[Any, Any]) -> Result:
        loss, gradient = pair
        return Result(
            loss=self.array(loss), array=None if gradient is None else self.array(gradient)
        )

    def softmax(self, case: Case) -> list[Variant]:
        return self._map(self.torch.softmax, case)

    def log_softmax(self, case: Case) -> list[Variant]:
        return self._map(self.torch.log_softmax, case)

    def _map(self, function: Callable[..., Any], case: Case) -> list[Variant]:
        logits = self.tensor(inputs(case)[0])
        fresh = Variant("fresh", lambda: function(logits, case.axis), self.as_result)
        if is_fresh(case):
            return [fresh]
        out = self.tensor(faulted_output(case))
        return [
            Variant("out=", lambda: function(logits, case.axis, out=out), self.as_result),
            fresh,
        ]

    def logsumexp(self, case: Case) -> list[Variant]:
        logits = self.tensor(inputs(case)[0])
        return [Variant("", lambda: self.torch.logsumexp(logits, case.axis), self.as_result)]

    def _class_axis_second(self, case: Case) -> tuple[Any, Any]:
        """Logits and labels as F.cross_entropy takes them: the classes are axis 1."""
        logits, labels = inputs(case)
        if case.axis % len(case.shape) != 1:
            raise UnsupportedError("class axis must be axis 1")
        return self.tensor(logits), self.tensor(labels)

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = self._class_axis_second(case)
        function = self.torch.nn.functional.cross_entropy
        return [Variant("", lambda: (function(logits, labels), None), self.as_loss)]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = self._class_axis_second(case)
        logits = logits.detach().requires_grad_(True)
        function = self.torch.nn.functional.cross_entropy
        reduction = loss_reduction(case)
        ones = self.torch.ones(labels.shape, dtype=logits.dtype) if reduction == "none" else None

        def backward() -> tuple[Any, Any]:
            logits.grad = None
            loss = function(logits, labels, reduction=reduction)
            loss.backward(ones)  # type: ignore[no-untyped-call]
            gradient, logits.grad = logits.grad, None
            return loss, gradient

        def autograd() -> tuple[Any, Any]:
            loss = function(logits, labels, reduction=reduction)
            (gradient,) = self.torch.autograd.grad(loss, logits, ones)
            return loss, gradient

        return [
            Variant("backward", backward, self.as_loss),
            Variant("autograd.grad", autograd, self.as_loss),
        ]


class TorchCompile(Torch):
    """torch.compile for fixed shapes."""

    name = "torch_compile"
    title = "torch.compile"
    packages = ("torch",)

    @classmethod
    def missing_modules(cls) -> list[str]:
        missing = super().missing_modules()
        # It builds C++ with the system compiler.
        return missing or ([] if shutil.which("g++") or shutil.which("clang++") else ["g++"])

    def variants(self, case: Case) -> list[Variant]:
        self.torch._dynamo.reset()  # forgets the shape before, so that none is made dynamic
        return super().variants(case)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = self.torch.compile(function, dynamic=False, fullgraph=True)
        return compiled

    def _map(self, function: Callable[..., Any], case: Case) -> list[Variant]:
        logits, axis = self.tensor(inputs(case)[0]), case.axis
        compiled = self._compiled(lambda values: function(values, axis))
        fresh = Variant("fresh", lambda: compiled(logits), self.as_result)
        if is_fresh(case):
            return [fresh]
        out = self.tensor(faulted_output(case))
        bound = self._compiled(lambda values, result: result.copy_(function(values, axis)))

        def run() -> Any:
            bound(logits, out)
            return out

        return [Variant("bound", run, self.as_result), fresh]

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, axis = self.tensor(inputs(case)[0]), case.axis
        compiled = self._compiled(lambda values: self.torch.logsumexp(values, axis))
        return [Variant("", lambda: compiled(logits), self.as_result)]

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = self._class_axis_second(case)
        compiled = self._compiled(self.torch.nn.functional.cross_entropy)
        return [Variant("", lambda: (compiled(logits, labels), None), self.as_loss)]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = self._class_axis_second(case)
        torch, reduction = self.torch, loss_reduction(case)
        cross_entropy = torch.nn.functional.cross_entropy
        bound = None if is_fresh(case) else self.tensor(faulted_output(case))

        # One graph for both: the loss and the gradient can share a loop over the row.
        def both(values: Any) -> tuple[Any, Any]:
            def total(values: Any) -> tuple[Any, Any]:
                loss = cross_entropy(values, labels, reduction=reduction)
                return loss.sum(), loss

            gradient, (_, loss) = torch.func.grad_and_value(total, has_aux=True)(values)
            return loss, gradient

        def into(values: Any, result: Any) -> Any:
            loss, gradient = both(values)
            result.copy_(gradient)
            return loss

        one_graph = self._compiled(both)
        variants = [Variant("one graph", lambda: one_graph(logits), self.as_loss)]
        if bound is not None:
            bound_graph = self._compiled(into)
            variants.append(
                Variant(
                    "one graph, bound", lambda: (bound_graph(logits, bound), bound), self.as_loss
                )
            )

        leaf = logits.detach().requires_grad_(True)
        ones = torch.ones(labels.shape, dtype=logits.dtype) if reduction == "none" else None
        forward = self._compiled(lambda values: cross_entropy(values, labels, reduction=reduction))

        def backward() -> tuple[Any, Any]:
            leaf.grad = None
            loss = forward(leaf)
            loss.backward(ones)
            gradient, leaf.grad = leaf.grad, None
            return loss, gradient

        return [*variants, Variant("backward", backward, self.as_loss)]


class Jax(Peer):
    """jax.jit; outputs are bound by donating the buffer of the call before."""

    name = "jax"
    title = "JAX"
    modules = ("jax",)
    packages = ("jax", "jaxlib")
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
        self.jax = jax

    def _arrays(self, case: Case) -> tuple[Any, Any]:
        logits, labels = inputs(case)
        return self.jax.numpy.asarray(logits), self.jax.numpy.asarray(labels.astype(np.int32))

    def _variants(
        self,
        case: Case,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        collect: Callable[[Any], Result],
        output: Callable[[Any], Any] | None,
    ) -> list[Variant]:
        """``output`` picks the full-size array of a result, which the next call may overwrite."""
        jax = self.jax
        compiled = jax.jit(function)
        variants = [Variant("fresh", lambda: jax.block_until_ready(compiled(*arguments)), collect)]
        if output is not None and not is_fresh(case):
            donating = jax.jit(
                lambda previous, *arguments: function(*arguments),
                donate_argnums=0,
                keep_unused=True,
            )
            previous = [jax.numpy.ones_like(arguments[0])]

            def run() -> Any:
                result = jax.block_until_ready(donating(previous[0], *arguments))
                previous[0] = output(result)
                return result

            variants.append(Variant("donated buffer", run, collect))
        return variants

    @staticmethod
    def _as_array(result: Any) -> Result:
        return Result(array=np.asarray(result))

    def softmax(self, case: Case) -> list[Variant]:
        logits, _ = self._arrays(case)
        return self._variants(
            case,
            lambda values: self.jax.nn.softmax(values, axis=case.axis),
            (logits,),
            self._as_array,
            lambda result: result,
        )

    def log_softmax(self, case: Case) -> list[Variant]:
        logits, _ = self._arrays(case)
        return self._variants(
            case,
            lambda values: self.jax.nn.log_softmax(values, axis=case.axis),
            (logits,),
            self._as_array,
            lambda result: result,
        )

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, _ = self._arrays(case)
        return self._variants(
            case,
            lambda values: self.jax.nn.logsumexp(values, axis=case.axis),
            (logits,),
            self._as_array,
            None,
        )

    def _losses(self, case: Case) -> Callable[[Any, Any], Any]:
        numpy, axis = self.jax.numpy, case.axis

        def losses(values: Any, labels: Any) -> Any:
            at_label = numpy.take_along_axis(values, numpy.expand_dims(labels, axis), axis)
            return self.jax.nn.logsumexp(values, axis=axis) - at_label.squeeze(axis)

        return losses

    def cross_entropy(self, case: Case) -> list[Variant]:
        losses = self._losses(case)
        return self._variants(
            case,
            lambda values, labels: losses(values, labels).mean(),
            self._arrays(case),
            lambda loss: Result(loss=np.asarray(loss)),
            None,
        )

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        losses, mean = self._losses(case), loss_reduction(case) == "mean"

        def reduced(values: Any, labels: Any) -> tuple[Any, Any]:
            rows = losses(values, labels)
            return (rows.mean(), rows.mean()) if mean else (rows.sum(), rows)

        differentiated = self.jax.value_and_grad(reduced, has_aux=True)

        def both(values: Any, labels: Any) -> tuple[Any, Any]:
            (_, loss), gradient = differentiated(values, labels)
            return loss, gradient

        return self._variants(
            case,
            both,
            self._arrays(case),
            lambda pair: Result(loss=np.asarray(pair[0]), array=np.asarray(pair[1])),
            lambda pair: pair[1],
        )


class OnnxRuntime(Peer):
    """ONNX Runtime with inputs and outputs bound."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    modules = ("onnx", "onnxruntime")
    packages = ("onnx", "onnxruntime")
    opset = 18

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import onnx
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.onnx, self.runtime = onnx, onnxruntime

    def _element(self, dtype: Any) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _session(
        self,
        nodes: list[Any],
        feeds: dict[str, Array],
        outputs: dict[str, tuple[int, ...]],
        dtype: Any,
        constants: dict[str, Array] | None = None,
    ) -> Any:
        helper = self.onnx.helper
        graph = helper.make_graph(
            nodes,
            "benchmark",
            [
                helper.make_tensor_value_info(name, self._element(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [
                helper.make_tensor_value_info(name, self._element(dtype), shape)
                for name, shape in outputs.items()
            ],
            [
                self.onnx.numpy_helper.from_array(array, name)
                for name, array in (constants or {}).items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = min(model.ir_version, 10)  # the newest that every runtime here reads
        self.onnx.checker.check_model(model)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        try:
            return self.runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise UnsupportedError(f"no kernel for {np.dtype(dtype).name}") from error
            raise

    def _variants(
        self,
        case: Case,
        nodes: list[Any],
        feeds: dict[str, Array],
        outputs: dict[str, tuple[int, ...]],
        collect: Callable[[list[Array]], Result],
        constants: dict[str, Array] | None = None,
    ) -> list[Variant]:
        dtype = feeds["logits"].dtype
        session = self._session(nodes, feeds, outputs, dtype, constants)
        value = self.runtime.OrtValue.ortvalue_from_numpy
        bound_inputs = {name: value(array) for name, array in feeds.items()}

        def binding() -> Any:
            result = session.io_binding()
            for name, bound in bound_inputs.items():
                result.bind_ortvalue_input(name, bound)
            return result

        fresh = binding()
        for name in outputs:
            fresh.bind_output(name, "cpu")

        def run_fresh() -> Any:
            session.run_with_iobinding(fresh)
            return fresh

        def collect_fresh(result: Any) -> Result:
            return collect(result.copy_outputs_to_cpu())

        variants = [
            Variant("fresh, bound to the device", run_fresh, collect_fresh),
            Variant("fresh, run", lambda: session.run(None, feeds), collect),
        ]
        if not is_fresh(case):
            preallocated = binding()
            values = []
            for name, shape in outputs.items():
                array = np.ones(shape, dtype)
                values.append(value(array))
                preallocated.bind_ortvalue_output(name, values[-1])
            variants.insert(
                0,
                Variant(
                    "preallocated",
                    lambda: session.run_with_iobinding(preallocated),
                    lambda _: collect([bound.numpy() for bound in values]),
                ),
            )
        return variants

    def _map(self, operator: str, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        node = self.onnx.helper.make_node(operator, ["logits"], ["result"], axis=case.axis)
        return self._variants(
            case,
            [node],
            {"logits": logits},
            {"result": case.shape},
            lambda arrays: Result(array=arrays[0]),
        )

    def softmax(self, case: Case) -> list[Variant]:
        return self._map("Softmax", case)

    def log_softmax(self, case: Case) -> list[Variant]:
        return self._map("LogSoftmax", case)

    def logsumexp(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        node = self.onnx.helper.make_node(
            "ReduceLogSumExp", ["logits", "axes"], ["result"], keepdims=0
        )
        return self._variants(
            case,
            [node],
            {"logits": logits},
            {"result": labels.shape},
            lambda arrays: Result(array=arrays[0]),
            {"axes": np.array([case.axis], np.int64)},
        )

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        node = self.onnx.helper.make_node
        # Gathering logits instead of log-probabilities saves a full-size array.
        nodes = [
            node("ReduceLogSumExp", ["logits", "axes"], ["total"], keepdims=1),
            node("GatherElements", ["logits", "labels"], ["at_label"], axis=case.axis),
            node("Sub", ["total", "at_label"], ["losses"]),
            node("ReduceMean", ["losses"], ["loss"], keepdims=0),
        ]
        reduced = self._variants(
            case,
            nodes,
            {"logits": logits, "labels": expand_labels(labels, case)},
            {"loss": ()},
            lambda arrays: Result(loss=arrays[0]),
            {"axes": np.array([case.axis], np.int64)},
        )
        nodes = [
            node("LogSoftmax", ["logits"], ["log_probabilities"], axis=case.axis),
            node("GatherElements", ["log_probabilities", "labels"], ["at_label"], axis=case.axis),
            node("ReduceMean", ["at_label"], ["mean"], keepdims=0),
            node("Neg", ["mean"], ["loss"]),
        ]
        whole = self._variants(
            case,
            nodes,
            {"logits": logits, "labels": expand_labels(labels, case)},
            {"loss": ()},
            lambda arrays: Result(loss=arrays[0]),
        )
        for variant in whole:
            variant.name = f"LogSoftmax, {variant.name}"
        return [reduced[0], whole[0]]

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, labels = inputs(case)
        node = self.onnx.helper.make_node
        axis = case.axis
        nodes = [
            node("Softmax", ["logits"], ["probabilities"], axis=axis),
            node("GatherElements", ["probabilities", "labels"], ["at_label"], axis=axis),
            node("Log", ["at_label"], ["logarithms"]),
            node("ReduceMean", ["logarithms"], ["mean"], keepdims=0),
            node("Neg", ["mean"], ["loss"]),
            node("Mul", ["probabilities", "share"], ["scaled"]),
            node(
                "ScatterElements",
                ["scaled", "labels", "minus_share"],
                ["gradient"],
                axis=axis,
                reduction="add",
            ),
        ]
        index = expand_labels(labels, case)
        share = logits.dtype.type(1 / case.rows)
        return self._variants(
            case,
            nodes,
            {"logits": logits, "labels": index},
            {"loss": (), "gradient": case.shape},
            lambda arrays: Result(loss=arrays[0], array=arrays[1]),
            {"share": np.array(share), "minus_share": np.full(index.shape, -share)},
        )


class Numba(Peer):
    """Fused prange loops with fastmath; the loops are in numba_kernels."""

    name = "numba"
    title = "Numba"
    modules = ("numba",)
    packages = ("numba",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import numba

        import numba_kernels

        numba.set_num_threads(min(threads, numba.get_num_threads()))
        self.kernels = {
            dtype: numba_kernels.build(self._exponential(numba_kernels, dtype))
            for dtype in self.dtypes
        }

    def _exponential(self, module: Any, dtype: str) -> Any:
        return np.exp

    def _layouts(self, case: Case) -> list[tuple[str, Callable[[Array], Array]]]:
        """Kernel kinds that fit the case, with the view of a full-size array that each takes.

        Labels and other arrays without the class axis lose it in the same view.
        """
        if case.axis != -1:
            inner = math.prod(case.shape[case.axis + 1 :])
            outer = math.prod(case.shape[: case.axis])
            return [("columns", lambda array: array.reshape(outer, case.classes, inner))]
        layouts: list[tuple[str, Callable[[Array], Array]]] = [("rows", lambda array: array)]
        if case.rows < self.threads:
            layouts.append(("flat", lambda array: array))
        if case.classes <= 64 and case.rows >= 4096:
            # A block of rows seen with the classes first, so that the loops run across the rows.
            block = max(width for width in range(1, 513) if case.rows % width == 0)
            layouts.append(
                ("columns", lambda array: array.reshape(-1, block, case.classes).transpose(0, 2, 1))
            )
        return layouts

    def _labels(self, case: Case, logits: Array) -> Array:
        """Labels without the class axis, in the shape that belongs to that view of the logits."""
        _, labels = inputs(case)
        return labels.reshape((-1,) if logits.ndim == 2 else (logits.shape[0], logits.shape[2]))

    def softmax(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        bound = None if is_fresh(case) else faulted_output(case)
        variants = []
        for layout, view in self._layouts(case):
            kernel = getattr(self.kernels[case.dtype], f"softmax_{layout}")
            seen = view(logits)

            def run(
                kernel: Any = kernel, view: Callable[[Array], Array] = view, seen: Array = seen
            ) -> Array:
                out = np.empty_like(logits) if bound is None else bound
                kernel(seen, view(out))
                return out

            variants.append(Variant(layout, run, Result))
        return variants

    def _by_row(self, name: str, case: Case, output: Array) -> list[Variant]:
        if len(case.shape) != 2:
            raise UnsupportedError("only written for rows")
        logits, _ = inputs(case)
        kernel = getattr(self.kernels[case.dtype], f"{name}_rows")

        def run() -> Array:
            kernel(logits, output)
            return output

        return [Variant("rows", run, Result)]

    def log_softmax(self, case: Case) -> list[Variant]:
        return self._by_row("log_softmax", case, faulted_output(case))

    def logsumexp(self, case: Case) -> list[Variant]:
        return self._by_row("logsumexp", case, np.ones(case.rows, case.dtype))

    def cross_entropy(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        variants = []
        for layout, view in self._layouts(case):
            kernel = getattr(self.kernels[case.dtype], f"loss_{layout}")
            seen = view(logits)
            labels = self._labels(case, seen)

            def run(kernel: Any = kernel, seen: Array = seen, labels: Array = labels) -> Any:
                return kernel(seen, labels)

            variants.append(Variant(layout, run, lambda loss: Result(loss=loss)))
        return variants

    def cross_entropy_with_grad(self, case: Case) -> list[Variant]:
        logits, _ = inputs(case)
        bound = None if is_fresh(case) else faulted_output(case)
        variants = []
        for layout, view in self._layouts(case):
            kernel = getattr(self.kernels[case.dtype], f"gradient_{layout}")
            seen = view(logits)
            labels = self._labels(case, seen)

            def run(
                kernel: Any = kernel,
                view: Callable[[Array], Array] = view,
                seen: Array = seen,
                labels: Array = labels,
            ) -> tuple[Any, Array]:
                gradient = np.empty_like(logits) if bound is None else bound
                return kernel(seen, labels, view(gradient)), gradient

            variants.append(
                Variant(layout, run, lambda result: Result(loss=result[0], array=result[1]))
            )
        return variants


class NumbaPolynomial(Numba):
    """Numba with an exponential written out by hand, so that its loops vectorise.

    The Numba of the package index has no vector exponential; this is how far its users can get by
    writing their own.
    """

    name = "numba_polynomial"
    title = "Numba, own exp"

    def _exponential(self, module: Any, dtype: str) -> Any:
        return module.polynomial(dtype)


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        SoftceFast,
        SoftceFastFloat32,
        MemoryLimit,
        NumPy,
        SciPy,
        ScikitLearn,
        Torch,
        TorchCompile,
        Jax,
        OnnxRuntime,
        Numba,
        NumbaPolynomial,
    )
}
PACKAGES = tuple(sorted({package for peer in PEERS.values() for package in peer.packages}))


def available_peers(names: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Names of the peers that can run here, and for the others what they lack."""
    runnable, skipped = [], {}
    for name, peer in PEERS.items():
        if names is not None and name not in names:
            continue
        missing = peer.missing_modules()
        if missing:
            skipped[name] = f"{', '.join(missing)} not installed"
        else:
            runnable.append(name)
    return runnable, skipped


def make_peer(name: str, threads: int | None = None) -> Peer:
    return PEERS[name](threads or available_cores())
