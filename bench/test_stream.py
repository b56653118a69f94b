"""Each method on each case under pytest-benchmark (``.venv/bin/pytest bench``), for comparing one commit with another.

``compare.py`` makes the table: there the methods take turns, and accuracy and memory are measured too.
"""

from __future__ import annotations

import cases
import peers
import pytest

METHODS = [method for name in peers.PEERS for method in peers.find(name, "truncated,gram")]

# The peers' own deprecation warnings are not what is measured.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
@pytest.mark.benchmark(min_rounds=5, warmup=False)
def test_folds_the_stream(benchmark, case, method):
    benchmark.group = case.name
    X = cases.data(case)[: case.slow_rows if method.slow else None]
    try:
        run = method.prepare(case)
    except peers.NotMeasuredError as reason:
        pytest.skip(str(reason))
    benchmark.extra_info["rows"] = X.shape[0]
    found = benchmark.pedantic(run, args=(case.batches(X),), rounds=5, warmup_rounds=1)
    if method.exact and method.center:
        assert cases.truth(X, case.rank, center=True).error(found.s) < 0.5
