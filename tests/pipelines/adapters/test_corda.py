"""CorDA: the factors against a float64 reference of the paper's formulas, the low-rank covariance, what is refused, and what is saved."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.flow.activations import ActivationStats  # noqa: E402
from streamsvd.pipelines.adapters.corda import corda, from_metrics  # noqa: E402
from streamsvd.pipelines.adapters.covariance import covariance_of, damped, lowrank_of  # noqa: E402

D = 150


class Net(torch.nn.Module):
    def __init__(self, d=D, out=130, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.q, self.k = torch.nn.Linear(d, out), torch.nn.Linear(d, out)
        self.down = torch.nn.Linear(out, d)

    def forward(self, x):
        return self.down(torch.relu(self.q(x)) * torch.sigmoid(self.k(x)))


def batches(count=6, d=D, seed=1):
    draw = torch.Generator().manual_seed(seed)
    scale = 1.0 / torch.arange(1, d + 1)
    return [torch.randn(3, 40, d, generator=draw) * scale for _ in range(count)]


def reference(W, X, rank, mode, damping=0.01):
    """The paper's formulas in float64, with the inverse: B, A of W C = U S V', A = sqrt(S) V'C^-1."""
    W, X = W.detach().double().numpy(), X.detach().double().numpy()
    C = X.T @ X / len(X)
    C += damping * np.mean(np.diag(C)) * np.eye(len(C))
    U, s, Vt = np.linalg.svd(W @ C, full_matrices=False)
    part = slice(0, rank) if mode == "ipm" else slice(s.size - rank, None)
    root = np.sqrt(s[part])
    return U[:, part] * root, root[:, None] * (Vt[part] @ np.linalg.inv(C)), s[part]


@pytest.mark.parametrize("rank", [1, 8, 130])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_factors_are_those_of_the_paper(mode, rank):
    net, data = Net(), batches()
    stats = ActivationStats(net, ["q", "k"], sketch="gram", dtype="float64")
    with stats:
        for x in data:
            stats.forward(x)
    adapters = corda(net, [], rank, mode=mode, stats=stats)
    X = torch.cat(data).reshape(-1, D)
    for name in ("q", "k"):
        W = dict(net.named_modules())[name].weight
        B, A, s = reference(W, X, rank, mode)
        one = adapters.layers[name]
        scale = np.abs(B @ A).max()
        np.testing.assert_allclose((one.B @ one.A).numpy(), B @ A, atol=1e-5 * scale)
        np.testing.assert_allclose(one.s.numpy(), s, rtol=1e-5)
        turn = np.sign(np.sum(one.B.numpy() * B, axis=0))
        if rank < 130:
            np.testing.assert_allclose(one.B.numpy() * turn, B, atol=1e-4 * np.abs(B).max())
            np.testing.assert_allclose(one.A.numpy() * turn[:, None], A, atol=1e-4 * np.abs(A).max())


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_by_default_the_covariance_is_as_good_as_float64(mode):
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5)))[0]
    net, data = (
        Net(),
        [x @ turn for x in batches()],
    )  # turned, since float32 is kind to columns that are graded one by one
    X = torch.cat(data).reshape(-1, D)
    B, A, _ = reference(net.q.weight, X, 8, mode, 1e-6)

    def error(**how):
        one = corda(net, iter(data), 8, mode=mode, damping=1e-6, targets=["q"], **how).layers["q"]
        return np.linalg.norm((one.B.double() @ one.A.double()).numpy() - B @ A) / np.linalg.norm(B @ A)

    assert error() <= 1e-5
    if mode == "kpm":
        assert error(dtype="float32") > 1e-4  # so the data tell the two apart


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapted_model_computes_what_the_model_did(mode, dtype):
    net, data = Net().to(dtype), [x.to(dtype) for x in batches()]
    expected = net(data[0]).float()
    adapters = corda(net, iter(data), 8, mode=mode, alpha=3.0, ranks={"down": 3})
    assert [one.rank for one in adapters.layers.values()] == [8, 8, 3]
    assert {one.scaling for one in adapters.layers.values()} == {3.0 / 8}
    assert torch.equal(net(data[0]).float(), expected)  # nothing was changed so far
    adapted = adapters.apply()
    for name, one in adapters.layers.items():
        layer = dict(adapted.named_modules())[name]
        layer.weight.data = (layer.weight.float() + one.scaling * one.B @ one.A).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(adapted(data[0]).float(), expected, atol=tolerance)


def test_layers_that_share_an_input_share_a_covariance():
    net = Net()
    stats = ActivationStats(net, ["q", "k", "down"], sketch="gram")
    with stats:
        stats.forward(batches(1)[0])
    assert stats.groups["k"] == "q"
    made = []
    read = stats.sketch
    stats.sketch = lambda name: made.append(name) or read(name)
    corda(net, [], 4, stats=stats)
    assert len(made) == 2


def test_a_low_rank_covariance_captures_the_energy_of_the_exact_one():
    net, data = Net(), batches(20)
    X = torch.cat(data).reshape(-1, D).double().numpy()
    C = X.T @ X / len(X)
    C += 0.01 * np.mean(np.diag(C)) * np.eye(D)
    M = net.q.weight.detach().double().numpy() @ C
    best = np.sum(np.linalg.svd(M, compute_uv=False)[:8] ** 2)
    low = corda(net, data, 8, covariance="lowrank", targets=["q"], kept=64).layers["q"]
    U = np.linalg.qr(low.u.double().numpy())[0]
    assert np.linalg.norm(U.T @ M) ** 2 >= 0.9999 * best


def test_the_low_rank_covariance_keeps_the_trace():
    net, data = Net(), batches(4)
    with ActivationStats(net, ["q"], sketch="truncated", kept=32) as stats:
        for x in data:
            stats.forward(x)
    V, w, tail = lowrank_of(stats.sketch("q"), 32)
    X = torch.cat(data).reshape(-1, D).double()
    assert V.shape == (D, 32)
    assert abs(w.sum() + tail * (D - 32) - float((X**2).sum()) / len(X)) < 1e-5
    whole = lowrank_of(stats.sketch("q"), 999)[1]
    assert whole.size == 32


def test_covariances_are_mean_second_moments_and_peft_scaling_is_that_of_peft():
    net, data = Net(), batches(3)
    X = torch.cat(data).reshape(-1, D).double().numpy()
    plain = corda(net, data, 4, targets=["q"])
    np.testing.assert_allclose(plain.covariances("q"), X.T @ X / len(X), rtol=1e-4, atol=1e-9)
    theirs = sum(x.T @ x for x in (b.reshape(-1, D).double() / b.double().max().abs() for b in data)) / 3
    scaled = corda(net, data, 4, targets=["q"], peft_scaling=True)
    np.testing.assert_allclose(scaled.covariances("q"), theirs, rtol=1e-4, atol=1e-7)


def test_masked_tokens_do_not_count():
    class Masked(Net):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    net, x = Masked(), batches(1)[0]
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[:, 30:] = 0
    spoiled = x.clone()
    spoiled[:, 30:] = 1e6
    one = corda(net, [{"input_ids": spoiled, "attention_mask": mask}], 4, targets=["q"]).layers["q"]
    other = corda(net, [{"input_ids": x[:, :30]}], 4, targets=["q"]).layers["q"]
    assert torch.allclose(one.B @ one.A, other.B @ other.A, atol=1e-6)


def test_layers_never_reached_are_reported_and_left_alone():
    net = Net()
    net.expert = torch.nn.Linear(D, D)
    adapters = corda(net, batches(1), 4)
    assert adapters.skipped == ("expert",)
    assert list(adapters.layers) == ["q", "k", "down"]


def test_fewer_rows_than_the_rank_will_do():
    adapters = corda(Net(), [torch.randn(1, 2, D)], 16, targets=["q"])
    assert bool(adapters.layers["q"].A.isfinite().all())


def test_conv1d_is_read_the_other_way_round():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    net, data = torch.nn.Sequential(Conv1D(130, D)), batches(3)
    linear = torch.nn.Sequential(torch.nn.Linear(D, 130))
    linear[0].weight.data = net[0].weight.detach().T.contiguous()
    one, other = corda(net, data, 5, targets=["0"]), corda(linear, data, 5, targets=["0"])
    assert one.layers["0"].transposed
    assert one.config()["fan_in_fan_out"]
    assert torch.equal(one.layers["0"].A, other.layers["0"].A)
    residual = dict(one.residual_weights())["0"]
    assert torch.allclose(residual.T, dict(other.residual_weights())["0"], atol=1e-6)


def test_given_metrics_serve_in_place_of_a_pass_over_data():
    net, C = Net(), np.cov(np.random.default_rng(0).standard_normal((D, 400)))
    adapters = from_metrics(net, {"q": damped(C, 0.01), "k": None, "down": np.ones(130)}, 4)
    assert set(adapters.layers) == {"q", "k", "down"}
    with ActivationStats(net, ["q"], sketch="gram") as stats:
        stats.forward(torch.randn(4, D))
    assert covariance_of(stats.sketch("q")).shape == (D, D)


def nan_batch():
    x = batches(1)[0]
    x[0, 0, 0] = float("nan")
    return [x]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: corda(n, batches(1), 4, mode="kpm", covariance="lowrank"), "lowrank_kpm=True"),
        (lambda n: corda(n, batches(1), 4, mode="both"), "'both'"),
        (lambda n: corda(n, batches(1), 4, damping=-1.0), "damping=-1.0"),
        (lambda n: corda(n, batches(1), 131), "layer q .*expected 1 .. 130"),
        (lambda n: corda(n, batches(1), 4, ranks={"down": 140}), "layer down"),
        (lambda n: corda(n, batches(1), 4, ranks={"up": 4}), "got a rank for up"),
        (lambda n: corda(n, [], 4), "none of the 3 target layers saw a row"),
        (lambda n: corda(n, batches(1), 4, targets=["q_proj"]), "q"),
        (lambda n: corda(n, [torch.zeros(2, D)], 4), "layer q: all inputs were zero"),
        (lambda n: corda(n, nan_batch(), 4), r"layer '\w+', batch"),
    ],
)
def test_bad_input_is_named(call, words):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=words):
        call(net)
    assert not net._forward_pre_hooks
    assert not net.q._forward_pre_hooks
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_kpm_with_a_low_rank_covariance_runs_when_asked_for():
    adapters = corda(Net(), batches(3), 4, mode="kpm", covariance="lowrank", lowrank_kpm=True, targets=["q"])
    assert adapters.layers["q"].rank == 4


def test_statistics_of_another_model_or_kind_are_refused():
    net, exact, low = Net(), [], []
    for kind, out in (("gram", exact), ("truncated", low)):
        with ActivationStats(net, ["q"], sketch=kind) as stats:
            stats.forward(batches(1)[0])
        out.append(stats)
    with pytest.raises(ValueError, match="another model"):
        corda(Net(seed=5), [], 4, stats=exact[0])
    assert corda(copy.deepcopy(net), [], 4, stats=exact[0]).layers["q"].rank == 4
    with pytest.raises(ValueError, match=r"layer q: .*covariance='lowrank'"):
        corda(net, [], 4, stats=low[0])
    assert corda(net, [], 4, stats=exact[0], covariance="lowrank").layers["q"].rank == 4


def test_a_damaged_weight_is_named():
    net = Net()
    net.q.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"layer q: .*infinity"):
        from_metrics(net, {"q": None}, 4)
