"""Cross-entropy losses for PyTorch tensors on CPUs, with PyTorch's signatures.

They are custom operators with their own gradients, so ``torch.compile(fullgraph=True)`` takes them.
The forward pass reads the logits once, the backward pass writes the gradient from one more reading:
nothing of the logits' size is kept in between. A training step costs some 30 microseconds more than
PyTorch's own on small batches; it pays from some hundred thousand logits on.

What this package does not serve goes to PyTorch: other devices, other dtypes, gradients by class
probabilities, layers with weights of more than two dimensions. Second derivatives and
``torch.func`` are refused, with an error from PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

import softce_fast as sf
from softce_fast._adapters import at_most, requires
from softce_fast._threads import threads_for

with requires("PyTorch 2.4 or later, and ml_dtypes", extra="torch"):
    import ml_dtypes
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy"]

Array = NDArray[Any]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PLAIN = (Tensor, torch.nn.Parameter, type(None))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Return the cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy` does.

    Parameters
    ----------
    input : Tensor, shape (C,), (N, C) or (N, C, ...)
        Logits.
    target : Tensor
        Class indices, of the shape of `input` without the class axis, or class probabilities, of
        the shape of `input`.
    weight : Tensor, shape (C,), optional
        Class weights.
    size_average, reduce : bool, optional
        PyTorch's former way to say `reduction`.
    ignore_index : int, default -100
        A class index whose rows count for nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        As :func:`softce_fast.cross_entropy` has it, which is as PyTorch has it.
    label_smoothing : float, default 0.0
        In [0, 1]; the part of each target that is shared out evenly among the classes.

    Returns
    -------
    Tensor
        The loss, in the dtype of `input`; for "none" one for each row.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`softce_fast.cross_entropy`.

    Notes
    -----
    .. math:: \ell = -\sum_i w_i q_i \log \frac{\exp(x_i)}{\sum_j \exp(x_j)}

    bfloat16 and float16 are computed in float32 and rounded once; under :class:`torch.autocast` the
    loss is float32, as PyTorch's is. It uses no more threads than :func:`torch.get_num_threads`
    says.

    Examples
    --------
    >>> import torch
    >>> from softce_fast.torch import cross_entropy
    >>> logits = torch.tensor([[2.0, 1.0, 0.1]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0]))
    >>> loss.backward()
    >>> logits.grad.numpy().round(3)
    array([[-0.341,  0.242,  0.099]], dtype=float32)
    """
    reduction = _reduction(size_average, reduce, reduction)
    options = ignore_index, reduction, label_smoothing
    if not _served(input, target, weight):
        return torch.nn.functional.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing,
        )  # fmt: skip
    if torch.is_autocast_enabled("cpu"):  # where PyTorch, too, has the loss in float32 at least
        input = input.to(_wide(input))
    # What nobody watches need not go through the operator, which is for compilers and the like.
    function = _cross_entropy_eager if _is_plain(input, target, weight) else _cross_entropy
    loss: Tensor = function(input, target, weight, *options)
    return loss


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    r"""The module of :func:`cross_entropy`; its arguments are :class:`torch.nn.CrossEntropyLoss`'s.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in :func:`cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        From the call, as :func:`cross_entropy`.

    Notes
    -----
    See :func:`cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from softce_fast.torch import CrossEntropyLoss
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(float(loss), 4)
    1.3863
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits and a target."""
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Return the cross-entropy of a linear layer's output, which is never whole in memory.

    Parameters
    ----------
    input : Tensor, shape (N, D) or (D,)
        What goes into the linear layer.
    linear_weight : Tensor, shape (C, D)
        The layer's weight.
    target : Tensor
        Class indices, shape (N,), or class probabilities, shape (N, C).
    linear_bias : Tensor, shape (C,), optional
        The layer's bias.
    weight, reduction, ignore_index, label_smoothing
        As in :func:`cross_entropy`; for `ignore_index` None stands for -100.

    Returns
    -------
    Tensor
        The loss, in the dtype of `input`; for "none" one for each row.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`softce_fast.linear_cross_entropy`.

    Notes
    -----
    .. math:: \mathrm{cross\_entropy}(x W^T + b)

    It is ``torch.nn.functional.linear_cross_entropy`` without its `options`. Half types are
    multiplied in float32; under :class:`torch.autocast` their loss is float32. For "mean" and "sum"
    the gradients come with the loss, as in :func:`softce_fast.linear_cross_entropy_with_grad`; for
    "none" the backward pass makes the products again.

    Examples
    --------
    >>> import torch
    >>> from softce_fast.torch import linear_cross_entropy
    >>> hidden, layer = torch.ones(2, 8), torch.zeros(4, 8, requires_grad=True)
    >>> loss = linear_cross_entropy(hidden, layer, torch.tensor([0, 3]))
    >>> round(float(loss.detach()), 4)
    1.3863
    """
    layer = input, linear_weight, linear_bias
    dtypes = {tensor.dtype for tensor in layer if tensor is not None}
    if linear_weight.ndim != 2 or len(dtypes) > 1 or not _served(input, target, weight):
        theirs: Tensor = torch.nn.functional.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight,
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
        return theirs
    ignored = -100 if ignore_index is None else ignore_index
    enabled = torch.is_grad_enabled()
    wanted = [enabled and tensor is not None and tensor.requires_grad for tensor in layer]
    loss: Tensor = _linear_cross_entropy(
        input, linear_weight, target, linear_bias, weight, None, ignored, reduction,
        label_smoothing, wanted if reduction != "none" else [False] * 3,
    )[0]  # fmt: skip
    return loss if torch.is_autocast_enabled("cpu") else loss.to(input.dtype)


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def _served(differentiable: Tensor, *others: Tensor | None) -> bool:
    """Tell whether the first tensor is of a kind served here, and the others need no gradient."""
    return (
        differentiable.device.type == "cpu"
        and differentiable.dtype in DTYPES
        and not any(other is not None and other.requires_grad for other in others)
    )


def _is_plain(*tensors: Tensor | None) -> bool:
    """Tell whether nothing is there that looks at operators: a compiler, a mode, a subclass."""
    return (
        not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and all(type(tensor) in PLAIN for tensor in tensors)
    )


def _wide(tensor: Tensor) -> torch.dtype:
    """Return what half types are computed in, of others their own dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)


# Tensors as arrays


def _array(tensor: Tensor) -> Array:
    """Return the array that shares a tensor's memory."""
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        array: Array = tensor.view(torch.int16).numpy(force=True)
        return array.view(ml_dtypes.bfloat16)
    array = tensor.numpy(force=True)
    return array


def _optional(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else _array(tensor)


def _tensor(array: Any) -> Tensor:
    """Return the tensor that shares the memory of a fresh array, or holds a scalar."""
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _threads(size: int) -> AbstractContextManager[None]:
    """Use no more threads than PyTorch was told to, where `size` elements pay for more than one.

    They are asked for even where no fewer would be used anyway: PyTorch's own wait awake for its
    next operator, and those that sleep between calls would have to wait for a CPU.
    """
    count = abs(threads_for(size))
    return nullcontext() if count == 1 else sf.num_threads(min(torch.get_num_threads(), count))


# Operators

_LIBRARY = torch.library.Library("softce_fast", "DEF")


def _operator(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] = torch.library.fallthrough_kernel,
) -> Callable[..., Any]:
    """Register what computes on CPUs, tells shapes and knows of gradients; return the operator.

    :func:`torch.library.custom_op` does it in one, and costs a step 0.1 milliseconds more.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, differentiable, "AutogradCPU")
    torch.library.register_fake(f"softce_fast::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.softce_fast, name).default
    return operator


def _calls(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return what applies a function; looked up late, as documentation is made without PyTorch."""
    return lambda *arguments: function.apply(*arguments)


def _refuse_second_derivatives(name: str) -> None:
    if torch.is_grad_enabled():  # for create_graph=True; constants would come out
        raise RuntimeError(f"{name} has no second derivatives")


# The operators of cross_entropy


def _class_axis(logits: Tensor | Array) -> int:
    return 1 if logits.ndim > 2 else -1  # as the short way of small calls has it


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    with _threads(input.numel()):
        return _tensor(
            sf.cross_entropy(
                _array(input), _array(target), _class_axis(input), weight=_optional(weight),
                ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            )
        )  # fmt: skip


def _loss_fake(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    shape = list(input.shape) if reduction == "none" else []
    if shape:
        del shape[_class_axis(input)]
    return input.new_empty(shape)


def _gradient(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    logits, labels, class_weight = _array(input), _array(target), _optional(weight)
    axis = _class_axis(input)
    gradient = torch.empty_like(input)
    sample_weight = None
    if reduction == "none" or grad_output.item() != 1:
        scale = _array(grad_output)
        # The gradient of the loss is taken as weights of the rows: half types then round once.
        if reduction == "mean":
            with np.errstate(all="ignore"):  # 0 where every row is ignored
                scale = np.float64(scale) / _mean_divisor(
                    logits, labels, class_weight, ignore_index
                )
        rows = np.delete(logits.shape, axis)
        sample_weight, reduction = np.broadcast_to(scale, rows), "sum"
    with _threads(logits.size):
        sf.cross_entropy_with_grad(
            logits, labels, axis, weight=class_weight, sample_weight=sample_weight,
            ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            grad_out=_array(gradient),
        )  # fmt: skip
    return gradient


def _mean_divisor(logits: Array, target: Array, weight: Array | None, ignore_index: int) -> Any:
    """Return what reduction "mean" divides by."""
    if target.dtype.kind not in "iu":
        return target.size // logits.shape[_class_axis(logits)]
    counted = target != ignore_index
    return np.sum(counted if weight is None else weight[target[counted]], dtype=np.float64)


def _function(loss: Callable[..., Any], gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Return what gives a loss that knows its gradient."""

    class CrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            ctx.save_for_backward(*arguments[:3])
            ctx.options = arguments[3:]
            return loss(*arguments)

        @staticmethod
        def backward(ctx: Any, grad_output: Any) -> Any:
            _refuse_second_derivatives("cross_entropy")
            result = gradient(grad_output, *ctx.saved_tensors, *ctx.options)
            return result, None, None, None, None, None

    return _calls(CrossEntropy)


_ARGUMENTS = (
    "Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing"
)
_cross_entropy_forward = _operator(
    f"cross_entropy_forward({_ARGUMENTS}) -> Tensor", _loss, _loss_fake
)
_cross_entropy_backward = _operator(
    f"cross_entropy_backward(Tensor grad_output, {_ARGUMENTS}) -> Tensor", _gradient,
    lambda grad_output, input, *_: torch.empty_like(input),
)  # fmt: skip
_cross_entropy = _operator(
    f"cross_entropy({_ARGUMENTS}) -> Tensor", _loss, _loss_fake,
    _function(_cross_entropy_forward, _cross_entropy_backward),
)  # fmt: skip
_cross_entropy_eager = _function(_loss, _gradient)


# The operators of linear_cross_entropy


def _linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, and the gradients, empty if not wanted: in float32 at least."""
    arguments = _array(input), _array(linear_weight), _array(target)
    options: dict[str, Any] = {
        "linear_bias": _optional(linear_bias),
        "weight": _optional(weight),
        "sample_weight": _optional(sample_weight),
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "dtype": np.promote_types(np.float32, arguments[0].dtype),
    }
    gradients = _gradients((input, linear_weight, linear_bias), wanted)
    with at_most(torch.get_num_threads()):  # between matrix products
        if not any(wanted):
            loss = sf.linear_cross_entropy(*arguments, **options)
        else:
            outputs = zip(("hidden", "weight", "bias"), gradients, wanted, strict=True)
            given = {name: _array(gradient) for name, gradient, want in outputs if want}
            options |= {f"{name}_grad_out": array for name, array in given.items()}
            loss, _ = sf.linear_cross_entropy_with_grad(*arguments, **options, grads=tuple(given))
    return _tensor(loss), *gradients


def _gradients(
    layer: tuple[Tensor, Tensor, Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors for the gradients; those of half types are float32 until they are scaled."""
    input = layer[0]
    shapes = (
        tensor.shape if want and tensor is not None else (0,)
        for tensor, want in zip(layer, wanted, strict=True)
    )
    first, second, third = (input.new_empty(shape, dtype=_wide(input)) for shape in shapes)
    return first, second, third


def _linear_loss_fake(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = input.new_empty(input.shape[:-1] if reduction == "none" else (), dtype=_wide(input))
    return loss, *_gradients((input, linear_weight, linear_bias), wanted)


class _DifferentiableLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        outputs = _linear_cross_entropy_forward(*arguments)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.options = arguments[6:9]
        # With gradients at hand the arguments are not needed again.
        ctx.at_hand = any(arguments[9])
        ctx.dtype = arguments[0].dtype
        ctx.save_for_backward(*(outputs[1:] if ctx.at_hand else arguments[:5]))
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_output: Any, *_: Any) -> Any:
        _refuse_second_derivatives("linear_cross_entropy")
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        if ctx.at_hand:
            gradients = [(tensor * grad_output).to(ctx.dtype) for tensor in ctx.saved_tensors]
        else:
            ignore_index, _, label_smoothing = ctx.options
            results = _linear_cross_entropy_forward(
                *ctx.saved_tensors, grad_output.contiguous(), ignore_index, "sum", label_smoothing,
                wanted,
            )  # fmt: skip
            gradients = [tensor.to(ctx.dtype) for tensor in results[1:]]
        hidden, layer, bias = (
            gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)
        )
        return hidden, layer, None, bias, *(None for _ in range(6))


_LINEAR = (
    "(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, "
    "Tensor? sample_weight, int ignore_index, str reduction, float label_smoothing, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_linear_cross_entropy_forward = _operator(
    f"linear_cross_entropy_forward{_LINEAR}", _linear_loss, _linear_loss_fake
)
_linear_cross_entropy = _operator(
    f"linear_cross_entropy{_LINEAR}", _linear_loss, _linear_loss_fake,
    _calls(_DifferentiableLinear),
)  # fmt: skip
