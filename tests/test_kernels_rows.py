"""Loops over rows: each Numba loop agrees with its array-API twin and with the formula, in any layout."""

from __future__ import annotations

import numpy as np
import pytest

from backends import BACKENDS, plain, strict
from streamsvd.arrays import to_numpy
from streamsvd.kernels.rows import all_finite, column_sums, copy_rows, enter_panel, fill_panel, largest, row_energies

B, D = 37, 1300
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "negative": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "negative F": lambda x: np.asfortranarray(x[:, ::-1])[:, ::-1],
}
DTYPES = ["float64", "float32"]


def rows_of(dtype, seed=0, shape=(B, D)):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def centring(seed=1):
    rng = np.random.default_rng(seed)
    return 1e6 * rng.standard_normal(D), rng.standard_normal(D), rng.uniform(0, 2, B)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5), (B, D), (300, 64), (64, 300), (0, 4)])
def test_rows_are_copied_from_any_layout(shape, dtype, layout):
    rows = rows_of(dtype, shape=shape)
    out = np.full((*shape,), 7, dtype)
    assert copy_rows(out, LAYOUTS[layout](rows))
    np.testing.assert_array_equal(out, rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (5, 1000), (B - 1, D - 1)])
def test_a_copy_tells_of_one_bad_entry(where, value, layout):
    rows = rows_of("float32")
    assert copy_rows(np.empty_like(rows), LAYOUTS[layout](rows))
    rows[where] = value
    assert not copy_rows(np.empty_like(rows), LAYOUTS[layout](rows))
    assert not all_finite(LAYOUTS[layout](rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype):
    rows = np.full((B, D), np.finfo(dtype).max, dtype)
    assert all_finite(rows)
    assert copy_rows(np.empty_like(rows), rows)
    assert all_finite(np.full((B, D), np.finfo(dtype).tiny / 4, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_entries_are_told_on_every_backend(backend):
    rows = rows_of("float64")
    assert all_finite(backend(rows))
    rows[3, 4] = np.nan
    assert not all_finite(backend(rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_changes_the_dtype_where_asked(dtype):
    rows = rows_of(dtype)
    out = np.empty((B, D), "float32")
    assert copy_rows(out, rows)
    np.testing.assert_array_equal(out, rows.astype("float32"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums_take_the_shift_off_first(backend, dtype):
    shift, _, weights = centring()
    rows = (rows_of("float64") + shift).astype(dtype)
    got = to_numpy(column_sums(backend(rows), backend(shift), backend(weights)))
    expected = weights @ (rows.astype(np.longdouble) - shift)
    np.testing.assert_allclose(got, expected.astype(float), rtol=1e-11, atol=1e-11)
    assert got.dtype == np.float64
    assert np.abs(got).max() > 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_panels_are_centred_in_float64_and_rounded_once(backend, dtype, out_dtype):
    shift, mean, factor = centring()
    rows = (rows_of("float64") + shift).astype(dtype)
    exact = ((rows.astype(float) - shift) - mean) * factor[:, None]
    for start, width in ((0, D), (3, 700), (D - 1, 1)):
        out = backend(np.zeros((B, width), out_dtype))
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            out = out.copy()
        fill_panel(out, backend(rows), start, backend(shift), backend(mean), backend(factor))
        np.testing.assert_array_equal(to_numpy(out), exact[:, start : start + width].astype(out_dtype))


@pytest.mark.parametrize("backend", [pytest.param(plain, id="numpy"), pytest.param(strict, id="strict")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_entering_rows_fills_measures_and_sketches_at_once(backend, dtype):
    shift, mean, factor = centring()
    rows = (rows_of("float64") + shift).astype(dtype)
    rng = np.random.default_rng(2)
    slots, signs = rng.integers(0, 10, B), rng.choice([-1.0, 1.0], B)
    before = rng.standard_normal((10, D)).astype(dtype)
    start, width = 17, 1100
    panel = (((rows.astype(float) - shift) - mean) * factor[:, None])[:, start : start + width].astype(dtype)
    out, sketch = backend(np.zeros((B, width), dtype)), backend(before)
    energies = enter_panel(
        out, backend(rows), start, backend(shift), backend(mean), backend(factor), (sketch, (slots, signs))
    )
    np.testing.assert_array_equal(to_numpy(out), panel)
    # The squares, too, are taken in float64: with float32 squares the energy of a fold is off by eps / sqrt(d).
    np.testing.assert_allclose(energies, (panel.astype(float) ** 2).sum(axis=1), rtol=1e-14)
    S = np.zeros((10, B))
    S[slots, np.arange(B)] = signs
    expected = before.astype(float)
    expected[:, start : start + width] += S @ panel.astype(float)
    np.testing.assert_allclose(to_numpy(sketch), expected, rtol=0, atol=1e-13 if dtype == "float64" else 1e-4)
    untouched = backend(before)
    again = enter_panel(out, backend(rows), start, backend(shift), backend(mean), backend(factor), (untouched, None))
    np.testing.assert_array_equal(again, energies)
    np.testing.assert_array_equal(to_numpy(untouched), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_energies_are_summed_in_float64(backend, dtype):
    rows = rows_of(dtype)
    got = to_numpy(row_energies(backend(rows)))
    np.testing.assert_allclose(got, (rows.astype(float) ** 2).sum(axis=1), rtol=1e-14)
    assert got.dtype == np.float64


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_energies_of_a_slice_of_columns(dtype):
    rows = rows_of(dtype)
    expected = (rows[:, 5:1200].astype(float) ** 2).sum(axis=1)
    np.testing.assert_allclose(row_energies(rows, 5, 1200), expected, rtol=1e-14)
    np.testing.assert_allclose(to_numpy(row_energies(strict(rows), 5, 1200)), expected, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_entry_is_measured_from_the_shift(backend):
    rows, shift = rows_of("float64"), centring()[0]
    assert largest(backend(rows), backend(shift)) == pytest.approx(np.abs(rows - shift).max(), rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_read_only_rows_are_read(dtype):
    shift, mean, factor = centring()
    rows = rows_of(dtype)
    for x in (rows, shift, mean, factor):
        x.flags.writeable = False
    out, sketch = np.empty((B, D), dtype), np.zeros((10, D), dtype)
    assert copy_rows(np.empty((B, D), dtype), rows)
    fill_panel(out, rows, 0, shift, mean, factor)
    enter_panel(out, rows, 0, shift, mean, factor, (sketch, (np.zeros(B, np.int64), np.ones(B))))
    column_sums(rows, shift, factor)
    np.testing.assert_allclose(sketch[0], out.sum(axis=0), rtol=0, atol=1e-2 * np.abs(out).max())
    assert np.abs(sketch[0]).max() > 0
