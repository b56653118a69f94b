"""Shards of a table give what the whole table gives, wherever their tasks run; ids of two shards and of none are refused."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ctr_tables import counts_table, table, vectors, write

from streamsvd.pipelines.ctr import compress_tables, open_compressed
from streamsvd.pipelines.ctr.shards import compress_shards

PARTS = {"item": vectors(900, 12), "user": vectors(500, 8, seed=1)}
COUNTS = {"item": np.arange(900) % 7, "user": 500 / np.arange(1, 501)}


def cut(tmp_path, *, overlap: int = 0, drop: int = 0) -> dict[str, str]:
    whole = table(PARTS, shuffle=3)
    edges = [0, 350, 351, len(whole)]
    return {
        f"s{k}": write(tmp_path / f"s{k}.parquet", whole.slice(a, b - a + overlap - (drop if k == 2 else 0)), group=100)
        for k, (a, b) in enumerate(itertools.pairwise(edges))
    }


def shipped(function, items):
    """Map as a cluster does: whatever travels is copied."""
    send = lambda x: pickle.loads(pickle.dumps(x))  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        return [send(one) for one in pool.map(lambda item: send(function)(send(item)), items)]


@pytest.mark.parametrize("mapper", [map, shipped])
@pytest.mark.parametrize("size", [{"rank": 3}, {"budget_bytes": 20_000}, {"energy": 0.9}])
def test_shards_give_the_projections_and_rows_of_the_whole(tmp_path, mapper, size) -> None:
    shards = compress_shards(cut(tmp_path), counts_table(COUNTS), out=tmp_path / "out", mapper=mapper, **size)
    whole = compress_tables(table(PARTS), counts_table(COUNTS), **size)
    for name in whole:
        ids = np.concatenate([np.asarray(one[name].ids) for one in shards.values() if name in one])
        rows = np.concatenate([np.asarray(one[name].table) for one in shards.values() if name in one])
        expected = whole[name]
        assert sorted(ids) == sorted(np.asarray(expected.ids))
        order = {int(i): k for k, i in enumerate(ids)}
        mine = rows[[order[int(i)] for i in np.asarray(expected.ids)]]
        for one in (shard for shard in shards.values() if name in shard):
            assert one[name].rank == expected.rank
            assert one[name].error == pytest.approx(expected.error, rel=1e-9)
            assert np.abs(one[name].projection - expected.projection).max() <= 1e-5
        assert np.abs(mine - np.asarray(expected.table)).max() <= 1e-4
    again = open_compressed(tmp_path / "out" / "s0")
    assert np.array_equal(again["user"].table, shards["s0"]["user"].table)


def test_an_id_in_two_shards_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="stand in more than one shard"):
        compress_shards(cut(tmp_path, overlap=40), counts_table(COUNTS), out=tmp_path / "out", rank=3)


def test_ids_of_no_shard_are_refused_or_counted(tmp_path) -> None:
    shards = cut(tmp_path, drop=50)
    with pytest.raises(ValueError, match="are in no shard"):
        compress_shards(shards, counts_table(COUNTS), out=tmp_path / "out", rank=3)
    found = compress_shards(shards, counts_table(COUNTS), out=tmp_path / "out", rank=3, ignore_unknown=True)
    lost = sum(int(one["ids"]) for one in found["s0"].unknown.values())
    assert 30 <= lost <= 50  # one item in seven has no counts


def test_counts_without_ids_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="have no ids"):
        compress_shards(cut(tmp_path), {"item": np.ones(900), "user": np.ones(500)}, out=tmp_path / "out", rank=3)


def test_counts_of_zero_are_refused(tmp_path) -> None:
    zero = {"item": np.zeros(900), "user": np.zeros(500)}
    with pytest.raises(ValueError, match="all counts are zero"):
        compress_shards(cut(tmp_path), counts_table(zero), out=tmp_path / "out", rank=3)
