"""What all tests share: hypothesis profiles, the GPU check and the folder of real data."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine a slow example is no defect, so time is not what hypothesis judges.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@cache
def gpu_found() -> bool:
    """Whether torch or CuPy can reach a CUDA device; both are optional."""
    try:
        import torch

        if torch.cuda.is_available():
            return True
    except ImportError:
        pass
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    except (ImportError, RuntimeError):  # CuPy's error for "no driver" is a RuntimeError
        return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not gpu_found():
        pytest.skip("needs a CUDA GPU that torch or CuPy can reach, and none was found")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets; a test that asks for it is skipped where STREAMSVD_DATA is not set."""
    folder = os.environ.get("STREAMSVD_DATA")
    if not folder:
        pytest.skip("needs real data: set STREAMSVD_DATA to the folder that holds it")
    path = Path(folder)
    assert path.is_dir(), f"STREAMSVD_DATA names {folder!r}, which is no folder"
    return path
