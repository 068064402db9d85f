"""Smoke tests of the benchmarks: the list of shapes, the registry of peers, the report."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

for needed in ("matplotlib", "pandas", "tabulate", "tqdm"):
    pytest.importorskip(needed)

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import ablation
import adapters
import compare
import linear
import peers
import plots
import report
import shapes
import timing
import ways
from peers import Peer
from shapes import CASES, Case, Problem
from timing import Timing


def test_cases_are_distinct_and_cover_every_column() -> None:
    identifiers = [case.identifier for case in CASES]
    assert len(set(identifiers)) == len(identifiers)
    for dtype in ("float32", "float64"):
        columns = {case.column for case in CASES if case.dtype == dtype}
        assert columns == set(shapes.COLUMNS) - {"half"}
    assert {case.dtype for case in CASES} == set(shapes.ITEM_SIZES)
    half = [case for case in CASES if case.dtype in shapes.HALF_DTYPES]
    assert min(case.array_bytes for case in half) >= 64 * shapes.MEBIBYTE


def test_minimum_bytes_count_each_array_once() -> None:
    case = Case("cross_entropy_with_grad_out", (4, 3, 5), "float32", "middle", axis=1)
    assert (case.classes, case.rows) == (3, 20)
    assert case.minimum_bytes == 60 * 8 + 20 * 8


def test_bench_and_quick_cases_are_part_of_the_list() -> None:
    assert set(shapes.BENCH_CASES) <= set(CASES)
    assert {case.column for case in shapes.QUICK_CASES} == set(shapes.COLUMNS) - {"half"}


def test_cases_are_chosen_by_a_part_of_their_names() -> None:
    cases = {case.identifier: case for case in CASES}
    only = Namespace(only=["cross_entropy-float32-16384x1000", "no such case"])
    (case,) = report.chosen(only, cases)
    assert (case.operation, case.shape, case.dtype) == ("cross_entropy", (16_384, 1000), "float32")
    assert report.chosen(Namespace(only=None), cases) == list(CASES)
    with pytest.raises(SystemExit, match="no case has such in its name"):
        report.chosen(Namespace(only=["such"]), cases)


def test_inputs_are_reproducible() -> None:
    case = Case("cross_entropy", (6, 4, 5), "float32", "middle", axis=1)
    problem = Problem.of(case)
    assert problem.logits.shape == (6, 4, 5)
    assert problem.labels.shape == (6, 5)
    assert problem.labels.max() < 4
    shapes._inputs.cache_clear()
    np.testing.assert_array_equal(Problem.of(case).logits, problem.logits)


def test_calls_alternate() -> None:
    order: list[str] = []
    blocks = {name: lambda name=name: order.append(name) or [1.0, 3.0, 8.0] for name in "ab"}
    assert timing.interleaved(blocks, 2) == dict.fromkeys("ab", Timing(3.0, 3.0, 3.0, 2))
    assert order == ["a", "b", "a", "b"]
    times = timing.alternate(
        {"short": lambda: sum(range(10_000)), "long": lambda: sum(range(80_000))}
    )
    seconds = timing.medians(times)
    assert 2 < seconds["long"] / seconds["short"] < 32


def test_peers_that_are_not_installed_are_named() -> None:
    assert peers.PEERS["numpy"].missing() is None
    absent = Peer("Absent", peers.numpy, ("no-such-package",))
    assert absent.missing() == "no-such-package not installed"


def test_a_peer_that_fails_or_dies_is_told() -> None:
    process = compare.PeerProcess("numpy")
    half = Case("softmax_out", (4, 3), "float16")
    assert process.ask(compare.prepare, "numpy", half) is None
    assert process.missing == "no float16"
    process.missing = ""
    assert process.ask(os._exit, 3) is None
    assert process.missing == "died: its process ended"
    process.executor.shutdown()


# Those whose libraries the tests need anyway; JAX's threads would warn in every fork from now on.
@pytest.mark.parametrize("name", ["softce_fast", "textbook", "numpy", "scipy", "sklearn", "torch"])
@pytest.mark.parametrize("operation", shapes.OPERATIONS)
@pytest.mark.parametrize(("shape", "axis"), [((300, 7), -1), ((4, 5, 6), 1)])
def test_every_way_of_a_peer_is_right(
    name: str,
    operation: str,
    shape: tuple[int, ...],
    axis: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = peers.PEERS[name]
    if missing := peer.missing():
        pytest.skip(missing)
    monkeypatch.setattr(peers, "BLOCK_BYTES", 200)  # so that there are several blocks
    case = Case(operation, shape, "float32", "few", axis)
    try:
        ways = peer.prepared(Problem.of(case))
    except peers.UnsupportedError as error:
        assert name in ("sklearn", "torch"), error  # noqa: PT017
        return
    assert len(ways) == 3 or name != "numpy"
    right = compare.expected(case)
    for way, run in ways.items():
        found = compare.sample(peer.parts(case, run()))
        assert set(found) == set(right), way
        assert not compare.wrong(found, right, case), way


@pytest.mark.parametrize("function", ["softmax", "cross_entropy", "logsumexp"])
def test_expected_results_are_those_of_scipy(function: str, special: ModuleType) -> None:
    case = Case(function, (300, 7), "float64")
    problem = Problem.of(case)
    exact = {
        "softmax": special.softmax(problem.logits, axis=1).reshape(-1),
        "logsumexp": special.logsumexp(problem.logits, axis=1),
        "cross_entropy": -special.log_softmax(problem.logits, axis=1)[
            np.arange(300), problem.labels
        ].mean(keepdims=True),
    }
    (found,) = compare.expected(case).values()
    np.testing.assert_allclose(found, exact[function], rtol=1e-12)


def test_a_wrong_result_is_found() -> None:
    case = Case("softmax_out", (10, 3), "float32", "few")
    right = np.linspace(0.1, 1, 30)
    poisoned = np.where(right > 0.5, np.nan, right)

    def judged(values: Any) -> str:
        return compare.wrong({"array": values}, {"array": right}, case)

    assert judged(right) == ""
    assert judged(right + 0.1) == judged(poisoned) == "wrong result: array"
    assert judged(right[:4]) == "wrong result: array has another size"


HEAD: dict[str, Any] = {
    "date": "2000-01-01 00:00 UTC",
    "machine": {"cpu": "A CPU", "cores": 2, "system": "Linux"},
    "softce_fast": {"isa": {"in use": "avx2"}},
    "versions": {"python": "3.12", "numpy": "2.0"},
}


def compare_document() -> dict[str, Any]:
    case = Case("softmax_out", (16384, 1000), "float32", "medium")
    medians = {"softce_fast": 0.975e-3, "numpy": 3e-3, "torch": 2e-3, "memory_limit": 0.8e-3}
    times = {name: Timing(median, median, median, 2) for name, median in medians.items()}
    entry = compare.summarise(case, times, dict.fromkeys(times, ""), {"jax": "failed: no reason"})
    return {"kind": "compare", **HEAD, "skipped": {"numba": "not installed"}, "cases": [entry]}


def test_compare_summary_and_table() -> None:
    document = compare_document()
    (entry,) = document["cases"]
    ours = 0.975e-3
    assert entry["best_peer"] == "torch"
    assert entry["ratio"] == pytest.approx(2e-3 / ours)
    assert entry["limit_share"] == pytest.approx(0.8e-3 / ours)
    table = report.KINDS["compare"](document)
    assert "16384x1000" in table
    assert "2.05" in table
    assert "skipped Numba: not installed" in table
    assert "JAX: failed: no reason" in table
    assert "ahead of every peer in 1 of 1 cases; 1 of 1 cases" in table
    page = report.peers_markdown(document)
    assert "| 2.05 PyTorch |" in page
    assert "Ahead of every peer in 1 of 1 cases." in page


def raw_speed_document() -> dict[str, Any]:
    case = Case("cross_entropy", (32, 1000), "float32", "batch")
    benchmarks = [
        {
            "group": case.identifier,
            "extra_info": {**case.described(), "implementation": name},
            "stats": {"median": median, "min": median, "iqr": 0.0, "rounds": 3},
        }
        for name, median in (("softce_fast", 1e-5), ("textbook", 3e-4))
    ]
    return {"machine_info": {"node": "a-host"}, "benchmarks": benchmarks}


def test_speed_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report.machine, "describe", lambda: HEAD)
    document = report.condense(raw_speed_document())
    assert "a-host" not in json.dumps(document)
    assert document["cases"][0]["ratio"] == pytest.approx(30)
    table = report.KINDS["speed"](document)
    assert "10 us" in table
    assert "300 us" in table
    assert "12.8" in table  # GB/s of 128,256 bytes in 10 us

    (tmp_path / "speed.json").write_text(json.dumps(document))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- numpy:begin -->\nold\n<!-- numpy:end -->\nafter\n")
    assert report.update_page(page, "docs/benchmarks.md", tmp_path) == ["numpy"]
    text = page.read_text()
    assert "old" not in text
    assert "| 32x1000 | 10 us, 30.0x |" in text
    assert text.startswith("before\n<!-- numpy:begin -->\n")
    assert text.endswith("<!-- numpy:end -->\nafter\n")
    with pytest.raises(ValueError, match="accuracy:begin"):
        report.between_markers(text, "accuracy", "")
    assert "| 32 x 1,000 | 30.0x (300 us → 10 us) |" in report.SECTIONS["README.md"][0][2](document)


def test_every_section_has_its_place() -> None:
    """In the pages; and each plot, once its results are recorded."""
    for page, sections in report.SECTIONS.items():
        path = report.ROOT / page
        if not path.exists():
            pytest.skip("the pages are not beside the tests")
        text = path.read_text(encoding="utf-8")
        for name, _, _ in sections:
            report.between_markers(text, name, "")
    pages = "".join((report.ROOT / page).read_text(encoding="utf-8") for page in report.SECTIONS)
    for picture, (file, _) in report.PLOTS.items():
        recorded = (report.RESULTS / file).exists()
        assert not recorded or f"({picture})" in pages or f"({picture[len('docs/') :]})" in pages


def test_plots(tmp_path: Path) -> None:
    """Bars begin at 0, ours is told from the others, and a missing digit is said."""
    medians = {"softce_fast": 1e-3, "numba": 3e-3, "numba_polynomial": 2e-3, "memory_limit": 1e-4}
    entry = {"seconds": {name: {"median": median} for name, median in medians.items()}}
    assert plots.times_by_title(entry) == {"softce_fast": 1e-3, "Numba": 2e-3}
    assert plots.right_digits(0.5) == plots.right_digits(0.0) == pytest.approx(7.22, abs=0.01)
    assert plots.right_digits(5.0) == pytest.approx(7.22 - 1, abs=0.01)
    assert plots.right_digits(2e7) == plots.right_digits(None) == 0

    cases = [
        {"operation": operation, "shape": shape, "dtype": "float32", **entry}
        for operation, shape, _ in plots.SPEED_PANELS
    ]
    results = [
        {"function": "softmax", "dtype": "float32", "implementation": name, "ulp": ulp}
        for name, ulp in (("softce_fast", 2.5), ("scipy", None))
    ]
    assert plots.speed({**HEAD, "cases": cases}, tmp_path / "speed.png").exists()
    assert plots.accuracy({"results": results}, tmp_path / "accuracy.png").exists()


def test_mechanisms_are_taken_out_where_they_are_in_use() -> None:
    def names(operation: str, shape: tuple[int, int], dtype: str = "float32") -> set[str]:
        case = Case(operation, shape, dtype)
        return set(ablation.ways(peers.call(ablation.softce_fast, Problem.of(case)))) - {
            report.PLANNED
        }

    rows = {"several rows at once", "read in place"}
    assert names("softmax_out", (32, 1000)) == rows | {"exponentials kept", "kept in the output"}
    assert names("cross_entropy", (32, 1000)) == rows
    across = {"across", "batches of tiles", "read in place", "rest along"}
    assert names("cross_entropy", (100, 100)) == across
    assert "few digits" in names("softmax_out", (100, 100), "float16")
    large = names("softmax_out", (2**20, 8))
    assert large == across - {"rest along"} | {"stores past the caches", "fetching ahead"}


@pytest.mark.parametrize("name", ways.WAYS)
def test_every_way_is_the_same_as_in_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    way = ways.WAYS[name]
    dtype = "float32" if "float32" in way.dtypes else "float16"
    for operation in way.operations:
        plain = ways.Arguments.plain(operation, 2 * way.inner, 20, dtype)
        arguments = way.change(plain)
        ours, theirs = arguments.call()(), ways.torch_call(arguments)
        if theirs is None:
            continue
        parts, right = ((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs()))
        for part, tensor in zip(parts, right, strict=True):
            rounding = 1e-2 if dtype == "float16" else 1e-5
            torch.testing.assert_close(
                torch.from_numpy(np.atleast_1d(part)), torch.atleast_1d(tensor), rtol=rounding,
                atol=rounding, check_dtype=False,
            )  # fmt: skip


def test_ways_that_there_is_no_memory_for_are_left_out() -> None:
    options = SimpleNamespace(megabytes=[1], classes=[10, 1000])
    way = ways.WAYS["class axis in the middle, inner 1024"]
    assert list(ways.sizes(way, options, "float32")) == [(26_214, 10, 1)]


def way_cell(name: str, operation: str, classes: int, **seconds: float) -> dict[str, Any]:
    cell = {"way": name, "operation": operation, "classes": classes, "dtype": "float32"}
    return {**cell, "target": 1.5, "ahead": 1, "seconds": seconds}


def test_ways_report(tmp_path: Path) -> None:
    cells = [
        way_cell("gaps", "softmax", 10, plain=1, way=1.2, peer=2.4),
        way_cell("gaps", "logsumexp", 10, plain=1, way=1.3, peer=1.2),
        way_cell("gaps", "softmax", 100, **{"plain": 1, "way": 3, report.BESIDE: 12}),
        way_cell("labels", "nll_loss", 100, way=1, peer=2),
        way_cell("labels", "cross_entropy_from_probs", 100, way=1),
    ]
    document = {**HEAD, "cells": cells}
    assert report.ways_rows(document).to_dict("records") == [
        {
            "time over that of the plain call": "gaps",
            "dtype": "float32",
            "target": "1.5",
            "10 classes": "1.30 logsumexp",
            "100 classes": "3.00 softmax",
            "least of the peer's times over ours": "0.92",
            "beside a busy process, over its own time": "4.00",
            "reached": "1 of 3",
        },
        {
            "time over that of the plain call": "labels",
            "dtype": "float32",
            "target": "1.5",
            "10 classes": "",
            "100 classes": "0.50 nll_loss",
            "least of the peer's times over ours": "2.00",
            "beside a busy process, over its own time": "",
            "reached": "1 of 1",
        },
    ]
    assert not {"target", "reached"} & set(report.ways_page_rows(document).columns)
    assert plots.ways(document, tmp_path / "ways.png").exists()


@pytest.mark.parametrize("task", [linear.GRADIENTS, linear.LOSS])
@pytest.mark.parametrize("way", [linear.OURS, "PyTorch, eager", linear.CHUNKED])
def test_a_way_to_a_linear_loss(way: str, task: str, special: ModuleType) -> None:
    """Those that compile take long, or leave threads in this process."""
    if way != linear.OURS:
        pytest.importorskip("torch")
    shape = 40, 30, 8
    arrays = linear.Arrays(*shape)
    log_probs = special.log_softmax(arrays.hidden @ arrays.matrix.T.astype(np.float64), axis=1)
    right = -log_probs[np.arange(40), arrays.target].mean()
    np.testing.assert_allclose(linear.prepare(way, task, shape), right, 1e-5)


def test_linear_report(tmp_path: Path) -> None:
    seconds = {report.PRODUCTS: 3.0, linear.OURS: 4.0, "JAX": 8.0, linear.CHUNKED: 6.0}
    times = [
        {
            "task": linear.GRADIENTS,
            "features": features,
            "way": way,
            "seconds": 1e-5 * found * features,
        }
        for features in (128, 512)
        for way, found in seconds.items()
    ]
    compared = list(linear.compared(times))
    assert [(e["features"], e["target"], pytest.approx(e["ratio"])) for e in compared] == [
        (128, 0.75, 0.75), (512, 0.85, 0.75), (128, 1.4, 2), (512, 1.1, 2), (128, 1.3, 1.5),
        (512, 1.3, 1.5),
    ]  # fmt: skip
    peaks = [{"rows": 50, "way": way, "bytes": 2**22} for way in seconds]
    document = {
        **HEAD, "rows": 50, "classes": 7, "times": times, "compared": compared,
        "memory_features": 5, "peaks": peaks,
    }  # fmt: skip
    lines = report.linear_markdown(document).splitlines()
    assert "| loss and gradients | softce_fast | 5.12 ms, 0.75 | 20.5 ms, 0.75 |" in lines
    what = f"{linear.GRADIENTS}: {linear.OURS} over the products alone"
    assert f"| {what} | 0.75 | 0.75 |" in lines
    assert "| softce_fast | 4 MiB |" in lines
    assert plots.linear(document, tmp_path / "linear.png").exists()


def test_adapters_do_what_the_library_does() -> None:
    pytest.importorskip("sklearn")
    for of_library in adapters.LIBRARIES.values():
        if importlib.util.find_spec(of_library.__name__):
            what, pair = next(of_library(True))
            assert what
            for call in pair().values():
                call()


def test_adapters_report() -> None:
    cells = [
        {"library": "PyTorch", "what": "a step", "seconds": {"softce_fast": 2.0, "other": seconds}}
        for seconds in (3.0, 2.0)
    ]
    table = report.markdown(report.adapters_rows({**HEAD, "cells": cells})).splitlines()
    assert table[2] == "| PyTorch | a step | 3 s | 2 s | 1.50 |"
    assert table[3] == "| PyTorch | a step | 2 s | 2 s | 1.00, nothing gained |"


def test_adapters_are_timed_by_calls_of_their_own_where_they_take_long() -> None:
    calls: list[str] = []
    pair = {name: partial(calls.append, name) for name in ("softce_fast", "other")}
    assert set(adapters.measured(pair, 1)) == set(pair)
    assert len(calls) > 4
    calls.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "LONG", 0.0)
        assert set(adapters.measured(pair, 2)) == set(pair)
    assert calls == ["softce_fast", "other"] * 3


def test_ablation_report() -> None:
    cells = [
        {"build": "avx2", "dtype": "float32", "operation": operation, "shape": shape,
         "seconds": {"as planned": 2.0, "across": seconds}}
        for operation, shape, seconds in (
            ("softmax_out", "10x3", 3.0), ("softmax_out", "5x7", 12.0),
            ("cross_entropy", "5x7", 1.0),
        )
    ]  # fmt: skip
    rows = report.ablation_rows({**HEAD, "cells": cells}).to_dict("records")
    assert rows == [
        {
            "time without it over the time with it": "across",
            "build": "avx2",
            "dtype": "float32",
            "softmax, out=": "3.00 (1.50 to 6.00, 5x7)",
            "cross_entropy": "0.50 (0.50 to 0.50, 5x7)",
        }
    ]


def test_options_report() -> None:
    seconds = {"10x3": {"no option": 0.002, "weight": 0.003}, "5x7": {"no option": 1, "weight": 1}}
    table = report.markdown(report.options_rows({**HEAD, "seconds": seconds})).splitlines()
    assert table[0].endswith("| 10x3 | 5x7 |")
    assert table[3].startswith("| weight | 3 ms, 1.50 |")


def test_waiting_report() -> None:
    seconds = {"one thread": 0.002, "by itself": 0.003}
    cell = {"shape": "10x3", "situation": "back to back", "seconds": seconds}
    table = report.markdown(report.waiting_rows({**HEAD, "cells": [cell]})).splitlines()
    assert table[0].endswith("| one thread | by itself |")
    assert table[2] == "| 10x3 | back to back | 2 ms | 3 ms |"


def test_threads_report() -> None:
    points = [
        {
            "function": "cross_entropy",
            "rows": 50,
            "classes": 7,
            "threads": count,
            "speedup": speedup,
        }
        for count, speedup in ((1, 1.0), (2, 1.9), (3, 2.7), (4, 3.25))
    ]
    table = report.markdown(report.threads_rows({**HEAD, "points": points})).splitlines()
    assert table[0].endswith("| shape | 2 threads | 4 threads |")
    assert table[2] == "| cross_entropy | 50x7 | 1.90 | 3.25 |"


def test_accuracy_report() -> None:
    document = {
        "kind": "accuracy",
        **HEAD,
        "targets": {"softmax": 4},
        "results": [
            {"function": "softmax", "dtype": "float32", "implementation": name, "ulp": ulp}
            for name, ulp in (("softce_fast", 2.5), ("torch", 232.0), ("scipy", None))
        ],
    }
    table = report.KINDS["accuracy"](document)
    assert "2.50" in table
    assert "232" in table
    assert "not finite" in table


def test_errors_of_targets_are_a_column_for_each_build() -> None:
    results = [
        {"result": result, "kind": "labels", "dtype": "float32", "isa": isa, "ulp": ulp}
        for result, isa, ulp in (
            ("loss", "avx2", 1.25), ("loss", "baseline", 2.5), ("gradient", "avx2", 3.0),
        )
    ]  # fmt: skip
    table = report.markdown(report.targets_rows({**HEAD, "results": results})).splitlines()
    assert table[0].endswith("| target, options | float32, avx2 | float32, baseline |")
    assert table[2] == "| loss | labels | 1.25 | 2.50 |"


def test_times_and_ratios_read_well() -> None:
    times = [report.time_text(seconds) for seconds in (2.0, 0.0123, 4.56e-5, 7e-9)]
    assert times == ["2 s", "12.3 ms", "45.6 us", "7 ns"]
    ratios = [report.ratio_text(ratio) for ratio in (1.234, 12.34, 123.4)]
    assert ratios == ["1.23", "12.3", "123"]
