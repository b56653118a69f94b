"""What a scikit-learn estimator is given: arrays are checked by scikit-learn's rules, every other source is read as a stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn import get_config
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from streamsvd.arrays import Array, is_sparse, namespace
from streamsvd.batch import as_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOATS: Any = [np.float64, np.float32]  # scikit-learn's signatures are too narrow for a type checker


class Rows(NamedTuple):
    """Rows as the engine takes them."""

    x: Array  # (b, d), or CSR; not yet checked for NaN
    beside: dict[str, Any]  # "weights" and "timestamps", where given
    where: str = ""  # for messages: "events/a.parquet, rows 0 to 4095"
    whole: bool = True  # whether these are all rows there are

    def run(self, function: Callable[[Array], Any]) -> Any:
        """Return ``function(x)``; an error about these rows says where they come from."""
        if not self.where:
            return function(self.x)
        from streamsvd.flow.batches import located

        with located(self.where):
            return function(self.x)


def read_rows(
    estimator: Any, X: Any, weights: Any = None, timestamps: Any = None, /, *, reset: bool, least: int = 1
) -> Iterator[Rows]:
    """Yield the rows of X, an array or any source, after a check of width and feature names against those of the estimator.

    Parameters
    ----------
    estimator : estimator, which gets ``n_features_in_`` and ``feature_names_in_``
    X : array (n, d), table, or any source of rows
    weights, timestamps : array (n,) or str, optional
        A name is that of a column, for sources whose columns have names.
    reset : bool
        Whether to set the features of the estimator, or to compare with them.
    least : int
        Fewer rows in an array are refused.
    """
    given = {name: value for name, value in (("weights", weights), ("timestamps", timestamps)) if value is not None}
    if _of_library(X):
        batch = as_batch(X, finite=False)
        yield Rows(validate_data(estimator, batch, skip_check_array=True, reset=reset), given)
    elif not is_source(X):
        _refuse_silent_losses(X)
        rules = {"accept_sparse": "csr", "dtype": FLOATS, "ensure_all_finite": False, "ensure_min_samples": least}
        yield Rows(validate_data(estimator, X, reset=reset, **rules), given)
    elif _is_table(X) and any(not isinstance(value, str) for value in given.values()):
        from streamsvd.flow.batches import matrix

        batch, names = matrix(X)
        yield Rows(_with_names(estimator, batch, names, reset), given)
    else:
        from streamsvd.flow.batches import pieces, with_rows

        for number, piece in enumerate(with_rows(pieces(X, **given))):
            first = reset and number == 0
            x = _with_names(estimator, piece.x, piece.names, first) if number == 0 else piece.x
            yield Rows(x, piece.beside, piece.where, whole=False)


def check_merge(a: Any, b: Any, /) -> np.ndarray | None:
    """Refuse to merge estimators that differ or are not fitted; return the names of their features, if they have names.

    Raises
    ------
    NotFittedError, TypeError, ValueError
    """
    if type(a) is not type(b):
        msg = f"cannot merge a {type(a).__name__} with a {type(b).__name__}; both must be of one class"
        raise TypeError(msg)
    for estimator in (a, b):
        check_is_fitted(
            estimator, msg="a %(name)s that is not fitted cannot be merged; call fit or partial_fit on it first"
        )
    theirs = b.get_params()
    for name, mine in a.get_params().items():
        if mine != theirs[name]:
            msg = f"cannot merge estimators with {name}={mine!r} and {name}={theirs[name]!r}; give both the same {name}"
            raise ValueError(msg)
    if a.n_components is None and a.n_features_in_ == b.n_features_in_ and a.state_.rank != b.state_.rank:
        msg = (
            f"cannot merge: n_components=None kept {a.state_.rank} components in one fit and {b.state_.rank} in the other, as many as it "
            "had rows; give both the same number"
        )
        raise ValueError(msg)
    names = [e.feature_names_in_ for e in (a, b) if hasattr(e, "feature_names_in_")]
    if len(names) == 2 and not np.array_equal(names[0], names[1]):
        differ = "different features" if len(names[0]) != len(names[1]) else _first_difference(*names)
        msg = f"cannot merge estimators of {differ}; fit both on the same columns in the same order"
        raise ValueError(msg)
    return names[0] if names else None


def is_source(X: Any, /) -> bool:
    """Tell whether X is read as a stream: no array, nested list or pandas frame."""
    if isinstance(X, (str, os.PathLike)) or _is_table(X):
        return True
    if isinstance(X, (list, tuple)):
        return (
            len(X) > 0
            and (_of_library(X[0]) or getattr(X[0], "ndim", 1) != 1 or is_source(X[0]))
            and not _is_number(X[0])
        )
    if is_sparse(X) or _is_pandas(X):
        return False
    return not any(hasattr(X, name) for name in ("__array__", "__array_interface__", "__dlpack__"))


def reads_once(X: Any, /) -> bool:
    """Tell whether a source is used up by reading it."""
    return any(hasattr(X, name) for name in ("__next__", "read_next_batch"))


def check_scores(Z: Any, k: int, /) -> Array:
    """Return coordinates as a 2-D float array of width k.

    Raises
    ------
    ValueError
        For another shape.
    """
    out = as_batch(Z) if _of_library(Z) else check_array(Z, dtype=FLOATS, input_name="X")
    if out.shape[1] != k:
        msg = f"got coordinates of shape {tuple(out.shape)}; expected {k} columns, one for each component, as transform returns them"
        raise ValueError(msg)
    return out


def check_library(estimator: Any, X: Any, method: str, /) -> None:
    """Refuse another array library than that of ``fit`` where scikit-learn's array API dispatch is on; else libraries may be mixed.

    Raises
    ------
    ValueError
        If the libraries differ.
    """
    if (
        not get_config().get("array_api_dispatch", False)
        or is_sparse(X)
        or not (isinstance(X, np.ndarray) or _of_library(X))
    ):
        return
    fitted, here = namespace(estimator.components_).__name__, namespace(X).__name__
    if fitted != here:
        msg = (
            f"{type(estimator).__name__}.{method}() must use the same namespace as fit did: fit saw {fitted} and this is {here}; "
            "convert the rows, or leave array_api_dispatch off, and they are converted here"
        )
        raise ValueError(msg)


def _first_difference(a: np.ndarray, b: np.ndarray) -> str:
    i = int(np.flatnonzero(a != b)[0])
    return f"different features (number {i} is {a[i]!r} in one and {b[i]!r} in the other)"


def _refuse_silent_losses(X: Any) -> None:
    """Refuse what scikit-learn would take: dates as numbers, and arrays without their mask."""
    if isinstance(X, np.ma.MaskedArray):
        as_batch(X, finite=False)
    dtypes = [getattr(X, "dtype", None)] if not _is_pandas(X) else list(getattr(X, "dtypes", [])) if X.ndim == 2 else []
    dates = [str(dtype) for dtype in dtypes if getattr(dtype, "kind", "") in ("m", "M")]
    if dates:
        msg = f"got values of dtype {dates[0]}; expected numbers: leave them out, or convert them, for example X.astype('int64')"
        raise TypeError(msg)


def _with_names(estimator: Any, x: Array, names: tuple[str, ...], reset: bool) -> Array:
    if names:
        import polars

        # scikit-learn takes names from a frame, and this is one without rows.
        frame: Any = polars.DataFrame(schema=list(names))
        validate_data(estimator, frame, skip_check_array=True, reset=reset)
        return x
    return validate_data(estimator, x, skip_check_array=True, reset=reset)


def _of_library(X: Any) -> bool:
    """Tell whether X is an array of another library than NumPy, which stays where it is."""
    return hasattr(X, "__dlpack__") and not isinstance(X, np.ndarray) and not _is_table(X) and not _is_pandas(X)


def _is_table(X: Any) -> bool:
    return (hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__")) and not _is_pandas(X)


def _is_pandas(X: Any) -> bool:
    return type(X).__module__.partition(".")[0] == "pandas"


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, complex, np.generic))
