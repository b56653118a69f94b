"""Compressed rows in one byte a number: a further step, whose error adds to that of the compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.pipelines.ctr.model import CompressedField


@dataclass(frozen=True, eq=False)
class Quantized:
    """A compressed field with rows ``codes * scales``.

    Attributes
    ----------
    field : CompressedField
    codes : array (V, r), int8
    scales : array (V,), float32
    added : float
        Expected squared error that rounding adds. It lies in the span of the projection and what was dropped does not, so the two add up.
    """

    field: CompressedField
    codes: Array
    scales: Array
    added: float

    @property
    def error(self) -> float:
        """Relative weighted squared error of dropping and rounding together."""
        return (self.field.dropped + self.added) / self.field.energy if self.field.energy > 0 else 0.0

    @property
    def bytes_after(self) -> int:
        """Codes, scales, and projection and mean in float32."""
        r, d = self.field.projection.shape
        return self.codes.nbytes + self.scales.nbytes + (0 if self.field.rank is None else 4 * (r * d + d))

    def reconstruct(self, rows: Any = slice(None), /) -> Array:
        """Return the vectors (b, d), float32."""
        held = self.codes[rows].astype(np.float64) * self.scales[rows, None]
        return (held @ self.field.projection + self.field.mean).astype(np.float32)


def quantize(field: CompressedField, counts: Array, /) -> Quantized:
    """Round the rows of a compressed field to int8 with one scale a row: ``max |row| / 127``.

    Parameters
    ----------
    field : CompressedField
    counts : array (V,), in the order of its rows, by which the error is weighted

    Raises
    ------
    ValueError
        Counts of another length, or all zero.
    """
    table = np.asarray(field.table, np.float64)
    weights = np.asarray(counts, np.float64)
    if weights.shape != (len(table),) or not weights.sum() > 0:
        msg = (
            f"counts of shape {weights.shape} and sum {weights.sum():g} "
            f"arrived; expected {len(table)} of them, not all zero"
        )
        raise ValueError(msg)
    scales = (np.abs(table).max(axis=1, initial=0.0) / 127.0).astype(np.float32)
    safe = np.where(scales > 0, scales, 1.0)[:, None]
    codes = np.clip(np.rint(table / safe), -127, 127).astype(np.int8)
    lost = ((table - codes * scales.astype(np.float64)[:, None]) ** 2).sum(axis=1)
    return Quantized(field, codes, scales, float(weights @ lost / weights.sum()))
