"""``sketch()`` chooses by a written cost model, says why, and refuses options that do not fit together."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pytest

import streamsvd
from backends import digest
from streamsvd import Gram, Sketch, Truncated, sketch, widen


@pytest.mark.parametrize(("columns", "rank", "kind"), [(64, 8, "gram"), (300, 32, "gram"), (20_000, 8, "truncated")])
def test_auto_takes_what_costs_less(columns, rank, kind):
    state = sketch(columns=columns, rank=rank)
    assert state.kind == kind == state.plan.kind
    cheaper = min(state.plan.work, key=lambda name: (state.plan.work[name], name != "gram"))
    assert cheaper == kind
    for word in ("exact moments cost", f"{state.plan.work['gram']:,.0f}", f"{state.plan.work['truncated']:,.0f}"):
        assert word in state.plan.reason


def test_the_cost_of_exact_moments_grows_with_the_square_of_the_width():
    small, large = sketch(columns=1000, rank=8).plan, sketch(columns=2000, rank=8).plan
    assert large.work["gram"] == 4 * small.work["gram"]
    assert 1.5 < large.work["truncated"] / small.work["truncated"] <= 2
    assert large.memory["gram"] == 4 * small.memory["gram"] == 3 * 8 * 2000**2
    assert large.memory["truncated"] == 2 * small.memory["truncated"]


@pytest.mark.parametrize("options", [{"shrink": 0.5}, {"keep_left": True}, {"kept": 20}])
def test_what_only_truncation_can_do_decides(options):
    state = sketch(columns=30, rank=4, **options)
    assert isinstance(state, Truncated)
    assert next(iter(options)) in state.plan.reason


def test_exact_moments_are_taken_where_they_fit_and_are_asked_for():
    state = sketch(columns=3000, rank=2, exact=True)
    assert isinstance(state, Gram)
    assert "asked for and fit" in state.plan.reason
    state = sketch(columns=30_000, rank=2, exact=True)
    assert isinstance(state, Truncated)
    assert "asked for but need" in state.plan.reason
    assert isinstance(sketch(columns=20_000, rank=8, scale="unit"), Gram)


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_a_kind_that_is_named_is_taken(kind):
    state = sketch(columns=40, rank=4, kind=kind)
    assert state.kind == kind
    assert kind in state.plan.reason
    assert state.plan == dataclasses.replace(state.update(np.eye(40)).plan)


def test_defaults_are_centred_double_the_rank_and_no_decay():
    state = sketch(columns=5000, rank=20)
    assert state.center is True
    assert (state.columns, state.rank, state.rows, state.kept) == (5000, 20, 0, 40)
    assert sketch(columns=5000, rank=4).kept == 14
    assert sketch(columns=9, rank=4, kind="truncated").kept == 9
    assert state.options.decay == 1.0
    assert state.options.half_life is None
    assert state.options.shrink == 0.0


def test_every_sketch_satisfies_the_protocol():
    needed = {name for name in vars(Sketch) if not name.startswith("_")} | {"kind", "plan", "merge", "factors"}
    for kind in ("gram", "truncated"):
        state = sketch(columns=5, rank=2, kind=kind)
        assert not {name for name in needed if not hasattr(state, name)}


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_states_are_frozen(kind):
    state = sketch(columns=5, rank=2, kind=kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.core = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.options.rank = 3


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"rank": 0}, ValueError, "rank=0 is outside 1 .. 10"),
        ({"rank": 11}, ValueError, "rank=11 is outside 1 .. 10"),
        ({"rank": -3}, ValueError, "rank=-3"),
        ({"columns": 0}, ValueError, "columns=0"),
        ({"columns": -5}, ValueError, "columns=-5"),
        ({"kind": "svd"}, ValueError, "kind='svd'.*'gram'.*'truncated'"),
        ({"kept": 2}, ValueError, "kept=2 is less than rank=3"),
        ({"shrink": -0.1}, ValueError, "shrink=-0.1 is outside 0 .. 1"),
        ({"shrink": 1.5}, ValueError, "shrink=1.5"),
        ({"shrink": float("nan")}, ValueError, "shrink=nan"),
        ({"decay": 0.0}, ValueError, "decay=0.0 is outside 0 < decay <= 1"),
        ({"decay": 1.1}, ValueError, "decay=1.1"),
        ({"decay": float("nan")}, ValueError, "decay=nan"),
        ({"decay": 0.9, "half_life": 5}, ValueError, "decay=0.9 and half_life=5.*one of them"),
        ({"half_life": 0}, ValueError, "half_life=0 must be positive"),
        ({"half_life": -2.0}, ValueError, "half_life=-2.0"),
        ({"half_life": float("inf")}, ValueError, "half_life=inf"),
        ({"half_life": "30 parsecs"}, ValueError, "'30 parsecs' is not a time.*'30s'"),
        ({"half_life": "s"}, ValueError, "is not a time"),
        ({"half_life": "-3s"}, ValueError, "must be positive"),
        ({"half_life": timedelta(0)}, ValueError, "must be positive"),
        ({"dtype": "float16"}, ValueError, "float32 or float64"),
        ({"dtype": "complex64"}, ValueError, "float32 or float64"),
        ({"dtype": int}, ValueError, "float32 or float64"),
        ({"scale": np.ones(9)}, ValueError, "10 positive numbers"),
        ({"scale": np.zeros(10)}, ValueError, "10 positive numbers"),
        ({"scale": np.r_[np.ones(9), np.nan]}, ValueError, "10 positive numbers"),
        ({"scale": "variance"}, ValueError, "'unit'"),
        ({"scale": "unit", "kind": "truncated"}, ValueError, "scale='unit'.*pass a vector"),
        ({"shrink": 1.0, "kind": "gram"}, ValueError, "shrink belongs to merge-and-truncate.*kind='truncated'"),
        ({"keep_left": True, "kind": "gram"}, ValueError, "keep_left belongs"),
    ],
)
def test_options_out_of_range_or_in_conflict_are_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        sketch(**{"columns": 10, "rank": 3, **options})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1.5m", 90),
        ("2h", 7200),
        ("100ms", 0.1),
        ("1d", 86400),
        ("3 min", 180),
        (timedelta(minutes=2), 120),
    ],
)
def test_half_lives_are_read_in_any_unit(text, seconds):
    assert sketch(columns=5, rank=1, half_life=text).options.half_life == pytest.approx(seconds)


def test_a_half_life_in_rows_is_a_decay():
    rows = np.random.default_rng(0).standard_normal((50, 10))
    by_rows = sketch(columns=10, rank=3, half_life=7).update(rows).factors()
    by_decay = sketch(columns=10, rank=3, decay=0.5 ** (1 / 7)).update(rows).factors()
    assert digest(by_rows) == digest(by_decay)
    assert by_rows.weight == pytest.approx((1 - 0.5 ** (50 / 7)) / (1 - 0.5 ** (1 / 7)))


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_a_dtype_is_given_by_name_or_type(dtype):
    f = sketch(columns=4, rank=2, dtype=dtype).update(np.eye(4)).factors()
    assert f.vt.dtype == np.float32


def test_a_dtype_may_come_from_another_library():
    torch = pytest.importorskip("torch")
    f = sketch(columns=4, rank=2, dtype=torch.float32).update(torch.eye(4, dtype=torch.float64)).factors()
    assert f.vt.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scale_vector_divides_the_columns(kind, dtype):
    rng = np.random.default_rng(1)
    scale = np.logspace(-2, 2, 12)
    rows = (rng.standard_normal((80, 12)) * scale + 4).astype(dtype)
    f = sketch(columns=12, rank=3, kind=kind, kept=12, scale=scale).update(rows).factors()
    g = sketch(columns=12, rank=3, kind=kind, kept=12).update((rows / scale).astype(dtype)).factors()
    np.testing.assert_array_equal(f.s, g.s)
    np.testing.assert_array_equal(f.vt, g.vt)
    np.testing.assert_allclose(f.mean, g.mean * scale, rtol=1e-14)
    np.testing.assert_allclose(f.mean, rows.mean(axis=0), rtol=1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(f.scale, scale)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(f.transform(rows), g.transform((rows / scale).astype(dtype)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        f.inverse_transform(f.transform(rows)), g.inverse_transform(g.transform(rows / scale)) * scale, rtol=1e-3
    )


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_a_widened_scale_divides_new_columns_by_one(kind):
    scale = np.full(6, 2.0)
    state = widen(sketch(columns=6, rank=2, kind=kind, scale=scale).update(np.eye(6)), 8)
    np.testing.assert_array_equal(state.options.scale, [2.0] * 6 + [1.0] * 2)
    assert state.update(np.eye(8)).factors().vt.shape == (2, 8)


def test_widening_by_nothing_or_less():
    state = sketch(columns=6, rank=2)
    assert widen(state, 6) is state
    assert widen(state, 9).columns == 9
    with pytest.raises(ValueError, match="6 columns to 5"):
        widen(state, 5)


def test_public_names_are_these_classes():
    assert streamsvd.sketch is sketch
    assert streamsvd.Gram is Gram
    assert streamsvd.Truncated is Truncated
