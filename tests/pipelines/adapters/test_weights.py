"""Adapters from a model's weights: identity, agreement with PEFT's own, and bad input."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.pipelines.adapters.weights import METHODS, from_weights  # noqa: E402


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.ReLU(), torch.nn.Linear(60, 30, bias=False))


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("method", METHODS)
def test_the_adapted_model_computes_what_the_model_did_and_a_folder_loads(net, method, tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    x = torch.randn(5, 40)
    expected = net(x)
    adapters = from_weights(net, 4, method=method, ranks={"2": 6}, alpha=2.0)
    folder = adapters.save_adapter(tmp_path / "adapter")
    assert torch.allclose(deepcopy(adapters).to_peft()(x), expected, atol=1e-5)
    base = deepcopy(net)
    base.load_state_dict(load_file(folder / "residual" / "model.safetensors"))
    assert torch.allclose(peft.PeftModel.from_pretrained(base, folder)(x), expected, atol=1e-5)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_products_are_those_of_peft(net, method):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0", "2"], init_lora_weights=method)
    theirs = peft.get_peft_model(deepcopy(net), config).base_model.model
    for name, one in from_weights(net, 4, method=method, tol=1e-9).layers.items():
        layer = theirs.get_submodule(name)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        np.testing.assert_allclose(one.B @ one.A, product.detach(), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: from_weights(n, 4, method="svd"), "'svd'"),
        (lambda n: from_weights(n, 31), "layer 2"),
        (lambda n: from_weights(n, 4, targets=["q_proj"]), "0"),
    ],
)
def test_bad_input_is_named(net, call, words):
    with pytest.raises(ValueError, match=words):
        call(net)
