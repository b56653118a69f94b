"""The edge store: operations in their order, batches whole or not at all, replays left out, ids that grow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.pipelines.graph.store import EdgeStore, update

POLICIES = ("sum", "max", "ignore")
Operation = tuple[int, int, bool, int]
OPERATIONS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans(), st.integers(1, 5)), min_size=1, max_size=40
)


def edges_of(store: EdgeStore) -> dict[tuple[object, object], float]:
    rows = np.repeat(np.arange(store.shape[0]), np.diff(store.indptr))
    users, items = store.users.to_pylist(), store.items.to_pylist()
    return {(users[u], items[i]): float(w) for u, i, w in zip(rows, store.indices, store.weights, strict=True)}


def played(operations: list[Operation], policy: str) -> tuple[dict[tuple[int, int], float], list[Operation]]:
    """Carry operations out one by one on a dict, leaving out removals of what is not there."""
    truth: dict[tuple[int, int], float] = {}
    kept = []
    for u, i, remove, w in operations:
        if remove and (u, i) not in truth:
            continue
        kept.append((u, i, remove, w))
        if remove:
            del truth[u, i]
        elif (u, i) not in truth:
            truth[u, i] = float(w)
        elif policy == "sum":
            truth[u, i] += w
        elif policy == "max":
            truth[u, i] = max(truth[u, i], w)
    return truth, kept


def table(operations: list[Operation], named: bool = False) -> pa.Table:
    u, i, remove, w = (list(column) for column in zip(*operations, strict=True)) if operations else ([], [], [], [])
    users = [f"u{x}" for x in u] if named else u
    ids = pa.array(users, pa.string() if named else pa.int32())
    ops = pa.array(["remove" if r else "add" for r in remove], pa.string())
    return pa.table({"user": ids, "item": pa.array(i, pa.int64()), "op": ops, "weight": pa.array(w, pa.float64())})


@given(operations=OPERATIONS, cuts=st.lists(st.integers(0, 40), max_size=4), policy=st.sampled_from(POLICIES))
def test_any_cut_into_batches_ends_at_the_same_edges(operations, cuts, policy):
    truth, kept = played(operations, policy)
    store, bounds = EdgeStore(), sorted({0, len(kept), *(c for c in cuts if c < len(kept))})
    for a, b in pairwise(bounds):
        store = update(store, table(kept[a:b]), duplicates=policy)
    if kept:
        assert edges_of(store) == truth
        users, items = store.degrees()
        assert users.sum() == items.sum() == sum(truth.values())
        assert all(np.all(np.diff(row) > 0) for row in np.split(store.indices, store.indptr[1:-1]))


@given(operations=OPERATIONS)
def test_timestamps_order_the_operations_of_a_batch(operations):
    truth, kept = played(operations, "sum")
    if not kept:
        return
    shuffled = np.random.default_rng(0).permutation(len(kept))
    batch = table(kept).append_column("timestamp", pa.array(np.arange(len(kept)))).take(pa.array(shuffled))
    assert edges_of(update(EdgeStore(), batch, duplicates="sum")) == truth


def test_a_string_id_and_its_dictionary_are_the_same():
    plain = pa.table({"user": ["a", "b"], "item": ["x", "y"]})
    coded = pa.table({name: plain[name].dictionary_encode() for name in plain.column_names})
    store = update(update(EdgeStore(), plain), coded, duplicates="ignore")
    assert edges_of(store) == {("a", "x"): 1.0, ("b", "y"): 1.0}


def test_a_replayed_batch_is_left_out_and_other_rows_under_its_id_are_refused():
    once = update(EdgeStore(), {"user": [1, 2], "item": [3, 4]}, batch_id="b1")
    assert update(once, {"user": [1, 2], "item": [3, 4]}, batch_id="b1") is once
    with pytest.raises(ValueError, match=r"batch 'b1' went in before with other rows"):
        update(once, {"user": [1, 2], "item": [3, 5]}, batch_id="b1")


def test_an_edge_added_and_removed_leaves_its_ids_and_no_edge():
    batch = {"user": [1, 1], "item": [2, 2], "op": [1, -1]}
    store = update(EdgeStore(), batch)
    assert store.edges == 0
    assert store.shape == (1, 1)


BAD = {
    "null user": ({"user": pa.array([1, None]), "item": [1, 2]}, r"batch 'b', row 1: the user id is null"),
    "negative weight": ({"user": [1, 2], "item": [1, 2], "weight": [1.0, -2.0]}, r"row 1: the weight is -2.0"),
    "infinite weight": ({"user": [1], "item": [1], "weight": [float("inf")]}, r"row 0: the weight is inf"),
    "null weight": ({"user": [1], "item": [1], "weight": pa.array([None], pa.float32())}, r"row 0: the weight is nan"),
    "unknown edge": (
        {"user": [1, 9], "item": [5, 9], "op": [1, -1]},
        r"row 1: removes the edge \(9, 9\), which is not there",
    ),
    "unknown edge of known nodes": (
        {"user": [1, 2], "item": [8, 7], "op": ["add", "del"]},
        r"row 1: removes the edge \(2, 7\)",
    ),
    "duplicate": ({"user": [3, 1], "item": [3, 7]}, r"row 1: adds the edge \(1, 7\), which is there already"),
    "duplicate within": ({"user": [3, 3], "item": [3, 3]}, r"row 1: adds the edge \(3, 3\)"),
    "unknown op": ({"user": [1], "item": [1], "op": ["upsert"]}, r"row 0: op is 'upsert'; expected 'add' or 'remove'"),
    "huge id": ({"user": pa.array([2**64 - 1], pa.uint64()), "item": [1]}, r"does not fit into int64"),
    "no item": ({"user": [1]}, r"lacks item"),
    "ragged": ({"user": [1, 2], "item": [1]}, r"batch 'b' cannot be read as columns"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_named_and_changes_nothing(name):
    batch, said = BAD[name]
    before = update(EdgeStore(), {"user": [1, 2], "item": [7, 8]})
    kept = edges_of(before)
    with pytest.raises(ValueError, match=said):
        update(before, batch, batch_id="b")
    assert edges_of(before) == kept
    assert before.shape == (2, 2)
    assert not before.batches


def test_ids_of_another_kind_than_before_are_refused():
    before = update(EdgeStore(), {"user": [1], "item": [7]})
    with pytest.raises(TypeError, match=r"user ids are of type string, and those before were int64"):
        update(before, {"user": ["a"], "item": [7]})
    with pytest.raises(TypeError, match=r"user ids are of type double"):
        update(before, {"user": [1.5], "item": [7]})


def test_an_edge_costs_eight_bytes_beside_the_ids_and_rows():
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 200 * 1000, 20_000))
    store = update(EdgeStore(), {"user": keys // 1000, "item": keys % 1000})
    assert store.nbytes == 8 * store.edges + 8 * 201 + store.users.nbytes + store.items.nbytes
