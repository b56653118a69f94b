"""What ``streamsvd fit --engine`` does: connect, or start a local cluster; fold each file as a partition; stop what was started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from streamsvd.flow.fold import Outcome

Engine = Literal["ray", "spark"]
LOCAL = ("every", "select")  # options that mean something else here, or are passed by themselves


def run_files(
    files: Sequence[str],
    /,
    *,
    engine: Engine,
    address: str | None = None,
    select: Sequence[str] | None = None,
    on_event: Callable[[Any], Any] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Outcome:
    """Fold files on an engine, and return what `streamsvd.flow.fold.run` returns.

    Parameters
    ----------
    files : paths, folders, patterns; each file is a partition, read by the worker, so all workers must see it
    engine : {"ray", "spark"}
    address : str, optional
        Of a cluster ("auto", "ray://host:10001"; "spark://host:7077", "local[4]"); a local one is started otherwise, and stopped.
    options
        Those of `streamsvd.fit`; ``every`` has no meaning, since each partition is kept as soon as it is folded.

    Raises
    ------
    ImportError, RuntimeError, ConnectionError
        The engine is not installed, has no Java, or no cluster answers; the message says what to do.
    """
    options = {name: value for name, value in options.items() if name not in LOCAL}
    asked = {**options, "select": select, "on_event": on_event, "progress": progress}
    if engine == "ray":
        from streamsvd.engines import ray

        with ray.connected(address):
            return ray.run_ray(list(files), **asked)
    if engine == "spark":
        from streamsvd.engines import spark

        with spark.connected(address):
            return spark.run_spark(list(files), **asked)
    msg = f"engine={engine!r} arrived; expected 'ray' or 'spark' (torch.distributed: streamsvd.engines.ranks)"
    raise ValueError(msg)
