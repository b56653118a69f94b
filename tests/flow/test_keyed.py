"""The state of a key is, bit for bit, what its rows alone give: however they are mixed, cut, spilled, saved and merged."""

from __future__ import annotations

import errno
import os
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from streamsvd import load, save, sketch
from streamsvd.flow import spill, statefile
from streamsvd.flow.checkpoint import contents
from streamsvd.flow.keyed import Keyed
from streamsvd.flow.spill import prune

COLUMNS, RANK = 6, 2


def empty(**options):
    return sketch(**{"columns": COLUMNS, "rank": RANK, "kind": "truncated", "kept": 4, **options})


def some_rows(n: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, COLUMNS)) * np.arange(COLUMNS, 0, -1) + 3.0).astype(dtype)


def bits(state) -> str:
    """The digest of the file that the state would be, which covers all its parts."""
    return statefile.encode(*contents(state))[0]


def alone(start, x, keys, key, **beside):
    """The state of the rows of one key, folded at once."""
    mine = np.array([k == key for k in keys], bool)
    return start.update(x[mine], **{name: np.asarray(v)[mine] for name, v in beside.items()})


def fold(state, x, keys, sizes=(), **beside):
    cuts = [0, *np.cumsum(np.asarray(sizes, int)).clip(max=len(keys)).tolist(), len(keys)]
    for a, b in pairwise(cuts):
        state = state.update(x[a:b], keys=keys[a:b], **{name: v[a:b] for name, v in beside.items()})
    return state


# Each key as if alone


@pytest.mark.parametrize("kind", ["truncated", "gram"])
@settings(max_examples=40)
@given(
    codes=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    sizes=st.lists(st.integers(0, 40), max_size=6),
    limit=st.sampled_from([1, 2, 3, 6]),
    resume=st.booleans(),
)
def test_each_key_has_the_bits_of_its_rows_alone(tmp_path_factory, kind, codes, sizes, limit, resume):
    folder = tmp_path_factory.mktemp("keyed")
    start = empty(kind=kind, kept=None)
    x, keys = some_rows(len(codes)), [f"k{code}" for code in codes]
    state = Keyed.make(start, limit=limit, overflow="spill", folder=folder / "spilled")
    state = fold(state, x[: len(keys) // 2], keys[: len(keys) // 2], sizes)
    if resume:
        save(state, folder / "state.svd")
        state = load(folder / "state.svd")
    state = fold(state, x[len(keys) // 2 :], keys[len(keys) // 2 :], sizes)
    assert len(state.states) <= limit
    assert state.rows == len(keys)
    assert state.keys() == sorted(set(keys))
    for key, one in state.items():
        assert bits(one) == bits(alone(start, x, keys, key))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", [{}, {"decay": 0.99}, {"scale": np.arange(1.0, 7.0)}, {"half_life": "30s"}])
def test_weights_times_and_options_reach_the_rows_they_belong_to(order, options):
    rng = np.random.default_rng(1)
    x, keys = np.asarray(some_rows(90, dtype="float32"), order=order), rng.integers(0, 4, 90)
    beside = {"weights": rng.uniform(0, 2, 90).round(1)}  # some are 0
    if "half_life" in options:
        beside["timestamps"] = np.arange(90.0)
    state = fold(Keyed.make(empty(**options)), x, keys, [13, 40], **beside)
    for key in range(4):
        assert bits(state[key]) == bits(alone(empty(**options), x, keys, key, **beside))


def test_times_need_order_only_within_a_key():
    x, keys = some_rows(20), np.repeat([0, 1], 10)
    state = Keyed.make(empty(half_life="5s")).update(x, keys=keys, timestamps=np.tile(np.arange(10.0), 2))
    assert state.rows == 20
    with pytest.raises(ValueError, match=r"10 rows of key 1: timestamps must be finite and in order; row 0 has 0"):
        state.update(x[10:], keys=keys[10:], timestamps=np.arange(10.0))


@pytest.mark.parametrize("where", ["csr", "torch", "polars"])
def test_rows_may_come_in_any_storage(where):
    x, keys = np.where(some_rows(80) > 3, some_rows(80), 0.0), np.arange(80) % 3
    if where == "csr":
        given_rows, pick = csr_array(x), lambda mine: csr_array(x)[mine]
    elif where == "torch":
        torch = pytest.importorskip("torch")
        given_rows, pick = torch.asarray(x), lambda mine: torch.asarray(x[mine])
    else:
        given_rows, pick = pl.DataFrame(x, schema=list("abcdef")), lambda mine: x[mine]
    state = Keyed.make(empty()).update(given_rows, keys=keys)
    for key in range(3):
        assert bits(state[key]) == bits(empty().update(pick(np.flatnonzero(keys == key))))


def test_rows_that_lie_together_are_not_copied(monkeypatch):
    from streamsvd.flow import groups

    monkeypatch.setattr(groups, "_taken", lambda *_: pytest.fail("the batch was copied"))
    Keyed.make(empty()).update(some_rows(60), keys=["b"] * 20 + ["a"] * 30 + ["c"] * 10).update(
        some_rows(5), keys=["a"] * 5
    )


def test_factors_are_those_of_each_key_in_order():
    x, keys = some_rows(60), ["b", "a", "c"] * 20
    found = Keyed.make(empty()).update(x, keys=keys).factors()
    assert list(found) == ["a", "b", "c"]
    for key, factors in found.items():
        expected = alone(empty(), x, keys, key).factors()
        assert factors.s.tobytes() == expected.s.tobytes()
        assert factors.vt.tobytes() == expected.vt.tobytes()
    assert Keyed.make(empty()).factors() == {}
    assert Keyed.make(empty()).update(x, keys=keys).factors(1)["a"].rank == 1


# Keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (np.array(["b", "a", "b"]), ["a", "b"]),
        ([3, -1, 3], [-1, 3]),
        (np.array([2**63 + 1, 3, 2**63 + 1], np.uint64), [3, 2**63 + 1]),
        (np.array([True, False, True]), [False, True]),
        ([date(2024, 2, 29), date(1969, 1, 1), date(2024, 2, 29)], [date(1969, 1, 1), date(2024, 2, 29)]),
        (np.array(["2024-02-29", "1969-01-01", "2024-02-29"], "M8[D]"), [date(1969, 1, 1), date(2024, 2, 29)]),
        (pa.array(["b", "", "b"], pa.large_string()), ["", "b"]),
        (pa.array(["ä\n", "b", "ä\n"], pa.string_view()), ["b", "ä\n"]),
        (pa.chunked_array([["b"], ["a", "b"]]), ["a", "b"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), ["b", "a", "b"]), ["a", "b"]),
        (pa.DictionaryArray.from_arrays(pa.array([3, 1, 3], pa.int8()), ["x", "a", None, "b"]), ["a", "b"]),
        (pl.Series(["b", "a", "b"]), ["a", "b"]),
        (pl.Series(["b", "a", "b"], dtype=pl.Categorical), ["a", "b"]),
    ],
)
def test_keys_of_every_kind_are_told_apart_and_kept_in_files(tmp_path, keys, expected):
    state = Keyed.make(empty()).update(some_rows(3), keys=keys)
    save(state, tmp_path / "x.svd")
    back = load(tmp_path / "x.svd")
    assert state.keys() == back.keys() == expected
    assert all(type(key) is type(want) for key, want in zip(back.keys(), expected, strict=True))
    assert [one.rows for _, one in state.items()] == [1, 2]
    assert bits(back) == bits(state)


@pytest.mark.parametrize(
    ("keys", "kind", "pattern"),
    [
        ([1.5, 2.5, 3.5], TypeError, "keys of type double arrived; expected text, whole numbers"),
        ([b"a", b"b", b"c"], TypeError, "keys of type binary"),
        (np.array(["2024-01-01"] * 3, "M8[s]"), TypeError, r"keys of type timestamp\[s\].*cast"),
        (pa.array([1.5, 2, 3]).dictionary_encode(), TypeError, "keys of type double"),
        (["a", 1, "b"], TypeError, "keys of type list arrived"),
        ([2**70, 1, 2], TypeError, "keys of type list arrived"),
        ("tenant", TypeError, "keys of type str arrived"),
        (np.zeros((3, 2), int), TypeError, "keys of type ndarray arrived"),
        (["a", "b"], ValueError, "2 keys arrived for 3 rows"),
        (["a", None, None], ValueError, "2 of 3 keys are null, the first in row 1"),
        ([None, None, None], ValueError, "3 of 3 keys are null, the first in row 0"),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), ["a", None]), ValueError, "2 of 3 keys .* row 1"),
        (
            pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int8()), pa.array([], pa.string())),
            ValueError,
            "3 of 3",
        ),
    ],
)
def test_other_keys_are_refused(keys, kind, pattern):
    with pytest.raises(kind, match=pattern):
        Keyed.make(empty()).update(some_rows(3), keys=keys)


def test_keys_keep_one_type():
    state = Keyed.make(empty()).update(some_rows(2), keys=[1, 0])
    with pytest.raises(TypeError, match="keys of type boolean arrived, and those so far are of type integer"):
        state.update(some_rows(2), keys=[True, False])


def test_an_unknown_key_is_named():
    with pytest.raises(KeyError, match="there is no key 'x' among 0"):
        Keyed.make(empty())["x"]


# What is refused changes nothing


def test_a_refused_row_is_named_by_its_place_in_the_batch_and_changes_nothing():
    x, keys = some_rows(40), np.arange(40) % 4
    state = Keyed.make(empty()).update(x, keys=keys)
    before = bits(state)
    bad = x.copy()
    bad[31, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 40 rows of this batch, first in row 31, column 2"):
        state.update(bad, keys=keys)
    with pytest.raises(ValueError, match="row 17 has -1"):
        state.update(x, keys=keys, weights=np.where(np.arange(40) == 17, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"weights of shape \(39,\) for a batch of 40 rows"):
        state.update(x, keys=keys, weights=np.ones(39))
    with pytest.raises(ValueError, match="5 columns"):
        state.update(x[:, :5], keys=keys)
    with pytest.raises(ValueError, match=r"key 0: .*timestamps, but this sketch ages by rows"):
        state.update(x, keys=keys, timestamps=np.zeros(40))
    assert bits(state) == before


def test_a_key_too_many_is_named_and_changes_nothing():
    state = Keyed.make(empty(), limit=2).update(some_rows(4), keys=["a", "b", "a", "b"])
    before = bits(state)
    with pytest.raises(ValueError, match=r"'c' would be key 3, and at most 2 are allowed.*keys=.*overflow=\"spill\""):
        state.update(some_rows(3), keys=["a", "c", "b"])
    assert bits(state) == before
    assert state.update(some_rows(2), keys=["b", "a"]).rows == 6


def test_rows_of_weight_zero_make_no_key():
    state = Keyed.make(empty(), limit=1).update(some_rows(3), keys=["a", "b", "a"], weights=[1, 0, 1])
    assert state.keys() == ["a"]
    assert state.rows == 2
    assert state.update(some_rows(2), keys=["a", "b"], weights=[0, 0]).rows == 2


def test_an_empty_batch_changes_nothing():
    state = Keyed.make(empty())
    assert state.update(np.zeros((0, COLUMNS)), keys=[]) is state


def test_an_older_state_goes_on_as_if_there_were_no_newer_one():
    x, keys = some_rows(60), np.arange(60) % 3
    old = Keyed.make(empty()).update(x[:10], keys=keys[:10])
    before = bits(old)
    one, other = old.update(x[10:50], keys=keys[10:50]), old.update(x[10:50] + 1, keys=keys[10:50])
    assert bits(old) == before
    assert bits(one) == bits(fold(Keyed.make(empty()), x[:50], keys[:50], [10]))
    assert bits(one) != bits(other)


@pytest.mark.parametrize(
    ("options", "kind", "pattern"),
    [
        ({"limit": 0}, ValueError, "keys=0 arrived"),
        ({"limit": True}, ValueError, "keys=True arrived"),
        ({"limit": 2.5}, ValueError, "keys=2.5 arrived"),
        ({"overflow": "drop"}, ValueError, "overflow='drop' arrived; expected \"error\""),
        ({"overflow": "spill"}, ValueError, "wants a folder"),
    ],
)
def test_options_out_of_range_are_refused(options, kind, pattern):
    with pytest.raises(kind, match=pattern):
        Keyed.make(empty(), **options)


def test_only_an_empty_sketch_can_begin_the_states(tmp_path):
    with pytest.raises(TypeError, match="got Truncated with 3 rows; expected an empty state"):
        Keyed.make(empty().update(some_rows(3)))
    with pytest.raises(TypeError, match="got int with no rows"):
        Keyed.make(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one folder for one stream"):
        Keyed.make(empty(keep_left=str(tmp_path)))


# On the disk


def spilling(folder: Path, limit: int = 2) -> Keyed:
    return Keyed.make(empty(), limit=limit, overflow="spill", folder=folder)


def test_the_least_recently_seen_go_to_the_disk(tmp_path):
    x = some_rows(1)
    state = spilling(tmp_path / "deep" / "s")
    for key in ["a", "b", "a", "c"]:
        state = state.update(x, keys=[key])
    assert list(state.states) == ["a", "c"]
    assert list(state.spilled) == ["b"]
    state = state.update(np.repeat(x, 2, axis=0), keys=["b", "a"])
    assert list(state.states) == ["a", "b"]  # the batch had use for "a", so "c" went
    assert {path.name for path in (tmp_path / "deep" / "s").iterdir()} >= state.live_files()


def test_more_keys_in_a_batch_than_fit(tmp_path):
    x, keys = some_rows(300), np.arange(300) % 100
    state = fold(spilling(tmp_path, 3), x, keys, [100, 150])
    assert len(state.states) == 3
    assert len(state.live_files()) == 97
    assert all(bits(one) == bits(alone(empty(), x, keys, key)) for key, one in state.items())


def test_a_spilled_file_is_a_state_file_and_never_changes(tmp_path):
    x, keys = some_rows(40), [*"ababcacb"] * 5
    state, seen = spilling(tmp_path, 1), {}
    for row, key in zip(x, keys, strict=True):
        state = state.update(row[None], keys=[key])
        for path in tmp_path.iterdir():
            assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
    name = state.spilled["a"].name
    assert bits(load(tmp_path / name)) == bits(alone(empty(), x, keys, "a"))
    assert statefile.digest(tmp_path / name)[:32] + ".svd" == name


def test_a_run_that_goes_on_from_a_file_writes_the_same_files(tmp_path):
    x, keys = some_rows(50), [*"abcde"] * 10
    straight = fold(spilling(tmp_path / "s"), x, keys, [20])
    names = {path.name for path in (tmp_path / "s").iterdir()}
    save(fold(spilling(tmp_path / "s"), x[:20], keys[:20]), tmp_path / "x.svd")
    resumed = fold(load(tmp_path / "x.svd"), x[20:], keys[20:])
    assert bits(resumed) == bits(straight)
    assert {path.name for path in (tmp_path / "s").iterdir()} == names


def test_pruning_removes_what_no_kept_state_needs_and_nothing_else(tmp_path):
    x, keys = some_rows(60), [*"abcdef"] * 10
    old = fold(spilling(tmp_path / "s"), x[:30], keys[:30], [7, 7, 7])
    new = fold(old, x[30:], keys[30:], [11, 11])
    draft = tmp_path / "s" / f".{'0' * 32}.svd.123-0123abcd.tmp"
    for path in (tmp_path / "s" / "notes.txt", tmp_path / "s" / "model.svd", draft):
        path.write_text("x")
    assert old.live_files() - new.live_files()
    assert prune(tmp_path / "s", old.live_files() | new.live_files()) > 0
    assert not draft.exists()
    for state, n in ((old, 30), (new, 60)):
        assert all(bits(one) == bits(alone(empty(), x[:n], keys[:n], key)) for key, one in state.items())
    prune(tmp_path / "s", new.live_files())
    left = {path.name for path in (tmp_path / "s").iterdir()}
    assert left == new.live_files() | {"notes.txt", "model.svd"}
    assert new.rows == sum(one.rows for _, one in new.items())
    with pytest.raises(FileNotFoundError, match=r"key '.': .*is gone; put the folder back"):
        list(old.items())
    assert prune(tmp_path / "nothing", ()) == 0


def test_a_damaged_or_swapped_file_is_refused_and_says_which_key(tmp_path):
    state = fold(spilling(tmp_path, 1), some_rows(30), [*"abc"] * 10, [10])
    a, b = (tmp_path / state.spilled[key].name for key in "ab")
    good = a.read_bytes()
    a.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    with pytest.raises(ValueError, match=r"key 'a': .*is damaged"):
        state["a"]
    a.write_bytes(b.read_bytes())
    with pytest.raises(ValueError, match=r"key 'a': .*is another state than the one that was spilled"):
        state["a"]
    with pytest.raises(ValueError, match="key 'a'"):
        state.update(some_rows(1), keys=["a"])
    a.write_bytes(good)
    assert state["a"].rows == 10


def test_the_rest_of_a_crashed_run_is_replaced(tmp_path):
    x, keys = some_rows(9), [*"abc"] * 3
    names = fold(spilling(tmp_path, 1), x, keys).live_files()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    state = fold(spilling(tmp_path, 1), x, keys)
    assert state.live_files() == names
    assert bits(state["a"]) == bits(alone(empty(), x, keys, "a"))


def test_a_full_disk_is_told_and_the_state_stays(tmp_path, monkeypatch):
    state = spilling(tmp_path / "s").update(some_rows(2), keys=["a", "b"])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(statefile.os, "fdopen", full)
        with pytest.raises(OSError, match="No space left on device; nothing was written"):
            state.update(some_rows(1), keys=["c"])
    assert state.keys() == ["a", "b"]
    assert state.update(some_rows(1), keys=["c"]).keys() == ["a", "b", "c"]


def test_spilled_files_are_synced_once_and_before_the_file_that_names_them(tmp_path, monkeypatch):
    state = fold(spilling(tmp_path / "s"), some_rows(10), [*"abcde"] * 2)
    calls, real = [], spill.os.fsync
    monkeypatch.setattr(
        spill.os, "fsync", lambda handle: (calls.append(Path(f"/proc/self/fd/{handle}").readlink()), real(handle))
    )
    if not Path("/proc/self/fd").exists():
        pytest.skip("looks at /proc")
    save(state, tmp_path / "x.svd")
    names = [call.name for call in calls]
    assert sorted(names[:3]) == sorted(state.live_files())
    assert names[3] == "s"
    calls.clear()
    save(state, tmp_path / "x.svd")
    save(load(tmp_path / "x.svd"), tmp_path / "x.svd")
    assert not any(call.name in state.live_files() for call in calls)


def test_a_folder_may_be_moved(tmp_path):
    state = fold(spilling(tmp_path / "s", 1), some_rows(10), [*"ab"] * 5)
    before = bits(state["a"])
    (tmp_path / "s").rename(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="is gone"):
        state["a"]
    assert bits(state.in_folder(tmp_path / "t")["a"]) == before


# Files and merging


@pytest.mark.parametrize(
    "options", [{}, {"kind": "gram", "kept": None, "scale": "unit"}, {"scale": np.arange(1.0, 7.0)}]
)
def test_a_file_gives_back_the_same_bits(tmp_path, options):
    x, keys = some_rows(70, dtype="float32"), np.arange(70) % 5
    for state in (Keyed.make(empty(**options)), fold(Keyed.make(empty(**options), limit=9), x, keys, [30])):
        save(state, tmp_path / "x.svd")
        back = load(tmp_path / "x.svd")
        assert type(back) is Keyed
        assert (back.limit, back.overflow, back.rows, back.key_type) == (
            state.limit,
            "error",
            state.rows,
            state.key_type,
        )
        assert (back.columns, back.rank, back.center, back.plan) == (COLUMNS, RANK, True, state.plan)
        assert bits(back) == bits(state)
        assert bits(back.update(x, keys=keys)) == bits(state.update(x, keys=keys))


def test_states_can_be_read_into_torch(tmp_path):
    torch = pytest.importorskip("torch")
    x, keys = some_rows(40), [*"abcd"] * 10
    save(fold(spilling(tmp_path / "s"), x, keys, [13]), tmp_path / "x.svd")
    back = load(tmp_path / "x.svd", like=torch.empty(0))
    assert all(isinstance(factors.vt, torch.Tensor) for factors in back.factors().values())
    assert back.update(torch.asarray(x), keys=keys).rows == 80


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 60))
def test_merged_states_are_the_merged_states_of_each_key(tmp_path_factory, codes, cut):
    folder = tmp_path_factory.mktemp("merge")
    x, keys = some_rows(len(codes)), np.array(codes)
    parts = [
        fold(spilling(folder / name, 2), x[rows], keys[rows])
        for name, rows in (("l", slice(cut)), ("r", slice(cut, None)))
    ]
    merged = parts[0] + parts[1]
    assert merged.rows == len(codes)
    assert merged.keys() == sorted(set(codes))
    assert len(merged.states) <= 2
    for key, state in merged.items():
        sides = [alone(empty(), x[rows], keys[rows], key) for rows in (slice(cut), slice(cut, None))]
        assert bits(state) == bits(sides[0].merge(sides[1]))


def test_states_that_do_not_belong_together_are_not_merged():
    x = some_rows(4)
    state = Keyed.make(empty(), limit=2).update(x, keys=[*"aabb"])
    with pytest.raises(TypeError, match="integer arrived, and those so far are of type text"):
        state.merge(Keyed.make(empty()).update(x, keys=[1, 2, 3, 4]))
    with pytest.raises(ValueError, match="rank=2 and rank=3"):
        state.merge(Keyed.make(empty(rank=3)))
    with pytest.raises(TypeError, match="cannot merge one state for each key with a 'truncated'"):
        state.merge(empty())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'c' would be key 3"):
        state.merge(Keyed.make(empty()).update(x, keys=[*"cccc"]))
    assert state.merge(Keyed.make(empty())) is state
    assert state.__add__(3) is NotImplemented
