"""LoRA-GA: the sketch of the gradient against the gradient, the placement of vectors against PEFT, and what must not change."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.pipelines.adapters.lora_ga import DIRECTIONS, GradientSketch, gradients, lora_ga  # noqa: E402


class Net(torch.nn.Module):
    """Gradients of rank at most 6: so many tokens, so they are known exactly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(40, 56), torch.nn.Linear(56, 30)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def loss(model, batch):
    return model(batch).pow(2).sum()


def batches(tokens=2, count=3):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1, tokens, 40, generator=draw) for _ in range(count)]


def gradient(net, data, name):
    net = deepcopy(net)
    for x in data:
        loss(net, x).backward()
    return net.get_submodule(name).weight.grad / len(data)


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_gradient_of_low_rank_is_found_exactly(name):
    net, data = Net(), batches()
    sketch = gradients(net, data, {name: 6}, loss=loss)[name]
    u, s, vt = sketch.factors(6)
    expected = gradient(net, data, name)
    assert torch.allclose((u * s) @ vt, expected, atol=1e-4 * float(expected.abs().max()))
    assert np.allclose(s, np.linalg.svd(expected.double().numpy(), compute_uv=False)[:6], rtol=1e-3, atol=1e-4)


def test_a_gradient_of_full_rank_is_found_nearly():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 80)) / np.arange(1, 81)
    dY = rng.standard_normal((500, 60)) / np.arange(1, 61)
    sketch = GradientSketch.start((60, 80), 8, like=torch.zeros(1))
    for part in range(5):
        rows = slice(100 * part, 100 * part + 100)
        sketch = sketch.add(*sketch.term(torch.tensor(X[rows]), torch.tensor(dY[rows])))
    G = dY.T @ X / 5
    u, _, _ = sketch.factors(4)
    best = np.sum(np.linalg.svd(G, compute_uv=False)[:4] ** 2)
    assert np.linalg.norm(u.double().numpy().T @ G) ** 2 >= 0.99 * best


def test_merged_sketches_are_the_sketch_of_all_batches():
    net, data = Net(), batches(count=4)
    whole = gradients(net, data, {"up": 4}, loss=loss)["up"]
    parts = [gradients(net, half, {"up": 4}, loss=loss)["up"] for half in (data[:2], data[2:])]
    both = parts[0].merge(parts[1])
    assert torch.allclose(both.range_, whole.range_, atol=1e-5)
    assert both.terms == whole.terms == 4
    other = gradients(net, data, {"up": 4}, loss=loss, seed=1)["up"]
    with pytest.raises(ValueError, match="test matrices"):
        both.merge(other)


def test_no_weight_sized_gradient_remains_and_the_model_is_untouched():
    net, data = Net(), batches()
    net.up.bias.requires_grad_(False)
    before, asked = deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    lora_ga(net, data, 3, loss=loss)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == asked
    assert all(p.grad is None for p in net.parameters())
    assert not net.up._forward_hooks


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("direction", DIRECTIONS[:3])
@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
def test_vectors_and_scales_are_those_of_peft(direction, scale):
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    net, data = Net(), batches()
    ours = lora_ga(net, data, 3, loss=loss, direction=direction, scale=scale, alpha=6)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["up", "down"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction=direction, scale=scale),
    )
    theirs = deepcopy(net)
    preprocess_loraga(theirs, config, lambda: [loss(theirs, x).backward() for x in data])
    theirs = peft.get_peft_model(theirs, config)
    for name, one in ours.layers.items():
        layer = theirs.base_model.model.get_submodule(name)
        for mine, other in ((one.A, layer.lora_A), (one.B, layer.lora_B)):
            other = other["default"].weight.detach()
            if scale == "weight_svd" and other.shape[1] == 3:
                # PEFT takes the largest singular value of the weight from svd_lowrank without oversampling: never above the true one.
                ratio = float(mine.norm() / other.norm())
                assert 0.999 <= ratio <= 1.5
                other = other * ratio
            assert torch.allclose(mine.abs(), other.abs(), atol=2e-3 * float(other.abs().max()))


def test_the_adapted_model_computes_what_the_model_did():
    net, data = Net(), batches()
    adapters = lora_ga(net, data, 3, loss=loss, scale="gd_scale")
    expected = net(data[0])
    adapted = deepcopy(adapters).apply()
    for name, one in adapters.layers.items():
        adapted.get_submodule(name).weight.data += one.scaling * one.B @ one.A
    assert torch.allclose(adapted(data[0]), expected, atol=1e-5)


def test_a_language_model_needs_no_loss_function():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=20, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    adapters = lora_ga(model, [{"input_ids": ids}], 4, targets=["c_attn"])
    (one,) = adapters.layers.values()
    assert one.transposed
    assert one.A.shape == (4, 32)
    assert one.B.shape == (96, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: lora_ga(n, batches(), 16, loss=loss), "layer down"),
        (lambda n: lora_ga(n, [], 2, loss=loss), "no batch"),
        (lambda n: lora_ga(n, batches(), 2), "without a loss"),
        (lambda n: lora_ga(n, batches(), 2, loss=loss, direction="up"), "'up'"),
        (lambda n: lora_ga(n, [torch.full((1, 2, 40), float("nan"))], 2, loss=loss), "batch 0"),
    ],
)
def test_bad_input_is_named(call, words):
    net = Net()
    with pytest.raises(ValueError, match=words):
        call(net)
    assert not net.up._forward_hooks
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
