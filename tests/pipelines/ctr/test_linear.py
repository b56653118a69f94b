from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest

import streamsvd as ss
from streamsvd.pipelines.ctr.linear import compress_linear

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((6, 9)), RNG.standard_normal(6)
INPUTS = RNG.standard_normal((400, 9)) * 0.6 ** np.arange(9)
OUT = INPUTS @ W.T + B


def applied(pair, x: np.ndarray) -> np.ndarray:
    return (x @ pair.w1.T + pair.b1) @ pair.w2.T + pair.b2


def test_full_rank_is_the_layer() -> None:
    np.testing.assert_allclose(applied(compress_linear((W, B), OUT, 6), INPUTS), OUT, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_the_sum_of_the_dropped_eigenvalues(rank: int) -> None:
    pair = compress_linear((W, B), OUT, rank)
    error = ((applied(pair, INPUTS) - OUT) ** 2).sum(axis=1).mean()
    assert error == pytest.approx(pair.dropped, rel=1e-9)
    assert pair.dropped == pytest.approx(np.linalg.eigvalsh(np.cov(OUT.T, bias=True))[::-1][rank:].sum(), rel=1e-9)


def test_any_source_of_activations_gives_the_same_layers() -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(OUT.ravel()), 6)
    table = pa.table({"layer": ["fc"] * 400, "vector": vectors, "weight": np.ones(400)})
    whole = compress_linear((W, B), OUT, 3)
    state = ss.sketch(columns=6, rank=6, kind="gram").update(OUT)
    sources = [
        ((OUT[i : i + 70] for i in range(0, 400, 70)), {}),
        (table, {"select": "vector", "weights": "weight"}),
        (table.to_batches(max_chunksize=50), {"select": "vector"}),
        (state, {}),
    ]
    for source, options in sources:
        found = compress_linear((W, B), source, 3, **options)
        np.testing.assert_allclose(found.w2 @ found.w1, whole.w2 @ whole.w1, atol=1e-10)
        np.testing.assert_allclose(found.b2 + found.w2 @ found.b1, whole.b2 + whole.w2 @ whole.b1, atol=1e-10)


def test_torch_layers_in_and_out() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(9, 6)
    x = torch.randn(300, 9)
    pair = compress_linear(layer, layer(x).detach(), 6).to_torch()
    torch.testing.assert_close(pair(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 7, True])
def test_a_rank_out_of_range_is_refused(rank) -> None:
    with pytest.raises(ValueError, match="from 1 to 6"):
        compress_linear((W, B), OUT, rank)


def test_activations_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="5"):
        compress_linear((W, B), OUT[:, :5], 2)
    with pytest.raises(ValueError, match="expected outputs of this layer, 6 numbers"):
        compress_linear((W, B), ss.sketch(columns=5, rank=2, kind="gram").update(OUT[:, :5]), 2)


def test_few_samples_are_said(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="streamsvd"):
        compress_linear((W, B), OUT[:4], 2)
    assert "4 outputs arrived for a layer of 6" in caplog.text
