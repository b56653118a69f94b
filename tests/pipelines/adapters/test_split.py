"""``split`` against a dense float64 decomposition: both ends, every metric, every algorithm behind it, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsvd.pipelines.adapters import ends
from streamsvd.pipelines.adapters.metrics import Covariance, Diagonal, LowRank, metric_of
from streamsvd.pipelines.adapters.split import reshape, split

SHAPES = [(300, 300), (400, 250), (250, 400), (50, 80), (1, 7), (7, 1)]


def oracle(W, C, rank, end):
    """The projected weight ``U U'W`` and its singular values in ``W C``, by LAPACK in float64."""
    U, s, _ = np.linalg.svd(W.astype(np.float64) @ C, full_matrices=False)
    part = slice(0, rank) if end == "top" else slice(s.size - rank, None)
    return U[:, part] @ (U[:, part].T @ W.astype(np.float64)), s[part], s


def covariance(d, seed=0, damping=0.01):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((2 * d, d)) / np.arange(1, d + 1)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    C = X.T @ X / len(X)
    return C + damping * np.mean(np.diag(C)) * np.eye(d)


def spectrum(n, d, s, seed=0):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((m, s.size)))[0] for m in (n, d))
    return (U * s) @ V.T


@pytest.mark.parametrize("metric", ["none", "diagonal", "covariance"])
@pytest.mark.parametrize("end", ["top", "bottom"])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_the_dense_decomposition(shape, end, metric):
    n, d = shape
    W = np.random.default_rng(1).standard_normal(shape)
    C = {"none": np.eye(d), "diagonal": np.diag(np.linspace(1, 3, d)), "covariance": covariance(d)}[metric]
    given_metric = {"none": None, "diagonal": np.diag(C), "covariance": C}[metric]
    for rank in sorted({1, min(8, n, d), min(n, d)}):
        parts = split(W, rank, end=end, metric=given_metric)
        product, s, _ = oracle(W, C, rank, end)
        np.testing.assert_allclose(parts.B @ parts.A, product, atol=1e-6 * np.abs(product).max())
        np.testing.assert_allclose(parts.s, s, rtol=1e-8)
        np.testing.assert_allclose(parts.u.T @ parts.u, np.eye(rank), atol=1e-11)
        np.testing.assert_allclose(parts.vt @ C @ C @ parts.vt.T, np.eye(rank), atol=1e-5)
        np.testing.assert_allclose(parts.product + parts.residual, W, atol=1e-12)


@pytest.mark.parametrize("end", ["top", "bottom"])
def test_a_gap_of_a_thousandth_is_resolved_to_1e5(end):
    n, r = 300, 10
    s = 1.0 - 0.2 * np.arange(n) / n
    at = r if end == "top" else n - r
    s[at:] *= 1.0 - 1e-3
    W = spectrum(n, n, s)
    parts = split(W, r, end=end)
    product, _, _ = oracle(W, np.eye(n), r, end)
    assert np.linalg.norm(parts.product - product) <= 1e-5 * np.linalg.norm(product)


@pytest.mark.parametrize("make", ["equal", "gaussian", "pairs"])
def test_without_a_gap_the_energy_is_the_best(make):
    rng, n = np.random.default_rng(2), 280
    s = {"equal": np.ones(n), "pairs": np.repeat(1.0 / np.arange(1, n // 2 + 1), 2)}
    W = rng.standard_normal((n, n)) if make == "gaussian" else spectrum(n, n, s[make])
    for rank in (1, 7):
        _, best, _ = oracle(W, np.eye(n), rank, "top")
        parts = split(W, rank)
        held = np.linalg.norm(parts.u.T @ W) ** 2
        assert held >= (1 - 1e-6) * np.sum(best**2)
        _, worst, _ = oracle(W, np.eye(n), rank, "bottom")
        bottom = split(W, rank, end="bottom")
        assert np.linalg.norm(bottom.u.T @ W) ** 2 <= (1 + 1e-6) * np.sum(worst**2)


def test_small_components_keep_their_digits_where_squares_would_lose_them():
    s = np.logspace(0, -10, 200)
    W = spectrum(200, 260, s)
    parts = split(W, 5, end="bottom")
    assert parts.how == "inverse"
    np.testing.assert_allclose(parts.s, s[-5:], rtol=1e-4)
    product, _, _ = oracle(W, np.eye(260), 5, "bottom")
    assert np.linalg.norm(parts.product - product) <= 1e-5 * np.linalg.norm(product)


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
def test_the_gram_route_agrees_and_hands_steep_spectra_on(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    U, how = ends.gram_top(W, 6)
    product, _, _ = oracle(W, np.eye(shape[1]), 6, "top")
    assert how == "gram"
    np.testing.assert_allclose(U @ (U.T @ W), product, atol=1e-9)
    steep = spectrum(*shape, np.logspace(0, -12, 200))
    assert ends.gram_top(steep, 150)[1] == "full"


@pytest.mark.parametrize("end", ["top", "bottom"])
@pytest.mark.parametrize("metric", [False, True])
def test_rank_deficient_weights_are_split_exactly(end, metric):
    rng, d = np.random.default_rng(3), 180
    W = rng.standard_normal((150, 6)) @ rng.standard_normal((6, d))
    C = covariance(d) if metric else None
    for rank in (4, 20, 150):
        parts = split(W, rank, end=end, metric=C)
        assert all(np.isfinite(x).all() for x in (parts.B, parts.A, parts.residual))
        np.testing.assert_allclose(parts.product + parts.residual, W, atol=1e-9)
        np.testing.assert_allclose(parts.u.T @ parts.u, np.eye(rank), atol=1e-9)
        if end == "bottom" and rank < 140:
            assert np.abs(parts.product).max() < 1e-9
        if end == "top" and rank >= 6:
            assert np.abs(parts.residual).max() < 1e-9


def test_a_zero_weight_gives_zero_products():
    for end in ("top", "bottom"):
        parts = split(np.zeros((200, 150), np.float32), 4, end=end)
        assert not parts.product.any()
        assert not parts.s.any()
    assert not split(np.zeros((200, 150), np.float32), 4, passes=3).product.any()


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 30),
    d=st.integers(1, 30),
    share=st.floats(0, 1),
    end=st.sampled_from(["top", "bottom"]),
    form=st.sampled_from(["sqrt", "left", "right", "usv"]),
    seed=st.integers(0, 99),
)
def test_every_form_multiplies_to_the_same_part(n, d, share, end, form, seed):
    W = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    rank = 1 + int(share * (min(n, d) - 1))
    parts = split(W, rank, end=end, form=form)
    core = np.diag(parts.s) if form == "usv" else np.eye(rank, dtype=np.float32)
    np.testing.assert_allclose(parts.B @ core @ parts.A, parts.product, atol=1e-5)
    np.testing.assert_allclose(reshape(parts, "left").B, parts.u * parts.s)
    product, _, _ = oracle(W, np.eye(d), rank, end)
    s = np.linalg.svd(W.astype(float), compute_uv=False)
    cut = (s[rank - 1] - s[rank] if end == "top" else s[-rank - 1] - s[-rank]) if rank < s.size else 1.0
    if cut > 1e-3 * s[0]:
        np.testing.assert_allclose(parts.product, product, atol=1e-5 * s[0])


def test_a_scaled_weight_gives_scaled_factors():
    W = np.random.default_rng(0).standard_normal((200, 160)).astype(np.float32)
    one, large = split(W, 5), split(W * np.float32(2.0**40), 5)
    np.testing.assert_allclose(large.product, one.product * 2.0**40, rtol=1e-3, atol=2.0**40 * 1e-5)
    tiny = split(W * np.float32(2.0**-60), 5, end="bottom")
    np.testing.assert_allclose(tiny.s * 2.0**60, split(W, 5, end="bottom").s, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_weights_give_torch_factors_of_the_same_numbers(dtype):
    torch = pytest.importorskip("torch")
    W = torch.randn(160, 200, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    W.requires_grad_()
    wide = W.detach().to(torch.float64 if dtype == "float64" else torch.float32)
    for options in ({}, {"end": "bottom"}, {"passes": 4}, {"tol": 1e-3}, {"metric": torch.eye(200)}):
        parts, same = split(W, 5, **options), split(wide.numpy(), 5, **options)
        assert parts.A.dtype == parts.residual.dtype == wide.dtype
        np.testing.assert_array_equal(parts.u.numpy(), same.u)
        np.testing.assert_allclose(parts.A.numpy(), same.A, rtol=1e-6, atol=1e-12)
        assert torch.allclose(parts.product + parts.residual, wide, atol=1e-5)


def test_arrays_of_another_library_stay_there():
    strict = pytest.importorskip("array_api_strict")
    W = np.random.default_rng(0).standard_normal((140, 200))
    for end in ("top", "bottom"):
        parts = split(strict.asarray(W), 5, end=end)
        assert type(parts.u).__module__.startswith("array_api_strict")
        np.testing.assert_allclose(np.asarray(parts.product), oracle(W, np.eye(200), 5, end)[0], atol=1e-6)


def test_a_low_rank_covariance_is_the_matrix_it_stands_for():
    rng, d = np.random.default_rng(0), 160
    V = np.linalg.qr(rng.standard_normal((d, 6)))[0]
    low = LowRank(V, np.array([9.0, 5, 3, 2, 1, 0.5]), 0.2)
    C = (V * low.w) @ V.T + 0.2 * np.eye(d)
    W, X = rng.standard_normal((140, d)), rng.standard_normal((d, 3))
    np.testing.assert_allclose(low.apply(X), C @ X, atol=1e-12)
    np.testing.assert_allclose(low.orient(W), W @ C, atol=1e-12)
    np.testing.assert_allclose(low.solve(X), np.linalg.solve(C, X), atol=1e-12)
    np.testing.assert_allclose(Covariance(C).solve(X), np.linalg.solve(C, X), atol=1e-12)
    np.testing.assert_allclose(Diagonal(np.diag(C)).solve(X), X / np.diag(C)[:, None])
    for end in ("top", "bottom"):
        one, other = split(W, 5, end=end, metric=low), split(W, 5, end=end, metric=C)
        np.testing.assert_allclose(one.product, other.product, atol=1e-6)


def test_quick_takes_the_products_it_says_and_beats_subspace_iteration():
    torch = pytest.importorskip("torch")
    rng, n, r = np.random.default_rng(0), 800, 16
    for name, W in {
        "decaying": spectrum(n, n, 1.0 / np.sqrt(np.arange(1, n + 1))),
        "gaussian": rng.standard_normal((n, n)),
    }.items():
        W = W.astype(np.float32)
        best = np.sum(oracle(W, np.eye(n), r, "top")[1] ** 2)
        share = [
            np.linalg.norm(np.linalg.qr(np.asarray(U, dtype=float))[0].T @ W) ** 2 / best
            for U in (split(W, r, passes=5).u, torch.svd_lowrank(torch.from_numpy(W), r, niter=4)[0])
        ]
        assert share[0] >= (0.9999 if name == "decaying" else share[1] + 0.05)
    counted = Counted(W)
    ends.quick_top(counted, r, 5, 0)
    assert counted.count == 9


class Counted(ends.Oriented):
    def __init__(self, W):
        super().__init__(W, metric_of(None, W.shape[1], like=W))
        self.count = 0

    def matmat(self, X):
        self.count += 1
        return super().matmat(X)

    def rmatmat(self, Y):
        self.count += 1
        return super().rmatmat(Y)


def test_tol_reaches_the_energy_it_names_on_a_flat_spectrum():
    W = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32)
    best = np.sum(oracle(W, np.eye(400), 8, "top")[1] ** 2)
    assert np.linalg.norm(split(W, 8, tol=1e-4).u.T @ W) ** 2 >= 0.9999 * best


W23 = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: split(W23, 3), ValueError, r"rank=3 .* shape \(2, 3\); expected 1 .. 2"),
        (lambda: split(W23, 0), ValueError, "expected 1 .. 2"),
        (lambda: split(W23, True), TypeError, "whole number"),
        (lambda: split(W23, 1.0), TypeError, "whole number"),
        (lambda: split(np.ones(3), 1), ValueError, r"shape \(3,\)"),
        (lambda: split(np.ones((0, 3)), 1), ValueError, r"\(0, 3\)"),
        (lambda: split(np.ones((2, 3), int), 1), TypeError, "dequantize"),
        (lambda: split(np.full((2, 3), np.nan), 1), ValueError, "NaN"),
        (lambda: split(np.array([[1.0, np.inf]]), 1), ValueError, "infinity"),
        (lambda: split(W23, 1, end="middle"), ValueError, "'middle'"),
        (lambda: split(W23, 1, form="middle"), ValueError, "'middle'"),
        (lambda: split(W23, 1, end="bottom", tol=0.1), ValueError, "leave them out"),
        (lambda: split(W23, 1, passes=2, tol=0.1), ValueError, "one of the two"),
        (lambda: split(W23, 1, passes=0), ValueError, "at least 1"),
        (lambda: split(W23, 1, metric=np.ones(2)), ValueError, r"\(3,\)"),
        (lambda: split(W23, 1, metric=np.array([1.0, 0.0, 1.0])), ValueError, "positive"),
        (lambda: split(W23, 1, metric=np.array([[1.0, 2, 3]] * 3)), ValueError, "symmetric"),
        (lambda: split(W23, 1, metric=np.full((3, 3), np.nan)), ValueError, "NaN"),
        (lambda: split(W23, 2, metric=np.zeros((3, 3))), ValueError, "damping > 0"),
        (lambda: LowRank(np.ones((3, 1)), np.ones(1), 0.0).solve(np.ones((3, 1))), ValueError, "damping > 0"),
    ],
)
def test_bad_input_says_what_arrived_and_what_to_write(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_bad_torch_weights_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="int8"):
        split(torch.ones(3, 3, dtype=torch.int8), 1)
