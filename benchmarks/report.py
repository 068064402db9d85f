"""Tables, plots and the README's figures from the JSON files of the benchmarks.

- ``report.py speed pytest.json`` condenses pytest-benchmark's file; table and plot.
- ``report.py show FILE ...`` gives tables and plots of results files.
- ``report.py readme README.md`` puts the recorded results between the README's markers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import machine
import shapes
from shapes import COLUMNS, OPERATIONS

RESULTS = Path(__file__).with_name("results")
NO_OPTION = "no option"  # the call of options.py that others are compared with
PEER_TITLES = {
    "softce_fast_float32": "float32",
    "memory_limit": "memory",
    "reference": "NumPy reference",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
    "torch": "PyTorch",
    "torch_compile": "torch.compile",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "numba": "Numba",
    "numba_polynomial": "Numba, own exp",
}
# Nobody's library: kernels written for the comparison.
OWN_CODE = "numba_polynomial"
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


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 3) -> str:
    """A table in plain text; the first ``left`` columns are set to the left."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def head(document: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return f"{machine.one_line(document)}\n{versions}"


# ------------------------------------------------------------------- softce_fast against reference


def condense(raw: Document) -> Document:
    """Our results file from pytest-benchmark's, which names the host and holds much else."""
    cases: dict[str, Entry] = {}
    for benchmark in raw["benchmarks"]:
        info = benchmark["extra_info"]
        entry = cases.setdefault(
            benchmark["group"],
            {key: info[key] for key in ("operation", "shape", "column", "dtype", "minimum_bytes")}
            | {"seconds": {}},
        )
        statistics = benchmark["stats"]
        entry["seconds"][info["implementation"]] = {
            "median": statistics["median"],
            "minimum": statistics["min"],
            "interquartile_range": statistics["iqr"],
            "rounds": statistics["rounds"],
        }
    for entry in cases.values():
        seconds = entry["seconds"]
        if "softce_fast" in seconds:
            ours = seconds["softce_fast"]["median"]
            entry["gigabytes_per_second"] = entry["minimum_bytes"] / ours * 1e-9
            if "reference" in seconds:
                entry["ratio"] = seconds["reference"]["median"] / ours
    return {"kind": "speed", **machine.describe(), "cases": list(cases.values())}


def speed_table(document: Document) -> str:
    rows = [
        (
            OPERATIONS[entry["operation"]].title,
            entry["shape"],
            entry["dtype"],
            *(
                time_text(entry["seconds"][name]["median"]) if name in entry["seconds"] else ""
                for name in ("softce_fast", "reference")
            ),
            f"{entry['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in entry else "",
            ratio_text(entry.get("ratio")),
        )
        for entry in document["cases"]
    ]
    header = ("operation", "shape", "dtype", "softce_fast", "NumPy", "GB/s", "NumPy/ours")
    return f"{aligned(header, rows)}\n\n{head(document)}"


def plot_speed(document: Document, directory: Path) -> list[Path]:
    """One figure, a panel per operation: the reference's time over ours on each shape."""
    pyplot = pyplot_module()
    entries = [entry for entry in document["cases"] if "ratio" in entry]
    names = [name for name in OPERATIONS if any(e["operation"] == name for e in entries)]
    if not names:
        return []
    columns = 2
    per_name = {name: [e for e in entries if e["operation"] == name] for name in names}
    pairs = [names[start : start + columns] for start in range(0, len(names), columns)]
    heights = [max(len(per_name[name]) for name in pair) for pair in pairs]
    figure, axes = pyplot.subplots(
        len(pairs),
        columns,
        figsize=(13, sum(heights) * 0.26 + 0.95 * len(pairs) + 0.6),
        squeeze=False,
        gridspec_kw={"height_ratios": [height + 1.5 for height in heights]},
        layout="constrained",
    )
    widest = max(entry["ratio"] for entry in entries)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes.flat, strict=False):
        bars = per_name[name]
        axis.barh(range(len(bars)), [e["ratio"] for e in bars], color=REACHED, height=0.72)
        for position, entry in enumerate(bars):
            axis.text(
                entry["ratio"],
                position,
                f"  {ratio_text(entry['ratio'])}x   "
                f"{time_text(entry['seconds']['softce_fast']['median'])}",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(bars)), [bar_label(entry) for entry in bars], fontsize=8)
        axis.set_title(OPERATIONS[name].title, fontsize=10, loc="left")
        style_ratio_axis(axis, widest * 6, heights[names.index(name) // columns])
    figure.suptitle(
        f"NumPy reference's time over softce_fast's (and softce_fast's time)\n"
        f"{machine.one_line(document)}",
        fontsize=10,
    )
    return [save(figure, directory / "speed.png")]


# ------------------------------------------------------------------------ softce_fast against peers


def judged_ratio(entry: Entry) -> float | None:
    """The ratio that the target is about."""
    if entry["target_against"] == "softce_fast_float32":
        return entry.get("ratio_to_float32")
    return entry.get("ratio")


def ratio_to_libraries(entry: Entry) -> float | None:
    """The ratio against what can be installed; half types are judged as ever."""
    if entry["target_against"] == "softce_fast_float32" or entry.get("best_peer") != OWN_CODE:
        return judged_ratio(entry)
    times = entry["seconds"]
    others = set(times) - {OWN_CODE, "softce_fast", "softce_fast_float32", "memory_limit"}
    if not others:
        return None
    fastest = min(float(times[name]["median"]) for name in others)
    return fastest / float(times["softce_fast"]["median"])


def share_text(entry: Entry) -> str:
    if "limit_share" not in entry or not entry.get("limit_share_applies"):
        return ""
    return f"{entry['limit_share']:.2f}"


def compare_table(document: Document) -> str:
    rows = []
    notes = []
    for entry in document["cases"]:
        seconds, ratio, target = entry["seconds"], judged_ratio(entry), entry["target"]
        best = entry.get("best_peer")
        rows.append(
            (
                OPERATIONS[entry["operation"]].title,
                entry["shape"],
                entry["dtype"],
                PEER_TITLES[best] if best else "",
                time_text(seconds["softce_fast"]["median"]) if "softce_fast" in seconds else "-",
                time_text(seconds[best]["median"]) if best else "",
                f"{entry['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in entry else "",
                share_text(entry),
                ratio_text(entry.get("ratio")),
                ratio_text(entry.get("ratio_to_float32")),
                "" if target is None else f"{target:g}",
                "" if target is None else "yes" if ratio is not None and ratio >= target else "NO",
            )
        )
        for name, reason in entry["missing"].items():
            if not reason.startswith(("no ", "only ")):  # a peer without the function is no news
                notes.append(f"{entry['operation']} {entry['shape']} {entry['dtype']}: "
                             f"{PEER_TITLES.get(name, name)}: {reason}")  # fmt: skip
    header = (
        "operation", "shape", "dtype", "best peer", "ours", "peer's", "GB/s", "of limit",
        "peer/ours", "float32/ours", "target", "reached",
    )  # fmt: skip
    skipped = [
        f"skipped {PEER_TITLES.get(name, name)}: {reason}"
        for name, reason in document["skipped"].items()
    ]
    return "\n".join(
        [aligned(header, rows, left=4), "", *skipped, *notes, compare_summary(document),
         head(document)]
    )  # fmt: skip


def compare_summary(document: Document) -> str:
    """How many targets are reached, and how often no peer is faster."""
    judged = [entry for entry in document["cases"] if entry["target"] is not None]
    reached = sum((judged_ratio(entry) or 0) >= entry["target"] for entry in judged)
    beside = sum((ratio_to_libraries(entry) or 0) >= entry["target"] for entry in judged)
    raced = [entry["ratio"] for entry in document["cases"] if "ratio" in entry]
    ahead = sum(ratio > 1 for ratio in raced)
    limited = [e for e in document["cases"] if e.get("limit_share_applies") and "limit_share" in e]
    near = sum(entry["limit_share"] >= shapes.LIMIT_SHARE_TARGET for entry in limited)
    return (
        f"{reached} of {len(judged)} speed targets reached, {beside} where Numba code written for "
        f"this comparison is left out; faster than every peer in {ahead} of {len(raced)} cases; "
        f"{near} of {len(limited)} cases at {shapes.LIMIT_SHARE_TARGET:g} of the memory limit"
    )


def plot_compare(document: Document, directory: Path) -> list[Path]:
    """One figure per operation: a bar per shape, the target as a mark on it."""
    pyplot = pyplot_module()
    paths = []
    for operation in OPERATIONS.values():
        bars = [
            entry
            for entry in document["cases"]
            if entry["operation"] == operation.name and judged_ratio(entry) is not None
        ]
        if not bars:
            continue
        ratios = [judged_ratio(entry) or 0.0 for entry in bars]
        figure, axis = pyplot.subplots(figsize=(11, 0.34 * len(bars) + 1.9), layout="constrained")
        axis.barh(range(len(bars)), ratios, color=[bar_color(e) for e in bars], height=0.72)
        for position, (entry, ratio) in enumerate(zip(bars, ratios, strict=True)):
            target = entry["target"]
            if target is not None:
                axis.plot([target] * 2, [position - 0.44, position + 0.44], "k-", linewidth=2.2)
            against = (
                "own float32"
                if entry["target_against"] == "softce_fast_float32"
                else PEER_TITLES[entry["best_peer"]]
            )
            bandwidth = f", {entry['gigabytes_per_second']:.0f} GB/s"
            share = f", {share_text(entry)} of limit" if share_text(entry) else ""
            small = entry["minimum_bytes"] < shapes.MEBIBYTE  # where bandwidth means nothing
            axis.text(
                max(ratio, target or 0) * 1.06,
                position,
                f"{ratio_text(ratio)}x {against}   "
                f"{time_text(entry['seconds']['softce_fast']['median'])}"
                + ("" if small else bandwidth + share),
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(bars)), [bar_label(entry) for entry in bars], fontsize=8)
        for position, (entry, following) in enumerate(itertools.pairwise(bars)):
            if entry["dtype"] != following["dtype"]:
                axis.axhline(position + 0.5, color="#cccccc", linewidth=0.8)
        widest = max([*ratios, *(entry["target"] or 0 for entry in bars)])
        style_ratio_axis(axis, widest * 7, len(bars))
        handles = [
            pyplot.Rectangle((0, 0), 1, 1, color=REACHED),
            pyplot.Rectangle((0, 0), 1, 1, color=SHORT),
            pyplot.Rectangle((0, 0), 1, 1, color=PLAIN),
            pyplot.Line2D([], [], color="k", linewidth=2.2),
        ]
        figure.legend(
            handles,
            ["target reached", "short of it", "no target", "target"],
            loc="outside lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
        )
        axis.set_title(
            f"{operation.title}: best peer's time over softce_fast's\n{machine.one_line(document)}",
            fontsize=10,
            loc="left",
        )
        paths.append(save(figure, directory / f"compare-{operation.name}.png"))
    return paths


def bar_color(entry: Entry) -> str:
    if entry["target"] is None:
        return PLAIN
    return REACHED if (judged_ratio(entry) or 0) >= entry["target"] else SHORT


def bar_label(entry: Entry) -> str:
    lengths, _, axis = entry["shape"].partition("-axis")
    shape = lengths.replace("x", " x ") + (f", axis {axis}" if axis else "")
    return f"{shape}  {entry['dtype']}"


def style_ratio_axis(axis: Any, upper: float, bars: int) -> None:
    """Logarithmic, with round ticks, room for ``bars`` bars and for the text beside them."""
    axis.set_xscale("log")
    axis.set_xlim(0.4, max(upper, 4))
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= upper]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.xaxis.set_minor_locator(pyplot_module().NullLocator())
    axis.axvline(1, color="k", linewidth=0.8)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_ylim(bars - 0.4, -0.6)  # first bar on top
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


# ----------------------------------------------------------------------------------------- accuracy


def accuracy_table(document: Document) -> str:
    header, rows = accuracy_rows(document)
    return f"{aligned(header, rows, left=2)}\n\n{head(document)}"


def accuracy_rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """Largest error by function and dtype, a column per implementation."""
    results = document["results"]
    names = list(dict.fromkeys(entry["implementation"] for entry in results))
    keys = list(dict.fromkeys((entry["function"], entry["dtype"]) for entry in results))
    largest = {
        (entry["function"], entry["dtype"], entry["implementation"]): entry for entry in results
    }
    targets = document["targets"]
    rows = []
    for function, dtype in keys:
        row = [function, dtype, f"{targets[function]:g}"]
        for name in names:
            entry = largest.get((function, dtype, name))
            row.append("" if entry is None else ulp_text(entry["ulp"]))
        rows.append(row)
    titles = [PEER_TITLES.get(name, name) for name in names]
    return ["largest error in ULP", "dtype", "target", *titles], rows


def ulp_text(ulp: float | None) -> str:
    if ulp is None:  # JSON has no infinity
        return "not finite"
    return f"{ulp:.2f}" if ulp < 10 else f"{ulp:.0f}" if ulp < 1e5 else f"{ulp:.0e}"


def plot_accuracy(document: Document, directory: Path) -> list[Path]:
    """Largest error per function on a log scale, one mark per implementation."""
    pyplot = pyplot_module()
    results = document["results"]
    dtypes = list(dict.fromkeys(entry["dtype"] for entry in results))
    names = list(dict.fromkeys(entry["implementation"] for entry in results))
    functions = list(dict.fromkeys(entry["function"] for entry in results))
    figure, axes = pyplot.subplots(
        1, len(dtypes), figsize=(5.4 * len(dtypes), 4.6), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    # Ours blue and large; the others in the order of the file, each on a line of its own.
    colors = itertools.cycle(["#9a9a9a", "#e07b1a", "#4c9a4c", "#b5403a", "#7a5aa8"])
    looks = {name: REACHED if name == "softce_fast" else next(colors) for name in names}
    for axis, dtype in zip(axes.flat, dtypes, strict=True):
        for place, name in enumerate(names):
            points = {
                entry["function"]: max(entry["ulp"], 0.1)
                for entry in results
                if entry["dtype"] == dtype
                and entry["implementation"] == name
                and entry["ulp"] is not None
            }
            shift = 0.6 * (place / max(len(names) - 1, 1) - 0.5)
            axis.scatter(
                list(points.values()),
                [functions.index(function) + shift for function in points],
                s=70 if name == "softce_fast" else 30,
                color=looks[name],
                zorder=3,
                label=PEER_TITLES.get(name, name),
            )
        for position, function in enumerate(functions):
            axis.plot(
                [document["targets"][function]] * 2, [position - 0.42, position + 0.42], "k-",
                linewidth=2.2, label="target" if position == 0 else None,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yticks(range(len(functions)), functions, fontsize=8)
        axis.set_title(f"largest error in ULP, {dtype}", fontsize=10, loc="left")
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes.flat[0].invert_yaxis()  # shared
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False
    )
    return [save(figure, directory / "accuracy.png")]


# ------------------------------------------------------------------------------------------ README


def targets_markdown(document: Document) -> str:
    """Operation by column: the smallest ratio of the column's shapes, and the target."""
    blocks = []
    for dtype in ("float32", "float64"):
        entries = [entry for entry in document["cases"] if entry["dtype"] == dtype]
        columns = [c for c in COLUMNS if any(entry["column"] == c for entry in entries)]
        rows = []
        for operation in OPERATIONS.values():
            row = [operation.title]
            for column in columns:
                cell = [
                    entry
                    for entry in entries
                    if entry["operation"] == operation.name
                    and entry["column"] == column
                    and "ratio" in entry
                ]
                if not cell:
                    row.append("")
                    continue
                worst = min(cell, key=lambda entry: float(entry["ratio"]))
                target = worst["target"]
                text = f"{ratio_text(worst['ratio'])}"
                row.append(text if target is None else f"{text} ({target:g})")
            if any(row[1:]):
                rows.append(row)
        if rows:
            header = [f"{dtype}, best peer's time over ours", *(COLUMNS[c] for c in columns)]
            blocks.append(markdown(header, rows))
    halves = [e for e in document["cases"] if "ratio_to_float32" in e]
    if halves:
        rows = [
            [
                OPERATIONS[entry["operation"]].title,
                entry["shape"],
                entry["dtype"],
                ratio_text(entry["ratio_to_float32"]),
                ratio_text(entry.get("ratio")),
            ]
            for entry in halves
        ]
        header = ["half types", "shape", "dtype", "own float32's time over ours",
                  "best peer's time over ours"]  # fmt: skip
        blocks.append(markdown(header, rows, left=3))
    blocks.append(
        f"In brackets the target; of several shapes the least favourable one. "
        f"{compare_summary(document)}. {machine.one_line(document)}{dates_text(document)}."
    )
    return "\n\n".join(blocks)


def dates_text(document: Document) -> str:
    """Since when the cases were measured, where that was not all in one run."""
    dates = sorted({entry["date"] for entry in document["cases"] if "date" in entry})
    return f" (the oldest case: {dates[0]})" if len(dates) > 1 else ""


def reference_markdown(document: Document) -> str:
    """Shape by operation: our time and how many times longer the NumPy reference takes."""
    entries = [e for e in document["cases"] if e["dtype"] == "float32" and "ratio" in e]
    names = list(dict.fromkeys(entry["shape"] for entry in entries))
    present = [o for o in OPERATIONS.values() if any(e["operation"] == o.name for e in entries)]
    cells = {
        (entry["operation"], entry["shape"]): (
            f"{time_text(entry['seconds']['softce_fast']['median'])}, {ratio_text(entry['ratio'])}x"
        )
        for entry in entries
    }
    rows = [[name, *(cells.get((o.name, name), "") for o in present)] for name in names]
    header = ["float32: time, NumPy's over it", *(operation.title for operation in present)]
    table = markdown(header, rows)
    return f"{table}\n\nAgainst `softce_fast.reference`. {machine.one_line(document)}."


def threads_markdown(document: Document) -> str:
    """Shape by number of threads: how many times faster than on one."""
    points = document["points"]
    counts = sorted({point["threads"] for point in points})
    shown = [count for count in counts if count & (count - 1) == 0 and count > 1]
    header = ["float32: times as fast as on one thread", "shape",
              *(f"{count} threads" for count in shown)]  # fmt: skip
    speedups = {
        (point["function"], point["rows"], point["classes"], point["threads"]): point["speedup"]
        for point in points
    }
    rows = [
        [OPERATIONS[function].title, f"{size}x{classes}",
         *(ratio_text(speedups[function, size, classes, count]) for count in shown)]
        for function, size, classes in dict.fromkeys(key[:3] for key in speedups)
    ]  # fmt: skip
    return f"{markdown(header, rows, left=2)}\n\n{machine.one_line(document)}."


def half_types_rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """Operation and shape: float32's time over that of each half type."""
    halves = ("float16", "bfloat16")
    header = ["float32's time over the half type's", "shape", *halves]
    rows = []
    for cell in document["cells"]:
        seconds = cell["seconds"]
        ratios = [f"{seconds['float32'] / seconds[name]:.3f}" for name in halves]
        rows.append([OPERATIONS[cell["operation"]].title, cell["shape"], *ratios])
    return header, rows


def options_rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """Option by shape: time, and the plain call's times that."""
    seconds = document["seconds"]
    title = "float32: cross_entropy_with_grad, grad_out=: time, and times that without options"
    header = [title, *seconds]
    rows = [
        [name, *(f"{time_text(times[name])}, {times[name] / times[NO_OPTION]:.2f}"
                 for times in seconds.values())]
        for name in next(iter(seconds.values()))
    ]  # fmt: skip
    return header, rows


def options_markdown(document: Document) -> str:
    return f"{markdown(*options_rows(document))}\n\n{machine.one_line(document)}."


def waiting_rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """Shape and situation: mean time of a call, by the threads that it may use."""
    cells = document["cells"]
    header = ["float32: softmax, out=, mean time", "", *cells[0]["seconds"]]
    rows = [
        [cell["shape"], cell["situation"], *map(time_text, cell["seconds"].values())]
        for cell in cells
    ]
    return header, rows


def waiting_markdown(document: Document) -> str:
    return f"{markdown(*waiting_rows(document), left=2)}\n\n{machine.one_line(document)}."


def accuracy_markdown(document: Document) -> str:
    header, rows = accuracy_rows(document)
    return f"{markdown(header, rows, left=2)}\n\nAgainst long double. {machine.one_line(document)}."


def between_markers(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the file has no {begin} ... {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def update_readme(path: Path, results: Path) -> list[str]:
    """Puts the recorded results into the README; returns the names of the sections written."""
    text = path.read_text()
    sections: dict[str, list[str]] = {}
    for section, filename, render in (
        ("speed", "speed.json", reference_markdown),
        ("speed", "compare.json", targets_markdown),
        ("speed", "scaling-threads.json", threads_markdown),
        ("speed", "options.json", options_markdown),
        ("speed", "waiting.json", waiting_markdown),
        ("accuracy", "accuracy.json", accuracy_markdown),
    ):
        file = results / filename
        if file.exists():
            sections.setdefault(section, []).append(render(json.loads(file.read_text())))
    for section, blocks in sections.items():
        text = between_markers(text, section, "\n\n".join(blocks))
    path.write_text(text)
    return list(sections)


# ---------------------------------------------------------------------------------------- commands


def pyplot_module() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # no window, also where there is a display
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot_module().close(figure)
    return path


KINDS: dict[str, tuple[Callable[[Document], str], Callable[[Document, Path], list[Path]]]] = {
    "speed": (speed_table, plot_speed),
    "compare": (compare_table, plot_compare),
    "accuracy": (accuracy_table, plot_accuracy),
}


def show(document: Document, directory: Path) -> None:
    table, plot = KINDS[document["kind"]]
    print(table(document))
    for path in plot(document, directory):
        print(f"saved {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed", help="condense pytest-benchmark's JSON")
    speed.add_argument("file", type=Path)
    speed.add_argument("--directory", type=Path, default=RESULTS / "local")
    shown = commands.add_parser("show", help="tables and plots of results files")
    shown.add_argument("files", type=Path, nargs="+")
    shown.add_argument("--directory", type=Path, help="where plots go; default: beside the file")
    readme = commands.add_parser("readme", help="update the README's tables")
    readme.add_argument("file", type=Path)
    readme.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()

    if options.command == "speed":
        document = condense(json.loads(options.file.read_text()))
        machine.record(document, options.directory / "speed.json")
        show(document, options.directory)
    elif options.command == "show":
        for file in options.files:
            show(json.loads(file.read_text()), options.directory or file.parent)
    else:
        sections = update_readme(options.file, options.results)
        if not sections:
            sys.exit(f"no recorded results in {options.results}")
        print(f"updated {options.file}: {', '.join(sections)}")


if __name__ == "__main__":
    main()
