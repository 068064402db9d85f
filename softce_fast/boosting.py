"""Multiclass objectives for XGBoost and LightGBM.

One callable serves both libraries, their scikit-learn and their train interfaces. With the defaults
the models are the library's own, from the same start; what the built-in objectives lack comes on
top: class probabilities as targets, label smoothing, class weights. Neither library is imported
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import softce_fast as sf

__all__ = ["objective"]

Array = NDArray[Any]


def objective(
    library: str,
    *,
    label_smoothing: float = 0.0,
    weight: ArrayLike | None = None,
    soft_targets: ArrayLike | None = None,
    hessian: str = "diagonal",
) -> Objective:
    r"""Return a multiclass objective: softmax cross-entropy, its gradient and its Hessian.

    Parameters
    ----------
    library : {"xgboost", "lightgbm"}
        Whose convention the Hessian follows, see below.
    label_smoothing : float, default 0.0
        In [0, 1]; the part of each target that is shared out evenly among the classes.
    weight : array_like, shape (k,), optional
        Class weights; they multiply the weights of the rows.
    soft_targets : array_like, shape (n, k), optional
        Class probabilities of the n training rows, in their order. They replace the labels, which
        the library wants all the same.
    hessian : {"diagonal", "absolute"}, default "diagonal"
        The diagonal of the Hessian, or the magnitude of the gradient.

    Returns
    -------
    Objective
        A callable that can be pickled, for ``XGBClassifier(objective=...)``,
        ``xgboost.train(..., obj=...)``, ``LGBMClassifier(objective=...)`` and
        ``lightgbm.train({"objective": ...})``. It returns two arrays of shape (n, k).

    Raises
    ------
    ValueError
        If `library` or `hessian` is unknown. From training: if the scores are not of shape (n, k),
        or an option does not fit them.
    IndexError
        From training, for a label that is no class.

    Notes
    -----
    .. math:: g_i = w (K p_i - q_i), \quad h_i = w K p_i (1 - p_i)

    with :math:`q` for the target's coefficients after smoothing and class weights, :math:`K` for
    their sum and :math:`w` for the weight of the row. XGBoost has the Hessian doubled and at least
    1e-16 (also the absolute one), LightGBM has it multiplied by k / (k - 1).

    With its own objective a library starts from the classes' frequencies (XGBoost does from 3.1
    on); with a callable one all classes start alike. ``base_score=0.5`` (XGBoost) and
    ``boost_from_average=False`` (LightGBM) make the two equal. With a callable the ``predict`` of
    LightGBM's classifier gives scores, of which :func:`softce_fast.softmax` makes probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast.boosting import objective
    >>> smooth = objective("xgboost", label_smoothing=0.1)
    >>> gradient, hessian = smooth(np.array([0, 2]), np.zeros((2, 3), dtype=np.float32))
    >>> gradient.round(2)
    array([[-0.6,  0.3,  0.3],
           [ 0.3,  0.3, -0.6]], dtype=float32)
    """
    if library not in ("xgboost", "lightgbm"):
        raise ValueError(f"library must be 'xgboost' or 'lightgbm', got {library!r}")
    if hessian not in ("diagonal", "absolute"):
        raise ValueError(f"hessian must be 'diagonal' or 'absolute', got {hessian!r}")
    return Objective(library, label_smoothing, weight, soft_targets, hessian)


@dataclass(frozen=True, eq=False)
class Objective:
    """What :func:`objective` returns; a class, so that estimators that hold it can be pickled."""

    library: str
    label_smoothing: float
    weight: ArrayLike | None
    soft_targets: ArrayLike | None
    hessian: str

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Return gradient and Hessian of the sum of the losses, each of the shape of the scores.

        The scikit-learn interfaces give labels, scores and weights, the train interfaces scores and
        a data set that knows the others.
        """
        if hasattr(y_pred, "get_label"):
            scores, labels, sample_weight = y_true, y_pred.get_label(), y_pred.get_weight()
        else:
            scores, labels = y_pred, y_true
        scores = np.asarray(scores)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ValueError(
                "the scores must be of shape (rows, classes), with two classes or more, got shape "
                f"{scores.shape}: set num_class"
            )
        if sample_weight is not None and len(sample_weight) == 0:  # XGBoost's way to say none
            sample_weight = None
        target = self.soft_targets
        if target is None:
            target = np.asarray(labels).astype(np.int64)
        options: dict[str, Any] = {
            "weight": self.weight,
            "sample_weight": sample_weight,
            "label_smoothing": self.label_smoothing,
            "reduction": "sum",
        }
        floor = 1e-16 if self.library == "xgboost" else None
        if self.hessian == "absolute":
            _, gradient = sf.cross_entropy_with_grad(
                scores, target, grad_out=np.empty_like(scores), **options
            )
            return gradient, np.maximum(np.abs(gradient), floor or 0)
        classes = scores.shape[1]
        _, gradient, hessian = sf.cross_entropy_with_grad_and_hessian(
            scores,
            target,
            hessian_scale=2 if self.library == "xgboost" else classes / (classes - 1),
            hessian_floor=floor,
            grad_out=np.empty_like(scores),  # in the order of the scores, C or Fortran
            hessian_out=np.empty_like(scores),
            **options,
        )
        return gradient, hessian
