"""The sub-command, used wrongly: each refusal says what arrived and what to write, and leaves no file."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from streamsvd.launch import run
from streamsvd.pipelines.channel.cli import app


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(app, ["simulate", "--out", "y.parquet", "--dictionaries", "h.npz", "--scenario", "synthetic"]) == 0
    for name in ("torn.npz", "torn.mat", "torn.parquet", "y.csv"):
        (tmp_path / name).write_bytes(b"hello, this is no table")
    np.savez("objects.npz", **{name: np.array([None], object) for name in ("H1", "H2", "H3")})
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("simulate --out z.parquet --dictionaries z.npz --snr nan", "--snr nan; expected"),
        ("simulate --out z.parquet --dictionaries z.npz --seed -1", "--seed -1"),
        ("simulate --out z.parquet --dictionaries z.npz --frames 0", "--frames 0"),
        ("estimate y.parquet --dictionaries torn.npz --out e.parquet", "torn.npz cannot be read: it is damaged"),
        ("estimate y.parquet --dictionaries torn.mat --out e.parquet", "torn.mat cannot be read: it is damaged"),
        ("estimate y.parquet --dictionaries objects.npz --out e.parquet", "the array 'H1' cannot be read as numbers"),
        ("estimate torn.parquet --dictionaries h.npz --out e.parquet", "'torn.parquet' cannot be read: it is damaged"),
        ("estimate y.csv --dictionaries h.npz --out e.parquet", "y.csv is no table that is read here"),
        ("estimate y.parquet --dictionaries h.npz --out e.parquet --warm y.parquet", "and no hyperparameters"),
        ("bench --trials 0 --out p.png", "--trials 0"),
        ("bench --snr 10,x --out p.png", "--snr 10,x is no list of dB"),
        ("bench --snr nan --out p.png", "--snr nan is no list of dB"),
        ("bench --trials 1 --out p.txt", "--out p.txt"),
        ("bench --trials 1 --out y.csv/p.png", "--out y.csv cannot be a folder"),
    ],
)
def test_wrong_use_is_said_and_leaves_nothing(here, capsys, words, said):
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert run(app, words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in " ".join(err.split()), err
    assert sorted(here.rglob("*")) == before


def test_a_warning_is_one_sentence(here, capsys):
    arrays = dict(np.load("h.npz"))
    arrays["H1"][:, 4] = arrays["H1"][:, 2]
    np.savez("twice.npz", **arrays)
    capsys.readouterr()
    words = ["estimate", "y.parquet", "--dictionaries", "twice.npz", "--out", "e.parquet", "--unidentifiable", "warn"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(app, words) == 0
    err = capsys.readouterr().err
    assert err.startswith("streamsvd: dictionary 0 has parallel columns: (2, 4)")
    assert err.count("\n") == 1
