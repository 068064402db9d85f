"""The libraries that are measured beside softce_fast, each at its best.

``PEERS`` is the table of them. A peer's function turns a problem into ways of computing it that are
worth a try (bound output or not, blocked or not), by name; the fastest is measured. A way returns
the loss, the array, or both, as arrays of its library; ``Peer.as_numpy`` converts them. All peers
use all cores, are compiled and warmed up before any timing, and get outputs whose pages are there.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import softce_fast
from machine import available_cores
from shapes import HALF_DTYPES, OPERATIONS, Array, Case, Problem
from softce_fast import _textbook
from timing import Call

Ways = dict[str, Call]


class UnsupportedError(Exception):
    """The peer has no way to compute this case; the message says why."""


def call(module: ModuleType, problem: Problem) -> Call:
    """The problem's call of softce_fast, or of a module with the same functions."""
    case = problem.case
    options: dict[str, Any] = {}
    if case.operation.endswith("_out"):
        options["grad_out" if case.takes_labels else "out"] = problem.output()
    if case.takes_labels and problem.reduction != "mean":
        options["reduction"] = problem.reduction
    arguments = (problem.logits, problem.labels) if case.takes_labels else (problem.logits,)
    return partial(getattr(module, case.function), *arguments, case.axis, **options)


def ours(problem: Problem, module: ModuleType = softce_fast) -> Ways:
    return {"": call(module, problem)}


def ours_float32(problem: Problem) -> Ways:
    """On the same shape in float32 and with the same reduction: what half types have to beat."""
    wide = Problem.of(replace(problem.case, dtype="float32"))
    return ours(replace(wide, reduction=problem.reduction))


COMPILERS = ("cc", "gcc", "clang")


@functools.cache
def memory_library() -> ctypes.CDLL:
    compiler = next(filter(shutil.which, COMPILERS))
    with tempfile.TemporaryDirectory() as folder:
        path, source = f"{folder}/memory_limit.so", str(Path(__file__).with_name("memory_limit.c"))
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", path, source]
        if subprocess.run([compiler, *flags], check=False, capture_output=True).returncode:
            raise UnsupportedError(f"no OpenMP in {compiler}")
        library = ctypes.CDLL(path)
    pointer, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.parallel_copy.argtypes = (pointer, pointer, size, count)
    library.parallel_read.argtypes = (pointer, size, count)
    return library


def memory_limit(problem: Problem) -> Ways:
    """What memory gives on the same bytes: a non-temporal copy, or a read for losses."""
    library, threads, source = memory_library(), available_cores(), problem.logits
    work = (source.ctypes.data, source.nbytes, threads)
    suffix = f"on {threads} thread{'s' if threads > 1 else ''}"
    if OPERATIONS[problem.case.operation].full_arrays == 1:
        return {f"read {suffix}": partial(library.parallel_read, *work)}
    output = np.ones_like(source)
    return {f"copy {suffix}": lambda: library.parallel_copy(output.ctypes.data, *work)}


BLOCK_BYTES = 256 * 1024
pool = functools.cache(ThreadPoolExecutor)


def numpy(problem: Problem) -> Ways:
    """Hand-written with bound outputs; in blocks that stay in the cache, on one or all threads."""
    case, logits, axis, index = problem.case, problem.logits, problem.case.axis, problem.index
    function, length, threads = case.function, case.shape[0], available_cores()
    writes = function not in ("logsumexp", "cross_entropy")
    bound = problem.output() if writes else None
    sums = np.empty_like(logits, shape=problem.labels.shape)

    def work(rows: slice, output: Array, scratch: Array) -> float:
        """Compute those rows; return the sum of their losses."""
        part, scratch = logits[rows], scratch[: rows.stop - rows.start]
        result = output[rows] if writes else scratch
        largest = part.max(axis, keepdims=True)
        np.subtract(part, largest, out=result)
        exponentials = np.exp(result, out=scratch if function == "log_softmax" else result)
        total = exponentials.sum(axis, keepdims=True)
        if function == "softmax":
            np.multiply(result, 1 / total, out=result)
        elif function == "log_softmax":
            np.subtract(result, np.log(total), out=result)
        elif function == "logsumexp":
            sums[rows] = (np.log(total) + largest).squeeze(axis)
        elif function == "cross_entropy_with_grad":
            np.multiply(result, 1 / (total * case.rows), out=result)
            at_label = np.take_along_axis(result, index[rows], axis)
            at_label -= result.dtype.type(1 / case.rows)
            np.put_along_axis(result, index[rows], at_label, axis)
        if not case.takes_labels:
            return 0.0
        losses = np.log(total)
        losses += largest
        losses -= np.take_along_axis(part, index[rows], axis)
        return float(losses.sum(dtype=np.float64))

    def blocks(threads: int, step: int) -> Callable[[Array], float]:
        edges = np.linspace(0, length, threads + 1).astype(int).tolist()
        scratches = [np.empty_like(logits[:step]) for _ in range(threads)]

        def share(first: int, last: int, scratch: Array, output: Any) -> float:
            starts = range(first, last, step)
            return sum(work(slice(s, min(s + step, last)), output, scratch) for s in starts)

        def schedule(output: Any) -> float:
            each: Any = pool(threads).map if threads > 1 else map
            return sum(each(share, edges[:-1], edges[1:], scratches, [output] * threads))

        return schedule

    def run(schedule: Callable[[Any], float]) -> Any:
        output = np.empty_like(logits) if writes and bound is None else bound
        loss = schedule(output) / case.rows
        if case.takes_labels:
            return (loss, output) if writes else loss
        return output if writes else sums

    whole = partial(work, slice(0, length), scratch=np.empty_like(logits))
    ways: Ways = {"whole array": partial(run, whole)}
    step = max(BLOCK_BYTES * length // logits.nbytes, 1)
    if length > step:
        ways["blocks"] = partial(run, blocks(1, step))
        ways[f"blocks on {threads} threads"] = partial(run, blocks(threads, step))
    return ways


def scipy(problem: Problem) -> Ways:
    """scipy.special; it has no outputs to bind and no threads."""
    from scipy import special

    case, logits, index, axis = problem.case, problem.logits, problem.index, problem.case.axis
    reduced = np.mean if problem.reduction == "mean" else partial(np.squeeze, axis=axis)

    def cross_entropy() -> Any:
        total = special.logsumexp(logits, axis=axis, keepdims=True)
        return reduced(total - np.take_along_axis(logits, index, axis))

    def cross_entropy_with_grad() -> Any:
        gradient = special.softmax(logits, axis=axis)
        at_label = np.take_along_axis(gradient, index, axis)
        np.put_along_axis(gradient, index, at_label - 1, axis)
        if problem.reduction == "mean":
            gradient /= case.rows
        return reduced(-np.log(at_label)), gradient

    if case.takes_labels:
        return {"": cross_entropy_with_grad if "grad" in case.function else cross_entropy}
    return {"": partial(getattr(special, case.function), logits, axis=axis)}


def sklearn(problem: Problem) -> Ways:
    """extmath.softmax and HalfMultinomialLoss on all threads with outputs of its own."""
    from sklearn._loss.loss import HalfMultinomialLoss
    from sklearn.utils.extmath import softmax

    logits, case = problem.logits, problem.case
    bound: Any = problem.output()
    if logits.ndim != 2:
        raise UnsupportedError("only two dimensions")
    loss = HalfMultinomialLoss(n_classes=case.classes)
    loss_out = np.zeros(case.rows, logits.dtype)
    arguments = {
        "y_true": problem.labels.astype(logits.dtype), "raw_prediction": logits,
        "loss_out": loss_out, "n_threads": available_cores(),
    }  # fmt: skip

    def softmax_in_place() -> Any:
        np.copyto(bound, logits)
        return softmax(bound, copy=False)

    def cross_entropy() -> Any:
        loss.loss(**arguments)
        return loss_out.mean()

    def cross_entropy_with_grad() -> Any:
        _, gradient = loss.loss_gradient(**arguments, gradient_out=bound)
        return loss_out.mean(), gradient, case.rows

    ways: dict[str, Ways] = {
        "softmax_out": {"copy=False": softmax_in_place},
        "softmax_fresh": {"copy=True": partial(softmax, logits)},
        "cross_entropy": {"loss": cross_entropy},
        "cross_entropy_with_grad_out": {"loss_gradient": cross_entropy_with_grad},
        "cross_entropy_with_grad_fresh": {"loss_gradient": cross_entropy_with_grad},
    }
    if case.operation not in ways:
        raise UnsupportedError(f"no {case.function}")
    return ways[case.operation]


def sklearn_results(result: Any) -> Any:
    """Its gradient is that of the sum; the division is left out of its time."""
    return (result[0], result[1] / result[2]) if isinstance(result, tuple) else result


def to_tensor(array: Array) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_tensor(tensor: Any) -> Array:
    tensor = tensor.detach()
    return tensor.numpy() if tensor.dtype.itemsize > 2 else tensor.float().numpy()


def torch(problem: Problem, compiles: bool = False) -> Ways:
    """PyTorch, op by op with out= where it has one; or torch.compile for fixed shapes."""
    import torch

    torch.set_num_threads(available_cores())
    if compiles:
        torch._dynamo.reset()  # forgets the shape before, so that none is made dynamic
    compiled = partial(torch.compile, dynamic=False, fullgraph=True)
    case, axis, array = problem.case, problem.case.axis, problem.output()
    logits, labels = to_tensor(problem.logits), torch.from_numpy(problem.labels)
    out = None if array is None else to_tensor(array)
    if not case.takes_labels:
        function = getattr(torch, case.function)
        into = partial(function, dim=axis)
        fresh: Call = partial(compiled(lambda values: into(values)) if compiles else into, logits)
        if out is None or case.function == "logsumexp":
            return {"fresh": fresh}
        bound = compiled(lambda values, out: out.copy_(into(values))) if compiles else into
        return {"out=": partial(bound, logits, out=out), "fresh": fresh}

    if axis % logits.ndim != 1:
        raise UnsupportedError("class axis must be axis 1")
    loss_of = partial(torch.nn.functional.cross_entropy, reduction=problem.reduction)
    forward = compiled(lambda *arguments: loss_of(*arguments)) if compiles else loss_of
    if case.function == "cross_entropy":
        return {"": partial(forward, logits, labels)}
    leaf = logits.detach().requires_grad_()
    # The gradient of a sum of losses.
    ones = None if problem.reduction == "mean" else torch.ones_like(labels, dtype=logits.dtype)

    def backward() -> Any:
        leaf.grad = None
        loss = forward(leaf, labels)
        loss.backward(ones)
        return loss, leaf.grad

    def autograd() -> Any:
        loss = forward(leaf, labels)
        return loss, torch.autograd.grad(loss, leaf, ones)[0]

    if not compiles:
        return {"backward": backward, "autograd.grad": autograd}

    # One graph for both: the loss and the gradient can share a loop over the row.
    def total(values: Any) -> tuple[Any, Any]:
        loss = loss_of(values, labels)
        return loss.sum(), loss

    def both(values: Any) -> tuple[Any, Any]:
        gradient, (_, loss) = torch.func.grad_and_value(total, has_aux=True)(values)
        return loss, gradient

    def both_into(values: Any, result: Any) -> tuple[Any, Any]:
        loss, gradient = both(values)
        return loss, result.copy_(gradient)

    ways: Ways = {"backward": backward, "one graph": partial(compiled(both), logits)}
    if out is not None:
        ways["one graph, bound"] = partial(compiled(both_into), logits, out)
    return ways


def jax(problem: Problem) -> Ways:
    """jax.jit; outputs are bound by donating the buffer of the call before."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    case, axis, mean = problem.case, problem.case.axis, problem.reduction == "mean"

    def reduced(values: Any, labels: Any) -> tuple[Any, Any]:
        at_label = jax.numpy.take_along_axis(values, jax.numpy.expand_dims(labels, axis), axis)
        rows = jax.nn.logsumexp(values, axis=axis) - at_label.squeeze(axis)
        return (rows.mean(), rows.mean()) if mean else (rows.sum(), rows)

    def cross_entropy(values: Any, labels: Any) -> Any:
        return reduced(values, labels)[1]

    def cross_entropy_with_grad(values: Any, labels: Any) -> tuple[Any, Any]:
        (_, loss), gradient = jax.value_and_grad(reduced, has_aux=True)(values, labels)
        return loss, gradient

    function: Callable[..., Any]
    arguments = [jax.numpy.asarray(problem.logits)]
    if case.takes_labels:
        function = cross_entropy_with_grad if "grad" in case.function else cross_entropy
        arguments.append(jax.numpy.asarray(problem.labels.astype(np.int32)))
    else:
        function = partial(getattr(jax.nn, case.function), axis=axis)
    compiled = jax.jit(function)
    ways = {"fresh": lambda: jax.block_until_ready(compiled(*arguments))}
    if case.operation.endswith("_out"):
        donating = jax.jit(
            lambda previous, *arguments: function(*arguments), donate_argnums=0, keep_unused=True
        )
        previous = [jax.numpy.ones_like(arguments[0])]

        def donated() -> Any:
            result = jax.block_until_ready(donating(previous[0], *arguments))
            previous[0] = result[1] if case.takes_labels else result
            return result

        ways["donated buffer"] = donated
    return ways


GRAPHS = {
    "softmax": {"": "array = Softmax <axis={axis}> (logits)"},
    "log_softmax": {"": "array = LogSoftmax <axis={axis}> (logits)"},
    "logsumexp": {"": "array = ReduceLogSumExp <keepdims=0> (logits, axes)"},
    "cross_entropy": {
        # Gathering logits instead of log-probabilities saves a full-size array.
        "": """total = ReduceLogSumExp <keepdims=1> (logits, axes)
            at_label = GatherElements <axis={axis}> (logits, labels)
            losses = Sub (total, at_label)
            loss = ReduceMean <keepdims=0> (losses)""",
        "LogSoftmax, ": """log_probabilities = LogSoftmax <axis={axis}> (logits)
            at_label = GatherElements <axis={axis}> (log_probabilities, labels)
            mean = ReduceMean <keepdims=0> (at_label)
            loss = Neg (mean)""",
    },
    "cross_entropy_with_grad": {
        "": """probabilities = Softmax <axis={axis}> (logits)
            at_label = GatherElements <axis={axis}> (probabilities, labels)
            logarithms = Log (at_label)
            mean = ReduceMean <keepdims=0> (logarithms)
            loss = Neg (mean)
            scaled = Mul (probabilities, share)
            array = ScatterElements <axis={axis}, reduction="add"> (scaled, labels, minus_share)"""
    },
}


def onnx_session(problem: Problem, nodes: str, outputs: dict[str, tuple[int, ...]]) -> Any:
    import onnx
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    case, kind = problem.case, {"float32": "float", "float64": "double"}[problem.case.dtype]

    def declared(kind: str, name: str, shape: tuple[int, ...]) -> str:
        return f"{kind}[{','.join(map(str, shape))}] {name}" if shape else f"{kind} {name}"

    inputs = declared(kind, "logits", case.shape)
    if case.takes_labels:
        inputs += ", " + declared("int64", "labels", problem.index.shape)
    results = ", ".join(declared(kind, name, shape) for name, shape in outputs.items())
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>'  # the newest that every runtime here reads
        f"benchmark ({inputs}) => ({results}) {{ {nodes.format(axis=case.axis)} }}"
    )
    share = problem.logits.dtype.type(1 / case.rows)
    constants = {
        "axes": np.array([case.axis]),
        "share": np.array(share),
        "minus_share": np.full(problem.index.shape, -share),
    }
    used = {name: array for name, array in constants.items() if name in nodes}
    model.graph.initializer.extend(map(onnx.numpy_helper.from_array, used.values(), used))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise UnsupportedError(f"no kernel for {case.dtype}") from error
        raise


def onnxruntime(problem: Problem) -> Ways:
    """ONNX Runtime with inputs and outputs bound."""
    from onnxruntime import OrtValue

    case = problem.case
    feeds = {"logits": problem.logits}
    outputs: dict[str, tuple[int, ...]] = {}
    if case.takes_labels:
        feeds["labels"], outputs["loss"] = np.ascontiguousarray(problem.index), ()
    if case.function != "cross_entropy":
        outputs["array"] = problem.labels.shape if case.function == "logsumexp" else case.shape

    def bound(session: Any, preallocated: bool) -> Call:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for name, shape in outputs.items():
            if preallocated:
                value = OrtValue.ortvalue_from_shape_and_type(shape, problem.logits.dtype)
                binding.bind_ortvalue_output(name, value)
            else:
                binding.bind_output(name, "cpu")

        def run(alive: Any = feeds) -> Any:  # which the binding does not own
            session.run_with_iobinding(binding)
            return binding

        return run

    ways: Ways = {}
    for prefix, nodes in GRAPHS[case.function].items():
        session = onnx_session(problem, nodes, outputs)
        ways[f"{prefix}fresh, bound to the device"] = bound(session, preallocated=False)
        ways[f"{prefix}fresh, run"] = partial(session.run, None, feeds)
        if not case.fresh:
            ways[f"{prefix}preallocated"] = bound(session, preallocated=True)
    return ways


def onnx_results(result: Any) -> Any:
    arrays = result if isinstance(result, list) else result.copy_outputs_to_cpu()
    return arrays if len(arrays) > 1 else arrays[0]


def numba(problem: Problem, own_exponential: bool = False) -> Ways:
    """Fused prange loops with fastmath, in every layout that fits the case."""
    import numba

    import numba_kernels

    case, logits, threads = problem.case, problem.logits, available_cores()
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    kernels = numba_kernels.build(case.function, case.dtype, own_exponential)

    # The view of a full-size array that each layout takes.
    views: dict[str, Callable[[Array], Array]] = {}
    whole = case.function not in ("log_softmax", "logsumexp")  # those are written for rows only
    if case.axis != -1:
        if not whole:
            raise UnsupportedError("only written for rows")
        inner = math.prod(case.shape[case.axis + 1 :])
        views["columns"] = lambda array: array.reshape(-1, case.classes, inner)
    else:
        views["rows"] = lambda array: array
        if whole and case.rows < threads:
            views["flat"] = lambda array: array
        if whole and case.classes <= 64 and case.rows >= 4096:
            # A block of rows seen with the classes first, so that the loops run across the rows.
            block = max(width for width in range(1, 513) if case.rows % width == 0)
            views["columns"] = lambda a: a.reshape(-1, block, case.classes).transpose(0, 2, 1)

    bound = problem.output()
    if case.function == "logsumexp":
        bound = np.ones((case.rows, 1), logits.dtype)

    def way(layout: str, view: Callable[[Array], Array]) -> Call:
        kernel, seen = getattr(kernels, layout), view(logits)
        # Labels without the class axis, in the shape that belongs to that view of the logits.
        shape = (-1,) if seen.ndim == 2 else (len(seen), seen.shape[2])
        labels = problem.labels.reshape(shape) if case.takes_labels else None
        given = None if bound is None else view(bound)

        def run() -> Any:
            output = np.empty_like(logits) if bound is None else bound
            loss = kernel(seen, labels, view(output) if given is None else given)
            return output if labels is None else (loss, output)

        return partial(kernel, seen, labels, None) if case.function == "cross_entropy" else run

    return {layout: way(layout, view) for layout, view in views.items()}


@dataclass(frozen=True)
class Peer:
    """A library, or what stands beside libraries."""

    title: str
    ways: Callable[[Problem], Ways]
    packages: tuple[str, ...] = ()  # distributions that must be there
    programs: tuple[str, ...] = ()  # one of which must be there
    half: bool = False  # takes half types
    counted: bool = True  # whether it can be the best peer
    unpack: Callable[[Any], Any] = lambda result: result  # what a way returned
    as_numpy: Callable[[Any], Any] = np.asarray

    def missing(self) -> str | None:
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} not installed"
        if self.programs and not any(map(shutil.which, self.programs)):
            return f"none of {', '.join(self.programs)} installed"
        return None

    def prepared(self, problem: Problem) -> Ways:
        """The ways of a problem, each run once."""
        if problem.case.dtype in HALF_DTYPES and not self.half:
            raise UnsupportedError(f"no {problem.case.dtype}")
        ways = self.ways(problem)
        for way in ways.values():
            way()
        return ways

    def parts(self, case: Case, result: Any) -> dict[str, Array]:
        """The loss and the array of what a way returned."""
        values = self.unpack(result)
        names = ["loss"] * case.takes_labels + ["array"] * (case.function != "cross_entropy")
        if len(names) == 1:
            values = [values]
        return {name: self.as_numpy(value) for name, value in zip(names, values, strict=True)}


# Nobody's library: the loops of Numba with an exponential of this comparison's own, since the Numba
# of the package index has no vector exponential.
OWN_CODE = "numba_polynomial"

PEERS = {
    "softce_fast": Peer("softce_fast", ours, half=True, counted=False),
    "softce_fast_float32": Peer("float32", ours_float32, half=True, counted=False),
    "memory_limit": Peer("memory", memory_limit, programs=COMPILERS, half=True, counted=False),
    "textbook": Peer("textbook NumPy", partial(ours, module=_textbook), ("numpy",)),
    "numpy": Peer("NumPy, in blocks", numpy, ("numpy",)),
    "scipy": Peer("SciPy", scipy, ("scipy",)),
    "sklearn": Peer("scikit-learn", sklearn, ("scikit-learn",), unpack=sklearn_results),
    "torch": Peer("PyTorch", torch, ("torch",), half=True, as_numpy=from_tensor),
    "torch_compile": Peer(
        "torch.compile", partial(torch, compiles=True), ("torch",), ("g++", "clang++"), half=True,
        as_numpy=from_tensor,
    ),
    "jax": Peer("JAX", jax, ("jax", "jaxlib"), half=True),
    "onnxruntime": Peer("ONNX Runtime", onnxruntime, ("onnx", "onnxruntime"), unpack=onnx_results),
    "numba": Peer("Numba", numba, ("numba",)),
    OWN_CODE: Peer("Numba, own exp", partial(numba, own_exponential=True), ("numba",)),
}  # fmt: skip
PACKAGES = sorted({"softce_fast", *(name for p in PEERS.values() for name in p.packages)})
TITLES = {name: peer.title for name, peer in PEERS.items()}
