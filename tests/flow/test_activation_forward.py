"""Forwards that leave out what no target reads: the same statistics, and only where the model and the batch allow it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from streamsvd.flow.activations import ActivationStats  # noqa: E402


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def taken(model, targets, batch, **how):
    with ActivationStats(model, targets, sketch="gram", rank=2) as stats:
        out = stats.forward(batch, **how)
    return {name: stats.state_of(name).matrix() for name in stats.groups}, out


def test_the_statistics_are_the_same_without_the_logits():
    model, batch = llama(), {"input_ids": torch.arange(24).reshape(2, 12) % 50}
    whole, full = taken(model, ["q_proj", "down_proj"], batch)
    brief, short = taken(model, ["q_proj", "down_proj"], batch, logits=False)
    assert full.logits.shape == (2, 12, 50)
    assert short.logits.shape == (2, 1, 50)
    assert short.past_key_values is None
    assert set(batch) == {"input_ids"}
    assert all(torch.equal(whole[name], brief[name]) for name in whole)


@pytest.mark.parametrize("case", ["the head is a target", "the batch holds labels", "the batch says what it wants"])
def test_logits_stay_where_somebody_reads_them(case):
    model, batch, targets = llama(), {"input_ids": torch.arange(24).reshape(2, 12) % 50}, ["q_proj"]
    if case == "the head is a target":
        targets = ["q_proj", "lm_head"]
    elif case == "the batch holds labels":
        batch["labels"] = batch["input_ids"]
    else:
        batch["logits_to_keep"] = 0
    found, out = taken(model, targets, batch, logits=False)
    assert out.logits.shape == (2, 12, 50)
    whole, _ = taken(model, targets, batch)
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_model_without_such_options_runs_as_it_is():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    model.forward = lambda x: torch.nn.Sequential.forward(model, x)
    _, out = taken(model, ["0"], {"x": torch.ones(2, 4)}, logits=False)
    assert out.shape == (2, 3)
