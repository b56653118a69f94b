"""Bad input is named with what arrived, what was expected and what to write."""

from __future__ import annotations

import numpy as np
import pytest

from streamsvd.pipelines.channel import KronSBL, Options
from streamsvd.pipelines.channel.scenario import irs, synthetic

CASE = synthetic(seed=0)
H1, H2, H3 = CASE.dictionaries


def changed(H, columns, values):
    out = H.copy()
    out[:, columns] = values
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nothing"}, "method='nothing'.*'svd', 'am'"),
        ({"noise": 3}, "noise=3.*'known'"),
        ({"prune": 1.0}, "prune=1.0.*0 <= prune < 1"),
        ({"prune": (0.1, 2.0, 0.1)}, "prune=2.0"),
        ({"prune": (0.1, 0.1)}, "2 entries and there are 3 dictionaries"),
        ({"prune": -0.1}, "0 <= prune"),
        ({"floor": 0.0}, "never comes back"),
        ({"max_iter": 0}, "max_iter >= 1"),
        ({"tol": -1.0}, "tol >= 0"),
        ({"coupling": 2.0}, "0 <= coupling <= 1"),
        ({"coupling": (0.5, 0.5), "method": "pc"}, "coupling has 2 entries"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        KronSBL(CASE.dictionaries, **options)


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        ([H1, H2[0]], r"dictionary 1 is \(15,\)"),
        ([H1, H2[:, :0]], r"dictionary 1 is \(12, 0\)"),
        ([changed(H1, 3, np.nan)], "dictionary 0 has NaN.*row 0, column 3"),
        ([H1, changed(H2, [2, 5], 0.0)], r"dictionary 1 has zero columns: 2, 5.*unidentifiable=\"warn\""),
        ([changed(H1, 4, -2 * H1[:, [1]][:, 0])], r"dictionary 0 has parallel columns: \(1, 4\)"),
    ],
)
def test_dictionaries_that_cannot_be_used(dictionaries, message):
    with pytest.raises(ValueError, match=message):
        KronSBL(dictionaries)


def test_one_matrix_in_place_of_a_list():
    with pytest.raises(TypeError, match="list of matrices"):
        KronSBL(H1)


def test_parallel_columns_may_be_a_warning():
    with pytest.warns(UserWarning, match="parallel columns"):
        KronSBL([changed(H1, 4, H1[:, 1])], unidentifiable="warn")


@pytest.mark.parametrize("shape", [(1439,), (15, 12, 8), (2, 1439), (1, 1, 8, 12, 15), ()])
def test_a_wrong_length_shows_the_factorization(shape):
    with pytest.raises(ValueError, match="1440 = 8 x 12 x 15"):
        KronSBL(CASE.dictionaries).fit(np.zeros(shape), noise_variance=1.0)


def test_no_frames():
    with pytest.raises(ValueError, match="no observation"):
        KronSBL(CASE.dictionaries).fit_frames(np.zeros((0, 1440)), noise_variance=1.0)


def test_nan_is_located():
    y = CASE.y.copy()
    y[1, 2, 3] = np.inf
    with pytest.raises(ValueError, match="first at snapshot 0, axis 0 1, axis 1 2, axis 2 3"):
        KronSBL(CASE.dictionaries).fit(y, noise_variance=1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_noise_variance_that_is_none(value):
    with pytest.raises(ValueError, match=r"noise_variance=.*> 0"):
        KronSBL(CASE.dictionaries).fit(CASE.y, noise_variance=value)


def test_a_missing_noise_variance():
    with pytest.raises(ValueError, match='noise="estimate"'):
        KronSBL(CASE.dictionaries).fit(CASE.y)
    with pytest.raises(ValueError, match="for 2 frames"):
        KronSBL(CASE.dictionaries).fit_frames(np.stack([CASE.y, CASE.y]), noise_variance=[1.0, 1.0, 1.0])


def test_real_and_complex_are_not_mixed_silently():
    channel = irs(seed=0)
    with pytest.raises(TypeError, match=r"y\.astype\(complex\)"):
        KronSBL(channel.dictionaries).fit(channel.y.real, noise_variance=1.0)
    with pytest.raises(TypeError, match="dtype='float64' holds real numbers only"):
        KronSBL(channel.dictionaries, dtype="float64").fit(channel.y, noise_variance=1.0)


def test_text_is_no_observation():
    with pytest.raises(TypeError, match="expected real or complex"):
        KronSBL([H1]).fit(np.array(["a"] * 8), noise_variance=1.0)


def test_arrays_of_two_libraries():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="convert one of them"):
        KronSBL(CASE.dictionaries).fit(torch.zeros(1440, dtype=torch.float64), noise_variance=1.0)


def test_a_warm_state_of_another_grid():
    model = KronSBL(CASE.dictionaries)
    with pytest.raises(ValueError, match=r"lengths \(15, 15\) and the grids \(15, 15, 15\)"):
        model.warm([np.ones(15)] * 2)
    with pytest.raises(ValueError, match="not all zero"):
        model.warm([np.zeros(15)] * 3)
    with pytest.raises(ValueError, match="no warm start"):
        KronSBL(CASE.dictionaries, method="classical").warm([np.ones(15)] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pilots": H1[:, :9]}, r"pilots have the shape \(8, 9\); expected \(rows, 15\)"),
        ({"pilots": H1, "mode": 3}, "along mode 3"),
        ({"pilots": H1, "decay": 0.0}, "0 < decay <= 1"),
        ({"pilots": H1[:5]}, "5 x 12 x 15"),
    ],
)
def test_pilots_that_do_not_fit(options, message):
    model = KronSBL(CASE.dictionaries)
    with pytest.raises(ValueError, match=message):
        model.update(CASE.y, noise_variance=1.0, **options)
    assert model.state_.pilots is None


def test_pilots_keep_to_one_mode():
    model = KronSBL(CASE.dictionaries)
    model.update(CASE.y, pilots=H1, noise_variance=1.0)
    with pytest.raises(ValueError, match="grow along one mode"):
        model.update(CASE.y, pilots=H2, mode=1, noise_variance=1.0)


def test_options_stand_alone():
    assert Options(prune=0.1).prunes(3) == (0.1, 0.1, 0.1)
    assert Options(method="am", bound="em").step == "em"
