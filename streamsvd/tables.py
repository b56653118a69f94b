"""Arrow at the edge of the engine: one table as a matrix, and factors as a table with one row a component."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.flow.batches import matrix

if TYPE_CHECKING:
    from streamsvd.factors import Factors

__all__ = ["digest", "factors_from_arrow", "factors_to_arrow", "matrix", "provenance"]

_KEY = b"streamsvd"


def factors_to_arrow(f: Factors, /) -> Any:
    """Return a table ``component`` (int32), ``s`` (float64), ``vt`` (FixedSizeList); what else there is goes into the schema metadata.

    The left factor is not part of it.
    """
    import pyarrow as pa

    arrays, meta = f.parts()
    vt = np.ascontiguousarray(to_numpy(arrays.pop("vt")))
    arrays.pop("u", None)
    meta["dtype"] = vt.dtype.name
    meta["arrays"] = {name: to_numpy(value).astype(np.float64).tolist() for name, value in arrays.items()}
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vt.reshape(-1)), vt.shape[1])
    columns = {
        "component": pa.array(range(f.rank), pa.int32()),
        "s": pa.array(to_numpy(f.s).astype(np.float64)),
        "vt": rows,
    }
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(meta, sort_keys=True)} | provenance(f))


def provenance(f: Factors, /) -> dict[str, str]:
    """Return what the schema metadata of a table says of the factors that it was made with.

    ``streamsvd.version``; ``streamsvd.rank``, ``.columns``, ``.rows`` (of the stream that was fitted); ``streamsvd.digest``, see `digest`.
    """
    from streamsvd import __version__

    values = {"version": __version__, "rank": f.rank, "columns": f.columns, "rows": f.rows, "digest": digest(f)}
    return {f"streamsvd.{name}": str(value) for name, value in values.items()}


def digest(f: Factors, /) -> str:
    """Return 32 hexadecimal digits that are the same for the same factors: BLAKE2b of their arrays, the names of columns and the row count.

    Cost: one pass over the arrays (about 1 GB/s).
    """
    arrays = {name: np.ascontiguousarray(to_numpy(value)) for name, value in f.parts()[0].items()}
    heads = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    whole = hashlib.blake2b(json.dumps([heads, f.names, f.rows, f.norm], sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        whole.update(arrays[name].reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def factors_from_arrow(table: Any, /) -> Factors:
    """Return the factors of a table that ``factors_to_arrow`` made.

    Raises
    ------
    ValueError
        If the table carries no such metadata.
    """
    import pyarrow as pa

    from streamsvd.factors import Factors

    table = pa.table(table)
    meta = (table.schema.metadata or {}).get(_KEY)
    if meta is None:
        msg = f"this table has no streamsvd metadata (columns {table.column_names}); expected one made by Factors.to_arrow()"
        raise ValueError(msg)
    meta = json.loads(meta)
    dtype, held = meta.pop("dtype"), meta.pop("arrays")
    arrays: dict[str, Any] = {name: np.array(value, np.float64) for name, value in held.items()}
    vt = table["vt"].combine_chunks()
    arrays["vt"] = vt.flatten().to_numpy(zero_copy_only=False).reshape(len(vt), -1).astype(dtype)
    arrays["s"] = arrays["s"].astype(dtype)
    return Factors.from_parts(arrays, meta)
