"""Rows and names that the tests of the estimators share."""

from __future__ import annotations

import numpy as np

KINDS = ["gram", "truncated"]


def rows(n=400, d=30, *, seed=0, offset=3.0, decay=0.6):
    """Rows with singular values that fall by ``decay`` and a mean that is not zero; the first 8 stand clear of all the others."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((max(n, d), d)))
    v, _ = np.linalg.qr(rng.standard_normal((d, d)))
    spectrum = np.sqrt(n) * np.maximum(decay ** np.arange(d), 1e-3)
    return ((u * spectrum) @ v.T + offset * rng.standard_normal(d))[:n]


def names(d):
    return [f"c{i}" for i in range(d)]
