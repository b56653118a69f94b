"""What people and machines read of a state or of factors: one plain dict, one table; no mathematics of its own."""

from __future__ import annotations

import dataclasses
import math
import sys
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.report_runs import interval, keys_of, keys_table, number, percent, run_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from streamsvd.factors import Bound, Factors

SHOWN = 20


def summary(obj: Any, /) -> dict[str, Any]:
    """Return what is known of a state or of factors as plain values, ready for JSON.

    Parameters
    ----------
    obj : Gram, Truncated, Keyed or Factors

    Returns
    -------
    values : dict
        ``kind``, ``rows``, ``columns``, ``rank``, ``center`` and ``plan`` (see `origin`); and, once there are rows, ``weight``, ``energy``,
        ``explained`` (share of the energy in all components), ``noise_variance``, ``names``, ``bound`` and ``components``: for each its
        ``s`` with the certified ``lower`` and ``upper``, its ``variance`` and its ``ratio``. Numbers that are not finite are None.
        Of one state for each key, ``keys`` takes the place of the components, see `streamsvd.report_runs.keys_of`.

    Notes
    -----
    Cost: that of ``factors()`` for a state.
    """
    values = {name: getattr(obj, name) for name in ("rows", "columns", "rank", "center")}
    values |= {"kind": "factors", "plan": None} | origin(obj)
    if hasattr(obj, "keys"):
        return _plain(values | {"state": obj.empty.kind, "keys": keys_of(obj)})
    factors = obj if not hasattr(obj, "factors") else obj.factors() if obj.rows else None
    if factors is not None:
        values |= _of_factors(factors)
    return _plain(values)


def origin(obj: Any, /) -> dict[str, Any]:
    """Return how a state was made (``kind``, ``plan``, ``kept``, ``decay``, ``half_life``); of factors, what they were told about that."""
    if not hasattr(obj, "options"):
        return {**obj.info, "kind": "factors", "state": obj.info.get("kind")}
    plan = None if obj.plan is None else dataclasses.asdict(obj.plan)
    return {
        "kind": obj.kind,
        "plan": plan,
        **{name: getattr(obj.options, name, None) for name in ("kept", "decay", "half_life")},
    }


def components_table(values: dict[str, Any], /, *, shown: int = SHOWN) -> Table:
    """Return a table of the components in a `summary`: singular values, certified intervals, explained variance."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("component", justify="right")
    table.add_column("singular value", justify="right")
    table.add_column("certified interval", justify="right")
    table.add_column("variance", justify="right")
    table.add_column("explained", justify="right")
    table.add_column("in all", justify="right")
    table.add_column("")
    total = 0.0
    for part in values["components"][:shown]:
        total += part["ratio"]
        cells = (
            number(part["s"]),
            interval(part.get("lower"), part.get("upper")),
            number(part["variance"]),
            percent(part["ratio"]),
            percent(total),
        )
        table.add_row(str(part["component"]), *cells, bar(part["ratio"], 16))
    return table


def show(values: dict[str, Any], /, *, title: str = "") -> None:
    """Print a `summary` on the standard output for people."""
    out = console()
    parts = [f"{values['rows']:,} rows", f"{values['columns']:,} columns", f"rank {values['rank']}"]
    state = values.get("state") or values["kind"]
    parts += [f"{values['kept']} rows kept"] if state == "truncated" else []
    parts.append("centred" if values["center"] else "not centred")
    parts += [f"decay {values['decay']:.6g} a row"] if values.get("decay", 1.0) != 1.0 else []
    parts += [f"half-life {values['half_life']:g} s"] if values.get("half_life") else []
    heading = f"[bold]{_escaped(title)}[/bold]  " if title else ""
    kind = f"factors of a {state} state" if values.get("state") else values["kind"]
    if "keys" in values:
        kind = f"one {state} state for each of {len(values['keys']):,} keys"
    out.print(f"{heading}{kind}: {', '.join(parts)}", soft_wrap=True)
    if values.get("plan"):
        out.print(f"plan: {values['plan']['kind']}, because {_escaped(values['plan']['reason'])}", soft_wrap=True)
    for line in run_lines(values):
        out.print(_escaped(line), soft_wrap=True)
    if "keys" in values and values["rows"]:
        out.print()
        out.print(keys_table(values["keys"], shown=SHOWN))
        return
    if "components" not in values:
        out.print("no rows yet, so no components")
        return
    out.print()
    out.print(components_table(values))
    if (hidden := len(values["components"]) - SHOWN) > 0:
        out.print(f"... and {hidden} more (--json lists all)")
    out.print()
    for line in _lines(values):
        out.print(line, soft_wrap=True)


def show_demo(values: dict[str, Any], /) -> None:
    """Print what `streamsvd.demo.run` measured."""
    from rich.table import Table

    out, files, speed = console(), values["files"], values["rows_per_second"]
    out.print(
        f"{values['rows']:,} patches of a photograph, {values['columns']} columns, streamed from {files['data']}",
        soft_wrap=True,
    )
    certified = f"rank {values['rank']}, {values['kept']} rows kept: certified"
    for name, what in (("exact", "all second moments: the truth"), ("truncated", certified)):
        out.print(f"  {name:<10} {values['seconds'][name]:5.1f} s  {speed[name]:10,.0f} rows/s   {what}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("component", "truncated", "certified interval", "truth", "", "explained", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for part in values["components"]:
        interval = f"{part['lower']:.2f} .. {part['upper']:.2f}"
        verdict = "[green]inside[/green]" if part["inside"] else "[red]outside[/red]"
        cells = (
            f"{part['s']:.2f}",
            interval,
            f"{part['truth']:.2f}",
            verdict,
            percent(part["ratio"]),
            bar(part["ratio"], 16),
        )
        table.add_row(str(part["component"]), *cells)
    out.print()
    out.print(table)
    out.print()
    inside, true = sum(part["inside"] for part in values["components"]), values["true_residual"] / values["energy"]
    at_most, count = values["bound"]["relative"], len(values["components"])
    relation = "<=" if values["true_residual"] <= values["bound"]["residual"] else ">"
    out.print(f"explained   {percent(values['explained'])} of the energy")
    out.print(f"left over   truth {100 * true:.4f} % {relation} certified {100 * at_most:.4f} %")
    out.print(f"checked     {inside} of {count} true singular values lie in their certified intervals")
    out.print(f"picture     {files['picture']}", soft_wrap=True)
    out.print(f"model       {files['model']}  (streamsvd inspect {files['model']})", soft_wrap=True)


def console(*, stderr: bool = False) -> Console:
    """Return a console that colours on a terminal only."""
    from rich.console import Console

    return Console(
        stderr=stderr, highlight=False, width=None if (sys.stderr if stderr else sys.stdout).isatty() else 100
    )


def bar(share: float | None, width: int, /) -> str:
    """Return a bar of eighths of a character, ``width`` characters for a share of 1."""
    eighths = round(8 * width * min(max(share or 0.0, 0.0), 1.0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _of_factors(factors: Factors) -> dict[str, Any]:
    ratios = to_numpy(factors.explained_variance_ratio).astype(np.float64)
    with np.errstate(over="ignore"):  # a variance beyond float64 is reported as None
        columns = {"s": factors.s, "variance": factors.explained_variance, "ratio": ratios}
    bound = factors.bound
    if bound is not None and bound.sigma is not None:
        columns |= {"lower": bound.sigma[0], "upper": bound.sigma[1]}
    lists = {name: to_numpy(values).astype(np.float64).tolist() for name, values in columns.items()}
    values = {name: getattr(factors, name) for name in ("weight", "effective_rows", "energy", "noise_variance")}
    values["explained"] = float(ratios.sum())
    values["names"] = list(factors.names)
    values["bound"] = None if bound is None else _of_bound(bound)
    values["components"] = [
        {"component": j + 1, **{name: numbers[j] for name, numbers in lists.items()}} for j in range(factors.rank)
    ]
    return values


def _of_bound(bound: Bound) -> dict[str, Any]:
    return {
        name: getattr(bound, name)
        for name in ("residual", "relative", "spectral", "estimate", "optimal", "angle", "rounding")
    }


def _lines(values: dict[str, Any]) -> list[str]:
    energy, bound = values["energy"], values["bound"]
    lines = [f"explained      {percent(values['explained'])} of the energy {number(energy)}"]
    if bound is None:
        return [*lines, "certified      nothing: this algorithm gives estimates only"]
    lines.append(
        f"certified      residual at most {percent(bound['relative'])} of the energy ({number(bound['residual'])})"
    )
    if bound["spectral"] is not None:
        lines.append(f"               spectral norm of the rest at most {number(_root(bound['spectral']))}")
    if bound["optimal"] is not None and energy:
        low, high = (percent(value / energy) for value in bound["optimal"])
        lines.append(f"               the best possible rank {len(values['components'])} leaves {low} .. {high}")
    if bound["angle"] is not None:
        lines.append(
            f"               angle to the true subspace at most {math.degrees(math.asin(min(1.0, bound['angle']))):.3g} degrees"
        )
    if bound["estimate"] is not None and energy:
        lines.append(
            f"estimated      residual {percent(bound['estimate'] / energy)} (unbiased, from a random test sketch)"
        )
    return lines


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain(value: Any) -> Any:
    """Return plain JSON values: no tuples, no NumPy numbers, None for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, date):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
