"""Every form in which adapters are handed over, loaded by the PEFT that is installed; PEFT's own assertions for CorDA hold for ours."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft.tuners.lora.config import CordaConfig  # noqa: E402
from peft.tuners.lora.corda import preprocess_corda  # noqa: E402

from streamsvd.flow.activations import ActivationStats  # noqa: E402
from streamsvd.pipelines.adapters import handover  # noqa: E402
from streamsvd.pipelines.adapters.corda import corda  # noqa: E402

MODES = ("ipm", "kpm")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SECOND = "model.layers.1.mlp.down_proj"


# What PEFT and transformers warn of is theirs; a warning of ours stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=120,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    return model, [torch.randint(0, 120, (4, 25), generator=torch.Generator().manual_seed(i)) for i in range(6)]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def tolerance(dtype):
    return 1e-5 if dtype == torch.float32 else 0.03


def trained(model, factor=2.0):
    """Change every B, as training would."""
    for name, x in model.named_parameters():
        if "lora_B" in name:
            x.data *= factor
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [{}, {SECOND: 11, "model.layers.0.self_attn.k_proj": 2}], ids=["one", "pattern"])
def test_adapter_with_residual_model(llama, tmp_path, mode, dtype, ranks):
    model, data = deepcopy(llama[0]).to(dtype), llama[1]
    expected = logits(model, data[0])
    adapters = corda(model, data, 6, mode=mode, targets=TARGETS, ranks=ranks, alpha=3)
    folder = adapters.save_adapter(tmp_path / "adapter")
    assert torch.equal(logits(model, data[0]), expected)
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "residual", dtype=dtype)
    loaded = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    assert (logits(loaded, data[0]) - expected).abs().max() <= tolerance(dtype) * expected.abs().max()
    for name, one in adapters.layers.items():
        layer = loaded.get_submodule("base_model.model." + name)
        assert layer.lora_A["default"].weight.shape[0] == one.rank == ranks.get(name, 6)
        assert layer.scaling["default"] == pytest.approx(0.5)
        assert torch.equal(layer.lora_A["default"].weight.float(), one.A)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["init_lora_weights"] is True
    again = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(folder / "residual", dtype=dtype), tmp_path / "again"
    )
    assert torch.equal(logits(again, data[0]), logits(loaded, data[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_rank_2r_for_the_unmodified_model(llama, tmp_path, mode, rslora, dtype):
    model, data = deepcopy(llama[0]).to(dtype), llama[1]
    ranks = {} if rslora else {SECOND: 9}
    adapters = corda(model, data, 6, mode=mode, targets=TARGETS, ranks=ranks, rslora=rslora)
    live = trained(deepcopy(adapters).to_peft())
    expected = logits(live, data[0])
    live.save_pretrained(tmp_path / "trained")
    for source in (tmp_path / "trained", peft.get_peft_model_state_dict(live), dict(live.state_dict())):
        if not isinstance(source, type(tmp_path)):
            source = {k: v for k, v in source.items() if "lora_" in k}
        folder = adapters.save_for_original(tmp_path / "double", source)
        loaded = peft.PeftModel.from_pretrained(deepcopy(model), folder)
        assert (logits(loaded, data[0]) - expected).abs().max() <= tolerance(dtype) * expected.abs().max()
        assert loaded.peft_config["default"].r == 12
    adapters.save_for_original(tmp_path / "start")
    start = peft.PeftModel.from_pretrained(deepcopy(model), tmp_path / "start")
    assert (logits(start, data[0]) - logits(model, data[0])).abs().max() <= tolerance(dtype)


def with_file(model, mode, file, *, covariance=False, r=6, **more):
    config = CordaConfig(corda_method=mode, **{"covariance_file" if covariance else "cache_file": str(file)})
    lora = peft.LoraConfig(r=r, init_lora_weights="corda", corda_config=config, **more)
    preprocess_corda(model, lora)
    return peft.get_peft_model(model, lora)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("covariance", [False, True], ids=["cache", "covariance"])
def test_files_for_preprocess_corda(llama, tmp_path, mode, covariance, dtype):
    model, data = deepcopy(llama[0]).to(dtype), llama[1]
    expected = logits(model, data[0])
    adapters = corda(model, data, 6, mode=mode, targets=TARGETS, ranks={SECOND: 9}, alpha=12)
    file = (adapters.save_covariances if covariance else adapters.save_cache)(tmp_path / "deep" / "file.pt")
    if covariance:
        found = torch.load(file, weights_only=True)
        assert found[SECOND].shape == (96, 96)
        assert len({x.data_ptr() for x in found.values()}) == 8  # of 14 layers: q, k, v and gate, up share
    options = {"target_modules": TARGETS, "rank_pattern": {SECOND: 9}, "lora_alpha": 12, "alpha_pattern": {SECOND: 18}}
    loaded = with_file(deepcopy(model), mode, file, covariance=covariance, **options)
    assert (logits(loaded, data[0]) - expected).abs().max() <= tolerance(dtype) * expected.abs().max()
    for name, one in adapters.layers.items():
        layer = loaded.get_submodule("base_model.model." + name)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        ours = one.B @ one.A
        assert torch.allclose(
            product, ours, atol=(2e-2 if covariance or dtype != torch.float32 else 1e-5) * float(ours.abs().max())
        )


class Wide(torch.nn.Module):
    """PEFT's test model."""

    def __init__(self, size=1000):
        super().__init__()
        self.linear = torch.nn.Linear(size, size)

    def forward(self, x):
        return self.linear(x)


@pytest.fixture(scope="module", params=MODES)
def peft_case(request):
    """PEFT's model and data for its CorDA tests, with our adapters."""
    torch.manual_seed(233)
    data, model = torch.rand(1000, 1000), Wide().eval()
    with ActivationStats(model, ["linear"], sketch="gram", normalise="peft") as stats:
        stats.forward(data)
        stats.forward(data)
    return request.param, model, data, stats, corda(model, [], 8, mode=request.param, stats=stats, peft_scaling=True)


def test_peft_covariance_and_sample_count(peft_case):
    _, _, data, stats, adapters = peft_case
    assert torch.allclose(torch.as_tensor(adapters.covariances("linear")).float(), data.T @ data, atol=1e-6)
    assert stats.calls["linear"] == 2


def test_peft_no_redundant_fields_and_own_hooks_are_gone(peft_case):
    _, model, data, _, adapters = peft_case
    assert not model._forward_hooks
    assert not model.linear._forward_hooks
    assert not model.linear._forward_pre_hooks
    model, calls = deepcopy(model), []
    model.linear.register_forward_hook(lambda *_: calls.append(1))
    corda(model, [data[:20]], 2)
    assert len(calls) == 1
    model(data[:3])
    assert len(calls) == 2
    live = deepcopy(adapters).to_peft().base_model.linear
    for field in ("sample_count", "covariance_matrix", "corda_method", "rank", "eigens", "mean", "std"):
        assert not hasattr(live, field)


def test_peft_identity_and_the_same_output_from_either_file(peft_case, tmp_path):
    mode, model, data, _, adapters = peft_case
    expected = model(data)
    live = deepcopy(adapters).to_peft()
    assert torch.allclose(expected, live(data), atol=1e-6)
    changed = trained(live)(data)
    assert not torch.allclose(expected, changed, atol=1e-6, rtol=1e-6)
    cache = adapters.save_cache(tmp_path / "cache.pt")
    options = {"r": 8, "lora_alpha": 8, "target_modules": ["linear"]}
    by_cache = with_file(deepcopy(model), mode, cache, **options)
    assert torch.allclose(changed, trained(by_cache)(data), atol=1e-6)
    assert not hasattr(by_cache.base_model.linear, "eigens")


@pytest.mark.parametrize("rank", [8, 32])
def test_peft_conversion_gives_the_same_output(peft_case, tmp_path, rank):
    mode, model, data, stats, adapters = peft_case
    if rank != 8:
        adapters = corda(model, [], 8, mode=mode, stats=stats, ranks={"linear": rank}, alphas={"linear": 5})
    expected = model(data)
    live = deepcopy(adapters).to_peft()
    live.save_pretrained(tmp_path / "init")
    changed = trained(live)(data)
    assert not torch.allclose(expected, changed, atol=1e-6, rtol=1e-6)
    live.save_pretrained(tmp_path / "model")
    base = deepcopy(live.unload())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "model")
    assert torch.allclose(changed, loaded(data), atol=1e-6, rtol=1e-6)
    assert loaded.base_model.model.linear.lora_A["default"].weight.shape[0] == rank
    assert not torch.allclose(
        model.linear.weight, loaded.base_model.model.linear.base_layer.weight, atol=1e-6, rtol=1e-6
    )
    folder = adapters.save_for_original(tmp_path / "converted", tmp_path / "model")
    converted = peft.PeftModel.from_pretrained(deepcopy(model), folder)
    assert torch.allclose(changed, converted(data), atol=2e-6, rtol=1e-6)
    assert converted.peft_config["default"].r == 16
    assert converted.base_model.model.linear.lora_A["default"].weight.shape[0] == 2 * rank
    layer = adapters.layers["linear"]
    assert converted.base_model.model.linear.scaling["default"] == pytest.approx(layer.scaling)
    assert torch.equal(model.linear.weight, converted.base_model.model.linear.base_layer.weight)


def test_peft_conversion_with_rslora_and_patterns_is_refused(llama, tmp_path):
    model, data = llama
    for more in ({"ranks": {SECOND: 2}}, {"alphas": {SECOND: 2.0}}):
        adapters = corda(model, data[:1], 6, targets=TARGETS, rslora=True, **more)
        with pytest.raises(ValueError, match="rslora and layers of different rank or alpha"):
            adapters.save_for_original(tmp_path / "double")


@pytest.mark.parametrize("mode", MODES)
def test_peft_conv1d_of_gpt2(tmp_path, mode):
    config = transformers.GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=100, n_positions=40)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 100, (3, 20))
    expected = logits(model, ids)
    adapters = corda(model, [ids], 5, mode=mode, targets=["c_attn"])
    folder = adapters.save_adapter(tmp_path / "adapter")
    base = transformers.GPT2LMHeadModel.from_pretrained(folder / "residual")
    loaded = peft.PeftModel.from_pretrained(base, folder)
    assert torch.allclose(logits(loaded, ids), expected, atol=1e-5)
    cache = adapters.save_cache(tmp_path / "cache.pt")
    by_cache = with_file(
        deepcopy(model), mode, cache, r=5, lora_alpha=5, target_modules=["c_attn"], fan_in_fan_out=True
    )
    assert torch.allclose(logits(by_cache, ids), expected, atol=1e-5)
    assert torch.allclose(logits(trained(by_cache), ids), logits(trained(adapters.to_peft()), ids), atol=1e-5)


def test_a_model_without_save_pretrained_gets_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    model = Wide(40)
    adapters = corda(model, [torch.randn(9, 40)], 3)
    folder = adapters.save_adapter(tmp_path / "adapter")
    other = Wide(40)
    other.load_state_dict(load_file(folder / "residual" / "model.safetensors"))
    loaded, x = peft.PeftModel.from_pretrained(other, folder), torch.randn(5, 40)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)


def test_an_untested_peft_is_warned_of(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.99.0")
    with pytest.warns(UserWarning, match=r"peft 0\.99\.0 is installed"):
        handover.peft_version()


def test_low_rank_adapters_have_no_covariance_file(llama, tmp_path):
    adapters = corda(llama[0], llama[1], 4, targets=["q_proj"], covariance="lowrank")
    with pytest.raises(ValueError, match="covariance='exact'"):
        adapters.save_covariances(tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


def test_a_foreign_trained_adapter_is_refused(llama, tmp_path):
    adapters = corda(llama[0], llama[1], 4, targets=["q_proj"])
    state = adapters.state_dict()
    first = next(iter(state))
    with pytest.raises(ValueError, match="differ in base_model"):
        adapters.save_for_original(tmp_path / "x", {k: v for k, v in state.items() if k != first})
    with pytest.raises(ValueError, match="differ in base_model"):
        adapters.save_for_original(tmp_path / "x", state | {first: torch.zeros(3, 48)})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text("old")

    def write(at):
        at.write_text("new")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        handover._whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
