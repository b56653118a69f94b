"""Recall and NDCG against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from streamsvd.pipelines.graph.evaluate import metrics
from streamsvd.pipelines.graph.recommend import Histories


def test_metrics_of_three_users_by_hand():
    ranked = np.array([[5, 1, 2], [7, 8, -1], [0, 1, 2]])
    held_out = Histories(np.array([0, 2, 3, 3]), np.array([2, 5, 9], np.int32), np.ones(3, np.float32))
    found = metrics(ranked, held_out, cuts=(1, 3))
    ideal = 1 + 1 / np.log2(3)
    assert found["users"] == 2  # the third has nothing held out
    assert found["recall@1"] == pytest.approx((0.5 + 0) / 2)
    assert found["recall@3"] == pytest.approx((1.0 + 0) / 2)
    assert found["ndcg@1"] == pytest.approx((1.0 + 0) / 2)
    assert found["ndcg@3"] == pytest.approx(((1 + 1 / 2) / ideal + 0) / 2)


def test_metrics_of_nobody_are_refused():
    with pytest.raises(ValueError, match=r"none of the users has a held-out item"):
        metrics(np.zeros((1, 20), int), Histories(np.array([0, 0]), np.zeros(0, np.int32), np.zeros(0, np.float32)))
