"""Largest error in units in the last place against long double, of softce_fast and its peers."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import machine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import truth
from truth import AccuracyInput

RESULTS = Path(__file__).with_name("results")
Array = np.ndarray[Any, Any]

# Function: (truth, where the spacing is taken at least, target)
FUNCTIONS: dict[str, tuple[Callable[[AccuracyInput], Array], float, float]] = {
    "softmax": (lambda given: truth.softmax(given.logits), 0.0, 4),
    "log_softmax": (lambda given: truth.log_softmax(given.logits), 0.0, 4),
    "logsumexp": (lambda given: truth.logsumexp(given.logits), 1.0, 2),
    "cross_entropy": (lambda given: truth.cross_entropy(given.logits, given.labels), 0.0, 4),
    "gradient": (lambda given: truth.gradient(given.logits, given.labels), 0.0, 4),
}


class SoftceFast:
    modules = ("softce_fast",)

    def __init__(self) -> None:
        import softce_fast

        self.module = softce_fast

    def softmax(self, given: AccuracyInput) -> Any:
        return self.module.softmax(given.logits)

    def log_softmax(self, given: AccuracyInput) -> Any:
        return self.module.log_softmax(given.logits)

    def logsumexp(self, given: AccuracyInput) -> Any:
        return self.module.logsumexp(given.logits)

    def cross_entropy(self, given: AccuracyInput) -> Any:
        return self.module.cross_entropy(given.logits, given.labels, reduction="none")

    def gradient(self, given: AccuracyInput) -> Any:
        return self.module.cross_entropy_with_grad(given.logits, given.labels, reduction="none")[1]


class Reference(SoftceFast):
    def __init__(self) -> None:
        super().__init__()
        self.module = self.module.reference


class SciPy:
    modules = ("scipy",)

    def __init__(self) -> None:
        import scipy.special

        self.special = scipy.special

    def softmax(self, given: AccuracyInput) -> Any:
        return self.special.softmax(given.logits, axis=-1)

    def log_softmax(self, given: AccuracyInput) -> Any:
        return self.special.log_softmax(given.logits, axis=-1)

    def logsumexp(self, given: AccuracyInput) -> Any:
        return self.special.logsumexp(given.logits, axis=-1)

    def cross_entropy(self, given: AccuracyInput) -> Any:
        return -np.take_along_axis(self.log_softmax(given), given.labels[:, None], axis=1)[:, 0]

    def gradient(self, given: AccuracyInput) -> Any:
        result = self.softmax(given)
        result[np.arange(len(result)), given.labels] -= 1
        return result


class Torch:
    modules = ("torch",)

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def softmax(self, given: AccuracyInput) -> Any:
        return self.torch.softmax(self.torch.from_numpy(given.logits), -1).numpy()

    def log_softmax(self, given: AccuracyInput) -> Any:
        return self.torch.log_softmax(self.torch.from_numpy(given.logits), -1).numpy()

    def logsumexp(self, given: AccuracyInput) -> Any:
        return self.torch.logsumexp(self.torch.from_numpy(given.logits), -1).numpy()

    def _losses(self, given: AccuracyInput) -> tuple[Any, Any]:
        logits = self.torch.from_numpy(given.logits).requires_grad_(True)
        labels = self.torch.from_numpy(given.labels)
        return logits, self.torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def cross_entropy(self, given: AccuracyInput) -> Any:
        return self._losses(given)[1].detach().numpy()

    def gradient(self, given: AccuracyInput) -> Any:
        logits, losses = self._losses(given)
        losses.sum().backward()
        return logits.grad.numpy()


class Jax:
    modules = ("jax",)

    def __init__(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
        self.nn, self.numpy = jax.nn, jax.numpy
        self._gradient = jax.jit(
            jax.grad(lambda logits, labels: self._losses(logits, labels).sum())
        )

    def _losses(self, logits: Any, labels: Any) -> Any:
        log_probabilities = self.nn.log_softmax(logits, axis=-1)
        return -self.numpy.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]

    def softmax(self, given: AccuracyInput) -> Any:
        return np.asarray(self.nn.softmax(given.logits, axis=-1))

    def log_softmax(self, given: AccuracyInput) -> Any:
        return np.asarray(self.nn.log_softmax(given.logits, axis=-1))

    def logsumexp(self, given: AccuracyInput) -> Any:
        return np.asarray(self.nn.logsumexp(given.logits, axis=-1))

    def cross_entropy(self, given: AccuracyInput) -> Any:
        return np.asarray(self._losses(given.logits, given.labels))

    def gradient(self, given: AccuracyInput) -> Any:
        return np.asarray(self._gradient(given.logits, given.labels))


IMPLEMENTATIONS: dict[str, Any] = {
    "softce_fast": SoftceFast,
    "reference": Reference,
    "torch": Torch,
    "scipy": SciPy,
    "jax": Jax,
}


def measure(
    names: Sequence[str], dtypes: Sequence[str], class_counts: Sequence[int], elements: int
) -> list[dict[str, Any]]:
    """The largest error of each function, dtype and implementation, and the input it came from."""
    implementations = {name: IMPLEMENTATIONS[name]() for name in names}
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for dtype in dtypes:
        inputs = truth.accuracy_inputs(dtype, class_counts=class_counts, elements=elements)
        kinds = len(truth.SCALES) * len(truth.OFFSETS) + 2
        progress = tqdm(inputs, total=len(class_counts) * kinds, desc=dtype, unit="input")
        for given in progress:
            for function, (compute_truth, floor, _) in FUNCTIONS.items():
                exact = compute_truth(given)
                for name, implementation in implementations.items():
                    result = getattr(implementation, function)(given)
                    error = float(truth.ulp_error(result, exact, dtype, floor=floor).max())
                    entry = worst.setdefault(
                        (function, dtype, name),
                        {"function": function, "dtype": dtype, "implementation": name, "ulp": -1.0},
                    )
                    if error > entry["ulp"]:
                        entry.update(ulp=error, input=given.kind, classes=given.classes)
    for entry in worst.values():
        if not math.isfinite(entry["ulp"]):
            entry["ulp"] = None  # JSON has no infinity
    return list(worst.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer class counts and rows")
    parser.add_argument("--implementations", nargs="+", choices=list(IMPLEMENTATIONS))
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--json", type=Path, default=RESULTS / "local" / "accuracy.json")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    if not truth.HAS_EXTENDED and "float64" in options.dtype:
        sys.exit("long double is no wider than float64 here: choose --dtype float32")

    names = []
    for name in options.implementations or IMPLEMENTATIONS:
        missing = [m for m in IMPLEMENTATIONS[name].modules if not importlib.util.find_spec(m)]
        if missing:
            print(f"skipped {name}: {', '.join(missing)} not installed")
        else:
            names.append(name)
    class_counts = (2, 10, 1000, 32_768) if options.quick else truth.CLASS_COUNTS
    elements = 2**15 if options.quick else 2**18
    # A peer that overflows or takes log(0) shows it in its error.
    with np.errstate(all="ignore"):
        results = measure(names, options.dtype, class_counts, elements)

    document = {
        "kind": "accuracy",
        **machine.describe(("numpy", "softce_fast", "scipy", "torch", "jax")),
        "targets": {name: target for name, (_, _, target) in FUNCTIONS.items()},
        "class_counts": list(class_counts),
        "elements_per_input": elements,
        "results": results,
    }
    machine.record(document, options.json)

    import report

    print(report.accuracy_table(document))
    if not options.no_plots:
        for path in report.plot_accuracy(document, options.json.parent):
            print(f"saved {path}")


if __name__ == "__main__":
    main()
