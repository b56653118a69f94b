"""A partition becomes the same bytes each time, parts join only with their neighbour, and a part that is not right is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import streamsvd as ss
from streamsvd.engines.contract import Part, merged
from streamsvd.engines.job import Job, content_key
from streamsvd.flow import statefile


def rows(seed: int, n: int = 60, d: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) / np.arange(1, d + 1)


def part(number: int, **options) -> Part:
    return Part.from_bytes(Job.of(**({"rank": 3} | options)).fold(rows(number), number))


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_the_same_partition_gives_the_same_bytes(kind):
    job = Job.of(rank=3, kind=kind)
    x = rows(0)
    assert job.fold(x, 4) == job.fold([x[:17].copy(), x[17:].copy()], 4)


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_bytes_and_back_change_no_bit(kind):
    one = part(2, kind=kind)
    again = Part.from_bytes(one.to_bytes())
    assert again.to_bytes() == one.to_bytes()
    assert (again.first, again.count, again.intake, again.settings) == (2, 1, one.intake, one.settings)


def test_no_row_waits_in_what_travels():
    one = part(0, kind="truncated", kept=7)  # 18 of the 60 rows wait
    assert one.state.pending.count == 0
    assert one.state.rows == 60
    d, kept = 12, 7
    assert len(one.to_bytes()) < 8 * (kept + 16) * d + 8000


def test_the_bytes_are_a_state_file(tmp_path):
    file = tmp_path / "part.svd"
    file.write_bytes(part(0).to_bytes())
    assert ss.load(file).rows == 60


def test_neighbours_join_and_nothing_else():
    a, b, c = part(0), part(1), part(2)
    assert (a.merge(b).first, a.merge(b).count) == (0, 2)
    with pytest.raises(ValueError, match="partition 0 and partition 2 do not join: those from 1 on are missing"):
        a.merge(c)
    with pytest.raises(
        ValueError, match="partitions 0 to 1 and partition 1 do not join: a partition would count twice"
    ):
        a.merge(b).merge(b)


def test_an_empty_partition_joins_on_either_side():
    job = Job.of(rank=3)
    table = pa.table({f"c{i}": rows(0)[:, i] for i in range(12)})
    full, empty = job.fold(table, 0), job.fold(table.slice(0, 0), 1)
    assert Part.from_bytes(empty).state is None
    both = merged([Part.from_bytes(full), Part.from_bytes(empty), Part.from_bytes(job.fold(table, 2))])
    assert (both.state.rows, both.names) == (120, tuple(table.column_names))
    first = merged([Part.from_bytes(job.fold(table.slice(0, 0), 0)), Part.from_bytes(job.fold(table, 1))])
    assert (first.state.rows, first.names) == (60, tuple(table.column_names))


def test_mixed_options_are_refused_by_name():
    with pytest.raises(ValueError, match="rank=3 became rank=4"):
        part(0).merge(part(1, rank=4))


def test_mixed_types_are_refused_by_partition():
    job = Job.of(rank=3)
    a, b = job.fold(rows(0), 0), job.fold(rows(1).astype(np.float32), 1)
    with pytest.raises(ValueError, match=r"partition 1, after partition 0: cannot merge states of float.*same dtype="):
        job.merge([a, b])
    job = Job.of(rank=3, dtype="float32")
    whole = Part.from_bytes(job.merge([job.fold(rows(0), 0), job.fold(rows(1).astype(np.float32), 1)]))
    assert whole.state.rows == 120


def test_other_columns_are_refused_by_name():
    job = Job.of(rank=1)
    a, b = (job.fold(pa.table({"x": [1.0, 2.0], last: [3.0, 5.0]}), n) for n, last in enumerate("yz"))
    with pytest.raises(ValueError, match=r"partition 1, after partition 0: it lacks \['y'\] and has \['z'\] besides"):
        job.merge([a, b])


def test_a_refused_partition_says_so_and_lets_the_others_live():
    bad = rows(1)
    bad[7, 2] = np.nan
    job = Job.of(rank=3)
    whole = Part.from_bytes(job.merge([job.fold(rows(0), 0), job.fold(bad, 1), job.fold(rows(2), 2)]))
    assert whole.state.rows == 120
    assert list(whole.failed) == ["1"]
    assert "row 7" in whole.failed["1"]


def test_counts_are_summed_over_partitions():
    bad = rows(1)
    bad[7, 2] = np.nan
    job = Job.of(rank=3, nonfinite="drop")
    whole = Part.from_bytes(job.merge([job.fold(bad, 0), job.fold(rows(0), 1), job.fold(bad, 2)]))
    assert (whole.intake.seen, whole.intake.dropped, whole.state.rows) == (180, {"nonfinite": 2}, 178)


@pytest.mark.parametrize("at", [3, 40, 500, -1])
def test_a_wrong_bit_is_found(at):
    data = bytearray(part(0).to_bytes())
    data[at] ^= 1
    with pytest.raises(ValueError, match=r"a part"):
        Part.from_bytes(bytes(data))


def test_another_version_is_refused(monkeypatch):
    job = Job.of(rank=3)
    data = job.fold(rows(0), 0)
    with monkeypatch.context() as patch:
        patch.setattr("streamsvd.engines.contract.__version__", "9.9.9")
        other = job.fold(rows(1), 1)
    with pytest.raises(
        ValueError, match=r"made by streamsvd 9\.9\.9, and this is .*install one version on all workers"
    ):
        job.merge([data, other])
    with monkeypatch.context() as patch:
        patch.setattr(statefile, "VERSION", 2)
        newer = job.fold(rows(1), 1)
    with pytest.raises(ValueError, match="newer streamsvd"):
        job.merge([data, newer])


def test_a_plain_state_file_is_no_part(tmp_path):
    ss.save(part(0).state, tmp_path / "s.svd")
    with pytest.raises(ValueError, match="holds a 'gram' that no engine made"):
        Part.from_bytes((tmp_path / "s.svd").read_bytes())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 0.9}, "partitions have no order"),
        ({"half_life": 100.0}, "timestamps="),
        ({"quarantine": "q"}, "quarantine"),
        ({"scale": "unit"}, "kind='gram'"),
        ({"fan_in": 1}, "2 or more"),
        ({"by": "k", "overflow": "spill"}, "streamsvd.fit"),
    ],
)
def test_options_without_a_meaning_for_partitions_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Job.of(**({"rank": 3} | options))


def test_read_only_rows_are_taken():
    x = rows(0)
    x.flags.writeable = False
    job = Job.of(rank=3, kind="truncated")
    assert job.fold(x) == job.fold(rows(0))
    torch = pytest.importorskip("torch")
    del torch
    on_torch = Part.from_bytes(Job.of(rank=3, kind="truncated", device="cpu").fold(x))
    np.testing.assert_allclose(on_torch.state.factors().s, Part.from_bytes(job.fold(x)).state.factors().s, rtol=1e-12)


def test_the_key_of_a_table_is_that_of_its_rows():
    table = pa.table({"x": np.arange(10.0), "y": np.arange(10)})
    same = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert content_key(table) == content_key(same)
    assert content_key(table.slice(2, 4)) == content_key(pa.table({"x": np.arange(2.0, 6.0), "y": np.arange(2, 6)}))
    assert (
        len({content_key(t) for t in (table, table.slice(1), table.select(["x"]), table.rename_columns(["x", "z"]))})
        == 4
    )
