"""Tables and pages from the JSON files of the benchmarks; plots.py draws.

- ``report.py speed pytest.json`` condenses pytest-benchmark's file; table and plots.
- ``report.py show FILE ...`` gives tables and plots of results files.
- ``report.py pages`` puts the recorded results into every page that shows them: tables between the
  pages' markers, and the README's two plots.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

import machine
import plots
from formatting import ratio_text, time_text, ulp_text
from peers import OWN_CODE, TITLES
from shapes import COLUMNS, HALF_DTYPES, LIMIT_SHARE_TARGET, OPERATIONS

RESULTS = Path(__file__).with_name("results")
LOCAL = RESULTS / "local"
PRODUCTS = "matrix products"  # of linear.py: those that no way can do without
NO_OPTION = "no option"  # the call of options.py that others are compared with
PLANNED = "as planned"  # the same of ablation.py
BESIDE, MOST_BESIDE = "beside a busy process", 3  # times its time on a quiet machine

Document = dict[str, Any]
Entry = dict[str, Any]


# ------------------------------------------------------------------------------------------ tables


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


# --------------------------------------------------------------- cases: against NumPy and peers


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
            if "textbook" in seconds:
                entry["ratio"] = seconds["textbook"] / seconds["softce_fast"]
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
    return str(entry.get("best_peer", "textbook" if "textbook" in entry["seconds"] else ""))


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
    """Every case: our time, the best peer's or NumPy's, and the target."""
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


def beside_peer(entry: Entry) -> str:
    return f"{ratio_text(entry['ratio'])} {TITLES[peer_of(entry)]}"


def peers_markdown(document: Document) -> str:
    """Operation by column: the least of the ratios to the best peer, and who that is."""
    blocks = []
    for dtype in ("float32", "float64"):
        title = f"{dtype}: best peer's time over ours"
        entries = [e for e in document["cases"] if e["dtype"] == dtype and "ratio" in e]
        cells = [
            {
                title: OPERATIONS[entry["operation"]].title,
                "column": COLUMNS[entry["column"]],
                "text": beside_peer(entry),
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
            "best peer's time over ours": beside_peer(entry),
        }
        for entry in document["cases"]
        if "ratio_to_float32" in entry and "ratio" in entry
    ]
    if halves:
        blocks.append(markdown(table_of(halves), left=3))
    dates = sorted({entry["date"] for entry in document["cases"] if "date" in entry})
    oldest = f" (the oldest case: {dates[0]})" if len(dates) > 1 else ""
    raced = [entry["ratio"] for entry in document["cases"] if "ratio" in entry]
    note = (
        f"Of several shapes the least favourable one. Ahead of every peer in "
        f"{sum(ratio > 1 for ratio in raced)} of {len(raced)} cases. "
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in document["versions"].items() if name != "python"
    )
    return "\n\n".join([*blocks, f"{note}{machine.one_line(document)}{oldest}. {versions}."])


def textbook_markdown(document: Document) -> str:
    """Shape by operation: our time and how many times as long textbook NumPy takes."""
    title = "float32: time, and textbook NumPy's over it"
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
    return f"{markdown(table[[title, *columns]])}\n\n{machine.one_line(document)}."


# What the README's one table shows: rows and classes, and operations.
README_SHAPES = {
    "1x10": "1 x 10", "32x1000": "32 x 1,000", "1000000x10": "1,000,000 x 10",
    "16384x1000": "16,384 x 1,000", "128x131072": "128 x 131,072",
}  # fmt: skip
README_OPERATIONS = {
    "softmax_fresh": "softmax", "cross_entropy": "cross_entropy",
    "cross_entropy_with_grad_fresh": "cross_entropy_with_grad",
}  # fmt: skip


def readme_markdown(document: Document) -> str:
    """Some shapes by some operations: textbook NumPy's time, and ours."""
    title = "float32, rows x classes"
    found = {(e["operation"], e["shape"]): e for e in document["cases"] if e["dtype"] == "float32"}
    rows = [
        {
            title: name,
            **{
                column: f"{ratio_text(entry['ratio'])}x ({seconds_text(entry, 'textbook')} → "
                f"{seconds_text(entry, 'softce_fast')})"
                for operation, column in README_OPERATIONS.items()
                if (entry := found.get((operation, shape)))
            },
        }
        for shape, name in README_SHAPES.items()
        if any((operation, shape) in found for operation in README_OPERATIONS)
    ]
    return f"{markdown(table_of(rows))}\n\n{machine.one_line(document)}."


# --------------------------------------------------------------------------------- the other tables


def accuracy_rows(document: Document) -> pd.DataFrame:
    """Largest error by function and dtype, a column per implementation."""
    cells = [
        {
            "largest error in ULP": entry["function"],
            "dtype": entry["dtype"],
            "promised": f"{document['targets'][entry['function']]:g}",
            "title": TITLES[entry["implementation"]],
            "text": ulp_text(entry["ulp"]),
        }
        for entry in document["results"]
    ]
    return crossed(cells, ["largest error in ULP", "dtype", "promised"], "title", "text")


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
    """Task and way by number of features: time, and the time of the products alone over it."""
    title = f"{document['rows']} rows, {document['classes']} classes: time, products' over it"
    seconds = {(e["task"], e["features"], e["way"]): e["seconds"] for e in document["times"]}
    cells = [
        {
            title: task,
            "way": way,
            "features": f"{features} features",
            "text": f"{time_text(taken)}, {seconds[task, features, PRODUCTS] / taken:.2f}",
        }
        for (task, features, way), taken in seconds.items()
    ]
    return crossed(cells, [title, "way"], "features", "text")


def linear_targets_rows(document: Document) -> pd.DataFrame:
    """What targets are about by number of features: ratio and target."""
    title = "times as fast (wanted)"
    cells = [
        {
            title: entry["what"],
            "features": f"{entry['features']} features",
            "text": f"{ratio_text(entry['ratio'])} ({entry['target']:g})",
        }
        for entry in document["compared"]
    ]
    return crossed(cells, [title], "features", "text")


def linear_peaks_rows(document: Document) -> pd.DataFrame:
    """Way by number of rows: growth of the peak in a call for loss and gradients."""
    title = f"{document['classes']} classes, {document['memory_features']} features: memory"
    cells = [
        {title: e["way"], "rows": f"{e['rows']} rows", "text": f"{e['bytes'] / 2**20:.0f} MiB"}
        for e in document["peaks"]
    ]
    return crossed(cells, [title], "rows", "text")


def linear_markdown(document: Document) -> str:
    blocks = [
        markdown(linear_rows(document), 2),
        markdown(linear_targets_rows(document)),
        markdown(linear_peaks_rows(document)),
        f"{machine.one_line(document)}.",
    ]
    return "\n\n".join(blocks)


def adapters_rows(document: Document) -> pd.DataFrame:
    """What is done in a library: both times, and how many times as fast."""
    return table_of(
        {
            "library": cell["library"],
            "": cell["what"],
            "its own": time_text(cell["seconds"]["other"]),
            "softce_fast": time_text(cell["seconds"]["softce_fast"]),
            "times as fast": ratio_text(cell["seconds"]["other"] / cell["seconds"]["softce_fast"]),
        }
        for cell in document["cells"]
    )


def way_reached(cell: Entry) -> bool:
    lead, slowed = min(over_way([cell], "peer"), default=math.inf), over_way([cell], BESIDE)
    return (
        plots.way_ratio(cell) <= cell["target"]
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
    cells = [cell for cell in document["cells"] if not math.isnan(plots.way_ratio(cell))]
    grouped = pd.DataFrame(cells).assign(cell=cells).groupby(["way", "dtype"], sort=False)
    rows = []
    for (way, dtype), group in grouped:
        found = list(group["cell"])
        row = {title: way, "dtype": dtype, "target": f"{min(c['target'] for c in found):g}"}
        for classes in sorted({cell["classes"] for cell in found}):
            worst = max((c for c in found if c["classes"] == classes), key=plots.way_ratio)
            row[f"{classes} classes"] = f"{ratio_text(plots.way_ratio(worst))} {worst['operation']}"
        leads, slowed = (over_way(found, name) for name in ("peer", BESIDE))
        row["least of the peer's times over ours"] = ratio_text(min(leads, default=None))
        row[f"{BESIDE}, over its own time"] = ratio_text(max(slowed, default=None))
        row["reached"] = f"{sum(map(way_reached, found))} of {len(found)}"
        rows.append(row)
    table = table_of(rows)
    return table.loc[:, (table != "").any()]


# ---------------------------------------------------------------------------------------- documents


def plain(rows: Callable[[Document], pd.DataFrame], left: int = 2) -> Callable[[Document], str]:
    return lambda document: f"{aligned(rows(document), left)}\n\n{head(document)}"


def for_page(
    rows: Callable[[Document], pd.DataFrame], left: int = 2, note: str = ""
) -> Callable[[Document], str]:
    return lambda document: (
        f"{markdown(rows(document), left)}\n\n{note}{machine.one_line(document)}."
    )


# How each kind of document is shown.
KINDS: dict[str, tuple[Callable[[Document], str], Callable[[Document, Path], list[Path]]]] = {
    "speed": (cases_table, plots.cases),
    "compare": (cases_table, plots.cases),
    "accuracy": (plain(accuracy_rows), plots.none),
    "scaling": (scaling_table, plots.scaling),
    "digits": (plain(digits_rows, 1), plots.none),
    "half types": (plain(half_types_rows), plots.none),
    "options": (plain(options_rows, 1), plots.none),
    "waiting": (plain(waiting_rows), plots.none),
    "linear": (linear_markdown, plots.linear_alone),
    "adapters": (plain(adapters_rows), plots.none),
    "ablation": (for_page(ablation_rows, 3), plots.none),
    "ways": (for_page(ways_rows), plots.ways),
}
LINEAR_PICTURE = "![Time and memory by number of features and of rows](images/linear.png)"
# What stands in a page, in its order: the section, the file, the text.
SECTIONS: dict[str, tuple[tuple[str, str, Callable[[Document], str]], ...]] = {
    "README.md": (("speed", "speed.json", readme_markdown),),
    "docs/benchmarks.md": (
        ("numpy", "speed.json", textbook_markdown),
        ("peers", "compare.json", peers_markdown),
        ("threads", "scaling-threads.json", for_page(threads_rows)),
        ("options", "options.json", for_page(options_rows, 1)),
        ("waiting", "waiting.json", for_page(waiting_rows)),
        (
            "linear",
            "linear.json",
            lambda document: f"{LINEAR_PICTURE}\n\n{linear_markdown(document)}",
        ),
        ("adapters", "adapters.json", for_page(adapters_rows)),
        ("ways", "ways.json", for_page(ways_rows)),
        ("accuracy", "accuracy.json", for_page(accuracy_rows, 2, "Against long double. ")),
    ),
    "docs/design.md": (("ablation", "ablation.json", for_page(ablation_rows, 3)),),
}
PLOTS = {
    "docs/images/speed.png": ("compare.json", plots.speed),
    "docs/images/accuracy.png": ("accuracy.json", plots.accuracy),
    "docs/images/linear.png": ("linear.json", plots.linear),
}
ROOT = Path(__file__).resolve().parent.parent


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


def update_page(path: Path, page: str, results: Path) -> list[str]:
    """Puts the recorded results into a page; returns the names of the sections written."""
    text = path.read_text(encoding="utf-8")
    recorded = [section for section in SECTIONS[page] if (results / section[1]).exists()]
    for section, file, render in recorded:
        text = between_markers(text, section, render(json.loads((results / file).read_text())))
    path.write_text(text, encoding="utf-8")
    return [section for section, _, _ in recorded]


def update_pages(results: Path) -> None:
    """Renew the tables of all pages, and the README's plots."""
    for page in SECTIONS:
        print(f"{page}: {', '.join(update_page(ROOT / page, page, results)) or 'nothing recorded'}")
    for picture, (file, draw) in PLOTS.items():
        if (results / file).exists():
            print(draw(json.loads((results / file).read_text()), ROOT / picture))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["speed", "show", "pages"])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--directory", type=Path, help="of results; default: as recorded, or local")
    options = parser.parse_args()
    if options.command == "pages":
        update_pages(options.directory or RESULTS)
    elif not options.files:
        parser.error(f"{options.command} takes files")
    for file in options.files:
        if options.command == "speed":
            document = condense(json.loads(file.read_text()))
            finish("speed", (options.directory or LOCAL) / "speed.json", document)
        else:
            show(json.loads(file.read_text()), options.directory or file.parent)


if __name__ == "__main__":
    main()
