"""LightGCL: the forward pass and the losses by their formulas, gradients by differences, training that learns and repeats."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.operators import Csr  # noqa: E402
from streamsvd.pipelines.graph import GraphSVD, LightGCL  # noqa: E402
from streamsvd.pipelines.graph import lightgcl as net  # noqa: E402
from streamsvd.pipelines.graph.io import read_factors, write_factors  # noqa: E402
from streamsvd.pipelines.graph.synthetic import power_law  # noqa: E402


@pytest.fixture(scope="module")
def small() -> GraphSVD:
    g = GraphSVD(rank=4, regularise=0.5).update(power_law(80, 50, 900, communities=4, loyalty=0.95))
    g.refresh()
    return g


def parts(m: int = 7, n: int = 5, k: int = 3, d: int = 4):
    rng = np.random.default_rng(0)
    from scipy.sparse import csr_array

    N = csr_array(rng.random((m, n)) * (rng.random((m, n)) < 0.6))
    factors = net.Factored(*(torch.tensor(rng.standard_normal((rows, k))) for rows in (m, n, m, n)))
    tensors = [torch.tensor(rng.standard_normal((rows, d)), requires_grad=True) for rows in (m, n)]
    return N, Csr(N), factors, tensors


def test_the_forward_pass_is_its_formula():
    N, op, f, (users, items) = parts()
    views = net.forward(users, items, op, f, layers=2, lowrank=True, contrast=True)
    A = torch.tensor(N.toarray())
    step, back = A + f.u @ f.v.T, (A + f.u @ f.v.T).T
    u1, i1 = step @ items, back @ users
    u2, i2 = step @ i1, back @ u1
    assert torch.allclose(views.users, users + u1 + u2)
    assert torch.allclose(views.items, items + i1 + i2)
    assert torch.allclose(views.users_view, users + f.us @ f.v.T @ (items + i1))
    assert torch.allclose(views.items_view, items + f.vs @ f.u.T @ (users + u1))


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("lowrank", [False, True])
def test_gradients_are_those_of_finite_differences(kind, lowrank):
    _, op, f, tensors = parts()
    u, p, n = torch.tensor([0, 3, 6]), torch.tensor([1, 4, 0]), torch.tensor([2, 2, 3])

    def loss(users, items):
        views = net.forward(users, items, op, f, layers=2, lowrank=lowrank, contrast=True)
        total = net.bpr(views.users[u], views.items[p], views.items[n])
        for view, main, anchors in ((views.users_view, views.users, u), (views.items_view, views.items, p)):
            total = total + 0.3 * net.contrast_loss(view, main, None, anchors=anchors, temperature=5.0, kind=kind)
        return total

    assert torch.autograd.gradcheck(loss, tensors, atol=1e-6)


def test_the_contrast_is_the_published_sum_and_survives_large_products():
    rng = np.random.default_rng(1)
    g, e = (torch.tensor(3 * rng.standard_normal((6, 3))) for _ in range(2))
    anchors = torch.tensor([1, 4])
    found = net.contrast_loss(g, e, None, anchors=anchors, temperature=0.5, kind="dot")
    assert ((g[anchors] * e[anchors]).sum(1).abs() / 0.5 > 5).any()  # so the clamp matters
    pull = (g[anchors] * e[anchors]).sum(1).div(0.5).clamp(-5, 5).mean()
    assert torch.allclose(found, torch.log(torch.exp(g[anchors] @ e.T / 0.5).sum(1)).mean() - pull)
    assert torch.isfinite(
        net.contrast_loss(g.float() * 1e3, e.float() * 1e3, None, anchors=anchors, temperature=0.1, kind="dot")
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"propagate": "plain"},
        {"init": "factors"},
        {"contrast": "cosine"},
        {"contrast": "dot", "nodes": 0},
        {"dropout": 0.2},
    ],
    ids=str,
)
def test_training_learns_communities_and_repeats_bit_for_bit(small, options):
    held_out = power_law(80, 50, 1100, communities=4, loyalty=0.95, seed=9)
    trained = [LightGCL(width=8, epochs=6, batch=128, seed=3, **options).fit(small) for _ in range(2)]
    first, second = trained
    assert first.history_[-1]["loss"] < 0.9 * first.history_[0]["loss"]
    assert np.array_equal(first.user_embedding_, second.user_embedding_)
    scores = first.user_embedding_ @ first.item_embedding_.T
    users, items = (np.asarray(x) % 4 for x in (first.users_.to_numpy(), first.items_.to_numpy()))
    same = users[:, None] == items[None, :]
    assert scores[same].mean() > scores[~same].mean() + 0.5 * scores.std()
    assert first.evaluate(held_out)["recall@20"] > 0


def test_early_stopping_keeps_the_best_epoch(small):
    held_out = power_law(80, 50, 900, communities=4, loyalty=0.95, seed=8)
    model = LightGCL(width=8, epochs=30, patience=2, batch=128, learning_rate=0.05).fit(small, validation=held_out)
    recalls = [entry["recall@20"] for entry in model.history_]
    assert len(recalls) < 30
    assert recalls.index(max(recalls)) == len(recalls) - 3
    assert model.evaluate(held_out, cuts=(20,))["recall@20"] == max(recalls)


def test_factors_from_a_folder_are_matched_by_id(small, tmp_path):
    write_factors(small.factors(), tmp_path)
    rows = power_law(80, 50, 900, communities=4, loyalty=0.95).to_pandas().sample(frac=1.0, random_state=0)
    model = LightGCL(width=8, epochs=1).fit(rows, factors=tmp_path)
    f, found = read_factors(tmp_path), model._matched(model._store, read_factors(tmp_path))
    at = {user: row for row, user in enumerate(f.users.to_pylist())}
    assert np.array_equal(found.u, f.u[[at[user] for user in model.users_.to_pylist()]])
    assert np.allclose(found.u_mul_s.T @ found.u_mul_s, f.u_mul_s.T @ f.u_mul_s, atol=1e-4)


def test_recommendations_leave_seen_items_out_and_unknown_users_are_refused(small):
    model = LightGCL(width=8, epochs=1).fit(small)
    top = model.recommend(k=50)
    assert top.num_rows == 80 * 50 - 900 or top.num_rows == np.prod(small.state_.store.shape) - 900
    with pytest.raises(ValueError, match=r"1 of 1 users were not in the training edges"):
        model.recommend([10**9])


def test_what_cannot_be_trained_is_said(small):
    edges = power_law(20, 20, 60, communities=2)
    with pytest.raises(ValueError, match=r"propagate='lowrank': that needs factors, and none came"):
        LightGCL().fit(edges)
    with pytest.raises(ValueError, match=r"contrast='cos' is not known"):
        LightGCL(contrast="cos")
    with pytest.raises(ValueError, match=r"learning_rate"), np.errstate(all="ignore"):
        LightGCL(learning_rate=1e30, epochs=3, batch=64).fit(small)


@pytest.mark.cuda
def test_the_gpu_trains_as_the_cpu_does(small):
    cpu, gpu = (LightGCL(width=8, epochs=2, batch=128, device=device).fit(small) for device in ("cpu", "cuda"))
    assert np.allclose(cpu.user_embedding_, gpu.user_embedding_, atol=1e-2)
