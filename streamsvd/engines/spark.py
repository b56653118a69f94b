"""Spark: partitions of a DataFrame become states on the executors (`mapInArrow`), which merge them in a tree, too."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

from streamsvd.engines.contract import Part, packed, unpacked
from streamsvd.engines.driver import drive, told
from streamsvd.engines.job import Job
from streamsvd.engines.local import tried
from streamsvd.engines.paths import file_key, paths_of
from streamsvd.engines.tree import groups
from streamsvd.flow.fold import Outcome

COLUMNS = "number long, part binary"


def fit_spark(frame: Any, /, *, rank: int, **options: Any) -> Any:
    """Fold a Spark DataFrame into factors with a certified error: one state for each partition, merged in a tree on the executors.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame, or a path, glob or list of paths, each file of which is then a partition that an executor reads
    rank : int
        Components to report.
    options
        ``select``, ``weights``, ``nulls``, ``nonfinite``, ``center``, ``kind``, ``kept``, ``shrink``, ``timestamps`` with a ``half_life``
        in time, ``dtype``, ``seed``, ``by``, ``checkpoint``, ``keep`` and ``on_event`` of `streamsvd.fit`, and: ``device``, where torch
        holds the state while a partition is folded; ``fan_in``, so many neighbours merged by one task (8).

    Returns
    -------
    factors : Factors, or dict of Factors with ``by``; as `streamsvd.fit`

    Raises
    ------
    PartitionError
        Partitions that were refused; its ``state``, and the checkpoint, hold all others.
    ImportError
        PySpark is not installed.

    Notes
    -----
    The same partitions give the same bits, whatever the schedule: retries and speculative copies are the same task. After a shuffle Spark
    does not keep the order of rows: ``sortWithinPartitions`` makes it the same each time. A partition is read in batches, so it may be
    larger than the memory. Spark's vectors are arrays after ``pyspark.ml.functions.vector_to_array``. With ``checkpoint`` each folded
    partition is kept in ``CHECKPOINT.parts`` under its number, which executors must be able to write to: the frame must then be cut the
    same way when the driver is started again. The driver receives the root of the tree and one number for each partition.
    """
    return told(run_spark(frame, rank=rank, **options))


def run_spark(frame: Any, /, *, progress: bool | None = None, **options: Any) -> Outcome:
    """Do what `fit_spark` does, and return the state and all that is known of the run; Spark shows its own progress."""
    del progress
    imported()
    from pyspark.storagelevel import StorageLevel  # pyright: ignore[reportMissingImports]

    files = not hasattr(frame, "mapInArrow")

    def work(job: Job) -> Any:
        rows = _listed(frame) if files else frame
        # Kept on the executors' disks, so that the tree can be planned without folding twice; what is lost is folded again.
        leaves = rows.mapInArrow(partial(_fold, job=job), COLUMNS).persist(StorageLevel.DISK_ONLY)
        try:
            numbers = sorted(row[0] for row in leaves.select("number").collect())
            nodes = leaves
            for _ in range(groups(len(numbers), job.fan_in)):
                nodes = _level(nodes, job)
            found = nodes.collect()
        finally:
            leaves.unpersist()
        return bytes(found[0]["part"]) if found else None

    return drive(work, files=files, **options)


def transform_spark(factors: Any, frame: Any, /, **options: Any) -> Any:
    """Return a DataFrame with the coordinates of all rows, computed partition by partition as it is read.

    Parameters
    ----------
    factors : Factors
    frame : pyspark.sql.DataFrame
    options
        ``select``, ``ids``, ``residual``, ``leverage``, ``nulls``, ``nonfinite`` of `streamsvd.transform`.

    Returns
    -------
    frame : pyspark.sql.DataFrame with the columns of `streamsvd.transform`
    """
    imported()
    from pyspark.sql.types import ArrayType, DoubleType, FloatType, StructField, StructType  # pyright: ignore[reportMissingImports]

    from streamsvd.arrays import dtype_name
    from streamsvd.flow.scores import listed_ids

    number = FloatType() if dtype_name(factors.vt) == "float32" else DoubleType()
    fields = [frame.schema[name] for name in listed_ids(options.get("ids"))]
    fields.append(StructField("scores", ArrayType(number)))
    fields += [StructField(name, DoubleType()) for name in ("residual", "leverage") if options.get(name)]
    return frame.mapInArrow(partial(_scores, factors=packed(factors), options=options), StructType(fields))


def imported() -> Any:
    """Return PySpark, or raise ImportError with what to install."""
    try:
        import pyspark  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        msg = f"this needs Spark, which is not installed ({error}): run pip install 'streamsvd[spark]', and install Java 17"
        raise ImportError(msg) from error
    return pyspark


def active(session: Any = None, /) -> Any:
    """Return a session, by default the one that is active.

    Raises
    ------
    ImportError, RuntimeError
        Spark is missing, or there is no session.
    """
    imported()
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    session = session or SparkSession.getActiveSession()
    if session is None:
        msg = "there is no Spark session; make one first: SparkSession.builder.getOrCreate()"
        raise RuntimeError(msg)
    return session


@contextmanager
def connected(address: str | None = None, **settings: str) -> Iterator[Any]:
    """Use the Spark session that is active, or one at an address (a local one by default), which is stopped after it.

    Raises
    ------
    RuntimeError
        There is no Java; the message says what to install.
    ConnectionError
        No cluster answers at the address; the message says how to start one.
    """
    imported()
    from pyspark.errors import PySparkException  # pyright: ignore[reportMissingImports]
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    present = SparkSession.getActiveSession()
    if present is not None:
        yield present
        return
    _check_java()
    builder: Any = SparkSession.builder.master(address or "local[*]").appName("streamsvd")
    if (address or "local").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # and not whichever python3 is first on the PATH
    for name, value in {"spark.ui.showConsoleProgress": "false", **settings}.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        cure = "start one with sbin/start-master.sh and start-worker.sh, or leave the address out for a local one"
        msg = f"no Spark cluster answers at {address!r} ({error}); {cure}"
        raise ConnectionError(msg) from error
    try:
        yield session
    finally:
        session.stop()


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which(f"{home}/bin/java" if home else "java") is None:
        where = f"JAVA_HOME={home} holds none" if home else "none is on the PATH"
        cure = "install version 17 (apt install openjdk-17-jre-headless, or brew install openjdk@17)"
        msg = f"Spark needs a Java runtime, and {where}; {cure}"
        raise RuntimeError(msg)


def _listed(source: Any) -> Any:
    """Return a frame with one path in each partition."""
    session, paths = active(), paths_of(source)
    numbered = session.range(len(paths), numPartitions=len(paths))
    return numbered.mapInArrow(partial(_paths, paths=paths), "path string")


def _paths(batches: Iterator[Any], paths: list[str]) -> Iterator[Any]:
    import pyarrow as pa

    for batch in batches:
        chosen = [paths[number.as_py()] for number in batch.column(0)]
        yield pa.record_batch({"path": pa.array(chosen, pa.string())})


def _fold(batches: Iterator[Any], job: Job) -> Iterator[Any]:
    from pyspark import TaskContext  # pyright: ignore[reportMissingImports]

    context: Any = TaskContext.get()
    number = context.partitionId()
    if job.files:
        for batch in batches:
            for path in batch.column(0):
                yield _row(number, tried(job, path.as_py(), number, _fold_file))
        return
    first = next(batches, None)
    yield _row(number, job.fold([] if first is None else chain([first], batches), number))
    with suppress(StopIteration):  # Spark wants its batches read to the end, which those of a failed partition are not
        while True:
            next(batches)


def _fold_file(job: Job, path: str, number: int) -> bytes:
    return job.fold(path, number, key=file_key(path))


def _level(nodes: Any, job: Job) -> Any:
    """Merge ``fan_in`` neighbours each, on the executors; a node is known by its place in its level."""
    from pyspark.sql import functions as F  # pyright: ignore[reportMissingImports]

    grouped = nodes.withColumn("node", F.expr(f"number div {job.fan_in}"))
    # No partial: Spark 4.3 looks for type hints, which one has in a way that it fails on.
    return grouped.groupBy("node").applyInArrow(lambda table: _merge(table, job), COLUMNS)


def _merge(table: Any, job: Job) -> Any:
    import pyarrow as pa

    table = table.sort_by("number")
    number = table.column("number")[0].as_py() // job.fan_in
    data = job.merge_parts(Part.from_bytes(part.as_py()) for part in table.column("part"))
    return pa.Table.from_batches([_row(number, data)])


def _row(number: int, data: bytes) -> Any:
    import pyarrow as pa

    return pa.record_batch({"number": pa.array([number], pa.int64()), "part": pa.array([data], pa.binary())})


def _scores(batches: Iterator[Any], factors: bytes, options: dict[str, Any]) -> Iterator[Any]:
    import pyarrow as pa

    from streamsvd.flow.scores import transform

    model = unpacked(factors)
    for batch in batches:
        if batch.num_rows:
            for scored in transform(model, batch, **options):
                place = scored.schema.get_field_index("scores")
                values = scored.column(place)  # a list of fixed size, which Spark has no type for
                plain = values.cast(pa.list_(values.type.value_type))
                yield scored.set_column(place, "scores", plain).replace_schema_metadata(None)
