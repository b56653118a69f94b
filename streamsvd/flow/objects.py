"""Things that hold rows and are no files, opened as streams of parts: tables, lazy queries, datasets, what a DataLoader gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from streamsvd.flow.blocks import START, Part, as_reader, cut, existing, table_step
from streamsvd.flow.readers import PAGE_BUFFER, parquet_batches


def lazy_frame(frame: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Part]:
    """Run a Polars query as a stream, in its order."""
    schema = as_reader(frame.collect_schema().to_frame()).schema
    names = existing(schema.names, columns)
    query = frame if names is None else frame.select(names)
    chunks = query.collect_batches(chunk_size=rows or table_step(schema, names), maintain_order=True)
    # A query that is not read to its end must be stopped: at the exit of its context, or (Polars 2) when the iterator is dropped.
    with chunks if hasattr(chunks, "__exit__") else nullcontext(chunks) as running:
        yield from cut(((0, batch) for chunk in running for batch in as_reader(chunk)), names, rows)


def table(source: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Part]:
    """Read what speaks the Arrow interface."""
    reader = as_reader(source)
    names = existing(reader.schema.names, columns)
    yield from cut(((0, batch) for batch in reader), names, rows)


def dataset(source: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Part]:
    """Read a pyarrow Dataset, Scanner or ParquetFile."""
    if hasattr(source, "projected_schema"):  # a Scanner has its columns and batches decided
        names = existing(source.projected_schema.names, columns)
        yield from cut(((0, batch) for batch in source.to_batches()), names, rows)
        return
    if hasattr(source, "iter_batches"):
        schema, batches = parquet_batches(source)
        names = existing(schema.names, columns)
        found = batches(names, rows or table_step(schema, names), START)
    else:
        names = existing(source.schema.names, columns)
        step = rows or table_step(source.schema, names)
        found = ((0, b) for b in source.to_batches(columns=names, batch_size=step, **_little_ahead(source)))
    yield from cut(found, names, rows)


def _little_ahead(dataset: Any) -> dict[str, Any]:
    """Return the options that keep a Dataset from reading 16 batches of 4 files ahead, and whole row groups, as it would by itself."""
    options: dict[str, Any] = {"batch_readahead": 1, "fragment_readahead": 1}
    if getattr(getattr(dataset, "format", None), "default_extname", "") == "parquet":
        from pyarrow.dataset import ParquetFragmentScanOptions

        options["fragment_scan_options"] = ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True, buffer_size=PAGE_BUFFER
        )
    return options


def is_loader(source: Any) -> bool:
    """Whether something is a torch DataLoader, without importing torch."""
    return any(
        kind.__module__.startswith("torch.utils.data") and kind.__name__ == "DataLoader"
        for kind in type(source).__mro__
    )


def first_matrix(batch: Any) -> Any:
    """Return the first 2-D tensor of what a DataLoader gives: (X, y) is X."""
    if not isinstance(batch, list | tuple | Mapping):
        return batch
    inside = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    for one in inside:
        if getattr(one, "ndim", None) == 2:
            return one
    shapes = ", ".join(str(tuple(one.shape)) if hasattr(one, "shape") else type(one).__name__ for one in inside)
    msg = (
        f"the DataLoader gives {type(batch).__name__}s of {shapes}, and a 2-D tensor with one sample a row was expected; "
        "pass a generator such as (x.flatten(1) for x, *_ in loader)"
    )
    raise ValueError(msg)
