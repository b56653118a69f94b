"""Ray: the bits of the local engine on two workers, whatever is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_rows import SCRATCH, Deadly, bits, tables

import streamsvd as ss
from streams import Truth
from streamsvd.engines import ray as engine
from streamsvd.engines.driver import PartitionError
from streamsvd.engines.local import run_local
from streamsvd.engines.ray_streams import fit_ray_streams
from streamsvd.engines.tasks import ray_map
from streamsvd.pipelines.ctr.shards import compress_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("default"),  # Ray's own
]
OPTIONS = {"rank": 3, "kind": "truncated", "kept": 5, "fan_in": 4}
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH, str(scratch))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        import ray.data

        with engine.connected(num_cpus=2, object_store_memory=200 << 20):
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield scratch


def dataset(parts=None):
    return ray.data.from_arrow(tables() if parts is None else parts)


def test_the_bits_are_those_of_the_local_engine_and_the_certificate_holds(cluster):
    outcome = engine.run_ray(dataset(), **OPTIONS)
    assert bits(outcome) == bits(run_local(tables(), **OPTIONS))
    truth = Truth(np.concatenate([np.stack([c.to_numpy() for c in t.columns], axis=1) for t in tables()]))
    lower, upper = outcome.state.factors().bound.sigma
    assert (lower <= truth.s[:3] + 1e-9).all()
    assert (truth.s[:3] <= upper + 1e-9).all()


def test_a_worker_that_is_killed_changes_no_bit(cluster, monkeypatch):
    monkeypatch.setattr("streamsvd.engines.driver.Job", Deadly)
    (cluster / "killed").unlink(missing_ok=True)
    outcome = engine.run_ray(dataset(), **OPTIONS)
    assert (cluster / "killed").exists()
    assert outcome.state.rows == sum(t.num_rows for t in tables())
    assert bits(outcome) == bits(run_local_plain())


def run_local_plain():
    with pytest.MonkeyPatch.context() as patch:
        from streamsvd.engines.job import Job

        patch.setattr("streamsvd.engines.driver.Job", Job)
        return run_local(tables(), **OPTIONS)


def test_a_partition_that_fails_is_named_kept_apart_and_tried_again(cluster, tmp_path):
    good = tables()
    bad = list(good)
    bad[4] = bad[4].set_column(1, "c1", pa.array(np.where(np.arange(500) == 7, np.nan, 1.0)))
    path = tmp_path / "run.svd"
    with pytest.raises(PartitionError, match=r"partition 4: .*row 7 .*column 'c1'") as caught:
        engine.fit_ray(dataset(bad), checkpoint=path, **OPTIONS)
    assert ss.load(path).rows == caught.value.state.rows == sum(t.num_rows for t in good) - 500
    assert len(list((tmp_path / "run.svd.parts").iterdir())) == len(good) - 1
    again = engine.run_ray(dataset(good), checkpoint=path, **OPTIONS)
    assert bits(again) == bits(run_local(good, **OPTIONS))


def test_files_are_partitions_that_workers_read(cluster, tmp_path):
    for number, table in enumerate(tables()):
        pq.write_table(table, tmp_path / f"{number:02d}.parquet")
    outcome = engine.run_ray(str(tmp_path / "*.parquet"), **OPTIONS)
    assert bits(outcome) == bits(run_local(tables(), **OPTIONS))


def test_transform_gives_what_transform_gives(cluster):
    factors = ss.fit(tables(), rank=2)
    scores = engine.transform_ray(factors, dataset(), ids="c0", residual=True)
    here = pa.concat_tables([ss.transform(factors, t, ids="c0", residual=True).read_all() for t in tables()])
    there = pa.concat_tables(ray.get(scores.to_arrow_refs())).cast(here.schema)
    order = np.argsort(there.column("c0").to_numpy()), np.argsort(here.column("c0").to_numpy())
    np.testing.assert_array_equal(
        there.column("residual").to_numpy()[order[0]], here.column("residual").to_numpy()[order[1]]
    )


def test_an_actor_that_is_killed_goes_on_from_its_checkpoint(cluster, tmp_path):
    sources = {}
    rng = np.random.default_rng(3)
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
        for number in range(150):
            np.save(tmp_path / name / f"{number:03d}.npy", rng.standard_normal((200, 60)))
        sources[name] = str(tmp_path / name)
    options = {"rank": 3, "kind": "truncated", "every": 2000}
    killed: list[int] = []

    def killer():
        while not killed:
            time.sleep(0.02)
            lock = tmp_path / "out" / "west.svd.lock"
            if (tmp_path / "out" / "west.svd").exists() and lock.exists() and (pid := lock.read_text().strip()):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    models = fit_ray_streams(sources, folder=tmp_path / "out", merge=False, **options)
    thread.join(5)
    assert killed
    for name, source in sources.items():
        alone = ss.fit(source, rank=3, kind="truncated")
        assert models[name].rows == 30_000
        assert models[name].vt.tobytes() == alone.vt.tobytes()


def test_tasks_come_back_in_order_though_a_worker_dies(cluster, tmp_path):
    mark = tmp_path / "died"

    def work(item):
        if item == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    assert ray_map(work, range(6)) == [0, 1, 4, 9, 16, 25]
    assert mark.exists()


def test_shards_of_tables_on_workers_give_the_bits_of_one_process(cluster, tmp_path):
    shards, counts = {}, {"f": pa.table({"id": np.arange(300), "count": np.arange(300) % 9})}
    for k in range(3):
        ids = np.arange(100 * k, 100 * k + 100)
        rows = np.random.default_rng(k).standard_normal((100, 6)).astype(np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
        shards[f"s{k}"] = str(tmp_path / f"s{k}.parquet")
        pq.write_table(pa.table({"field": ["f"] * 100, "id": ids, "vector": vectors}), shards[f"s{k}"])
    mine = compress_shards(shards, counts, rank=2, out=tmp_path / "mine")
    theirs = compress_shards(shards, counts, rank=2, out=tmp_path / "theirs", mapper=ray_map)
    for name, one in mine.items():
        assert one["f"].projection.tobytes() == theirs[name]["f"].projection.tobytes()
        assert one["f"].table.tobytes() == theirs[name]["f"].table.tobytes()


def test_no_cluster_at_the_address_says_how_to_start_one(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match="ray start --head"), engine.connected("ray-that-is-not-there:1"):
        pass
