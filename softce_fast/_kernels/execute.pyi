from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_Axes = tuple[int, ...]
_ThreadsFor = Callable[[int], int]

OPERATIONS: tuple[str, ...]
PASSES: tuple[str, ...]
COMMON: tuple[str, ...]
SPLIT: int
Note: Any  # an enumeration; states.pxi has its members
Threshold: Any  # an enumeration; plan.pxi has its members

def use(float32_table: object, float64_table: object) -> None: ...
def softmax(
    x: _Array,
    out: _Array,
    where: _Array | None,
    axes: _Axes,
    log: bool,
    temperature: float,
    empty_is_zero: bool,
    threads_for: _ThreadsFor,
) -> None: ...
def softmax_fast(
    x: Any,
    axis: Any,
    temperature: Any,
    empty: Any,
    out: Any,
    log: bool,
    threads_for: _ThreadsFor,
) -> _Array | None: ...
def logsumexp(
    x: _Array,
    factors: _Array | None,
    result: _Array,
    sign: _Array | None,
    where: _Array | None,
    axes: _Axes,
    threads_for: _ThreadsFor,
) -> None: ...
def logsumexp_fast(x: Any, axis: Any, threads_for: _ThreadsFor) -> _Array | None: ...
def cross_entropy(
    logits: _Array,
    labels: _Array | None,
    probabilities: _Array | None,
    where: _Array | None,
    losses: _Array | None,
    gradient: _Array | None,
    hessian: _Array | None,
    axis: int,
    class_weight: NDArray[np.float64] | None,
    sample_weight: _Array | None,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float,
    mean: bool,
    denominator: float | None,
    ignore_index: int,
    powers: tuple[int, int, int],
    threads_for: _ThreadsFor,
    dtype: np.dtype[Any] | None = None,
    hessian_scale: float = 1.0,
    hessian_floor: float = ...,
) -> tuple[float, float] | None: ...
def cross_entropy_fast(
    logits: Any,
    target: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    temperature: Any,
    reduction: Any,
    empty: Any,
    with_grad: bool,
    grad_out: Any,
    threads_for: _ThreadsFor,
) -> tuple[Any, _Array | None] | None: ...
def scores(
    logits: _Array,
    labels: _Array,
    where: _Array | None,
    results: dict[str, _Array],
    axis: int,
    top_k: int,
    ties: int,
    temperature: float,
    softcap: float,
    ignore_index: int,
    threads_for: _ThreadsFor,
) -> bool: ...
def shard(
    operation: str,
    logits: _Array,
    labels: _Array | None,
    where: _Array | None,
    result: _Array | None,
    output: _Array | None,
    axis: int,
    states: _Array,
    sums: str,
    class_weight: NDArray[np.float64] | None,
    sample_weight: _Array | None,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float,
    divisor: float,
    power: int,
    class_power: int,
    weighs_label: bool,
    dtype: np.dtype[Any],
    threads_for: _ThreadsFor,
) -> bool: ...
def merge_states(
    states: tuple[_Array, ...], whole: _Array, sums: tuple[str, ...], threads_for: _ThreadsFor
) -> int: ...
def read_heads(
    states: _Array,
    target: NDArray[np.int64] | None,
    ignore_index: int,
    ignored: NDArray[np.bool_],
    weight: NDArray[np.float64],
    allowed: NDArray[np.int64],
    threads_for: _ThreadsFor,
) -> int: ...
def negative_log_fast(
    values: Any,
    target: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    reduction: Any,
    empty: Any,
    logarithms: bool,
    threads_for: _ThreadsFor,
) -> Any: ...
def negative_log(
    values: _Array,
    labels: _Array | None,
    probabilities: _Array | None,
    losses: _Array | None,
    axis: int,
    class_weight: NDArray[np.float64] | None,
    sample_weight: _Array | None,
    ignore_index: int,
    values_are_logarithms: bool,
    powers: tuple[int, int, int],
    threads_for: _ThreadsFor,
    dtype: np.dtype[Any] | None = None,
) -> tuple[float, float] | None: ...
def backward(
    gradient: _Array,
    output: _Array,
    result: _Array,
    axes: _Axes,
    log: bool,
    temperature: float,
    threads_for: _ThreadsFor,
) -> None: ...
def binary(
    values: _Array,
    target: _Array,
    weight: _Array | None,
    pos_weight: _Array | None,
    losses: _Array | None,
    gradient: _Array | None,
    from_logits: bool,
    divisor: float,
    threads_for: _ThreadsFor,
    dtype: np.dtype[Any] | None = None,
) -> float: ...
def pause() -> None: ...
def explain_misfits(
    function: Callable[..., Any], explainer: Callable[[Callable[..., Any], TypeError], None]
) -> None: ...
def recording() -> AbstractContextManager[list[dict[str, Any]]]: ...
def forcing(**fields: Any) -> AbstractContextManager[None]: ...
