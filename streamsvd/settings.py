"""How a stream is folded, as one frozen dataclass: the options of `streamsvd.fit`, from the command line or a TOML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

Policy = Literal["error", "drop", "mean"]
Names = Annotated[list[str] | None, Parameter(negative=())]
Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]
MODEL, ROWS, RUN = (Parameter(group=Group.create_ordered(name)) for name in ("The model", "The rows", "The run"))
READING = ("nulls", "nonfinite", "weights", "timestamps", "by")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a stream is folded: the options of `streamsvd.fit` under the same names and with the same defaults."""

    rank: Annotated[int, MODEL]
    """Components to report."""
    select: Annotated[Names, ROWS] = None
    """Columns to take: NAME,NAME or again --select NAME; all by default."""
    kind: Annotated[Literal["auto", "gram", "truncated"], MODEL] = "auto"
    """Exact moments (gram), merge-and-truncate, or what costs less."""
    center: Annotated[bool, MODEL] = True
    """Subtract the running mean (PCA) or not (SVD)."""
    kept: Annotated[int | None, MODEL] = None
    """Rows a truncated state keeps; 2 x rank by default."""
    shrink: Annotated[float, MODEL] = 0.0
    """0 truncates, 1 is Frequent Directions."""
    exact: Annotated[Flag, MODEL] = False
    """Take exact moments wherever they fit in 2 GiB."""
    scale: Annotated[Literal["unit"] | None, MODEL] = None
    """Divide columns by their standard deviation."""
    decay: Annotated[float | None, MODEL] = None
    """Each row ages those before it by this factor."""
    half_life: Annotated[str | None, MODEL] = None
    """The same as a number of rows, or a time such as 30s."""
    weights: Annotated[str | None, ROWS] = None
    """Column that holds the weight of each row."""
    timestamps: Annotated[str | None, ROWS] = None
    """Column that holds its time, for a half-life in time."""
    dtype: Annotated[Literal["float32", "float64"] | None, MODEL] = None
    """Of the state; that of the data by default."""
    seed: Annotated[int, MODEL] = 0
    """Of the test sketch."""
    nulls: Annotated[Policy, ROWS] = "error"
    """What a null does: stop, drop its row (exit code 3), or become the mean of its column so far."""
    nonfinite: Annotated[Policy, ROWS] = "error"
    """The same for NaN and infinity."""
    quarantine: Annotated[str | None, ROWS] = None
    """Folder (or .parquet file) for the rows that are dropped, with file, row and reason."""
    by: Annotated[str | None, ROWS] = None
    """One state for each value of this column."""
    keys: Annotated[int, ROWS] = 1000
    """Most states in memory at a time."""
    overflow: Annotated[Literal["error", "spill"], ROWS] = "error"
    """What one value more does: stop, or send the state not seen for longest to the disk."""
    checkpoint: Annotated[str | None, RUN] = None
    """File that keeps the run: the same command goes on from it."""
    every: Annotated[str, RUN] = "30s"
    """Time, or number of rows, between two checkpoints."""
    keep: Annotated[int, RUN] = 3
    """Checkpoints to keep."""

    def options(self, select: list[str] | None) -> dict[str, Any]:
        """Return the options of `streamsvd.fit`, with the columns that were found."""
        every = int(self.every) if self.every.isdecimal() else self.every
        return asdict(self) | {"select": select, "half_life": _number_or_text(self.half_life), "every": every}

    def reading(self, select: list[str] | None) -> dict[str, Any]:
        """Return the options of a pass over the data alone."""
        return {name: getattr(self, name) for name in READING} | {"select": select}

    def check(self, columns: int) -> None:
        """Raise ValueError where the options do not go together, or not with rows of this width."""
        from streamsvd.flow.keeper import interval
        from streamsvd.flow.quarantine import Quarantine
        from streamsvd.flow.request import Request

        options = self.options(None)
        interval(options.pop("every"))
        del options["checkpoint"], options["keep"]
        scale = self.scale if self.kind == "gram" else None  # a truncated state measures it first
        timed = Request(**options).sketch(columns, scale=scale).options.half_life is not None
        if timed and self.timestamps is None:
            msg = (
                f"half_life={self.half_life} ages rows by time, and no column of times is named; add --timestamps NAME"
            )
            raise ValueError(msg)
        if not timed and self.timestamps is not None:
            msg = f"timestamps={self.timestamps} arrived without a half-life in time; add --half-life 30s (or m, h, d), or leave it out"
            raise ValueError(msg)
        if self.quarantine is not None:
            Quarantine(self.quarantine)
        if self.keep < 1:
            msg = f"keep={self.keep} arrived; expected how many checkpoints to keep, 1 or more"
            raise ValueError(msg)


def _number_or_text(value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value
