"""EVA and CorDA against plain LoRA: a small language model tuned on a second toy language with the same rank, seeds and data.

python examples/07_adapters.py [--quick]   (pip install 'streamsvd[adapters,plot]')
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from streamsvd.pipelines.adapters import corda, eva

warnings.simplefilter("ignore", FutureWarning)
WORDS, RANK, STEPS, PRETRAIN = (64, 4, 10, 20) if "--quick" in sys.argv else (64, 4, 100, 250)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def language(seed: int, count: int, length: int = 48) -> list[dict]:
    """Batches of 16 sentences of a Markov chain in which each word has a few likely successors."""
    chain = np.random.default_rng(seed).dirichlet(np.full(WORDS, 0.05), size=WORDS).cumsum(axis=1)
    ids = np.zeros((count * 16, length), dtype=np.int64)
    for t, draws in enumerate(np.random.default_rng(seed + 100).random((length - 1, count * 16, 1)), 1):
        ids[:, t] = np.minimum((draws > chain[ids[:, t - 1]]).sum(axis=1), WORDS - 1)
    return [{"input_ids": part, "labels": part} for part in torch.tensor(ids).split(16)]


def train(model: torch.nn.Module, batches: list[dict], rate: float) -> list[float]:
    optimiser, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate), []
    for batch in batches:
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    return [float(loss.detach()) for loss in losses]


torch.manual_seed(0)
sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=64, **sizes))
train(base, language(1, PRETRAIN), 3e-3)
axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
with tempfile.TemporaryDirectory() as name:
    base.save_pretrained(folder := Path(name))
    for method in (eva, corda):
        method(base, language(2, 12), RANK, targets=TARGETS, alpha=8).save_adapter(folder / method.__name__)
    for kind, start in (("LoRA", folder), ("EVA", folder), ("CorDA", folder / "corda" / "residual")):
        torch.manual_seed(1)
        model = LlamaForCausalLM.from_pretrained(start)
        plain = LoraConfig(r=RANK, lora_alpha=8, target_modules=TARGETS)
        given = PeftModel.from_pretrained(model, folder / kind.lower(), is_trainable=True) if kind != "LoRA" else None
        losses = train(given or get_peft_model(model, plain), language(2, STEPS), 2e-3)
        axes.plot(np.convolve(losses, np.ones(5) / 5, "valid"), label=kind)
        print(f"{kind:<6} loss {losses[0]:.3f} at the start, {np.mean(losses[-10:]):.3f} over the last 10 steps")
axes.set(xlabel="step", ylabel="loss (mean of 5)", title=f"The same seeds and data, rank {RANK}")
axes.legend()
Path("out").mkdir(exist_ok=True)
figure.savefig("out/adapters.png")
