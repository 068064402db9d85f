"""The functions of every kernel module, compiled for each variant and storage type.

They are those of ``entry.pxi``, ``pairs.pxi`` and ``ordinary.pxi``.

Arrays of one call have the storage type of the module; labels are int64; weights have the type
that it computes in. ``tools/stubs.py`` compares this with the modules themselves.
"""

from collections.abc import Callable
from typing import Any, Protocol, type_check_only

from numpy import int64
from numpy.typing import NDArray

_Array = NDArray[Any]
_Labels = NDArray[int64]

@type_check_only
class Kernels(Protocol):
    def softmax(
        self,
        logits: _Array,
        output: _Array,
        log: bool,
        temperature: float,
        empty_is_zero: bool,
        n_threads: int,
    ) -> None: ...
    def softmax_ordinary(
        self,
        x: Any,
        axis: Any,
        temperature: Any,
        empty: Any,
        out: Any,
        log: bool,
        threads_for: Callable[[int], int],
    ) -> _Array | None: ...
    def logsumexp(self, logits: _Array, result: _Array, n_threads: int) -> None: ...
    def logsumexp_ordinary(
        self, x: Any, axis: Any, threads_for: Callable[[int], int]
    ) -> _Array | None: ...
    def cross_entropy(
        self,
        logits: _Array,
        labels: _Labels | None,
        probabilities: _Array | None,
        losses: _Array | None,
        gradient: _Array | None,
        class_weight: _Array | None,
        sample_weight: _Array | None,
        label_smoothing: float,
        z_loss: float,
        mean: bool,
        denominator: float | None,
        ignore_index: int,
        temperature: float,
        n_threads: int,
    ) -> tuple[float, float] | None: ...
    def cross_entropy_ordinary(
        self,
        logits: Any,
        target: Any,
        axis: Any,
        ignore_index: Any,
        label_smoothing: Any,
        z_loss: Any,
        temperature: Any,
        reduction: Any,
        empty: Any,
        with_grad: bool,
        grad_out: Any,
        threads_for: Callable[[int], int],
    ) -> tuple[Any, _Array | None] | None: ...
    def backward(
        self, gradient: _Array, output: _Array, result: _Array, log: bool, n_threads: int
    ) -> None: ...
    def curvatures(
        self,
        probabilities: _Array,
        result: _Array,
        factors: _Array,
        floor: float,
        n_threads: int,
    ) -> None: ...
    def probability_losses(
        self,
        values: _Array,
        target: _Array,
        class_weight: _Array | None,
        losses: _Array,
        values_are_logarithms: bool,
        n_threads: int,
    ) -> None: ...
    def label_losses(
        self,
        values: _Array,
        labels: _Labels,
        class_weight: _Array | None,
        losses: _Array,
        ignore_index: int,
        values_are_logarithms: bool,
        n_threads: int,
    ) -> None: ...
    def binary(
        self,
        values: _Array,
        target: _Array,
        weight: _Array | None,
        pos_weight: _Array | None,
        losses: _Array | None,
        gradient: _Array | None,
        from_logits: bool,
        gradient_scale: float,
        n_threads: int,
    ) -> float: ...
    def pause(self) -> None: ...
