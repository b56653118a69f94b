"""The command line: ``streamsvd demo``, ``fit``, ``transform``, ``merge`` and ``inspect``. A thin face; exit codes are listed in `main`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from streamsvd import __version__
from streamsvd.settings import Flag, Json, Names, Settings
from streamsvd.terminal import (
    FAILED,
    Rejected,
    UsageError,
    checked_target,
    found_columns,
    print_json,
    run,
    say,
    usage,
)

if TYPE_CHECKING:
    from streamsvd.factors import Factors

app = App(
    name="streamsvd",
    version=__version__,
    help="Streaming SVD and PCA with a certified error. Try: streamsvd demo",
    help_epilogue="Exit codes: 0 done, 1 failed, 2 used wrongly, 3 done but rows were left out. --debug shows tracebacks.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


@app.command(sort_key=1)
def demo(*, out: str = "out", json: Json = False) -> int:
    """Run on a bundled photograph, with the truth beside.

    Parameters
    ----------
    out
        Folder for the Parquet file, the model and the picture.
    json
        Print one JSON object.
    """
    from streamsvd import demo as story
    from streamsvd.report import show_demo

    values = story.run(Path(out), progress=False if json else None)
    print_json(values) if json else show_demo(values)
    if values["holds"]:
        return 0
    return say(
        "the certificate does not hold: a true value lies outside; this is a defect of streamsvd, please report it",
        FAILED,
    )


@app.command(sort_key=2)
def fit(
    data: list[str], /, *, settings: Settings, out: str | None = None, state: Flag = False, json: Json = False
) -> int:
    """Fold files of rows into a model with a certified error.

    Parameters
    ----------
    data
        Parquet, Arrow IPC, CSV or .npy files, folders, or quoted patterns.
    out
        Model file to write, such as model.svd.
    state
        Write the state instead of its factors, so that merge takes it (about 5 times larger; holds the last rows as they came).
    json
        Print one JSON object.
    """
    from streamsvd.flow.batches import pieces
    from streamsvd.flow.fold import fold
    from streamsvd.report import origin

    if state and out is None:
        msg = "--state says what --out writes, and --out is missing; add --out model.svd"
        raise UsageError(msg)
    target = None if out is None else checked_target(out, data)
    reading = settings.reading(found_columns(data, settings.select, (settings.weights, settings.timestamps)))
    with Rejected() as rejected:
        stream = pieces(data, **reading)
        first = next(stream, None)
        if first is None:
            msg = f"there are no rows in {', '.join(data)}; check the path, or what --nulls drop left out"
            raise ValueError(msg)
        with usage():
            empty = settings.sketch(first.x.shape[1])
        began = time.perf_counter()
        folded = fold(empty, data, progress=False if json else None, **reading)
        seconds = time.perf_counter() - began
    model = folded if state else replace(folded.factors(), names=first.names, info=origin(folded))
    measured = {"seconds": seconds, "rows_per_second": folded.rows / seconds}
    return _finish(model, target, json, {**measured, "dropped": rejected.rows}) or rejected.code()


@app.command(sort_key=3)
def transform(
    model: str,
    data: list[str],
    /,
    *,
    out: str,
    select: Names = None,
    rank: int | None = None,
    anomaly: Flag = False,
    nulls: Literal["error", "drop"] = "error",
    json: Json = False,
) -> int:
    """Write the coordinates of rows in a model's components.

    Parameters
    ----------
    model
        File that fit or merge wrote.
    data
        Files, folders, or quoted patterns.
    out
        File to write: .parquet, or Arrow IPC (.arrow, .ipc, .feather).
    select
        Columns to take; those of the model by default.
    rank
        Take only so many leading components.
    anomaly
        Also write the squared reconstruction error (residual) and Hotelling's T2 (leverage) of each row.
    nulls
        What a null does: stop, or drop its row (exit code 3).
    json
        Print one JSON object.
    """
    from streamsvd.flow.scores import write_scores
    from streamsvd.flow.sinks import SUFFIXES

    target = checked_target(out, [*data, model], suffixes=SUFFIXES)
    factors = _factors(model)
    with usage():
        factors = factors if rank is None else factors.truncate(rank=rank)
    columns = found_columns(data, select, (), known=factors.names)
    with Rejected() as rejected:
        began = time.perf_counter()
        rows = write_scores(
            factors, data, target, select=columns, nulls=nulls, anomaly=anomaly, progress=False if json else None
        )
        seconds = time.perf_counter() - began
    if json:
        values = {"out": str(target), "rows": rows, "rank": factors.rank, "dropped": rejected.rows}
        print_json({**values, "seconds": seconds, "rows_per_second": rows / seconds})
    else:
        print(f"wrote {target}: {rows:,} rows of {factors.rank} scores ({rows / seconds:,.0f} rows/s)")
    return rejected.code()


@app.command(sort_key=4)
def merge(states: list[str], /, *, out: str, json: Json = False) -> int:
    """Merge the states of several streams into one.

    Parameters
    ----------
    states
        Files that fit --state or merge wrote, two or more.
    out
        State file to write.
    json
        Print one JSON object.
    """
    if len(states) < 2:
        msg = f"one state arrived ({states[0]}), and there is nothing to merge it with; give two or more"
        raise UsageError(msg)
    target = checked_target(out, [])
    whole = None
    for path in states:
        part = _loaded(path)
        if not hasattr(part, "merge"):
            msg = f"{path} holds factors, which have forgotten what merging needs; fit it again with --state"
            raise UsageError(msg)
        try:
            whole = part if whole is None else whole.merge(part)
        except (TypeError, ValueError) as error:
            msg = f"{path} does not go with {states[0]}: {error}"
            raise ValueError(msg) from error
    return _finish(whole, target, json)


@app.command(sort_key=5)
def inspect(model: str, /, *, json: Json = False) -> int:
    """Show a model: spectrum, certificate, plan.

    Parameters
    ----------
    model
        File that fit or merge wrote.
    json
        Print one JSON object.
    """
    return _finish(_loaded(model), None, json, title=model)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 failed, 2 used wrongly, 3 done but rows were left out, 130 and 143 stopped by SIGINT and SIGTERM. Errors are one
    sentence on the error stream; ``--debug`` or the environment variable STREAMSVD_DEBUG adds the traceback.
    """
    return run(app, tokens)


def _loaded(path: str) -> Any:
    from streamsvd.flow.checkpoint import load

    try:
        return load(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(str(error)) from error


def _factors(path: str) -> Factors:
    model = _loaded(path)
    return model.factors() if hasattr(model, "factors") else model


def _finish(
    model: Any, target: Path | None, json: bool, measured: dict[str, Any] | None = None, title: str = ""
) -> int:
    """Write a model where that is asked for, and show it."""
    from streamsvd.flow.checkpoint import save
    from streamsvd.report import show, summary

    values = summary(model) | (measured or {})
    if target is not None:
        save(model, target)
        values["out"] = str(target)
    if json:
        print_json(values)
    else:
        show(values, title=title)
    return 0
