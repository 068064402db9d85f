"""Tables, plots and the README's figures from the JSON files of the benchmarks.

- ``report.py speed pytest.json`` condenses pytest-benchmark's file; table and plots.
- ``report.py show FILE ...`` gives tables and plots of results files.
- ``report.py readme README.md`` puts the recorded results between the README's markers;
  ``report.py readme docs/design.md`` does so for the ledger.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot
from tabulate import tabulate

import machine
from peers import OWN_CODE, TITLES
from shapes import COLUMNS, HALF_DTYPES, LIMIT_SHARE_TARGET, MEBIBYTE, OPERATIONS

matplotlib.use("Agg")  # no window, also where there is a display
pyplot.rcParams.update({
    "axes.axisbelow": True, "axes.grid": True, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "figure.constrained_layout.use": True, "figure.dpi": 110, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.labelsize": 8, "ytick.labelsize": 8,
})  # fmt: skip

RESULTS = Path(__file__).with_name("results")
LOCAL = RESULTS / "local"
FLOOR = "three products"  # of linear.py: the matrix products that no way can do without
NO_OPTION = "no option"  # the call of options.py that others are compared with
PLANNED = "as planned"  # the same of ablation.py
PLAIN_WAY = "plain"  # the same of ways.py
BESIDE, MOST_BESIDE = "beside a busy process", 3  # times its time on a quiet machine
REACHED, SHORT, PLAIN = "#2a78b5", "#e07b1a", "#9a9a9a"

Document = dict[str, Any]
Entry = dict[str, Any]


# -------------------------------------------------------------------------------------- formatting


def time_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def ulp_text(ulp: float | None) -> str:
    if ulp is None:  # JSON has no infinity
        return "not finite"
    return f"{ulp:.2f}" if ulp < 10 else f"{ulp:.0f}" if ulp < 1e5 else f"{ulp:.0e}"


def table_of(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    """Rows by column name, what is missing left empty."""
    return pd.DataFrame(rows).fillna("")


def crossed(cells: Iterable[Entry], rows: list[str], column: str, text: str) -> pd.DataFrame:
    """A table of texts with a row for each value of `rows`, a column for each of `column`."""
    frame = pd.DataFrame(cells)
    table = frame.pivot_table(index=rows, columns=column, values=text, aggfunc="first", sort=False)
    order = frame[rows].drop_duplicates()  # which a pivot groups anew
    return order.merge(table.fillna("").reset_index(), on=rows)


def aligned(table: pd.DataFrame, left: int) -> str:
    """A table in plain text; the first ``left`` columns are set to the left."""
    sides = ["left" if column < left else "right" for column in range(table.shape[1])]
    rows = table.to_numpy().tolist()
    return tabulate(rows, list(table.columns), disable_numparse=True, colalign=sides)


def markdown(table: pd.DataFrame, left: int = 1) -> str:
    """A table that is not padded, so that a changed number changes no other line."""
    rule = ["---" if column < left else "---:" for column in range(table.shape[1])]
    lines = [list(table.columns), rule, *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def head(document: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return f"{machine.one_line(document)}\n{versions}"


# --------------------------------------------------------------- cases: against reference and peers


def condense(raw: Document) -> Document:
    """Our results file from pytest-benchmark's, which names the host and holds much else."""
    cases: dict[str, Entry] = {}
    for benchmark in raw["benchmarks"]:
        info, statistics = benchmark["extra_info"], benchmark["stats"]
        name = info.pop("implementation")
        entry = cases.setdefault(benchmark["group"], {**info, "seconds": {}})
        entry["seconds"][name] = {
            "median": statistics["median"],
            "minimum": statistics["min"],
            "interquartile_range": statistics["iqr"],
            "rounds": statistics["rounds"],
        }
    for entry in cases.values():
        seconds = {name: found["median"] for name, found in entry["seconds"].items()}
        if "softce_fast" in seconds:
            entry["gigabytes_per_second"] = entry["minimum_bytes"] / seconds["softce_fast"] * 1e-9
            if "reference" in seconds:
                entry["ratio"] = seconds["reference"] / seconds["softce_fast"]
    return {"kind": "speed", **machine.describe(), "cases": list(cases.values())}


def judged_ratio(entry: Entry) -> float | None:
    """The ratio that the target is about."""
    against_float32 = entry.get("target_against") == "softce_fast_float32"
    return entry.get("ratio_to_float32" if against_float32 else "ratio")


def ratio_to_libraries(entry: Entry) -> float | None:
    """The ratio against what can be installed; half types are judged as ever."""
    if entry["target_against"] == "softce_fast_float32" or entry.get("best_peer") != OWN_CODE:
        return judged_ratio(entry)
    times = {name: found["median"] for name, found in entry["seconds"].items()}
    ours = times.pop("softce_fast")
    others = set(times) - {OWN_CODE, "softce_fast_float32", "memory_limit"}
    return min(times[name] for name in others) / ours if others else None


def peer_of(entry: Entry) -> str:
    """The name of what our time is compared with."""
    return str(entry.get("best_peer", "reference" if "reference" in entry["seconds"] else ""))


def seconds_text(entry: Entry, name: str) -> str:
    return time_text(entry["seconds"][name]["median"]) if name in entry["seconds"] else ""


def bandwidth_text(entry: Entry) -> str:
    return f"{entry['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in entry else ""


def share_text(entry: Entry) -> str:
    applies = "limit_share" in entry and entry["limit_share_applies"]
    return f"{entry['limit_share']:.2f}" if applies else ""


def reached(entry: Entry) -> bool:
    return (judged_ratio(entry) or 0) >= entry["target"]


def cases_table(document: Document) -> str:
    """Every case: our time, the best peer's or the reference's, and the target."""
    rows = [
        {
            "operation": OPERATIONS[entry["operation"]].title,
            "shape": entry["shape"],
            "dtype": entry["dtype"],
            "best peer": TITLES.get(peer_of(entry), ""),
            "ours": seconds_text(entry, "softce_fast") or "-",
            "peer's": seconds_text(entry, peer_of(entry)),
            "GB/s": bandwidth_text(entry),
            "of limit": share_text(entry),
            "peer/ours": ratio_text(entry.get("ratio")),
            "float32/ours": ratio_text(entry.get("ratio_to_float32")),
            "target": f"{target:g}" if (target := entry.get("target")) else "",
            "reached": "" if not target else "yes" if reached(entry) else "NO",
        }
        for entry in document["cases"]
    ]
    notes = [
        f"skipped {TITLES.get(name, name)}: {reason}"
        for name, reason in document.get("skipped", {}).items()
    ]
    for entry in document["cases"]:
        for name, reason in entry.get("missing", {}).items():
            if not reason.startswith(("no ", "only ")):  # a peer without the function is no news
                where = f"{entry['operation']} {entry['shape']} {entry['dtype']}"
                notes.append(f"{where}: {TITLES.get(name, name)}: {reason}")
    if "skipped" in document:
        notes.append(compare_summary(document))
    table = table_of(rows)
    table = table.loc[:, (table != "").any()]
    return "\n".join([aligned(table, left=4), "", *notes, head(document)])


def compare_summary(document: Document) -> str:
    """How many targets are reached, and how often no peer is faster."""
    judged = [entry for entry in document["cases"] if entry["target"] is not None]
    beside = sum((ratio_to_libraries(entry) or 0) >= entry["target"] for entry in judged)
    raced = [entry["ratio"] for entry in document["cases"] if "ratio" in entry]
    limited = [
        float(share) for e in document["cases"] if (share := share_text(e) and e["limit_share"])
    ]
    near = sum(share >= LIMIT_SHARE_TARGET for share in limited)
    return (
        f"{sum(map(reached, judged))} of {len(judged)} speed targets reached, {beside} where Numba "
        f"code written for this comparison is left out; faster than every peer in "
        f"{sum(ratio > 1 for ratio in raced)} of {len(raced)} cases; "
        f"{near} of {len(limited)} cases at {LIMIT_SHARE_TARGET:g} of the memory limit"
    )


def bar_color(entry: Entry) -> str:
    if not entry.get("target"):
        return PLAIN
    return REACHED if reached(entry) else SHORT


def bar_text(entry: Entry) -> str:
    """What stands beside a bar; bandwidth means nothing for a few bytes."""
    against_float32 = entry.get("target_against") == "softce_fast_float32"
    against = "own float32" if against_float32 else TITLES[peer_of(entry)]
    text = f"{ratio_text(judged_ratio(entry))}x {against}   {seconds_text(entry, 'softce_fast')}"
    if entry["minimum_bytes"] < MEBIBYTE:
        return text
    share = f", {share_text(entry)} of limit" if share_text(entry) else ""
    return f"{text}, {bandwidth_text(entry)} GB/s{share}"


def plot_cases(document: Document, directory: Path) -> list[Path]:
    """One figure per operation: a bar per shape, the target as a mark on it."""
    paths = []
    for name, operation in OPERATIONS.items():
        bars = [e for e in document["cases"] if e["operation"] == name and judged_ratio(e)]
        if not bars:
            continue
        ratios = [judged_ratio(entry) or 0.0 for entry in bars]
        ends = [max(r, e.get("target") or 0) for r, e in zip(ratios, bars, strict=True)]
        labels = [f"{entry['shape']}  {entry['dtype']}" for entry in bars]
        figure, axis = pyplot.subplots(figsize=(11, 0.34 * len(bars) + 1.9))
        axis.barh(range(len(bars)), ratios, color=[bar_color(e) for e in bars], height=0.72)
        for position, (entry, end) in enumerate(zip(bars, ends, strict=True)):
            axis.text(1.06 * end, position, bar_text(entry), va="center", fontsize=8)
            if target := entry.get("target"):
                axis.plot([target] * 2, [position - 0.44, position + 0.44], "k-", linewidth=2.2)
        axis.set_yticks(range(len(bars)), labels)
        axis.set_ylim(len(bars) - 0.4, -0.6)  # first bar on top
        axis.set_xscale("log")
        axis.set_xlim(0.4, 7 * max(ends))
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.axvline(1, color="k", linewidth=0.8)
        axis.set_title(
            f"{operation.title}: {'best peer' if 'skipped' in document else 'NumPy reference'}'s "
            f"time over softce_fast's; blue: target (mark) reached, orange: short of it\n"
            f"{machine.one_line(document)}"
        )
        paths.append(save(figure, directory / f"{document['kind']}-{name}.png"))
    return paths


def targets_markdown(document: Document) -> str:
    """Operation by column: the smallest ratio of the column's shapes, and the target."""
    blocks = []
    for dtype in ("float32", "float64"):
        title = f"{dtype}, best peer's time over ours"
        entries = [e for e in document["cases"] if e["dtype"] == dtype and "ratio" in e]
        cells = [
            {
                title: OPERATIONS[entry["operation"]].title,
                "column": COLUMNS[entry["column"]],
                "text": ratio_text(entry["ratio"])
                + (f" ({entry['target']:g})" if entry["target"] else ""),
            }
            for entry in sorted(entries, key=lambda entry: entry["ratio"])
        ]
        if cells:
            table = crossed(cells, [title], "column", "text").set_index(title)
            rows = [o.title for o in OPERATIONS.values() if o.title in table.index]
            columns = [column for column in COLUMNS.values() if column in table]
            blocks.append(markdown(table.loc[rows, columns].reset_index()))
    halves = [
        {
            "half types": OPERATIONS[entry["operation"]].title,
            "shape": entry["shape"],
            "dtype": entry["dtype"],
            "own float32's time over ours": ratio_text(entry["ratio_to_float32"]),
            "best peer's time over ours": ratio_text(entry.get("ratio")),
        }
        for entry in document["cases"]
        if "ratio_to_float32" in entry
    ]
    if halves:
        blocks.append(markdown(table_of(halves), left=3))
    dates = sorted({entry["date"] for entry in document["cases"] if "date" in entry})
    oldest = f" (the oldest case: {dates[0]})" if len(dates) > 1 else ""
    note = "In brackets the target; of several shapes the least favourable one."
    where = machine.one_line(document)
    return "\n\n".join([*blocks, f"{note} {compare_summary(document)}. {where}{oldest}."])


def reference_markdown(document: Document) -> str:
    """Shape by operation: our time and how many times longer the NumPy reference takes."""
    title = "float32: time, NumPy's over it"
    cells = [
        {
            title: entry["shape"],
            "operation": OPERATIONS[entry["operation"]].title,
            "text": f"{seconds_text(entry, 'softce_fast')}, {ratio_text(entry['ratio'])}x",
        }
        for entry in document["cases"]
        if entry["dtype"] == "float32" and "ratio" in entry
    ]
    table = crossed(cells, [title], "operation", "text")
    columns = [o.title for o in OPERATIONS.values() if o.title in table]
    where = machine.one_line(document)
    return f"{markdown(table[[title, *columns]])}\n\nAgainst `softce_fast.reference`. {where}."


# --------------------------------------------------------------------------------- the other tables


def accuracy_rows(document: Document) -> pd.DataFrame:
    """Largest error by function and dtype, a column per implementation."""
    cells = [
        {
            "largest error in ULP": entry["function"],
            "dtype": entry["dtype"],
            "target": f"{document['targets'][entry['function']]:g}",
            "title": TITLES[entry["implementation"]],
            "text": ulp_text(entry["ulp"]),
        }
        for entry in document["results"]
    ]
    return crossed(cells, ["largest error in ULP", "dtype", "target"], "title", "text")


def threads_rows(document: Document) -> pd.DataFrame:
    """Shape by number of threads: how many times faster than on one."""
    title = "float32: times as fast as on one thread"
    cells = [
        {
            title: OPERATIONS[point["function"]].title,
            "shape": f"{point['rows']}x{point['classes']}",
            "threads": f"{count} threads",
            "text": ratio_text(point["speedup"]),
        }
        for point in document["points"]
        if (count := point["threads"]) > 1 and count & (count - 1) == 0
    ]
    return crossed(cells, [title, "shape"], "threads", "text")


def scaling_table(document: Document) -> str:
    if "cliffs" not in document:
        return plain(threads_rows)(document)
    return "\n".join([*document["cliffs"], head(document)])


def plot_scaling(document: Document, directory: Path) -> list[Path]:
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


def digits_rows(document: Document) -> pd.DataFrame:
    """Loss and accuracy of both trainings, and the time in loss and gradient."""
    return table_of(
        {
            "": TITLES[name],
            "train loss": f"{result['train_loss']:.6f}",
            "test loss": f"{result['test_loss']:.6f}",
            "test accuracy": f"{result['test_accuracy']:.2%}",
            "loss + gradient": time_text(result["seconds"]),
        }
        for name, result in document["results"].items()
    )


def half_types_rows(document: Document) -> pd.DataFrame:
    """Operation and shape: float32's time over that of each half type."""
    return table_of(
        {
            "float32's time over the half type's": OPERATIONS[cell["operation"]].title,
            "shape": cell["shape"],
            **{d: f"{cell['seconds']['float32'] / cell['seconds'][d]:.3f}" for d in HALF_DTYPES},
        }
        for cell in document["cells"]
    )


def gain_text(gains: dict[str, float]) -> str:
    """The geometric mean over shapes, the least and the greatest gain, and where that is."""
    best = max(gains, key=lambda shape: gains[shape])
    mean = statistics.geometric_mean(gains.values())
    return f"{mean:.2f} ({min(gains.values()):.2f} to {gains[best]:.2f}, {best})"


def ablation_rows(document: Document) -> pd.DataFrame:
    """Mechanism, build and dtype by operation: the time without it over the time with it."""
    title = "time without it over the time with it"
    gains: dict[tuple[str, ...], dict[str, float]] = {}
    for cell in document["cells"]:
        for mechanism, seconds in cell["seconds"].items():
            if mechanism != PLANNED:
                key = (mechanism, cell["build"], cell["dtype"], cell["operation"])
                gains.setdefault(key, {})[cell["shape"]] = seconds / cell["seconds"][PLANNED]
    cells = [
        {
            title: mechanism,
            "build": build,
            "dtype": dtype,
            "operation": OPERATIONS[operation].title,
            "text": gain_text(found),
        }
        for (mechanism, build, dtype, operation), found in sorted(gains.items())
    ]
    return crossed(cells, [title, "build", "dtype"], "operation", "text")


def options_rows(document: Document) -> pd.DataFrame:
    """Option by shape: time, and the plain call's times that."""
    title = "float32: cross_entropy_with_grad, grad_out=: time, and times that without options"
    seconds = document["seconds"]
    return table_of(
        {
            title: name,
            **{
                shape: f"{time_text(times[name])}, {times[name] / times[NO_OPTION]:.2f}"
                for shape, times in seconds.items()
            },
        }
        for name in next(iter(seconds.values()))
    )


def waiting_rows(document: Document) -> pd.DataFrame:
    """Shape and situation: mean time of a call, by the threads that it may use."""
    return table_of(
        {
            "float32: softmax, out=, mean time": cell["shape"],
            "": cell["situation"],
            **{name: time_text(seconds) for name, seconds in cell["seconds"].items()},
        }
        for cell in document["cells"]
    )


def linear_rows(document: Document) -> pd.DataFrame:
    """Way of the linear loss by shape: time, share of the floor, growth of the peak."""
    seconds, peaks = document["seconds"], document["peak_growth_bytes"]
    return table_of(
        {
            "rows x classes x features: loss and gradients": shape,
            "way": name,
            "time": time_text(taken),
            "share of the floor": ratio_text(times[FLOOR] / taken),
            "growth of the peak": f"{peaks[shape][name] / 2**20:.0f} MiB",
        }
        for shape, times in seconds.items()
        for name, taken in times.items()
    )


def way_ratio(cell: Entry) -> float:
    """Times the plain call's time; where there is none, the peer's."""
    seconds = cell["seconds"]
    return float(seconds["way"] / seconds.get(PLAIN_WAY, seconds.get("peer", math.nan)))


def way_reached(cell: Entry) -> bool:
    lead, slowed = min(over_way([cell], "peer"), default=math.inf), over_way([cell], BESIDE)
    return (
        way_ratio(cell) <= cell["target"]
        and lead >= cell["ahead"]
        and max(slowed, default=0) <= MOST_BESIDE
    )


def over_way(cells: list[Entry], name: str) -> list[float]:
    """Those times over the way's, where they were measured."""
    found = [cell["seconds"] for cell in cells]
    return [seconds[name] / seconds["way"] for seconds in found if name in seconds]


def ways_rows(document: Document) -> pd.DataFrame:
    """Way and dtype by class count: the least favourable of operations and sizes."""
    title = "time over that of the plain call"
    cells = [cell for cell in document["cells"] if not math.isnan(way_ratio(cell))]
    grouped = pd.DataFrame(cells).assign(cell=cells).groupby(["way", "dtype"], sort=False)
    rows = []
    for (way, dtype), group in grouped:
        found = list(group["cell"])
        row = {title: way, "dtype": dtype, "target": f"{min(c['target'] for c in found):g}"}
        for classes in sorted({cell["classes"] for cell in found}):
            worst = max((c for c in found if c["classes"] == classes), key=way_ratio)
            row[f"{classes} classes"] = f"{ratio_text(way_ratio(worst))} {worst['operation']}"
        leads, slowed = (over_way(found, name) for name in ("peer", BESIDE))
        row["least of the peer's times over ours"] = ratio_text(min(leads, default=None))
        row[f"{BESIDE}, over its own time"] = ratio_text(max(slowed, default=None))
        row["reached"] = f"{sum(map(way_reached, found))} of {len(found)}"
        rows.append(row)
    table = table_of(rows)
    return table.loc[:, (table != "").any()]


def plot_ways(document: Document, directory: Path) -> list[Path]:
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


# ---------------------------------------------------------------------------------------- documents


def plain(rows: Callable[[Document], pd.DataFrame], left: int = 2) -> Callable[[Document], str]:
    return lambda document: f"{aligned(rows(document), left)}\n\n{head(document)}"


def for_readme(
    rows: Callable[[Document], pd.DataFrame], left: int = 2, note: str = ""
) -> Callable[[Document], str]:
    return lambda document: (
        f"{markdown(rows(document), left)}\n\n{note}{machine.one_line(document)}."
    )


def no_plots(document: Document, directory: Path) -> list[Path]:
    return []


# How each kind of document is shown.
KINDS: dict[str, tuple[Callable[[Document], str], Callable[[Document, Path], list[Path]]]] = {
    "speed": (cases_table, plot_cases),
    "compare": (cases_table, plot_cases),
    "accuracy": (plain(accuracy_rows), no_plots),
    "scaling": (scaling_table, plot_scaling),
    "digits": (plain(digits_rows, 1), no_plots),
    "half types": (plain(half_types_rows), no_plots),
    "options": (plain(options_rows, 1), no_plots),
    "waiting": (plain(waiting_rows), no_plots),
    "linear": (plain(linear_rows), no_plots),
    "ablation": (for_readme(ablation_rows, 3), no_plots),
    "ways": (for_readme(ways_rows), plot_ways),
}
# What stands in a page, in its order: the section, the file, the text.
SECTIONS: dict[str, tuple[tuple[str, str, Callable[[Document], str]], ...]] = {
    "README.md": (
        ("speed", "speed.json", reference_markdown),
        ("speed", "compare.json", targets_markdown),
        ("speed", "scaling-threads.json", for_readme(threads_rows)),
        ("speed", "options.json", for_readme(options_rows, 1)),
        ("speed", "waiting.json", for_readme(waiting_rows)),
        ("speed", "ways.json", for_readme(ways_rows)),
        ("accuracy", "accuracy.json", for_readme(accuracy_rows, 2, "Against long double. ")),
    ),
    "design.md": (("ablation", "ablation.json", for_readme(ablation_rows, 3)),),
}


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def show(document: Document, directory: Path) -> None:
    table, plot = KINDS[document["kind"]]
    print(table(document))
    for path in plot(document, directory):
        print(f"saved {path}")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument("--quick", action="store_true", help="fewer cases, briefly")
    result.add_argument(
        "--json", type=Path, default=LOCAL / f"{name}.json", help="where results go"
    )
    return result


def finish(kind: str, path: Path, document: Document) -> None:
    """Write results down, where a report is made from them later, and show them."""
    document = {"kind": kind, **document}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"saved {path}")
    show(document, path.parent)


def between_markers(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the file has no {begin} ... {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def update_readme(path: Path, results: Path) -> list[str]:
    """Puts the recorded results into a page; returns the names of the sections written."""
    text = path.read_text()
    recorded = [section for section in SECTIONS[path.name] if (results / section[1]).exists()]
    sections = {}
    for section, entries in itertools.groupby(recorded, key=lambda entry: entry[0]):
        blocks = [render(json.loads((results / file).read_text())) for _, file, render in entries]
        sections[section] = "\n\n".join(blocks)
    for section, content in sections.items():
        text = between_markers(text, section, content)
    path.write_text(text)
    return list(sections)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["speed", "show", "readme"])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--directory", type=Path, help="of results; default: as recorded, or local")
    options = parser.parse_args()
    for file in options.files:
        if options.command == "readme":
            sections = update_readme(file, options.directory or RESULTS)
            if not sections:
                sys.exit("no recorded results")
            print(f"updated {file}: {', '.join(sections)}")
        elif options.command == "speed":
            document = condense(json.loads(file.read_text()))
            finish("speed", (options.directory or LOCAL) / "speed.json", document)
        else:
            show(json.loads(file.read_text()), options.directory or file.parent)


if __name__ == "__main__":
    main()
