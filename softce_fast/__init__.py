"""Softmax and cross-entropy on CPUs, for NumPy arrays: fast, accurate, reproducible.

>>> import numpy as np
>>> import softce_fast as sf
>>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0]])
>>> sf.softmax(logits).round(3)
array([[0.659, 0.242, 0.099],
       [0.045, 0.909, 0.045]])

Labels are integers, one for each row, counted from 0. The loss is the mean over the rows:

>>> labels = np.array([0, 1])
>>> round(float(sf.cross_entropy(logits, labels)), 3)
0.256

For training, the loss and its gradient come out of one call; `grad_out` takes an array for it:

>>> loss, grad = sf.cross_entropy_with_grad(logits, labels, label_smoothing=0.1)
>>> grad.shape
(2, 3)

The class axis is the last one unless `axis` says otherwise; ``axis=1`` is PyTorch's. Options are
written by name. `softmax`, `log_softmax` and `logsumexp` start from any array, `cross_entropy` from
logits, `nll_loss` and `cross_entropy_from_probs` from (log-)probabilities, `linear_cross_entropy`
from hidden states and a class matrix; the binary losses take yes/no targets.

`num_threads` limits the threads of the calls in its body, `show_config` tells what is in use, and
``python -m softce_fast bench`` races this machine's NumPy. Modules with the signatures of other
libraries: softce_fast.scipy, .sklearn, .boosting, .torch, .dask, .onnx.
"""

# A call goes one way: a public function (_softmax.py, _losses.py, _linear.py, _binary.py) tries the
# short way for small calls, has its arguments checked (_checks.py), finds an array for each result
# (_arrays.py), and calls _kernels/execute, which lays the arrays out, makes a plan, and shares the
# rows out over threads (_threads.py says how many) to the kernels of the build (_dispatch.py).

import os as _os
from importlib.util import find_spec as _find_spec

if _find_spec("softce_fast._kernels.probe") is None:
    raise ImportError(
        "softce_fast is not built here, its compiled modules are missing: in its source tree run "
        "`pip install .` or `make build`, or import the installed package from another folder"
        if _os.path.exists(__file__)
        else f"softce_fast cannot be imported out of an archive ({__file__}): its compiled modules "
        "must be files of their own; unpack it, or install it with `pip install`"
    )

from . import _checks, reference, sharded
from ._binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
)
from ._config import show_config, warn_if_serial
from ._kernels import execute as _execute
from ._linear import linear_cross_entropy, linear_cross_entropy_with_grad, linear_target_scores
from ._losses import (
    cross_entropy,
    cross_entropy_from_probs,
    cross_entropy_with_grad,
    cross_entropy_with_grad_and_hessian,
    nll_loss,
)
from ._scores import target_scores
from ._softmax import (
    log_softmax,
    log_softmax_backward,
    logsumexp,
    softmax,
    softmax_backward,
)
from ._threads import get_num_threads, num_threads, set_num_threads
from ._version import __version__
from .reference import LinearGrads, TargetScores

__all__ = [
    "LinearGrads",
    "TargetScores",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "cross_entropy",
    "cross_entropy_from_probs",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_and_hessian",
    "get_num_threads",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_target_scores",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "nll_loss",
    "num_threads",
    "reference",
    "set_num_threads",
    "sharded",
    "show_config",
    "softmax",
    "softmax_backward",
    "target_scores",
]

for _names in (globals(), vars(reference)):
    for _name in reference.__all__:
        _execute.explain_misfits(_names[_name], _checks.explain_misfit)

warn_if_serial()
