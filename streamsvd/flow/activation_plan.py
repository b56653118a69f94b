"""How many bytes activation statistics take, layer by layer, and which layers can have exact moments within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamsvd.flow.packed import CHUNK, GROUP, WHOLE, buffer_rows, packed_bytes
from streamsvd.planner import EXACT_BYTES
from streamsvd.testsketch import TEST_ROWS
from streamsvd.truncated import FLUSH

if TYPE_CHECKING:
    from streamsvd.options import Options


@dataclass(frozen=True)
class LayerPlan:
    """Bytes of one sketch: ``state`` and ``buffer`` (rows that wait) are kept between batches, ``workspace`` only while it works."""

    layer: str
    kind: str
    columns: int
    state: int
    buffer: int
    workspace: int
    shared: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """What stays between two batches."""
        return self.state + self.buffer


@dataclass(frozen=True)
class MemoryPlan:
    """The plan of all sketches; ``grouped`` tells whether shared inputs are known. ``str(plan)`` is a table."""

    lines: tuple[LayerPlan, ...]
    grouped: bool = True

    @property
    def kept_bytes(self) -> int:
        """What all sketches keep between two batches."""
        return sum(line.kept_bytes for line in self.lines)

    @property
    def workspace(self) -> int:
        """What the largest sketch needs while it works; one works at a time."""
        return max((line.workspace for line in self.lines), default=0)

    def __str__(self) -> str:
        """One line for each kind and width of sketch, and the sum."""
        rows: list[tuple[str, ...]] = [("inputs", "layers", "width", "kind", "state", "buffer", "workspace")]
        merged: dict[tuple[str, str, int], list[LayerPlan]] = {}
        for line in self.lines:
            ends = ",".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in line.shared or (line.layer,)))
            merged.setdefault((ends, line.kind, line.columns), []).append(line)
        for (ends, kind, columns), lines in merged.items():
            sizes = (sum(x.state for x in lines), sum(x.buffer for x in lines), max(x.workspace for x in lines))
            rows.append((ends, str(len(lines)), str(columns), kind, *map(size_text, sizes)))
        total = (sum(x.state for x in self.lines), sum(x.buffer for x in self.lines), self.workspace)
        rows.append(("together", str(len(self.lines)), "", "", *map(size_text, total)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(
                cell.ljust(w) if i in (0, 3) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        note = "" if self.grouped else "\n(before the first batch no input counts as shared: an upper bound)"
        return f"{table}\nkept between batches: {size_text(self.kept_bytes)}{note}"


def layer_plan(name: str, kind: str, options: Options, shared: tuple[str, ...] = (), /) -> LayerPlan:
    """Return the bytes of the sketch of one input, every array counted."""
    d, r = options.columns, options.kept
    item = 8 if options.dtype == "float64" else 4
    if kind == "gram":
        state = packed_bytes(d) + (8 + item) * d
        buffer = buffer_rows(d) * d * item
        product = (d if d <= WHOLE else GROUP) * d * item
        return LayerPlan(name, kind, d, state, buffer, product + min(CHUNK, 1024) * d * item, shared)
    state = (r + TEST_ROWS) * d * item + 16 * d + 8 * r * (r + 1)
    buffer = FLUSH * r * (d * item + 16)
    stack = (FLUSH + 1) * r
    return LayerPlan(name, kind, d, state, buffer, 2 * stack * d * item + 4 * 8 * stack * stack, shared)


def choose(kind: str, lines: dict[str, dict[str, int]], memory: int | None, held: int, /) -> dict[str, str]:
    """Choose the kind of each sketch: exact, but for the widest where exact ones do not fit.

    Parameters
    ----------
    kind : "auto", "gram" or "truncated"
    lines : dict
        Kind to layer to bytes.
    memory : int or None
        The budget; None is 2 GiB for "auto", and no limit for the others.
    held : int
        Bytes that other sketches hold already.

    Raises
    ------
    ValueError
        Not even the smallest fits the budget that was given.
    """
    chosen = dict.fromkeys(lines["gram"], "gram" if kind == "auto" else kind)
    budget = EXACT_BYTES if memory is None else memory

    def together() -> int:
        return held + sum(lines[k][name] for name, k in chosen.items())

    if kind == "auto":
        for name in sorted(chosen, key=lambda one: lines["truncated"][one] - lines["gram"][one]):
            if together() <= budget:
                break
            if lines["truncated"][name] < lines["gram"][name]:
                chosen[name] = "truncated"
    if memory is not None and together() > memory:
        cure = "give more, a smaller kept, or fewer targets" + ("" if kind != "gram" else ", or sketch='truncated'")
        msg = f"memory={memory:,} bytes, but these sketches take {together():,}; {cure}"
        raise ValueError(msg)
    return chosen


def size_text(size: float, /) -> str:
    """Return bytes for people.

    >>> size_text(21_955_000_000), size_text(1200)
    ('21.95 GB', '1.2 kB')
    """
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.2f} {unit}" if unit == "GB" else f"{size / power:.1f} {unit}"
    return f"{int(size)} B"
