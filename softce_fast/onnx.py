"""Softmax and cross-entropy operators for ONNX's reference evaluator.

``ReferenceEvaluator(model, new_ops=OPERATORS)`` computes Softmax, LogSoftmax,
SoftmaxCrossEntropyLoss and NegativeLogLikelihoodLoss here, and all else as ever.

Examples
--------
>>> import numpy as np
>>> from onnx import TensorProto, helper
>>> from onnx.reference import ReferenceEvaluator
>>> from softce_fast.onnx import OPERATORS
>>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xy")
>>> graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "example", [x], [y])
>>> evaluator = ReferenceEvaluator(helper.make_model(graph), new_ops=OPERATORS)
>>> evaluator.run(None, {"x": np.array([[2.0, 1.0, 0.1]], dtype=np.float32)})[0].round(3)
array([[0.659, 0.242, 0.099]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import softce_fast as sf
from softce_fast._adapters import requires

with requires("onnx 1.16 or later", extra="onnx"):
    from onnx.reference.op_run import OpRun

__all__ = ["OPERATORS"]

Array = NDArray[Any]

# The evaluator finds an operator by the name of its class, and gives inputs and attributes to _run.


class Softmax(OpRun):
    """``Softmax``: of one axis; before operator set 13 of all axes from the given one on."""

    function: Callable[..., Array] = staticmethod(sf.softmax)

    def _run(self, x: Array, axis: int) -> tuple[Array]:
        axes: int | tuple[int, ...] = axis
        if self.run_params["opsets"][""] < 13:
            given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
            first = axis if given else 1  # `axis` has the default of today's operator
            axes = tuple(range(first % x.ndim, x.ndim))
        return (type(self).function(x, axes),)


class LogSoftmax(Softmax):
    """``LogSoftmax``: as ``Softmax``."""

    function = staticmethod(sf.log_softmax)


class SoftmaxCrossEntropyLoss(OpRun):
    """``SoftmaxCrossEntropyLoss``: the loss and, where it is asked for, the log-probabilities."""

    def _run(
        self,
        scores: Array,
        labels: Array,
        weights: Array | None = None,
        *,
        ignore_index: int | None,
        reduction: str,
    ) -> tuple[Array, ...]:
        options = _options(weights, ignore_index, reduction)
        if len(self.onnx_node.output) == 1:
            return (sf.cross_entropy(scores, labels, 1, **options),)
        log_probabilities = sf.log_softmax(scores, 1)
        return sf.nll_loss(log_probabilities, labels, 1, **options), log_probabilities


class NegativeLogLikelihoodLoss(OpRun):
    """``NegativeLogLikelihoodLoss``: the loss of log-probabilities."""

    def _run(
        self,
        log_probabilities: Array,
        labels: Array,
        weight: Array | None = None,
        *,
        ignore_index: int | None,
        reduction: str,
    ) -> tuple[Array]:
        options = _options(weight, ignore_index, reduction)
        return (sf.nll_loss(log_probabilities, labels, 1, **options),)


def _options(weight: Array | None, ignore_index: int | None, reduction: str) -> dict[str, Any]:
    """Return a loss's options; without `ignore_index` no label is ignored."""
    nothing = np.iinfo(np.int64).min
    return {
        "weight": weight,
        "ignore_index": nothing if ignore_index is None else ignore_index,
        "reduction": reduction,
    }


OPERATORS = [Softmax, LogSoftmax, SoftmaxCrossEntropyLoss, NegativeLogLikelihoodLoss]
