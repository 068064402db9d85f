"""softce_fast.reference.sharded: the kernels' results, and those of undivided calls."""

from __future__ import annotations

import numpy as np
import pytest

import softce_fast as sf
from shards import OF_LOGITS, Sharded
from softce_fast import sharded
from test_sharded import OPTIONS, case, options_for
from tolerances import OPTIONS_EPSILONS, epsilon

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("names", [*OPTIONS, ("denominator",)], ids="-".join)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reference_agrees(dtype: np.dtype, names: tuple[str, ...], reduction: str) -> None:
    """Also in rows of -inf, +inf and NaN, confident ones, and some that a mask empties."""
    logits, target = case(30, np.dtype(np.float64))
    logits[0], logits[1, 3], logits[2, 20] = -np.inf, np.inf, np.nan
    logits[5, 8] = 90
    if reduction != "none":
        logits, target = logits[3:], target[3:]
    logits = logits.astype(dtype)
    options = options_for(names, target, 30) | {"reduction": reduction}
    if "denominator" in options:
        options["denominator"] = 2.5
    if "where" in options:
        options["where"][4] = False
    found, right = (
        Sharded(logits, target, [1, 10, 10], module, **options)
        for module in (sharded, sf.reference.sharded)
    )
    scale = OPTIONS_EPSILONS[dtype.name] * epsilon(dtype)
    for name in ("loss", "gradient", "softmax", "log_softmax", "logsumexp"):
        ours, plain = getattr(found, name), getattr(right, name)
        assert ours.dtype == plain.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(float), plain.astype(float), scale, 10 * scale, err_msg=name
        )


@pytest.mark.parametrize("names", OPTIONS, ids="-".join)
def test_as_the_undivided_reference(names: tuple[str, ...]) -> None:
    logits, target = case(30, np.dtype(np.float64))
    options = options_for(names, target, 30)
    loss, gradient = sf.reference.cross_entropy_with_grad(logits, target, **options)
    found = Sharded(logits, target, [4, 17], sf.reference.sharded, **options)
    np.testing.assert_allclose(found.loss, loss, 1e-14)
    np.testing.assert_allclose(found.gradient, gradient, 1e-13, 1e-15)
    of_logits = {name: options[name] for name in OF_LOGITS if name in options}
    if "softcap" not in of_logits:
        right = sf.reference.softmax(logits, **of_logits)
        np.testing.assert_allclose(found.softmax, right, 1e-14)


def test_any_grouping() -> None:
    module = sf.reference.sharded
    logits, target = case(40, np.dtype(np.float64))
    a, b, c, d = Sharded(logits, target, [7, 8, 30], module).each
    right = module.cross_entropy(module.merge(a, b, c, d), reduction="none")
    for states in (
        module.merge(module.merge(d, a), module.merge(c, b)),
        module.merge(b, module.merge(c, module.merge(d, a))),
    ):
        np.testing.assert_allclose(module.cross_entropy(states, reduction="none"), right, 1e-14)
