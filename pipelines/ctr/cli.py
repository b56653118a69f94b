"""``streamsvd ctr train | counts | compress | eval | refresh``: a thin face of `compress_tables` and of the model to judge it by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cyclopts import App

from streamsvd.pipelines.ctr.settings import CompressSettings, TrainSettings
from streamsvd.settings import Flag, Json, Names
from streamsvd.terminal import UsageError, checked_folder, checked_target, print_json, usage

app = App(
    name="ctr",
    help="Embedding tables of click models, compressed by how often each id is looked up.",
    help_format="plaintext",
)


@app.command(sort_key=1)
def train(log: str, /, *, out: str, settings: TrainSettings = TrainSettings(), json: Json = False) -> int:  # noqa: B008
    """Train a small DeepFM on a click log, to judge compression by.

    Parameters
    ----------
    log
        Parquet file, folder or quoted pattern: a label of 0 or 1 and a column of ids for each field.
    out
        Folder for the model.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.ctr.training import train as trained

    checked_folder(out)
    began, losses = time.perf_counter(), []
    with usage():
        model, vocab = trained(log, **settings.options(), on_epoch=lambda _, loss: losses.append(loss))
    model.save(out, vocab)
    sizes = {"fields": len(vocab.sizes), "ids": sum(vocab.sizes.values())}
    return _say(
        {**sizes, "loss": losses[-1] if losses else None, "seconds": time.perf_counter() - began, "out": out}, json
    )


@app.command(sort_key=2)
def counts(
    log: str,
    /,
    *,
    fields: Names,
    out: str,
    timestamps: str | None = None,
    half_life: str | None = None,
    json: Json = False,
) -> int:
    """Count how often each id is looked up by a click log.

    Parameters
    ----------
    log
        Parquet file, folder or quoted pattern.
    fields
        Columns with ids: NAME,NAME or again --fields NAME.
    out
        Parquet file to write: field, id, count.
    timestamps
        Column with the time of each row.
    half_life
        A look-up that much older counts half: 7d, 12h.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.ctr.counts import as_table, count_ids

    target = checked_target(out, [log], suffixes=(".parquet",))
    with usage():
        found = as_table(count_ids(log, _names(fields), timestamps=timestamps, half_life=half_life))
        if found.num_rows == 0:
            msg = f"{log} has no ids in {', '.join(_names(fields))}: there is nothing to count; give a log with rows"
            raise ValueError(msg)
    import pyarrow.parquet as pq

    pq.write_table(found, target)
    return _say({"ids": found.num_rows, "out": out}, json)


@app.command(sort_key=3)
def compress(
    tables: str,
    /,
    *,
    settings: CompressSettings = CompressSettings(),  # noqa: B008
    out: str,
    counts: str | None = None,
    log: str | None = None,
    fields: Names = None,
    name: str = "",
    json: Json = False,
) -> int:
    """Compress embedding tables by how often each id is looked up.

    Parameters
    ----------
    tables
        Parquet or Arrow IPC of field, id, vector; .safetensors; or a folder that `ctr train` wrote.
    out
        Folder for the compressed tables; a run that was stopped goes on there.
    counts
        File of field, id, count.
    log
        Click log to count instead; with --fields, which are also the names of the tables.
    fields
        Columns of the log: NAME,NAME or again --fields NAME.
    name
        Which model the vectors are of; later statistics of another are refused.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.ctr.compress import compress_tables
    from streamsvd.pipelines.ctr.judging import table, write_page

    checked_folder(out)
    if (counts is None) == (log is None):
        msg = "look-ups come from --counts FILE or from --log FILE; give one of them"
        raise UsageError(msg)
    with usage():
        source, known, model = _tables_and_counts(tables, counts, log, fields, name)
        done = compress_tables(source, known, **settings.options(), model=model, out=out)
    write_page(Path(out) / "report.html", done)
    if json:
        print_json({**done.report(), "out": out})
    else:
        print(f"{table(done)}\nwrote {out} (version {done.version}, report.html)")
    return 0


@app.command(name="eval", sort_key=4)
def evaluate(
    model: str,
    test: str,
    /,
    *,
    compressed: str | None = None,
    log: str | None = None,
    out: str | None = None,
    json: Json = False,
) -> int:
    """Score a model on clicks, before and after compression.

    Parameters
    ----------
    model
        Folder that `ctr train` wrote.
    test
        Click log that it has not seen.
    compressed
        Folder that `ctr compress` wrote of this model.
    log
        Training log, to draw the curve of bytes against AUC.
    out
        HTML file for the report with the curve.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.ctr.compress import open_compressed
    from streamsvd.pipelines.ctr.deepfm import DeepFM
    from streamsvd.pipelines.ctr.judging import compare, curve, write_page
    from streamsvd.pipelines.ctr.training import evaluate as judged

    if compressed is None and (log is not None or out is not None):
        msg = "--log and --out are for the report of a compressed model; add --compressed FOLDER, or leave them out"
        raise UsageError(msg)
    target = None if out is None else checked_target(out, [test], suffixes=(".html",))
    with usage():
        net, vocab, print_ = DeepFM.load(model)
        index, labels = vocab.encode(test)
        done = None if compressed is None else open_compressed(compressed)
    if done is None:
        return _say(judged(net, index, labels), json)
    if done.moments.model not in ("", print_):
        msg = (
            f"{compressed} was compressed from model {done.moments.model}, "
            f"and {model} is model {print_}; compress this one"
        )
        raise UsageError(msg)
    scores = compare(net, done, index, labels)
    points = [] if log is None else curve(net, vocab.counts(log), index, labels)
    if target is not None:
        write_page(target, done, points=points, scores=scores)
    if json:
        print_json({**scores, "curve": points})
    else:
        _print_scores(scores)
    return 0


@app.command(sort_key=5)
def refresh(
    compressed: str,
    tables: str,
    /,
    *,
    counts: str | None = None,
    log: str | None = None,
    fields: Names = None,
    new_rows: str | None = None,
    fade: float = 1.0,
    max_angle: float = 20.0,
    max_lost: float = 0.01,
    ignore_unknown: Flag = False,
    json: Json = False,
) -> int:
    """Bring compressed tables up to date with later look-ups and new ids.

    Parameters
    ----------
    compressed
        Folder that `ctr compress` wrote.
    tables
        The dense tables that it was made of.
    counts
        Look-ups since: file of field, id, count.
    log
        Click log since, to count instead.
    fields
        Columns of the log.
    new_rows
        Tables of ids that are new.
    fade
        Share of the old look-ups that still counts.
    max_angle
        Degrees by which a basis may turn before all are made anew.
    max_lost
        Share of the energy that the bases in force may lose before that.
    ignore_unknown
        Leave out counts of ids without a row.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.ctr.compress import open_compressed
    from streamsvd.pipelines.ctr.refreshing import refresh as refreshed

    if (counts is None) == (log is None):
        msg = "look-ups since come from --counts FILE or from --log FILE; give one of them"
        raise UsageError(msg)
    with usage():
        old = open_compressed(compressed)
        source, known, model = _tables_and_counts(tables, counts, log, fields, old.moments.model)
        thresholds = {
            "fade": fade,
            "max_angle": max_angle,
            "max_lost": max_lost,
            "ignore_unknown": bool(ignore_unknown),
        }
        found = refreshed(old, source, known, new_rows=new_rows, model=model, **thresholds)
    moves = {k: {"angle": m.angle, "lost": m.lost} for k, m in found.moves.items()}
    said = {
        "version": found.result.version,
        "renewed": found.renewed,
        "new_ids": dict(found.new_ids),
        "error": found.result.error,
        "moves": moves,
    }
    return _say(said, json)


def _tables_and_counts(
    tables: str, counts: str | None, log: str | None, fields: list[str] | None, name: str
) -> tuple[Any, Any, str]:
    """Return tables, counts and the name of the model; of a trained model, both by row numbers."""
    from streamsvd.pipelines.ctr.counts import count_ids

    if Path(tables).is_dir() and (Path(tables) / "model.svd").exists():
        from streamsvd.pipelines.ctr.deepfm import DeepFM

        if log is None:
            msg = (
                "the rows of a trained model are counted by its vocabulary, so "
                "from a click log; give --log instead of --counts"
            )
            raise UsageError(msg)
        net, vocab, fingerprint = DeepFM.load(tables)
        return net.tables(), vocab.counts(log), fingerprint
    if log is not None:
        if not fields:
            msg = "--log is counted by columns; name them with --fields NAME,NAME"
            raise UsageError(msg)
        return tables, count_ids(log, _names(fields)), name
    return tables, counts, name


def _names(fields: list[str] | None) -> list[str]:
    return [name for item in fields or [] for name in item.split(",")]


def _print_scores(scores: dict[str, dict[str, float]]) -> None:
    print(f"{'':<8}{'AUC':>9}{'logloss':>9}{'bytes':>14}{'look-ups/s':>14}")
    for which, s in scores.items():
        print(f"{which:<8}{s['auc']:>9.5f}{s['logloss']:>9.5f}{s['bytes']:>14,.0f}{s['lookups_per_second']:>14,.0f}")


def _say(values: dict[str, Any], json: bool) -> int:
    if json:
        print_json(values)
        return 0
    for name, value in values.items():
        print(
            f"{name.replace('_', ' '):<20}{value:.5g}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):<20}{value}"
        )
    return 0
