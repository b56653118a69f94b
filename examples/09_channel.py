"""Sparse channels from few pilots: error and support against SNR with baselines, a stream of frames, pilots that arrive in batches.

python examples/09_channel.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from streamsvd.kronecker import multi_product
from streamsvd.pipelines.channel import KronSBL
from streamsvd.pipelines.channel.compare import sweep, table
from streamsvd.pipelines.channel.figure import draw
from streamsvd.pipelines.channel.metrics import channel_nmse, nmse
from streamsvd.pipelines.channel.scenario import irs, noise_like, synthetic

QUICK = "--quick" in sys.argv

# 1,440 noisy numbers, 3,375 unknowns of which 27 are not zero: the dictionary H1 (x) H2 (x) H3 is never formed.
SNRS, TRIALS = ((10, 20, 30), 3) if QUICK else ((5, 10, 15, 20, 25, 30), 15)
rows = sweep(snrs=SNRS, trials=TRIALS, methods=("svd", "svd-unknown", "am", "omp", "komp", "oracle"))
print(table(rows))
print(f"picture: {draw(rows, Path('out') / 'channel.png')}\n")

# Frames that follow each other: each starts from the hyperparameters of the one before.
case, rng = synthetic(seed=0), np.random.default_rng(0)
on = [np.unique(index) for index in np.nonzero(case.x)]
stream, cold, warm = KronSBL(case.dictionaries, noise="estimate"), [], []
for frame in range(6 if QUICK else 20):
    x = np.zeros_like(case.x)
    x[np.ix_(*on)] = np.einsum("i,j,k->ijk", *rng.standard_normal((3, 3)))
    clean = multi_product(x, case.dictionaries)
    y = clean + noise_like(clean, float(np.mean(clean**2)) / 100, seed=[frame])
    for kept, found in ((warm, stream.update(y)), (cold, KronSBL(case.dictionaries, noise="estimate").fit(y))):
        kept.append((found.iterations, nmse(found.mean, x)))
for title, kept in (("each by itself", cold), ("as a stream", warm)):
    steps, errors = zip(*kept, strict=True)
    print(
        f"{len(kept)} frames, {title:<15} {np.mean(steps):5.1f} iterations a frame, median error {np.median(errors):.1e}"
    )

# Pilots of an IRS-aided uplink (5,832 unknowns): the estimate after each two patterns of the surface.
channel = irs(seed=0, snr_db=15)
grown = KronSBL(channel.dictionaries)
for first in range(0, channel.y.shape[0], 2):
    part = slice(first, first + 2)
    found = grown.update(channel.y[part], pilots=channel.dictionaries[0][part], noise_variance=channel.noise_variance)
    print(
        f"{first + 2} patterns of the surface: channel error {channel_nmse(channel, found.mean):.1e}, {found.values.size} paths"
    )
