"""The command line: ``streamsvd demo``, ``fit``, ``transform``, ``merge``, ``inspect``, ``report``, pipelines. Exit codes: see `main`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from streamsvd import __version__
from streamsvd.launch import run
from streamsvd.settings import Flag, Json, Names, Policy, Settings
from streamsvd.terminal import (
    FAILED,
    UsageError,
    checked_target,
    found_columns,
    metrics_to,
    print_json,
    rejected,
    resumable,
    say,
    usage,
)

if TYPE_CHECKING:
    from streamsvd.factors import Factors

app = App(
    name="streamsvd",
    version=__version__,
    help="Streaming SVD and PCA with a certified error. Try: streamsvd demo",
    help_epilogue="Exit codes: 0 done, 1 failed, 2 used wrongly, 3 done but rows were left out, "
    "130 or 143 stopped. --debug shows tracebacks, --log-level info the log.",
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
    data: list[str] | None = None,
    /,
    *,
    settings: Settings,
    out: str | None = None,
    state: Flag = False,
    follow: str | None = None,
    engine: Literal["ray", "spark"] | None = None,
    address: str | None = None,
    metrics: str | None = None,
    config: str | None = None,
    json: Json = False,
) -> int:
    """Fold files of rows into a model with a certified error.

    Parameters
    ----------
    data
        Files (Parquet, Arrow IPC, CSV, NDJSON, .npy, .npz), folders, quoted patterns, URLs.
    out
        Model file to write, such as model.svd.
    state
        Write the state instead of its factors, so that merge takes it (about 5 times larger; holds the last rows as they came).
    follow
        Folder whose files are folded as they appear, until stopped; wants --checkpoint.
    engine
        Fold each file on a worker of Ray or Spark, and merge there; wants the extra of that name.
    address
        Of a cluster, such as auto or spark://host:7077; a local one is started otherwise.
    metrics
        File that gets one line of JSON for each checkpoint: rows, speed, captured energy, drift angle, residual.
    config
        TOML file with options, such as rank = 64; those given here count more.
    json
        Print one JSON object.
    """
    del config  # read before any option, see `streamsvd.launch.run`
    from streamsvd.fitting import checked, engine_of, measured, model_of, source_of

    folded = engine_of(engine, address, follow)
    source = source_of(data, follow, settings.checkpoint, out)
    if state and out is None:
        msg = "--state says what --out writes, and --out is missing; add --out model.svd"
        raise UsageError(msg)
    target = None if out is None else checked_target(out, data or [])
    if settings.checkpoint is not None:
        kept = checked_target(settings.checkpoint, data or [], option="checkpoint")
        if target is not None and kept.resolve() == target.resolve():
            msg = f"--out and --checkpoint are both {out}, and one would replace the other; give them two names"
            raise UsageError(msg)
    beside = (settings.weights, settings.timestamps, settings.by)
    select = checked(source, settings, found_columns(data or [], settings.select, beside))
    began = time.perf_counter()
    with resumable(settings.checkpoint), metrics_to(metrics, data or []) as on_event:
        options = settings.options(select)
        outcome = folded(source, **options, on_event=on_event, progress=False if json else None)
    told = measured(outcome, time.perf_counter() - began, settings)
    return _finish(model_of(outcome, state=state), target, json, told) or rejected(outcome.intake, settings.quarantine)


@app.command(sort_key=3)
def transform(
    model: str,
    data: list[str],
    /,
    *,
    out: str,
    select: Names = None,
    ids: Names = None,
    rank: int | None = None,
    residual: Flag = False,
    leverage: Flag = False,
    key: str | None = None,
    nulls: Policy = "error",
    nonfinite: Policy = "error",
    json: Json = False,
) -> int:
    """Write the coordinates of rows in a model's components.

    Parameters
    ----------
    model
        File that fit or merge wrote, or a checkpoint.
    data
        Files, folders, quoted patterns, or URLs.
    out
        File to write: .parquet, or Arrow IPC (.arrow, .ipc, .feather).
    select
        Columns to take; those of the model by default.
    ids
        Columns to carry through as they are: NAME,NAME or again --ids NAME.
    rank
        Take only so many leading components.
    residual
        Also write the squared reconstruction error of each row.
    leverage
        Also write Hotelling's T2 of each row.
    key
        Which state, of a model with one for each key (fit --by).
    nulls
        What a null does: stop, drop its row (exit code 3), or become the mean of its column so far.
    nonfinite
        The same for NaN and infinity.
    json
        Print one JSON object.
    """
    from streamsvd.flow.scores import write_scores
    from streamsvd.flow.sinks import SUFFIXES

    target = checked_target(out, [*data, model], suffixes=SUFFIXES)
    factors = _factors(model, key)
    with usage():
        factors = factors if rank is None else factors.truncate(rank=rank)
    began = time.perf_counter()
    options = {"residual": residual, "leverage": leverage, "nulls": nulls, "nonfinite": nonfinite}
    options["select"] = found_columns(data, select, (), known=factors.names)
    options["ids"] = found_columns(data, ids, ()) if ids else None
    written = write_scores(factors, data, target, **options, progress=False if json else None)
    seconds = time.perf_counter() - began
    if json:
        counts = {
            name: {} if written.intake is None else getattr(written.intake, name) for name in ("dropped", "filled")
        }
        values = {"out": str(target), "rows": written.rows, "rank": factors.rank, **counts}
        print_json({**values, "seconds": seconds, "rows_per_second": written.rows / seconds})
    else:
        speed = f"{written.rows / seconds:,.0f} rows/s"
        print(f"wrote {target}: {written.rows:,} rows of {factors.rank} scores ({speed})")
    return rejected(written.intake)


@app.command(sort_key=4)
def merge(states: list[str], /, *, out: str, json: Json = False) -> int:
    """Merge the states of several streams into one.

    Parameters
    ----------
    states
        Files that fit --state or merge wrote, or checkpoints, two or more; quoted patterns.
    out
        State file to write.
    json
        Print one JSON object.
    """
    from streamsvd.models import matched, merged

    with usage():
        paths = matched(states)
    if len(paths) < 2:
        msg = f"one state arrived ({', '.join(paths) or states[0]}), and there is nothing to merge it with; give two or more"
        raise UsageError(msg)
    target = checked_target(out, [])
    with usage(TypeError, FileNotFoundError, IsADirectoryError):
        whole = merged(paths)
    return _finish(whole, target, json, {"merged": len(paths)})


@app.command(sort_key=5)
def inspect(model: str, /, *, json: Json = False) -> int:
    """Show a model or a checkpoint: spectrum, certificate, plan, position.

    Parameters
    ----------
    model
        File that fit or merge wrote, or a checkpoint.
    json
        Print one JSON object.
    """
    from streamsvd.models import opened, position

    with usage(FileNotFoundError, IsADirectoryError):
        found = opened(model)
    told = {} if found.run is None else {"run": position(found.run), "names": list(found.run.names)}
    return _finish(found.state, None, json, told, title=model)


@app.command(sort_key=6)
def report(model: str, /, *, out: str, key: str | None = None, json: Json = False) -> int:
    """Write a model's report as one HTML file.

    Parameters
    ----------
    model
        File that fit or merge wrote, or a checkpoint, which also shows how the run went.
    out
        File to write, such as report.html.
    key
        Which state, of a model with one for each key (fit --by).
    json
        Print one JSON object.
    """
    from streamsvd.models import factors_of, opened
    from streamsvd.report import summary
    from streamsvd.report_html import write_report

    target = checked_target(out, [model], suffixes=(".html", ".htm"))
    with usage(FileNotFoundError, IsADirectoryError):
        found = opened(model)
    with usage():
        shown = factors_of(found, key)
    told = () if found.run is None or key is not None else found.run.events
    title = model if key is None else f"{model}: {key}"
    write_report(shown, target, title=title, events=told, counts=None if found.run is None else found.run.intake)
    if json:
        print_json(summary(shown) | {"out": str(target)})
    else:
        print(f"wrote {target} ({target.stat().st_size / 1000:.0f} kB)")
    return 0


# Imported when it is used.
app.command(
    "streamsvd.pipelines.graph.cli:app",
    name="graph",
    help="Fresh factors of a graph, recommendations, LightGCL.",
    sort_key=20,
)
app.command(
    "streamsvd.pipelines.adapters.cli:app",
    name="adapter",
    help="Initial LoRA adapters from activations or weights.",
    sort_key=21,
)
app.command(
    "streamsvd.pipelines.video.cli:app",
    name="video",
    help="Background, moving objects and tampering, of a static camera.",
    sort_key=22,
)
app.command(
    "streamsvd.pipelines.ctr.cli:app", name="ctr", help="Smaller embedding tables of click models.", sort_key=24
)
app.command(
    "streamsvd.pipelines.channel.cli:app",
    name="channel",
    help="Sparse channel estimation with Kronecker dictionaries.",
    sort_key=28,
)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 failed, 2 used wrongly, 3 done but rows were left out, 130 and 143 stopped by SIGINT and SIGTERM. Errors are one
    sentence on the error stream; ``--debug`` or the environment variable STREAMSVD_DEBUG adds the traceback.
    """
    return run(app, tokens)


def _factors(path: str, key: str | None) -> Factors:
    from streamsvd.models import factors_of, opened

    with usage(FileNotFoundError, IsADirectoryError):
        found = opened(path)
    with usage():
        return factors_of(found, key)


def _finish(
    model: Any, target: Path | None, json: bool, measured: dict[str, Any] | None = None, title: str = ""
) -> int:
    """Write a model where that is asked for, and show it."""
    from streamsvd.models import stored
    from streamsvd.report import show, summary

    values = summary(model) | (measured or {})
    if target is not None:
        stored(model, target)
        values["out"] = str(target)
    if json:
        print_json(values)
    else:
        show(values, title=title)
    return 0
