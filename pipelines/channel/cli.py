"""``streamsvd channel simulate | estimate | bench``: observations and estimates as Parquet or Arrow files."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter

from streamsvd.pipelines.channel.options import Options
from streamsvd.settings import Flag, Json
from streamsvd.terminal import UsageError, checked_folder, checked_target, print_json, usage

PICTURES = (".png", ".pdf", ".svg")
TABLES = (".parquet", ".arrow", ".ipc", ".feather")

app = App(
    name="channel", help="Sparse channel estimation with Kronecker-structured dictionaries.", help_format="plaintext"
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options of an estimate."""

    def __post_init__(self) -> None:
        """Leave the check to `Options`, where it is a usage error and not one of parsing."""


@app.command
def simulate(
    *,
    out: str,
    dictionaries: str,
    scenario: Literal["synthetic", "irs"] = "irs",
    frames: int = 1,
    snr: float = 20.0,
    seed: int = 0,
    json: Json = False,
) -> int:
    """Write seeded observations, their dictionaries and the truth.

    Parameters
    ----------
    out
        Table of observations to write: .parquet, .arrow, .ipc or .feather.
    dictionaries
        File to write with the dictionaries H1, H2, ... and the truth x: .npz.
    scenario
        The synthetic set-up, or the IRS-aided uplink.
    frames
        Observations of one channel, each with its own noise.
    snr
        In dB.
    seed
        Of everything that is drawn.
    json
        Print one JSON object.
    """
    import numpy as np

    from streamsvd.pipelines.channel import scenario as scenarios
    from streamsvd.pipelines.channel.io import observations_to_arrow

    target, numbers = checked_target(out, [], suffixes=TABLES), checked_target(dictionaries, [], suffixes=(".npz",))
    if frames < 1 or seed < 0 or not math.isfinite(snr):
        msg = f"--frames {frames}, --seed {seed}, --snr {snr:g}; expected at least 1, at least 0, and a number of dB"
        raise UsageError(msg)
    case = getattr(scenarios, scenario)(seed=seed, snr_db=snr)
    clean = scenarios.multi_product(case.x, case.dictionaries)
    noises = [scenarios.noise_like(clean, case.noise_variance, seed=[seed, 5, i]) for i in range(1, frames)]
    y = np.stack([case.y, *(clean + n for n in noises)])
    axes = case.axes
    _write(observations_to_arrow(y, axis_order=axes, units="V", noise_variance=case.noise_variance), target)
    np.savez(numbers, x=case.x, **{f"H{i + 1}": H for i, H in enumerate(case.dictionaries)})
    return _told(
        {
            "out": str(target),
            "dictionaries": str(numbers),
            "frames": frames,
            "shape": list(y.shape[1:]),
            "axes": list(axes),
        },
        json,
    )


@app.command
def estimate(
    data: str,
    /,
    *,
    dictionaries: str,
    out: str,
    names: str = "H1,H2,H3",
    stream: Flag = False,
    snapshots: Flag = False,
    warm: str | None = None,
    settings: Settings | None = None,
    json: Json = False,
) -> int:
    """Estimate the coefficients of each frame.

    Parameters
    ----------
    data
        Table of observations: frame_id, y, and noise_variance where it is known.
    dictionaries
        File with the matrices (measurements, unknowns): .npz or .mat.
    out
        Table to write: support, values and hyperparameters of each frame.
    names
        Arrays of the dictionaries, slowest axis first.
    stream
        Frames follow each other: start each from the one before.
    snapshots
        All frames are snapshots of channels with one support: one estimate of them together.
    warm
        Table of an earlier run whose last hyperparameters the stream starts from.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.channel.io import (
        estimates_to_arrow,
        gammas_from_arrow,
        observations_from_arrow,
        read_arrays,
    )
    from streamsvd.pipelines.channel.model import KronSBL

    chosen = settings or Settings()
    options = {name: getattr(chosen, name) for name in Options.__dataclass_fields__}
    with usage():
        Options(**options)
    if snapshots and (stream or warm is not None):
        msg = "--snapshots is one estimate of all frames, which no stream follows; leave out --stream and --warm"
        raise UsageError(msg)
    target = checked_target(out, [data, dictionaries], suffixes=TABLES)
    wanted = names.split(",")
    with usage():
        arrays = read_arrays(dictionaries, axis_order={name: ("measurement", "unknown") for name in wanted})
        frames, ids, noise, meta = observations_from_arrow(_read(data))
        model = KronSBL([arrays[name] for name in wanted], **options)
        if warm is not None:
            model.warm(gammas_from_arrow(_read(warm)))
    noise = None if chosen.noise == "estimate" else noise
    if snapshots:
        found, ids = [model.fit(frames, noise_variance=_one(noise))], ids[:1]
    else:
        run = model.update if stream or warm is not None else model.fit_frames
        found = run(frames, noise_variance=noise)
    _write(estimates_to_arrow(found, ids, axis_order=meta["axis_order"], units=meta["units"]), target)
    steps = sum(e.iterations for e in found)
    values = {
        "out": str(target),
        "frames": len(found),
        "converged": sum(e.converged for e in found),
        "iterations": steps,
    }
    return _told({**values, "coefficients": sum(e.values.size for e in found)}, json)


@app.command
def bench(
    *,
    scenario: Literal["synthetic", "irs"] = "synthetic",
    snr: str = "10,20,30",
    trials: int = 20,
    methods: str = "svd,am,komp,oracle",
    seed: int = 0,
    out: str = "out/channel.png",
    json: Json = False,
) -> int:
    """Compare estimators over SNR: a table and a picture.

    Parameters
    ----------
    scenario
        The synthetic set-up, or the IRS-aided uplink.
    snr
        In dB, with commas.
    trials
        Instances at each SNR, the same for all methods.
    methods
        Of svd, svd-unknown, am, pc, classical, decomposed, ksbl, omp, komp, oracle.
    seed
        Of the first instance.
    out
        Picture to write: .png, .pdf or .svg.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.channel.compare import sweep, table
    from streamsvd.pipelines.channel.figure import draw

    checked_folder(str(Path(out).parent))
    if Path(out).suffix not in PICTURES or trials < 1 or seed < 0:
        msg = (
            f"--out {out}, --trials {trials}, --seed {seed}; expected {', '.join(PICTURES)}, at least 1, and at least 0"
        )
        raise UsageError(msg)
    snrs = _decibels(snr)
    told = None if json or not sys.stderr.isatty() else lambda text: print(text, file=sys.stderr)
    with usage():
        rows = sweep(scenario=scenario, snrs=snrs, trials=trials, methods=methods.split(","), seed=seed, progress=told)
    picture = draw(rows, out)
    if json:
        print_json({"rows": rows, "picture": str(picture)})
    else:
        print(f"{table(rows)}\n\npicture: {picture}")
    return 0


def _decibels(text: str) -> list[float]:
    try:
        found = [float(value) for value in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(value) for value in found):
        msg = f"--snr {text} is no list of dB; expected numbers with commas, such as --snr 10,20,30"
        raise UsageError(msg)
    return found


def _one(noise: Any) -> float | None:
    if noise is None:
        return None
    if noise.min() != noise.max():
        msg = f"--snapshots: the noise variances of the frames differ, {noise.min():.3g} .. {noise.max():.3g}; snapshots share one"
        raise UsageError(msg)
    return float(noise[0])


def _told(values: dict[str, Any], json: bool) -> int:
    if json:
        print_json(values)
    else:
        print(", ".join(f"{name} {value}" for name, value in values.items()))
    return 0


def _write(table: Any, target: Path) -> None:
    """Write a table beside its place and move it there."""
    import os

    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        if target.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, part)
        else:
            from pyarrow import feather

            feather.write_feather(table, str(part), compression="uncompressed")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _read(path: str) -> Any:
    from streamsvd.flow.files import find, naming

    file = find(path)[0]
    if file.suffix not in TABLES or file.remote is not None:
        msg = f"{path} is no table that is read here; expected {', '.join(TABLES)} on this machine"
        raise ValueError(msg)
    with naming(file):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(file.path)
        from pyarrow import feather

        return feather.read_table(file.path)
