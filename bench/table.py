"""From the results of a run to text: the table, its notes and what was reached of the goals."""

from __future__ import annotations

from statistics import median
from typing import Any

import machine
import memory
import peers

HEAD = [
    "d, k, batch, rows",
    "method",
    "rows/s",
    "× IncrementalPCA",
    "× PEFT",
    "time / floor",
    "error of s",
    "bound / truth",
    "memory",
]
Results = dict[str, Any]


def rate(entry: dict[str, Any]) -> float:
    """Return rows per second from the median time."""
    return entry["rows"] / median(entry["seconds"])


def entries(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the methods of a case that were timed, by name."""
    return {entry["name"]: entry for entry in case["methods"] if entry.get("seconds")}


def ratio(case: dict[str, Any], name: str, against: str) -> float | None:
    """Return how many times faster a method is than another one; None where one of the two was not timed."""
    timed = entries(case)
    return rate(timed[name]) / rate(timed[against]) if name in timed and against in timed else None


def render(results: Results, *, markdown: bool = False) -> str:
    """Return the table with its notes."""
    rows = [row for case in results["cases"] for row in _rows(case)]
    text = _markdown(rows) if markdown else _plain(rows)
    notes = [f"Machine: {machine.sentence(results['machine'])}.", *_notes(results)]
    return "\n".join([text, "", *(f"{note}  " if markdown else note for note in notes)]).rstrip()


def goals(results: Results) -> str:
    """Return one line for each goal of the default state: what was asked, what was measured."""
    lines = []
    for case in results["cases"]:
        timed, asked = entries(case), case["goals"]
        if "ours" not in timed:
            continue
        found = timed["ours"]
        over = ratio(case, "floor", "ours")
        worse = timed["sklearn"]["error"] / found["error"] if "sklearn" in timed else None
        checks = [
            ("times IncrementalPCA", ratio(case, "ours", "sklearn"), asked["sklearn"], True),
            ("times PEFT", ratio(case, "ours", "peft"), asked["peft"], True),
            ("times the floor", over, asked["floor"], False),
            ("IncrementalPCA's error / ours", worse, asked["accuracy"], True),
            ("bound / truth", found.get("slack"), asked["slack"], False),
            (f"resident memory in {found['unit']}", _units(found, "memory"), memory.LIMITS[found["kind"]], False),
            (f"memory of arrays in {found['unit']}", _units(found, "arrays"), memory.LIMITS[found["kind"]], False),
        ]
        for what, value, limit, at_least in checks:
            if value is not None and limit is not None:
                said = "reached" if (value >= limit if at_least else value <= limit) else "MISSED"
                lines.append(
                    f"{said:<8} {case['name']:<8} {what:<32} {value:>10.4g} {'>=' if at_least else '<='} {limit:g}"
                )
    return "\n".join(lines)


def _rows(case: dict[str, Any]) -> list[list[str]]:
    found = []
    for entry in case["methods"]:
        name, timed = entry["name"], bool(entry.get("seconds"))
        cells = [case["title"], _label(entry)]
        if not timed:
            found.append([*cells, "not measured¹", *[""] * 6])
            continue
        ratios = (ratio(case, name, "sklearn"), ratio(case, name, "peft"), ratio(case, "floor", name))
        cells += [f"{rate(entry):,.0f}", *(_number(value) for value in ratios)]
        cells += [
            _small(entry.get("error")),
            "" if entry.get("slack") is None else f"{entry['slack']:.5f}",
            _memory(entry),
        ]
        found.append(cells)
    return found


def _label(entry: dict[str, Any]) -> str:
    label = entry["label"]
    return f"{label} ({entry['kind']})" if entry.get("kind") and entry["kind"] not in label else label


def _notes(results: Results) -> list[str]:
    options = results["options"]
    found = [
        f"Medians of {options['runs']} runs, the methods in turn in each; the same batches for everyone, centred unless it says otherwise. "
        "Error of s: the largest relative error of the first k singular values against a float64 SVD; bound / truth: certified over true "
        "residual; memory: peak resident memory above the input, in a process of its own (ours also in the unit of its limit).",
    ]
    reasons = {
        (entry["label"], entry["skipped"]): []
        for case in results["cases"]
        for entry in case["methods"]
        if entry.get("skipped")
    }
    for case in results["cases"]:
        for entry in case["methods"]:
            if entry.get("skipped"):
                reasons[entry["label"], entry["skipped"]].append(case["title"])
    found += [f"¹ {label}, at {' and '.join(titles)}: {reason}." for (label, reason), titles in reasons.items()]
    used = {entry["name"] for case in results["cases"] for entry in entries(case).values()}
    found += [f"{method.note}." for name, method in peers.PEERS.items() if method.note and name in used]
    for case in results["cases"]:
        short = {entry["rows"]: [] for entry in entries(case).values() if entry["rows"] != case["rows"]}
        for entry in entries(case).values():
            if entry["rows"] in short:
                short[entry["rows"]].append(entry["label"])
        for rows, labels in short.items():
            found.append(
                f"At {case['title']}, timed on the first {rows} rows: {', '.join(labels)} (their errors are after all rows)."
            )
        for entry in entries(case).values():
            if entry.get("found", case["rank"]) < case["rank"]:
                lost = f"{entry['label']} returned {entry['found']} of the {case['rank']} singular values"
                found.append(
                    f"At {case['title']}, {lost}: its merge drops the last 0.1 % of the energy; those missing count as 0."
                )
        if case["batch"] == 1:
            found.append(
                f"At {case['title']}, the first batch has {case['rank']} rows for everyone: IncrementalPCA starts with no fewer."
            )
    return found


def _memory(entry: dict[str, Any]) -> str:
    if entry.get("memory") is None:
        return ""
    text = f"{entry['memory'] / 1e6:,.1f} MB"
    return f"{text} = {_units(entry, 'memory'):.2f} {entry['unit']}" if "unit" in entry else text


def _units(entry: dict[str, Any], which: str) -> float | None:
    return entry[which] / entry["unit_bytes"] if entry.get(which) is not None else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _plain(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]

    def line(row: list[str]) -> str:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    lines, last = [line(HEAD)], ""
    for row in rows:
        if row[0] != last:
            lines.append("")
        lines.append(line(row))
        last = row[0]
    return "\n".join(lines)


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * (len(HEAD) - 2)]
    last = ""
    for row in rows:
        cells = [row[0] if row[0] != last else "", *row[1:]]
        last = row[0]
        if row[1].startswith("streamsvd"):
            cells[1:4] = [f"**{cell}**" if cell else "" for cell in cells[1:4]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
