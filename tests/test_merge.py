"""Merging: any tree of shards is the whole stream, time ages both sides, and states that do not belong together are refused by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import digest
from checks import assert_agrees, assert_bounds
from streams import Truth, feed, low_rank, rows_of
from streamsvd.planner import sketch, widen

N, D = 160, 48
KINDS = ["gram", "truncated"]


def empty(kind, **options):
    return sketch(**{"columns": D, "rank": 3, "kept": 8, "kind": kind, **options})


def exact(seed=0):
    rng = np.random.default_rng(seed)
    return low_rank(rng, N, D, 5) + 2.0 * rng.standard_normal(D)


@given(kind=st.sampled_from(KINDS), dtype=st.sampled_from(["float64", "float32"]), data=st.data())
def test_any_merge_tree_of_any_split_is_the_whole_stream(kind, dtype, data):
    rows = exact().astype(dtype)
    weights = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 3.0], N)
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, N), max_size=7))), N]
    states = [
        feed(empty(kind), rows[a:b], data.draw(st.integers(1, 40)), weights=weights[a:b])
        for a, b in itertools.pairwise(edges)
    ]
    before = [digest(state) for state in states]
    tree = list(states)
    while len(tree) > 1:
        i = data.draw(st.integers(0, len(tree) - 1))
        a = tree.pop(i)
        j = data.draw(st.integers(0, len(tree) - 1))
        tree[j] = a.merge(tree[j])
    assert [digest(state) for state in states] == before
    assert tree[0].rows == np.count_nonzero(weights)
    assert_agrees(tree[0].factors(), Truth(rows, weights=weights), dtype=dtype, units=8)


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 50), shards=st.integers(2, 6))
def test_the_certificate_survives_any_merge_tree(kind, seed, shards):
    rng = np.random.default_rng(seed)
    rows = rows_of("1/sqrt(j)", rng, N, D) + np.linspace(0, 5, N)[:, None]
    order = rng.permutation(N)
    states = [feed(empty(kind), rows[order[i::shards]]) for i in range(shards)]
    while len(states) > 1:
        a, b = (states.pop(int(rng.integers(len(states)))) for _ in range(2))
        states.append(a + b)
    assert_bounds(states[0].factors(), Truth(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_state_goes_on_like_any_other(kind):
    rows = exact(2)
    merged = feed(empty(kind), rows[:50], 9) + feed(empty(kind), rows[50:90], 9)
    f = feed(merged, rows[90:], 9).factors()
    assert_agrees(f, Truth(rows), units=4)


@pytest.mark.parametrize("unit", [1.0, 1e-160, 1e160])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_one_row_have_no_energy_until_they_meet(kind, dtype, unit):
    rows = (np.random.default_rng(10).standard_normal((9, D)) * (unit if dtype == "float64" else 1.0)).astype(dtype)
    state = empty(kind).update(rows[:1])
    assert state.factors().energy == 0
    for i in range(1, 9):
        state = empty(kind).update(rows[i : i + 1]) + state
    truth = Truth(rows / np.abs(rows).max().astype(float))
    f = state.factors()
    np.testing.assert_allclose(
        f.s / np.abs(rows).max().astype(float), truth.s[:3], rtol=1e-5 if dtype == "float32" else 1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_merged_with_itself_counts_twice(kind):
    rows = exact(3)
    state = feed(empty(kind), rows, 30)
    assert_agrees((state + state).factors(), Truth(np.concatenate([rows, rows])), units=4)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_ages_neither_side_by_rows(kind):
    """Recipe B10.10: with decay per row both streams end now."""
    rows = exact(4)
    decay = 0.95
    a, b = feed(empty(kind, decay=decay), rows[:60]), feed(empty(kind, decay=decay), rows[60:])
    ages = np.concatenate([decay ** np.arange(59, -1, -1.0), decay ** np.arange(N - 61, -1, -1.0)])
    assert_agrees((a + b).factors(), Truth(rows, ages=ages), units=4)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_by_timestamps_ages_both_to_the_later_time(kind):
    rows, rng = exact(5), np.random.default_rng(6)
    times = rng.uniform(0, 60, N)
    first, second = np.sort(rng.permutation(N)[:70]), None
    second = np.setdiff1d(np.arange(N), first)
    states = []
    for part in (first, second):
        part = part[np.argsort(times[part])]
        states.append(empty(kind, half_life="20s").update(rows[part], timestamps=times[part]))
    truth = Truth(rows, ages=0.5 ** ((times.max() - times) / 20.0))
    for f in ((states[0] + states[1]).factors(), (states[1] + states[0]).factors()):
        assert_agrees(f, truth, units=4)


@pytest.mark.parametrize(
    ("mine", "theirs", "names"),
    [
        ({}, {"columns": D + 1}, "columns"),
        ({}, {"center": False}, "center"),
        ({}, {"decay": 0.9}, "decay"),
        ({}, {"half_life": "3s"}, "half_life"),
        ({"decay": 0.9}, {"decay": 0.99}, "decay"),
        ({}, {"rank": 4}, "rank"),
        ({}, {"seed": 1}, "seed"),
        ({"scale": np.full(D, 2.0)}, {}, "scale"),
        ({"scale": np.full(D, 2.0)}, {"scale": np.full(D, 3.0)}, "scale"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_states_of_different_options_do_not_merge(kind, mine, theirs, names):
    a, b = empty(kind, **mine), empty(kind, **theirs)
    with pytest.raises(ValueError, match=names) as caught:
        a.merge(b)
    assert "same" in str(caught.value)
    rows = np.random.default_rng(7).standard_normal((5, D))
    if "half_life" not in theirs and "columns" not in theirs:
        a, b = a.update(rows), b.update(rows)
        before = digest(a), digest(b)
        with pytest.raises(ValueError, match=names):
            a + b
        assert (digest(a), digest(b)) == before


def test_truncated_states_that_keep_or_shrink_otherwise_do_not_merge():
    with pytest.raises(ValueError, match="kept=8 and kept=9"):
        empty("truncated").merge(empty("truncated", kept=9))
    with pytest.raises(ValueError, match=r"shrink=0.0 and shrink=1.0"):
        empty("truncated").merge(empty("truncated", shrink=1.0))
    with pytest.raises(ValueError, match="keep the left factor"):
        empty("truncated", keep_left=True).merge(empty("truncated", keep_left=True))


def test_different_kinds_libraries_and_dtypes_do_not_merge():
    rows = exact(8)
    with pytest.raises(TypeError, match=r"gram.*truncated"):
        empty("gram").merge(empty("truncated"))
    with pytest.raises(TypeError):
        empty("gram") + empty("truncated")
    with pytest.raises(TypeError, match="int"):
        empty("gram").merge(3)
    with pytest.raises(TypeError):
        empty("truncated") + 3
    single = empty("truncated").update(rows.astype("float32"))
    with pytest.raises(ValueError, match=r"float64.*float32.*dtype"):
        empty("truncated").update(rows).merge(single)
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="torch"):
        empty("truncated").update(rows).merge(empty("truncated").update(torch.from_numpy(rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_different_width_merge_after_widening(kind):
    rows = exact(9)
    narrow, wide = feed(empty(kind, columns=30), rows[:60, :30], 9), feed(empty(kind), rows[60:], 9)
    with pytest.raises(ValueError, match="widen"):
        narrow.merge(wide)
    padded = rows.copy()
    padded[:60, 30:] = 0.0
    f, truth = (widen(narrow, D) + wide).factors(), Truth(padded)
    limit = 1e-12 if kind == "gram" else 0.05
    np.testing.assert_allclose(f.s, truth.s[:3], rtol=limit)
    assert_bounds(f, truth)
