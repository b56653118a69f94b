"""The trained layers: what they compute at the start, their regularisers against the paper's formulas, and merging."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.pipelines.adapters import modules  # noqa: E402

SHAPES = [(24, 40), (40, 24), (32, 32)]
MAKE = {
    "sorsa": lambda layer: modules.SorsaLinear(layer, 4, scale=0.5),
    "svfit": lambda layer: modules.SvfitLinear(layer, 4),
    "svfit-energy": lambda layer: modules.SvfitLinear(layer, energy=0.9),
    "effort": lambda layer: modules.EffortLinear(layer, 3),
    "nlora": lambda layer: modules.NloraLinear(layer, 4, scale=2.0),
    "nlora-pinv": lambda layer: modules.NloraLinear(layer, 4, sampling="leverage", core="pinv"),
}


def layer_of(shape, *, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(shape[1], shape[0], bias=bias).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKE)
def test_the_layer_starts_as_the_identity_change(name, shape):
    layer = layer_of(shape, bias=name != "sorsa")
    module, x = MAKE[name](layer), torch.randn(2, 5, shape[1])
    assert torch.allclose(module(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("name", [*MAKE, "kasa"])
def test_merged_computes_what_the_trained_layer_does_and_gradients_reach_every_factor(name):
    layer = layer_of((24, 40))
    module = modules.KasaLinear(layer, 4, scale=2.0) if name == "kasa" else MAKE[name](layer)
    x = torch.randn(7, 40)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(2):  # the first step moves KaSA's B from zero
        optimizer.zero_grad()
        (module(x) - 1.0).pow(2).mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert torch.allclose(module.merged()(x), module(x), atol=1e-5)
    assert not torch.allclose(module(x), layer(x), atol=1e-4)


def test_kasa_starts_as_the_weight_without_its_smallest_components():
    layer = layer_of((30, 20))
    U, s, Vt = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
    module = modules.KasaLinear(layer, 5)
    np.testing.assert_allclose(module.merged().weight.detach(), (U[:, :15] * s[:15]) @ Vt[:15], atol=1e-6)


def test_kasa_penalty_is_that_of_peft():
    variants = pytest.importorskip("peft.tuners.lora.variants")
    module = modules.KasaLinear(layer_of((30, 20)), 5)
    torch.nn.init.normal_(module.b)

    class Shown:
        lora_diag, lora_A, lora_B = {"a": module.d}, {"a": torch.nn.Linear(20, 5)}, {"a": torch.nn.Linear(5, 30)}

    Shown.lora_A["a"].weight, Shown.lora_B["a"].weight = module.a, module.b
    expected = variants._kasa_layer_regularization_loss(Shown, "a", 0.1, 0.2)
    assert torch.allclose(module.penalty(0.1, 0.2), expected, rtol=1e-6)


def test_sorsa_penalty_is_zero_at_the_start_and_grows_off_orthonormality():
    module = modules.SorsaLinear(layer_of((24, 40)), 4)
    assert module.penalty() < 1e-5
    with torch.no_grad():
        module.u *= 2.0
    assert abs(float(module.penalty().detach()) - 3.0 * 2.0) < 1e-4  # ||4 I - I||_F = 3 sqrt(4)


@pytest.mark.parametrize("shape", SHAPES)
def test_effort_losses_are_those_of_the_whole_bases(shape):
    layer = layer_of(shape)
    module = modules.EffortLinear(layer, 3)
    assert module.orthogonality() < 1e-5
    assert module.energy() < 1e-4
    module.orthogonality().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())
    with torch.no_grad():
        module.u += 0.1 * torch.randn_like(module.u)
        module.vt += 0.1 * torch.randn_like(module.vt)
        module.s *= 3.0
    U, _, Vt = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
    u, vt = module.u.detach().double().numpy(), module.vt.detach().double().numpy()
    expected = 0.0
    for whole in (np.hstack([U[:, :-3], u]), np.vstack([Vt[:-3], vt]).T):
        expected += np.linalg.norm(whole.T @ whole - np.eye(whole.shape[1]))
    assert abs(float(module.orthogonality().detach()) - expected) < 1e-4 * expected
    merged = module.merged().weight.detach().double()
    assert (
        abs(
            float(module.energy().detach())
            - abs(float((merged**2).sum() - (layer.weight.detach().double() ** 2).sum()))
        )
        < 1e-3
    )


def test_effort_rank_1_trains_the_last_component_alone():
    layer = layer_of((32, 32))
    module = modules.EffortLinear(layer, 1)
    s = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    assert abs(float(module.s.detach()[0]) - s[-1]) < 1e-6
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 65


def test_inttune_trains_the_core_alone_and_the_published_form_keeps_the_weight():
    layer = layer_of((24, 40))
    module = modules.NloraLinear(layer, 4, train="core", subtract=False)
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["n"]
    assert torch.equal(module.weight, layer.weight)


def test_bfloat16_and_conv1d_weights():
    layer = layer_of((24, 40), dtype=torch.bfloat16)
    module, x = modules.SorsaLinear(layer, 4), torch.randn(3, 40, dtype=torch.bfloat16)
    assert module(x).dtype == torch.bfloat16
    assert torch.allclose(module(x).float(), layer(x).float(), atol=0.05)
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(24, 40)
    x = torch.randn(3, 40)
    assert torch.allclose(modules.SvfitLinear(conv, 4)(x), conv(x), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: modules.SorsaLinear(torch.nn.Embedding(4, 4), 2), TypeError, "Embedding"),
        (lambda: modules.KasaLinear(layer_of((8, 9)), 8), ValueError, "less than 8"),
        (lambda: modules.NloraLinear(layer_of((8, 9)), 2, train="some"), ValueError, "'all' or 'core'"),
        (lambda: modules.SvfitLinear(layer_of((8, 9)), energy=1.5), ValueError, "energy"),
    ],
)
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
