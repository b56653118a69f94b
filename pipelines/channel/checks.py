"""What arrives is checked once, here: dictionaries, observations, noise variances."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, namespace, to_numpy
from streamsvd.kronecker import is_complex
from streamsvd.pipelines.channel.options import Options

DOUBLE = {"float32": "float64", "float64": "float64", "complex64": "complex128", "complex128": "complex128"}
MOST = 2**31


@dataclass(frozen=True, eq=False)
class Observation:
    """``y`` (F, L, M1, ..., Md) in double precision, each frame divided by its ``scale`` (F,), a power of two near its maximum."""

    y: Array
    scale: np.ndarray
    dtype: str


def checked_dictionaries(dictionaries: Sequence[Array], options: Options, /) -> tuple[Array, ...]:
    """Return the dictionaries in double precision.

    Raises
    ------
    TypeError, ValueError
        If they are no matrices of finite numbers, or columns are zero or parallel (a warning with ``unidentifiable="warn"``).
    """
    if hasattr(dictionaries, "ndim") or not len(dictionaries):
        arrived = f"{type(dictionaries).__name__} of {len(dictionaries)}"
        msg = f"got {arrived} for the dictionaries; expected a list of matrices, one for each factor: KronSBL([H1, H2, H3])"
        raise TypeError(msg)
    out = []
    for i, H in enumerate(dictionaries):
        if not hasattr(H, "ndim") or H.ndim != 2 or 0 in H.shape:
            shape = tuple(H.shape) if hasattr(H, "shape") else type(H).__name__
            msg = f"dictionary {i} is {shape}; expected a matrix (measurements, unknowns) with at least one row and column"
            raise ValueError(msg)
        out.append(double(H, f"dictionary {i}"))
        _finite(out[i], f"dictionary {i}", ("row", "column"))
        _identifiable(to_numpy(out[i]), i, options.unidentifiable)
    if (unknowns := prod(int(H.shape[1]) for H in out)) >= MOST:
        msg = f"the dictionaries make {unknowns:,} unknowns, and an estimate holds at most {MOST:,}; use fewer columns"
        raise ValueError(msg)
    options.prunes(len(out))
    if options.method == "pc":
        options.couplings(len(out))
    return tuple(out)


def observation(y: Array, dictionaries: Sequence[Array], options: Options, /, *, many: bool = False) -> Observation:
    """Bring observations to (F, L, M1, ..., Md): leading axes are snapshots (F = 1), or frames with ``many`` (L = 1)."""
    xp, rows = namespace(dictionaries[0]), [int(H.shape[0]) for H in dictionaries]
    if not hasattr(y, "shape"):
        y = np.asarray(y)
    if namespace(y) is not xp:
        msg = f"y is an array of {namespace(y).__name__} and the dictionaries are of {xp.__name__}; convert one of them"
        raise TypeError(msg)
    dtype = dtype_name(y)
    Y = xp.reshape(double(y, "y"), (*_lead(tuple(y.shape), rows), *rows))
    if is_complex(Y) and options.dtype in ("float32", "float64"):
        msg = f"y is {dtype} and dtype={options.dtype!r} holds real numbers only; write dtype='complex128', or leave it out"
        raise TypeError(msg)
    if not is_complex(Y) and any(is_complex(H) for H in dictionaries):
        msg = f"y is {dtype} and the dictionaries are complex; if the imaginary part is really zero, say so: y.astype(complex)"
        raise TypeError(msg)
    _finite(Y, "y", ("snapshot", *(f"axis {i}" for i in range(len(rows)))))
    Y = Y[:, None, ...] if many else Y[None, ...]
    power = xp.max(xp.abs(Y), axis=tuple(range(1, Y.ndim)))
    scale = np.where(to_numpy(power) > 0, to_numpy(power), 1.0)
    # Powers of two: the estimate is rescaled without rounding.
    scale = 2.0 ** np.round(np.log2(scale))
    own = scale if xp is np else xp.asarray(scale, device=getattr(Y, "device", None))
    return Observation(Y / xp.reshape(own, (-1, *(1,) * (Y.ndim - 1))), scale, options.dtype or dtype)


def noise_variances(value: Any, frames: int, options: Options, /) -> np.ndarray | None:
    """Return one noise variance for each frame; None where it is to be estimated and no start was given."""
    if value is None:
        if options.noise == "estimate":
            return None
        msg = 'noise="known" and no noise variance arrived; give the noise_variance of each frame beside y, or write noise="estimate"'
        raise ValueError(msg)
    given = np.asarray(value, dtype=np.float64)
    if given.shape not in ((), (1,), (frames,)):
        msg = f"noise_variance has the shape {given.shape} for {frames} frames; give one number, or one for each frame"
        raise ValueError(msg)
    if not np.all(np.isfinite(given)) or not np.all(given > 0):
        msg = f'noise_variance={value} is no variance; expected a finite number > 0 (unknown? write noise="estimate")'
        raise ValueError(msg)
    return np.broadcast_to(given.reshape(-1), (frames,)).copy() if given.size == 1 else given.copy()


def double(x: Array, what: str, /) -> Array:
    """Widen to double precision, real or complex."""
    xp, name = namespace(x), dtype_name(x)
    if name.startswith(("int", "uint", "float16", "bfloat16")):
        return xp.astype(x, xp.float64)
    if name not in DOUBLE:
        msg = f"{what} has the dtype {name}; expected real or complex numbers"
        raise TypeError(msg)
    return x if DOUBLE[name] == name else xp.astype(x, getattr(xp, DOUBLE[name]))


def _lead(shape: tuple[int, ...], rows: list[int]) -> tuple[int]:
    d, M = len(rows), prod(rows)
    if shape[-d:] == tuple(rows) and len(shape) in (d, d + 1):
        lead = shape[:-d]
    elif shape and shape[-1] == M and len(shape) in (1, 2):
        lead = shape[:-1]
    else:
        product = " x ".join(map(str, rows))
        msg = (
            f"y has the shape {shape}; the dictionaries have {product} rows, so expected {M} = {product} numbers in C order "
            f"(the first dictionary slowest), as ({M},) or {tuple(rows)}, with one more axis in front for several of them"
        )
        raise ValueError(msg)
    if lead == (0,):
        msg = f"y has the shape {shape}, which holds no observation; give at least one"
        raise ValueError(msg)
    return lead or (1,)  # type: ignore[return-value]


def _finite(x: Array, what: str, axes: tuple[str, ...]) -> None:
    good = to_numpy(namespace(x).isfinite(x))
    if not good.all():
        place = np.argwhere(~good)[0]
        where = ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, place, strict=True))
        msg = f"{what} has NaN or infinity in {int((~good).sum())} of {good.size} places, first at {where}; remove or replace them"
        raise ValueError(msg)


def _identifiable(H: np.ndarray, i: int, react: str) -> None:
    size = np.linalg.norm(H, axis=0)
    zero = np.flatnonzero(size == 0)
    message = ""
    if zero.size:
        message = f"dictionary {i} has zero columns: {_some(zero.tolist())}; no data can tell their coefficients"
    elif H.shape[0] > 1:  # all columns of a single row are parallel, and a stream of pilots may begin with one
        unit = H / size
        alike = np.triu(np.abs(unit.conj().T @ unit) > 1 - 1e-12, k=1)
        if alike.any():
            pairs = [(int(a), int(b)) for a, b in np.argwhere(alike)]
            message = f"dictionary {i} has parallel columns: {_some(pairs)}; no data can tell them apart"
    if message and react == "warn":
        warnings.warn(message, UserWarning, stacklevel=5)
    elif message:
        msg = f'{message}. Remove them, or write unidentifiable="warn"'
        raise ValueError(msg)


def _some(found: list[Any]) -> str:
    return ", ".join(map(str, found[:10])) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
