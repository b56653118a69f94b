"""One truncation: orthonormal rows at any condition number, the polish that they owe, and new rows that the old ones never see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from checks import EPS, POLISH
from streams import Truth, feed, orthonormal, rows_of, with_spectrum
from streamsvd import subspace, truncated, truncation
from streamsvd.planner import sketch
from streamsvd.verify import angles, orthonormality

GRADED = {"float64": [1.0, 1e4, 1e8, 1e12], "float32": [1.0, 1e2, 1e3]}


def graded_rows(rng, n, d, kept, kappa, *, dtype="float64", repeated=False, zeros=False):
    s = np.geomspace(1, 1 / kappa, kept)
    if repeated:
        s = np.repeat(s[::3], 3)[:kept]
    rows = (rng.standard_normal((n, kept)) * s) @ orthonormal(rng, kept, d)
    if zeros:
        rows[rng.random(n) < 0.2] = 0.0
    return rows.astype(dtype)


def limit(dtype, kept):
    return max(20 * EPS[dtype] * math.sqrt(kept), POLISH[dtype])


def assert_stays_orthonormal(dtype, kappa, n, size, *, repeated=False, zeros=False):
    """Push n rows in pieces of ``size`` and look at all pairs of directions on the way."""
    kept, d = 6, 32
    rng = np.random.default_rng(0)
    state = sketch(columns=d, rank=kept, kept=kept, kind="truncated", center=False)
    worst, period = 0.0, max(1, n // (8 * size)) * size
    rows = graded_rows(rng, min(n, 4096), d, kept, kappa, dtype=dtype, repeated=repeated, zeros=zeros)
    for start in range(0, n, size):
        state = state.update(rows[np.arange(start, start + size) % len(rows)])
        if start % period == 0:
            worst = max(worst, orthonormality(state.factors().vt))
    f = state.factors()
    assert f.rows == math.ceil(n / size) * size
    assert float(f.s[0]) > 0
    assert max(worst, orthonormality(f.vt)) <= limit(dtype, kept)


@pytest.mark.parametrize(("dtype", "kappa"), [(dtype, kappa) for dtype, kappas in GRADED.items() for kappa in kappas])
@pytest.mark.parametrize("form", ["one by one", "blocks", "repeated values", "zero rows"])
def test_rows_stay_orthonormal_over_many_folds(dtype, kappa, form):
    n, size = (1500, 1) if form == "one by one" else (20 * 400, 400)
    assert_stays_orthonormal(dtype, kappa, n, size, repeated=form == "repeated values", zeros=form == "zero rows")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kappa"), [(dtype, kappa) for dtype, kappas in GRADED.items() for kappa in kappas])
def test_rows_stay_orthonormal_over_100_000_single_rows(dtype, kappa):
    assert_stays_orthonormal(dtype, kappa, 100_000, 1, repeated=True, zeros=True)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kappa"), [(dtype, kappa) for dtype, kappas in GRADED.items() for kappa in kappas])
def test_rows_stay_orthonormal_over_10_000_folds(dtype, kappa):
    assert_stays_orthonormal(dtype, kappa, 180_000, 600)


def graded_errors(kappa: float, columns: int = 160) -> tuple[np.ndarray, float]:
    """Relative errors of 30 singular values from 1 to 1 / kappa, in units of ``eps kappa_i``, and the defect of orthonormality.

    All directions are kept, in one fold of two shards and in their merge: what a truncation leaves is decided on squares, and below
    ``sqrt(eps) s_1`` that is noise for every method that forms a Gram matrix.
    """
    rng = np.random.default_rng(1)
    s = np.geomspace(1, 1 / kappa, 30)
    rows = with_spectrum(rng, 30, columns, s)
    empty = sketch(columns=columns, rank=30, kept=30, kind="truncated", center=False)
    errors, defect = [], 0.0
    for state in (empty.update(rows), empty.update(rows[:13]) + empty.update(rows[13:])):
        f = state.factors()
        errors.append(np.abs(np.asarray(f.s) / s - 1) / (EPS["float64"] / s))
        defect = max(defect, orthonormality(f.vt))
    return np.concatenate(errors), defect


@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
def test_small_singular_values_are_as_accurate_as_by_householder(kappa):
    """Recipe D4: the error of each is ``eps kappa_i``, never ``eps kappa_i^2``, which is all that a Gram matrix can give."""
    errors, defect = graded_errors(kappa)
    assert errors.max() <= 20
    assert defect <= limit("float64", 30)


@pytest.mark.parametrize("columns", [60, 160])
def test_what_is_kept_over_many_folds_is_as_accurate_down_to_the_root_of_eps(columns):
    rng = np.random.default_rng(6)
    s = np.geomspace(1, 1e-6, 12)
    rows = with_spectrum(rng, 400, columns, s)[rng.permutation(400)]
    state = sketch(columns=columns, rank=12, kept=12, kind="truncated", center=False)
    f = feed(state, rows, 50).factors()
    assert np.all(np.abs(np.asarray(f.s) / s - 1) <= 20 * EPS["float64"] / s)


@pytest.mark.parametrize("kappa", [1e6, 1e8])
def test_without_the_polish_the_ill_conditioned_law_fails(kappa, monkeypatch):
    monkeypatch.setattr(truncation, "POLISH_TOLERANCE", dict.fromkeys(POLISH, math.inf))
    errors, defect = graded_errors(kappa)
    assert defect > 100 * limit("float64", 30)
    assert errors.max() > 20


@pytest.mark.parametrize("kappa", [1e10, 1e12])
def test_without_the_second_polish_the_ill_conditioned_law_fails(kappa, monkeypatch):
    first = truncation.polish

    def once(D, C):
        fixed = first(D, C)
        return fixed if fixed is None else truncation.replace(fixed, again=False)

    monkeypatch.setattr(truncation, "polish", once)
    # What a fold leaves undone would else be done when the state is read.
    monkeypatch.setattr(truncated, "presentable", lambda basis: (basis, np.eye(basis.s.size)))
    assert graded_errors(kappa)[1] > limit("float64", 30)


@pytest.mark.parametrize("kappa", [1e4, 1e12])
def test_where_cholesky_fails_householder_takes_over(kappa, monkeypatch):
    monkeypatch.setattr(truncation, "polish", lambda D, C: None)
    errors, defect = graded_errors(kappa)
    assert errors.max() <= 20
    assert defect <= limit("float64", 30)


@pytest.mark.parametrize("columns", [30, 31, 500])
def test_both_sides_of_the_stack_are_equally_accurate(columns):
    """At 30 columns the stack is as tall as wide and folded by QR, at 500 through its Gram matrix."""
    errors, defect = graded_errors(1e12, columns)
    assert errors.max() <= 20
    assert defect <= limit("float64", 30)


def new_directions(kind: str) -> np.ndarray:
    """Rows of an old subspace of 8 dimensions and then rows exactly orthogonal to it, heavier, in one fold or from there on."""
    rng = np.random.default_rng(2)
    frame, scales = np.eye(80), 1.0 / np.arange(1, 9)
    rows = (rng.standard_normal((72, 8)) * scales) @ frame[:8]
    if kind == "block of new directions":
        new = 3.0 * np.sqrt(len(rows)) * np.tile(frame[8:16], (3, 1))
    elif kind == "one heavy row":
        new = rng.standard_normal((24, 8)) @ frame[:8]
        new[20] = 1e6 * frame[8]
    else:
        new = (rng.standard_normal((144, 8)) * scales) @ frame[8:16]
    return np.concatenate([rows, new])


def excess(kind: str) -> float:
    """Residual of 4 components out of 8 kept against that of folds by all eigenvectors."""
    rows = new_directions(kind)
    empty = sketch(columns=rows.shape[1], rank=4, kept=8, kind="truncated", center=False)
    truth = Truth(rows, center=False)
    found = feed(empty, rows).factors()
    with pytest.MonkeyPatch.context() as patch:
        leading = truncation.leading
        patch.setattr(truncation, "leading", lambda *a, **options: leading(*a, **{**options, "exact": True}))
        exact = feed(empty, rows).factors()
    assert truth.residual(exact.vt) > 0
    assert truth.residual(found.vt) <= found.bound.residual
    return truth.residual(found.vt) / truth.residual(exact.vt)


@pytest.mark.parametrize("kind", ["block of new directions", "one heavy row", "change of subspace"])
def test_rows_orthogonal_to_all_before_are_seen(kind):
    """Trap B10.6: warm-started steps from the old directions never see them; the trigger does the fold again."""
    assert excess(kind) <= 1.05


@pytest.mark.parametrize("kind", ["block of new directions", "one heavy row", "change of subspace"])
def test_without_the_trigger_new_directions_are_missed(kind, monkeypatch):
    monkeypatch.setattr(subspace, "TRIGGER", math.inf)
    assert excess(kind) > 1.05


def test_energies_do_not_drift_over_many_folds_in_float32():
    """Trap B10.3: kept and discarded energy add up to the total, also after thousands of folds."""
    rng = np.random.default_rng(3)
    rows = rows_of("1/j", rng, 6000, 20).astype("float32")
    state = sketch(columns=20, rank=2, kept=2, kind="truncated", center=False)
    f = feed(state, rows, 600).factors()
    c = f.certificate
    assert float((c.s**2).sum()) + c.tail == pytest.approx(c.total, rel=1e-7)
    assert f.energy == pytest.approx(float(np.vdot(rows.astype(float), rows.astype(float))), rel=1e-6)
    assert c.tail > 0.1 * c.total


def test_a_lower_rank_than_kept_is_dropped_not_polished():
    rng = np.random.default_rng(4)
    rows = with_spectrum(rng, 200, 90, [3.0, 2.0, 1.0])
    state = feed(sketch(columns=90, rank=5, kept=12, kind="truncated", center=False), rows, 30)
    f = state.factors()
    np.testing.assert_allclose(f.s[:3], [3, 2, 1], rtol=1e-13)
    assert np.all(f.s[3:] <= 1e-13)
    assert orthonormality(f.vt) <= 1e-13
    truth = Truth(rows, center=False)
    assert angles(f.vt[:3], truth.vt[:3]).max() <= 1e-13


def test_more_rows_kept_give_a_better_subspace():
    rng = np.random.default_rng(5)
    rows = rows_of("1/sqrt(j)", rng, 2000, 70)
    truth = Truth(rows)
    wrong = []
    for kept in (4, 8, 16):
        f = feed(sketch(columns=70, rank=4, kept=kept, kind="truncated"), rows, 200).factors()
        wrong.append(truth.residual(f.vt) / truth.optimal(4) - 1)
    assert 0 <= wrong[2] < wrong[1] < wrong[0] < 0.2
