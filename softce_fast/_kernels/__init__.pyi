"""The functions of every kernel module: ``entry.pxi``, compiled for each variant and storage type.

Arrays of one call have the storage type of the module; labels are int64; weights have the type
that it computes in. ``tools/stubs.py`` compares this with the modules themselves.
"""

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
    def softmax_small(self, logits: _Array, output: _Array, log: bool) -> bool: ...
    def logsumexp(self, logits: _Array, result: _Array, n_threads: int) -> None: ...
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
        empty_is_zero: bool,
        ignore_index: int,
        temperature: float,
        n_threads: int,
    ) -> tuple[float, float] | None: ...
    def cross_entropy_small(
        self, logits: _Array, labels: _Labels, gradient: _Array | None, ignore_index: int
    ) -> float | None: ...
    def pause(self) -> None: ...
