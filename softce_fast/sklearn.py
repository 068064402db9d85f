"""The multinomial loss of scikit-learn, computed here.

`patch` puts it in the place of scikit-learn's own for all that is fitted afterwards in this
process: LogisticRegression, gradient boosting, temperature scaling. `HalfMultinomialLoss` is the
same for one HistGradientBoostingClassifier, and patches nothing.

Fitting gains where the loss takes much of the time: LogisticRegression with ten classes and more.
Gradient boosting gains nothing, since it spends its time on trees. Objects fitted with it hold this
module's classes: loading a pickle of them takes this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import softce_fast as sf
from softce_fast._adapters import at_most, requires

with requires("scikit-learn 1.7 or later, with its loss where it was then", extra="sklearn"):
    import sklearn._loss.loss as sklearn_loss
    from sklearn._loss.loss import CyHalfMultinomialLoss as SklearnKernels
    from sklearn._loss.loss import HalfMultinomialLoss as SklearnLoss

__all__ = ["HalfMultinomialLoss", "patch", "patched", "unpatch"]

Array = NDArray[Any]


class CyHalfMultinomialLoss(SklearnKernels):
    """What scikit-learn calls for losses and gradients of rows; it hands in the outputs.

    A subclass, since the SAG solver calls the C method of the original for single rows.
    """

    def loss(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None,
        loss_out: Array,
        n_threads: int = 1,
    ) -> None:
        with at_most(n_threads):
            loss_out[:] = sf.cross_entropy(
                raw_prediction, _labels(y_true), sample_weight=sample_weight, reduction="none",
                dtype=loss_out.dtype,
            )  # fmt: skip

    def loss_gradient(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None,
        loss_out: Array,
        gradient_out: Array,
        n_threads: int = 1,
    ) -> None:
        with at_most(n_threads):
            loss_out[:], _ = sf.cross_entropy_with_grad(
                raw_prediction, _labels(y_true), sample_weight=sample_weight, reduction="none",
                dtype=gradient_out.dtype, grad_out=gradient_out,
            )  # fmt: skip

    def gradient(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None,
        gradient_out: Array,
        n_threads: int = 1,
    ) -> None:
        with at_most(n_threads):
            sf.cross_entropy_with_grad(
                raw_prediction, _labels(y_true), sample_weight=sample_weight, reduction="sum",
                dtype=gradient_out.dtype, grad_out=gradient_out,
            )  # fmt: skip

    def gradient_hessian(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None,
        gradient_out: Array,
        hessian_out: Array,
        n_threads: int = 1,
    ) -> None:
        with at_most(n_threads):
            sf.cross_entropy_with_grad_and_hessian(
                raw_prediction, _labels(y_true), sample_weight=sample_weight, reduction="sum",
                dtype=gradient_out.dtype, grad_out=gradient_out, hessian_out=hessian_out,
            )  # fmt: skip

    def gradient_proba(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None,
        gradient_out: Array,
        proba_out: Array,
        n_threads: int = 1,
    ) -> None:
        self.gradient(y_true, raw_prediction, sample_weight, gradient_out, n_threads)
        with at_most(n_threads):
            sf.softmax(raw_prediction, dtype=proba_out.dtype, out=proba_out)


class HalfMultinomialLoss(SklearnLoss):
    r"""Multinomial cross-entropy for ``HistGradientBoostingClassifier(loss=...)``.

    Parameters
    ----------
    n_classes : int, default 3
        The number of classes.

    Raises
    ------
    IndexError
        From fitting, for a label that is no class.

    Notes
    -----
    .. math:: \ell_i = \log \sum_k \exp(x_{ik}) - x_{i y_i}

    for raw predictions :math:`x` of shape (n_samples, n_classes), as scikit-learn's loss of this
    name. Gradients and Hessians wanted in float32 of predictions in float64 are computed in
    float64.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import HistGradientBoostingClassifier
    >>> from softce_fast.sklearn import HalfMultinomialLoss
    >>> X, y = load_iris(return_X_y=True)
    >>> model = HistGradientBoostingClassifier(loss=HalfMultinomialLoss(3), max_iter=10)
    >>> model.fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__(n_classes=n_classes)
        self.closs = CyHalfMultinomialLoss()


def patch() -> None:
    """Let scikit-learn compute its multinomial loss here, in this process, until `unpatch`.

    Raises
    ------
    ImportError
        From importing this module, if this version of scikit-learn lacks the name to replace.

    Notes
    -----
    One name is replaced, ``sklearn._loss.loss.CyHalfMultinomialLoss``. It counts for what is fitted
    afterwards; patching twice is patching once. Workers that joblib starts are other processes:
    patch there, or use threads. No more threads are used than scikit-learn asks for.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> import softce_fast.sklearn
    >>> softce_fast.sklearn.patch()
    >>> X, y = load_iris(return_X_y=True)
    >>> LogisticRegression(max_iter=1000).fit(X, y).score(X, y) > 0.95
    True
    >>> softce_fast.sklearn.unpatch()
    """
    sklearn_loss.CyHalfMultinomialLoss = CyHalfMultinomialLoss


def unpatch() -> None:
    """Let scikit-learn compute its multinomial loss itself again.

    Notes
    -----
    What was fitted before keeps the loss that it was fitted with.

    Examples
    --------
    >>> import softce_fast.sklearn
    >>> softce_fast.sklearn.unpatch()
    """
    sklearn_loss.CyHalfMultinomialLoss = SklearnKernels


@contextmanager
def patched() -> Iterator[None]:
    """Let scikit-learn compute its multinomial loss here, in the body alone.

    Notes
    -----
    Afterwards it is as it was before, patched or not. The patch is seen by all threads.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from softce_fast.sklearn import patched
    >>> X, y = load_iris(return_X_y=True)
    >>> with patched():
    ...     model = LogisticRegression(max_iter=1000).fit(X, y)
    >>> model.score(X, y) > 0.95
    True
    """
    before = sklearn_loss.CyHalfMultinomialLoss
    patch()
    try:
        yield
    finally:
        sklearn_loss.CyHalfMultinomialLoss = before


def _labels(y_true: Array) -> NDArray[np.int64]:
    """Return labels as integers; scikit-learn has them in the dtype of the predictions."""
    return y_true.astype(np.int64)
