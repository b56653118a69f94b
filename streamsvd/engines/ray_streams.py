"""Ray actors for streams that do not end: each folds its own stream with a checkpoint, and goes on from it when it is killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamsvd.engines.ray import imported


class Stream:
    """What an actor runs: `streamsvd.fit` on one source, resumed by Ray after whatever ends it."""

    def __init__(self, source: Any, checkpoint: str, options: dict[str, Any]) -> None:
        self._source, self._checkpoint, self._options = source, checkpoint, options

    def fold(self) -> int:
        """Fold the source to its end, from the checkpoint on where there is one, and return the rows."""
        from streamsvd.arrays import one_thread
        from streamsvd.flow.fold import run

        with one_thread():
            return run(self._source, checkpoint=self._checkpoint, progress=False, **self._options).state.rows


def fit_ray_streams(
    sources: Mapping[str, Any],
    /,
    *,
    rank: int,
    folder: Any,
    num_cpus: float = 1,
    num_gpus: float = 0,
    merge: bool = True,
    **options: Any,
) -> Any:
    """Fold several streams, one actor each, and merge their states in the order of their names.

    Parameters
    ----------
    sources : mapping of names to sources
        Each something that can be read again from a place on: files, a folder, `streamsvd.Follow` (a camera, a log), anything that
        `streamsvd.fit` resumes. It travels to the actor.
    rank : int
    folder : path
        Where each stream keeps its checkpoint, ``NAME.svd``; all workers must see it.
    num_cpus, num_gpus : of each actor
    merge : bool
        One model of all streams, or a dict of models by name.
    options
        As in `streamsvd.fit`, but ``checkpoint``.

    Returns
    -------
    factors : Factors, or dict of Factors by name

    Notes
    -----
    An actor that dies is started again by Ray and goes on from its checkpoint, which holds state and place in one file: every row counts
    once, and the result has the same bits. Streams of `Follow` end when `Follow` does; meanwhile any process can read the checkpoints
    (`streamsvd.load`, ``streamsvd merge``).
    """
    ray = imported()
    place = Path(folder).absolute()
    place.mkdir(exist_ok=True)
    resources = {"num_cpus": num_cpus, **({"num_gpus": num_gpus} if num_gpus else {})}
    actor = ray.remote(Stream).options(max_restarts=-1, max_task_retries=-1, **resources)
    asked = {"rank": rank, **options}
    actors = {name: actor.remote(sources[name], str(place / f"{name}.svd"), asked) for name in sorted(sources)}
    ray.get([one.fold.remote() for one in actors.values()])
    return _read({name: place / f"{name}.svd" for name in actors}, merge=merge)


def _read(files: dict[str, Path], *, merge: bool) -> Any:
    from streamsvd.flow.checkpoints import read_run

    runs = {name: read_run(file) for name, file in files.items()}
    if not merge:
        return {name: replace(run.state.factors(), names=run.names) for name, run in runs.items()}
    first, whole = next(iter(runs.values())), None
    for name, run in runs.items():
        if run.names != first.names:
            theirs, mine = list(run.names)[:5], list(first.names)[:5]
            msg = f"stream {name!r} has the columns {theirs}, and the first {mine}; write merge=False, or select=[...]"
            raise ValueError(msg)
        whole = run.state if whole is None else whole.merge(run.state)
    assert whole is not None
    return replace(whole.factors(), names=first.names)
