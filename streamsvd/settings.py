"""How a stream is folded, as one frozen dataclass: the command line reads it, and its fields are the options of `streamsvd.fit`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

READING = ("select", "weights", "timestamps", "nulls")
Names = Annotated[list[str] | None, Parameter(negative=())]
Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a stream is folded: the options of `streamsvd.fit` under the same names and with the same defaults."""

    rank: int
    """Components to report."""
    select: Names = None
    """Columns to take: NAME,NAME or again --select NAME; all by default."""
    kind: Literal["auto", "gram", "truncated"] = "auto"
    """Exact moments (gram), merge-and-truncate, or what costs less."""
    center: bool = True
    """Subtract the running mean (PCA) or not (SVD)."""
    kept: int | None = None
    """Rows a truncated state keeps; 2 x rank by default."""
    exact: Flag = False
    """Take exact moments wherever they fit in 2 GiB."""
    decay: float | None = None
    """Each row ages those before it by this factor."""
    half_life: str | None = None
    """The same as a number of rows, or a time such as 30s."""
    weights: str | None = None
    """Column that holds the weight of each row."""
    timestamps: str | None = None
    """Column that holds its time, for a half-life in time."""
    dtype: Literal["float32", "float64"] | None = None
    """Of the state; that of the data by default."""
    nulls: Literal["error", "drop"] = "error"
    """What a null does: stop, or drop its row (exit code 3)."""

    def sketch(self, columns: int) -> Any:
        """Return the empty state for rows of this width."""
        from streamsvd.planner import sketch

        options: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in READING}
        options["half_life"] = _number_or_text(self.half_life)
        state = sketch(columns=columns, **options)
        if state.options.half_life is not None and self.timestamps is None:
            msg = (
                f"half_life={self.half_life} ages rows by time, and no column of times is named; add --timestamps NAME"
            )
            raise ValueError(msg)
        if state.options.half_life is None and self.timestamps is not None:
            msg = f"timestamps={self.timestamps} arrived without a half-life in time; add --half-life 30s (or m, h, d), or leave it out"
            raise ValueError(msg)
        return state

    def reading(self, select: list[str] | None) -> dict[str, Any]:
        """Return the options of a pass over the data, with the columns that were found."""
        return {name: getattr(self, name) for name in READING} | {"select": select}


def _number_or_text(value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value
