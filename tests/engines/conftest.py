"""Tests marked `cluster` start engines of their own; they run where they are asked for by name: make test-cluster."""

from __future__ import annotations

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cluster") and "cluster" not in item.config.option.markexpr:
        pytest.skip("starts a cluster: make test-cluster, or pytest -m cluster")
