"""``streamsvd graph svd | recommend | train | eval``: a thin face of `GraphSVD` and `LightGCL`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from streamsvd.pipelines.graph.settings import GraphSettings, TrainSettings
from streamsvd.settings import Flag, Json, Names
from streamsvd.terminal import UsageError, checked_folder, checked_target, print_json, usage

app = App(name="graph", help="Bipartite graphs: fresh factors, recommendations, LightGCL.", help_format="plaintext")


@app.command(sort_key=1)
def svd(
    edges: list[str],
    /,
    *,
    settings: GraphSettings = GraphSettings(),  # noqa: B008
    out: str,
    state: str | None = None,
    validation: str | None = None,
    every: int | None = None,
    json: Json = False,
) -> int:
    """Factor a graph of edges, or bring the factors of a state up to date.

    Parameters
    ----------
    edges
        Parquet, Arrow IPC or CSV files with user, item and optionally weight, op, timestamp; folders.
    out
        Folder for user_factors.parquet, item_factors.parquet, singular_values.parquet and manifest.json.
    state
        File that keeps the graph: read where it exists, written at the end. Batches that it has are left out.
    validation
        File of held-out edges, which choose the regularisation.
    every
        Also refresh and write the factors each time so many more rows came.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.graph.graphsvd import GraphSVD
    from streamsvd.pipelines.graph.io import edge_batches, edge_files, write_factors

    checked_folder(out)
    if state is not None and not Path(state).exists():
        checked_target(state, edges, option="state")
    if every is not None and every < 1:
        msg = f"--every {every} rows; expected at least 1, or leave it out"
        raise UsageError(msg)
    with usage():
        edge_files(edges)
        held = state is not None and Path(state).exists()
        graph = GraphSVD.load(state, settings=settings) if held and state is not None else GraphSVD(settings=settings)
        graph.validation = None if validation is None else _table(validation)
    began, known = time.perf_counter(), graph.state_.store.operations
    for name, batch in edge_batches(edges, rows=every or 1 << 20):
        graph.update(batch, batch_id=name)
        if every is not None and graph.pending >= every:
            write_factors(graph.refresh(), out)
    factors = graph.factors()
    write_factors(factors, out)
    if state is not None:
        graph.save(state)
    said = {**factors.info, "rows_read": graph.state_.store.operations - known, "out": out}
    said["seconds"] = time.perf_counter() - began
    return _say(
        said,
        json,
        (
            *("edges", "users", "items", "rank", "regularise", "regularise_because", "captured_energy", "energy"),
            *("version", "seconds", "out"),
        ),
    )


@app.command(sort_key=2)
def recommend(
    state: str,
    /,
    *,
    out: str,
    k: int = 20,
    users: Names = None,
    histories: str | None = None,
    seen: Flag = False,
    json: Json = False,
) -> int:
    """Write the best items of users, known or new, from the factors of a state; nothing is trained.

    Parameters
    ----------
    state
        File that `graph svd --state` wrote.
    out
        Parquet file to write: user, item, score.
    k
        Items for each user.
    users
        Ids of users in the graph; all by default.
    histories
        File of user, item of users who need not be in the graph.
    seen
        Offer items of the history again.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.graph.io import write_table

    target = checked_target(out, [state, *([] if histories is None else [histories])], suffixes=(".parquet",))
    graph = _graph(state)
    ids = None if users is None else _ids(users, graph.state_.store.users)
    given = None if histories is None else _table(histories)
    began = time.perf_counter()
    with usage(ValueError, TypeError):
        top = graph.recommend(ids, histories=given, k=k, exclude_seen=not seen)
    write_table(top, target)
    said = {"rows": top.num_rows, "version": int(top.schema.metadata[b"version"]), "pending": graph.pending, "out": out}
    return _say(said | {"seconds": time.perf_counter() - began}, json, ("rows", "version", "pending", "seconds", "out"))


@app.command(sort_key=3)
def train(
    edges: list[str],
    /,
    *,
    settings: TrainSettings = TrainSettings(),  # noqa: B008
    out: str,
    factors: str | None = None,
    validation: str | None = None,
    device: str = "cpu",
    json: Json = False,
) -> int:
    """Train LightGCL on a graph and its factors.

    Parameters
    ----------
    edges
        Files of user, item; folders.
    out
        Folder for user_embeddings.parquet, item_embeddings.parquet and training.json.
    factors
        Folder that `graph svd --out` wrote.
    validation
        File of held-out edges, for early stopping.
    device
        cpu, cuda, cuda:1.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.graph.io import read_factors
    from streamsvd.pipelines.graph.train import LightGCL

    checked_folder(out)
    began = time.perf_counter()
    table = _tables(edges)
    held_out = None if validation is None else _table(validation)
    with usage(FileNotFoundError):
        held = None if factors is None else read_factors(factors)
    model = LightGCL(settings=settings, device=device)
    model.fit(table, factors=held, validation=held_out, progress=False if json else None).save(out)
    said: dict[str, Any] = {"epochs": len(model.history_), "loss": model.history_[-1]["loss"]}
    if held_out is not None:
        said["recall@20"] = max(entry.get("recall@20", 0.0) for entry in model.history_)
    return _say(said | {"seconds": time.perf_counter() - began, "out": out}, json, ())


@app.command(name="eval", sort_key=4)
def evaluate(
    source: str,
    test: str,
    /,
    *,
    by: Literal["auto", "filter", "embeddings"] = "auto",
    train: Names = None,
    json: Json = False,
) -> int:
    """Score rankings on held-out edges: Recall and NDCG at 20 and 40, averaged over users.

    Parameters
    ----------
    source
        A state of `graph svd` (the training-free filter), or a folder of `graph train` (its embeddings).
    test
        File of held-out edges.
    by
        What source is; found out by default.
    train
        Files of training edges, whose items are left out; needed for a folder.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.graph import evaluate as judge

    held_out = _table(test)
    if by == "embeddings" or (by == "auto" and Path(source).is_dir()):
        if train is None:
            msg = f"{source} holds embeddings, and items of training edges are left out of rankings; add --train FILE"
            raise UsageError(msg)
        return _say(_embeddings(source, train).evaluate(held_out), json, ())
    return _say(judge.of_filter(_graph(source), held_out), json, ())


def _graph(state: str) -> Any:
    from streamsvd.pipelines.graph.graphsvd import GraphSVD

    with usage(FileNotFoundError, IsADirectoryError):
        return GraphSVD.load(state)


def _embeddings(folder: str, train: list[str]) -> Any:
    from streamsvd.pipelines.graph.train import LightGCL

    with usage(FileNotFoundError):
        return LightGCL.load(folder, _tables(train))


def _table(path: str) -> Any:
    return _tables([path])


def _tables(paths: list[str]) -> Any:
    import pyarrow as pa

    from streamsvd.pipelines.graph.io import edge_batches

    with usage():
        found = [batch for _, batch in edge_batches(paths)]
        if not found:
            msg = f"{', '.join(paths)} has no edges; expected at least one row of user, item"
            raise ValueError(msg)
        return pa.concat_tables(found, promote_options="default")


def _ids(words: list[str], known: Any) -> Any:
    import pyarrow as pa

    with usage():
        flat = [part for word in words for part in word.split(",")]
        if pa.types.is_string(known.type):
            return pa.array(flat)
        strange = [part for part in flat if not part.strip().lstrip("-").isdecimal()]
        if strange:
            msg = f"--users {strange[0]} is no integer, and the users of this graph are integers; write --users 3,14"
            raise ValueError(msg)
        return pa.array([int(part) for part in flat])


def _say(values: dict[str, Any], json: bool, names: tuple[str, ...]) -> int:
    if json:
        print_json(values)
        return 0
    for name in names or tuple(values):
        value = values[name]
        print(
            f"{name.replace('_', ' '):<22}{value:.4f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):<22}{value}"
        )
    return 0
