"""How far a result may be from what it is compared with: the one table of the suite."""

from __future__ import annotations

from typing import Any

import numpy as np

import truth

# Units in the last place, against long double: the accuracy that the package promises.
ULP = {"softmax": 4.0, "log_softmax": 4.0, "logsumexp": 2.0, "loss": 4.0, "gradient": 4.0}
ULP["hessian"] = 4.0
# Half types are computed in float32 and rounded once.
HALF_ULP = 0.55
# logsumexp is measured in the spacing at max(|result|, 1).
FLOOR = {"logsumexp": 1.0}

# Multiples of the dtype's epsilon, relative to the largest term of a sum, where options add
# roundings: weights, smoothing, z-loss, temperature, reductions, backward functions.
OPTIONS_EPSILONS = {"float16": 2.0, "bfloat16": 2.0, "float32": 32.0, "float64": 32.0}
OPTIONS_EPSILONS |= {"longdouble": 64.0, "float128": 64.0}

# Relative and absolute error against another library, which has errors of its own.
PEER = {"float32": (2e-4, 1e-6), "float64": (1e-11, 1e-13)}

# Relative and absolute error of a central difference quotient in float64.
DIFFERENCE_QUOTIENT = (1e-6, 1e-8)


def epsilon(dtype: Any) -> float:
    """Return the distance from 1 to the next number."""
    return 2.0**-7 if np.dtype(dtype).name == "bfloat16" else float(np.finfo(dtype).eps)


def smallest_normal(dtype: Any) -> np.longdouble:
    return np.longdouble(2.0**-126 if np.dtype(dtype).name == "bfloat16" else np.finfo(dtype).tiny)


def ulp_limit(operation: str, dtype: Any) -> float:
    return HALF_ULP if np.dtype(dtype).itemsize == 2 else ULP[operation]


def assert_ulp(result: Any, expected: Any, operation: str, dtype: Any, scale: Any = None) -> None:
    """Check a result of `dtype` against the truth, in units in the last place.

    `scale`: what the spacing is taken at least at, the truth's ``gradient_scale`` for one.
    """
    assert np.asarray(result).dtype == dtype
    limit = ulp_limit(operation, dtype)
    floor = FLOOR.get(operation, 0.0) if scale is None else scale
    error = truth.ulp_error(result, expected, dtype, floor=floor)
    worst = error.max(initial=0.0)
    assert worst <= limit, f"{operation}: {worst:.2f} ULP at flat index {error.argmax()}"


def assert_near(result: Any, expected: Any, dtype: Any, scale: Any = 1.0) -> None:
    """Check a result of `dtype` with options against the truth; `scale`: of its largest terms,
    for all or for each row.

    Results below the smallest normal number may be that number or 0.
    """
    assert np.asarray(result).dtype == dtype
    tolerance = OPTIONS_EPSILONS[np.dtype(dtype).name] * epsilon(dtype)
    found, right = (np.asarray(item).astype(np.longdouble) for item in (result, expected))
    smallest = smallest_normal(dtype)
    under = (np.abs(right) < smallest) & (np.abs(found) <= smallest)
    near = under | np.isclose(found, right, tolerance, tolerance * scale, equal_nan=True)
    assert found.shape == right.shape or not found.ndim or not right.ndim
    found, right = np.broadcast_arrays(found, right)
    assert near.all(), f"{found[~near][:3]} for {right[~near][:3]} at {np.argwhere(~near)[:3]}"


def assert_as_peer(result: Any, expected: Any, dtype: Any) -> None:
    """Check a result against that of another library."""
    relative, absolute = PEER[np.dtype(dtype).name]
    np.testing.assert_allclose(result, expected, relative, absolute)
