"""What other libraries gain from this package's loss in the place of their own.

Fitting with scikit-learn, a step of loss and gradient in PyTorch. Of Dask it is the reverse: what
chunks cost beside a call on the whole array.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

import report
import timing
from timing import LONG, Call

OURS, OTHER = "softce_fast", "other"
QUICK_ROWS = 2000

Pair = dict[str, Call]  # OURS and OTHER
Cases = Iterator[tuple[str, Callable[[], Pair]]]


def fits(model: Any, rows: int, classes: int) -> Pair:
    from sklearn.base import clone

    import softce_fast.sklearn

    # Points around a center for each class.
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    points = generator.standard_normal((classes, 20))[labels]
    points += generator.standard_normal(points.shape)

    def fit(context: Callable[[], Any]) -> None:
        with context():
            clone(model).fit(points, labels)

    return {OURS: partial(fit, softce_fast.sklearn.patched), OTHER: partial(fit, nullcontext)}


def sklearn(quick: bool) -> Cases:
    import warnings

    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    warnings.simplefilter("ignore", ConvergenceWarning)  # as many steps for both
    rows = QUICK_ROWS if quick else 50_000
    for classes in (10, 100) if quick else (10, 100, 1000):
        model = LogisticRegression(max_iter=10)
        yield f"LogisticRegression, {classes} classes", partial(fits, model, rows, classes)
    boosting = HistGradientBoostingClassifier(max_iter=5, early_stopping=False)
    yield "HistGradientBoostingClassifier, 10 classes", partial(fits, boosting, rows, 10)
    calibrated = CalibratedClassifierCV(GaussianNB(), method="temperature", cv=2)
    yield "temperature scaling, 100 classes", partial(fits, calibrated, rows, 100)


def steps(rows: int, classes: int) -> Pair:
    import torch

    import softce_fast.torch

    logits = torch.randn(rows, classes, requires_grad=True)
    target = torch.randint(classes, (rows,))

    def step(loss: Callable[..., Any]) -> None:
        logits.grad = None
        loss(logits, target).backward()

    return {
        OURS: partial(step, softce_fast.torch.cross_entropy),
        OTHER: partial(step, torch.nn.functional.cross_entropy),
    }


def torch(quick: bool) -> Cases:
    shapes = ((32, 10), (256, 100), (256, 1000), (4096, 1000), (4096, 32_000))
    for rows, classes in shapes[:3] if quick else shapes:
        yield f"a step of {rows} x {classes}", partial(steps, rows, classes)


def chunks(rows: int, name: str, keep: bool) -> Pair:
    """A function of chunks beside that of all; with `keep`, its results stay chunks."""
    import dask.array

    import softce_fast.dask

    logits = np.random.default_rng(0).standard_normal((rows, 1024), dtype=np.float32)
    targets = [np.arange(rows) % 1024] if name == "cross_entropy" else []
    x = dask.array.from_array(logits, chunks=(rows // 4, 1024))
    lazy = getattr(softce_fast.dask, name)(x, *targets)
    evaluate = lazy.persist if keep else lazy.compute
    return {
        OURS: partial(evaluate, scheduler="threads", num_workers=2),
        OTHER: partial(getattr(softce_fast, name), logits, *targets),
    }


def dask(quick: bool) -> Cases:
    rows = QUICK_ROWS if quick else 65_536
    beside = f"of {rows} x 1024 in 4 chunks, beside the call on all"
    for name in ("cross_entropy", "logsumexp"):
        yield f"{name} {beside}", partial(chunks, rows, name, False)
    yield f"softmax {beside}; results stay chunks", partial(chunks, rows, "softmax", True)
    yield f"softmax {beside}; results put together", partial(chunks, rows, "softmax", False)


LIBRARIES = {"scikit-learn": sklearn, "PyTorch": torch, "Dask": dask}


def measured(pair: Pair, rounds: int) -> dict[str, float]:
    if max(timing.timed(call, 1) for call in pair.values()) < LONG:
        return timing.medians(timing.alternate(pair, rounds, seconds=0, least=1))
    blocks = {name: lambda call=call: [timing.timed(call, 1)] for name, call in pair.items()}
    return timing.medians(timing.interleaved(blocks, rounds))


def measure(options: Any) -> dict[str, Any]:
    cases = {}
    for library, of_library in LIBRARIES.items():
        if importlib.util.find_spec(of_library.__name__):
            for what, pair in of_library(options.quick):
                cases[f"{library}: {what}"] = {"library": library, "what": what}, pair
        else:
            print(f"{library} is not installed")
    found = tqdm(report.chosen(options, cases))
    rounds = 1 if options.quick else 5
    return {"cells": [{**case, "seconds": measured(pair(), rounds)} for case, pair in found]}


if __name__ == "__main__":
    packages = ["numpy", "scikit-learn", "torch", "dask"]
    report.run("adapters", __doc__, measure, packages, report.ONLY)
