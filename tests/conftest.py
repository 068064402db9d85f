"""What the whole suite shares: the ISA builds, the optional peers, Hypothesis' profile."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from softce_fast import _dispatch

ISAS = ("avx512", "avx2", "baseline")

if importlib.util.find_spec("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
    hypothesis.settings.register_profile("local", deadline=None)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One case on all builds, then the next: what is right for it is computed once."""
    places: dict[tuple[str, ...], int] = {}
    items.sort(key=lambda item: places.setdefault(case_of(item), len(places)))


def case_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the test and its parameters but for the build."""
    test, _, parameters = item.nodeid.partition("[")
    first, _, others = parameters.partition("-")
    return (test, others) if first in ISAS else (test, parameters)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on one build of the kernels; modules ask for it with `usefixtures`."""
    name = request.param
    if name not in _dispatch.available():
        pytest.skip(f"the {name} build is not in this package, or this machine cannot run it")
    with _dispatch.using(name):
        yield name


@pytest.fixture
def torch() -> Iterator[ModuleType]:
    """PyTorch on one thread: the arrays are small, and waking more takes longer than the work."""
    module = pytest.importorskip("torch")
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


@pytest.fixture
def special() -> ModuleType:
    return pytest.importorskip("scipy.special")


@pytest.fixture(params=["float16", "bfloat16", "float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """Each dtype that has kernels."""
    return dtype_named(request.param)


@pytest.fixture(params=["float32", "float64"])
def full_dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """Each dtype that the accuracy targets are for."""
    return dtype_named(request.param)


@pytest.fixture(params=["float16", "bfloat16"])
def half_dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """Each dtype of two bytes."""
    return dtype_named(request.param)


def dtype_named(name: str) -> np.dtype[Any]:
    """Return a dtype; bfloat16 skips the test without ml_dtypes."""
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)
