"""Hand-over of EVA to the installed PEFT: its loader, its folders, and the assertions of its own GPU tests on a small GPT-2."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from streamsvd.pipelines.adapters import handover  # noqa: E402
from streamsvd.pipelines.adapters.eva import eva  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
WORDS, R = 211, 4


def gpt2(dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():  # embeddings with a decaying spectrum, so that components have gaps
        model.transformer.wte.weight *= 10 * torch.arange(1, 65) ** -1.0
    return model.eval().to(dtype)


def tokens(count: int = 24, seed: int = 0, labels: bool = False):
    rng = np.random.default_rng(seed)
    p = 1.0 / np.arange(1, WORDS + 1)
    out = []
    for _ in range(count):
        ids = torch.tensor(rng.choice(WORDS, size=(4, 64), p=p / p.sum()))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out.append(batch | {"labels": torch.where(torch.rand(ids.shape) > 0.2, ids, -100)} if labels else batch)
    return out


def loaded(result, model, targets=("c_attn",), **config):
    """Return the model with EVA's adapters put in by PEFT itself."""
    asked = peft.LoraConfig(
        r=R,
        lora_alpha=8,
        target_modules=list(targets),
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0),
        fan_in_fan_out=True,
        **config,
    )
    wrapped = peft.get_peft_model(model, asked, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(wrapped, eva_state_dict=result.to_peft())
    return wrapped


def adapters(model) -> dict[str, torch.Tensor]:
    return {
        n.split("base_model.model.")[-1]: m.lora_A["default"].weight
        for n, m in model.named_modules()
        if hasattr(m, "lora_A")
    }


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"]).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_takes_the_state_dict_with_its_ranks_and_keeps_the_output(dtype):
    targets = ("c_attn", "c_fc", "mlp.c_proj")
    result = eva(gpt2(dtype), tokens(), R, alpha=8, targets=targets, stop=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*eva.*")
        model = loaded(result, gpt2(dtype), targets)
    found = adapters(model)
    assert {n: x.shape[0] for n, x in found.items()} == {n: r for n, r in result.ranks.items() if r}
    assert len(set(result.ranks.values())) > 1
    for name, A in found.items():
        assert torch.equal(A.float(), result.layers[name].A.to(A.dtype).float())
        assert model.get_submodule(f"base_model.model.{name}").scaling["default"] == pytest.approx(8 / R)
    batch = tokens(1)[0]
    assert torch.equal(logits(model, batch), logits(gpt2(dtype), batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_saved_folder_is_loaded_with_ranks_and_scaling(tmp_path, dtype, rslora):
    result = eva(gpt2(dtype), tokens(), R, alpha=8, rslora=rslora, targets=("c_attn", "c_fc", "c_proj"), stop=None)
    folder = result.save_adapter(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(gpt2(dtype), folder, is_trainable=True)
    found = adapters(model)
    for name, A in found.items():
        assert torch.equal(A.float(), result.layers[name].A.to(A.dtype).float())
        scaling = model.get_submodule(f"base_model.model.{name}").scaling["default"]
        assert scaling == pytest.approx(8 / R**0.5 if rslora else 8 / R)
    batch = tokens(1)[0]
    assert torch.equal(logits(model, batch), logits(gpt2(dtype), batch))
    model.save_pretrained(tmp_path / "again")
    again = adapters(peft.PeftModel.from_pretrained(gpt2(dtype), tmp_path / "again"))
    assert all(torch.equal(A, again[name]) for name, A in found.items())


def test_it_agrees_with_what_peft_computes_from_the_same_batches():
    batches = tokens(30)
    ours = eva(gpt2(), batches, R, targets=["c_attn"], redistribute=False, stop=None)
    config = peft.LoraConfig(
        r=R, target_modules=["c_attn"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0), fan_in_fan_out=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_eva_state_dict(gpt2(), batches, config, show_progress_bar=False)
    for name, A in theirs.items():
        cosines = np.linalg.svd(A.double().numpy() @ ours.layers[name].A.double().numpy().T, compute_uv=False)
        assert cosines.mean() > 0.9


@pytest.mark.parametrize("options", [{}, {"rho": 1.0}, {"rho": 1.0, "whiten": True}])
def test_seeds_agree_where_the_spectrum_has_gaps(options):
    """PEFT's own test: mean absolute cosine of components between orders of the data above 0.75."""
    found = [eva(gpt2(), tokens(seed=s), R, targets=["c_attn"], stop=0.98, **options) for s in (1, 2, 3)]
    for name in found[0].layers:
        first = found[0].layers[name].A
        for other in found[1:]:
            second = other.layers[name].A
            k = min(len(first), len(second))
            variance = found[0].layers[name].explained_variance
            gaps = np.append(variance[:-1] > 1.05 * variance[1:], False)[:k]
            cosine = torch.nn.functional.cosine_similarity(first[:k], second[:k]).abs().numpy()
            assert gaps.any()
            assert cosine[gaps & np.append(True, gaps[:-1])].mean() > 0.75


def test_a_layer_of_rank_zero_has_no_adapter_afterwards(tmp_path):
    result = eva(gpt2(), tokens(), R, targets=["c_attn", "attn.c_proj"], stop=None)
    name = next(iter(result.layers))
    object.__setattr__(result.layers[name], "rank", 0)
    object.__setattr__(result.layers[name], "A", result.layers[name].A[:0])
    model = loaded(result, gpt2(), ("c_attn", "attn.c_proj"))
    assert not isinstance(model.get_submodule(f"base_model.model.{name}"), peft.tuners.lora.LoraLayer)
    assert name not in adapters(model)
    again = peft.PeftModel.from_pretrained(gpt2(), result.save_adapter(tmp_path / "adapter"))
    assert set(adapters(again)) == set(adapters(model))


def test_names_without_the_prefix_are_what_peft_computes_itself():
    result = eva(gpt2(), tokens(4), R, targets=["c_attn"])
    assert set(result.to_peft(prefix="")) == set(result.layers)
    assert set(result.to_peft()) == {f"base_model.model.{n}" for n in result.layers}


def test_labels_choose_the_rows_as_peft_does():
    masked, whole = (eva(gpt2(), tokens(6, labels=True), R, targets=["c_attn"], use_labels=u) for u in (True, False))
    rows = sum(int((b["labels"] != -100).sum()) for b in tokens(6, labels=True))
    assert 0.7 * 1536 < next(iter(masked.layers.values())).rows < 0.9 * 1536
    assert rows > 0
    assert next(iter(whole.layers.values())).rows == 1536


def test_an_untested_version_of_peft_is_said(monkeypatch):
    result = eva(gpt2(), tokens(2), R, targets=["c_attn"])
    monkeypatch.setattr(handover, "TESTED", ("0.1",))
    with pytest.warns(UserWarning, match="its formats were tested with 0.1"):
        result.to_peft()
