"""How good an estimate is: normalised squared error, support recovery rate, symbol error rate."""

from __future__ import annotations

import numpy as np

from streamsvd.arrays import Array, to_numpy
from streamsvd.pipelines.channel.scenario import QPSK, Scenario


def nmse(estimate: Array, truth: Array, /) -> float:
    """Return ``||estimate - truth||^2 / ||truth||^2`` (0 for no error, about 1 for an estimate of zero)."""
    a, b = to_numpy(estimate), to_numpy(truth)
    return float(np.sum(np.abs(a - b) ** 2) / np.sum(np.abs(b) ** 2))


def channel_nmse(scenario: Scenario, mean: Array, /) -> float:
    """Return the error of the channel that coefficients ``mean`` (N1, N2, N3) stand for: the mean over the patterns for the IRS set-up."""
    if scenario.channel_dictionaries is None:
        return nmse(mean, scenario.x)
    found = scenario.channel_of(to_numpy(mean))
    return float(np.mean([nmse(a, b) for a, b in zip(found, scenario.channel, strict=True)]))


def support(x: Array, /, *, threshold: float = 1e-3) -> np.ndarray:
    """Return where ``|x|`` exceeds ``threshold`` times its maximum, boolean, of the shape of x."""
    size = np.abs(to_numpy(x))
    return size > threshold * size.max(initial=0.0)


def support_recovery(estimate: Array, truth: Array, /, *, threshold: float = 1e-3) -> float:
    """Return ``|S n S*| / |S u S*|`` of the two supports: 1 where they are equal (He and Joseph 2024)."""
    a, b = support(estimate, threshold=threshold), support(truth, threshold=threshold)
    either = int(np.sum(a | b))
    return float(np.sum(a & b)) / either if either else 1.0


def symbol_errors(
    estimate: np.ndarray, truth: np.ndarray, /, *, snr_db: float, symbols: int = 2000, seed: int = 0
) -> float:
    """Share of QPSK symbols decided wrongly by a link that trusts the estimated channel.

    Parameters
    ----------
    estimate, truth : arrays (patterns, user antennas, base antennas)
        For each pattern the leading singular vectors of the estimate are precoder and combiner, and decisions are made with its gain.
    snr_db : float, received power over noise
    symbols : int, for each pattern
    """
    rng = np.random.default_rng([seed, 4])
    wrong = 0.0
    for guess, channel in zip(estimate, truth, strict=True):
        user, s, base = np.linalg.svd(guess, full_matrices=False)
        sent = rng.integers(4, size=symbols)
        received = (user[:, 0].conj() @ channel @ base[0].conj()) * QPSK[sent]
        noise = rng.standard_normal(symbols) + 1j * rng.standard_normal(symbols)
        level = np.sqrt(np.mean(np.abs(received) ** 2) / 10 ** (snr_db / 10) / 2)
        received = received + level * noise
        wrong += float(np.mean(np.argmin(np.abs(received[:, None] - s[0] * QPSK), axis=1) != sent))
    return wrong / len(truth)
