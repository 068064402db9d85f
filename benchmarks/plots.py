"""Pictures of recorded results: the README's two, and those of the benchmarks for oneself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot

import machine
from formatting import ratio_text, time_text
from peers import OWN_CODE, TITLES
from shapes import OPERATIONS

matplotlib.use("Agg")  # no window, also where there is a display
pyplot.rcParams.update({
    "axes.axisbelow": True, "axes.grid": True, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "figure.constrained_layout.use": True, "figure.dpi": 110, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.labelsize": 8, "ytick.labelsize": 9,
})  # fmt: skip

OURS, OTHERS = "#2a78b5", "#b9b9b9"
PLAIN_WAY = "plain"  # what other ways of ways.py are compared with

Document = dict[str, Any]
Entry = dict[str, Any]


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def none(document: Document, directory: Path) -> list[Path]:
    return []


# ---------------------------------------------------------------------------------- for the README

# What the picture of speed shows: operation and shape of a case, and the panel's title.
SPEED_PANELS = (
    ("softmax_fresh", "16384x1000", "softmax\n16,384 rows of 1,000 classes"),
    ("cross_entropy", "1000000x10", "cross_entropy\n1,000,000 rows of 10 classes"),
    (
        "cross_entropy_with_grad_fresh",
        "16384x1000",
        "loss and gradient\n16,384 rows of 1,000 classes",
    ),
)
ACCURACY_PANELS = {
    "softmax": "softmax", "log_softmax": "log_softmax", "logsumexp": "logsumexp",
    "cross_entropy": "loss of a row", "gradient": "gradient",
}  # fmt: skip
FLOAT32_DIGITS = math.log10(2**24)


def horizontal_bars(axis: Any, names: list[str], values: list[float], texts: list[str]) -> None:
    """Bars from 0, ours in blue, the first one on top, each with its number."""
    colors = [OURS if name == "softce_fast" else OTHERS for name in names]
    axis.barh(range(len(names)), values, color=colors, height=0.72)
    for position, (value, text) in enumerate(zip(values, texts, strict=True)):
        axis.annotate(
            text, (value, position), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def times_by_title(entry: Entry) -> dict[str, float]:
    """Seconds by library; where there are two ways of one library, the better one."""
    times: dict[str, float] = {}
    for name, found in entry["seconds"].items():
        if name in ("memory_limit", "softce_fast_float32"):
            continue
        title = TITLES["numba" if name == OWN_CODE else name]
        times[title] = min(times.get(title, math.inf), found["median"])
    return times


def speed(document: Document, path: Path) -> Path:
    """Time of a call by library, a panel for each of some cases."""
    by_name = {
        (e["operation"], e["shape"]): e for e in document["cases"] if e["dtype"] == "float32"
    }
    figure, axes = pyplot.subplots(1, len(SPEED_PANELS), figsize=(11, 3.9))
    for axis, (operation, shape, title) in zip(axes, SPEED_PANELS, strict=True):
        times = times_by_title(by_name[operation, shape])
        names = sorted(times, key=lambda name: times[name])
        milliseconds = [1e3 * times[name] for name in names]
        horizontal_bars(axis, names, milliseconds, [f"{value:.1f}" for value in milliseconds])
        axis.set_title(title)
        axis.set_xlim(0, 1.13 * max(milliseconds))
        axis.set_xlabel("milliseconds (lower is better)")
    figure.suptitle(
        f"Time of a call, float32, on {machine.one_line(document)}", x=0.01, ha="left", fontsize=9
    )
    return save(figure, path)


def right_digits(ulp: float | None) -> float:
    """Decimal digits that are right, of a float32 that is so many units in the last place off."""
    if ulp is None:
        return 0.0
    return min(max(FLOAT32_DIGITS - math.log10(max(2 * ulp, 1)), 0.0), FLOAT32_DIGITS)


def accuracy(document: Document, path: Path) -> Path:
    """Right digits of the worst result by library, a panel for each function."""
    found = {
        (entry["function"], entry["implementation"]): right_digits(entry["ulp"])
        for entry in document["results"]
        if entry["dtype"] == "float32"
    }
    names = list(dict.fromkeys(name for _, name in found))
    panels = {name: title for name, title in ACCURACY_PANELS.items() if (name, names[0]) in found}
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(11, 2.5), sharex=True, sharey=True, squeeze=False
    )
    for axis, (function, title) in zip(axes.flat, panels.items(), strict=True):
        digits = [found[function, name] for name in names]
        texts = [f"{value:.1f}" if value else "none" for value in digits]
        horizontal_bars(axis, [TITLES[name] for name in names], digits, texts)
        axis.set_title(title)
        axis.set_xlim(0, 8.4)
        axis.set_xticks(range(0, 8, 2))
    figure.supxlabel("right decimal digits (higher is better)", fontsize=9)
    figure.suptitle(
        f"Decimal digits that are right in the worst of all results, of the "
        f"{FLOAT32_DIGITS:.1f} that a float32 has; inputs include rows whose label is almost "
        "certain",
        x=0.01, ha="left", fontsize=9,
    )  # fmt: skip
    return save(figure, path)


def linear(document: Document, path: Path) -> Path:
    """Times beside the products' by number of features, growth of the peak by number of rows."""
    times, peaks = pd.DataFrame(document["times"]), pd.DataFrame(document["peaks"])
    times["text"] = times["task"] + f", {document['rows']} rows"
    panels = [
        *((*item, "features", "seconds") for item in times.groupby("text", sort=False)),
        (f"memory, {document['memory_features']} features", peaks, "rows", "bytes"),
    ]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 3.6))
    ways = list(dict.fromkeys(times["way"]))
    for axis, (title, found, across, up) in zip(axes, panels, strict=True):
        table = found.pivot_table(index=across, columns="way", values=up).reindex(columns=ways)
        table = table / 2**20 if up == "bytes" else 1e3 * table
        for place, way in enumerate(ways):
            style: dict[str, Any] = {"color": f"C{place}"}
            if way == "softce_fast":
                style = {"color": OURS, "linewidth": 2.5}
            elif way == "matrix products":
                style = {"color": "k", "linestyle": ":"}
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
    figure.suptitle(f"float32, on {machine.one_line(document)}", x=0.01, ha="left", fontsize=9)
    return save(figure, path)


# --------------------------------------------------------------------------------- for oneself


def cases(document: Document, directory: Path) -> list[Path]:
    """A figure for each operation: a bar for each shape, the best peer's time over ours."""
    paths = []
    for name, operation in OPERATIONS.items():
        bars = [e for e in document["cases"] if e["operation"] == name and e.get("ratio")]
        if not bars:
            continue
        figure, axis = pyplot.subplots(figsize=(11, 0.34 * len(bars) + 1.9))
        horizontal_bars(
            axis,
            [f"{entry['shape']}  {entry['dtype']}" for entry in bars],
            [entry["ratio"] for entry in bars],
            [
                f"{ratio_text(entry['ratio'])} times as fast as "
                f"{TITLES[entry.get('best_peer', 'textbook')]}, "
                f"{time_text(entry['seconds']['softce_fast']['median'])}"
                for entry in bars
            ],
        )
        for bar, entry in zip(axis.patches, bars, strict=True):
            bar.set_color(OURS if entry["ratio"] >= 1 else OTHERS)
        axis.axvline(1, color="k", linewidth=0.8)
        axis.set_xlim(0, 1.5 * max(entry["ratio"] for entry in bars))
        rival = "the best peer" if "skipped" in document else "textbook NumPy"
        axis.set_xlabel(f"times as fast as {rival} (line: as fast)")
        axis.set_title(f"{operation.title}; {machine.one_line(document)}")
        paths.append(save(figure, directory / f"{document['kind']}-{name}.png"))
    return paths


def scaling(document: Document, directory: Path) -> list[Path]:
    """Time per element over rows or classes, or speed-up over threads: a panel per study."""
    points = pd.DataFrame(document["points"])
    threads = "threads" in points
    panels = list(points.groupby(["rows", "classes"] if threads else ["study"], sort=False))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False, sharey=True
    )
    for axis, (names, chosen) in zip(axes.flat, panels, strict=True):
        title = " x ".join(map(str, names))
        horizontal = "threads" if threads else "classes" if title == "classes" else "rows"
        chosen.pivot_table(
            index=horizontal,
            columns="function",
            values="speedup" if threads else "nanoseconds_per_element",
        ).plot(
            ax=axis, style="o-", markersize=3.5, title=title, loglog=not threads,
            ylabel="time on one thread over time" if threads else "ns per element",
        )  # fmt: skip
        if threads:
            axis.axline((1, 1), slope=1, color="k", linestyle=":", linewidth=1)
    figure.suptitle(f"{points['dtype'][0]}: {machine.one_line(document)}", fontsize=10)
    return [save(figure, directory / f"{'scaling-threads' if threads else 'scaling'}.png")]


def way_ratio(cell: Entry) -> float:
    """Times the plain call's time; where there is none, the peer's."""
    seconds = cell["seconds"]
    return float(seconds["way"] / seconds.get(PLAIN_WAY, seconds.get("peer", math.nan)))


def ways(document: Document, directory: Path) -> list[Path]:
    """A row a way, a mark a class count (the least favourable), the target as a line."""
    cells = [cell for cell in document["cells"] if not math.isnan(way_ratio(cell))]
    frame = pd.DataFrame(cells).assign(ratio=[way_ratio(cell) for cell in cells])
    names, dtypes = list(frame["way"].unique()), list(frame["dtype"].unique())
    figure, axes = pyplot.subplots(
        1, len(dtypes), figsize=(3 + 3 * len(dtypes), 0.3 * len(names) + 1.6), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axis, dtype in zip(axes.flat, dtypes, strict=True):
        chosen = frame[frame["dtype"] == dtype]
        for classes, group in chosen.groupby("classes"):
            worst = group.groupby("way")["ratio"].max()
            axis.plot(worst, [names.index(n) for n in worst.index], "o", label=f"{classes} classes")
        for name, target in chosen.groupby("way")["target"].min().items():
            place = names.index(name)
            axis.plot([target] * 2, [place - 0.4, place + 0.4], "k-", linewidth=2)
        axis.set_title(dtype)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.xaxis.set_minor_formatter("")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    axes[0, -1].legend(loc="upper right")
    figure.suptitle(
        f"Time over the plain call's, of the least favourable operation; target: line\n"
        f"{machine.one_line(document)}", fontsize=10,
    )  # fmt: skip
    return [save(figure, directory / "ways.png")]


def linear_alone(document: Document, directory: Path) -> list[Path]:
    return [linear(document, directory / "linear.png")]
