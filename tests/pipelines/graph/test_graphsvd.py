"""GraphSVD: what the factors are, that the way edges came does not matter, alignment, components, states, and what is refused."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsvd as ss
from streamsvd.pipelines.graph import GraphSVD, model
from streamsvd.pipelines.graph.refresh import posed
from streamsvd.pipelines.graph.settings import GraphSettings
from streamsvd.pipelines.graph.synthetic import power_law

RANK = 8


def normalised(g: GraphSVD, t: float) -> np.ndarray:
    """The dense normalised graph in float64, by its definition."""
    A = g.state_.store.matrix().toarray().astype(np.float64)
    sides = []
    for axis in (1, 0):
        d = A.sum(axis=axis)
        sides.append(np.where(d > 0, 1 / np.sqrt(np.where(d > 0, d + t * d[d > 0].mean(), 1)), 0))
    return sides[0][:, None] * A * sides[1][None, :]


def captured(N: np.ndarray, v: np.ndarray) -> float:
    best = np.linalg.svd(N, compute_uv=False)[: v.shape[1]]
    return float(np.sum((N @ v.astype(np.float64)) ** 2) / np.sum(best**2))


def graph(seed: int = 0, *, users: int = 120, items: int = 90, edges: int = 900) -> pa.Table:
    return power_law(users, items, edges, communities=6, seed=seed)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_factors_are_those_of_the_dense_matrix(t):
    g = GraphSVD(rank=RANK, regularise=t, components="all", energy=0.9999).update(graph())
    f, N = g.factors(), normalised(g, t)
    s = np.linalg.svd(N, compute_uv=False)
    assert np.allclose(f.s, s[:RANK], rtol=2e-3)
    assert captured(N, f.v) > 0.999
    assert ss.verify.orthonormality(f.vt) < 1e-5
    assert ss.verify.orthonormality(f.ut) < 1e-5
    assert np.allclose(f.u_mul_s @ f.vt, f.u @ f.v_mul_s.T, atol=1e-6)
    assert np.linalg.norm(N - f.u_mul_s @ f.vt) <= 1.001 * np.sqrt(np.sum(s[RANK:] ** 2))


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 599), max_size=3), refresh=st.booleans())
def test_any_way_to_the_same_edges_ends_at_the_factors_of_the_rebuilt_graph(seed, cuts, refresh):
    """Batches, refreshes between them, and edges that come and go again change nothing but the order of rows."""
    edges = graph(seed, edges=600)
    g = GraphSVD(rank=RANK, regularise=0.5, energy=0.9999)
    bounds = sorted({0, *cuts, 600})
    for number, (a, b) in enumerate(pairwise(bounds)):
        g.update(edges.slice(a, b - a), batch_id=f"b{number}")
        strange = {"user": [10**6 + number] * 2, "item": [10**6, edges["item"][0].as_py()]}
        g.update(strange)
        if refresh and min(g.state_.store.shape) > 3 * RANK and g.state_.store.edges > 200:
            g.refresh()
        g.update({**strange, "op": ["remove"] * 2})
    f, N = g.factors(), normalised(g, 0.5)
    rebuilt = GraphSVD(rank=RANK, regularise=0.5, energy=0.9999).update(edges)
    truth = normalised(rebuilt, 0.5)
    assert g.state_.store.edges == rebuilt.state_.store.edges
    assert np.isclose(np.linalg.norm(N), np.linalg.norm(truth), rtol=1e-6)
    assert np.allclose(np.linalg.svd(N, compute_uv=False)[:RANK], np.linalg.svd(truth, compute_uv=False)[:RANK])
    assert captured(N, f.v) > 0.999
    gone = f.users.to_pylist().index(10**6)
    assert not f.u[gone].any()
    assert f.item_scale[f.items.to_pylist().index(10**6)] == 0


def test_a_refresh_captures_no_less_than_the_factors_before_did_of_the_new_graph():
    edges = graph(3)
    g = GraphSVD(rank=RANK, regularise=0.5, passes=1).update(edges.slice(0, 700))
    before = g.factors()
    g.update(edges.slice(700))
    after, N = g.factors(), normalised(g, 0.5)
    assert captured(N, after.v) >= captured(N, model.grown(before.v, N.shape[1])) - 1e-6
    assert after.version == 2
    assert after.info["method"] == "warm subspace passes"


def test_versions_are_aligned_so_that_small_changes_of_edges_are_small_changes_of_factors():
    edges = graph(1, users=400, items=300, edges=4000)
    g = GraphSVD(rank=RANK, regularise=0.5, energy=0.999).update(edges.slice(0, 3980))
    before = g.factors()
    after = g.update(edges.slice(3980)).factors()
    canonical = after.v @ after.rotation.T.astype(np.float32)
    old = model.grown(before.v, after.v.shape[0])
    moved = np.linalg.norm(after.v - old)
    signed = np.minimum(np.linalg.norm(canonical - old, axis=0), np.linalg.norm(canonical + old, axis=0))
    assert moved <= np.linalg.norm(signed) + 1e-6
    assert moved < 0.5 * np.sqrt(RANK)
    assert np.allclose(after.rotation @ after.rotation.T, np.eye(RANK), atol=1e-10)
    assert np.allclose((normalised(g, 0.5) @ after.v), after.u_mul_s, atol=0.05)


def islands(extra: int = 3) -> pa.Table:
    """One large component and small ones of one user with two items."""
    big = graph(5)
    users = np.concatenate([big["user"].to_numpy(), np.repeat(10_000 + np.arange(extra), 2)])
    items = np.concatenate([big["item"].to_numpy(), 20_000 + np.arange(2 * extra)])
    return pa.table({"user": users, "item": items})


def test_deflation_takes_one_unit_singular_value_out_for_each_component():
    g = GraphSVD(rank=RANK, regularise=0.0, components="deflate", energy=0.9999).update(islands())
    N = normalised(g, 0.0)
    s = np.linalg.svd(N, compute_uv=False)
    parts = model.components(g.state_.store)
    assert np.sum(s > 1 - 1e-9) == parts.count == 4
    assert np.allclose(g.factors().s, s[parts.count : parts.count + RANK], rtol=2e-3)
    op = posed(g.state_.store, model.scaling(g.state_.store, 0.0), g.settings).operator
    dense = op.matmat(np.eye(N.shape[1], dtype=np.float32))
    assert np.allclose(dense, op.rmatmat(np.eye(N.shape[0], dtype=np.float32)).T, atol=1e-6)
    assert np.allclose(op.T.matmat(np.eye(N.shape[0], dtype=np.float32)), dense.T, atol=1e-6)


def test_the_giant_component_alone_leaves_zeros_for_the_islands():
    g = GraphSVD(rank=RANK, regularise=0.0, energy=0.9999).update(islands())
    f = g.factors()
    assert f.info["components_used"] == "giant"
    assert f.info["components"] == 4
    assert np.sum(np.isclose(f.s, 1.0, atol=1e-4)) == 1
    outside = [row for row, item in enumerate(f.items.to_pylist()) if item >= 20_000]
    assert not f.v[outside].any()


def test_raw_factors_are_those_of_the_weights():
    edges = graph(2).append_column("weight", pa.array(np.random.default_rng(0).integers(1, 6, 900), pa.float64()))
    g = GraphSVD(rank=RANK, normalise="raw", energy=0.9999).update(edges)
    s = np.linalg.svd(g.state_.store.matrix().toarray(), compute_uv=False)
    assert np.allclose(g.factors().s, s[:RANK], rtol=2e-3)


def test_t_follows_validation_edges_and_is_chosen_once():
    edges = graph(4, users=300, items=200, edges=4000)
    g = GraphSVD(rank=RANK, validation=edges.slice(3500)).update(edges.slice(0, 3400))
    f = g.factors()
    assert f.info["regularise"] in (0.0, 0.25, 0.5, 1.0)
    assert f.info["regularise_because"].startswith("best Recall@20 on the validation edges (t=0: ")
    after = g.update(edges.slice(3400, 50)).factors()
    assert after.info["regularise"] == f.info["regularise"]
    assert after.info["method"] == "warm subspace passes"
    assert g.retune().factors().info["method"] != "warm subspace passes"


def test_a_state_from_a_file_goes_on_to_the_same_bits(tmp_path):
    edges = graph(6)
    table = pa.table({"user": edges["user"], "item": pa.array([f"i{x}é" for x in edges["item"].to_pylist()])})
    g = GraphSVD(rank=RANK, regularise=0.5).update(table.slice(0, 800), batch_id="a")
    g.refresh()
    g.update(table.slice(800, 50))
    g.save(tmp_path / "g.svd")
    back = GraphSVD.load(tmp_path / "g.svd", settings=g.settings)
    assert back.pending == 50
    for one in (g, back):
        one.update(table.slice(0, 800), batch_id="a").update(table.slice(850))
    for name in ("s", "u", "v", "rotation", "item_scale"):
        assert np.array_equal(getattr(g.factors(), name), getattr(back.factors(), name)), name
    assert back.factors().items.to_pylist() == g.factors().items.to_pylist()


def test_a_state_of_other_options_is_refused(tmp_path):
    GraphSVD(rank=RANK).save(tmp_path / "g.svd")
    assert GraphSVD.load(tmp_path / "g.svd").settings.rank == RANK
    with pytest.raises(ValueError, match=r"other options: rank=8 there, rank=9 here"):
        GraphSVD.load(tmp_path / "g.svd", settings=GraphSettings(rank=9))


def test_a_replayed_batch_is_said_and_a_refused_one_changes_nothing(caplog):
    g = GraphSVD(rank=2).update({"user": [1], "item": [1]}, batch_id="x")
    with caplog.at_level(logging.WARNING, logger="streamsvd"):
        g.update({"user": [1], "item": [1]}, batch_id="x")
    assert "batch 'x' went in before and was left out" in caplog.text
    before = g.state_
    with pytest.raises(ValueError, match=r"the batch after 1 rows, row 0: adds the edge"):
        g.update({"user": [1], "item": [1]})
    assert g.state_ is before


def test_graphs_that_allow_no_factors_are_refused():
    with pytest.raises(ValueError, match=r"no edges after 0 rows"):
        GraphSVD(rank=2).factors()
    g = GraphSVD(rank=3, regularise=0.5).update({"user": [1, 2, 2], "item": [1, 1, 2]})
    with pytest.raises(
        ValueError, match=r"rank=3 is larger than the graph allows: 2 users and 2 items have edges; write rank=2"
    ):
        g.factors()
    assert GraphSVD(rank=2, regularise=0.5).update({"user": [1, 2, 2], "item": [1, 1, 2]}).factors().rank == 2
    for wrong in ({"rank": 0}, {"regularise": -1.0}, {"normalise": "rows"}, {"energy": 1.0}, {"components": "big"}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            GraphSVD(**wrong)


def test_rank_5_of_a_large_graph_warns_and_a_small_one_does_not():
    large = {"user": np.arange(1100), "item": np.arange(1100)}
    with pytest.warns(UserWarning, match=r"rank=5 is too small"):
        GraphSVD(rank=5, regularise=0.5).update(large).factors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GraphSVD(rank=5, regularise=0.5).update(graph()).factors()


def test_participation_counts_the_rows_that_carry_a_vector():
    v = np.zeros((50, 3), np.float32)
    v[:10, 0], v[0, 1] = 1 / np.sqrt(10), 1
    assert np.allclose(model.participation(v), [10, 1, 0])


def test_alignment_finds_the_rotation_between_two_bases_and_how_far_they_are_apart():
    rng = np.random.default_rng(0)
    v = np.linalg.qr(rng.standard_normal((40, 5)))[0]
    Q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    rotation, distance = model.alignment(v, v @ Q)
    assert np.allclose(rotation, Q)
    assert distance < 1e-7
    other = np.linalg.qr(rng.standard_normal((40, 5)))[0]
    rotation, distance = model.alignment(v, other)
    assert np.isclose(distance, np.linalg.norm(v @ rotation - other) / np.sqrt(5))


def test_rotated_factors_stand_for_the_same_matrix():
    f = GraphSVD(rank=RANK, regularise=0.5).update(graph()).factors()
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((RANK, RANK)))[0]
    turned = replace(f, u=f.u @ Q.astype(np.float32), v=f.v @ Q.astype(np.float32), rotation=Q)
    assert np.allclose(turned.u_mul_s @ turned.vt, f.u_mul_s @ f.vt, atol=1e-6)
    assert np.allclose(turned.v_mul_s @ turned.ut, f.v_mul_s @ f.ut, atol=1e-6)
