"""On yelp_sparse: the choice of t, the recall of the training-free filter, and that regularisation is what brings it."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from streamsvd.pipelines.graph import GraphSVD
from streamsvd.pipelines.graph.evaluate import of_filter, unknown_users


@pytest.mark.data
@pytest.mark.slow
def test_regularised_factors_recommend_half_as_well_again_as_exact_ones(data_dir):
    folder = data_dir / "recsys" / "yelp_sparse"
    train, valid, test = (pq.read_table(folder / f"{name}.parquet") for name in ("train", "valid", "test"))
    chosen = GraphSVD(rank=64, validation=valid).update(train)
    exact = GraphSVD(rank=64, regularise=0.0).update(train)
    recalls = []
    for graph in (chosen, exact):
        factors = graph.factors()
        found = of_filter(graph, test)
        recalls.append(found["recall@20"] * found["users"] / (found["users"] + unknown_users(test, factors)))
    assert chosen.factors().info["regularise"] in (0.25, 0.5, 1.0)
    assert recalls[0] >= 0.085
    assert recalls[0] >= 1.4 * recalls[1]
    assert GraphSVD(rank=64).update(train).factors().info["regularise"] == 0.5  # without validation, by participation
