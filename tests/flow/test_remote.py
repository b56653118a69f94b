"""Files behind URLs give what local files give: in memory, on a local S3 server, over HTTP."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from streamsvd.flow.batches import batches
from streamsvd.flow.files import find
from streamsvd.flow.sources import owned, read, total_rows

fsspec = pytest.importorskip("fsspec")

N = 500
X = np.random.default_rng(0).standard_normal((N, 3))
TABLE = pa.table({f"c{j}": X[:, j] for j in range(3)})
NAMES = ["t.parquet", "t.feather", "t.ipc", "t.csv", "t.ndjson", "t.npy", "f.npy", "t.npz", "packed.npz"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    path = tmp_path_factory.mktemp("local")
    pq.write_table(TABLE, path / "t.parquet", row_group_size=120)
    pyarrow.feather.write_feather(TABLE, path / "t.feather", chunksize=120)
    with pa.ipc.new_stream(path / "t.ipc", TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=128)
    pyarrow.csv.write_csv(TABLE, path / "t.csv")
    (path / "t.ndjson").write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    np.save(path / "t.npy", X)
    np.save(path / "f.npy", np.asfortranarray(X))
    np.savez(path / "t.npz", x=X)
    np.savez_compressed(path / "packed.npz", x=X)
    return path


@pytest.fixture(scope="module")
def memory(local):
    filesystem = fsspec.filesystem("memory")
    for name in NAMES:
        filesystem.pipe(f"/bucket/data/{name}", (local / name).read_bytes())
    yield "memory://bucket/data"
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture(scope="module")
def s3(server, local):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", server),
            ("NO_PROXY", "127.0.0.1"),
            ("no_proxy", "127.0.0.1"),
        ):
            patch.setenv(name, value)
        filesystem = fsspec.filesystem("s3")
        filesystem.mkdir("bucket", acl="public-read")
        for name in NAMES:
            with filesystem.open(f"bucket/data/{name}", "wb", acl="public-read") as file:
                file.write((local / name).read_bytes())
        yield "s3://bucket/data"
        filesystem.clear_instance_cache()


@pytest.fixture(params=["memory", "s3"])
def folder(request):
    return request.getfixturevalue(request.param)


def stacked(source, **options):
    return np.concatenate([np.asarray(x) for x in batches(source, **options)])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_behind_a_url_gives_its_rows_and_goes_on_after_any_block(folder, name):
    url = f"{folder}/{name}"
    np.testing.assert_array_equal(stacked(url), X)
    whole = list(read(url, rows=70))
    assert {block.file for block in whole} == {url if folder.startswith("s3") else url.replace("//", "///")}
    for i in (0, len(whole) // 2, len(whole) - 1):
        rest = list(read(url, rows=70, start=json.loads(json.dumps(whole[i].offset))))
        assert [(b.row, b.offset) for b in rest] == [(b.row, b.offset) for b in whole[i + 1 :]]
    assert owned(url)


def test_globs_and_folders_behind_urls_are_sorted_files(folder):
    filesystem, path = fsspec.core.url_to_fs(folder)
    for hidden in ("_SUCCESS.csv", ".t.parquet", "notes.txt", "_temporary/x.parquet"):
        filesystem.pipe(f"{path}/{hidden}", b"no data")
    assert [str(file).rpartition("/")[2] for file in find(folder)] == sorted(NAMES)
    assert [str(file).rpartition("/")[2] for file in find(f"{folder}/t.n*")] == ["t.ndjson", "t.npy", "t.npz"]
    assert [str(file).rpartition("/")[2] for file in find(f"{folder}/*.np?")] == [
        n for n in sorted(NAMES) if ".np" in n
    ]
    np.testing.assert_array_equal(stacked([f"{folder}/t.parquet", X]), np.concatenate([X, X]))


def test_columns_are_chosen_behind_urls_too(folder):
    np.testing.assert_array_equal(stacked(f"{folder}/t.parquet", select=["c2", "c0"]), X[:, [2, 0]])
    with pytest.raises(ValueError, match=r"t\.parquet': there is no column 'nope'"):
        stacked(f"{folder}/t.parquet", select="nope")


def test_paths_behind_urls_that_lead_nowhere_are_refused_at_once(folder):
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet' does not exist; check the address"):
        batches(f"{folder}/gone.parquet")
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        batches(f"{folder}/gone*.parquet")
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.pipe(f"{path}/x.xlsx", b"?")
    with pytest.raises(ValueError, match=r"suffix of .*x\.xlsx.* expected one of \.parquet"):
        batches(f"{folder}/x.xlsx")


def test_a_changed_object_is_refused(folder):
    filesystem, path = fsspec.core.url_to_fs(folder)
    url = f"{folder}/more/x.csv"
    filesystem.pipe(f"{path}/more/x.csv", b"x\n1\n2\n")
    start = next(read(url, rows=1)).offset
    assert len(list(read(url, rows=1, start=start))) == 1
    filesystem.pipe(f"{path}/more/x.csv", b"x\n1\n2\n3\n")
    with pytest.raises(ValueError, match=r"x\.csv' changed after it was read: its size in bytes was 6 and is 8"):
        read(url, start=start)
    filesystem.rm(f"{path}/more", recursive=True)


def test_a_damaged_object_is_named(folder, local):
    filesystem, path = fsspec.core.url_to_fs(folder)
    for name in ("t.parquet", "t.npy"):
        filesystem.pipe(f"{path}/cut/{name}", (local / name).read_bytes()[:-400])
        with pytest.raises((ValueError, OSError), match=rf"cut/{name}' cannot be read"):
            stacked(f"{folder}/cut/{name}")
    filesystem.rm(f"{path}/cut", recursive=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_web_address_is_one_file(s3, server, name):
    np.testing.assert_array_equal(stacked(f"{server}/bucket/data/{name}"), X)


def test_the_query_of_a_web_address_is_kept_out_of_offsets(s3, server):
    url = f"{server}/bucket/data/t.parquet?X-Secret=123"
    blocks = list(read(url, rows=100))
    assert blocks[0].file == f"{server}/bucket/data/t.parquet"
    assert "123" not in json.dumps(blocks[0].offset)
    renewed = list(read(url.replace("123", "456"), rows=100, start=blocks[0].offset))
    assert len(renewed) == len(blocks) - 1


def test_a_file_url_is_a_local_path(local):
    url = (local / "t.parquet").as_uri()
    assert next(read(url)).file == str(local / "t.parquet")
    assert total_rows(url) == N


def test_the_rows_behind_a_url_are_not_asked_for(memory):
    assert total_rows(f"{memory}/t.parquet") is None


def test_an_error_of_the_network_names_the_url_whatever_its_kind(memory, monkeypatch):
    class Reset(OSError):
        def __init__(self, key, reason):
            super().__init__(reason)

    def fails(*_, **__):
        raise Reset(None, "reset by peer")

    stream = batches(f"{memory}/t.csv")
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "open", fails)
    with pytest.raises(OSError, match=r"t\.csv' cannot be read.*reset by peer"):
        next(stream)


def test_an_unknown_scheme_is_answered_with_the_pip_command():
    with pytest.raises(ValueError, match=r"nowhere:// is no scheme.*pip install \"streamsvd\[objects\]\""):
        batches("nowhere://bucket/x.parquet")


def test_a_missing_package_is_answered_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs:// needs a package .*gcsfs.*pip install \"streamsvd\[objects\]\""):
        batches("gs://bucket/x.parquet")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"s3:// needs the package fsspec: pip install \"streamsvd\[objects\]\""):
        batches("s3://bucket/x.parquet")
