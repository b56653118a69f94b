"""EVA against exact principal components: what is captured, when it stops, who gets the ranks, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.flow.activations import ActivationStats  # noqa: E402
from streamsvd.pipelines.adapters.allocate import allocate_ranks  # noqa: E402
from streamsvd.pipelines.adapters.components import components  # noqa: E402
from streamsvd.pipelines.adapters.eva import eva  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self, d: int = 40, wide: int = 260) -> None:
        super().__init__()
        self.q, self.k = torch.nn.Linear(d, d), torch.nn.Linear(d, d)
        self.up, self.down = torch.nn.Linear(d, wide), torch.nn.Linear(wide, d)

    def forward(self, x, attention_mask=None, labels=None):
        return self.down(torch.relu(self.up(x + 0.1 * torch.tanh(self.q(x) * self.k(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def data(count: int = 12, tokens: int = 64, power: float = 0.7, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, 41) ** -power
    return [torch.randn(4, tokens, 40, generator=generator) * scale + 0.5 for _ in range(count)]


def inputs(model: Net, batches, name: str) -> np.ndarray:
    rows = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda m, a: rows.append(a[0].reshape(-1, a[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    X = torch.cat(rows).double().numpy()
    return X - X.mean(0)


@pytest.mark.parametrize("name", ["q", "up", "down"])
def test_the_components_capture_what_exact_components_do(name):
    model, batches = net(), data()
    found = eva(model, batches, 6, stop=None).layers[name]
    X = inputs(model, batches, name)
    w = np.linalg.svd(X, compute_uv=False) ** 2
    A = found.A.double().numpy()
    assert np.abs(A @ A.T - np.eye(found.rank)).max() < 1e-5
    assert np.sum((X @ A.T) ** 2) >= (1 - 1e-5) * w[: found.rank].sum()
    np.testing.assert_allclose(found.explained_variance_ratio, w[:12] / w.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance, w[:12] / (len(X) - 1), rtol=1e-4)
    assert found.captured == pytest.approx(np.sum((X @ A.T) ** 2) / w.sum(), rel=1e-4)


def test_the_iteration_reads_the_spectrum_that_all_eigenvectors_give():
    with ActivationStats(net(), ["down"], rank=8, center=True, dtype="float64") as stats:
        for batch in data():
            stats.forward(batch)
    state = stats.state_of("down")
    read = components(state, 8)
    w = np.linalg.eigvalsh(state.matrix().numpy())[::-1][:8]
    np.testing.assert_allclose(read.power, w, rtol=1e-3)
    assert read.power.sum() == pytest.approx(w.sum(), rel=1e-6)
    assert (read.power <= w * (1 + 1e-12)).all()
    assert components(state, 8, before=read).held == pytest.approx(read.power.sum(), rel=1e-9)


def test_ranks_are_shared_out_by_explained_variance_and_capped():
    result = eva(net(), data(), 4, rho=1.5, stop=None)
    scores = {name: one.explained_variance_ratio for name, one in result.layers.items()}
    assert result.ranks == allocate_ranks(scores, 16, 6)
    assert sum(result.ranks.values()) == 16
    assert max(result.ranks.values()) <= 6
    assert {r for r in eva(net(), data(), 4, redistribute=False, stop=None).ranks.values()} == {4}
    assert min(eva(net(), data(), 4, minimum=3, stop=None).ranks.values()) >= 3


def test_layers_that_share_their_input_get_the_same_components_each_whitened_once():
    plain, white = (eva(net(), data(), 4, redistribute=False, whiten=w, stop=None).layers for w in (False, True))
    assert plain["k"].shared_with == "q"
    for layers in (plain, white):
        assert torch.equal(layers["q"].A, layers["k"].A)
        assert layers["q"].A.data_ptr() != layers["k"].A.data_ptr()
    s = np.sqrt(plain["q"].explained_variance[:4] * (plain["q"].rows - 1))
    np.testing.assert_allclose(white["q"].A.norm(dim=1), s**-0.5, rtol=1e-5)


def test_it_stops_when_half_of_the_rows_gave_the_same_subspace():
    batches = data(count=200, power=2.0)
    result = eva(net(), iter(batches), 3, targets=["q", "up"], stop=0.99)
    assert result.converged
    assert result.batches < 40
    assert all(one.stability >= 0.99 for one in result.layers.values())
    X = inputs(net(), batches[: result.batches], "q")
    w = np.linalg.svd(X, compute_uv=False) ** 2
    for one in result.layers.values():
        assert one.rows == len(X)
    A = result.layers["q"].A.double().numpy()
    assert np.sum((X @ A.T) ** 2) >= 0.999 * w[: len(A)].sum()


def test_tied_variances_settle_where_single_vectors_never_would():
    torch.manual_seed(5)
    scale = torch.cat([torch.full((6,), 10.0), torch.full((34,), 0.1)])
    batches = [torch.randn(4, 64, 40) * scale for _ in range(40)]
    result = eva(net(), batches, 3, rho=2.0, targets=["q"], stop=0.999)
    assert result.converged
    assert result.batches < 30


def test_what_has_not_settled_is_named():
    result = eva(net(), data(count=9, power=0.0), 4, stop=0.9999)
    assert not result.converged
    assert set(result.not_done) >= {"q", "k", "up"}
    assert result.batches == 9
    assert eva(net(), data(count=9), 4, rows=700, stop=None).layers["q"].rows == 768


def test_batches_smaller_than_the_rank_are_fine():
    pieces = [part for batch in data(count=3) for part in batch[:, :, :].reshape(-1, 40).split(3)]
    small = eva(net(), pieces, 5, targets=["q"], stop=None).layers["q"]
    large = eva(net(), data(count=3), 5, targets=["q"], stop=None).layers["q"]
    np.testing.assert_allclose(small.explained_variance, large.explained_variance, rtol=1e-5)
    assert eva(net(), [torch.randn(1, 2, 40)], 5, targets=["q"]).layers["q"].A.shape[1] == 40


def test_truncated_sketches_give_nearly_the_same():
    exact, lean = (eva(net(), data(power=1.0), 4, targets=["q"], sketch=k, stop=None) for k in ("gram", "truncated"))
    assert lean.layers["q"].captured >= 0.999 * exact.layers["q"].captured
    assert lean.layers["q"].kind == "truncated"


def test_the_model_is_left_as_it_was():
    model = net().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    eva(model, data(count=2), 4)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_mapping_is_one_batch_and_labels_can_leave_tokens_out():
    x = data(count=1)[0]
    labels = torch.full(x.shape[:2], -100)
    labels[:, ::2] = 1
    batch = {"x": x, "attention_mask": torch.ones(x.shape[:2]), "labels": labels}
    assert eva(net(), batch, 4, targets=["q"]).layers["q"].rows == 128
    assert eva(net(), [batch], 4, targets=["q"], use_labels=False).layers["q"].rows == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "expected rank >= 1"),
        ({"rho": 0.5}, "rho >= 1"),
        ({"stop": 1.5}, "stop=1.5; expected a share"),
        ({"metric": "best"}, "metric='best' is not known"),
        ({"minimum": 9}, r"minimum=9; expected 0 .. rank=4"),
        ({"kept": 5}, "kept=5 is below the 8 candidates"),
        ({"rank": 41}, "rank=41 is above the limit of layer 'q', which is 40"),
        ({"targets": ["nothing"]}, r"match no linear layer of Net; it has q \(1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        eva(net(), data(count=1), **{"rank": 4, **options})


def test_no_data_is_said_and_nan_names_layer_and_batch():
    with pytest.raises(ValueError, match="no batch came; EVA needs at least one batch"):
        eva(net(), [], 4)
    with pytest.raises(ValueError, match=r"layer 'q', batch 2: .* NaN"):
        eva(net(), [data(1)[0], data(1)[0] * float("nan")], 4)
