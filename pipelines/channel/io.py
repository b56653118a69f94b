"""Observations and estimates as Arrow, dictionaries and measurements from ``.npz`` and ``.mat``.

One convention: a complex number is a ``FixedSizeList<float, 2>`` of its real and imaginary part; a tensor is a flat list in C order;
axis names, shape and units are in the schema metadata under ``streamsvd.channel`` as JSON.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from streamsvd.pipelines.channel.estimate import Estimate

KEY = b"streamsvd.channel"


def complex_array(x: np.ndarray, /) -> pa.Array:
    """Return numbers (n,) as an Arrow array: complex ones as ``FixedSizeList<float, 2>`` of their parts, without loss."""
    import pyarrow as pa

    x = np.ascontiguousarray(x)
    if not np.iscomplexobj(x):
        return pa.array(x)
    return pa.FixedSizeListArray.from_arrays(pa.array(x.view(np.float32 if x.dtype == np.complex64 else np.float64)), 2)


def from_complex_array(column: pa.Array, /) -> np.ndarray:
    """Return an Arrow array of ``complex_array`` as NumPy again: complex where it has pairs."""
    import pyarrow as pa

    if column.null_count:
        msg = f"{column.null_count} of {len(column)} numbers are null; an observation is whole, leave such a frame out"
        raise ValueError(msg)
    if pa.types.is_fixed_size_list(column.type):
        if column.type.list_size != 2:
            msg = f"numbers are {column.type}; expected two for each, the real and the imaginary part: write them with complex_array"
            raise ValueError(msg)
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(flat).view(np.complex64 if flat.dtype == np.float32 else np.complex128)
    return column.to_numpy(zero_copy_only=False)


def observations_to_arrow(
    frames: np.ndarray, /, *, axis_order: Sequence[str], units: str = "", noise_variance: Any = None, first_id: int = 0
) -> pa.Table:
    """Return frames (F, M1, ..., Md) as a table: ``frame_id`` int64, ``y`` list of numbers, ``noise_variance`` float64 (null: unknown)."""
    import pyarrow as pa

    F, shape = frames.shape[0], frames.shape[1:]
    if len(axis_order) != len(shape):
        msg = f"frames have {len(shape)} axes of {shape} and axis_order names {list(axis_order)}; name each axis, slowest first"
        raise ValueError(msg)
    values = complex_array(frames.reshape(-1))
    size = int(np.prod(shape))
    y = pa.ListArray.from_arrays(pa.array(np.arange(F + 1) * size, type=pa.int32()), values)
    noise = [None] * F if noise_variance is None else np.broadcast_to(noise_variance, (F,)).tolist()
    table = pa.table(
        {
            "frame_id": pa.array(np.arange(first_id, first_id + F)),
            "y": y,
            "noise_variance": pa.array(noise, pa.float64()),
        }
    )
    meta = {"axis_order": list(axis_order), "shape": list(shape), "units": units}
    return table.replace_schema_metadata({KEY: json.dumps(meta)})


def observations_from_arrow(table: pa.Table, /) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Return frames (F, M1, ..., Md), their ids, noise variances (None where any is null) and the metadata.

    Raises
    ------
    ValueError
        If the axis order is not in the metadata, a column is missing, or a frame has another length.
    """
    meta = metadata(table)
    missing = [name for name in ("frame_id", "y") if name not in table.column_names]
    if missing:
        msg = f"the table has the columns {table.column_names} and lacks {missing}; expected frame_id, y and, if known, noise_variance"
        raise ValueError(msg)
    shape, y = tuple(meta["shape"]), table["y"].combine_chunks()
    lengths = np.asarray(y.value_lengths().fill_null(-1))
    if (wrong := np.flatnonzero(lengths != int(np.prod(shape)))).size:
        arrived = f"frame {table['frame_id'][int(wrong[0])]} has {lengths[wrong[0]]} numbers"
        msg = f"{arrived}; the axis order {meta['axis_order']} of {shape} needs {int(np.prod(shape))}"
        raise ValueError(msg)
    frames = from_complex_array(y.flatten()).reshape(table.num_rows, *shape)
    noise = None
    if "noise_variance" in table.column_names and not table["noise_variance"].null_count:
        noise = table["noise_variance"].to_numpy()
    return frames, table["frame_id"].to_numpy(), noise, meta


def estimates_to_arrow(
    estimates: Sequence[Estimate], frame_ids: Any, /, *, axis_order: Sequence[str], units: str = ""
) -> pa.Table:
    """Return one row a frame: support indices of each axis, values on it, hyperparameters, and how the iteration went.

    For L snapshots of one support ``value`` holds those of the first, then those of the second, and so on.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"frame_id": pa.array(np.asarray(frame_ids, dtype=np.int64))}
    for i, axis in enumerate(axis_order):
        columns[f"index_{axis}"] = pa.array([e.support[i].astype(np.int32) for e in estimates], pa.list_(pa.int32()))
    sizes = np.cumsum([0, *(e.values.size for e in estimates)])
    flat = np.concatenate([e.values.reshape(-1) for e in estimates]) if estimates else np.zeros(0)
    columns["value"] = pa.ListArray.from_arrays(pa.array(sizes, pa.int32()), complex_array(flat))
    for i in range(len(estimates[0].gammas) if estimates else 0):
        columns[f"gamma_{i + 1}"] = pa.array([e.gammas[i] for e in estimates], pa.list_(pa.float64()))
    columns["noise_variance"] = pa.array([e.noise_variance for e in estimates], pa.float64())
    columns["iterations"] = pa.array([e.iterations for e in estimates], pa.int32())
    columns["converged"] = pa.array([e.converged for e in estimates], pa.bool_())
    columns["cost"] = pa.array([float(e.cost[-1]) for e in estimates], pa.float64())
    whole = tuple(estimates[0].mean.shape) if estimates else ()
    modes = estimates[0].modes if estimates else 0
    meta = {"axis_order": list(axis_order), "shape": list(whole[len(whole) - modes :]), "units": units}
    return pa.table(columns).replace_schema_metadata({KEY: json.dumps(meta)})


def coefficients_from_arrow(table: pa.Table, /) -> np.ndarray:
    """Return the estimates of a table as a dense array (frames, N1, ..., Nd), or (L, N1, ..., Nd) for one frame of L snapshots."""
    meta = metadata(table)
    axes, shape = meta["axis_order"], tuple(meta["shape"])
    found = []
    for row in range(table.num_rows):
        index = tuple(np.asarray(table[f"index_{axis}"][row].values.to_numpy(), dtype=np.intp) for axis in axes)
        values = from_complex_array(table["value"][row].values)
        snapshots = values.size // max(index[0].size, 1) if values.size else 1
        x = np.zeros((snapshots, *shape), dtype=values.dtype)
        x[(slice(None), *index)] = values.reshape(snapshots, -1)
        found.append(x)
    return np.concatenate(found) if found else np.zeros((0, *shape))


def gammas_from_arrow(table: pa.Table, /) -> list[np.ndarray]:
    """Return the hyperparameters of the last frame that has any, for ``KronSBL.warm``.

    Raises
    ------
    ValueError
        If no frame has any: all were zero.
    """
    names = sorted(name for name in table.column_names if name.startswith("gamma_"))
    if not names:
        msg = f"the table has the columns {', '.join(table.column_names)} and no hyperparameters; give one that an estimate wrote"
        raise ValueError(msg)
    for row in reversed(range(table.num_rows)):
        found = [table[name][row].values.to_numpy() for name in names]
        if found and all(g.any() for g in found):
            return found
    msg = f"none of the {table.num_rows} estimates has hyperparameters other than 0; start without them"
    raise ValueError(msg)


def metadata(table: pa.Table, /) -> dict[str, Any]:
    """Return the axis order, shape and units of a table; ValueError where they are not recorded, since an axis order is not guessed."""
    found = (table.schema.metadata or {}).get(KEY)
    if found is None:
        lacks = f"the table does not say what its axes are: its schema metadata lacks {KEY.decode()!r}"
        msg = f"{lacks}; write it with observations_to_arrow(..., axis_order=[...])"
        raise ValueError(msg)
    meta = json.loads(found)
    if (
        not isinstance(meta, dict)
        or not {"axis_order", "shape"} <= meta.keys()
        or len(meta["axis_order"]) != len(meta["shape"])
    ):
        msg = f"the schema metadata {KEY.decode()!r} is {meta}; expected a name in axis_order and a length in shape for each axis"
        raise ValueError(msg)
    return {"units": ""} | meta


def read_arrays(
    path: str | Path, /, *, axis_order: dict[str, Sequence[str]], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Read tensors from ``.npz`` or ``.mat`` (v5 by SciPy, v7.3 by h5py) with the axes as you name them.

    Parameters
    ----------
    path : file
    axis_order : dict of array name -> axis names, as the author of the file counts them (for ``.mat``: as MATLAB's ``size`` does)
        Required for each array: no file records it, and a transposed channel is the most common error.
    names : which arrays; all of ``axis_order`` by default

    Returns
    -------
    dict of C-ordered arrays whose axes are in the order named. MATLAB's v7.3 files store them reversed; that is undone.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
    """
    path = Path(path)
    if not path.exists():
        msg = f"{path} does not exist"
        raise FileNotFoundError(msg)
    wanted = list(axis_order if names is None else names)
    out = {}
    with np.errstate(all="ignore"):
        for name, x in _opened(path, wanted):
            axes = axis_order.get(name)
            if axes is None:
                msg = f"{path.name}: {name} has the shape {x.shape} and no axis order; write axis_order={{{name!r}: [...{x.ndim} names]}}"
                raise ValueError(msg)
            if len(axes) != x.ndim:
                msg = f"{path.name}: {name} has the shape {x.shape} and axis_order names {list(axes)}; name each of its {x.ndim} axes"
                raise ValueError(msg)
            out[name] = np.ascontiguousarray(x)
    return out


def _opened(path: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    if path.suffix == ".npz":
        if not zipfile.is_zipfile(path):
            msg = f"{path.name} cannot be read: it is damaged, or no .npz file; write it again by numpy.savez"
            raise ValueError(msg)
        with np.load(path, allow_pickle=False) as file:
            yield from ((name, _numbers(path, name, file)) for name in names)
    elif path.suffix == ".mat":
        yield from _matlab(path, names)
    else:
        msg = f"{path.name} is neither .npz nor .mat; convert it, for example by numpy.savez"
        raise ValueError(msg)


def _numbers(path: Path, name: str, file: Any) -> np.ndarray:
    there = _there(path, name, file.files)
    try:
        return file[there]
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        msg = f"{path.name}: the array {name!r} cannot be read as numbers ({error}); write it again by numpy.savez"
        raise ValueError(msg) from error


def _matlab(path: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        file = loadmat(path, squeeze_me=False)
    except (
        MatReadError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        zlib.error,
    ) as error:  # SciPy has no check before its parser
        msg = f"{path.name} cannot be read: it is damaged, or no .mat file ({error}); save it again"
        raise ValueError(msg) from error
    except NotImplementedError:  # SciPy's way to say that this is v7.3, which is HDF5
        try:
            import h5py  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            msg = f"{path.name} is a MATLAB v7.3 file, and h5py is not installed: run pip install 'streamsvd[channel]', or save it with -v7"
            raise ImportError(msg) from error
        with h5py.File(path, "r") as file:
            for name in names:
                x = np.asarray(file[_there(path, name, list(file))])
                x = x["real"] + 1j * x["imag"] if x.dtype.names else x
                yield name, x.T
    else:
        known = [name for name in file if not name.startswith("__")]
        yield from ((name, np.asarray(file[_there(path, name, known)])) for name in names)


def _there(path: Path, name: str, known: Sequence[str]) -> str:
    if name not in known:
        msg = f"{path.name} has no array {name!r}; it has {', '.join(sorted(known))}"
        raise ValueError(msg)
    return name
