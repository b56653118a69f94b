"""The Kronecker SBL benchmark: ``python bench/channel.py [--quick] [--only synthetic,irs,times,digits,frames,stream] [--json FILE]``.

Errors against least squares on the true support, the oracle table and the published medians; time, memory and digits against the dense
posterior; frames at once and in a stream. One thread; what is compared takes turns, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import machine

ORACLE = Path(__file__).parents[1] / "tests" / "oracles" / "krosbl.json"
SNRS = (4, 8, 12, 16, 20)
# Medians of 50 trials that the authors published (PC-KroSBL with coupling 0.8).
PUBLISHED = {
    "svd": (0.431, 0.091, 0.0102, 0.0038, 0.0013),
    "am": (0.949, 0.156, 0.0229, 0.0051, 0.0012),
    "pc": (0.125, 0.037, 0.012, 0.0042, 0.0015),
}
lines: list[tuple[bool, str]] = []
swept: list[dict[str, Any]] = []


def check(good: bool, text: str) -> None:
    lines.append((bool(good), text))
    print(f"{'reached' if good else 'MISSED':<8} {text}", flush=True)


def synthetic_errors(trials: int) -> None:
    from streamsvd.pipelines.channel.compare import sweep, table

    oracle = json.loads(ORACLE.read_text())
    rows = sweep(
        snrs=(10, 20, 30), trials=trials, methods=("svd", "svd-unknown", "am", "ksbl", "omp", "komp", "oracle")
    )
    print(table(rows))
    swept.extend(rows)
    found = {(row["snr_db"], row["method"]): row for row in rows}
    for snr in (10.0, 20.0, 30.0):
        floor = found[snr, "oracle"]["nmse"][1]
        limits = {"svd": 1.25 if snr == 30 else 1.1, "svd-unknown": 1.1}
        for name, limit in limits.items():
            ratio = found[snr, name]["nmse"][1] / floor
            check(ratio <= limit, f"{snr:g} dB, {name}: median NMSE {ratio:.3f} of oracle least squares <= {limit}")
        ratio = found[snr, "am"]["nmse"][1] / oracle[f"{snr:g}/am"]["nmse_median"]
        check(ratio <= 1.5, f"{snr:g} dB, am: median NMSE {ratio:.3f} of the oracle table <= 1.5")
        for name, key in (("svd", "svd"), ("svd-unknown", "svd-unk"), ("am", "am")):
            gain = found[snr, name]["support_mean"] - oracle[f"{snr:g}/{key}"]["srr"]
            check(gain >= -0.10, f"{snr:g} dB, {name}: support recovery {gain:+.3f} against the oracle table >= -0.10")


def irs_errors(trials: int) -> None:
    import numpy as np

    from streamsvd.pipelines.channel.compare import sweep, table

    rows = sweep(scenario="irs", snrs=SNRS, trials=trials, methods=tuple(PUBLISHED))
    print(table(rows))
    swept.extend(rows)
    for name, published in PUBLISHED.items():
        mine = [row for row in rows if row["method"] == name]
        ratios = np.array([row["nmse"][1] for row in mine]) / published
        mean = float(np.exp(np.mean(np.log(ratios))))
        failed = ", ".join(f"{row['failed']:.2f}" for row in mine)
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        check(
            ratios.max() <= 1.5,
            f"IRS, {name}: ratios {shown} to the published medians, none above 1.5 (failure rates {failed})",
        )
        check(mean <= 1.1, f"IRS, {name}: geometric mean of the ratios {mean:.3f} <= 1.1")


def clock(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def dense_iteration(case: Any) -> Callable[[], Any]:
    """One posterior as published: the N x N covariance, its diagonal, and the mean ``sigma^-2 Sigma H'y``."""
    import numpy as np

    from streamsvd.kronecker import kron

    H, y = kron(case.dictionaries), case.y.reshape(-1)

    def run() -> Any:
        gamma = np.ones(H.shape[1])
        C = case.noise_variance * np.eye(H.shape[0]) + (H * gamma) @ H.conj().T
        B = (H * gamma).conj().T
        covariance = np.diag(gamma) - B @ np.linalg.solve(C, B.conj().T)
        return covariance @ (H.conj().T @ y) / case.noise_variance, np.diag(covariance).real.copy()

    return run


def one_iteration(case: Any) -> Callable[[], Any]:
    import numpy as np

    from streamsvd.kronecker import kron_form, posterior

    gammas = [np.ones(H.shape[1]) for H in case.dictionaries]
    return lambda: posterior(kron_form(case.dictionaries, gammas, exact=False), case.y, case.noise_variance)


def times(runs: int) -> None:
    import numpy as np

    from streamsvd.pipelines.channel import KronSBL
    from streamsvd.pipelines.channel.scenario import irs, synthetic

    for name, make, limit in (("synthetic", synthetic, 12), ("IRS", irs, 25)):
        cases = [make(seed=s, snr_db=20) for s in range(20)]
        models = [KronSBL(case.dictionaries) for case in cases]
        fits = [
            clock(lambda m=m, c=c: m.fit(c.y, noise_variance=c.noise_variance))
            for _ in range(3)
            for m, c in zip(models, cases, strict=True)
        ]
        value = 1e3 * median(fits)
        check(value <= limit, f"{name}: {value:.1f} ms for one SVD-KroSBL estimate at 20 dB <= {limit} ms")
    case = synthetic(seed=0)
    dense, ours = dense_iteration(case), one_iteration(case)
    found = ours()
    pairs = [(clock(dense), median(clock(ours) for _ in range(20))) for _ in range(max(1, runs // 2))]
    ratio = median(a for a, _ in pairs) / median(b for _, b in pairs)
    check(ratio >= 1000, f"one posterior of {case.x.size} unknowns: {ratio:,.0f} times the dense one >= 1,000")
    mean, variance = dense()
    apart = [
        float(np.abs(a.reshape(-1) - b).max() / np.abs(b).max())
        for a, b in ((found.mean, mean), (found.variance, variance))
    ]
    print(
        f"         it differs from the dense one by {apart[0]:.1e} (mean) and {apart[1]:.1e} (variances) of the largest entry"
    )
    print(f"         memory on top of its input: {peak(ours) / 2**20:.2f} MiB, dense {peak(dense) / 2**20:,.0f} MiB")


def peak(call: Callable[[], Any]) -> int:
    """Most memory that a call held, in bytes."""
    import tracemalloc

    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def digits() -> None:
    """Compare the mean at tiny noise with the dense formula in 50 digits, and the published formula beside it."""
    import mpmath
    import numpy as np

    from streamsvd.kronecker import kron, kron_form, posterior

    rng = np.random.default_rng(2)
    H, gammas = [rng.standard_normal((3, 4)), rng.standard_normal((2, 3))], [rng.random(4) + 0.1, rng.random(3) + 0.1]
    y, whole, gamma = rng.standard_normal((3, 2)), kron(H), np.kron(*gammas)
    for noise in (1e-6, 1e-10, 1e-12):
        with mpmath.workdps(50):
            A = [mpmath.matrix(h.tolist()) for h in H]
            exact = mpmath.matrix(6, 12)
            for i in np.ndindex(3, 2, 4, 3):
                exact[i[0] * 2 + i[1], i[2] * 3 + i[3]] = A[0][i[0], i[2]] * A[1][i[1], i[3]]
            G = mpmath.diag([mpmath.mpf(float(a)) * mpmath.mpf(float(b)) for a in gammas[0] for b in gammas[1]])
            C = mpmath.mpf(noise) * mpmath.eye(6) + exact * G * exact.T
            true = np.array([float(v) for v in G * exact.T * mpmath.lu_solve(C, mpmath.matrix(y.reshape(-1).tolist()))])
        C = noise * np.eye(6) + (whole * gamma) @ whole.T
        covariance = np.diag(gamma) - (whole * gamma).T @ np.linalg.solve(C, whole * gamma)
        published = covariance @ (whole.T @ y.reshape(-1)) / noise
        ours = posterior(kron_form(H, gammas), y, noise).mean.reshape(-1)
        off = [float(np.linalg.norm(x - true) / np.linalg.norm(true)) for x in (ours, published)]
        check(
            off[0] <= 1e-9,
            f"mean at noise variance {noise:g}: relative error {off[0]:.1e} <= 1e-9 (published formula {off[1]:.1e})",
        )


def frames(runs: int) -> None:
    import numpy as np

    from streamsvd.kronecker import multi_product
    from streamsvd.pipelines.channel import KronSBL
    from streamsvd.pipelines.channel.scenario import noise_like, synthetic

    case = synthetic(seed=0)
    clean = multi_product(case.x, case.dictionaries)
    many = np.stack([clean + noise_like(clean, case.noise_variance, seed=[f, 7]) for f in range(100)])
    batched = KronSBL(case.dictionaries, rank_one="power")
    single = KronSBL(case.dictionaries)
    pairs = [
        (
            clock(lambda: [single.fit(y, noise_variance=case.noise_variance) for y in many]),
            clock(lambda: batched.fit_frames(many, noise_variance=case.noise_variance)),
        )
        for _ in range(runs)
    ]
    ratio = median(a for a, _ in pairs) / median(b for _, b in pairs)
    check(ratio >= 2.5, f"100 frames at once: {ratio:.2f} times one by one >= 2.5")


def stream(seeds: int) -> None:
    import numpy as np

    from streamsvd.kronecker import multi_product
    from streamsvd.pipelines.channel import KronSBL
    from streamsvd.pipelines.channel.metrics import nmse
    from streamsvd.pipelines.channel.scenario import noise_like, synthetic

    steps: list[list[float]] = [[], []]
    errors: list[list[float]] = [[], []]
    for seed in range(seeds):
        case, rng = synthetic(seed=seed), np.random.default_rng([seed, 9])
        on = [rng.permutation(15)[:3] for _ in range(3)]
        for f in range(20):
            if f == 10:
                on[0][0] = np.setdiff1d(np.arange(15), on[0])[0]
            x = np.zeros((15, 15, 15))
            x[np.ix_(*on)] = np.einsum("i,j,k->ijk", *rng.standard_normal((3, 3)))
            clean = multi_product(x, case.dictionaries)
            noise = float(np.mean(clean**2)) / 100
            y = clean + noise_like(clean, noise, seed=[seed, f])
            warm = KronSBL(case.dictionaries) if f == 0 else warm  # noqa: F821
            for i, found in enumerate(
                (KronSBL(case.dictionaries).fit(y, noise_variance=noise), warm.update(y, noise_variance=noise))
            ):
                steps[i].append(found.iterations)
                errors[i].append(nmse(found.mean, x))
    ratio = float(np.mean(steps[1]) / np.mean(steps[0]))
    cold, hot = (float(np.median(e)) for e in errors)
    check(ratio <= 0.5, f"20 frames with a support change: {ratio:.2f} of the cold iterations <= 0.5")
    check(hot <= cold, f"20 frames with a support change: median NMSE {hot:.3g} warm, {cold:.3g} cold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--only", default="synthetic,irs,times,digits,frames,stream")
    parser.add_argument("--json", metavar="FILE", help="keep the rows and what was reached")
    options = parser.parse_args()
    machine.set_threads(1)
    share = 10 if options.quick else 1
    parts = {
        "synthetic": lambda: synthetic_errors(200 // share),
        "irs": lambda: irs_errors(50 // share),
        "times": lambda: times(5 if share == 1 else 1),
        "digits": digits,
        "frames": lambda: frames(5 if share == 1 else 1),
        "stream": lambda: stream(5 if share == 1 else 1),
    }
    for name in options.only.split(","):
        parts[name]()
    if options.json:
        checks = [{"reached": good, "text": text} for good, text in lines]
        Path(options.json).write_text(
            json.dumps({"machine": machine.describe(1), "checks": checks, "rows": swept}, indent=1)
        )
    print(f"\n{sum(good for good, _ in lines)} of {len(lines)} reached. {machine.sentence(machine.describe(1))}")


if __name__ == "__main__":
    main()
