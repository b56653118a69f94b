"""Arrow at the edge of the engine: one table as a matrix, and factors as a table with one row a component."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.flow.batches import matrix

if TYPE_CHECKING:
    from streamsvd.factors import Factors

__all__ = ["factors_from_arrow", "factors_to_arrow", "matrix"]

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
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(meta, sort_keys=True)})


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
