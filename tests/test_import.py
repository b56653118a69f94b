"""What importing streamsvd promises: it is light, its names resolve, and every package folder is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import streamsvd

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
HEAVY = {"torch", "cupy", "polars", "pyarrow", "numba", "matplotlib", "sklearn", "rich", "cyclopts"}
ESTIMATORS = ["StreamingPCA", "StreamingSVD"]


def python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter, for this one has long imported everything."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(code: str) -> set[str]:
    loaded = python(f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert {"streamsvd", "sys"} <= set(loaded)
    return set(loaded)


def test_import_loads_nothing_heavy():
    assert not modules_after("import streamsvd") & HEAVY


def test_pipelines_import_loads_nothing_heavy():
    assert not modules_after("import streamsvd.pipelines") & HEAVY


def test_folding_numpy_arrays_loads_no_other_array_or_table_library():
    code = """
import numpy as np, streamsvd as ss
for kind in ("gram", "truncated"):
    assert ss.sketch(columns=9, rank=2, kind=kind).update(np.eye(9)).factors().rank == 2
"""
    assert not modules_after(code) & (HEAVY - {"numba"})


@pytest.mark.parametrize("name", [*streamsvd.__all__, *ESTIMATORS])
def test_every_public_name_resolves(name):
    assert getattr(streamsvd, name) is not None
    assert name in dir(streamsvd)


def test_the_public_face_stays_small():
    assert len(set(streamsvd.__all__) | set(ESTIMATORS)) <= 30


def test_functions_win_over_submodules_whatever_is_imported_first():
    code = """
import streamsvd.planner, streamsvd.flow.batches, streamsvd.flow.fold, streamsvd.flow.checkpoint
import streamsvd as ss
print(*[name for name in ("sketch", "batches", "fit", "save", "load", "widen") if callable(getattr(ss, name))])
"""
    assert python(code).split() == ["sketch", "batches", "fit", "save", "load", "widen"]


def test_star_import_works_without_scikit_learn():
    code = "import sys\nsys.modules['sklearn'] = None\nfrom streamsvd import *\nprint(sketch.__name__)"
    assert python(code).split() == ["sketch"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_missing_scikit_learn_is_named_with_its_cure(name):
    code = f"""
import sys
sys.modules["sklearn"] = None
try:
    from streamsvd import {name}
except ImportError as error:
    print(error)
"""
    message = python(code)
    assert name in message
    assert 'pip install "streamsvd[sklearn]"' in message


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Sketsch'.*Sketch"):
        _ = streamsvd.Sketsch


def test_every_package_folder_is_listed_for_installation():
    listed = set(tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(folder.relative_to(ROOT).parts)
        for top in ("streamsvd", "pipelines")
        for folder in (file.parent for file in (ROOT / top).rglob("__init__.py"))
    }
    assert listed == {f"streamsvd.{name}" if name.startswith("pipelines") else name for name in found}


def test_torch_has_one_bound_wherever_it_is_named():
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    bounds = {need for needs in extras.values() for need in needs if need.startswith("torch")}
    assert len(bounds) == 1
