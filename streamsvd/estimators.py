"""The scikit-learn estimators: ``StreamingPCA`` and ``StreamingSVD``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd import gaussian
from streamsvd.arrays import Array, from_numpy, namespace, to_numpy

try:
    from streamsvd.streaming import Streaming
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    _msg = (
        'StreamingPCA and StreamingSVD need scikit-learn, which is not installed: run pip install "streamsvd[sklearn]"'
    )
    raise ImportError(_msg) from error

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["StreamingPCA", "StreamingSVD"]


class StreamingPCA(Streaming):
    """Principal components of a stream of rows, with a certified error.

    Rows come in batches of any size (``partial_fit``) or from any source (``fit``); the result does not depend on how they were cut.
    Fitted estimators merge. Parameters after the first are keyword-only.

    Parameters
    ----------
    n_components : int, float or None
        A number k of components; a share of the energy between 0 and 1, which as few components as possible hold (with a warning where
        those kept hold less); or None for every component in which the rows vary. With None, ``fit`` to an array of n rows keeps
        at most n components, also for rows that ``partial_fit`` adds later.
    kind : {"auto", "gram", "truncated"}
        Exact second moments, or merge and truncate; "auto" takes what costs less (``state_.plan`` says why).
    kept : int, optional
        Rows that a truncated state keeps; ``max(2 k, k + 10)`` by default.
    decay : float, optional
        Every row ages those before it by this factor.
    half_life : float, str or timedelta, optional
        The same as a half-life, in rows or, such as "30s", by the ``timestamps`` of the rows.
    shrink : float
        0 truncates, 1 is Frequent Directions.
    seed : int
        Of the test sketch from which ``bound_.estimate`` comes.
    whiten : bool
        Divide coordinates by the standard deviation of their component (0 along components that do not vary).

    Attributes
    ----------
    components_ : array (k, d), orthonormal rows, whose entry of largest magnitude is positive
    singular_values_, explained_variance_, explained_variance_ratio_ : array (k,)
    noise_variance_ : float, mean variance of the directions outside the components, from the energy of the whole stream
    mean_ : array (d,)
    n_components_, n_samples_seen_, n_features_in_ : int
    feature_names_in_ : array (d,) of str, if the rows had names
    bound_ : Bound, what is certain about the components
    factors_ : Factors, from which all of these are read
    state_ : Gram or Truncated, the frozen sketch (``streamsvd.save`` writes it)

    See Also
    --------
    StreamingSVD : Without centring.

    Notes
    -----
    Arrays of torch and CuPy stay where they are, and so do the results. float32 stays float32. No environment variable is needed.

    Examples
    --------
    >>> import numpy as np
    >>> from streamsvd import StreamingPCA
    >>> rows = np.random.default_rng(0).standard_normal((1000, 20)) / np.arange(1, 21)
    >>> pca = StreamingPCA(n_components=3)
    >>> for batch in np.array_split(rows, 100):
    ...     pca = pca.partial_fit(batch)
    >>> pca.transform(rows).shape
    (1000, 3)
    >>> print(pca.explained_variance_ratio_.round(3))
    [0.637 0.157 0.066]
    >>> low, high = pca.bound_.sigma
    >>> bool(np.all((low <= pca.singular_values_) & (pca.singular_values_ <= high)))
    True

    Half of a stream here, half of it there:

    >>> here, there = StreamingPCA(3).fit(rows[:300]), StreamingPCA(3).fit(rows[300:])
    >>> np.allclose(here.merge(there).singular_values_, pca.singular_values_)
    True
    """

    def __init__(
        self,
        n_components: float | None = None,
        *,
        whiten: bool = False,
        kind: str = "auto",
        kept: int | None = None,
        decay: float | None = None,
        half_life: float | str | timedelta | None = None,
        shrink: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(n_components, kind=kind, kept=kept, decay=decay, half_life=half_life, shrink=shrink, seed=seed)
        self.whiten = whiten

    def get_covariance(self) -> Array:
        """Covariance of the model: the components with their variances, and the noise variance around them; array (d, d)."""
        return gaussian.covariance(self.factors_)

    def get_precision(self) -> Array:
        """Inverse of the covariance, array (d, d).

        Raises
        ------
        ValueError
            If the rows vary in too few directions for an inverse.
        """
        return gaussian.precision(self.factors_)

    def score_samples(self, X: Any) -> Array:
        """Log-likelihood of each row under the Gaussian of the model, array (n,), float64; errors as in ``get_precision``.

        Notes
        -----
        Probabilistic principal components (Tipping and Bishop 1999). Cost: ``3 n d k`` multiply-adds.
        """
        return self._rowwise(X, partial(gaussian.log_likelihood, self.factors_), "score_samples")

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows."""
        return float(np.mean(to_numpy(self.score_samples(X))))

    def _coordinates(self, x: Array) -> Array:
        Z = self.factors_.transform(x)
        if not self.whiten:
            return Z
        root = to_numpy(gaussian.deviations(self.factors_))
        inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
        return _scaled(Z, inverse)

    def _stretch(self, Z: Array) -> Array:
        return _scaled(Z, to_numpy(gaussian.deviations(self.factors_))) if self.whiten else Z


class StreamingSVD(Streaming):
    """Singular value decomposition of a stream of rows, with a certified error: ``StreamingPCA`` without centring.

    Parameters
    ----------
    n_components, kind, kept, decay, half_life, shrink, seed
        As in ``StreamingPCA``.

    Attributes
    ----------
    components_, singular_values_, bound_, factors_, state_ and the others
        As in ``StreamingPCA``; ``mean_`` is zero, and ``explained_variance_`` is the mean square along each component.

    Examples
    --------
    >>> from scipy.sparse import random_array
    >>> from streamsvd import StreamingSVD
    >>> counts = random_array((400, 50), density=0.05, rng=0, format="csr")
    >>> svd = StreamingSVD(n_components=4).fit(counts)
    >>> svd.transform(counts).shape
    (400, 4)
    >>> bool(svd.bound_.relative < 1 - svd.explained_variance_ratio_.sum() + 1e-9)
    True
    """

    _center = False


def _scaled(Z: Array, factor: np.ndarray) -> Array:
    xp = namespace(Z)
    return xp.astype(Z * from_numpy(factor, like=Z, dtype="float64")[None, :], Z.dtype)
