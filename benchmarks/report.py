"""Tables and pages from the JSON files of the benchmarks; plots.py draws.

- ``report.py speed pytest.json`` condenses pytest-benchmark's file, and shows it.
- ``report.py show FILE ...`` gives tables and plots of results files.
- ``report.py pages`` puts the recorded results into every page that shows them: tables between the
  pages' markers, and the README's two plots.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from tabulate import tabulate

import machine
import plots
from machine import ratio_text, time_text
from peers import TITLES
from plots import BESIDE
from shapes import COLUMNS, OPERATIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
LIMIT_SHARE = 0.8  # of the memory limit: what counts as near it
PRODUCTS = "matrix products"  # of linear.py: those that no way can do without
NO_OPTION = "no option"  # the call of options.py that others are compared with
PLANNED = "as planned"  # the same of ablation.py
LEAST_GAIN = 1.05  # times as fast from which on it counts as one
MOST_BESIDE = 3  # times its time on a quiet machine

Document = dict[str, Any]
Entry = dict[str, Any]
Row = dict[str, str]  # by column
Rows = Callable[[Document], pd.DataFrame]
T = TypeVar("T")


# ------------------------------------------------------------------------------------------ tables


def listed(function: Callable[[Document], Iterable[Row]]) -> Rows:
    """A table of the rows that a function gives; columns without anything are left out."""

    def table(document: Document) -> pd.DataFrame:
        found = pd.DataFrame(function(document)).fillna("")
        return found.loc[:, (found != "").any()]

    return table


def crossed(*titles: str) -> Callable[[Callable[[Document], Iterable[tuple[str, ...]]]], Rows]:
    """A table from (what names a row ..., column, text); of the same place the first one stands."""

    def table_of(function: Callable[[Document], Iterable[tuple[str, ...]]]) -> Rows:
        @listed
        def table(document: Document) -> Iterable[Row]:
            columns = [title.format_map(document) for title in titles]
            rows: dict[tuple[str, ...], Row] = {}
            for *names, column, text in function(document):
                row = rows.setdefault(tuple(names), dict(zip(columns, names, strict=True)))
                row.setdefault(column, text)
            return rows.values()

        return table

    return table_of


def aligned(table: pd.DataFrame, left: int) -> str:
    """A table in plain text; the first ``left`` columns are set to the left."""
    sides = ["left" if column < left else "right" for column in range(table.shape[1])]
    return tabulate(table, "keys", showindex=False, disable_numparse=True, colalign=sides)


def markdown(table: pd.DataFrame, left: int = 1) -> str:
    """A table that is not padded, so that a changed number changes no other line."""
    rule = ["---" if column < left else "---:" for column in range(table.shape[1])]
    lines = [list(table.columns), rule, *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions(document: Document, *but: str) -> str:
    return ", ".join(f"{name} {v}" for name, v in document["versions"].items() if name not in but)


# --------------------------------------------------------------- cases: against NumPy and peers


def condense(raw: Document) -> Document:
    """Our results file from pytest-benchmark's, which names the host and holds much else."""
    kept = {"median": "median", "minimum": "min", "interquartile_range": "iqr", "rounds": "rounds"}
    cases: dict[str, Entry] = {}
    for benchmark in raw["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        name = info.pop("implementation")
        entry = cases.setdefault(benchmark["group"], {**info, "seconds": {}})
        entry["seconds"][name] = {title: stats[key] for title, key in kept.items()}
    for entry in cases.values():
        if ours := entry["seconds"].get("softce_fast"):
            entry["gigabytes_per_second"] = entry["minimum_bytes"] / ours["median"] * 1e-9
            if textbook := entry["seconds"].get("textbook"):
                entry["ratio"] = textbook["median"] / ours["median"]
    return {**machine.describe(), "cases": list(cases.values())}


def title_of(entry: Entry) -> str:
    return OPERATIONS[entry["operation"]].title


def raced(document: Document, *dtypes: str) -> list[Entry]:
    """The cases with a ratio to a peer, of some dtypes or of all."""
    return [e for e in document["cases"] if "ratio" in e and e["dtype"] in (dtypes or e["dtype"])]


def seconds_text(entry: Entry, name: str) -> str:
    return time_text(entry["seconds"][name]["median"]) if name in entry["seconds"] else ""


def limit_share(entry: Entry) -> float | None:
    return entry["limit_share"] if entry.get("limit_share_applies") else None


@listed
def cases_rows(document: Document) -> Iterator[Row]:
    """Every case: our time, and the best peer's or NumPy's."""

    def text(number: float | None, form: Callable[[float], str] = ratio_text) -> str:
        return "" if number is None else form(number)

    for entry in document["cases"]:
        peer = entry.get("best_peer", "textbook")
        yield {
            "operation": title_of(entry),
            "shape": entry["shape"],
            "dtype": entry["dtype"],
            "best peer": TITLES[peer] if peer in entry["seconds"] else "",
            "ours": seconds_text(entry, "softce_fast") or "-",
            "peer's": seconds_text(entry, peer),
            "GB/s": text(entry.get("gigabytes_per_second"), "{:.1f}".format),
            "of limit": text(limit_share(entry), "{:.2f}".format),
            "peer/ours": text(entry.get("ratio")),
            "float32/ours": text(entry.get("ratio_to_float32")),
        }


def ahead_text(document: Document) -> str:
    ratios = [entry["ratio"] for entry in raced(document)]
    return f"of every peer in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} cases"


def case_notes(document: Document) -> Iterator[str]:
    """Peers that are missing, and of a comparison what it comes to."""
    for name, reason in document.get("skipped", {}).items():
        yield f"skipped {TITLES.get(name, name)}: {reason}"
    for entry in document["cases"]:
        for name, reason in entry.get("missing", {}).items():
            if not reason.startswith(("no ", "only ")):  # a peer without the function is no news
                where = f"{entry['operation']} {entry['shape']} {entry['dtype']}"
                yield f"{where}: {TITLES[name]}: {reason}"
    if "skipped" in document:
        shares = [share for e in document["cases"] if (share := limit_share(e)) is not None]
        near = sum(share >= LIMIT_SHARE for share in shares)
        at_limit = f"{near} of {len(shares)} cases at {LIMIT_SHARE:g} of the memory limit"
        yield f"ahead {ahead_text(document)}; {at_limit}"


def beside_peer(entry: Entry) -> str:
    return f"{ratio_text(entry['ratio'])} {TITLES[entry['best_peer']]}"


@crossed("{dtype}: best peer's time over ours")
def peers_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Operation by column, for one dtype: the least of the ratios, and who that is."""
    cases = sorted(document["cases"], key=lambda entry: entry["ratio"])
    for operation, column in itertools.product(OPERATIONS, COLUMNS):
        for entry in cases:
            if (entry["operation"], entry["column"]) == (operation, column):
                yield title_of(entry), COLUMNS[column], beside_peer(entry)


@crossed("half types", "shape", "dtype")
def halves_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for entry in raced(document):
        if "ratio_to_float32" in entry:
            names = title_of(entry), entry["shape"], entry["dtype"]
            yield *names, "own float32's time over ours", ratio_text(entry["ratio_to_float32"])
            yield *names, "best peer's time over ours", beside_peer(entry)


def peers_markdown(document: Document) -> str:
    of_dtypes = [{"dtype": d, "cases": raced(document, d)} for d in ("float32", "float64")]
    tables = [markdown(peers_rows(found)) for found in of_dtypes if found["cases"]]
    if not (halves := halves_rows(document)).empty:
        tables.append(markdown(halves, left=3))
    dates = sorted({entry["date"] for entry in document["cases"] if "date" in entry})
    oldest = f" (the oldest case: {dates[0]})" if len(dates) > 1 else ""
    note = f"Of several shapes the least favourable one. Ahead {ahead_text(document)}. "
    on = f"{machine.one_line(document)}{oldest}. {versions(document, 'python')}."
    return "\n\n".join([*tables, note + on])


@crossed("float32: time, and textbook NumPy's over it")
def textbook_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for entry in raced(document, "float32"):
        text = f"{seconds_text(entry, 'softce_fast')}, {ratio_text(entry['ratio'])}x"
        yield entry["shape"], title_of(entry), text


# What the README's one table shows: rows and classes, and operations.
README_SHAPES = ("1x10", "32x1000", "1000000x10", "16384x1000", "128x131072")
README_OPERATIONS = ("softmax_fresh", "cross_entropy", "cross_entropy_with_grad_fresh")


@crossed("float32, rows x classes")
def readme_rows(document: Document) -> Iterator[tuple[str, ...]]:
    found = {(e["shape"], e["operation"]): e for e in raced(document, "float32")}
    for shape, operation in itertools.product(README_SHAPES, README_OPERATIONS):
        if entry := found.get((shape, operation)):
            times = f"{seconds_text(entry, 'textbook')} → {seconds_text(entry, 'softce_fast')}"
            name = " x ".join(f"{int(length):,}" for length in shape.split("x"))
            ratio = f"{ratio_text(entry['ratio'])}x ({times})"
            yield name, operation.removesuffix("_fresh"), ratio


# --------------------------------------------------------------------------------- the other tables


def ulp_text(ulp: float | None) -> str:
    if ulp is None:  # JSON has no infinity
        return "not finite"
    return f"{ulp:.2f}" if ulp < 10 else f"{ulp:.0f}" if ulp < 1e5 else f"{ulp:.0e}"


@crossed("largest error in ULP", "dtype", "promised")
def accuracy_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for entry in document["results"]:
        promised = f"{document['targets'][entry['function']]:g}"
        title, error = TITLES[entry["implementation"]], ulp_text(entry["ulp"])
        yield entry["function"], entry["dtype"], promised, title, error


@crossed("largest error in ULP", "target, options")
def targets_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for entry in document["results"]:
        build = f"{entry['dtype']}, {entry['isa']}"
        yield entry["result"], entry["kind"], build, ulp_text(entry["ulp"])


ANY_TARGET = "any of these and the other options"
README_TARGETS = ("labels", "label smoothing 0.1", "class weights", "class probabilities")


@crossed("largest error in ULP, of loss and gradient")
def readme_targets_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Some kinds of targets, and the worst of all, a column per dtype and build."""
    errors: dict[tuple[str, str], list[float]] = {}
    for entry in document["results"]:
        for kind in (entry["kind"], ANY_TARGET):
            build = f"{entry['dtype']}, {entry['isa']}"
            errors.setdefault((kind, build), []).append(entry["ulp"])
    for kind in (*README_TARGETS, ANY_TARGET):
        for (found, build), ulps in errors.items():
            if found == kind:
                yield kind, build, ulp_text(None if None in ulps else max(ulps))


@crossed("float32: times as fast as on one thread", "shape")
def threads_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for point in document["points"]:
        if (count := point["threads"]) > 1 and count & (count - 1) == 0:
            shape = f"{point['rows']}x{point['classes']}"
            speedup = ratio_text(point["speedup"])
            yield OPERATIONS[point["function"]].title, shape, f"{count} threads", speedup


@listed
def digits_rows(document: Document) -> Iterator[Row]:
    for name, result in document["results"].items():
        yield {
            "on the digits": TITLES[name],
            "train loss": f"{result['train_loss']:.6f}",
            "test loss": f"{result['test_loss']:.6f}",
            "test accuracy": f"{result['test_accuracy']:.2%}",
            "loss + gradient": time_text(result["seconds"]),
        }


@crossed("time without it over the time with it", "build", "dtype")
def ablation_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Mechanism, build and dtype by operation: the mean over shapes, the least, the greatest."""
    gains: dict[tuple[str, ...], dict[str, float]] = {}
    for cell in document["cells"]:
        for mechanism in cell["seconds"].keys() - {PLANNED}:
            key = (mechanism, cell["build"], cell["dtype"], cell["operation"])
            gain = cell["seconds"][mechanism] / cell["seconds"][PLANNED]
            gains.setdefault(key, {})[cell["shape"]] = gain
    for (*names, operation), found in sorted(gains.items()):
        mean, best = statistics.geometric_mean(found.values()), max(found, key=found.__getitem__)
        text = f"{mean:.2f} ({min(found.values()):.2f} to {found[best]:.2f}, {best})"
        yield *names, OPERATIONS[operation].title, text


@crossed("float32: cross_entropy_with_grad, grad_out=: time, and times that without options")
def options_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for shape, times in document["seconds"].items():
        for name, taken in times.items():
            yield name, shape, f"{time_text(taken)}, {taken / times[NO_OPTION]:.2f}"


@crossed("float32: softmax, out=, mean time", "")
def waiting_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for cell in document["cells"]:
        for name, seconds in cell["seconds"].items():
            yield cell["shape"], cell["situation"], name, time_text(seconds)


@crossed("{rows} rows, {classes} classes: time, products' over it", "way")
def linear_rows(document: Document) -> Iterator[tuple[str, ...]]:
    seconds = {(e["task"], e["features"], e["way"]): e["seconds"] for e in document["times"]}
    for (task, features, way), taken in seconds.items():
        text = f"{time_text(taken)}, {seconds[task, features, PRODUCTS] / taken:.2f}"
        yield task, way, f"{features} features", text


@crossed("times as fast")
def linear_targets_rows(document: Document) -> Iterator[tuple[str, ...]]:
    for entry in document["compared"]:
        yield entry["what"], f"{entry['features']} features", ratio_text(entry["ratio"])


@crossed("{classes} classes, {memory_features} features: memory")
def linear_peaks_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Way by number of rows: growth of the peak in a call for loss and gradients."""
    for entry in document["peaks"]:
        yield entry["way"], f"{entry['rows']} rows", f"{entry['bytes'] / 2**20:.0f} MiB"


def linear_markdown(document: Document) -> str:
    tables = [markdown(linear_rows(document), 2)]
    tables += [markdown(rows(document)) for rows in (linear_targets_rows, linear_peaks_rows)]
    return "\n\n".join([*tables, f"{machine.one_line(document)}."])


@listed
def adapters_rows(document: Document) -> Iterator[Row]:
    for cell in document["cells"]:
        ours, other = cell["seconds"]["softce_fast"], cell["seconds"]["other"]
        verdict = ", nothing gained" if other / ours < LEAST_GAIN else ""
        yield {
            "library": cell["library"],
            "": cell["what"],
            "its own": time_text(other),
            "softce_fast": time_text(ours),
            "times as fast": ratio_text(other / ours) + verdict,
        }


@listed
def ways_rows(document: Document) -> Iterator[Row]:
    """Way and dtype by class count: the least favourable of operations and sizes."""
    cells = plots.way_ratios(document)
    for (way, dtype), found in cells.groupby(["way", "dtype"], sort=False):
        target = f"{found['target'].min():g}"
        row = {"time over that of the plain call": way, "dtype": dtype, "target": target}
        for classes in sorted(cells["classes"].unique()):
            worst = found[found["classes"] == classes].nlargest(1, "ratio")
            texts = (f"{ratio_text(cell.ratio)} {cell.operation}" for cell in worst.itertuples())
            row[f"{classes} classes"] = "".join(texts)
        lead, slowed = found["lead"].dropna(), found["slowed"].dropna()
        row["least of the peer's times over ours"] = ratio_text(lead.min()) if len(lead) else ""
        row[f"{BESIDE}, over its own time"] = ratio_text(slowed.max()) if len(slowed) else ""
        # What was not measured (NaN) counts as reached.
        missed = (
            (found["ratio"] > found["target"])
            | (found["lead"] < found["ahead"])
            | (found["slowed"] > MOST_BESIDE)
        )
        yield {**row, "reached": f"{sum(~missed)} of {len(found)}"}


def ways_page_rows(document: Document) -> pd.DataFrame:
    """The same for readers who want to know what a way costs, not what it was meant to."""
    return ways_rows(document).drop(columns=["target", "reached"])


# ---------------------------------------------------------------------------------------- documents


class Table(NamedTuple):
    rows: Rows
    left: int = 2  # columns that are set to the left
    note: str = ""  # for a page

    def text(self, document: Document) -> str:
        notes = case_notes(document) if "cases" in document else []
        on = machine.one_line(document), versions(document)
        return "\n".join([aligned(self.rows(document), self.left), "", *notes, *on])

    def page(self, document: Document) -> str:
        table = markdown(self.rows(document), self.left)
        return f"{table}\n\n{self.note}{machine.one_line(document)}."


TABLES = {
    "speed": Table(cases_rows, 4),
    "compare": Table(cases_rows, 4),
    "accuracy": Table(accuracy_rows, note="Against long double. "),
    "targets": Table(targets_rows, note="Against long double; 4 is promised. "),
    "scaling": Table(threads_rows),
    "digits": Table(digits_rows, 1),
    "options": Table(options_rows, 1),
    "waiting": Table(waiting_rows),
    "adapters": Table(adapters_rows),
    "ablation": Table(ablation_rows, 3),
    "ways": Table(ways_rows),
}
KINDS = {"linear": linear_markdown, **{kind: table.text for kind, table in TABLES.items()}}
PICTURES = {"linear": plots.linear, "ways": plots.ways}
LINEAR_PICTURE = "![Time and memory by number of features and of rows](images/linear.png)"
# What stands in a page, in its order: the section, the file, the text.
SECTIONS: dict[str, tuple[tuple[str, str, Callable[[Document], str]], ...]] = {
    "README.md": (
        ("speed", "speed.json", Table(readme_rows, 1).page),
        ("digits", "targets.json", Table(readme_targets_rows, 1, TABLES["targets"].note).page),
    ),
    "docs/benchmarks.md": (
        ("numpy", "speed.json", Table(textbook_rows, 1).page),
        ("peers", "compare.json", peers_markdown),
        ("threads", "scaling.json", TABLES["scaling"].page),
        ("linear", "linear.json", lambda found: f"{LINEAR_PICTURE}\n\n{linear_markdown(found)}"),
        *((kind, f"{kind}.json", TABLES[kind].page)
          for kind in ("options", "waiting", "adapters", "accuracy", "targets")),
        ("ways", "ways.json", Table(ways_page_rows).page),
        ("ways-avx2", "ways-avx2.json", Table(ways_page_rows).page),
    ),
    "docs/design.md": (("ablation", "ablation.json", TABLES["ablation"].page),),
}  # fmt: skip
PLOTS = {
    "docs/images/speed.png": ("compare.json", plots.speed),
    "docs/images/accuracy.png": ("accuracy.json", plots.accuracy),
    "docs/images/linear.png": ("linear.json", plots.linear),
}


def show(document: Document, directory: Path) -> None:
    kind = document["kind"]
    print(KINDS[kind](document))
    if kind in PICTURES:
        print(f"saved {PICTURES[kind](document, directory / f'{kind}.png')}")


def finish(path: Path, document: Document) -> None:
    """Write results down, where a report is made from them later, and show them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"saved {path}")
    show(document, path.parent)


def run(
    kind: str,
    description: str | None,
    measure: Callable[[argparse.Namespace], Document],
    packages: Iterable[str] = ("numpy", "softce_fast"),
    arguments: Mapping[str, dict[str, Any]] = {},
) -> None:
    """What a benchmark does: options, measuring, results."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, briefly")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "local" / f"{kind}.json", help="where results go"
    )
    for name, settings in arguments.items():
        parser.add_argument(name, **settings)
    options = parser.parse_args()
    content = measure(options)
    finish(options.json, {"kind": kind, **machine.describe(packages), **content})


# An option of some benchmarks, and what it says of the name of a case.
ONLY = {"--only": {"nargs": "+", "metavar": "TEXT", "help": "cases with one of these in the name"}}


def chosen(options: argparse.Namespace, cases: Mapping[str, T]) -> list[T]:
    """Those cases, by name, that are asked for; without any the program ends."""
    texts = options.only or [""]
    found = [case for name, case in cases.items() if any(text in name for text in texts)]
    return found or sys.exit(f"no case has {' or '.join(texts)} in its name")


def between_markers(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_end:
        raise ValueError(f"the file has no {begin} ... {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def update_page(path: Path, page: str, results: Path = RESULTS) -> list[str]:
    """Puts the recorded results into a page; returns the names of the sections written."""
    text = path.read_text(encoding="utf-8")
    recorded = [section for section in SECTIONS[page] if (results / section[1]).exists()]
    for section, file, render in recorded:
        text = between_markers(text, section, render(json.loads((results / file).read_text())))
    path.write_text(text, encoding="utf-8")
    return [section for section, _, _ in recorded]


def update_pages() -> None:
    """Renew the tables of all pages, and their plots."""
    for page in SECTIONS:
        print(f"{page}: {', '.join(update_page(ROOT / page, page)) or 'nothing recorded'}")
    for picture, (file, draw) in PLOTS.items():
        if (RESULTS / file).exists():
            print(draw(json.loads((RESULTS / file).read_text()), ROOT / picture))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["speed", "show", "pages"])
    parser.add_argument("files", type=Path, nargs="*")
    options = parser.parse_args()
    if options.command == "pages":
        update_pages()
    for file in options.files:
        document = json.loads(file.read_text())
        if options.command == "speed":
            finish(file.with_name("speed.json"), {"kind": "speed", **condense(document)})
        else:
            show(document, file.parent)


if __name__ == "__main__":
    main()
