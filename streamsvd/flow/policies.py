"""What happens to nulls and to numbers that are not finite, and the counts of it.

The policies, one for nulls and one for numbers that are not finite:

``"error"``
    Raise. Numbers that are not finite are left to the engine, which looks at every number anyway.
``"drop"``
    Leave the row out.
``"mean"``
    Put the mean of the column in the place of the number: the mean, in float64, of all valid numbers (finite, not null) in the rows kept
    so far, those of the batch at hand included; 0 where there are none. What it gives depends therefore on where batches are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.kernels.rows import all_finite

CHOICES = ("error", "drop", "mean")
FLOATS = ("float16", "bfloat16", "float32", "float64", "longdouble", "float128")


@dataclass(frozen=True, eq=False)
class Intake:
    """What a stream took in so far; plain counts, what the policy "mean" remembers, and the columns of the first batch.

    Parameters
    ----------
    seen : int
        Rows read, those left out included.
    dropped : dict
        Rows left out, by reason: "null" or "nonfinite".
    filled : dict
        Numbers that the mean of their column took the place of, by reason.
    count, mean : array (d,), float64, optional
        How many valid numbers each column had so far, and their mean; only with a policy "mean".
    first : dict, optional
        Names, widths and types of the columns of the first batch, which later ones must fit; plain JSON.
    """

    seen: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    count: np.ndarray | None = None
    mean: np.ndarray | None = None
    first: dict[str, Any] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intake) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    @property
    def rows(self) -> int:
        """Rows that were kept."""
        return self.seen - sum(self.dropped.values())

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain JSON; the floats in it are exact."""
        arrays = {name: None if (a := getattr(self, name)) is None else a.tolist() for name in ("count", "mean")}
        return {
            "seen": self.seen,
            "dropped": dict(self.dropped),
            "filled": dict(self.filled),
            **arrays,
            "first": self.first,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any], /) -> Intake:
        """Return what `to_json` was called on, bit for bit."""
        arrays = {
            name: None if plain.get(name) is None else np.array(plain[name], dtype=np.float64)
            for name in ("count", "mean")
        }
        return cls(plain["seen"], dict(plain["dropped"]), dict(plain["filled"]), **arrays, first=plain.get("first"))


class Policies(NamedTuple):
    """What to do with nulls, and with numbers that are not finite."""

    nulls: str = "error"
    nonfinite: str = "error"

    def checked(self) -> Policies:
        """Return the same, or raise ValueError where one of them is unknown."""
        means = "raises", "leaves its row out", "becomes the mean of its column"
        for name, value in self._asdict().items():
            if value not in CHOICES:
                thing = "a null" if name == "nulls" else "NaN or infinity"
                expected = ", ".join(
                    f'"{choice}" ({thing} {what})' for choice, what in zip(CHOICES, means, strict=True)
                )
                msg = f"{name}={value!r} arrived; expected {expected}"
                raise ValueError(msg)
        return self


class Kept(NamedTuple):
    """The rows that a batch has left."""

    x: Array
    rows: np.ndarray | None  # which rows these are; None for all
    intake: Intake


def enforce(
    x: Array, policies: Policies, intake: Intake, /, *, missing: np.ndarray | None = None, beside: Any = ()
) -> Kept:
    """Leave out or fill what is not finite, fill what was null, and count.

    Parameters
    ----------
    x : array (b, d) of any namespace, or CSR
    policies : Policies
    intake : Intake, before these rows
    missing : array (b, d) of bool, optional
        Where x holds 0 in the place of a null, to be filled.
    beside : iterable of array (b,)
        Weights and timestamps, which are never filled; with ``nonfinite="drop"`` a row goes with them.

    Raises
    ------
    ValueError
        A width that is not that of the rows before, with a policy "mean".

    Notes
    -----
    Cost: nothing where neither policy asks for a look; one pass for "drop"; two or three passes for "mean". The array is never written to.
    """
    rows = None
    if policies.nonfinite == "drop":
        bad = _bad_rows(x, beside)
        if bad.any():
            rows = np.flatnonzero(~bad)
            x, missing = take_rows(x, rows), None if missing is None else missing[rows]
            intake = replace(intake, dropped=plus(intake.dropped, "nonfinite", int(bad.sum())))
    if "mean" in policies and x.shape[0] and _is_real(x):
        x, intake = _with_means(x, policies, intake, missing)
    return Kept(x, rows, intake)


def take_rows(x: Array, rows: np.ndarray, /) -> Array:
    """Return some rows of an array of any namespace, or of CSR."""
    if is_sparse(x):
        return x[rows]
    if isinstance(x, np.ndarray):  # x[rows] of a column-major array takes 15 times as long
        return x.T.take(rows, axis=1).T if x.flags.f_contiguous else x.take(rows, axis=0)
    xp = namespace(x)
    return xp.take(x, from_numpy(rows, like=x), axis=0)


def plus(counts: dict[str, int], reason: str, number: int, /) -> dict[str, int]:
    """Return counts with a number added."""
    return {**counts, reason: counts.get(reason, 0) + number} if number else counts


def not_finite(x: Array, /) -> np.ndarray | None:
    """Return where (b, d) a dense array is not finite, on the host, or None if it is everywhere."""
    if not _may_be_bad(x) or all_finite(x):
        return None
    return ~to_numpy(namespace(x).isfinite(x))


def _bad_rows(x: Array, beside: Any) -> np.ndarray:
    bad = np.zeros(x.shape[0], dtype=bool)
    if is_sparse(x):
        if x.dtype.kind == "f":
            bad[np.searchsorted(x.indptr, np.flatnonzero(~np.isfinite(x.data)), side="right") - 1] = True
    elif (mask := not_finite(x)) is not None:
        bad |= mask.any(axis=1)
    for vector in beside:
        bad |= ~np.isfinite(vector)
    return bad


def _is_real(x: Array) -> bool:
    return not isinstance(x, np.ma.MaskedArray) and dtype_name(x).startswith(("float", "bfloat", "int", "uint", "bool"))


def _may_be_bad(x: Array) -> bool:
    # What is no number, masked or complex is refused by the engine, in its own words.
    return dtype_name(x) in FLOATS and not isinstance(x, np.ma.MaskedArray)


def _with_means(x: Array, policies: Policies, intake: Intake, missing: np.ndarray | None) -> tuple[Array, Intake]:
    if intake.mean is not None and intake.mean.size != x.shape[1]:
        msg = f"rows with {x.shape[1]} columns arrived after rows with {intake.mean.size}; all rows must have the same columns"
        raise ValueError(msg)
    if is_sparse(x):
        return _sparse_with_means(x, policies, intake)
    bad = not_finite(x)
    invalid = missing if bad is None else bad if missing is None else bad | missing
    xp = namespace(x)
    there = None if invalid is None else from_numpy(~invalid, like=x)
    valid = x if there is None else xp.where(there, x, xp.zeros_like(x))
    n = (
        np.full(x.shape[1], float(x.shape[0]))
        if invalid is None
        else x.shape[0] - invalid.sum(axis=0, dtype=np.float64)
    )
    intake = _joined(intake, n, _mean(valid, n))
    fill = bad if policies.nonfinite == "mean" else None
    for mask, reason in ((missing, "null"), (fill, "nonfinite")):
        if mask is not None:
            intake = replace(intake, filled=plus(intake.filled, reason, int(mask.sum())))
            mean = xp.astype(from_numpy(np.asarray(intake.mean), like=x), x.dtype)
            x = xp.where(from_numpy(mask, like=x), mean[None, :], x)
    return x, intake


def _sparse_with_means(x: Any, policies: Policies, intake: Intake) -> tuple[Any, Intake]:
    """Fill entries that are stored; those that are not are zeros, and numbers like others."""
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    bad = ~np.isfinite(x.data) if x.dtype.kind == "f" else np.zeros(x.nnz, dtype=bool)
    n = x.shape[0] - np.bincount(x.indices[bad], minlength=x.shape[1]).astype(np.float64)
    share = np.where(bad, 0.0, x.data) / np.maximum(n, 1.0)[x.indices]
    intake = _joined(intake, n, np.bincount(x.indices, weights=share, minlength=x.shape[1]))
    if policies.nonfinite != "mean" or not bad.any():
        return x, intake
    filled = x.copy()
    filled.data[bad] = np.asarray(intake.mean)[x.indices[bad]]
    return filled, replace(intake, filled=plus(intake.filled, "nonfinite", int(bad.sum())))


def _mean(valid: Array, n: np.ndarray) -> np.ndarray:
    """Return the mean of each column in float64, of numbers of which the invalid ones are 0."""
    xp, n = namespace(valid), np.maximum(n, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        total = valid.sum(axis=0, dtype=np.float64) if xp is np else xp.sum(xp.astype(valid, xp.float64), axis=0)
    total = np.asarray(to_numpy(total))
    if np.isfinite(total).all():
        return total / n
    return (np.asarray(to_numpy(valid), dtype=np.float64) / n).sum(axis=0)  # numbers near the largest that there is


def _joined(intake: Intake, n: np.ndarray, here: np.ndarray) -> Intake:
    """Join the means of a batch to those so far (Chan, Golub and LeVeque 1983, first moments only)."""
    count = np.zeros(n.size) if intake.count is None else intake.count
    mean = np.zeros(n.size) if intake.mean is None else intake.mean
    share = n / np.maximum(count + n, 1.0)
    # Halves, because the difference of two finite numbers may not be one.
    return replace(intake, count=count + n, mean=mean + 2.0 * (share * (here / 2.0 - mean / 2.0)))
