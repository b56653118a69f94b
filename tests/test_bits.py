"""The same rows in the same order give the same bits, however they were cut, laid out in memory or weighted on the way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from backends import digest
from streams import chunks, feed, rows_of
from streamsvd.planner import sketch

N, D, KEPT = 130, 40, 6
KINDS = ["gram", "truncated"]
OPTIONS = {
    "plain": {"center": False},
    "centred, weighted, aged": {"center": True, "decay": 0.99},
}


def empty(kind, **options):
    return sketch(**{"columns": D, "rank": 3, "kept": KEPT, "kind": kind, **options})


def general(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return (rows_of("1/j", rng, N, D) + rng.standard_normal(D)).astype(dtype)


def strided(rows):
    wide = np.full((3 * rows.shape[0], 2 * rows.shape[1]), np.nan, rows.dtype)
    wide[::3, ::2] = rows
    return wide[::3, ::2]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": strided,
    "negative rows": lambda rows: np.ascontiguousarray(rows[::-1])[::-1],
    "negative columns": lambda rows: np.asfortranarray(rows[:, ::-1])[:, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_layout_do_not_show_in_the_bits(kind, dtype, options, layout):
    rows = general(dtype)
    weights = None if options == "plain" else np.random.default_rng(1).uniform(0, 10, N)
    expected = digest(feed(empty(kind, **OPTIONS[options]), rows, weights=weights))
    laid = LAYOUTS[layout](rows)
    for size in (1, 7, 64, N):
        assert digest(feed(empty(kind, **OPTIONS[options]), laid, size, weights=weights)) == expected, size


@pytest.mark.parametrize("layout", ["F", "strided", "negative columns"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_blocks_in_any_order_are_read_alike(dtype, layout):
    """More than one cache tile, so that the transposing copy and the views of a row-major batch take part."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((301, 257)).astype(dtype)
    states = [sketch(columns=257, rank=4, kept=10, kind="truncated").update(x) for x in (rows, LAYOUTS[layout](rows))]
    assert digest(states[0]) == digest(states[1])
    assert states[0].core.moments.rows == 300


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_of_sparse_rows_do_not_show_in_the_bits(kind, dtype, options):
    rng = np.random.default_rng(3)
    rows = sparse.random_array((N, D), density=0.2, format="csr", rng=rng, dtype=dtype)
    weights = None if options == "plain" else rng.uniform(0, 10, N)
    expected = feed(empty(kind, **OPTIONS[options]), rows, weights=weights).factors()
    assert expected.bound.relative > 1e-3 or kind == "gram"
    for size in (1, 7, 64):
        assert digest(feed(empty(kind, **OPTIONS[options]), rows, size, weights=weights).factors()) == digest(expected)
    for form in (sparse.csc_array, sparse.coo_array, sparse.csr_matrix, sparse.lil_array):
        assert digest(empty(kind, **OPTIONS[options]).update(form(rows), weights=weights).factors()) == digest(expected)


@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["float64", "float32"]),
    ends=st.lists(st.integers(0, N), max_size=20),
    reads=st.sets(st.integers(0, 20)),
    seed=st.integers(0, 3),
    decay=st.sampled_from([1.0, 0.97]),
    weighted=st.booleans(),
)
def test_any_cut_with_reads_and_branches_on_the_way_gives_the_same_bits(
    kind, dtype, ends, reads, seed, decay, weighted
):
    rows = general(dtype, seed)
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 3.0], N) if weighted else None
    edges = [0, *sorted(ends), N]
    state = empty(kind, decay=decay)
    for number, (a, b) in enumerate(itertools.pairwise(edges)):
        if number in reads and state.rows:
            state.factors()
            state.update(rows[:5])
            state.merge(state)
        state = state.update(rows[a:b], weights=None if weights is None else weights[a:b])
    assert digest(state) == digest(feed(empty(kind, decay=decay), rows, weights=weights))


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_tree_of_branches_keeps_each_branch_to_itself(kind, data):
    """States updated in any order, also from the middle of a stream, equal the states of their own rows."""
    rng = np.random.default_rng(4)
    states, seen = [empty(kind)], [np.zeros((0, D))]
    for _ in range(data.draw(st.integers(1, 12))):
        i = data.draw(st.integers(0, len(states) - 1))
        batch = rng.standard_normal((data.draw(st.integers(0, 25)), D))
        states.append(states[i].update(batch))
        seen.append(np.concatenate([seen[i], batch]))
        batch[:] = np.nan
    for state, rows in zip(states, seen, strict=True):
        assert state.rows == len(rows)
        assert digest(state) == digest(feed(empty(kind), rows))


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_of_later_batches_is_that_of_the_first(kind):
    rows = general("float32")
    first = empty(kind).update(rows[:50])
    mixed = first.update(rows[50:].astype("float64"))
    assert digest(mixed) == digest(first.update(rows[50:]))
    assert mixed.factors().vt.dtype == np.float32
    forced = empty(kind, dtype="float64").update(rows)
    assert forced.factors().vt.dtype == np.float64
    assert digest(forced) == digest(empty(kind, dtype="float64").update(rows.astype("float64")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype", ["float16", "bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "longdouble"]
)
def test_other_numbers_are_widened(kind, dtype):
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 2, (N, D)).astype(dtype)
    small = dtype in ("float16", "bool", "int8", "uint8", "int16")
    f = feed(empty(kind), rows, 33).factors()
    assert f.vt.dtype == ("float32" if small else "float64")
    assert digest(f) == digest(feed(empty(kind), rows.astype(f.vt.dtype), 33).factors())
    assert float(f.s[0]) > 1


def test_half_precision_of_torch_is_widened():
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(general("float32")).to(torch.bfloat16)
    f = empty("truncated").update(rows).factors()
    assert f.vt.dtype == torch.float32
    assert digest(f) == digest(empty("truncated").update(rows.to(torch.float32)).factors())


def test_a_batch_through_dlpack_or_lists_is_the_batch_itself():
    rows = general()

    class Exporter:
        def __dlpack__(self, **options):
            return rows.__dlpack__(**options)

        def __dlpack_device__(self):
            return rows.__dlpack_device__()

    expected = digest(empty("truncated").update(rows))
    assert digest(empty("truncated").update(Exporter())) == expected
    assert digest(empty("truncated").update(rows.tolist())) == expected
    assert digest(empty("truncated").update(np.ma.masked_array(rows))) == expected


def test_reading_a_torch_tensor_with_gradient_does_not_follow_it():
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(general()).requires_grad_()
    f = empty("truncated").update(rows).factors()
    assert not f.vt.requires_grad
    assert digest(f) == digest(feed(empty("truncated"), rows.detach()).factors())


def test_chunks_cover_all_rows():
    assert [len(range(N)[part]) for part in chunks(N, 64)] == [64, 64, 2]
