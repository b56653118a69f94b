"""What every algorithm returns: ``Factors``, the rank-k factorization of a stream, with its certified distance from the truth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.batch import as_batch
from streamsvd.certificate import Bound, Certificate
from streamsvd.kernels.rows import fill_panel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bound", "Factors"]

CHUNK_BYTES = 1 << 23


@dataclass(frozen=True, eq=False)
class Factors:
    """A rank-k factorization ``A ~ U diag(s) V + 1 mean'`` of a stream of n rows, without U unless the left factor was kept.

    Attributes
    ----------
    s : array (k,), singular values, descending
    vt : array (k, d), orthonormal rows; the entry of largest magnitude of each row is positive
    mean : array (d,), float64; zeros without centring
    rows : int, rows seen
    weight : float, total weight (the number of rows where no weights or decay were used)
    norm : float, ``||A||_F`` weighted, and centred where centring was asked for; ``energy`` is its square
    certificate : Certificate or None, from which ``bound`` follows
    center : bool
    weight_sq : float, sum of the squared weights
    scale : array (d,) or None, the columns were divided by it
    u : array (n, k) or None, left singular vectors
    names : tuple of str, the columns of the source
    """

    s: Array
    vt: Array
    mean: Array
    rows: int
    weight: float
    norm: float
    certificate: Certificate | None = None
    center: bool = True
    weight_sq: float = 0.0
    scale: Array | None = None
    u: Array | None = None
    names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def bound(self) -> Bound | None:
        """What is certain about these factors; None where the algorithm certifies nothing."""
        return None if self.certificate is None else self.certificate.bound(self.rank)

    @property
    def rank(self) -> int:
        """Number of components k."""
        return int(self.s.shape[0])

    @property
    def columns(self) -> int:
        """Number of columns d."""
        return int(self.vt.shape[1])

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of the (weighted, centred) stream."""
        return self.norm * self.norm

    @property
    def effective_rows(self) -> float:
        """Effective sample size ``W^2 / sum w^2`` (Kish 1965): how many equal rows the weighted ones are worth."""
        return self.weight * self.weight / self.weight_sq if self.weight_sq > 0 else float(self.rows)

    @property
    def dof(self) -> float:
        """Divisor of variances: ``W - 1`` with centring (weights count repetitions), W without, or where W is at most 1."""
        return self.weight - 1.0 if self.center and self.weight > 1.0 else self.weight

    @property
    def explained_variance(self) -> Array:
        """Variance along each component, ``s^2 / dof``, array (k,)."""
        root = self.dof**0.5
        with np.errstate(over="ignore"):  # the squares of 1e160 are infinite, and said to be so
            return (self.s / root) ** 2 if root > 0 else self.s * 0

    @property
    def explained_variance_ratio(self) -> Array:
        """Share of the energy along each component, array (k,); zeros for a stream without energy."""
        if self.norm == 0:
            return self.s * 0
        power = -int(np.frexp(self.norm)[1])
        return (_ldexp(self.s, power) / float(np.ldexp(self.norm, power))) ** 2

    @property
    def noise_variance(self) -> float:
        """Mean variance per direction outside the components (Tipping and Bishop 1999, eq. 8), from the whole stream's energy."""
        directions = self.columns - self.rank
        if directions <= 0 or self.dof <= 0:
            return 0.0
        if self.certificate is not None:  # 1 - sum(ratio) would cancel: the ratios have the precision of s
            rest = self.certificate.rest(self.rank)
        else:
            share = max(0.0, 1.0 - float(np.sum(to_numpy(self.explained_variance_ratio).astype(np.float64))))
            rest = self.norm * share**0.5
        deviation = rest / (directions * self.dof) ** 0.5
        return deviation * deviation

    def transform(self, X: Array, /) -> Array:
        """Coordinates of rows in the components: ``((X - mean) / scale) V'``.

        Parameters
        ----------
        X : array (b, d), sparse or Arrow batch

        Returns
        -------
        Z : array (b, k), in the namespace and dtype of ``vt``

        Notes
        -----
        Cost: ``b d k`` multiply-adds; rows are centred in float64, a chunk at a time. Sparse rows are not densified.
        """
        batch = as_batch(X, columns=self.columns, names=self.names)
        if is_sparse(batch):
            return self._transform_sparse(batch)
        xp = namespace(self.vt)
        return xp.concat([_matmul(rows, self.vt.T) for rows in self._centered(batch)], axis=0)

    def inverse_transform(self, Z: Array, /) -> Array:
        """Rows from coordinates: ``Z V * scale + mean``; Z is (b, k), the result (b, d) in the dtype of ``vt``."""
        rows = _matmul(_like(Z, self.vt), self.vt)
        xp = namespace(self.vt)
        scale = 1.0 if self.scale is None else self.scale[None, :]
        if self.scale is None and not self.center:
            return rows
        return xp.astype(xp.astype(rows, xp.float64) * scale + self.mean[None, :], self.vt.dtype)

    def residual(self, X: Array, /) -> Array:
        """Squared reconstruction error of each row, ``||x - x V'V||^2`` after centring and scaling: array (b,), float64.

        The Q statistic (SPE) of process monitoring (Jackson and Mudholkar 1979). Cost: ``2 b d k`` multiply-adds.
        """
        xp = namespace(self.vt)
        parts = []
        for rows in self._centered(as_batch(X, columns=self.columns, names=self.names)):
            rest = rows - _matmul(_matmul(rows, self.vt.T), self.vt)
            parts.append(xp.sum(xp.astype(rest, xp.float64) ** 2, axis=1))
        return xp.concat(parts, axis=0)

    def leverage(self, X: Array, /) -> Array:
        """Hotelling's T-squared of each row, ``sum_j z_j^2 / explained_variance_j`` (Hotelling 1931): array (b,), float64.

        Components without variance are left out. Cost: ``b d k`` multiply-adds.
        """
        xp = namespace(self.vt)
        Z = xp.astype(self.transform(X), xp.float64)
        root = xp.astype(self.s, xp.float64) / max(self.dof, 1.0) ** 0.5
        safe = xp.where(root > 0, root, xp.ones_like(root))
        return xp.sum(xp.where((root > 0)[None, :], Z / safe[None, :], xp.zeros_like(Z)) ** 2, axis=1)

    def truncate(self, *, rank: int | None = None, energy: float | None = None) -> Factors:
        """Keep the leading components: so many (``rank``), or the fewest that hold a share ``energy`` of the stream's energy.

        What was certified stays certified: the energy of the dropped components is added to the residual.

        Raises
        ------
        ValueError
            If not exactly one of the two is given, or it is out of range, or the components hold less than the share asked for.
        """
        if (rank is None) == (energy is None):
            msg = f"got rank={rank} and energy={energy}; give exactly one of them, for example truncate(rank=8) or truncate(energy=0.95)"
            raise ValueError(msg)
        if rank is None:
            rank = self._rank_for(float(energy or 0.0))
        if not 1 <= rank <= self.rank:
            cure = f"write truncate(rank={self.rank}) or fit with a larger rank"
            msg = f"rank={rank} is outside 1 .. {self.rank}, the components held; {cure}"
            raise ValueError(msg)
        u = None if self.u is None else self.u[:, :rank]
        return dataclasses.replace(self, s=self.s[:rank], vt=self.vt[:rank, :], u=u)

    def to_arrow(self) -> Any:
        """Return an Arrow table with one row a component (``component``, ``s``, ``vt``); the rest is in the schema metadata."""
        from streamsvd.tables import factors_to_arrow

        return factors_to_arrow(self)

    @classmethod
    def from_arrow(cls, table: Any, /) -> Factors:
        """Return the factors that ``to_arrow`` wrote."""
        from streamsvd.tables import factors_from_arrow

        return factors_from_arrow(table)

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest, from which ``from_parts`` restores the same bits."""
        arrays = {"s": self.s, "vt": self.vt, "mean": self.mean, "scale": self.scale, "u": self.u}
        meta: dict[str, Any] = {f: getattr(self, f) for f in ("rows", "weight", "weight_sq", "norm", "center", "info")}
        meta["names"] = list(self.names)
        if self.certificate is not None:
            meta["certificate"] = {f.name: getattr(self.certificate, f.name) for f in dataclasses.fields(Certificate)}
            for name in ("s", "test_parts"):
                arrays[f"certificate_{name}"] = meta["certificate"].pop(name)
        return {name: value for name, value in arrays.items() if value is not None}, meta

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Factors:
        """Restore factors from ``parts``."""
        meta = dict(meta)
        certificate = meta.pop("certificate", None)
        if certificate is not None:
            held = {name: arrays.get(f"certificate_{name}") for name in ("s", "test_parts")}
            certificate = Certificate(**certificate, **{k: None if v is None else to_numpy(v) for k, v in held.items()})  # type: ignore[arg-type]
        meta["names"] = tuple(meta["names"])
        own = {name: arrays.get(name) for name in ("s", "vt", "mean", "scale", "u")}
        return cls(**own, **meta, certificate=certificate)  # type: ignore[arg-type]

    def _centered(self, batch: Array) -> Iterator[Array]:
        """Yield row-major chunks of ``(X - mean) / scale`` in the dtype and namespace of ``vt``."""
        if is_sparse(batch):
            yield from (
                chunk for start in _starts(batch.shape, 8) for chunk in self._centered(_densify(batch, start, self.vt))
            )
            return
        batch = _like(batch, self.vt)
        xp = namespace(batch)
        zeros = xp.zeros((self.columns,), dtype=xp.float64, device=device_of(batch))
        for start in _starts(batch.shape, 8):
            rows = batch[start : min(start + _chunk_rows(batch.shape, 8), batch.shape[0]), :]
            rows = np.ascontiguousarray(rows) if isinstance(rows, np.ndarray) else rows
            out = xp.empty(rows.shape, dtype=self.vt.dtype, device=device_of(batch))
            ones = xp.ones((rows.shape[0],), dtype=xp.float64, device=device_of(batch))
            fill_panel(out, rows, 0, self.mean, zeros, ones)
            yield out if self.scale is None else xp.astype(out / self.scale[None, :], self.vt.dtype)

    def _transform_sparse(self, batch: Any) -> Array:
        vt = to_numpy(self.vt).astype(np.float64)
        vt = vt if self.scale is None else vt / to_numpy(self.scale)[None, :]
        Z = batch @ np.ascontiguousarray(vt.T) - vt @ to_numpy(self.mean)
        return from_numpy(np.asarray(Z), like=self.vt, dtype=dtype_name(self.vt))

    def _rank_for(self, energy: float) -> int:
        if not 0.0 < energy <= 1.0:
            msg = f"energy={energy} is not a share; expected 0 < energy <= 1, for example truncate(energy=0.95)"
            raise ValueError(msg)
        held = np.cumsum(to_numpy(self.explained_variance_ratio).astype(np.float64))
        enough = np.flatnonzero(held >= energy * (1 - 1e-12))
        if enough.size == 0:
            msg = f"the {self.rank} components hold {held[-1]:.4f} of the energy, less than the {energy} asked for; fit with a larger rank"
            raise ValueError(msg)
        return int(enough[0]) + 1


def _ldexp(x: Array, power: int) -> Array:
    # Two steps, since 2^power itself may overflow where the product does not.
    half = power // 2
    return (x * 2.0**half) * 2.0 ** (power - half)


def _matmul(X: Array, Y: Array) -> Array:
    from streamsvd.arrays import blas_threads

    with blas_threads(2.0 * X.shape[0] * X.shape[1] * Y.shape[1]):
        return X @ Y


def _like(X: Array, like: Array) -> Array:
    """Bring a batch to the namespace of the factors; float64 rows stay float64 until they are centred."""
    if namespace(X) is namespace(like):
        return X
    return from_numpy(to_numpy(X), like=like)


def _chunk_rows(shape: tuple[int, int], itemsize: int) -> int:
    return max(1, CHUNK_BYTES // max(1, itemsize * shape[1]))


def _starts(shape: tuple[int, int], itemsize: int) -> range:
    return range(0, max(shape[0], 1), _chunk_rows(shape, itemsize))


def _densify(batch: Any, start: int, like: Array) -> Array:
    rows = batch[start : start + _chunk_rows(batch.shape, 8)]
    return from_numpy(rows.toarray(), like=like)


def complete_rows(vt: Array, k: int, /) -> Array:
    """Return k orthonormal rows: those of ``vt`` (p, d) and, where p < k, unit vectors made orthogonal to them."""
    p, d = vt.shape
    if p >= k:
        return vt[:k, :]
    rows = [row for row in to_numpy(vt).astype(np.float64)]
    weight = np.sum(np.square(rows), axis=0) if rows else np.zeros(d)
    for j in np.argsort(weight, kind="stable"):
        x = np.zeros(d)
        x[j] = 1.0
        for _ in range(2):
            for row in rows:
                x -= (row @ x) * row
        size = float(np.linalg.norm(x))
        if size > 1e-3:
            rows.append(x / size)
        if len(rows) == k:
            break
    return from_numpy(np.stack(rows), like=vt, dtype=dtype_name(vt))
