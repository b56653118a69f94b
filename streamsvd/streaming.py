"""What the scikit-learn estimators share: a face of the sketches, which hold all the mathematics."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from streamsvd.arrays import Array, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.components import Reading, check_components, start
from streamsvd.validation import check_library, check_merge, check_scores, read_rows, reads_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from streamsvd.factors import Bound, Factors
    from streamsvd.gram import Gram
    from streamsvd.truncated import Truncated


class Streaming(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both estimators share. ``state_`` is a frozen sketch, and every other result is read from it."""

    _center = True
    state_: Gram | Truncated
    n_features_in_: int

    def __init__(
        self,
        n_components: float | None = None,
        *,
        kind: str = "auto",
        kept: int | None = None,
        decay: float | None = None,
        half_life: float | str | timedelta | None = None,
        shrink: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.n_components = n_components
        self.kind = kind
        self.kept = kept
        self.decay = decay
        self.half_life = half_life
        self.shrink = shrink
        self.seed = seed

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, timestamps: Any = None) -> Self:
        """Start anew and fold all rows of a source; if that fails, the estimator stays what it was.

        Parameters
        ----------
        X : array (n, d), rows are samples, or any source of rows
            NumPy, torch, CuPy, SciPy sparse, pandas, Polars, Arrow, a path, glob or folder, a dataset, or an iterable of these.
        y : ignored
        sample_weight : array (n,) or str, optional
            Weights count repetitions. For tables and files also the name of the column that holds them.
        timestamps : array (n,) or str, optional
            Of the rows, in order; wanted if ``half_life`` is a time.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            For rows that are refused, a source without rows, or parameters out of range; the message says what to write.

        Notes
        -----
        Cost and memory: those of the sketch. Factors are worked out when an attribute or ``transform`` first asks for them.
        """
        with self._all_or_nothing():
            vars(self).pop("state_", None)
            self._fold(X, sample_weight, timestamps, whole=True)
            if not self.__sklearn_is_fitted__():
                msg = "no row arrived whose sample weight is not zero, and a fit needs at least one; check sample_weight and the source"
                raise ValueError(msg)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, timestamps: Any = None) -> Self:
        """Fold more rows into the state; parameters and errors as in ``fit``.

        Batches of any size come to the same result, one row or fewer rows than components included; no rows change nothing.
        """
        with self._all_or_nothing():
            self._fold(X, sample_weight, timestamps, whole=False)
        return self

    def fit_transform(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: Any, y: Any = None, sample_weight: Any = None, timestamps: Any = None
    ) -> Array:
        """Fit, then return the coordinates of the same rows; a source that can be read only once is refused."""
        if reads_once(X):
            msg = (
                f"fit_transform reads its rows twice, and a {type(X).__name__} gives them once; pass a list, a path or a table, "
                "or call fit on this one and transform on a fresh one"
            )
            raise TypeError(msg)
        return self.fit(X, y, sample_weight=sample_weight, timestamps=timestamps).transform(X)

    def transform(self, X: Any) -> Array:
        """Coordinates of rows in the components: ``(X - mean) V'``.

        Parameters
        ----------
        X : array (n, d), or any source of rows, as in ``fit``

        Returns
        -------
        Z : array (n, k), in the array library of X and the dtype of the components

        Raises
        ------
        NotFittedError, TypeError, ValueError
            Before ``fit``, or for rows that do not match it.

        Notes
        -----
        Cost: ``n d k`` multiply-adds. Sparse rows are not densified.
        """
        return self._rowwise(X, self._coordinates, "transform")

    def inverse_transform(self, X: Any) -> Array:
        """Rows from coordinates: ``Z V + mean``; X is (n, k), the result (n, d), in the same array library."""
        f = self.factors_
        Z = check_scores(X, f.rank)
        inner = namespace(f.vt).astype(self._stretch(brought(Z, f.vt)), f.vt.dtype)
        return brought(f.inverse_transform(inner), Z)

    def merge(self, other: Self, /) -> Self:
        """Return a new estimator, fitted to the rows of both.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            If either is not fitted, or class, parameters, features or array library differ; the message names what does.
        """
        names = check_merge(self, other)
        merged: Any = clone(self)
        merged._set_state(self.state_.merge(cast("Any", other.state_)))
        merged.n_features_in_ = self.n_features_in_
        if names is not None:
            merged.feature_names_in_ = names
        return merged

    @property
    def factors_(self) -> Factors:
        """Everything that is read from the state."""
        check_is_fitted(self)
        return self._reading.factors

    @property
    def bound_(self) -> Bound | None:
        """What is certain about these components: see ``streamsvd.Bound``."""
        return self.factors_.bound

    @property
    def components_(self) -> Array:
        """Orthonormal rows, array (k, d)."""
        return self.factors_.vt

    @property
    def singular_values_(self) -> Array:
        """Singular values of the (centred, weighted) rows, array (k,)."""
        return self.factors_.s

    @property
    def explained_variance_(self) -> Array:
        """Variance along each component (mean square without centring), array (k,)."""
        return self.factors_.explained_variance

    @property
    def explained_variance_ratio_(self) -> Array:
        """Share of the whole energy along each component, array (k,)."""
        return self.factors_.explained_variance_ratio

    @property
    def noise_variance_(self) -> float:
        """Mean variance of the directions outside the components, from the energy of the whole stream."""
        return self.factors_.noise_variance

    @property
    def mean_(self) -> Array:
        """Mean of the rows, array (d,); zeros without centring."""
        f = self.factors_
        return namespace(f.vt).astype(f.mean, f.vt.dtype)

    @property
    def n_components_(self) -> int:
        """Number of components."""
        return self.factors_.rank

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen, without those of weight 0."""
        check_is_fitted(self)
        return self.state_.rows

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_is_fitted__(self) -> bool:
        return "state_" in vars(self) and self.state_.rows > 0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before, done = dict(vars(self)), False
        try:
            yield
            done = self.__sklearn_is_fitted__()
        finally:
            if not done:
                vars(self).clear()
                vars(self).update(before)

    def _fold(self, X: Any, weights: Any, timestamps: Any, *, whole: bool) -> None:
        state = vars(self).get("state_")
        rows = read_rows(self, X, weights, timestamps, reset=state is None, least=1 if whole else 0)
        for part in rows:
            if state is None:
                state = self._empty(part.x.shape[1], part.x.shape[0] if whole and part.whole else None)
            state = part.run(partial(state.update, **part.beside))
        if state is not None:
            self._set_state(state)

    def _set_state(self, state: Gram | Truncated) -> None:
        check_components(self.n_components, state.columns)
        self.state_ = state
        self._reading = Reading(state, self.n_components)

    def _empty(self, columns: int, rows: int | None) -> Gram | Truncated:
        """Return the empty state for ``n_components``; ``rows`` where all there will be are known."""
        return start(
            self.n_components,
            columns=columns,
            rows=rows,
            kind=self.kind,
            center=self._center,
            kept=self.kept,
            shrink=self.shrink,
            decay=self.decay,
            half_life=self.half_life,
            seed=self.seed,
        )

    def _rowwise(self, X: Any, function: Callable[[Array], Array], method: str) -> Array:
        """Apply a function to rows of any source; results come in the library of the rows."""
        check_is_fitted(self)
        check_library(self, X, method)
        parts = [part.run(lambda x: brought(function(x), x)) for part in read_rows(self, X, reset=False)]
        if not parts:
            msg = "the source gave no rows; check the path, or what was filtered out"
            raise ValueError(msg)
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts, axis=0)

    def _coordinates(self, x: Array) -> Array:
        return self.factors_.transform(x)

    def _stretch(self, Z: Array) -> Array:
        return Z


def brought(Z: Array, like: Array) -> Array:
    """Return Z in the array library of ``like`` (NumPy for sparse matrices)."""
    if is_sparse(like):
        return to_numpy(Z)
    return Z if namespace(Z) is namespace(like) else from_numpy(to_numpy(Z), like=like)
