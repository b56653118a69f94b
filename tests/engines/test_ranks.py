"""Ranks of torch.distributed: one result, the same bits on every rank, and a refusal that reaches all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamsvd as ss
from streams import Truth

pytest.importorskip("torch")
SIZE = 3
WORKER = Path(__file__).with_name("rank_worker.py")


def run(folder: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), str(SIZE)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(SIZE)
    ]
    try:
        for rank in ranks:
            _, said = rank.communicate(timeout=120)
            assert rank.returncode == 0, said[-3000:]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run(folder)
    return folder


def told(folder: Path) -> list[dict[str, str]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(SIZE)]


def truth(ranks=range(SIZE), dtype="float64") -> Truth:
    from rank_worker import share

    return Truth(np.concatenate([share(rank) for rank in ranks]).astype(dtype))


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("truncated", (0, 1, 2)),
        ("gram", (0, 1, 2)),
        ("single", (0, 1, 2)),
        ("torch", (0, 1, 2)),
        ("one empty", (0, 2)),
        ("pair", (1, 2)),
    ],
)
def test_every_rank_has_the_whole_with_its_certificate(folder, name, ranks):
    holders = (1, 2) if name == "pair" else range(SIZE)
    states = [ss.load(folder / f"{name}-{rank}.svd") for rank in holders]
    expected = truth(ranks, "float32" if name == "single" else "float64")
    factors = states[0].factors()
    lower, upper = factors.bound.sigma
    assert factors.rows == expected.A.shape[0]
    assert (lower <= expected.s[:4] * (1 + 1e-12)).all()
    assert (expected.s[:4] <= upper * (1 + 1e-12)).all()
    for other in states[1:]:
        assert other.factors().vt.tobytes() == factors.vt.tobytes()
        assert other.factors().s.tobytes() == factors.s.tobytes()


@pytest.mark.cluster
def test_the_state_stays_with_its_library(folder):
    assert [said["torch array"] for said in told(folder)] == ["torch"] * SIZE
    assert [said["truncated array"] for said in told(folder)] == ["numpy"] * SIZE


@pytest.mark.cluster
def test_the_layers_of_a_model_are_merged_by_name(folder):
    a, b = (ss.load(folder / f"layers{name}-2.svd").factors() for name in "ab")
    np.testing.assert_allclose(a.s, b.s, rtol=1e-8)
    np.testing.assert_allclose(a.mean, b.mean[::-1], rtol=1e-12)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixed rank", "ValueError: rank 1 has options kept=15, rank=5, and rank 0 has kept=14, rank=4"),
        ("mixed dtype", "ValueError: rank 1 has rows of float32, and rank 0 of float64"),
        ("mixed layers", "ValueError: rank 1 has names"),
        ("no state", "TypeError: rank 1: got ndarray; expected a state"),
        ("left", "TypeError: rank 0: a state with keep_left=True cannot be merged"),
    ],
)
def test_what_does_not_fit_is_refused_on_all_ranks(folder, name, said):
    assert all(one[name].startswith(said) for one in told(folder)), told(folder)[0][name]
    assert len({one[name] for one in told(folder)}) == 1


@pytest.mark.cluster
def test_another_run_gives_the_same_bits(folder, tmp_path):
    run(tmp_path)
    for file in folder.glob("*.svd"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_without_a_process_group_it_says_what_to_call():
    from streamsvd.engines.ranks import merge_across_ranks

    with pytest.raises(RuntimeError, match="init_process_group"):
        merge_across_ranks(ss.sketch(columns=3, rank=1))


def rows_of(name: str) -> np.ndarray:
    from rank_worker import edges, share

    if name in ("dense", "tiny", "torch rows"):
        return np.concatenate([share(rank) for rank in range(SIZE)]) * (1e-170 if name == "tiny" else 1.0)
    A = np.concatenate([edges(rank, np.float64).toarray() for rank in range(SIZE)])
    if name == "sparse":
        return A
    users, items = A.sum(axis=1), A.sum(axis=0)
    scales = [
        np.where(degree > 0, 1 / np.sqrt(degree + 0.5 * degree[degree > 0].mean()), 0) for degree in (users, items)
    ]
    return scales[0][:, None] * A * scales[1]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "digits"), [("graph", 2e-6), ("sparse", 1e-9), ("dense", 1e-9), ("tiny", 1e-9), ("torch rows", 1e-9)]
)
def test_rows_on_many_ranks_have_the_factors_of_the_whole_matrix(folder, name, digits):
    A = rows_of(name)
    ranks = [np.load(folder / f"{name}-{rank}.npz") for rank in range(SIZE)]
    for other in ranks[1:]:
        assert other["vt"].tobytes() == ranks[0]["vt"].tobytes()
        assert other["s"].tobytes() == ranks[0]["s"].tobytes()
    u, s, vt = np.concatenate([one["u"] for one in ranks]).astype(float), ranks[0]["s"].astype(float), ranks[0]["vt"]
    unit = 1.0 / s[0]
    true = np.linalg.svd(A * unit, compute_uv=False)
    k = s.size
    assert ranks[0]["rows"] == A.shape[0] == u.shape[0]
    assert np.allclose(s * unit, true[:k], rtol=0, atol=1e-4 if name == "graph" else 1e-6)
    assert np.abs(u.T @ u - np.eye(k)).max() <= 10 * digits
    assert np.abs(u.T @ (A * unit) - (s * unit)[:, None] * vt).max() <= 2e-3  # as far as the passes went
    if name != "tiny":  # its squares vanish
        rest = float(((A - A @ vt.T.astype(float) @ vt) ** 2).sum())
        assert rest <= ranks[0]["residual"] * (1 + 1e-6)
        assert ranks[0]["residual"] <= 1.001 * (rest + 1e-12)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong columns", "rank 1 has columns 29, and rank 0 has 30"),
        ("wrong rank", "rank 1 has rank 5, and rank 0 has 4"),
        ("large rank", "got rank=31"),
        ("nan", "rank 2: "),
        ("mixed kinds", "rank 1 has operator Csr"),
    ],
)
def test_a_solve_that_is_refused_is_refused_on_all_ranks(folder, name, words):
    for one in told(folder):
        assert words in one[name]
