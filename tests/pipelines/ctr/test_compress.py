from __future__ import annotations

import numpy as np
import pytest
from ctr_tables import counts_table, table, truth, vectors, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamsvd.pipelines.ctr.choosing import Target
from streamsvd.pipelines.ctr.compress import compress_tables, finish, open_compressed
from streamsvd.pipelines.ctr.counts import read_counts
from streamsvd.pipelines.ctr.moments import Moments, Weighting
from streamsvd.pipelines.ctr.passes import measure

X = vectors(200, 8)
C = np.random.default_rng(1).integers(1, 50, 200).astype(float)


def weighted_error(x: np.ndarray, back: np.ndarray, w: np.ndarray) -> float:
    return float((w / w.sum()) @ ((x.astype(np.float64) - back) ** 2).sum(axis=1))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_full_rank_is_the_identity_to_rounding(dtype: type, center: bool) -> None:
    x = X.astype(dtype)
    one = compress_tables({"a": x}, {"a": C}, rank=8, keep_dense=False, center=center)["a"]
    np.testing.assert_allclose(one.reconstruct(), x, atol=16 * np.finfo(dtype).eps * np.abs(x).max())
    assert one.dropped == 0.0


@given(
    weights=arrays(np.float64, 40, elements=st.floats(0, 1e6, allow_subnormal=False)),
    rank=st.integers(1, 5),
    center=st.booleans(),
)
def test_error_is_the_sum_of_the_dropped_eigenvalues(weights: np.ndarray, rank: int, center: bool) -> None:
    weights[0] = 1.0
    x = X[:40, :6].astype(np.float64)
    one = compress_tables({"a": x}, {"a": weights}, rank=rank, keep_dense=False, center=center)["a"]
    expected = truth(x, weights, center)
    scale = expected[0] + 1e-9
    assert one.dropped == pytest.approx(np.maximum(expected[rank:], 0).sum(), abs=1e-11 * scale + 1e-12)
    assert weighted_error(x, one.reconstruct(), weights) == pytest.approx(one.dropped, abs=1e-10 * scale + 1e-12)


def test_integer_counts_equal_repeated_rows() -> None:
    counts = np.random.default_rng(3).integers(0, 5, len(X))
    once = compress_tables({"a": X}, {"a": counts}, rank=3)["a"]
    repeated = compress_tables({"a": np.repeat(X, counts, axis=0)}, {"a": np.ones(counts.sum())}, rank=3)["a"]
    np.testing.assert_allclose(once.eigenvalues, repeated.eigenvalues, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(once.mean, repeated.mean, rtol=1e-12)
    np.testing.assert_allclose(np.abs(once.projection @ repeated.projection.T), np.eye(3), atol=1e-9)


def test_shards_merge_in_any_order_to_the_same_eigenvalues() -> None:
    whole = Moments().update("a", X, C)
    shards = [Moments().update("a", X[i : i + 37], C[i : i + 37]) for i in range(0, 200, 37)]
    for order in (range(len(shards)), [3, 1, 5, 0, 4, 2]):
        merged = Moments()
        for i in order:
            merged = merged.merge(shards[i])
        a, b = (finish({"a": X}, m, Target(rank=3))["a"].eigenvalues for m in (whole, merged))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15)
    assert merged.fields["a"].vocabulary == 200


def test_a_mean_a_million_times_the_spread_costs_no_digits() -> None:
    spread = vectors(500, 6, mean=0.0).astype(np.float64)
    far = spread + 1e6
    one = compress_tables({"a": far}, {"a": np.ones(500)}, rank=2)["a"]
    np.testing.assert_allclose(one.eigenvalues, truth(far, np.ones(500)), rtol=1e-7)
    assert weighted_error(far, one.reconstruct(), np.ones(500)) == pytest.approx(one.dropped, rel=1e-6)


def test_ids_that_were_never_looked_up_do_not_count() -> None:
    counts = C.copy()
    counts[50:] = 0.0
    some = compress_tables({"a": X}, {"a": counts}, rank=3)["a"]
    alone = compress_tables({"a": X[:50]}, {"a": counts[:50]}, rank=3)["a"]
    np.testing.assert_allclose(some.eigenvalues, alone.eigenvalues, rtol=1e-12)
    assert some.table.shape == (200, 3)


def test_smoothing_and_power_weight_as_they_say_and_served_error_is_of_the_counts() -> None:
    one = compress_tables({"a": X}, {"a": C}, rank=3, smoothing=2.0)["a"]
    np.testing.assert_allclose(one.eigenvalues, truth(X, C + 2.0), rtol=1e-9)
    tempered = compress_tables({"a": X}, {"a": C}, rank=3, smoothing=2.0, power=0.5)["a"]
    np.testing.assert_allclose(tempered.eigenvalues, truth(X, np.sqrt(C + 2.0)), rtol=1e-9)
    served = weighted_error(X, tempered.reconstruct(), C) / float((C / C.sum()) @ (X.astype(float) ** 2).sum(1))
    assert tempered.served_error == pytest.approx(served, rel=1e-4)
    assert tempered.served_error >= compress_tables({"a": X}, {"a": C}, rank=3)["a"].served_error


def test_all_alike_vectors_are_their_mean() -> None:
    one = compress_tables({"a": np.ones((50, 4), np.float32)}, {"a": np.ones(50)}, rank=1)["a"]
    np.testing.assert_allclose(one.reconstruct(), 1.0)


def test_tables_come_from_any_container_with_the_same_result(tmp_path) -> None:
    from safetensors.numpy import save_file

    parts = {"a": X, "b": vectors(90, 5, 2)}
    counts = {"a": C, "b": np.arange(90.0)}
    save_file(parts, tmp_path / "t.safetensors")
    np.save(tmp_path / "a.npy", X)
    frame = table(parts, shuffle=4)
    whole = compress_tables(parts, counts, rank=2)
    for source in (
        frame,
        write(tmp_path / "t.parquet", frame),
        tmp_path / "t.safetensors",
        {**parts, "a": tmp_path / "a.npy"},
    ):
        found = compress_tables(source, counts_table(counts), rank=2)
        for name in parts:
            np.testing.assert_allclose(found[name].eigenvalues, whole[name].eigenvalues, rtol=1e-10)
            order = np.argsort(np.asarray(found[name].ids))
            np.testing.assert_allclose(found[name].reconstruct()[order], whole[name].reconstruct(), atol=1e-5)


def test_text_ids_are_found_whatever_their_order() -> None:
    names = np.array([f"id{i}" for i in range(200)])
    order = np.random.default_rng(0).permutation(200)
    a = compress_tables({"a": (names, X)}, {"a": dict(zip(names[order], C[order], strict=True))}, rank=3)["a"]
    np.testing.assert_allclose(a.eigenvalues, compress_tables({"a": X}, {"a": C}, rank=3)["a"].eigenvalues, rtol=1e-10)


def test_a_folder_holds_what_memory_would(tmp_path) -> None:
    parts, counts = {"a": X, "b/c": vectors(90, 5, 2)}, {"a": C, "b/c": np.arange(90.0)}
    memory = compress_tables(parts, counts, budget_bytes=4000)
    memory.save(tmp_path / "saved")
    compress_tables(table(parts), counts_table(counts), budget_bytes=4000, out=tmp_path / "out")
    for folder in ("saved", "out"):
        found = open_compressed(tmp_path / folder)
        assert {k: f.rank for k, f in found.items()} == {k: f.rank for k, f in memory.items()}
        for name in parts:
            np.testing.assert_allclose(found[name].reconstruct(), memory[name].reconstruct(), atol=1e-5)


def test_a_pass_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch) -> None:
    import streamsvd.pipelines.ctr.passes as passes

    path = write(tmp_path / "t.parquet", table({"a": X, "b": vectors(900, 8, 2)}, shuffle=1), group=100)
    counts = read_counts(counts_table({"a": C, "b": np.arange(900.0)}))
    whole, _ = measure(path, counts)
    real, seen = passes.batches, []

    def broken(tables, start=None):
        for batch in real(tables, start=start):
            if len(seen) == 9:
                raise KeyboardInterrupt
            seen.append(batch.offset)
            yield batch

    monkeypatch.setattr(passes, "batches", broken)
    with pytest.raises(KeyboardInterrupt):
        measure(path, counts, checkpoint=tmp_path / "m.svd", every=0.0)
    starts = []
    monkeypatch.setattr(
        passes, "batches", lambda tables, start=None: (starts.append(start), real(tables, start=start))[1]
    )
    again, _ = measure(path, counts, checkpoint=tmp_path / "m.svd")
    assert starts[0] is not None
    for name in ("a", "b"):
        a, b = (np.tril(x.fields[name].served.core.scatter) for x in (again, whole))
        assert np.array_equal(a, b)
        assert again.fields[name].vocabulary == whole.fields[name].vocabulary
    with pytest.raises(ValueError, match="other options"):
        measure(path, counts, checkpoint=tmp_path / "m.svd", weighting=Weighting(smoothing=1.0))


def test_writing_that_was_stopped_goes_on_and_loses_no_row(tmp_path, monkeypatch) -> None:
    from streamsvd.pipelines.ctr import io

    path = write(tmp_path / "t.parquet", table({"a": X, "b": vectors(900, 8, 2)}, shuffle=1), group=100)
    counts = counts_table({"a": C, "b": np.arange(900.0)})
    whole = compress_tables(path, counts, rank=3)
    monkeypatch.setattr(io, "PART_ROWS", 250)
    real = io.batches

    def broken(tables, start=None):
        for i, batch in enumerate(real(tables, start=start)):
            if i == 13:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(io, "batches", broken)
    with pytest.raises(KeyboardInterrupt):
        compress_tables(path, counts, rank=3, out=tmp_path / "out")
    monkeypatch.setattr(io, "batches", real)
    done = compress_tables(path, counts, rank=3, out=tmp_path / "out")
    for name in ("a", "b"):
        assert np.array_equal(np.asarray(done[name].ids), np.asarray(whole[name].ids))
        np.testing.assert_array_equal(done[name].table, whole[name].table)


def test_states_survive_the_disk_bit_for_bit(tmp_path) -> None:
    import streamsvd as ss

    state = Moments(Weighting(smoothing=1.0), model="m").update("a", X, C)
    ss.save(state, tmp_path / "s.svd")
    back = ss.load(tmp_path / "s.svd")
    assert back.weighting == state.weighting
    assert np.array_equal(np.tril(back.fields["a"].served.core.scatter), np.tril(state.fields["a"].served.core.scatter))


def test_float32_rows_are_exact_under_a_large_mean() -> None:
    far = vectors(500, 6, mean=12345.678)
    one = compress_tables({"a": far}, {"a": np.arange(1.0, 501.0)}, rank=3)["a"]
    np.testing.assert_allclose(one.table, (far.astype(np.float64) - one.mean) @ one.projection.T, atol=1e-5)
