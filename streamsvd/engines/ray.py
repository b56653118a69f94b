"""Ray: blocks of a Ray Data dataset become states where they lie, tasks merge them in a tree, the driver sees the root alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from streamsvd.engines.contract import Part, packed, unpacked
from streamsvd.engines.driver import drive, told
from streamsvd.engines.job import Job, content_key
from streamsvd.engines.local import tried
from streamsvd.engines.paths import file_key, paths_of
from streamsvd.engines.progress import counted
from streamsvd.engines.tree import Tree
from streamsvd.flow.fold import Outcome

RETRIES = 10  # of a merge whose worker or node is gone; what it needs is computed again where it is lost


def fit_ray(dataset: Any, /, *, rank: int, **options: Any) -> Any:
    """Fold a Ray Data dataset into factors with a certified error: one state for each block, merged in a tree by tasks.

    Parameters
    ----------
    dataset : ray.data.Dataset, or a path, glob or list of paths, each file of which is then a partition that a worker reads
    rank : int
        Components to report.
    options
        ``select``, ``weights``, ``nulls``, ``nonfinite``, ``center``, ``kind``, ``kept``, ``shrink``, ``timestamps`` with a ``half_life``
        in time, ``dtype``, ``seed``, ``by``, ``checkpoint``, ``keep``, ``on_event`` and ``progress`` of `streamsvd.fit`, and:
        ``num_cpus`` and ``num_gpus`` of a task that folds a block (with GPUs, states live there and only factors travel); ``device``, where
        torch holds the state ("cuda" with GPUs); ``fan_in``, so many neighbours merged by one task (8).

    Returns
    -------
    factors : Factors, or dict of Factors with ``by``; as `streamsvd.fit`

    Raises
    ------
    PartitionError
        Blocks that were refused; its ``state``, and the checkpoint, hold all others.
    ImportError
        Ray is not installed.

    Notes
    -----
    The same blocks give the same bits, whatever the schedule, and however often Ray runs a task again. A block of up to 128 MiB must fit
    into a worker beside the state. With ``checkpoint`` each folded block is kept in ``CHECKPOINT.parts`` under the digest of its rows
    until all are merged, which all workers must be able to write to; a driver that is started again folds only what is missing there.
    The driver receives the root of the tree, whose size does not depend on the rows. Empty blocks do not count as partitions.
    """
    return told(run_ray(dataset, rank=rank, **options))


def run_ray(
    dataset: Any,
    /,
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    device: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Outcome:
    """Do what `fit_ray` does, and return the state and all that is known of the run."""
    ray = imported()
    resources = {"num_cpus": num_cpus, **({"num_gpus": num_gpus} if num_gpus else {})}
    files = not hasattr(dataset, "map_batches")

    def work(job: Job) -> Any:
        task = ray.remote(_merge).options(max_retries=RETRIES)
        job_ref = ray.put(job)

        def merge(nodes: list[Any]) -> Any:
            return None, task.remote(job_ref, [node[0] for node in nodes], *(node[1] for node in nodes))

        tree, number = Tree(merge, job.fan_in), 0
        with counted(progress, "folding") as advance:
            for table, rows in _folded(dataset, job, resources):
                for row in range(rows):
                    tree.add(((number, row), table))
                    number += 1
                advance(rows)
            root = tree.root()
            return None if root is None else ray.get(merge([root])[1])

    return drive(work, device=device or ("cuda" if num_gpus else None), files=files, **options)


def transform_ray(factors: Any, dataset: Any, /, *, num_cpus: float = 1, **options: Any) -> Any:
    """Return a dataset with the coordinates of all rows, computed block by block as it is read.

    Parameters
    ----------
    factors : Factors
    dataset : ray.data.Dataset
    options
        ``select``, ``ids``, ``residual``, ``leverage``, ``nulls``, ``nonfinite`` of `streamsvd.transform`.

    Returns
    -------
    dataset : ray.data.Dataset with the columns of `streamsvd.transform`
    """
    imported()
    arguments = {"factors": packed(factors), "options": options}
    return dataset.map_batches(
        _scores, fn_kwargs=arguments, batch_format="pyarrow", batch_size=None, zero_copy_batch=True, num_cpus=num_cpus
    )


def imported() -> Any:
    """Return Ray, or raise ImportError with what to install."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        msg = f"this needs Ray, which is not installed ({error}): run pip install 'streamsvd[ray]'"
        raise ImportError(msg) from error
    return ray


@contextmanager
def connected(address: str | None = None, **options: Any) -> Iterator[Any]:
    """Use the cluster at an address, or a local one that is started for it and stopped after it; one that is connected stays.

    Raises
    ------
    ConnectionError
        No cluster answers there; the message says how to start one.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    local = {} if address is not None else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, **local, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        cure = "start one with: ray start --head --port=6379, or leave the address out for a local one"
        msg = f"no Ray cluster answers at {address!r} ({error}); {cure}"
        raise ConnectionError(msg) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _folded(dataset: Any, job: Job, resources: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """Yield references to tables with one part a row, in the order of the blocks."""
    import ray.data  # pyright: ignore[reportMissingImports]

    if job.files:
        import pyarrow as pa

        dataset = ray.data.from_arrow([pa.table({"path": [path]}) for path in paths_of(dataset)])
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        folded = dataset.map_batches(
            _fold_block, fn_args=(job,), batch_format="pyarrow", batch_size=None, zero_copy_batch=True, **resources
        )
        folded.context.execution_options.preserve_order = True
        for bundle in folded.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                yield entry.ref, entry.metadata.num_rows
    finally:
        options.preserve_order = before


def _fold_block(table: Any, job: Job) -> Any:
    import pyarrow as pa

    if job.files:
        path = table.column("path")[0].as_py()
        data = tried(job, path, 0, lambda job, path, number: job.fold(path, number, key=file_key(path)))
    else:
        data = job.fold(table, 0, key=None if job.folder is None else content_key(table))
    return pa.table({"part": pa.array([data], pa.large_binary())})


def _merge(job: Job, places: list[tuple[int, int] | None], *values: Any) -> bytes:
    """Merge nodes: bytes, or a row of a table whose part has yet to get its number."""

    def parts() -> Iterator[Part]:
        for place, value in zip(places, values, strict=True):
            if place is None:
                yield Part.from_bytes(value)
            else:
                yield numbered(Part.from_bytes(value.column("part")[place[1]].as_py()), place[0])

    return job.merge_parts(parts())


def numbered(part: Part, number: int, /) -> Part:
    """Return a single partition under its number, which only the driver knows."""
    return replace(part, first=number, failed={str(number): text for text in part.failed.values()})


def _scores(table: Any, *, factors: bytes, options: dict[str, Any]) -> Any:
    from streamsvd.flow.scores import transform

    return transform(unpacked(factors), table, **options).read_all()
