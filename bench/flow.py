"""The data flow: folding a Parquet file against its parts, conversion against memcpy, peak memory, the cost of checkpoints.

``make bench`` runs it after ``compare.py``, whose options it shares; ``--flow`` runs it alone, or some of its parts. Files go to a
temporary folder that is removed. What is compared takes turns, run after run, so that a machine that drifts drifts for all of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import compare
import machine
import parts

if TYPE_CHECKING:
    import argparse

LIMITS = {"fold": 1.15, "convert": 1.5, "memory": 1.1, "checkpoint": 1.02}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that were asked for and print one table; nothing where the options ask for something else."""
    options = compare.parser().parse_args(arguments)
    if not compare.wants_flow(options):
        return None
    if options.read:
        file = _results_file(options.read)
        return print(render(json.loads(file.read_text()), markdown=options.markdown)) if file.exists() else None
    chosen = _parts(options.flow)
    machine.set_threads(options.threads)
    _two_cores()
    results = run(parts.QUICK if options.quick else parts.Sizes(), chosen, options)
    if options.json:
        file = _results_file(options.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        compare.say(f"written to {file}")
    return print(render(results, markdown=options.markdown))


def run(sizes: parts.Sizes, chosen: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts one after the other and return everything that the table needs."""
    # Memory comes first: the peak of a child may begin at that of its parent.
    ways = {"memory": parts.peaks, "fold": parts.folds, "convert": parts.conversions, "checkpoint": parts.checkpoints}
    described = machine.describe(options.threads)
    with tempfile.TemporaryDirectory(prefix="streamsvd-bench-") as folder:
        entries = [
            asdict(entry) for part, way in ways.items() if part in chosen for entry in way(sizes, Path(folder), options)
        ]
    entries.sort(key=lambda entry: compare.FLOW_PARTS.index(entry["part"]))
    kept = {"runs": options.runs, "quick": options.quick, "sizes": asdict(sizes)}
    return {"machine": described, "options": kept, "entries": entries}


def ratio(entry: dict[str, Any]) -> float:
    """Return the ratio that has a limit: of the first measured to the largest of the others, in medians."""
    first, *others = (median(values) for values in entry["measured"].values())
    return first / max(others)


def render(results: dict[str, Any], *, markdown: bool = False) -> str:
    """Return the table, one line for each entry, with its notes."""
    head = ["data flow", "measured (medians)", "ratio", "limit", ""]
    rows = []
    for entry in results["entries"]:
        found, limit = ratio(entry), LIMITS[entry["part"]]
        copied = any(note == "COPIED" for note in entry["notes"])
        said = "" if results["options"]["quick"] else "MISSED" if copied or found > limit else "reached"
        measured = ", ".join(
            f"{name} {parts.amount(median(v), entry['unit'])}" for name, v in entry["measured"].items()
        )
        rows.append([entry["what"], "; ".join([measured, *entry["notes"]]), f"{found:.3f}", f"<= {limit:g}", said])
    notes = [
        f"Machine: {machine.sentence(results['machine'])}.",
        f"Medians of {results['options']['runs']} runs in turn, warm page cache, two cores. The ratio is that of the first number to the "
        "larger of the others: reading is `ParquetFile.read_row_group` in one thread, folding is of the same batches from memory.",
    ]
    if results["options"]["quick"]:
        notes.append("Tiny sizes: these ratios mean nothing.")
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---", "---", "---:", "---:", "---"], *rows]]
    else:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
        ]
    return "\n".join([*lines, "", *notes])


def _two_cores() -> None:
    if hasattr(os, "sched_setaffinity") and machine.cores() > 2:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def _parts(text: str | None) -> list[str]:
    found = list(compare.FLOW_PARTS) if not text else text.split(",")
    unknown = [part for part in found if part not in compare.FLOW_PARTS]
    if unknown:
        msg = f"there is no part {', '.join(unknown)} of the data flow; the parts are {', '.join(compare.FLOW_PARTS)}"
        raise ValueError(msg)
    return found


def _results_file(name: str) -> Path:
    file = compare.results_file(name)
    return file.with_name(f"{file.stem}-flow{file.suffix}")


if __name__ == "__main__":
    main()
