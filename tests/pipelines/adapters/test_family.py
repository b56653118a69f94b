"""The named methods: each is the part of the weight that its paper names, and PEFT agrees where it has the method."""

from __future__ import annotations

import numpy as np
import pytest

from streamsvd.pipelines.adapters import family

W = np.random.default_rng(0).standard_normal((140, 90)) @ np.diag(1.0 / np.arange(1, 91))
U, S, VT = np.linalg.svd(W, full_matrices=False)


def part(rows):
    return (U[:, rows] * S[rows]) @ VT[rows]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (family.pissa(W, 6, tol=1e-9), part(slice(0, 6))),
        (family.milora(W, 6), part(slice(84, 90))),
        (family.sorsa(W, 6, tol=1e-9), part(slice(0, 6))),
        (family.svfit(W, 6), part(slice(0, 6))),
        (family.kasa(W, 6), part(slice(84, 90))),
        (family.effort(W, 1), part(slice(89, 90))),
    ],
    ids=["pissa", "milora", "sorsa", "svfit", "kasa", "effort"],
)
def test_the_part_is_that_of_the_paper(parts, expected):
    np.testing.assert_allclose(parts.product, expected, atol=1e-5)
    np.testing.assert_allclose(parts.residual, W - expected, atol=1e-5)


def test_pissa_by_default_is_close_to_the_exact_part_and_shares_the_values_evenly():
    parts = family.pissa(W, 6)
    np.testing.assert_allclose(parts.product, part(slice(0, 6)), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(parts.B, axis=0), np.linalg.norm(parts.A, axis=1), rtol=1e-4)


def test_svfit_without_a_rank_takes_what_holds_the_energy():
    share = np.cumsum(S**2) / np.sum(S**2)
    assert family.svfit(W).rank == int(np.searchsorted(share, 0.99)) + 1
    assert family.svfit(W, energy=1.0).rank == 90


def test_olora_is_the_head_of_a_qr_factorization():
    pair = family.olora(W, 7)
    Q, R = np.linalg.qr(W)
    np.testing.assert_allclose(pair.B @ pair.A, Q[:, :7] @ R[:7], atol=1e-12)
    np.testing.assert_allclose(pair.B.T @ pair.B, np.eye(7), atol=1e-12)
    assert (np.diag(pair.A) > 0).all()


def test_nlora_as_published_and_as_nystrom():
    pair = family.nlora(W, 5)
    np.testing.assert_array_equal(pair.A, W[:5])
    np.testing.assert_array_equal(pair.B, W[:, :5])
    np.testing.assert_array_equal(pair.core, W[:5, :5])
    low = part(slice(0, 5))
    for sampling in ("first", "leverage"):
        exact = family.nlora(low, 5, sampling=sampling, core="pinv")
        assert np.abs(exact.residual).max() < 1e-6 * np.abs(low).max()


def test_leverage_sampling_finds_the_rows_that_matter():
    sparse = np.zeros((60, 50))
    sparse[[11, 30, 47], [5, 20, 44]] = 9.0
    pair = family.nlora(sparse, 3, sampling="leverage", core="pinv")
    assert np.abs(pair.residual).max() < 1e-9
    assert np.abs(family.nlora(sparse, 3, core="pinv").residual).max() == 9.0


@pytest.mark.parametrize("method", ["pissa", "olora", "kasa"])
def test_peft_finds_the_same_product(method):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(90, 140))
    layer[0].weight.data = torch.tensor(W, dtype=torch.float32)
    if method == "kasa":
        from peft.tuners.lora.config import KasaConfig

        config = peft.LoraConfig(r=6, lora_alpha=6, target_modules=["0"], use_dora=False, kasa_config=KasaConfig())
    else:
        config = peft.LoraConfig(r=6, lora_alpha=6, target_modules=["0"], init_lora_weights=method)
    theirs = peft.get_peft_model(layer, config).base_model.model[0]
    ours = {
        "pissa": lambda: family.pissa(W, 6, tol=1e-9),
        "olora": lambda: family.olora(W, 6),
        "kasa": lambda: family.kasa(W, 6),
    }
    np.testing.assert_allclose(theirs.base_layer.weight.detach(), ours[method]().residual, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: family.kasa(W, 90), "less than 90"),
        (lambda: family.olora(W, 91), "expected 1 .. 90"),
        (lambda: family.nlora(W, 0), "expected 1 .. 90"),
        (lambda: family.nlora(W, 2, sampling="some"), "'leverage'"),
        (lambda: family.nlora(W, 2, core="some"), "'pinv'"),
        (lambda: family.svfit(W, energy=0.0), "energy=0.0"),
        (lambda: family.pissa(W, 91), "expected 1 .. 90"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
