"""Seeded channels with their truth: the synthetic set-up of He and Joseph (2024) and their IRS-aided MIMO uplink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from streamsvd.kronecker import multi_product

QPSK = np.array([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j]) / np.sqrt(2)


@dataclass(frozen=True, eq=False)
class Scenario:
    """One observation ``y = (H1 (x) H2 (x) H3) x + n`` and what it came from.

    Attributes
    ----------
    dictionaries : arrays (M_i, N_i)
    x : array (N1, N2, N3), the truth
    y : array (M1, M2, M3), or (frames, M1, M2, M3), the observation with noise
    noise_variance : float, of each entry of y (both parts together where it is complex)
    channel_dictionaries : arrays (C_i, N_i) that turn x into the channel whose error counts; None where that is x itself
    axes : tuple of str, what the modes of x are
    """

    dictionaries: tuple[np.ndarray, ...]
    x: np.ndarray
    y: np.ndarray
    noise_variance: float
    channel_dictionaries: tuple[np.ndarray, ...] | None = None
    axes: tuple[str, ...] = ()

    @cached_property
    def channel(self) -> np.ndarray:
        """The true channel: array (patterns, user antennas, base antennas) for the IRS set-up, x for the synthetic one."""
        return self.channel_of(self.x)

    def channel_of(self, x: np.ndarray, /) -> np.ndarray:
        """Return the channel that belongs to coefficients x (N1, N2, N3)."""
        return x if self.channel_dictionaries is None else multi_product(x, self.channel_dictionaries)


def synthetic(
    *,
    seed: int,
    snr_db: float = 20.0,
    measurements: Sequence[int] = (8, 12, 15),
    unknowns: Sequence[int] = (15, 15, 15),
    sparsity: int = 3,
    snapshots: int = 1,
) -> Scenario:
    """Gaussian dictionaries and a coefficient tensor whose support and values are Kronecker products, ``sparsity`` of each mode.

    Parameters
    ----------
    seed : int
        The truth and the noise directions do not depend on ``snr_db``: the same seed at another SNR only scales the noise.
    snr_db : float
        Mean power of the noiseless observation over the noise variance, in dB.
    measurements, unknowns : M_i and N_i of each mode
    sparsity : int, non-zeros in each mode
    snapshots : int
        More than 1: y is (snapshots, M1, ...), x likewise, with one support and new values in each.
    """
    rng = np.random.default_rng([seed, 1])
    dictionaries = tuple(rng.standard_normal((m, n)) for m, n in zip(measurements, unknowns, strict=True))
    supports = [rng.permutation(n)[:sparsity] for n in unknowns]
    xs = []
    for _ in range(snapshots):
        x = np.ones(())
        for n, support in zip(unknowns, supports, strict=True):
            v = np.zeros(n)
            v[support] = rng.standard_normal(sparsity)
            x = np.multiply.outer(x, v)
        xs.append(x)
    x = xs[0] if snapshots == 1 else np.stack(xs)
    y, variance = _noisy(multi_product(x, dictionaries), snr_db, rng)
    return Scenario(dictionaries, x, y, variance, axes=tuple(f"mode{i + 1}" for i in range(len(dictionaries))))


@dataclass(frozen=True)
class Irs:
    """Sizes of the IRS-aided uplink; the defaults are the published ones: 288 observations, 5,832 unknowns."""

    user_antennas: int = 6
    base_antennas: int = 16
    elements: int = 256
    grid: int = 18
    pilots: int = 3
    patterns: int = 6
    spread: int = 3


def steering(antennas: int, angles: np.ndarray, /) -> np.ndarray:
    """Unit steering vectors of a half-wavelength uniform line: ``exp(j pi k c) / sqrt(antennas)``, array (antennas, angles).

    ``angles`` are cosines in [-1, 1).
    """
    return np.exp(1j * np.pi * np.outer(np.arange(antennas), angles)) / np.sqrt(antennas)


def angle_grid(points: int, /) -> np.ndarray:
    """Cosines -1, -1 + 2/points, ..., evenly over [-1, 1)."""
    return -1 + 2 * np.arange(points) / points


def irs(*, seed: int, snr_db: float = 20.0, sizes: Irs = Irs(), training: int | None = None) -> Scenario:
    """User -> intelligent reflecting surface -> base station: one user angle, ``spread`` neighbouring angles at surface and base.

    Parameters
    ----------
    seed : int
        Of the channel and the noise; as for ``synthetic``, the SNR only scales the noise.
    snr_db : float
        Mean power of the noiseless observation over the noise variance, in dB.
    sizes : Irs
    training : int, optional
        Seed of the QPSK pilots and of the patterns (+1 or -1 for each element); by default they are drawn anew for each ``seed``.

    Returns
    -------
    Scenario with dictionaries (patterns, grid), (pilots, grid), (base_antennas, grid)

    Notes
    -----
    With surface angles a (in) and d (out) only their difference enters, ``exp(j pi k (c_a - c_d))``, so the surface has one axis of
    ``grid`` differences. Gains are CN(0, 1). Channel of pattern i: ``H2 diag(pattern_i) H1``.
    """
    rng, train = np.random.default_rng([seed, 2]), np.random.default_rng([seed if training is None else training, 3])
    c, grid = angle_grid(sizes.grid), sizes.grid
    user, base = steering(sizes.user_antennas, c), steering(sizes.base_antennas, c)
    surface = steering(sizes.elements, c[0] - c) / np.sqrt(sizes.elements)
    pilots = _pilots(train, sizes, user)
    patterns = (2 * train.integers(2, size=(sizes.elements, sizes.patterns)) - 1) / np.sqrt(sizes.elements)
    x = np.zeros((grid, grid, grid), dtype=np.complex128)
    into, out_of, at_base = _block(rng, sizes), rng.integers(grid), _block(rng, sizes)
    first, second = _gains(rng, sizes.spread), _gains(rng, sizes.spread)
    power = np.sqrt(sizes.base_antennas * sizes.user_antennas) * sizes.elements / sizes.spread
    x[np.ix_((out_of - into) % grid, [rng.integers(grid)], at_base)] = (
        power * np.multiply.outer(first, second)[:, None, :]
    )
    response = patterns.T @ surface
    dictionaries = (response, pilots.T @ user.conj(), base)
    y, variance = _noisy(multi_product(x, dictionaries), snr_db, rng)
    return Scenario(
        dictionaries, x, y, variance, (response, user.conj(), base), ("irs_angle", "user_angle", "base_angle")
    )


def _pilots(rng: np.random.Generator, sizes: Irs, user: np.ndarray) -> np.ndarray:
    """Draw QPSK pilots (user_antennas, pilots) that tell all angles apart: some draws send the same along two of them."""
    while True:
        pilots = QPSK[rng.integers(4, size=(sizes.user_antennas, sizes.pilots))] / np.sqrt(sizes.user_antennas)
        seen = pilots.T @ user.conj()
        size = np.linalg.norm(seen, axis=0)
        alike = np.abs(seen.conj().T @ seen) > 0.999 * np.outer(size, size)
        if sizes.pilots == 1 or (size.min() > 1e-9 and alike.sum() == size.size):
            return pilots


def _block(rng: np.random.Generator, sizes: Irs) -> np.ndarray:
    return rng.integers(sizes.grid - sizes.spread + 1) + np.arange(sizes.spread)


def _gains(rng: np.random.Generator, count: int) -> np.ndarray:
    return (rng.standard_normal(count) + 1j * rng.standard_normal(count)) / np.sqrt(2)


def noise_like(clean: np.ndarray, variance: float, /, *, seed: Sequence[int]) -> np.ndarray:
    """Return seeded white noise of the shape and kind (real or complex) of ``clean``."""
    return np.sqrt(variance) * _unit_noise(clean, np.random.default_rng(list(seed)))


def _unit_noise(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(clean.shape)
    return (noise + 1j * rng.standard_normal(clean.shape)) / np.sqrt(2) if np.iscomplexobj(clean) else noise


def _noisy(clean: np.ndarray, snr_db: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    variance = float(np.mean(np.abs(clean) ** 2)) / 10 ** (snr_db / 10)
    return clean + np.sqrt(variance) * _unit_noise(clean, rng), variance
