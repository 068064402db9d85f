"""Pictures of recorded results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot

import machine
from peers import OWN_CODE, TITLES

matplotlib.use("Agg")  # no window, also where there is a display
pyplot.rcParams.update({
    "axes.axisbelow": True, "axes.grid": True, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "figure.constrained_layout.use": True, "figure.dpi": 110, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.labelsize": 8, "ytick.labelsize": 9,
})  # fmt: skip

OURS, OTHERS = "#2a78b5", "#b9b9b9"
LINES: dict[str, dict[str, Any]] = {
    "softce_fast": {"color": OURS, "linewidth": 2.5},
    "matrix products": {"color": "k", "linestyle": ":"},
}
PLAIN_WAY = "plain"  # what other ways of ways.py are compared with
BESIDE = "beside a busy process"  # a time of ways.py and waiting.py

Document = dict[str, Any]
Entry = dict[str, Any]

# What the picture of speed shows: operation and shape of a case, and the panel's title.
SPEED_PANELS = (
    ("softmax_fresh", "16384x1000", "softmax\n16,384 rows of 1,000 classes"),
    ("cross_entropy", "1000000x10", "cross_entropy\n1,000,000 rows of 10 classes"),
    ("cross_entropy_with_grad_fresh", "16384x1000",
     "loss and gradient\n16,384 rows of 1,000 classes"),
)  # fmt: skip
ACCURACY_PANELS = {
    "softmax": "softmax", "log_softmax": "log_softmax", "logsumexp": "logsumexp",
    "cross_entropy": "loss of a row", "gradient": "gradient",
}  # fmt: skip
FLOAT32_DIGITS = math.log10(2**24)


def panels(
    count: int, size: tuple[float, float], title: str, shared: bool = True
) -> tuple[Any, list[Any]]:
    """A figure with panels beside one another, which may share their axes."""
    figure, axes = pyplot.subplots(
        1, count, figsize=size, sharex=shared, sharey=shared, squeeze=False
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure, list(axes.flat)


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def name_rows(axis: Any, names: Iterable[str]) -> None:
    """The first one on top."""
    names = list(names)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)


def horizontal_bars(axis: Any, title: str, bars: dict[str, float]) -> None:
    """Bars from 0, ours in blue, each with its number."""
    colors = [OURS if name == "softce_fast" else OTHERS for name in bars]
    drawn = axis.barh(range(len(bars)), list(bars.values()), color=colors, height=0.72)
    texts = [f"{value:.1f}" if value else "none" for value in bars.values()]
    axis.bar_label(drawn, texts, padding=3, fontsize=8)
    name_rows(axis, bars)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.set_title(title)


def times_by_title(entry: Entry) -> dict[str, float]:
    """Seconds by library; where there are two ways of one library, the better one."""
    times: dict[str, float] = {}
    for name, found in entry["seconds"].items():
        if name not in ("memory_limit", "softce_fast_float32"):
            title = TITLES["numba" if name == OWN_CODE else name]
            times[title] = min(times.get(title, math.inf), found["median"])
    return times


def speed(document: Document, path: Path) -> Path:
    """Time of a call by library, a panel for each of some cases."""
    title = f"Time of a call, float32, on {machine.one_line(document)}"
    figure, axes = panels(len(SPEED_PANELS), (11, 3.9), title, shared=False)
    cases = {(e["operation"], e["shape"]): e for e in document["cases"] if e["dtype"] == "float32"}
    for axis, (operation, shape, title) in zip(axes, SPEED_PANELS, strict=True):
        times = times_by_title(cases[operation, shape])
        milliseconds = {name: 1e3 * times[name] for name in sorted(times, key=times.__getitem__)}
        horizontal_bars(axis, title, milliseconds)
        axis.set_xlim(0, 1.13 * max(milliseconds.values()))
        axis.set_xlabel("milliseconds (lower is better)")
    return save(figure, path)


def right_digits(ulp: float | None) -> float:
    """Decimal digits that are right, of a float32 that is so many units in the last place off."""
    if ulp is None:
        return 0.0
    return max(FLOAT32_DIGITS - math.log10(max(2 * ulp, 1)), 0.0)


def accuracy(document: Document, path: Path) -> Path:
    """Right digits of the worst result by library, a panel for each function."""
    bars: dict[str, dict[str, float]] = {}
    for entry in document["results"]:
        if entry["dtype"] == "float32":
            of_function = bars.setdefault(entry["function"], {})
            of_function[TITLES[entry["implementation"]]] = right_digits(entry["ulp"])
    title = (
        f"Decimal digits that are right in the worst of all results, of the {FLOAT32_DIGITS:.1f} "
        "that a float32 has; inputs include rows whose label is almost certain"
    )
    figure, axes = panels(len(bars), (11, 2.5), title)
    for axis, (function, found) in zip(axes, bars.items(), strict=True):
        horizontal_bars(axis, ACCURACY_PANELS[function], found)
        axis.set_xlim(0, 8.4)
        axis.set_xticks(range(0, 8, 2))
    figure.supxlabel("right decimal digits (higher is better)", fontsize=9)
    return save(figure, path)


def linear(document: Document, path: Path) -> Path:
    """Times beside the products' by number of features, growth of the peak by number of rows."""
    times, peaks = pd.DataFrame(document["times"]), pd.DataFrame(document["peaks"])
    times["text"] = times["task"] + f", {document['rows']} rows"
    found = [
        *((*item, "features", "seconds") for item in times.groupby("text", sort=False)),
        (f"memory, {document['memory_features']} features", peaks, "rows", "bytes"),
    ]
    title = f"float32, on {machine.one_line(document)}"
    figure, axes = panels(len(found), (11, 3.6), title, shared=False)
    ways = list(dict.fromkeys(times["way"]))
    for axis, (title, points, across, up) in zip(axes, found, strict=True):
        table = points.pivot_table(index=across, columns="way", values=up).reindex(columns=ways)
        table = table / 2**20 if up == "bytes" else 1e3 * table
        for place, way in enumerate(ways):
            style = LINES.get(way, {"color": f"C{place}"})
            axis.plot(table.index, table[way], marker="o", markersize=3.5, label=way, **style)
        axis.set_title(f"{title}, {document['classes']} classes")
        axis.set_xlabel(across)
        axis.set_ylabel("MiB more than before the call" if up == "bytes" else "milliseconds")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("")
        axis.set_xticks(table.index)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save(figure, path)


def way_ratios(document: Document) -> pd.DataFrame:
    """The cells of ways.py with the way's time over the plain call's, or else over the peer's.

    And the peer's time over the way's, and the way's beside a busy process over its own; NaN where
    it was not measured.
    """
    cells = pd.DataFrame(document["cells"])
    names = "way", PLAIN_WAY, "peer", BESIDE
    way, plain, peer, beside = (
        pd.Series([seconds.get(name, math.nan) for seconds in cells["seconds"]]) for name in names
    )
    cells = cells.assign(ratio=way / plain.fillna(peer), lead=peer / way, slowed=beside / way)
    return cells.dropna(subset="ratio")


def ways(document: Document, path: Path) -> Path:
    """A row a way, a mark a class count (the least favourable), the target as a line."""
    frame = way_ratios(document)
    names, dtypes = list(frame["way"].unique()), list(frame["dtype"].unique())
    title = "Time over the plain call's, of the least favourable operation; target: line\n"
    size = 3 + 3 * len(dtypes), 0.3 * len(names) + 1.6
    figure, axes = panels(len(dtypes), size, title + machine.one_line(document))
    for axis, dtype in zip(axes, dtypes, strict=True):
        chosen = frame[frame["dtype"] == dtype]
        for classes, worst in chosen.groupby(["classes", "way"])["ratio"].max().groupby("classes"):
            worst = worst.droplevel("classes")
            axis.plot(worst, [names.index(n) for n in worst.index], "o", label=f"{classes} classes")
        for name, target in chosen.groupby("way")["target"].min().items():
            place = names.index(name)
            axis.plot([target] * 2, [place - 0.4, place + 0.4], "k-", linewidth=2)
        name_rows(axis, names)
        axis.set_title(dtype)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.xaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save(figure, path)
