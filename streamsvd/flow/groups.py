"""The rows of a batch, put together by key; within a key they keep their order."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import device_of, is_sparse, namespace, to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from streamsvd.arrays import Array

Key = str | int | bool | date


class Group(NamedTuple):
    """The rows of one key in a batch."""

    key: Key
    x: Array  # (b_k, d)
    weights: np.ndarray | None  # (b_k,)
    timestamps: np.ndarray | None  # (b_k,)


def encoded(keys: Any, rows: int, /) -> tuple[str, list[Key], np.ndarray]:
    """Return the type of the keys, the different ones, and for each row the number (b,) of its key among them.

    Raises
    ------
    TypeError
        Keys that are not text, whole numbers, true/false or dates.
    ValueError
        Another number of keys than rows, or a null; the message names its row.
    """
    array = _arrow(keys)
    if len(array) != rows:
        msg = f"{len(array)} keys arrived for {rows} rows; expected one key for each row"
        raise ValueError(msg)
    dictionary, numbers = _dictionary(array)
    absent = numbers < 0
    if absent.any():
        msg = f"{int(absent.sum())} of {rows} keys are null, the first in row {int(np.argmax(absent))}; drop such rows, or fill them first"
        raise ValueError(msg)
    key_type = _type_name(dictionary.type)
    place: dict[Key, int] = {}
    # A dictionary may hold a value twice, or one that no row has.
    used = np.zeros(len(dictionary), bool)
    used[numbers] = True
    values = zip(dictionary.to_pylist(), used.tolist(), strict=True)
    unique = np.array([place.setdefault(value, len(place)) if there else -1 for value, there in values])
    return key_type, list(place), unique[numbers]


def grouped(x: Array, codes: np.ndarray, keys: list[Key], weights: Any, timestamps: Any, /) -> Iterator[Group]:
    """Yield the rows of each key, the key that was seen last at the end.

    Cost: views where the rows of each key lie together (CSR is copied), else one copy of the batch.
    """
    beside = [_vector(name, v, codes.size) for name, v in (("weights", weights), ("timestamps", timestamps))]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    stops = np.append(starts[1:], codes.size)
    first, last = order[starts], order[stops - 1]
    whole = (last - first + 1 == stops - starts).all()
    moved = x if whole or starts.size == 1 else _taken(x, order)
    for number in np.argsort(last):
        a, b, rows = starts[number], stops[number], order[starts[number] : stops[number]]
        if whole:
            a, b = first[number], last[number] + 1
        yield Group(
            keys[codes[rows[0]]],
            moved[a:b, :] if starts.size > 1 else x,
            *(v if v is None else v[rows] for v in beside),
        )


def _vector(name: str, values: Any, rows: int) -> np.ndarray | None:
    if values is None:
        return None
    vector = np.asarray(values if isinstance(values, list | tuple) else to_numpy(values))
    if vector.shape != (rows,):
        msg = (
            f"got {name} of shape {vector.shape} for a batch of {rows} rows; expected one for each row, shape ({rows},)"
        )
        raise ValueError(msg)
    return vector


def _taken(x: Array, order: np.ndarray) -> Array:
    if is_sparse(x):
        return x[order]
    if isinstance(x, np.ndarray):
        # Along contiguous memory: gathering rows of a column-major array touches a cache line for each number.
        return x.T.take(order, axis=1).T if x.strides[0] < x.strides[1] else x.take(order, axis=0)
    xp = namespace(x)
    return xp.take(x, xp.asarray(order, device=device_of(x)), axis=0)


def _arrow(keys: Any) -> pa.Array:
    import pyarrow as pa

    try:
        if hasattr(keys, "__arrow_c_stream__"):
            keys = pa.chunked_array(keys)
        elif not isinstance(keys, pa.Array):
            keys = pa.array(
                keys if isinstance(keys, list | tuple) or hasattr(keys, "__arrow_c_array__") else to_numpy(keys)
            )
    except (pa.ArrowException, TypeError, AttributeError, OverflowError) as error:
        msg = f"keys of type {type(keys).__name__} arrived ({error}); expected one column of text, whole numbers, true/false or dates"
        raise TypeError(msg) from error
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def _dictionary(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the values of a column and for each row the number of its value; -1 for a null."""
    import pyarrow as pa

    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_null(array.type):
        return array[:0], np.full(len(array), -1)
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_string_view(array.type):
            array = array.cast(pa.large_string())
        _type_name(array.type)
        array = array.dictionary_encode()
    values, numbers = array.dictionary, array.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    if values.null_count:
        present = values.is_valid().to_numpy(zero_copy_only=False)
        numbers = np.where((numbers >= 0) & present[numbers], numbers, -1)
    return values, numbers


def _type_name(kind: pa.DataType) -> str:
    import pyarrow as pa

    is_a = pa.types
    for name, fits in {
        "text": is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind),
        "integer": is_a.is_integer(kind),
        "boolean": is_a.is_boolean(kind),
        "date": is_a.is_date(kind),
    }.items():
        if fits:
            return name
    cure = (
        "cast them first, for example polars: pl.col(name).cast(pl.String), pyarrow: table[name].cast(pyarrow.string())"
    )
    msg = f"keys of type {kind} arrived; expected text, whole numbers, true/false or dates: {cure}"
    raise TypeError(msg)
