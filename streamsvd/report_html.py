"""A report as one HTML file: no script, nothing from the network, readable on a phone, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.charts import Series, lines, scree, short
from streamsvd.report import summary
from streamsvd.report_runs import interval, number

if TYPE_CHECKING:
    import os

    from streamsvd.factors import Factors

SHOWN, LOADED, TOP = 20, 8, 6  # components in the table, components with loadings, columns of each


def write_report(
    model: Any,
    path: str | os.PathLike[str],
    /,
    *,
    title: str = "",
    events: Sequence[dict[str, Any]] = (),
    counts: dict[str, Any] | None = None,
) -> None:
    """Write the report of a model to a file, which appears in one step; the parameters are those of `page`.

    Raises
    ------
    OSError
        The folder does not exist or may not be written; a file that was there before is unchanged.
    """
    from streamsvd.flow.statefile import write_atomically

    write_atomically(path, [page(model, title=title, events=events, counts=counts).encode()])


def page(
    model: Any,
    /,
    *,
    title: str = "",
    events: Sequence[dict[str, Any]] = (),
    counts: dict[str, Any] | None = None,
) -> str:
    """Return the report of a model as one HTML page that needs nothing else.

    Parameters
    ----------
    model : state or Factors
    title : str
        What the model is called, such as the name of its file.
    events : sequence of dict
        What each checkpoint of the run recorded: ``rows``, ``captured`` (share), ``angle`` (radians), ``residual`` and ``estimate``
        (shares); None where it is not known.
    counts : dict, optional
        What the reading left out or filled in: ``seen``, ``dropped`` and ``filled`` (each by reason).

    Returns
    -------
    html : str
        Scree with certified intervals, captured energy and drift over the run, the residual, the largest loadings by column name.

    Notes
    -----
    Cost: that of ``factors()`` for a state, and one pass over the components.
    """
    values = summary(model)
    factors = model.factors() if hasattr(model, "factors") and model.rows else model
    name = title or "streamsvd report"
    body = [_header(values, name)]
    if "components" in values:
        body += [_figures(values), _charts(values, list(events)), _table(values["components"]), _loadings(factors)]
    body.append(_footer(values, counts))
    return _PAGE.format(title=escape(name), style=_STYLE, body="\n".join(part for part in body if part))


def largest_loadings(factors: Factors, component: int, /, *, top: int = TOP) -> list[tuple[str, float]]:
    """Return the columns that a component (from 0) weighs most, with their signed loadings; columns without a name are numbered from 0."""
    row = to_numpy(factors.vt)[component].astype(np.float64)
    best = np.argsort(-np.abs(row), kind="stable")[:top]
    names = factors.names or [f"column {j}" for j in range(row.size)]
    return [(names[j], float(row[j])) for j in best]


def _share(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.3g} %" if value < 0.1 else f"{100 * value:.2f} %"


def _header(values: dict[str, Any], name: str) -> str:
    kind = values.get("state") or values["kind"]
    facts = [f"{values['rows']:,} rows", f"{values['columns']:,} columns", f"rank {values['rank']}"]
    facts += ["centred" if values["center"] else "not centred", {"gram": "exact moments"}.get(kind, kind or "")]
    empty = "" if "components" in values else "<p>There are no rows yet, so there are no components.</p>"
    return f"<header><h1>{escape(name)}</h1><p>{escape(' · '.join(fact for fact in facts if fact))}</p>{empty}</header>"


def _figures(values: dict[str, Any]) -> str:
    bound, energy = values["bound"] or {}, values["energy"]
    cards = [("explained", _share(values["explained"]), "of the energy, by the components together")]
    if bound.get("relative") is not None:
        cards.append(("left over, certified", f"≤ {_share(bound['relative'])}", "rounding included"))
    if bound.get("estimate") is not None and energy:
        cards.append(
            ("left over, estimated", _share(bound["estimate"] / energy), "unbiased, from a random test sketch")
        )
    if bound.get("optimal") is not None and energy:
        low, high = (_share(value / energy) for value in bound["optimal"])
        best = low if low == high else f"{low} .. {high}"
        cards.append(
            (f"best possible rank {values['rank']}", best, "what no choice of components can avoid leaving over")
        )
    if bound.get("angle") is not None:
        degrees = math.degrees(math.asin(min(1.0, bound["angle"])))
        cards.append(
            ("angle to the truth", f"≤ {degrees:.3g}°", "between these components and the true ones, certified")
        )
    if not bound:
        cards.append(("certified", "nothing", "this algorithm gives estimates only"))
    items = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd><p>{escape(c)}</p></div>" for a, b, c in cards)
    return f'<dl class="cards">{items}</dl>'


def _charts(values: dict[str, Any], events: list[dict[str, Any]]) -> str:
    parts, k = values["components"], values["rank"]
    certified = "upper" in (parts[0] if parts else {})
    note = "points: singular values" + ("; bars: where the true ones certainly lie" if certified else "")
    charts = [("Spectrum", note, scree(parts))]
    shares = np.cumsum([part["ratio"] or 0.0 for part in parts])
    total = Series("explained", list(range(1, k + 1)), [100 * float(share) for share in shares])
    charts.append(("Explained in all", "share of the energy in the first components", _percents("component", total)))
    if events:
        charts += _over_time(events)
    figures = "".join(
        f"<figure><figcaption><b>{head}</b> {escape(note)}</figcaption>{svg}</figure>" for head, note, svg in charts
    )
    return f'<section class="charts">{figures}</section>'


def _over_time(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    rows = [event["rows"] for event in events]

    def series(name: str, factor: float, css: str = "a") -> Series:
        found = [event.get(name) for event in events]
        return Series(name, rows, [None if value is None else factor * value for value in found], css)

    captured = _percents("rows", series("captured", 100.0))
    angle = lines(
        "Drift angle", [series("angle", 180 / math.pi)], x_name="rows", y_text=lambda value: f"{short(value)}°"
    )
    left = _percents("rows", series("residual", 100.0), series("estimate", 100.0, "b"))
    return [
        ("Captured energy", "of the rows since the last checkpoint, by the components of that one", captured),
        ("Drift", "largest angle between the components of one checkpoint and the next", angle),
        ("Left over", "share of the energy: certified bound (solid), estimate (dashed)", left),
    ]


def _percents(x_name: str, *series: Series) -> str:
    return lines(", ".join(one.name for one in series), series, x_name=x_name, y_text=lambda value: f"{short(value)} %")


def _table(parts: list[dict[str, Any]]) -> str:
    heads = ("", "singular value", "certified interval", "explained", "in all")
    rows, total = [], 0.0
    for part in parts:
        total += part["ratio"] or 0.0
        cells = (
            number(part["s"]),
            interval(part.get("lower"), part.get("upper")),
            _share(part["ratio"]),
            _share(total),
        )
        rows.append(f"<tr><th>{part['component']}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)

    def table(some: Iterable[str]) -> str:
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(some)}</tbody></table></div>'

    more = (
        f"<details><summary>{len(rows) - SHOWN} more</summary>{table(rows[SHOWN:])}</details>" if rows[SHOWN:] else ""
    )
    return f"<section><h2>Components</h2>{table(rows[:SHOWN])}{more}</section>"


def _loadings(factors: Factors) -> str:
    cards = []
    for j in range(min(factors.rank, LOADED)):
        items = "".join(
            f'<li title="{escape(name)}"><span class="name">{escape(name)}</span><span class="bar"><i class="{"a" if value >= 0 else "b"}" '
            f'style="width:{100 * min(abs(value), 1.0):.1f}%"></i></span><span>{value:+.3f}</span></li>'
            for name, value in largest_loadings(factors, j)
        )
        cards.append(f"<div><h3>component {j + 1}</h3><ol>{items}</ol></div>")
    more = f" (the first {LOADED} of {factors.rank} components)" if factors.rank > LOADED else ""
    return f'<section><h2>Largest loadings{more}</h2><div class="cards loads">{"".join(cards)}</div></section>'


def _footer(values: dict[str, Any], counts: dict[str, Any] | None) -> str:
    from streamsvd import __version__

    said = []
    if values.get("plan"):
        said.append(f"Plan: {values['plan']['kind']}, because {values['plan']['reason']}.")
    if values.get("decay", 1.0) not in (None, 1.0):
        said.append(f"Each row ages those before it by {values['decay']:.6g}.")
    for verb, what in (("left out", "dropped"), ("filled in", "filled")):
        found = {reason: n for reason, n in ((counts or {}).get(what) or {}).items() if n}
        unit = "rows" if what == "dropped" else "numbers"
        if found:
            said.append(f"{', '.join(f'{n:,} {unit} {verb} ({reason})' for reason, n in found.items())}.".capitalize())
    said.append(f"Written by streamsvd {__version__}. Certified values hold for all rows folded, rounding included.")
    return f"<footer>{''.join(f'<p>{escape(line)}</p>' for line in said)}</footer>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root{--ink:#1c2330;--soft:#5a6475;--page:#f6f7f9;--card:#fff;--rule:#dfe3ea;--a:#1f5fd0;--b:#c2410c;--band:#a9c4f5}
@media(prefers-color-scheme:dark){
:root{--ink:#e6e9ef;--soft:#9aa5b8;--page:#12161d;--card:#1b212b;--rule:#303947;--a:#7fb0ff;--b:#ff9d5c;--band:#34568f}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:1080px;background:var(--page);color:var(--ink);font:16px/1.45 system-ui,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2;margin:.3rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .6rem}
h3{font-size:.9rem;margin:0 0 .4rem;color:var(--soft)}header p,footer,figcaption{color:var(--soft);margin:.2rem 0}
footer{margin-top:1.6rem;font-size:.85rem}footer p{margin:.3rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,10rem),1fr));gap:.6rem;margin:1rem 0}
.cards>div,figure,.wide{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem .8rem}
.loads{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
dt{font-size:.8rem;color:var(--soft)}dd{margin:.1rem 0;font-size:1.25rem;font-weight:600}
.cards p{margin:0;font-size:.75rem;color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.6rem}
figure{margin:0}figcaption{font-size:.85rem;margin-bottom:.4rem}figcaption b{color:var(--ink);margin-right:.3rem}
svg{display:block;width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}.grid{stroke:var(--rule);stroke-width:1}
.band{fill:var(--band)}circle.a{fill:var(--a)}circle.b{fill:var(--b)}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.line.a{stroke:var(--a)}.line.b{stroke:var(--b);stroke-dasharray:4 3}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .5rem;white-space:nowrap}thead th{color:var(--soft);font-weight:500}
thead tr{border-bottom:1px solid var(--rule)}
@media(max-width:30rem){table{font-size:.68rem}th,td{padding:.25rem .18rem}}
details{margin-top:.6rem}summary{cursor:pointer;color:var(--a);margin-bottom:.4rem}
ol{list-style:none;margin:0;padding:0;font-size:.85rem;font-variant-numeric:tabular-nums}
li{display:grid;grid-template-columns:minmax(0,1fr) 5rem 3.6rem;gap:.5rem;align-items:center}li>span:last-child{text-align:right}
.name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar{height:.55rem;background:var(--rule);border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%}.bar i.a{background:var(--a)}.bar i.b{background:var(--b)}
"""
