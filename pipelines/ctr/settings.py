"""How tables are compressed and a model is trained: one frozen dataclass each, which Python and the command line share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from streamsvd.settings import Flag


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """The options of `compress_tables` under the same names and with the same defaults."""

    budget_bytes: int | None = None
    """Bytes of all compressed tables together; ranks go where they save most."""
    rank: int | None = None
    """The same rank for all fields."""
    energy: float | None = None
    """Share of the weighted variance that each field keeps, such as 0.99."""
    smoothing: float = 0.0
    """Added to each count, so that ids which were never looked up are not forgotten."""
    power: float = 1.0
    """Of the counts; less than 1 tempers the most frequent ids."""
    center: bool = True
    """Subtract the weighted mean."""
    min_rank: int = 0
    """Least rank under a budget; 0 may reduce a field to its mean."""
    ignore_unknown: Flag = False
    """Leave out counts of ids without a row, and say how many."""

    def options(self) -> dict[str, Any]:
        """Return the options of `compress_tables`."""
        return asdict(self)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The options of `training.train` under the same names and with the same defaults."""

    label: str = "label"
    """Column with 0 or 1."""
    fields: Annotated[list[str] | None, Parameter(negative=())] = None
    """Columns with ids; all others by default."""
    dim: int = 16
    """Width of the vectors."""
    hidden: tuple[int, ...] = (64, 32)
    """Widths of the layers."""
    epochs: int = 5
    """Passes over the log."""
    batch: int = 2048
    """Rows in a step."""
    lr: float = 2e-3
    """Of Adam."""
    seed: int = 0
    """Of weights and order."""

    def options(self) -> dict[str, Any]:
        """Return the options of `train`."""
        fields = None if self.fields is None else [name for item in self.fields for name in item.split(",")]
        return asdict(self) | {"fields": fields}
