"""Estimators against each other over SNR: medians and quartiles of error and support recovery, symbol errors, failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.pipelines.channel.baselines import kronecker_omp, ksbl, omp, oracle_least_squares
from streamsvd.pipelines.channel.metrics import channel_nmse, support_recovery, symbol_errors
from streamsvd.pipelines.channel.model import KronSBL
from streamsvd.pipelines.channel.scenario import Scenario, irs, synthetic

Estimator = Callable[[Scenario], tuple[np.ndarray, int, bool]]
FAILED = 0.5


def _sbl(**options: Any) -> Estimator:
    def run(case: Scenario) -> tuple[np.ndarray, int, bool]:
        noise = None if options.get("noise") == "estimate" else case.noise_variance
        found = KronSBL(case.dictionaries, **options).fit(case.y, noise_variance=noise)
        return to_numpy(found.mean), found.iterations, found.converged

    return run


def _plain(function: Callable[[Scenario], np.ndarray]) -> Estimator:
    return lambda case: (function(case), 1, True)


def _counts(case: Scenario) -> list[int]:
    return [np.unique(index).size for index in np.nonzero(case.x)]


ESTIMATORS: dict[str, Estimator] = {
    "svd": _sbl(method="svd"),
    "svd-unknown": _sbl(method="svd", noise="estimate"),
    "am": _sbl(method="am"),
    "pc": _sbl(method="pc", coupling=(0.8, 0.0, 0.8)),
    "classical": _sbl(method="classical"),
    "decomposed": _sbl(method="decomposed"),
    "ksbl": _plain(lambda case: ksbl(case.dictionaries, case.y, noise_variance=case.noise_variance)),
    "omp": _plain(lambda case: omp(case.dictionaries, case.y, nonzeros=int(np.count_nonzero(case.x)))),
    "komp": _plain(lambda case: kronecker_omp(case.dictionaries, case.y, sparsity=_counts(case))),
    "oracle": _plain(lambda case: oracle_least_squares(case.dictionaries, case.y, case.x)),
}
LABELS = {
    "svd": "SVD-KroSBL",
    "svd-unknown": "SVD-KroSBL, noise unknown",
    "am": "AM-KroSBL",
    "pc": "PC-KroSBL",
    "classical": "classical SBL",
    "decomposed": "decomposed",
    "ksbl": "KSBL (one sweep)",
    "omp": "OMP (true K)",
    "komp": "Kronecker-OMP (true K)",
    "oracle": "least squares, true support",
}


def sweep(
    *,
    scenario: Literal["synthetic", "irs"] = "synthetic",
    snrs: Sequence[float] = (10.0, 20.0, 30.0),
    trials: int = 20,
    methods: Sequence[str] = ("svd", "am", "komp", "oracle"),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every method on the same ``trials`` seeded instances at every SNR.

    Returns
    -------
    list of dict, one for each SNR and method: nmse and support (quartiles [25 %, 50 %, 75 %]), support_mean, symbol_errors (IRS: the mean),
    failed (share with nmse > 0.5), iterations (mean), converged (share), milliseconds (median, wall clock)
    """
    unknown = [name for name in methods if name not in ESTIMATORS]
    if unknown:
        msg = f"methods {unknown} are not known; the methods are {', '.join(ESTIMATORS)}"
        raise ValueError(msg)
    make = {"synthetic": synthetic, "irs": irs}[scenario]
    rows = []
    for snr in snrs:
        cases = [make(seed=seed + i, snr_db=snr) for i in range(trials)]
        for name in methods:
            if progress is not None:
                progress(f"{scenario}, {snr:g} dB: {LABELS[name]}")
            rows.append(
                {
                    "scenario": scenario,
                    "snr_db": float(snr),
                    "method": name,
                    "trials": trials,
                    **_measured(name, cases, snr),
                }
            )
    return rows


def _measured(name: str, cases: list[Scenario], snr: float) -> dict[str, Any]:
    errors, support, symbols, steps, good, seconds = [], [], [], [], [], []
    for case in cases:
        began = time.perf_counter()
        mean, iterations, converged = ESTIMATORS[name](case)
        seconds.append(time.perf_counter() - began)
        errors.append(channel_nmse(case, mean))
        support.append(support_recovery(mean, case.x))
        steps.append(iterations)
        good.append(converged)
        if case.channel_dictionaries is not None:
            symbols.append(symbol_errors(case.channel_of(mean), case.channel, snr_db=snr))
    return {
        "nmse": np.quantile(errors, [0.25, 0.5, 0.75]).tolist(),
        "support": np.quantile(support, [0.25, 0.5, 0.75]).tolist(),
        "support_mean": float(np.mean(support)),
        "symbol_errors": float(np.mean(symbols)) if symbols else None,
        "failed": float(np.mean(np.asarray(errors) > FAILED)),
        "iterations": float(np.mean(steps)),
        "converged": float(np.mean(good)),
        "milliseconds": 1e3 * float(np.median(seconds)),
    }


def table(rows: Sequence[dict[str, Any]], /) -> str:
    """Return the rows of a sweep as text."""
    head = f"{'SNR':>5}  {'method':<28}{'NMSE':>10}{'quartiles':>22}{'support':>9}{'SER':>9}{'failed':>8}{'steps':>7}{'ms':>9}"
    lines = [head]
    for row in rows:
        low, mid, high = row["nmse"]
        ser = "" if row["symbol_errors"] is None else f"{row['symbol_errors']:.4f}"
        spread = f"{low:.2e} .. {high:.2e}"
        lines.append(
            f"{row['snr_db']:>5g}  {LABELS[row['method']]:<28}{mid:>10.2e}{spread:>22}{row['support_mean']:>9.3f}{ser:>9}"
            f"{row['failed']:>8.2f}{row['iterations']:>7.1f}{row['milliseconds']:>9.1f}"
        )
    return "\n".join(lines)
