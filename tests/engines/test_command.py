"""The command line on an engine: the same model as without one, and messages that say what to do."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

import streamsvd as ss
from streamsvd.engines.command import run_files
from streamsvd.engines.paths import file_key, paths_of


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", rng.standard_normal((300, 6)))
    return tmp_path


def test_files_are_found_in_order(folder):
    names = [str(folder / f"{number}.npy") for number in range(4)]
    assert paths_of(str(folder)) == paths_of(folder / "*.npy") == paths_of([folder]) == names
    with pytest.raises(TypeError, match="expected a dataset of the engine, a path"):
        paths_of(3)  # pyright: ignore[reportArgumentType]


def test_a_file_that_changes_is_another_partition(folder):
    file = folder / "0.npy"
    before = file_key(str(file))
    assert file_key(str(file)) == before
    np.save(file, np.ones((2, 6)))
    assert file_key(str(file)) != before


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("spark", "pyspark")])
def test_without_the_package_it_names_the_pip_command(monkeypatch, folder, engine, package):
    real = builtins.__import__

    def absent(name, *rest):
        if name.partition(".")[0] == package:
            msg = f"No module named {name!r}"
            raise ModuleNotFoundError(msg, name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=rf"pip install 'streamsvd\[{engine}\]'"):
        run_files([str(folder)], engine=engine, rank=2)


def test_another_engine_is_refused(folder):
    with pytest.raises(ValueError, match="expected 'ray' or 'spark'"):
        run_files([str(folder)], engine="dask", rank=2)  # pyright: ignore[reportArgumentType]


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")
def test_a_run_leaves_the_checkpoint_and_the_events_of_fit(folder, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    events = []
    path = folder / "run.svd"
    options = {"rank": 2, "center": False, "checkpoint": path, "on_event": events.append, "every": "30s"}
    outcome = run_files([str(folder / "*.npy")], engine="ray", **options)
    alone = ss.fit(str(folder / "*.npy"), rank=2, center=False)
    np.testing.assert_allclose(outcome.state.factors().s, alone.s, rtol=1e-10)
    assert (events[0].rows, events[0].path, outcome.events[0]["seen"]) == (1200, str(path), 1200)
    assert ss.load(path).rows == 1200
