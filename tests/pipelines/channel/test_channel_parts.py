"""Scenarios are what they say, baselines recover what they should, tables survive the round trip, the commands work together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamsvd.kronecker import multi_product
from streamsvd.pipelines.channel import KronSBL
from streamsvd.pipelines.channel.baselines import kronecker_omp, ksbl, omp, oracle_least_squares
from streamsvd.pipelines.channel.compare import ESTIMATORS, sweep, table
from streamsvd.pipelines.channel.io import (
    coefficients_from_arrow,
    complex_array,
    estimates_to_arrow,
    from_complex_array,
    gammas_from_arrow,
    metadata,
    observations_from_arrow,
    observations_to_arrow,
    read_arrays,
)
from streamsvd.pipelines.channel.metrics import channel_nmse, nmse, support_recovery, symbol_errors
from streamsvd.pipelines.channel.scenario import Irs, angle_grid, irs, steering, synthetic


def test_a_seed_gives_the_same_instance_and_the_snr_only_scales_the_noise():
    for make in (synthetic, irs):
        a, b, louder = make(seed=3, snr_db=20), make(seed=3, snr_db=20), make(seed=3, snr_db=10)
        np.testing.assert_array_equal(a.y, b.y)
        np.testing.assert_array_equal(a.x, louder.x)
        clean = multi_product(a.x, a.dictionaries)
        np.testing.assert_allclose((louder.y - clean) / (a.y - clean), np.sqrt(10), rtol=1e-6)
        assert 10 * np.log10(np.mean(np.abs(clean) ** 2) / a.noise_variance) == pytest.approx(20)


def test_the_irs_channel_is_the_physical_one():
    """``H2 diag(pattern) H1`` from steering vectors, built without the folding of the two surface angles into one."""
    sizes = Irs(grid=10, elements=32)
    case = irs(seed=5, sizes=sizes)
    rng, train = np.random.default_rng([5, 2]), np.random.default_rng([5, 3])
    c = angle_grid(10)
    into = rng.integers(8) + np.arange(3)
    out_of = rng.integers(10)
    at_base = rng.integers(8) + np.arange(3)
    gains = [(rng.standard_normal(3) + 1j * rng.standard_normal(3)) / np.sqrt(2) for _ in range(2)]
    user = rng.integers(10)
    while True:
        pilots = train.integers(4, size=(6, 3))
        P = (np.array([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j])[pilots] / np.sqrt(2) / np.sqrt(6)).T @ steering(6, c).conj()
        if np.allclose(P, case.dictionaries[1]):
            break
    patterns = (2 * train.integers(2, size=(32, 6)) - 1) / np.sqrt(32)
    surface = steering(32, c)
    H1 = np.sqrt(6 * 32 / 3) * (surface[:, into] @ gains[0])[:, None] * steering(6, c)[:, user].conj()
    H2 = np.sqrt(16 * 32 / 3) * (steering(16, c)[:, at_base] @ gains[1])[:, None] * surface[:, out_of].conj()
    for i in range(6):
        np.testing.assert_allclose(case.channel[i], (H2 @ np.diag(patterns[:, i]) @ H1).T, atol=1e-9)


def test_baselines_find_a_signal_without_noise():
    case = synthetic(seed=1, measurements=(10, 12, 15), snr_db=200)
    for x in (
        omp(case.dictionaries, case.y, nonzeros=60),
        kronecker_omp(case.dictionaries, case.y, sparsity=(9, 9, 9)),
        oracle_least_squares(case.dictionaries, case.y, case.x),
    ):
        assert nmse(x, case.x) < 1e-12
    assert nmse(ksbl(case.dictionaries, case.y, noise_variance=1e-6), case.x) < 0.1


def test_omp_stops_at_the_noise():
    case = synthetic(seed=2, snr_db=20, sparsity=2)
    x = omp(case.dictionaries, case.y, noise_variance=case.noise_variance)
    misfit = np.sum((case.y - multi_product(x, case.dictionaries)) ** 2)
    assert misfit <= case.y.size * case.noise_variance
    with pytest.raises(ValueError, match="no rule to stop"):
        omp(case.dictionaries, case.y)


def test_metrics_at_their_ends():
    case = irs(seed=0)
    assert nmse(case.x, case.x) == 0
    assert channel_nmse(case, 0 * case.x) == pytest.approx(1)
    assert support_recovery(case.x, case.x) == 1
    assert support_recovery(0 * case.x, case.x) == 0
    assert symbol_errors(case.channel, case.channel, snr_db=30) == 0
    assert symbol_errors(-case.channel, case.channel, snr_db=30) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_observations_survive_the_round_trip(dtype):
    frames = (np.random.default_rng(0).standard_normal((3, 2, 4)) * (1 + 1j if "complex" in dtype else 1)).astype(dtype)
    sent = observations_to_arrow(frames, axis_order=["pilot", "antenna"], units="V", noise_variance=0.5)
    found, ids, noise, meta = observations_from_arrow(sent)
    np.testing.assert_array_equal(found, frames)
    assert found.dtype == frames.dtype
    assert ids.tolist() == [0, 1, 2]
    assert noise.tolist() == [0.5] * 3
    assert meta == {"axis_order": ["pilot", "antenna"], "shape": [2, 4], "units": "V"}


def test_a_table_without_axis_order_is_refused():
    sent = observations_to_arrow(np.zeros((2, 3, 4)), axis_order=["a", "b"])
    with pytest.raises(ValueError, match="axis_order"):
        observations_from_arrow(sent.replace_schema_metadata(None))
    with pytest.raises(ValueError, match="lacks \\['y'\\]"):
        observations_from_arrow(sent.drop_columns(["y"]))
    with pytest.raises(ValueError, match="name each axis"):
        observations_to_arrow(np.zeros((2, 3, 4)), axis_order=["a"])


def test_a_frame_of_another_length_is_named():
    import pyarrow as pa

    sent = observations_to_arrow(np.zeros((3, 2, 2)), axis_order=["a", "b"])
    short = pa.table({"frame_id": [5, 6], "y": [[0.0] * 4, [0.0] * 3]}).replace_schema_metadata(sent.schema.metadata)
    with pytest.raises(ValueError, match=r"frame 6 has 3 numbers.*needs 4"):
        observations_from_arrow(short)


def test_estimates_as_a_table():
    case = irs(seed=1)
    model = KronSBL(case.dictionaries)
    found = model.fit_frames(np.stack([case.y, 0 * case.y]), noise_variance=case.noise_variance)
    sent = estimates_to_arrow(found, [7, 8], axis_order=case.axes)
    assert sent["frame_id"].to_pylist() == [7, 8]
    values = from_complex_array(sent["value"].combine_chunks().flatten())
    np.testing.assert_array_equal(values, found[0].values)
    assert sent["index_irs_angle"].to_pylist() == [found[0].support[0].tolist(), []]
    np.testing.assert_array_equal(coefficients_from_arrow(sent), np.stack([e.mean for e in found]))
    again = model.warm(gammas_from_arrow(sent))  # the second frame is zero, so those of the first
    assert np.array_equal(again.state_.gammas[2], found[0].gammas[2])


def test_snapshots_as_a_table():
    case = synthetic(seed=1, snapshots=3)
    found = KronSBL(case.dictionaries).fit(case.y, noise_variance=case.noise_variance)
    sent = estimates_to_arrow([found], [0], axis_order=case.axes)
    np.testing.assert_array_equal(coefficients_from_arrow(sent), found.mean)
    assert metadata(sent)["shape"] == [15, 15, 15]
    with pytest.raises(ValueError, match="none of the 0 estimates"):
        gammas_from_arrow(sent.slice(0, 0))


def test_numbers_that_are_no_numbers_are_refused():
    import pyarrow as pa

    sent = observations_to_arrow(np.zeros((2, 2)), axis_order=["a"])
    hole = pa.table({"frame_id": [0, 1], "y": [[0.0, 1.0], [0.0, None]]}).replace_schema_metadata(sent.schema.metadata)
    with pytest.raises(ValueError, match="1 of 4 numbers are null"):
        observations_from_arrow(hole)
    with pytest.raises(ValueError, match="two for each, the real and the imaginary part"):
        from_complex_array(pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6)), 3))
    with pytest.raises(ValueError, match="a name in axis_order and a length in shape"):
        metadata(sent.replace_schema_metadata({"streamsvd.channel": '{"shape": [2]}'}))
    assert from_complex_array(complex_array(np.zeros(0, np.complex64))).dtype == np.complex64
    assert observations_from_arrow(sent.slice(0, 0))[0].shape == (0, 2)


def test_files_are_read_with_the_axes_named(tmp_path):
    from scipy.io import savemat

    H, x = np.arange(6.0).reshape(2, 3), np.arange(24.0).reshape(2, 3, 4) * (1 + 2j)
    np.savez(tmp_path / "a.npz", H=H, x=x)
    savemat(tmp_path / "a.mat", {"H": H, "x": x})
    order = {"H": ("m", "n"), "x": ("a", "b", "c")}
    for name in ("a.npz", "a.mat"):
        found = read_arrays(tmp_path / name, axis_order=order)
        np.testing.assert_array_equal(found["H"], H)
        np.testing.assert_array_equal(found["x"], x)
    with pytest.raises(ValueError, match=r"no axis order; write axis_order=\{'x'"):
        read_arrays(tmp_path / "a.npz", axis_order={"H": ("m", "n")}, names=["H", "x"])
    with pytest.raises(ValueError, match="name each of its 3 axes"):
        read_arrays(tmp_path / "a.mat", axis_order={"x": ("a", "b")})
    with pytest.raises(ValueError, match="it has H, x"):
        read_arrays(tmp_path / "a.npz", axis_order={"G": ("m", "n")})
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="neither"):
        read_arrays(tmp_path / "a.txt", axis_order=order)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "b.mat", axis_order=order)


def test_matlab_hdf5_files_are_turned_round(tmp_path):
    h5py = pytest.importorskip("h5py")
    x = np.arange(24.0).reshape(2, 3, 4)
    parts = np.zeros((4, 3, 2), dtype=[("real", "f8"), ("imag", "f8")])
    parts["real"], parts["imag"] = x.T, 2 * x.T
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["x"] = parts
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with (tmp_path / "a.mat").open("r+b") as file:
        file.write(header)
    found = read_arrays(tmp_path / "a.mat", axis_order={"x": ("a", "b", "c")})
    np.testing.assert_array_equal(found["x"], x * (1 + 2j))


def test_a_sweep_has_a_row_for_each_method_and_snr(tmp_path):
    pytest.importorskip("matplotlib")
    from streamsvd.pipelines.channel.figure import draw

    rows = sweep(scenario="irs", snrs=[10, 20], trials=2, methods=["svd", "am", "oracle"])
    assert len(rows) == 6
    assert len(table(rows).splitlines()) == 7
    assert all(low <= mid <= high for row in rows for low, mid, high in (row["nmse"], row["support"]))
    assert draw(rows, tmp_path / "new" / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="the methods are svd"):
        sweep(methods=["nothing"])
    assert {"omp", "komp", "ksbl", "oracle"} <= set(ESTIMATORS)


def command(*words):
    from streamsvd.launch import run
    from streamsvd.pipelines.channel.cli import app

    return run(app, list(words))


def test_the_commands_work_together(tmp_path, capsys):
    frames, numbers, out = (str(tmp_path / name) for name in ("y.parquet", "h.npz", "x.arrow"))
    assert command("simulate", "--out", frames, "--dictionaries", numbers, "--frames", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [6, 3, 16]
    for extra in ([], ["--stream"], ["--noise", "estimate", "--method", "am"]):
        assert command("estimate", frames, "--dictionaries", numbers, "--out", out, "--json", *extra) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["frames"] == told["converged"] == 3
    assert command("estimate", frames, "--dictionaries", numbers, "--out", out, "--json", "--snapshots") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 1
    again = str(tmp_path / "again.parquet")
    assert command("estimate", frames, "--dictionaries", numbers, "--out", again, "--json", "--warm", out) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] < told["iterations"]
    assert command("estimate", frames, "--dictionaries", numbers, "--out", out, "--snapshots", "--stream") == 2
    assert "no stream follows" in capsys.readouterr().err
    np.savez(
        numbers, **{f"H{i}": np.random.default_rng(i).standard_normal((m, 9)) for i, m in ((1, 6), (2, 3), (3, 16))}
    )
    assert command("estimate", frames, "--dictionaries", numbers, "--out", again, "--warm", out) == 2
    assert "of another grid" in capsys.readouterr().err
    picture = str(tmp_path / "a.png")
    assert command("bench", "--trials", "2", "--snr", "20", "--methods", "svd,oracle", "--out", picture) == 0
    assert "SVD-KroSBL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["simulate", "--out", "a.txt", "--dictionaries", "h.npz"], 2, "a.txt"),
        (["simulate", "--out", "a.parquet", "--dictionaries", "h.npz", "--frames", "0"], 2, "at least 1"),
        (["estimate", "no.parquet", "--dictionaries", "no.npz", "--out", "a.parquet"], 2, "does not exist"),
        (["estimate", "no.parquet", "--dictionaries", "no.npz", "--out", "a.parquet", "--prune", "2"], 2, "prune"),
        (["bench", "--methods", "nothing"], 2, "the methods are"),
        (["bench", "--snr", "loud"], 2, "loud"),
    ],
)
def test_commands_used_wrongly_say_so(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*words) == code
    assert message in capsys.readouterr().err
