"""The benchmark measures what it says: data, truth, who is compared, the table. Sizes are tiny; nothing here judges speed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))
cases, machine, memory, peers, table = map(import_module, ("cases", "machine", "memory", "peers", "table"))
TINY, PUSH = cases.TINY


def compare(*arguments: str) -> str:
    """Standard output of the benchmark in a process of its own, which may set its threads."""
    done = subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rows():
    return cases.data(TINY, cache=None)


def centred_svd(X: np.ndarray, *, center: bool = True) -> np.ndarray:
    A = X.astype(np.float64)
    return np.linalg.svd(A - A.mean(axis=0) * center, compute_uv=False)


def test_data_has_the_spectrum_it_promises(rows):
    assert rows.shape == (TINY.rows, TINY.columns)
    assert rows.dtype == np.float32
    s = np.linalg.svd(rows.astype(np.float64), compute_uv=False) / np.sqrt(TINY.rows)
    np.testing.assert_allclose(s[:10] * np.arange(1, 11), 1.0, atol=0.25)
    assert s[-1] > 5e-4


def test_data_is_seeded_and_its_cache_changes_nothing(rows, tmp_path):
    first, again = cases.data(TINY, cache=tmp_path), cases.data(TINY, cache=tmp_path)
    assert list(tmp_path.glob("data-*.npy"))
    assert first.tobytes() == again.tobytes() == rows.tobytes()


def test_batches_are_views_that_cover_the_rows_in_order(rows):
    for case, first in ((TINY, TINY.batch), (PUSH, PUSH.rank)):
        batches = case.batches(rows)
        assert [len(b) for b in batches[:2]] == [first, case.batch]
        assert all(b.base is not None and np.shares_memory(b, rows) for b in batches)
        np.testing.assert_array_equal(np.concatenate(batches), rows)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(256, 60), (25, 60)])
def test_truth_is_the_svd_of_either_orientation(rows, shape, center, tmp_path):
    X = rows[: shape[0], : shape[1]] + np.float32(0.5)
    s = centred_svd(X, center=center)
    for _ in range(2):
        found = cases.truth(X, 8, center=center, cache=tmp_path)
        np.testing.assert_allclose(found.s, s[:8], rtol=1e-10)
        assert found.energy == pytest.approx(float(s @ s), rel=1e-10)
    assert len(list(tmp_path.glob("truth-*.npz"))) == 1


def test_error_is_relative_and_a_missing_value_counts_as_zero(rows):
    true = cases.truth(rows, 4, center=True, cache=None)
    assert true.error(true.s) == 0
    assert true.error(true.s * [1, 1, 0.9, 1.01]) == pytest.approx(0.1)
    assert true.error(true.s[:3]) == 1
    assert true.error(np.zeros(0)) == 1


def test_residual_is_what_the_best_rank_leaves(rows):
    A = rows - rows.mean(axis=0, dtype=np.float64)
    s, vt = np.linalg.svd(A)[1:]
    assert cases.residual(rows, vt[:4], center=True) == pytest.approx(float(s[4:] @ s[4:]), rel=1e-10)
    assert cases.residual(rows, vt, center=True) <= 1e-20 * float(s @ s)


@pytest.mark.parametrize("case", [TINY, PUSH], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["sklearn", "ours", "ours-gram", "ours-truncated"])
def test_methods_find_the_truth(case, name):
    X, method = cases.data(case, cache=None), peers.by_name(name)
    found = method.prepare(case)(case.batches(X))
    assert cases.truth(X, case.rank, center=True, cache=None).error(found.s) < 0.1
    if method.ours:
        assert found.kind in name or name == "ours"
        assert 1 <= found.bound / cases.residual(X, found.vt, center=True) <= 1.05


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["peft", "gensim"])
def test_optional_peers_find_the_truth_or_say_why_not(name, rows):
    method = peers.by_name(name)
    if find_spec(name) is None:
        with pytest.raises(peers.NotMeasuredError, match=f"{name} is not installed"):
            method.prepare(TINY)
        pytest.skip(f"{name} is not installed")
    found = method.prepare(TINY)(TINY.batches(rows))
    true = cases.truth(rows, TINY.rank, center=method.center, cache=None)
    assert true.error(found.s) < 0.1


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
def test_a_peer_that_refuses_small_batches_is_not_measured():
    with pytest.raises(peers.NotMeasuredError, match="at least 4 rows"):
        peers.by_name("peft").prepare(PUSH)


@pytest.mark.parametrize(("find", "name"), [(cases.find, "d785"), (peers.find, "sklern")])
def test_unknown_names_are_refused_with_the_known_ones(find, name):
    with pytest.raises(ValueError, match=rf"{name}.* are .*(d784|sklearn)"):
        find(name)


def test_another_number_of_threads_is_refused():
    with pytest.raises(RuntimeError, match="asked for 99 threads, but"):
        machine.verify_threads(99)


def made_up_results() -> dict:
    def entry(name: str, seconds: float, **more: object) -> dict:
        return {"name": name, "label": name, "rows": 100, "seconds": [seconds, 9.0, 0.0], "error": 0.5, **more}

    own = {
        "kind": "gram",
        "unit": "d²",
        "unit_bytes": 1000,
        "memory": 4000,
        "arrays": 2000,
        "slack": 1.02,
        "error": 0.01,
    }
    methods = [
        entry("sklearn", 8.0),
        {"name": "peft", "label": "peft", "skipped": "peft is not installed"},
        entry("ours", 2.0, **own),
        entry("floor", 0.5, error=None),
    ]
    goals = {"sklearn": 3.0, "peft": 5.0, "floor": 3.9, "accuracy": 40.0, "slack": 1.05}
    case = {
        "name": "c",
        "title": "5, 2, 10, 100",
        "rank": 2,
        "batch": 10,
        "rows": 100,
        "goals": goals,
        "methods": methods,
    }
    return {"machine": machine.describe(1), "options": {"runs": 3}, "cases": [case]}


def test_table_shows_medians_and_their_ratios():
    text = table.render(made_up_results())
    (line,) = [line for line in text.splitlines() if "ours (gram)" in line]
    assert line.split("ours (gram)")[1].split() == [
        "50",
        "4.00",
        "4.00",
        "1.0e-02",
        "1.02000",
        "0.0",
        "MB",
        "=",
        "4.00",
        "d²",
    ]
    assert "¹ peft, at 5, 2, 10, 100: peft is not installed." in text
    assert "1 BLAS thread;" in text


def test_markdown_rows_have_as_many_cells_as_the_head():
    lines = [line for line in table.render(made_up_results(), markdown=True).splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {len(table.HEAD) + 1}


def test_goals_say_what_was_reached_and_what_was_missed():
    lines = table.goals(made_up_results()).splitlines()
    words = {said: [line for line in lines if line.startswith(said)] for said in ("reached", "MISSED")}
    assert [("floor" in line, "resident" in line) for line in words["MISSED"]] == [(True, False), (False, True)]
    assert len(words["reached"]) == 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is watched through /proc")
def test_resident_memory_sees_what_was_allocated_and_freed():
    before = memory._start()
    block = np.ones(5_000_000)
    del block
    assert 39e6 < memory.peak() - before < 45e6


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path):
    file = tmp_path / "results.json"
    text = compare(
        "--cases",
        "tiny,tiny-push",
        "--methods",
        "sklearn,ours,floor",
        "--kinds",
        "truncated",
        "--runs",
        "2",
        "--json",
        str(file),
    )
    results = json.loads(file.read_text())
    assert [case["name"] for case in results["cases"]] == ["tiny", "tiny-push"]
    for case in results["cases"]:
        assert [entry["name"] for entry in case["methods"]] == ["sklearn", "ours-truncated", "floor"]
        for entry in case["methods"]:
            assert len(entry["seconds"]) == 2
            assert min(entry["seconds"]) > 0
            assert entry["memory"] >= 0
            assert "slack" not in entry or 1 <= entry["slack"] <= 1.05
        assert case["methods"][1]["arrays"] > 0
    assert "timed on the first 32 rows: scikit-learn IncrementalPCA" in text
    assert compare("--read", str(file)) == text
    assert compare("--read", str(file), "--markdown").startswith("| d, k, batch, rows | method | rows/s |")


@pytest.mark.slow
def test_memory_of_a_state_is_watched_as_it_grows():
    marks = memory.in_child("growth", "truncated", 64, 4, 32, "200,1000", "traced", threads=1)["marks"]
    assert [mark["rows"] for mark in marks] == [200, 1000]
    assert 0 < marks[0]["bytes"] <= marks[1]["bytes"] < 2 * marks[0]["bytes"]
    assert marks[1]["with_factors"] >= marks[1]["bytes"]
