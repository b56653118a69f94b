"""One end of a weight's singular value decomposition as an adapter, the rest as the residual: the family of PiSSA in one function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, signs, small_eigh, to_numpy
from streamsvd.pipelines.adapters import ends
from streamsvd.pipelines.adapters.metrics import Metric, Plain, metric_of
from streamsvd.randomized import svd

ENDS = ("top", "bottom")
FORMS = ("sqrt", "left", "right", "usv")


@dataclass(frozen=True, eq=False)
class Split:
    """``W = u diag(s) vt + residual``.

    With a metric C, ``u diag(s) v'`` is one end of the SVD of ``W C`` and ``vt = v' C^-1``; so ``u diag(s) vt = u u'W`` in every case.

    Attributes
    ----------
    u : array (out, rank), orthonormal columns
    s : array (rank,), descending
    vt : array (rank, in), orthonormal rows where there is no metric
    weight : array (out, in), widened if it was in half precision
    form : str, how ``B`` and ``A`` share ``s``
    how : str, the algorithm that was used
    """

    u: Array
    s: Array
    vt: Array
    weight: Array
    form: str
    how: str

    @property
    def rank(self) -> int:  # noqa: D102
        return int(self.s.shape[0])

    @property
    def B(self) -> Array:
        """The left factor (out, rank): ``u diag(s)^(1/2)``, ``u diag(s)``, ``u`` or ``u`` for sqrt, left, right and usv."""
        xp = namespace(self.u)
        factor = {"sqrt": xp.sqrt(self.s), "left": self.s}.get(self.form)
        return self.u if factor is None else self.u * factor[None, :]

    @property
    def A(self) -> Array:
        """The right factor (rank, in): ``diag(s)^(1/2) vt``, ``vt``, ``diag(s) vt`` or ``vt`` for sqrt, left, right and usv."""
        xp = namespace(self.u)
        factor = {"sqrt": xp.sqrt(self.s), "right": self.s}.get(self.form)
        return self.vt if factor is None else factor[:, None] * self.vt

    @cached_property
    def product(self) -> Array:
        """``u diag(s) vt`` (out, in)."""
        return (self.u * self.s[None, :]) @ self.vt

    @cached_property
    def residual(self) -> Array:
        """``W - u diag(s) vt`` (out, in), in the dtype of the factors."""
        if hasattr(self.weight, "addmm"):  # torch, which has both in one pass over the weight
            return self.weight.addmm(self.u * self.s[None, :], self.vt, alpha=-1)  # pyright: ignore[reportAttributeAccessIssue]
        return self.weight - self.product


def split(
    W: Any,
    rank: int,
    /,
    *,
    end: str = "top",
    metric: Any = None,
    form: str = "sqrt",
    passes: int | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> Split:
    """Split a weight into one end of its (oriented) SVD and the rest.

    ``W C = U diag(s) V'``, of which ``rank`` components are taken from the top or the bottom: ``u diag(s) v' C^-1 = u u'W``.

    Parameters
    ----------
    W : array (out, in), torch or NumPy
        Half precision is widened; the factors are float32, or float64 for a float64 weight.
    rank : int, 1 .. min(out, in)
    end : "top" or "bottom"
        Of the min(out, in) singular values.
    metric : array (in,) or (in, in), or a metric of ``metrics``, optional
        C: a positive diagonal, or a covariance of the layer's inputs. Symmetric and, where W has not full rank, positive definite.
    form : "sqrt", "left", "right" or "usv"
        How ``B`` (out, rank) and ``A`` (rank, in) share the singular values; "usv" keeps them apart.
    passes : int, optional
        For the top: stop after so many products with W and W' (``quick``), in the precision of the weight.
    tol : float, optional
        For the top: the share of the best energy that may be missed, in the precision of the weight. With neither ``passes`` nor
        ``tol``, vectors are found to working precision in float64.
    seed : int
        For the random start.

    Returns
    -------
    parts : Split

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of finite floating-point numbers, a rank out of range (the limit is named), and unknown options.

    Notes
    -----
    Cost at the top: ``2 passes`` products with ``rank`` columns; where the spectrum is flat, ``min(out, in)^3 4/3`` flops. At the bottom:
    a QR factorization, a triangular inverse and a partial tridiagonal reduction, all in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from streamsvd.pipelines.adapters.split import split
    >>> W = np.random.default_rng(0).standard_normal((60, 40))
    >>> parts = split(W, 4)
    >>> parts.B.shape, parts.A.shape
    ((60, 4), (4, 40))
    >>> bool(np.allclose(parts.B @ parts.A + parts.residual, W))
    True
    """
    given, W = W, weight_of(W)
    _check(W, rank, end, form, passes, tol)
    double = dtype_name(W) == "float64"
    wide = W if double or (end == "top" and (passes or tol)) else _float64(W)
    oriented = metric_of(metric, int(W.shape[1]), like=wide)
    u, s, vt, how = _parts(wide, oriented, rank, end, passes, tol, seed)
    turn = signs(vt)
    dtype = "float64" if double else "float32"
    u, s, vt, W = (returned(x, given, dtype) for x in (u * turn[None, :], s, vt * turn[:, None], W))
    return Split(u, s, vt, W, form, how)


def reshape(parts: Split, form: str, /) -> Split:
    """Return the same split with the singular values shared in another way."""
    return replace(parts, form=form)


def returned(x: Array, given: Any, dtype: str, /) -> Array:
    """Return an array in a dtype and in the library of what was given: torch for a torch weight on the CPU, which is computed in NumPy."""
    xp = namespace(x)
    x = xp.astype(x, getattr(xp, dtype), copy=False)
    if isinstance(x, np.ndarray) and hasattr(given, "detach"):
        import torch

        return torch.from_numpy(np.ascontiguousarray(x))
    return x


def weight_of(W: Any, /) -> Array:
    """Return a weight as an array for which products are quick: NumPy for what lies on the CPU, half precision widened.

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of finite floating-point numbers.
    """
    if type(W).__module__.partition(".")[0] == "torch" or hasattr(W, "detach"):
        W = W.detach()
        if not W.dtype.is_floating_point:
            msg = (
                f"got a weight of dtype {W.dtype}; expected float32, bfloat16, float16 or float64: dequantize it first"
            )
            raise TypeError(msg)
        W = W if str(W.dtype) in {"torch.float32", "torch.float64"} else W.float()
        W = W.numpy() if W.device.type == "cpu" else W
    if len(getattr(W, "shape", ())) != 2 or 0 in W.shape:
        msg = f"got a weight of shape {tuple(getattr(W, 'shape', ()))}; expected a matrix (out, in)"
        raise ValueError(msg)
    if isinstance(W, np.ndarray):
        if W.dtype.kind != "f":
            msg = f"got a weight of dtype {W.dtype}; expected floating point: dequantize it first"
            raise TypeError(msg)
        W = W if W.dtype in (np.float32, np.float64) else W.astype(np.float32)
    xp = namespace(W)
    flat = xp.reshape(W, (-1,))
    with np.errstate(over="ignore", invalid="ignore"):
        seen = flat @ flat  # no array as large as W, unless its square overflows
    if not bool(xp.isfinite(seen)) and not bool(xp.all(xp.isfinite(W))):
        msg = "got a weight with NaN or infinity; expected finite numbers: the checkpoint is damaged, or float16 overflowed"
        raise ValueError(msg)
    return W


def _parts(
    W: Array, metric: Metric, rank: int, end: str, passes: int | None, tol: float | None, seed: int
) -> tuple[Array, Array, Array, str]:
    if end == "bottom":
        u, s, v, how = ends.bottom(metric.orient(W), rank)
        return (*_right(W, metric, u, s, v), how)
    if passes is not None or tol is not None:
        op = ends.Oriented(W, metric)
        if passes is not None:
            u, how = ends.quick_top(op, rank, passes, seed), "quick"
        else:
            u, how = svd(op, rank, tol=tol, seed=seed).u, "krylov"
    else:
        u, how = ends.top(W, metric, rank, seed)
        if how == "full":
            u, s, vt = ends.full(metric.orient(W))
            return (*_right(W, metric, u[:, :rank], s[:rank], vt.T[:, :rank]), how)
    # U spans the space; the SVD of U'W C turns it onto the singular vectors.
    N = metric.apply(W.T @ u)
    xp = namespace(N)
    w, X = small_eigh(to_numpy(xp.astype(N, xp.float64).T @ xp.astype(N, xp.float64)))
    turn = from_numpy(np.ascontiguousarray(X), like=u, dtype=dtype_name(u))
    s = np.sqrt(np.maximum(w, 0.0))
    return (*_right(W, metric, u @ turn, s, None), how)


def _right(W: Array, metric: Metric, u: Array, s: np.ndarray, v: Array | None) -> tuple[Array, Array, Array]:
    """Return u, s and ``v' C^-1 = diag(1 / s) u'W``: no inverse of C, except for components that W does not have."""
    values = from_numpy(np.ascontiguousarray(s), like=u, dtype=dtype_name(u))
    if v is not None and isinstance(metric, Plain):
        return u, values, v.T
    xp = namespace(u)
    size = max(W.shape) * float(np.finfo(dtype_name(u)).eps) * float(s.max(initial=0.0))
    held = np.asarray(s) > (size if v is not None else 0.0)
    vt = (u.T @ W) / xp.where(values > 0, values, xp.ones_like(values))[:, None]
    if held.all():
        return u, values, vt
    if v is None:
        return u, values, vt * from_numpy(held.astype(s.dtype), like=u, dtype=dtype_name(u))[:, None]
    flat = metric.solve(v).T
    return u, values, xp.where(from_numpy(held, like=u)[:, None], vt, flat)


def _float64(W: Array) -> Array:
    xp = namespace(W)
    return xp.astype(W, xp.float64)


def _check(W: Array, rank: Any, end: str, form: str, passes: int | None, tol: float | None) -> None:
    most = min(W.shape)
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        msg = f"got rank={rank!r}; expected a whole number of 1 .. {most}"
        raise TypeError(msg)
    if not 1 <= rank <= most:
        msg = f"got rank={rank} for a weight of shape {tuple(W.shape)}; expected 1 .. {most}"
        raise ValueError(msg)
    if end not in ENDS or form not in FORMS:
        msg = (
            f"got end={end!r}, form={form!r}; expected end 'top' or 'bottom' and form 'sqrt', 'left', 'right' or 'usv'"
        )
        raise ValueError(msg)
    if end == "bottom" and (passes is not None or tol is not None):
        msg = f"got passes={passes}, tol={tol} with end='bottom', which is found to working precision: leave them out"
        raise ValueError(msg)
    if passes is not None and (tol is not None or passes < 1):
        msg = f"got passes={passes}, tol={tol}; expected one of the two: passes of at least 1, or tol in 0 .. 1"
        raise ValueError(msg)
