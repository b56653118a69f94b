"""The filter against its formula in float64, the top-k loop against sorting, and a graph whose best ranking is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.pipelines.graph import GraphSVD
from streamsvd.pipelines.graph import recommend as filters
from streamsvd.pipelines.graph.synthetic import power_law


@given(seed=st.integers(0, 10**6), n=st.integers(1, 200), k=st.integers(1, 12), levels=st.integers(1, 50))
def test_the_best_are_those_of_a_stable_sort(seed, n, k, levels):
    rng = np.random.default_rng(seed)
    left = rng.integers(0, levels, (4, 1)).astype(np.float32)
    right = rng.integers(-levels, levels, (1, n)).astype(np.float32)
    seen = np.sort(rng.choice(n, min(n, 3), replace=False)).astype(np.int32)
    given_ = filters.Histories(
        np.array([0, seen.size, seen.size, seen.size, seen.size]), seen, np.ones(seen.size, np.float32)
    )
    barred = rng.choice(n, n // 4, replace=False).astype(np.int32)
    columns, values = filters.best(left, right, given_, barred, k)
    scores = left @ right
    scores[:, barred] = -np.inf
    scores[0, seen] = -np.inf
    for r in range(4):
        order = np.argsort(-scores[r], kind="stable")[:k]
        order = order[np.isfinite(scores[r, order])]
        assert columns[r, : order.size].tolist() == order.tolist()
        assert np.array_equal(values[r, : order.size], scores[r, order])
        assert (columns[r, order.size :] == -1).all()


def test_blocks_do_not_change_the_ranking(monkeypatch):
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((50, 3), np.float32), rng.standard_normal((3, 90), np.float32)
    whole = filters.best(left, right, None, np.zeros(0, np.int32), 7)
    monkeypatch.setattr(filters, "BLOCK_BYTES", 4 * 90 * 8)
    assert np.array_equal(filters.best(left, right, None, np.zeros(0, np.int32), 7)[0], whole[0])


def test_scores_are_the_low_pass_filter():
    g = GraphSVD(rank=6, regularise=0.5).update(power_law(60, 40, 400, communities=4))
    f, top = g.factors(), g.recommend(k=40)
    A = g.state_.store.matrix().toarray().astype(np.float64)
    d = A.sum(axis=0)
    scale = np.sqrt(d + 0.5 * d.mean())
    V = f.v.astype(np.float64)
    truth = (A / scale) @ V @ (V * scale[:, None]).T
    rows, columns = g.state_.store.user_rows(top["user"]), g.state_.store.item_rows(top["item"])
    assert np.allclose(truth[rows, columns], top["score"], atol=1e-4 * np.abs(truth).max())
    assert not A[rows, columns].any()
    assert top.num_rows == (A == 0).sum()


def test_a_user_who_reads_one_kind_is_offered_the_rest_of_it():
    """Two kinds of items that no user mixes: the next items of a reader of one kind are of that kind, the most read first."""
    users, items = [], []
    for reader in range(12):
        kind, own = reader % 2, [0, 1, 2, 3] if reader % 3 else [0, 1, 2]
        users += [reader] * len(own)
        items += [10 * kind + j for j in own]
    g = GraphSVD(rank=2, regularise=0.5).update({"user": users, "item": items})
    new = g.recommend(histories={"a": [1], "b": [11], "c": [999], "d": []}, k=3)
    found = {user: [row["item"] for row in new.to_pylist() if row["user"] == user] for user in "abcd"}
    assert found == {"a": [0, 2, 3], "b": [10, 12, 13], "c": [], "d": []}
    again = g.recommend(histories={"a": [1]}, k=1, exclude_seen=False)
    assert again["item"].to_pylist()[0] in (0, 1, 2)


def test_a_history_as_dict_as_table_and_as_known_user_is_the_same():
    g = GraphSVD(rank=4, regularise=0.5).update(power_law(50, 30, 300, communities=4))
    user = g.state_.store.users[7].as_py()
    A = g.state_.store.matrix().toarray()
    items = [g.state_.store.items[int(j)].as_py() for j in np.flatnonzero(A[7])]
    known = g.recommend([user], k=5)
    for given_ in ({user: items}, {user: items[::-1] + items[:1]}, {"user": [user] * len(items), "item": items}):
        other = g.recommend(histories=given_, k=5)
        assert other["item"].to_pylist() == known["item"].to_pylist()
        assert np.allclose(other["score"], known["score"], rtol=1e-5)


def test_a_new_user_and_new_edges_are_served_before_the_next_refresh():
    g = GraphSVD(rank=4, regularise=0.5).update(power_law(50, 30, 300, communities=4))
    g.refresh()
    item = g.state_.store.items[0].as_py()
    g.update({"user": [10**6, 10**6], "item": [item, 10**6]})
    top = g.recommend([10**6], k=3)
    assert top.num_rows == 3
    assert item not in top["item"].to_pylist()
    assert top.schema.metadata == {b"version": b"1", b"pending": b"2"}


def test_what_cannot_be_recommended_is_said():
    g = GraphSVD(rank=2, regularise=0.5).update({"user": ["a", "b", "b"], "item": [1, 1, 2]})
    with pytest.raises(ValueError, match=r"1 of 2 users are not in the graph, the first is 'zoe'"):
        g.recommend(["a", "zoe"])
    with pytest.raises(ValueError, match=r"both users and histories"):
        g.recommend(["a"], histories={"b": [1]})
    with pytest.raises(ValueError, match=r"k=0 items"):
        g.recommend(k=0)
    with pytest.raises(TypeError, match=r"histories"):
        g.recommend(histories={"a": [1, "x"]})
    assert pa.types.is_string(g.recommend(["a"]).schema.field("user").type)
