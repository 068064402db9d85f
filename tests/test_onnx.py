"""softce_fast.onnx: the operators in models; the node tests of onnx run in tools/suites.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import softce_fast as sf
from softce_fast.onnx import OPERATORS


def evaluate(
    node: Any, inputs: dict[str, Any], operator_set: int = 17, own: bool = True
) -> list[Any]:
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    given = [
        helper.make_tensor_value_info(name, kinds[array.dtype.kind], array.shape)
        for name, array in inputs.items()
    ]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.output]
    model = helper.make_model(
        helper.make_graph([node], "one node", given, results),
        opset_imports=[helper.make_opsetid("", operator_set)],
    )
    return list(ReferenceEvaluator(model, new_ops=OPERATORS if own else None).run(None, inputs))


def scores() -> Any:
    return np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax_is_this_packages(name: str) -> None:
    function = {"Softmax": sf.softmax, "LogSoftmax": sf.log_softmax}[name]
    for axis in (-1, 0, 1):
        (result,) = evaluate(helper.make_node(name, ["x"], ["y"], axis=axis), {"x": scores()})
        np.testing.assert_array_equal(result, function(scores(), axis))


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_older_operator_sets_take_all_axes_from_one_on(name: str) -> None:
    function = {"Softmax": sf.softmax, "LogSoftmax": sf.log_softmax}[name]
    for attributes, axes in (({}, (1, 2)), ({"axis": 2}, 2), ({"axis": 0}, None)):
        node = helper.make_node(name, ["x"], ["y"], **attributes)
        (result,) = evaluate(node, {"x": scores()}, operator_set=11)
        np.testing.assert_array_equal(result, function(scores(), axes))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignored", [{}, {"ignore_index": 2}, {"ignore_index": -100}])
def test_losses_are_the_reference_evaluators(reduction: str, ignored: dict[str, int]) -> None:
    labels = np.random.default_rng(1).integers(3, size=(4, 5))
    labels[0, 0] = ignored.get("ignore_index", 0)
    weights = np.array([0.5, 2, 1], dtype=np.float32)
    attributes = {"reduction": reduction, **ignored}
    for operator, outputs in (
        ("NegativeLogLikelihoodLoss", ["loss"]),
        ("SoftmaxCrossEntropyLoss", ["loss"]),
        ("SoftmaxCrossEntropyLoss", ["loss", "log_probabilities"]),
    ):
        for given in ({}, {"w": weights}):
            inputs = {"x": scores(), "t": labels, **given}
            node = helper.make_node(operator, list(inputs), outputs, **attributes)
            ours, theirs = evaluate(node, inputs), evaluate(node, inputs, own=False)
            for result, expected in zip(ours, theirs, strict=True):
                assert result.dtype == expected.dtype
                np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
