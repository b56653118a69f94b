"""Spark: two executors give the bits of the local engine for the same partitions, whatever is killed in the middle."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_rows import SCRATCH, DeadlyToExecutors, bits, tables

import streamsvd as ss
from streamsvd.engines import spark as engine
from streamsvd.engines.driver import PartitionError
from streamsvd.engines.local import run_local
from streamsvd.engines.tasks import spark_map

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("default"),  # Spark's own
]
OPTIONS = {"rank": 3, "kind": "truncated", "kept": 5, "fan_in": 4}
pyspark = pytest.importorskip("pyspark")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH, str(scratch))
        patch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        local = {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
        }
        with engine.connected("local-cluster[2,1,1024]", **local) as session:
            session.sparkContext.setLogLevel("OFF")
            yield session, scratch


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for number, table in enumerate(tables()):
        pq.write_table(table, folder / f"{number:02d}.parquet")
    return folder


def frame(session, parts=None):
    """A frame whose partitions are these tables."""
    parts = tables()[:6] if parts is None else parts
    whole = pa.concat_tables([t.append_column("part", pa.array(np.full(t.num_rows, i))) for i, t in enumerate(parts)])
    whole = whole.append_column("row", pa.array(np.arange(whole.num_rows)))
    shuffled = session.createDataFrame(whole).repartitionByRange(len(parts), "part").sortWithinPartitions("row")
    return shuffled.drop("part", "row")


def test_files_as_partitions_give_the_bits_of_the_local_engine(session, files):
    outcome = engine.run_spark(str(files), **OPTIONS)
    assert bits(outcome) == bits(run_local(tables(), **OPTIONS))


def test_a_frame_gives_the_same_bits_again_and_the_true_values(session):
    first, again = (engine.run_spark(frame(session[0]), **OPTIONS) for _ in range(2))
    assert bits(first) == bits(again)
    alone = ss.fit(tables()[:6], rank=3)
    lower, upper = first.state.factors().bound.sigma
    assert (lower <= alone.s + 1e-9).all()
    assert (alone.s <= upper + 1e-9).all()


def test_an_executor_that_is_killed_changes_no_bit(session, files, monkeypatch):
    expected = bits(run_local(tables(), **OPTIONS))
    monkeypatch.setattr("streamsvd.engines.driver.Job", DeadlyToExecutors)
    note = session[1] / "killed"
    note.unlink(missing_ok=True)
    outcome = engine.run_spark(str(files), **OPTIONS)
    assert note.exists()
    assert bits(outcome) == expected


def test_a_partition_that_fails_is_named_and_the_others_are_kept(session, tmp_path):
    bad = tables()[:6]
    bad[4] = bad[4].set_column(1, "c1", pa.array(np.where(np.arange(500) == 7, np.nan, 1.0)))
    path = tmp_path / "run.svd"
    with pytest.raises(PartitionError, match=r"partition \d+: .*column 'c1'") as caught:
        engine.fit_spark(frame(session[0], bad), checkpoint=path, **OPTIONS)
    assert ss.load(path).rows == caught.value.state.rows > 1000


def test_transform_gives_what_transform_gives(session):
    factors = ss.fit(tables(), rank=2)
    scores = engine.transform_spark(factors, frame(session[0]), ids="c0", residual=True).orderBy("c0").toArrow()
    here = pa.concat_tables(
        [ss.transform(factors, t, ids="c0", residual=True).read_all() for t in tables()[:6]]
    ).sort_by("c0")
    np.testing.assert_allclose(scores.column("residual").to_numpy(), here.column("residual").to_numpy(), rtol=1e-9)
    np.testing.assert_allclose(scores.column("scores").to_pylist(), here.column("scores").to_pylist(), rtol=1e-9)


def test_without_java_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pyspark.sql.SparkSession, "getActiveSession", staticmethod(lambda: None))
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with (
        pytest.raises(
            RuntimeError, match="Spark needs a Java runtime, and JAVA_HOME=/nowhere holds none; install version 17"
        ),
        engine.connected(),
    ):
        pass


def test_tasks_come_back_in_order(session):
    assert spark_map(lambda item: item * item, range(6)) == [0, 1, 4, 9, 16, 25]
    assert spark_map(str, [], session=session[0]) == []
