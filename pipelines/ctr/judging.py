"""What compression costs a model: AUC, logloss, bytes and speed before and after, and the curve of bytes against AUC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from streamsvd.arrays import Array
from streamsvd.charts import Series, lines, short
from streamsvd.pipelines.ctr.apply import apply_to
from streamsvd.pipelines.ctr.compress import Compressed, compress_tables
from streamsvd.pipelines.ctr.training import evaluate

SIZES = (0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 0.75)
STYLE = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}svg{max-width:36rem;font-size:11px}"
STYLE += ".line{fill:none;stroke-width:1.5}.line.a{stroke:#1769aa}.line.b{stroke:#c2571a}circle.a{fill:#1769aa}circle.b{fill:#c2571a}"
STYLE += ".grid{stroke:#8883}text{fill:currentColor}td,th{text-align:right;padding:.1rem .6rem}"
STYLE += "td:first-child,th:first-child{text-align:left}"


def compare(model: Any, result: Mapping[str, Any], index: Array, labels: Array, /) -> dict[str, dict[str, float]]:
    """Return what `evaluate` says of a model and of its compressed copy, each with its bytes of tables.

    Parameters
    ----------
    model : DeepFM
    result : Compressed
    index, labels : arrays (n, fields), (n,), as `Vocabulary.encode` makes them
    """
    done = apply_to(model, result)
    evaluate(model, index[:8192], labels[:8192]) if len(
        set(labels[:8192])
    ) > 1 else None  # the first call pays for threads
    before, after = evaluate(model, index, labels), evaluate(done, index, labels)
    sizes = [sum(getattr(one, name) for one in result.values()) for name in ("bytes_before", "bytes_after")]
    return {"before": {**before, "bytes": sizes[0]}, "after": {**after, "bytes": sizes[1]}}


def curve(
    model: Any, counts: Mapping[str, Array], index: Array, labels: Array, /, *, sizes: Sequence[float] = SIZES
) -> list[dict[str, float]]:
    """Return bytes, weighted error, AUC and logloss of a model under budgets that are shares of the bytes of its tables."""
    tables = model.tables()
    dense = sum(table.nbytes for table in tables.values())
    points = []
    for size in sizes:
        done = compress_tables(tables, counts, budget_bytes=int(size * dense))
        after = evaluate(apply_to(model, done), index, labels)
        points.append(
            {
                "share": size,
                "bytes": done.bytes_after,
                "error": done.error,
                "auc": after["auc"],
                "logloss": after["logloss"],
            }
        )
    whole = evaluate(model, index, labels)
    return [*points, {"share": 1.0, "bytes": dense, "error": 0.0, "auc": whole["auc"], "logloss": whole["logloss"]}]


def table(result: Compressed, /) -> str:
    """Return the fields of a result as a table in plain text."""
    head = ("field", "ids", "rank", "bytes", "after", "error", "why")
    rows = []
    for name, f in result.items():
        rank = "dense" if f.rank is None else f"{f.rank} of {f.projection.shape[1]}"
        sizes = f"{f.bytes_before:,}", f"{f.bytes_after:,}", f"{f.error:.4f}"
        rows.append((name, f"{f.vocabulary:,}", rank, *sizes, f.reason))
    rows.append(("all", "", "", f"{result.bytes_before:,}", f"{result.bytes_after:,}", f"{result.error:.4f}", ""))
    widths = [max(len(row[j]) for row in [head, *rows]) for j in range(len(head))]
    sides = [str.ljust, *[str.rjust] * (len(head) - 2), str.ljust]
    return "\n".join(
        "  ".join(side(x, w) for side, x, w in zip(sides, row, widths, strict=True)).rstrip() for row in [head, *rows]
    )


def write_page(
    path: str | Path,
    result: Compressed,
    /,
    *,
    points: Sequence[Mapping[str, float]] = (),
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML file: the curve of bytes against AUC, eigenvalues of each field, and the table."""
    body = ["<h1>Compressed embedding tables</h1>"]
    if scores:
        names = list(scores["before"])
        rows = "".join(
            f"<tr><td>{k}</td>" + "".join(f"<td>{scores[k][n]:,.5g}</td>" for n in names) + "</tr>"
            for k in ("before", "after")
        )
        body.append(f"<table><tr><th></th>{''.join(f'<th>{escape(n)}</th>' for n in names)}</tr>{rows}</table>")
    if points:
        body.append(f"<h2>Bytes against AUC</h2>{picture(points)}")
    body.append(f"<pre>{escape(table(result))}</pre><h2>Share of the variance left out, by rank</h2>")
    for name, one in result.items():
        total = max(float(one.eigenvalues.sum()), 1e-300)
        left = [float(one.eigenvalues[r:].sum()) / total for r in range(len(one.eigenvalues) + 1)]
        drawn = lines(
            name, [Series("left out", list(range(len(left))), left)], x_name="rank", y_text=lambda v: f"{v:.0%}"
        )
        body.append(f"<h3>{escape(name)}</h3>{drawn}")
    page = f"<!doctype html><meta charset=utf-8><title>Compressed tables</title><style>{STYLE}</style>{''.join(body)}"
    Path(path).write_text(page, encoding="utf-8")


def picture(points: Sequence[Mapping[str, float]], /) -> str:
    """Return the curve of bytes against AUC as SVG."""
    ordered = sorted(points, key=lambda point: point["bytes"])
    series = Series("AUC", [float(p["bytes"]) for p in ordered], [float(p["auc"]) for p in ordered])
    return lines(
        "Bytes of the tables against AUC",
        [series],
        x_name="bytes",
        y_text=lambda v: f"{v:.4f}" if abs(v) < 1 else short(v),
    )
