"""``map`` on a cluster, in order, tried again where a worker dies: for shards of tables, and for cameras, which have nothing to merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def ray_map(
    function: Callable[[Any], Any], items: Iterable[Any], /, *, num_cpus: float = 1, num_gpus: float = 0
) -> list[Any]:
    """Return ``[function(item) for item in items]``, each a Ray task with one BLAS thread.

    Parameters
    ----------
    function, items
        Both travel to the workers; files must lie where all workers see them.
    num_cpus, num_gpus : of each task (``functools.partial(ray_map, num_cpus=4)`` where only a function can be passed)

    Raises
    ------
    ImportError
        Ray is not installed.
    """
    from streamsvd.engines.ray import RETRIES, imported

    ray = imported()
    resources = {"num_cpus": num_cpus, **({"num_gpus": num_gpus} if num_gpus else {})}
    task = ray.remote(_done).options(max_retries=RETRIES, **resources)
    return ray.get([task.remote(function, item) for item in items])


def spark_map(function: Callable[[Any], Any], items: Iterable[Any], /, *, session: Any = None) -> list[Any]:
    """Return ``[function(item) for item in items]``, each a Spark task (a classic session; Spark Connect has no such tasks).

    Parameters
    ----------
    function, items
        As for `ray_map`.
    session : SparkSession, optional
        That which is active, by default.

    Raises
    ------
    ImportError, RuntimeError
        Spark is missing, or there is no session.
    """
    from streamsvd.engines.spark import active

    items = list(items)
    spark = active(session)
    return spark.sparkContext.parallelize(items, max(1, len(items))).map(lambda item: _done(function, item)).collect()


def _done(function: Callable[[Any], Any], item: Any) -> Any:
    from streamsvd.arrays import one_thread

    with one_thread():
        return function(item)
