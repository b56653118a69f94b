"""A run with a checkpoint, broken off anywhere, ends in the bits of one that never stopped: for every source, policy and kind of state."""

from __future__ import annotations

import datetime
import inspect
import threading
import time
from dataclasses import fields

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsvd.flow.checkpoint import contents
from streamsvd.flow.checkpoints import read_run
from streamsvd.flow.fold import fit, run
from streamsvd.flow.request import Request

N, D = 3000, 6
RNG = np.random.default_rng(5)
X = (RNG.standard_normal((N, D)) * 0.7 ** np.arange(D) + 2).astype(np.float32)
HOLES = np.where(RNG.random((N, D)) < 0.02, np.nan, X)
NAMES = [f"c{j}" for j in range(D)]
TABLE = pa.table(
    {
        **{name: pa.array(HOLES[:, j], mask=RNG.random(N) < 0.02) for j, name in enumerate(NAMES)},
        "w": RNG.random(N) + 0.1,
        "t": [datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=i) for i in range(N)],
        "key": pa.array([("a", "b", "c", "d")[i] for i in RNG.integers(0, 4, N)]),
    }
)
CLEAN = pa.table({name: X[:, j] for j, name in enumerate(NAMES)})


class Broken(Exception):
    pass


def broken_off(source, path, rows, *, every=200, **options):
    """Run until ``rows`` rows are in a checkpoint, or to the end where there are none; tell whether it was broken off."""

    def stop(event):
        if event.seen >= rows:
            raise Broken

    try:
        run(source, checkpoint=path, every=every, on_event=stop, **options)
    except Broken:
        return True
    return False


def same(a, b) -> None:
    (_, arrays, meta), (_, others, rest) = contents(a), contents(b)
    assert meta == rest
    assert {k: v.tobytes() for k, v in arrays.items()} == {k: v.tobytes() for k, v in others.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume")
    for kind in ("clean", "holes", "arrow", "csv", "npy"):
        (path / kind).mkdir()
    for i, start in enumerate(range(0, N, 1000)):
        part = CLEAN[start : start + 1000]
        pq.write_table(part, path / "clean" / f"{i}.parquet", row_group_size=130)
        pq.write_table(TABLE[start : start + 1000], path / "holes" / f"{i}.parquet", row_group_size=130)
        with pa.ipc.new_file(path / "arrow" / f"{i}.arrow", part.schema) as writer:
            writer.write_table(part, max_chunksize=130)
        pl.from_arrow(part).write_csv(path / "csv" / f"{i}.csv")
        np.save(path / "npy" / f"{i}.npy", X[start : start + 1000])
    return path


SOURCES = {
    "parquet": lambda folder: folder / "clean",
    "glob": lambda folder: f"{folder}/clean/*.parquet",
    "list of files": lambda folder: [folder / "clean" / f"{i}.parquet" for i in (2, 0, 1)],
    "arrow": lambda folder: folder / "arrow",
    "csv": lambda folder: folder / "csv",
    "npy": lambda folder: folder / "npy",
    "arrays": lambda folder: [X[i : i + 170] for i in range(0, N, 170)],
    "tables": lambda folder: [CLEAN[i : i + 170] for i in range(0, N, 170)],
    "generator": lambda folder: (X[i : i + 170] for i in range(0, N, 170)),
    "lazy": lambda folder: pl.scan_parquet(folder / "clean" / "*.parquet"),
    "dataset": lambda folder: ds.dataset(folder / "clean"),
    "mixed": lambda folder: [folder / "clean" / "1.parquet", CLEAN, X],
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("rows", [1, 1100, 2900])
def test_every_source_goes_on_where_it_was(folder, tmp_path, name, rows):
    options = {"rank": 2, "kind": "truncated"}
    whole = run(SOURCES[name](folder), **options)
    assert broken_off(SOURCES[name](folder), tmp_path / "run.svd", rows, **options)
    outcome = run(SOURCES[name](folder), checkpoint=tmp_path / "run.svd", **options)
    assert outcome.resumed_rows >= rows
    assert outcome.intake.seen == outcome.state.rows == whole.state.rows
    assert outcome.names == whole.names
    same(outcome.state, whole.state)


POLICIES = {
    "drop": {"nulls": "drop", "nonfinite": "drop"},
    "mean": {"nulls": "mean", "nonfinite": "mean"},
    "drop and mean": {"nulls": "drop", "nonfinite": "mean"},
}
STATES = {
    "truncated": {"kind": "truncated"},
    "gram": {"kind": "gram"},
    "decay": {"kind": "truncated", "decay": 0.999},
    "unit": {"kind": "truncated", "scale": "unit"},
    "unit gram": {"kind": "gram", "scale": "unit"},
    "vector": {"kind": "truncated", "scale": np.arange(1.0, D + 1)},
    "weights": {"kind": "truncated", "weights": "w"},
    "times": {"kind": "truncated", "timestamps": "t", "half_life": "5m"},
    "keys": {"kind": "truncated", "by": "key"},
    "few keys": {"kind": "truncated", "by": "key", "keys": 2, "overflow": "spill"},
}


@settings(max_examples=8)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    state=st.sampled_from(sorted(STATES)),
    rows=st.lists(st.integers(1, N), max_size=3),
)
def test_every_policy_and_state_goes_on_where_it_was(folder, tmp_path_factory, policy, state, rows):
    options = {"rank": 2, "select": NAMES, **POLICIES[policy], **STATES[state]}
    path = tmp_path_factory.mktemp("run") / "run.svd"
    for count in sorted(rows):
        broken_off(folder / "holes", path, count, **options)
    outcome, whole = run(folder / "holes", checkpoint=path, **options), run(folder / "holes", **options)
    assert outcome.intake == whole.intake
    assert outcome.intake.seen == N == outcome.state.rows + sum(outcome.intake.dropped.values())
    if "by" not in options:
        same(outcome.state, whole.state)
    pairs = zip(results(outcome), results(whole), strict=True)
    for (key, a), (other, b) in pairs:
        assert key == other
        assert a.vt.tobytes() == b.vt.tobytes()
        assert (a.rows, a.norm) == (b.rows, b.norm)


def results(outcome):
    factors = outcome.state.factors()
    return sorted(factors.items()) if isinstance(factors, dict) else [(None, factors)]


def test_rejected_rows_are_in_the_quarantine_once(folder, tmp_path):
    options = {"rank": 2, "select": NAMES, "nulls": "drop", "nonfinite": "drop", "quarantine": tmp_path / "rejected"}
    for rows in (300, 900, 2000):
        assert broken_off(folder / "holes", tmp_path / "run.svd", rows, **options)
    outcome = run(folder / "holes", checkpoint=tmp_path / "run.svd", **options)
    table = pq.read_table(tmp_path / "rejected")
    lost = sum(outcome.intake.dropped.values())
    assert table.num_rows == lost > 100
    assert len(set(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))) == lost
    assert outcome.info["dropped"] == outcome.intake.dropped


def test_rows_rejected_from_a_batch_that_was_then_refused_are_in_the_quarantine_once(tmp_path):
    def parts():
        for start in range(0, N, 300):
            part = TABLE[start : start + 300]
            if broken and start == 900:
                part = part.set_column(part.column_names.index("w"), "w", pa.array(-part["w"].to_numpy()))
            yield part

    options = {"rank": 2, "select": NAMES, "nulls": "drop", "nonfinite": "drop", "weights": "w"}
    options |= {"quarantine": tmp_path / "rejected", "checkpoint": tmp_path / "run.svd"}
    broken = True
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        run(parts(), every=100_000, **options)
    assert not (tmp_path / "run.svd").exists()
    broken = False
    outcome = run(parts(), **options)
    table = pq.read_table(tmp_path / "rejected")
    assert table.num_rows == len(set(table["row"].to_pylist())) == sum(outcome.intake.dropped.values())


def test_a_finished_run_is_not_read_again(folder, tmp_path, monkeypatch):
    path = tmp_path / "run.svd"
    first = fit(folder / "clean", rank=2, checkpoint=path)
    from streamsvd.flow import pieces

    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr(pieces, "convert", never)
    before = path.read_bytes()
    again = fit(folder / "clean", rank=2, checkpoint=path)
    assert again.vt.tobytes() == first.vt.tobytes()
    assert again.names == first.names
    assert path.read_bytes() == before
    assert not (tmp_path / "run.svd.1").exists()


def test_files_that_came_later_are_added_to_a_finished_run(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(CLEAN[:1000], tmp_path / "in" / "a.parquet")
    fit(tmp_path / "in", rank=2, checkpoint=tmp_path / "run.svd", kind="truncated")
    pq.write_table(CLEAN[1000:], tmp_path / "in" / "b.parquet")
    outcome = run(tmp_path / "in", rank=2, checkpoint=tmp_path / "run.svd", kind="truncated")
    assert (outcome.resumed_rows, outcome.state.rows) == (1000, N)
    same(outcome.state, run(CLEAN, rank=2, kind="truncated").state)


CHANGES = {
    "rank": 3,
    "kind": "gram",
    "select": NAMES[:3],
    "center": False,
    "nulls": "drop",
    "nonfinite": "mean",
    "kept": 5,
    "shrink": 0.5,
    "decay": 0.9,
    "half_life": 100,
    "dtype": "float64",
    "seed": 1,
    "scale": np.ones(D),
    "exact": True,
    "by": "key",
    "keys": 7,
    "overflow": "spill",
    "weights": "w",
    "timestamps": "t",
    "quarantine": "elsewhere",
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_options_are_refused_by_name(folder, tmp_path, name):
    assert broken_off(folder / "clean", tmp_path / "run.svd", 500, rank=2)
    before = (tmp_path / "run.svd").read_bytes()
    with pytest.raises(ValueError, match=rf"begun with other options: {name}=.* became {name}=.*another checkpoint="):
        run(folder / "clean", checkpoint=tmp_path / "run.svd", **{"rank": 2, name: CHANGES[name]})
    assert (tmp_path / "run.svd").read_bytes() == before


def test_every_option_is_one_that_matters_or_one_that_does_not():
    asked = {field.name: field.default for field in fields(Request)}
    of_fit = {name: p.default for name, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY}
    of_run = {name: p.default for name, p in inspect.signature(run).parameters.items() if p.kind is p.KEYWORD_ONLY}
    free = {"checkpoint", "every", "keep", "on_event", "progress"}
    assert of_fit.keys() == asked.keys() | free
    assert asked.keys() == CHANGES.keys() == Request(rank=1).settings().keys()
    assert of_run == {name: of_fit[name] for name in free}
    del asked["rank"]
    assert {name: of_fit[name] for name in asked} == asked


def test_what_does_not_matter_may_change(folder, tmp_path):
    assert broken_off(folder / "clean", tmp_path / "run.svd", 500, rank=2)
    outcome = run(folder / "clean", rank=2, checkpoint=tmp_path / "run.svd", every="1h", keep=1, progress=False)
    assert outcome.state.rows == N
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.svd"]


def test_the_same_options_in_other_words_are_the_same(folder, tmp_path):
    options = {"rank": 2, "select": "c1", "dtype": np.float32, "half_life": datetime.timedelta(minutes=1)}
    other = {"rank": np.int64(2), "select": ("c1",), "dtype": "float32", "half_life": "60s"}
    assert Request(**options).settings() == Request(**other).settings()


def test_a_source_that_changed_is_refused(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        pq.write_table(CLEAN[i * 1000 : (i + 1) * 1000], tmp_path / "in" / f"{i}.parquet", row_group_size=100)
    assert broken_off(tmp_path / "in", tmp_path / "run.svd", 1500, rank=2)
    before = (tmp_path / "run.svd").read_bytes()
    pq.write_table(CLEAN[:990], tmp_path / "in" / "0.parquet")
    with pytest.raises(ValueError, match=r"run\.svd' cannot go on: .*0\.parquet"):
        run(tmp_path / "in", rank=2, checkpoint=tmp_path / "run.svd")
    (tmp_path / "in" / "0.parquet").unlink()
    with pytest.raises(ValueError, match=r"run\.svd' cannot go on: .*0\.parquet"):
        run(tmp_path / "in", rank=2, checkpoint=tmp_path / "run.svd")
    assert (tmp_path / "run.svd").read_bytes() == before


def test_an_iterator_that_was_already_used_is_refused(tmp_path):
    rows = (X[i : i + 100] for i in range(0, N, 100))
    assert broken_off(rows, tmp_path / "run.svd", 1000, rank=2)
    with pytest.raises(ValueError, match="already"):
        run(rows, rank=2, checkpoint=tmp_path / "run.svd")
    assert read_run(tmp_path / "run.svd").state.rows == 1000


def test_a_column_order_that_changes_between_files_survives_a_stop(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(CLEAN[:1000], tmp_path / "in" / "a.parquet")
    pq.write_table(CLEAN[1000:].select(NAMES[::-1]), tmp_path / "in" / "b.parquet")
    assert broken_off(tmp_path / "in", tmp_path / "run.svd", 1000, rank=2, kind="truncated", every=1)
    outcome = run(tmp_path / "in", rank=2, kind="truncated", checkpoint=tmp_path / "run.svd")
    same(outcome.state, run(CLEAN, rank=2, kind="truncated").state)


def test_a_folder_is_followed_until_it_is_stopped_and_again(tmp_path):
    from streamsvd.flow.follow import Follow

    (tmp_path / "in").mkdir()

    def follow(parts):
        source, seen = Follow(tmp_path / "in", poll=0.02, settle=0.0), []

        def on_event(event):
            seen.append(event.rows)
            if event.rows >= parts[-1][1]:
                source.stop()

        def bring():
            for start, stop in parts:
                time.sleep(0.1)
                pq.write_table(CLEAN[start:stop], tmp_path / "in" / f".{start}.tmp")
                (tmp_path / "in" / f".{start}.tmp").rename(tmp_path / "in" / f"{start}.parquet")

        thread = threading.Thread(target=bring)
        thread.start()
        outcome = run(
            source, rank=2, kind="truncated", checkpoint=tmp_path / "run.svd", every="10ms", on_event=on_event
        )
        thread.join()
        return outcome, seen

    first, _ = follow([(0, 700), (700, 1500)])
    assert first.state.rows == 1500
    second, seen = follow([(1500, N)])
    assert second.resumed_rows == 1500
    assert seen[-1] == N
    same(second.state, run(CLEAN, rank=2, kind="truncated").state)


def test_without_a_checkpoint_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(folder / "clean", rank=2, on_event=lambda event: None, every=500)
    assert list(tmp_path.iterdir()) == []


def test_states_of_keys_that_are_no_longer_needed_leave_the_disk(folder, tmp_path):
    options = {"rank": 2, "select": NAMES, "nulls": "drop", "nonfinite": "drop", **STATES["few keys"]}
    outcome = run(folder / "holes", checkpoint=tmp_path / "run.svd", every=100, **options)
    there = {p.name for p in (tmp_path / "run.svd.keys").iterdir()}
    assert outcome.state.live_files() <= there
    assert len(there) < 30
    factors = fit(folder / "holes", **options)
    assert sorted(factors) == ["a", "b", "c", "d"]
    assert factors["a"].names == tuple(NAMES)


def test_an_older_checkpoint_still_finds_its_states_of_keys_on_the_disk(folder, tmp_path):
    options = {"rank": 2, "select": NAMES, "nulls": "drop", "nonfinite": "drop", **STATES["few keys"], "keys": 1}
    whole = fit(folder / "holes", **options)
    assert broken_off(folder / "holes", tmp_path / "run.svd", 2500, every=100, **options)
    for name in ("run.svd", "run.svd.1"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"damaged")
    outcome = run(folder / "holes", checkpoint=tmp_path / "run.svd", **options)
    assert 0 < outcome.resumed_rows < 2500
    for key, factors in outcome.state.factors().items():
        assert factors.vt.tobytes() == whole[key].vt.tobytes()
