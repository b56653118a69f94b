"""The test sketch: a few random signed sums of the rows, which estimate without bias what a factorization left out.

``T = S A`` with one random sign a column of S has ``E ||T (I - V'V)||_F^2 = ||A (I - V'V)||_F^2`` for every V that does not depend on the
signs (Tropp, Yurtsever, Udell and Cevher 2019, section 6, with the sparse signs of Charikar, Chen and Farach-Colton 2004). Slot and sign
of a row come from a counter-based hash of the seed and its number, so a restart draws them again.
"""

from __future__ import annotations

import numpy as np

TEST_ROWS = 10
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def signs_of(seed: int, start: int, count: int, /, *, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return slots (count,) int64 in 0 .. TEST_ROWS and signs (count,) float64 of the rows from number ``start`` on."""
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + np.uint64(stream) * _GOLDEN)
        numbers = _mix(key + (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    slots = ((numbers >> np.uint64(32)) % np.uint64(TEST_ROWS)).astype(np.int64)
    return slots, np.where(numbers & np.uint64(1), 1.0, -1.0)


def merge_signs(seed: int, rows_a: int, rows_b: int, /) -> np.ndarray:
    """Return signs (TEST_ROWS,) for the second of two merged sketches, so that rows with the same number do not correlate."""
    return signs_of(seed, rows_a * 1_000_003 + rows_b, TEST_ROWS, stream=2)[1]


def _mix(x: np.ndarray) -> np.ndarray:
    """Finalise 64-bit numbers (splitmix64, Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
