"""softce_fast.torch against PyTorch's own losses.

PyTorch's samples for its own tests run in tools/suites.py.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

import softce_fast as sf
import softce_fast.torch as adapter

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = [(5,), (6, 5), (3, 5, 2, 4)]


def problem(torch: ModuleType, shape: tuple[int, ...], dtype: Any, soft: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    logits = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()
    axis = min(1, len(shape) - 1)
    if soft:
        return logits, torch.randn(shape, dtype=torch.float64).softmax(axis).to(dtype)
    return logits, torch.randint(5, shape[:axis] + shape[axis + 1 :])


def double(value: Any) -> Any:
    return (
        value.detach().double() if hasattr(value, "dtype") and value.is_floating_point() else value
    )


def assert_alike(torch: ModuleType, ours: Any, theirs: Any, inputs: list[Any], truth: list[Any]):
    """Compare losses and gradients with those in float64."""
    dtype = ours.dtype
    tolerance = 32 * torch.finfo(dtype).eps
    upstream = torch.linspace(0.5, 1.5, ours.numel(), dtype=dtype).reshape(ours.shape)
    results = [ours, *torch.autograd.grad(ours, inputs, upstream)]
    expected = [theirs, *torch.autograd.grad(theirs, truth, upstream.double())]
    for result, true in zip(results, expected, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_loss_and_gradient(torch: ModuleType, name: str, shape: Any, soft: bool) -> None:
    dtype = getattr(torch, name)
    logits, target = problem(torch, shape, dtype, soft)
    exact = double(logits).requires_grad_()
    weights = (None, torch.linspace(0, 2, 5, dtype=dtype))
    for weight, reduction, smoothing in itertools.product(
        weights, ("mean", "sum", "none"), (0, 0.1)
    ):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        if not soft:
            options["ignore_index"] = 2
        ours = adapter.cross_entropy(logits, target, weight, **options)
        theirs = torch.nn.functional.cross_entropy(exact, double(target), double(weight), **options)
        assert_alike(torch, ours, theirs, [logits], [exact])


def test_gradients_by_finite_differences(torch: ModuleType) -> None:
    for shape, soft in itertools.product(SHAPES, (False, True)):
        logits, target = problem(torch, shape, torch.float64, soft)
        torch.autograd.gradcheck(
            lambda x, target=target: adapter.cross_entropy(x, target, label_smoothing=0.1), logits
        )


def test_operators_keep_pytorchs_rules(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float32, False)
    for reduction in ("mean", "sum", "none"):
        arguments = logits, target, None, -100, reduction, 0.1
        torch.library.opcheck(torch.ops.softce_fast.cross_entropy.default, arguments)
    hidden, layer = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    for reduction, wanted in (("mean", True), ("none", False)):
        arguments = (
            hidden, layer, target, None, None, None, -100, reduction, 0.0, [wanted, wanted, False]
        )  # fmt: skip
        torch.library.opcheck(torch.ops.softce_fast.linear_cross_entropy.default, arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_a_graph_break(torch: ModuleType, backend: str, name: str) -> None:
    if backend == "inductor" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("there is no C++ compiler")
    dtype = getattr(torch, name)
    logits, target = problem(torch, (6, 5), dtype, False)
    layer = torch.randn(7, 5, dtype=dtype, requires_grad=True)

    def losses(logits: Any, layer: Any) -> tuple[Any, ...]:
        return (
            adapter.cross_entropy(2 * logits, target, label_smoothing=0.1),
            adapter.linear_cross_entropy(2 * logits, layer, target),
            adapter.linear_cross_entropy(logits, 2 * layer, target, reduction="none").sum(),
        )

    compiled = torch.compile(losses, fullgraph=True, backend=backend)
    results = []
    for function in (losses, compiled):
        values = function(logits, layer)
        results.append([*values, *torch.autograd.grad(sum(values), (logits, layer))])
    # What is fused around the losses may be rounded less often.
    rounding = 0 if backend == "aot_eager" else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=rounding, atol=rounding)


def test_what_looks_at_operators_finds_them(torch: ModuleType) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, target = problem(torch, (6, 5), torch.float32, False)
    graph = make_fx(lambda x: torch.autograd.grad(adapter.cross_entropy(x, target), x))(logits)
    found = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert {name for name in found if name.startswith("softce_fast.")} == {
        "softce_fast.cross_entropy_forward.default", "softce_fast.cross_entropy_backward.default"
    }  # fmt: skip


def test_half_types_of_scaled_losses_round_once(torch: ModuleType) -> None:
    """A gradient that float16 cannot hold comes back where the loss is scaled up, as with AMP."""
    logits, target = torch.zeros(4096, 64, dtype=torch.float16), torch.zeros(4096, dtype=torch.long)
    logits.requires_grad_()
    adapter.cross_entropy(logits, target).mul(2.0**10).backward()
    np.testing.assert_allclose(logits.grad[0, 1].item(), 2**10 / 4096 / 64, rtol=1e-3)


def test_autocast(torch: ModuleType) -> None:
    """Losses of bfloat16 are float32 there, and gradients what they are elsewhere."""
    functional = torch.nn.functional
    logits, target = problem(torch, (6, 5), torch.bfloat16, False)
    layer = torch.randn(7, 5, dtype=torch.bfloat16, requires_grad=True)
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = (
                adapter.cross_entropy(logits, target),
                adapter.linear_cross_entropy(logits, layer, target),
                adapter.linear_cross_entropy(logits, layer, target, reduction="none").sum(),
            )
        assert {loss.dtype for loss in losses} == {torch.float32 if enabled else torch.bfloat16}
        results.append(torch.autograd.grad(sum(losses), (logits, layer)))
        if enabled:
            right = functional.cross_entropy(double(logits), target)
            linear = functional.cross_entropy(double(logits) @ double(layer).T, target)
            torch.testing.assert_close(losses[0].double(), right, rtol=1e-6, atol=0)
            torch.testing.assert_close(losses[1].double(), linear, rtol=1e-6, atol=0)
    torch.testing.assert_close(*results)


def test_any_strides(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float32, False)
    for view in (logits.t().contiguous().t(), logits[:1].expand(6, 5), logits.flip(1)):
        torch.testing.assert_close(
            adapter.cross_entropy(view, target), torch.nn.functional.cross_entropy(view, target)
        )


def test_former_ways_to_say_reduction(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float64, False)
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says that it is the former way
            theirs = torch.nn.functional.cross_entropy(
                logits, target, size_average=size_average, reduce=reduce
            )
        ours = adapter.cross_entropy(logits, target, size_average=size_average, reduce=reduce)
        torch.testing.assert_close(ours, theirs)


def test_the_module_keeps_its_options(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float64, False)
    options = {"weight": torch.rand(5).double(), "ignore_index": 1, "label_smoothing": 0.2}
    for reduction in ("mean", "sum", "none"):
        ours = adapter.CrossEntropyLoss(reduction=reduction, **options)
        theirs = torch.nn.CrossEntropyLoss(reduction=reduction, **options)
        assert isinstance(ours, torch.nn.CrossEntropyLoss)
        torch.testing.assert_close(ours(logits, target), theirs(logits, target))


def test_gradients_by_class_probabilities_are_pytorchs(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float64, True)
    target.requires_grad_()
    results = [
        torch.autograd.grad(function(logits, target), (logits, target))
        for function in (adapter.cross_entropy, torch.nn.functional.cross_entropy)
    ]
    torch.testing.assert_close(*results)


def test_second_derivatives_are_refused(torch: ModuleType) -> None:
    logits, target = problem(torch, (6, 5), torch.float64, False)
    hidden, layer = torch.randn(6, 3), torch.randn(5, 3, requires_grad=True)
    for loss, variable in (
        (adapter.cross_entropy(logits, target), logits),
        (adapter.linear_cross_entropy(hidden, layer, target), layer),
    ):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(loss, variable, create_graph=True)


def test_errors(torch: ModuleType) -> None:
    with pytest.raises(IndexError, match=r"target\[1\] is 5"):
        adapter.cross_entropy(torch.zeros(2, 5), torch.tensor([0, 5]))
    assert adapter.cross_entropy(torch.zeros(2, 5), torch.tensor([-100, -100])).isnan()
    logits = torch.zeros(2, 5, requires_grad=True)
    adapter.cross_entropy(logits, torch.tensor([-100, -100])).backward()
    assert logits.grad.eq(0).all()


def test_pytorchs_number_of_threads_is_heeded(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def loss(*_: Any, **__: Any) -> float:
        seen.append(sf.get_num_threads())
        return 0.0

    monkeypatch.setattr(sf, "cross_entropy", loss)
    sf_before = sf.get_num_threads()
    with sf.num_threads(4):
        adapter.cross_entropy(torch.zeros(1, 1 << 20), torch.tensor([0]))
    assert seen == [torch.get_num_threads()] == [1]
    assert sf.get_num_threads() == sf_before


@pytest.mark.parametrize("name", ["bfloat16", "float32", "float64"])
def test_linear_cross_entropy(torch: ModuleType, name: str) -> None:
    dtype = getattr(torch, name)
    functional = torch.nn.functional
    for soft, bias, reduction in itertools.product(
        (False, True), (False, True), ("mean", "sum", "none")
    ):
        _, target = problem(torch, (6, 5), dtype, soft)
        hidden = torch.randn(6, 3, dtype=dtype, requires_grad=True)
        layer = torch.randn(5, 3, dtype=dtype, requires_grad=True)
        linear_bias = torch.randn(5, dtype=dtype, requires_grad=True) if bias else None
        weight = torch.rand(5, dtype=dtype)
        options = {"reduction": reduction, "label_smoothing": 0.1}
        ours = adapter.linear_cross_entropy(
            hidden, layer, target, linear_bias=linear_bias, weight=weight, **options
        )
        inputs = [hidden, layer, *([linear_bias] if bias else [])]
        exact = [double(tensor).requires_grad_() for tensor in inputs]
        theirs = functional.cross_entropy(
            functional.linear(*exact), double(target), double(weight), **options
        )
        assert_alike(torch, ours, theirs, inputs, exact)
