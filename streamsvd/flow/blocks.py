"""Tables and arrays cut into blocks of bounded size, each with the number of its first row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsvd.arrays import is_sparse

if TYPE_CHECKING:
    import pyarrow as pa

# Large enough to keep BLAS busy, small enough to hold several of them.
BLOCK_BYTES = 16 << 20
LIST_BYTES = 4096  # a guess for a column whose width only its data knows


class Place(NamedTuple):
    """A place in a file or other item, between two rows."""

    group: int = 0  # the row group or record batch at hand; 0 where there is no such thing
    within: int = 0  # rows of it before this place
    row: int = 0  # rows of the whole item before this place


START = Place()


class Part(NamedTuple):
    """Rows of one item of a source (a file, a table, an iterator): a RecordBatch, a 2-D array or a CSR matrix."""

    data: Any
    at: int = 0  # the number of its first row in the item
    group: int = 0  # the row group or record batch that it lies in
    file: str = ""  # empty where the rows come from no file
    row: int = 0  # the number of its first row in that file


def count(data: Any, /) -> int:
    """Return the number of rows of a batch, an array or a sparse matrix."""
    return data.num_rows if hasattr(data, "num_rows") else int(data.shape[0])


def without(data: Any, gone: int, /) -> Any:
    """Return the rows after the first ``gone`` ones; a view, except of a sparse matrix."""
    if gone == 0:
        return data
    return data.slice(gone) if hasattr(data, "num_rows") else data[gone:, :]


def cut(
    batches: Iterable[tuple[int, Any]], names: list[str] | None, rows: int | None, file: str = "", place: Place = START
) -> Iterator[Part]:
    """Cut (group, RecordBatch) into parts of at most so many rows, or 16 MiB.

    They begin with the first row of the group that ``place`` is in, or, where that is passed over because it is at its end, of the next.
    """
    first = None
    for group, whole in batches:
        if first is None:
            first = place.row - place.within if group == place.group else place.row
        batch = whole if names is None else whole.select(names)
        n = batch.num_rows
        step = rows or _batch_step(batch)
        for start in range(0, n, step):
            yield Part(batch if step >= n else batch.slice(start, step), first + start, group, file, first + start)
        first += n


def cut_array(array: Any, rows: int | None) -> Iterator[Part]:
    """Cut a 2-D array (n, d) or sparse matrix into parts; views, except of sparse matrices."""
    step = array_step(array, rows)
    if is_sparse(array):
        array = array.tocsr()
    n = array.shape[0]
    for start in range(0, n, step):
        yield Part(array if step >= n else array[start : min(start + step, n), :], start)


def array_step(array: Any, rows: int | None, where: str = "") -> int:
    """Return how many rows of an array make a block, or raise where it is not 2-D."""
    if array.ndim != 2:
        cure = {0: "", 1: "; write x[None, :] for one row or x[:, None] for one column"}
        msg = (
            f"{where}an array of shape {tuple(array.shape)} arrived, and a 2-D array with one sample a row was expected"
        )
        raise ValueError(msg + cure.get(array.ndim, "; write x.reshape(x.shape[0], -1)"))
    per_row = (
        12 * array.nnz // max(array.shape[0], 1)
        if is_sparse(array)
        else array.shape[1] * getattr(array.dtype, "itemsize", 8)
    )
    return rows or max(1, BLOCK_BYTES // max(per_row, 1))


def table_step(schema: pa.Schema, names: list[str] | None) -> int:
    """Return how many rows of a table with these columns make a block."""
    kinds = schema.types if names is None else [schema.field(name).type for name in names]
    return max(1, int(BLOCK_BYTES / max(sum(map(_type_bytes, kinds)), 1)))


def as_reader(table: Any, /) -> pa.RecordBatchReader:
    """Return what speaks the Arrow interface as a RecordBatchReader; a bare column without a name is called ``value``."""
    import pyarrow as pa

    if hasattr(table, "__arrow_c_stream__"):
        try:
            return pa.RecordBatchReader.from_stream(table)
        except pa.ArrowInvalid:  # a stream of values, such as a Polars Series or a ChunkedArray
            return pa.table({"value": pa.chunked_array(table)}).to_reader()
    if hasattr(table, "to_reader"):  # of Flight
        return table.to_reader()
    column = pa.array(table)
    whole = pa.types.is_struct(column.type)
    batch = pa.RecordBatch.from_struct_array(column) if whole else pa.record_batch({"value": column})
    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


def existing(there: Sequence[str], wanted: Sequence[str] | None, where: str = "") -> list[str] | None:
    """Return the wanted columns, or raise where one does not exist or its name does not say which one is meant.

    ``e[0]``, ``e[1]``, ..., which is how the numbers of a list column ``e`` are called, mean that column.
    """
    if wanted is None:
        return None
    times = Counter(there)
    lists = {name: name.rpartition("[")[0] for name in wanted if not times[name] and name.endswith("]")}
    found = list(dict.fromkeys(lists[name] if name in lists and times[lists[name]] else name for name in wanted))
    missing = [name for name in found if not times[name]]
    if missing:
        msg = f"{where}there is no column {listed(missing)}; the columns are {listed(there)}"
        raise ValueError(msg)
    twice = [name for name in found if times[name] > 1]
    if twice:
        msg = f"{where}there are several columns called {listed(twice)}; rename all but one of them"
        raise ValueError(msg)
    return found


def listed(names: Iterable[Any], /) -> str:
    """Return quoted names for a message, the first twenty where there are more."""
    shown = [repr(str(name)) for name in names]
    return ", ".join(shown[:20]) + (f", ... ({len(shown)} in all)" if len(shown) > 20 else "")


def _batch_step(batch: pa.RecordBatch) -> int:
    """Return how many rows of a batch make a block: by its types, or by its size, which takes longer to ask of many columns."""
    try:
        return max(1, int(BLOCK_BYTES / max(sum(map(_fixed_bytes, batch.schema.types)), 1)))
    except ValueError:
        return max(1, BLOCK_BYTES * batch.num_rows // max(batch.nbytes, 1))


def _type_bytes(kind: pa.DataType) -> float:
    try:
        return _fixed_bytes(kind)
    except ValueError:
        return LIST_BYTES


def _fixed_bytes(kind: pa.DataType) -> float:
    """Return the bytes of one value, or raise ValueError where they vary."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _fixed_bytes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _fixed_bytes(kind.value_type)
    return kind.bit_width / 8
