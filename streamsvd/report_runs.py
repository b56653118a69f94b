"""What people and machines read of a run, and of one state for each key; numbers as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

LARGEST = 20


def keys_of(keyed: Any, /, *, largest: int = LARGEST) -> list[dict[str, Any]]:
    """Return what is known of each key, the one with most rows first.

    Returns
    -------
    keys : list of dict
        ``key``, ``rows`` and ``memory`` (False: the state is on the disk); of the largest ones also ``s`` (the first singular value),
        ``explained`` and ``relative`` (the certified bound), both shares of the energy.

    Notes
    -----
    Cost: a ``factors()`` for each of the largest keys.
    """
    counts = {key: (state.rows, True) for key, state in keyed.states.items()}
    counts |= {key: (entry.rows, False) for key, entry in keyed.spilled.items()}
    order = sorted(keyed.keys(), key=lambda key: -counts[key][0])
    found = [{"key": key, "rows": counts[key][0], "memory": counts[key][1]} for key in order]
    for part in found[:largest]:
        factors = keyed[part["key"]].factors()
        part["s"] = float(factors.s[0])
        part["explained"] = float(sum(factors.explained_variance_ratio))
        part["relative"] = None if factors.bound is None else factors.bound.relative
    return found


def keys_table(keys: list[dict[str, Any]], /, *, shown: int = LARGEST) -> Table:
    """Return a table of the largest keys, as `keys_of` gives them."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("key")
    for heading in ("rows", "first singular value", "explained", "left over at most"):
        table.add_column(heading, justify="right")
    for part in keys[:shown]:
        cells = number(part.get("s")), percent(part.get("explained")), percent(part.get("relative"))
        table.add_row(escape(str(part["key"])), f"{part['rows']:,}", *cells)
    if len(keys) > shown:
        table.add_row(f"... and {len(keys) - shown:,} more", f"{sum(part['rows'] for part in keys[shown:]):,}")
    return table


def run_lines(values: dict[str, Any], /) -> list[str]:
    """Return what there is to say of the run that a `summary` is of, and of its reading."""
    lines = [f"note: {note}" for note in values.get("notes") or []]
    if values.get("resumed_rows"):
        went = "was finished already" if values["resumed_rows"] == values["rows"] else "went on"
        lines.append(f"run: {went} after {values['resumed_rows']:,} rows of {values['checkpoint']}")
    run = values.get("run")
    if run is not None:
        lines += _position(run)
    for name, what in (("dropped", "rows left out"), ("filled", "numbers filled in")):
        counts = (run or values).get(name) or {}
        if counts:
            why = ", ".join(
                f"{count:,} ({'null' if reason == 'null' else 'NaN or infinity'})" for reason, count in counts.items()
            )
            lines.append(f"{what}: {why}")
    return lines


def number(value: float | None, /) -> str:
    """Return a number with six significant digits."""
    return "?" if value is None else f"{value:.6g}"


def interval(lower: float | None, upper: float | None, /) -> str:
    """Return an interval, or how exact it is where six digits would not show that."""
    if lower is None or upper is None:
        return ""
    width = (upper - lower) / upper if upper > 0 else 0.0
    return f"exact to {width:.0e}" if width < 1e-5 else f"{number(lower)} .. {number(upper)}"


def percent(share: float | None, /) -> str:
    """Return a share as a percentage with as many digits as a small one needs."""
    if share is None:
        return "?"
    return f"{100 * share:.2f} %" if share >= 1e-3 or share == 0 else f"{100 * share:.1e} %"


def _position(run: dict[str, Any]) -> list[str]:
    state = "finished" if run["finished"] else "not finished: the command that began it goes on with it"
    lines = [f"run: checkpoint {run['sequence']}, {state}"]
    where = f"source: {run['read']:,} rows read"
    where += f" of {run['items']:,} {'item' if run['items'] == 1 else 'items'}" if run["items"] else ""
    lines.append(where + (f", the last of them {run['last']}" if run["last"] else ""))
    event = run["event"] or {}
    if event.get("captured") is not None and event.get("angle") is not None:
        degrees = f"{math.degrees(event['angle']):.3g} degrees"
        captured = percent(event["captured"])
        lines.append(
            f"drift: {degrees} since the checkpoint before, whose components captured {captured} of the new rows' energy"
        )
    return lines
