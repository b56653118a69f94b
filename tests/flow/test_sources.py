"""Offsets: reading goes on after any block as if it had never stopped, and not where the source has changed."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.flight
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.flow import readers
from streamsvd.flow.batches import batches
from streamsvd.flow.follow import Follow
from streamsvd.flow.sources import owned, read, total_rows

N, D = 1000, 4
X = np.random.default_rng(0).standard_normal((N, D))
TABLE = pa.table({f"c{j}": X[:, j] for j in range(D)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sources")
    pq.write_table(TABLE, path / "t.parquet", row_group_size=300)
    pyarrow.feather.write_feather(TABLE, path / "t.feather", chunksize=300)
    pyarrow.feather.write_feather(TABLE, path / "t.arrow", compression="uncompressed", chunksize=400)
    with pa.ipc.new_stream(path / "t.ipc", TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=128)
    pyarrow.csv.write_csv(TABLE, path / "t.csv")
    write_lines(path / "t.ndjson", TABLE.to_pylist())
    write_lines(path / "list.jsonl", [{"e": row, "id": i} for i, row in enumerate(X.tolist())])
    np.save(path / "t.npy", X)
    np.save(path / "f.npy", np.asfortranarray(X))
    np.savez(path / "t.npz", x=X)
    np.savez(path / "f.npz", x=np.asfortranarray(X))
    np.savez_compressed(path / "packed.npz", x=X)
    np.savez_compressed(path / "packed_f.npz", x=np.asfortranarray(X))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(data):
    return np.stack([c.to_numpy() for c in data.columns], axis=1) if hasattr(data, "columns") else np.asarray(data)


def as_json(offset):
    return json.loads(json.dumps(offset))


def loader(**options):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(torch.arange(N), torch.from_numpy(X)), batch_size=64, **options)


FILES = [
    *("t.parquet", "t.feather", "t.arrow", "t.ipc", "t.csv", "t.ndjson", "list.jsonl"),
    *("t.npy", "f.npy", "t.npz", "f.npz", "packed.npz", "packed_f.npz"),
]
OBJECTS = {
    "Table": lambda folder: TABLE,
    "chunked Table": lambda folder: pa.concat_tables([TABLE[:300], TABLE[300:]]),
    "RecordBatchReader": lambda folder: TABLE.to_reader(max_chunksize=300),
    "Dataset": lambda folder: ds.dataset([folder / "t.parquet", folder / "t.parquet"]),
    "Scanner": lambda folder: ds.dataset(TABLE).scanner(),
    "ParquetFile": lambda folder: pq.ParquetFile(folder / "t.parquet"),
    "DataFrame": lambda folder: pl.from_arrow(TABLE),
    "LazyFrame": lambda folder: pl.scan_parquet(folder / "t.parquet").filter(pl.col("c0") > 0),
    "array": lambda folder: X,
    "list": lambda folder: [X, X[:300], TABLE, X, folder / "t.parquet", str(folder / "t.c*"), X],
    "generator": lambda folder: (X[i : i + 250] for i in range(0, N, 250)),
    "generator of paths": lambda folder: (folder / name for name in ("t.parquet", "t.npy", "t.csv")),
    "DataLoader": lambda folder: loader(),
}


@pytest.mark.parametrize("name", [*FILES, *OBJECTS])
@pytest.mark.parametrize("rows", [None, 70, 128])
def test_reading_goes_on_after_any_block_as_if_it_had_never_stopped(folder, name, rows):
    def opened():
        return OBJECTS[name](folder) if name in OBJECTS else folder / name

    columns = ["e"] if name == "list.jsonl" else None
    whole = list(read(opened(), rows=rows, columns=columns))
    assert whole[-1].offset["rows"] == sum(map(count, whole))
    for i, block in enumerate(whole):
        rest = list(read(opened(), rows=rows, columns=columns, start=as_json(block.offset)))
        assert [(b.file, b.row, b.offset) for b in rest] == [(b.file, b.row, b.offset) for b in whole[i + 1 :]]
        for again, before in zip(rest, whole[i + 1 :], strict=True):
            assert_same(again.data, before.data)


def count(block):
    return block.data.num_rows if hasattr(block.data, "num_rows") else block.data.shape[0]


def assert_same(a, b):
    if hasattr(a, "schema"):
        assert a.equals(b)
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_rows(folder, name):
    select = "e" if name == "list.jsonl" else None
    for rows in (None, 7):
        np.testing.assert_array_equal(np.concatenate(list(batches(folder / name, rows=rows, select=select))), X)


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 13), st.integers(1, 13), st.data())
def test_another_batch_size_after_a_restart_loses_no_row(lengths, before, after, data):
    bounds = np.cumsum([0, *lengths])
    source = [X[a:b] if i % 2 else TABLE[a:b] for i, (a, b) in enumerate(pairwise(bounds))]
    blocks = list(read(source, rows=before))
    if not blocks:
        return
    stop = data.draw(st.integers(0, len(blocks) - 1))
    rest = list(read(source, rows=after, start=blocks[stop].offset))
    got = [rows_of(b.data) for b in [*blocks[: stop + 1], *rest]]
    np.testing.assert_array_equal(np.concatenate(got), X[: bounds[-1]])
    for block in rest:
        assert block.row == block.offset["rows"] - count(block)


def test_an_offset_is_small_for_many_arrays():
    *_, last = read([X[i : i + 1] for i in range(N)])
    assert last.offset["items"] == [{"type": "numpy.ndarray", "count": N}]
    assert last.offset["rows"] == N


def test_the_numbers_of_rows_are_those_in_the_file_or_the_stream(folder):
    blocks = list(read([X[:10], folder / "t.parquet", X[:5]], rows=300))
    assert [(bool(b.file), b.row) for b in blocks] == [
        *((False, 0), (True, 0), (True, 300), (True, 600), (True, 900)),
        (False, 1010),
    ]


# What is passed over is not decoded


def spoil(path, start, size):
    """Overwrite bytes of a file, and put its times back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_row_groups_before_the_offset_are_not_decoded(tmp_path):
    x = np.random.default_rng(1).standard_normal(30_000)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": x}), path, row_group_size=10_000, use_dictionary=False, compression="zstd")
    blocks = list(read(path, rows=2_500))
    spoil(path, 5_000, 50_000)
    with pytest.raises((ValueError, OSError), match="row group 0 of 0 to 2"):
        list(read(path, rows=2_500))
    for i in (3, 4, 7):
        rest = [rows_of(b.data)[:, 0] for b in read(path, rows=2_500, start=blocks[i].offset)]
        np.testing.assert_array_equal(np.concatenate(rest), x[2_500 * (i + 1) :])


def test_finished_files_are_not_opened(folder, monkeypatch):
    opened = []
    read_parquet = readers.READERS[".parquet"]
    monkeypatch.setitem(readers.READERS, ".parquet", lambda file: opened.append(str(file)) or read_parquet(file))
    source = [folder / "t.parquet"] * 3 + [folder / "t.npy"]
    blocks = list(read(source))
    last = [b for b in blocks if b.file.endswith("parquet")][-1]
    opened.clear()
    assert [b.file for b in read(source, start=last.offset)] == [str(folder / "t.npy")]
    assert len(opened) == 1


# A source that is not what it was


@pytest.fixture
def three(tmp_path):
    for name in ("a", "c", "e"):
        pq.write_table(TABLE[:200], tmp_path / f"{name}.parquet", row_group_size=50)
    return tmp_path


def offset_in(source, block):
    return as_json(list(read(source, rows=50))[block].offset)


def refused(pattern, source, start):
    with pytest.raises(ValueError, match=pattern):
        read(source, start=start)


def test_a_file_that_changed_is_refused_with_the_difference(three):
    start = offset_in(three, 5)
    path = three / "a.parquet"
    size, times = path.stat().st_size, path.stat()
    spoil(path, 10, 5)
    refused(
        r"a\.parquet' changed after it was read: the digest of its first bytes was \w{16} and is \w{16}", three, start
    )
    path.write_bytes(path.read_bytes() + b"12")
    refused(rf"a\.parquet' changed after it was read: its size in bytes was {size} and is {size + 2}", three, start)
    pq.write_table(TABLE[:200], path, row_group_size=50)
    os.utime(path, ns=(0, times.st_mtime_ns + 1))
    refused(rf"the time of its last change was {times.st_mtime_ns} and is", three, start)
    os.utime(path, ns=(0, times.st_mtime_ns))
    assert len(list(read(three, rows=50, start=start))) == 6


def test_the_file_at_hand_is_compared_too(three):
    start = offset_in(three, 5)
    pq.write_table(TABLE[:300], three / "c.parquet")
    refused(r"c\.parquet' changed after it was read: its size", three, start)


def test_a_missing_file_is_refused(three):
    start = offset_in(three, 5)
    (three / "c.parquet").rename(three / "c.parquet.gone")
    refused(r"c\.parquet' was read before and is missing now, .*e\.parquet' is in its place", three, start)
    refused(r"item 1 of the source, .*c\.parquet', was read before and is missing", three / "a.parquet", start)


def test_a_new_file_that_sorts_before_is_refused_and_one_after_is_read(three):
    start = offset_in(three, 5)
    pq.write_table(TABLE[:200], three / "d.parquet", row_group_size=50)
    names = [b.file[-9:] for b in read(three, rows=50, start=start)]
    assert names == ["c.parquet"] * 2 + ["d.parquet"] * 4 + ["e.parquet"] * 4
    pq.write_table(TABLE[:200], three / "b.parquet")
    refused(
        r"b\.parquet' is new, and comes before .*c\.parquet', which was read before; put the source back", three, start
    )


def test_a_thing_of_another_type_is_refused(three):
    refused(
        "of type pyarrow.lib.Table was read before, and of type numpy.ndarray is in its place",
        [X],
        offset_in([TABLE], 1),
    )
    refused(r"of type numpy.ndarray was read before, and '.*a\.parquet' is", three, offset_in([X], 1))


def test_files_are_the_same_from_another_working_folder(three, monkeypatch):
    monkeypatch.chdir(three)
    start = offset_in(["a.parquet", "c.parquet"], 5)
    monkeypatch.chdir(three.parent)
    assert len(list(read([three / "a.parquet", three / "c.parquet"], rows=50, start=start))) == 2


def test_an_iterator_that_was_used_is_refused():
    def rows():
        yield from np.array_split(X, 10)

    start = offset_in(rows(), 9)
    with pytest.raises(ValueError, match="500 rows of a map were read before, and it gives only 0 rows now"):
        list(read(map(np.asarray, ()), start={**start, "items": [{"type": "builtins.map"}]}))
    used = rows()
    next(used)
    refused("500 rows of a generator were read before, and this one was already used; pass one", used, start)
    assert sum(map(count, read(rows(), start=start))) == 500


@pytest.mark.parametrize("start", [{}, {"items": []}, {"items": 3, "rows": 1}, "end", 3])
def test_what_is_no_offset_is_refused(start):
    refused("expected the offset of a block", X, start)


# Readers through the Arrow interface


def test_an_adbc_reader_is_a_source():
    dbapi = pytest.importorskip("adbc_driver_sqlite.dbapi")
    with dbapi.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", TABLE, mode="create")
        cursor.execute("SELECT * FROM t")
        reader = cursor.fetch_record_batch()
        np.testing.assert_array_equal(np.concatenate(list(batches(reader, rows=300))), X)


def test_a_duckdb_query_is_a_source(folder):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        query = connection.sql(f"SELECT c0, c3 FROM '{folder / 't.parquet'}' WHERE c1 > 0")
        np.testing.assert_array_equal(np.concatenate(list(batches(query))), X[X[:, 1] > 0][:, [0, 3]])


class OneTable(pyarrow.flight.FlightServerBase):
    def do_get(self, context, ticket):
        return pyarrow.flight.RecordBatchStream(TABLE)


@contextmanager
def flight_client():
    with OneTable("grpc://127.0.0.1:0") as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        with pyarrow.flight.connect(("127.0.0.1", server.port)) as client:
            yield client
        server.shutdown()
        thread.join()


def test_a_flight_reader_is_a_source():
    with flight_client() as client:
        for select in (None, ["c2"]):
            got = np.concatenate(list(batches(client.do_get(pyarrow.flight.Ticket(b"t")), select=select)))
            np.testing.assert_array_equal(got, X if select is None else X[:, [2]])


# What a DataLoader gives


def test_a_dataloader_gives_its_first_2d_tensor():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    as_dicts = DataLoader([{"y": i, "x": torch.from_numpy(X[i])} for i in range(N)], batch_size=30)
    for source in (loader(), as_dicts, DataLoader(torch.from_numpy(X), batch_size=17)):
        got = list(batches(source))
        assert all(isinstance(x, torch.Tensor) for x in got)
        np.testing.assert_array_equal(torch.cat(got).numpy(), X)


def test_a_dataloader_without_a_2d_tensor_is_refused_with_what_to_write():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    images = DataLoader(TensorDataset(torch.zeros(8, 3, 2, 2), torch.zeros(8)), batch_size=4)
    with pytest.raises(ValueError, match=r"lists of \(4, 3, 2, 2\), \(4,\).*x\.flatten\(1\) for x, \*_ in loader"):
        list(batches(images))
    assert sum(x.shape[0] for x in batches(x.flatten(1) for x, *_ in images)) == 8


# Files of text and arrays


def test_numbers_of_json_lines_may_go_on_with_fractions_and_start_with_nothing(tmp_path):
    whole, last = '{"a": 1, "e": [1, 2], "b": null}\n', '{"a": 0.5, "e": [0.5, 2], "b": 2.5}\n'
    (tmp_path / "x.ndjson").write_text(whole * 200_000 + last)
    *_, last = batches(tmp_path / "x.ndjson", select=["a", "e"])
    np.testing.assert_array_equal(last[-1], [0.5, 0.5, 2.0])
    np.testing.assert_array_equal(next(batches(tmp_path / "x.ndjson", select="b", nulls="drop")), [[2.5]])


def test_a_field_that_appears_late_wants_a_choice_of_columns(tmp_path):
    (tmp_path / "x.ndjson").write_text('{"a": 1.0}\n' * 600_000 + '{"a": 2.0, "late": 1.0}\n')
    with pytest.raises(ValueError, match=r"x\.ndjson.*a line has a field that the first 4 MiB lack.*select="):
        list(batches(tmp_path / "x.ndjson"))
    assert sum(map(len, batches(tmp_path / "x.ndjson", select="a"))) == 600_001


def test_lines_that_are_no_json_are_refused_by_file(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"x\.jsonl' cannot be read"):
        list(batches(tmp_path / "x.jsonl"))


def test_an_npz_of_several_arrays_is_refused_by_their_names(tmp_path):
    from scipy import sparse

    np.savez(tmp_path / "x.npz", left=X, right=X)
    with pytest.raises(ValueError, match=r"x\.npz.*2 arrays \(left, right\).*numpy\.load\(path\)\[name\]"):
        list(batches(tmp_path / "x.npz"))
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_array(X))
    with pytest.raises(ValueError, match=r"scipy\.sparse\.load_npz"):
        list(batches(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", x=X[0])
    with pytest.raises(ValueError, match=r"x\.npz': an array of shape \(4,\)"):
        list(batches(tmp_path / "x.npz"))


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_objects_in_array_files_are_never_loaded(tmp_path, save):
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, np.array([[{}]], dtype=object))
    with pytest.raises(ValueError, match=r"Python objects, which are never loaded"):
        list(batches(path))


@pytest.mark.parametrize("name", ["t.npz", "packed.npz", "packed_f.npz", "t.npy"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_an_array_file_cut_short_is_refused_by_name(folder, tmp_path, name, share):
    whole = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{name}' cannot be read"):
        list(batches(tmp_path / name))


def test_a_flipped_bit_in_a_packed_array_is_found(folder, tmp_path):
    data = bytearray((folder / "packed.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npz' cannot be read"):
        list(batches(tmp_path / "x.npz", rows=100))


def test_a_plain_array_in_an_npz_is_seen_not_read(folder):
    block = next(read(folder / "t.npz"))
    assert isinstance(block.data, np.memmap)


def test_a_damaged_page_is_named_by_file_and_row_group(folder, tmp_path):
    data = bytearray((folder / "t.parquet").read_bytes())
    start = pq.ParquetFile(folder / "t.parquet").metadata.row_group(2).column(0).data_page_offset
    data[start : start + 200] = bytes(200)
    (tmp_path / "t.parquet").write_bytes(data)
    stream = batches(tmp_path / "t.parquet")
    np.testing.assert_array_equal(np.concatenate([next(stream), next(stream)]), X[:600])
    with pytest.raises((ValueError, OSError), match=r"t\.parquet' cannot be read.*row group 2 of 0 to 3"):
        next(stream)


# Who may read


def test_only_files_may_be_read_by_another_thread(folder, tmp_path):
    for source in (str(folder), folder / "t.csv", [folder / "t.csv", "x"], Follow(tmp_path)):
        assert owned(source)
    for source in (X, TABLE, iter([X]), [], [folder, X], [X], pl.LazyFrame(), (folder for _ in range(2))):
        assert not owned(source)


def test_the_rows_of_array_files_are_known(folder):
    for name in ("t.npz", "packed.npz", "f.npy"):
        assert total_rows(folder / name) == N
    assert total_rows(folder / "t.ndjson") is None
