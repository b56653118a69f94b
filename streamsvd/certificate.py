"""The certificate: what a fold removed and what rounding may have moved, and every bound that follows from the two.

``Ledger`` is the running account inside a state, ``Certificate`` the account at a reading, ``Bound`` what a user sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

EPS64 = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Ledger:
    """Energies of a stream, in units of ``4^exponent`` of the state that holds it, all float64.

    Attributes
    ----------
    total : ``||A||_F^2`` of the rows folded
    discarded : trace of what truncation (and shrinking) removed
    top : sum of the spectral norms of what each fold removed
    noise : first-order rounding of the Gram matrices and of this ledger
    rows_noise : squared amplitude of the rounding of stored rows, ``sum eps^2 tr G_t``
    """

    total: float = 0.0
    discarded: float = 0.0
    top: float = 0.0
    noise: float = 0.0
    rows_noise: float = 0.0

    def scaled(self, factor: float, /) -> Ledger:
        """Return the ledger with every energy multiplied: decay, or a change of the exponent."""
        return Ledger(*(factor * value for value in self._values()))

    def __add__(self, other: Ledger) -> Ledger:
        """Add two accounts: rows of two streams, or a fold's entries to the past."""
        return Ledger(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[float, ...]:
        # Not `dataclasses.astuple`, whose deep copies would cost a twentieth of a merge.
        return self.total, self.discarded, self.top, self.noise, self.rows_noise


@dataclass(frozen=True, eq=False)
class Bound:
    """What is certain about a rank-k factorization V of a stream A (n, d) that is gone.

    Every statement includes rounding (``rounding`` says how much of ``residual`` it is); what cannot be certified is None.
    Energies are kept as amplitudes (square roots), which stay finite where their squares overflow.

    Attributes
    ----------
    residual : float or None
        ``||A - A V'V||_F^2`` is at most this.
    spectral : float or None
        ``||A (I - V'V)||_2^2`` is at most this.
    sigma : (array (k,), array (k,)) or None
        Each true singular value lies between; the lower end is also the estimate.
    optimal : (float, float) or None
        The least residual that any rank k can reach lies between.
    angle : float or None
        The sine of the largest angle between the rows of V and the true top-k subspace is at most this (Davis and Kahan 1970).
    estimate : float or None
        Unbiased estimate of the residual (not a bound) from a random test sketch of the stream.
    rounding : float
        The part of ``residual`` that accounts for floating point.
    relative : float or None
        ``residual`` as a share of the energy.
    """

    norm: float
    residual_norm: float | None = None
    spectral_norm: float | None = None
    sigma: tuple[np.ndarray, np.ndarray] | None = None
    optimal_norms: tuple[float, float] | None = None
    angle: float | None = None
    estimate_norm: float | None = None
    rounding_norm: float = 0.0

    @property
    def residual(self) -> float | None:  # noqa: D102
        return _square(self.residual_norm)

    @property
    def spectral(self) -> float | None:  # noqa: D102
        return _square(self.spectral_norm)

    @property
    def estimate(self) -> float | None:  # noqa: D102
        return _square(self.estimate_norm)

    @property
    def rounding(self) -> float:  # noqa: D102
        return self.rounding_norm * self.rounding_norm

    @property
    def optimal(self) -> tuple[float, float] | None:  # noqa: D102
        if self.optimal_norms is None:
            return None
        low, high = self.optimal_norms
        return low * low, high * high

    @property
    def relative(self) -> float | None:  # noqa: D102
        if self.residual_norm is None:
            return None
        return 0.0 if self.norm == 0 else (self.residual_norm / self.norm) ** 2


@dataclass(frozen=True, eq=False)
class Certificate:
    """An account closed at a reading: with weights and centring applied, ``A'A = V' diag(s^2) V + E``, ``0 <= E``.

    Attributes
    ----------
    exponent : int
        ``s`` is in units of ``2^exponent``, energies in units of ``4^exponent``.
    s : array (r,), float64, descending; all that the state kept, at least as many as are reported
    total : energy of the stream
    tail : energy outside the listed ``s``
    trace, norm : bounds of ``tr E`` and ``||E||_2`` (both zero for exact second moments)
    noise, rows_noise : see ``Ledger``
    test_rest, test_parts : energy of the test sketch outside the reported rows, and along each of them
    """

    exponent: int
    s: np.ndarray
    total: float
    tail: float
    trace: float = 0.0
    norm: float = 0.0
    noise: float = 0.0
    rows_noise: float = 0.0
    test_rest: float | None = None
    test_parts: np.ndarray | None = None

    def bound(self, rank: int, /) -> Bound:
        """Return everything that is certain of the leading ``rank`` components.

        Recipe: each stored row is that of ``A - F`` with ``||F||_F <= eta``, so every amplitude moves by at most eta, and every energy
        by at most ``noise``; the rest is Weyl's inequality and the Pythagorean identity for ``A'A = B'B + E``.
        """
        eta, noise = math.sqrt(self.rows_noise), self.noise
        power = np.concatenate([self.s**2, np.zeros(1)])
        ideal = self.tail + float(power[rank:].sum())
        following = float(power[min(rank, self.s.size)])
        residual = math.sqrt(ideal + noise) + eta
        spectral = min(residual, math.sqrt(self.norm + following + noise) + eta)
        low = np.maximum(np.sqrt(np.maximum(power[:rank] - noise, 0.0)) - eta, 0.0)
        high = np.sqrt(power[:rank] + self.norm + noise) + eta
        best = max(0.0, math.sqrt(max(0.0, ideal - min(rank * self.norm, self.trace) - noise)) - eta)
        amplitude = self._amplitude
        return Bound(
            norm=amplitude(math.sqrt(self.total)),
            residual_norm=amplitude(residual),
            spectral_norm=amplitude(spectral),
            sigma=(np.ldexp(low, self.exponent), np.ldexp(high, self.exponent)),
            optimal_norms=(amplitude(best), amplitude(residual)),
            angle=self._angle(power, rank),
            estimate_norm=self._estimate(rank),
            rounding_norm=amplitude(math.sqrt(max(0.0, residual * residual - ideal))),
        )

    def rest(self, rank: int, /) -> float:
        """Amplitude of what lies outside the leading ``rank`` components, added up directly and without the terms for rounding."""
        return self._amplitude(math.sqrt(self.tail + float((self.s[rank:] ** 2).sum())))

    def _angle(self, power: np.ndarray, rank: int) -> float | None:
        if not 0 < rank <= self.s.size:
            return None
        error = self.norm + self.noise + 2.0 * math.sqrt(self.rows_noise * self.total) + self.rows_noise
        gap = float(power[rank - 1] - power[rank]) - error
        return error / gap if gap > error else None

    def _estimate(self, rank: int) -> float | None:
        if self.test_rest is None or self.test_parts is None:
            return None
        return self._amplitude(math.sqrt(self.test_rest + float(self.test_parts[rank:].sum())))

    def _amplitude(self, x: float) -> float:
        try:
            return math.ldexp(x, self.exponent)
        except OverflowError:
            return math.inf


def _square(x: float | None) -> float | None:
    return None if x is None else x * x
