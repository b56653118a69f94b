"""PiSSA and CorDA against PEFT: ``python bench/adapters_split.py pissa | corda | pass [--quick] [--json FILE]`` (all three by default).

``pissa``: the initialisation of one weight. ``corda``: the decomposition for given covariances. ``pass``: gathering those covariances,
beyond the plain forward. Medians of interleaved runs on one thread; energies and references in float64. PEFT runs its own functions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np

RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", nargs="*", choices=(*TABLES, []), help="which (default: all)")
    add("--quick", action="store_true", help="small sizes, one run: to see that it runs")
    add("--runs", type=int, default=5, help="interleaved runs (default: 5)")
    add("--threads", type=int, default=1)
    add("--cpu", action="store_true", help="processor time in place of wall time, for a machine that others use too")
    add("--json", metavar="FILE", help="keep the rows")
    options = parser.parse_args()
    import torch

    machine.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    options.runs = 1 if options.quick else options.runs
    options.clock = time.process_time if options.cpu else time.perf_counter
    rows = {name: TABLES[name](options) for name in options.table or TABLES}
    for name, found in rows.items():
        print(f"\n{name}")
        show(found)
    print(f"\nTimes: {'processor' if options.cpu else 'wall'}, medians of {options.runs} interleaved runs.")
    print(f"Machine: {machine.sentence(machine.describe(options.threads))}.")
    if options.json:
        Path(options.json).write_text(
            json.dumps({"machine": machine.describe(options.threads), "rows": rows}, indent=1)
        )


def pissa(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One weight at rank 16: values 1/sqrt(j), and Gaussian entries."""
    import torch

    from streamsvd.pipelines.adapters.family import pissa as ours

    n = 512 if options.quick else 2048
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    weights = {"1/sqrt(j)": (U / np.sqrt(np.arange(1, n + 1))) @ V.T, "Gaussian": rng.standard_normal((n, n))}
    rows = []
    for name, W in weights.items():
        W = torch.tensor(W, dtype=torch.float32)
        W64 = W.double().numpy()
        best = float(np.sum(np.linalg.svd(W64, compute_uv=False)[:RANK] ** 2))
        layer = peft_layer(W)

        def peft(layer: Any = layer, W: Any = W) -> Any:
            layer.get_base_layer().weight.data = W
            layer.pissa_init("default", "pissa_niter_4")
            return layer.lora_B["default"].weight.data

        def mine(W: Any = W, **how: Any) -> Any:
            parts = ours(W, RANK, **how)
            _ = parts.A, parts.residual
            return parts.B

        made = timed(
            {"PEFT pissa_niter_4": peft, "ours": mine, "ours, tol=1e-4": lambda mine=mine: mine(tol=1e-4)},
            options,
        )
        base = made["PEFT pissa_niter_4"]
        share = {k: captured(W64, out) / best for k, (_, out) in made.items()}
        for method, (seconds, _) in made.items():
            row = {"weight": f"{name}, {n} x {n}", "method": method, "ms": 1e3 * seconds, "/ PEFT": seconds / base[0]}
            row["energy / best"] = share[method]
            if method == "ours":
                row |= goal("/ PEFT", row["/ PEFT"], 1.0, most=True)
                least = 0.9999 if name != "Gaussian" else share["PEFT pissa_niter_4"] + 0.05
                row["energy goal"] = said(share[method], least, most=False)
            if method.startswith("ours, tol"):
                row["energy goal"] = said(share[method], 0.9999, most=False)
            rows.append(row)
    return rows


def corda(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The decomposition of W C for covariances of a random Llama's layers, both modes, against a float64 reference."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import collect_eigens_for_layer

    from streamsvd.pipelines.adapters.covariance import covariance_of, damped
    from streamsvd.pipelines.adapters.split import split

    d = 256 if options.quick else 1536
    model, tokens = llama(d, 1, 4 * d, d)
    rows, config = [], LoraConfig(r=RANK, target_modules=["x"], corda_config=CordaConfig())
    from streamsvd.flow.activations import ActivationStats

    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]
    with ActivationStats(model, names, sketch="gram") as stats:
        for ids in tokens:
            stats.forward(ids)
    for name in names:
        layer = model.get_submodule(name)
        C = covariance_of(stats.sketch(name))
        layer.covariance_matrix = torch.tensor(C, dtype=torch.float32)
        W = layer.weight.detach()
        U, s, _ = np.linalg.svd(W.double().numpy() @ damped(C, 0.01).C, full_matrices=False)

        def peft(layer: Any = layer) -> Any:
            return collect_eigens_for_layer(layer, config)

        def mine(end: str, C: Any = C, W: Any = W) -> Any:
            return split(W, RANK, end=end, metric=damped(C, 0.01))

        made = timed(
            {"PEFT": peft, "ipm": lambda mine=mine: mine("top"), "kpm": lambda mine=mine: mine("bottom")},
            options,
        )
        for mode, goal_ in (("ipm", 0.2), ("kpm", 1.0)):
            part = slice(0, RANK) if mode == "ipm" else slice(d - RANK, None)
            edge = s[RANK - 1 : RANK + 1] if mode == "ipm" else s[d - RANK - 1 : d - RANK + 1]
            reference = U[:, part] @ (U[:, part].T @ W.double().numpy())
            theirs = made["PEFT"][1]
            found = {"PEFT": (theirs.U_WC[:, part] * theirs.S_WC[part]) @ theirs.V_WC[:, part].T}
            found["ours"] = made[mode][1].B @ made[mode][1].A
            error = {
                k: float(np.linalg.norm(x.double().numpy() - reference) / np.linalg.norm(reference))
                for k, x in found.items()
            }
            row = {
                "layer": f"{name.rpartition('.')[2]} {d} x {d}",
                "mode": mode,
                "PEFT s": made["PEFT"][0],
                "ours s": made[mode][0],
            }
            row["ours / PEFT"] = made[mode][0] / made["PEFT"][0]
            row |= goal("time", row["ours / PEFT"], goal_, most=True)
            row |= {
                "how": made[mode][1].how,
                "gap at r": float(edge[0] / edge[1] - 1),
                "PEFT error": error["PEFT"],
                "our error": error["ours"],
            }
            if row["gap at r"] >= 1e-3:
                row["error goal"] = said(error["ours"], 1e-5, most=True)
            rows.append(row)
    return rows


def covariance_pass(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The pass over calibration data on a Llama-shaped model, one sequence a batch (PEFT takes no more), beyond the plain forward."""
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import calib_cov_distribution

    from streamsvd.flow.activations import ActivationStats

    hidden, layers, count = (128, 2, 2_048) if options.quick else (512, 4, 20_480)
    model, tokens = llama(hidden, layers, count, 256)
    config = LoraConfig(r=RANK, target_modules=TARGETS, corda_config=CordaConfig())

    def forward() -> None:
        import torch

        with torch.no_grad():
            for ids in tokens:
                model(ids)

    def peft() -> int:
        calib_cov_distribution(model, config, forward, None, None)
        held = 0
        for module in model.modules():
            if hasattr(module, "covariance_matrix"):
                held += module.covariance_matrix.nbytes
                del module.covariance_matrix, module.sample_count
        return held

    def ours(kind: str, dtype: str = "float32") -> int:
        with ActivationStats(model, TARGETS, sketch=kind, kept=64, dtype=dtype) as stats:
            for ids in tokens:
                stats.forward({"input_ids": ids}, logits=False)  # as corda() does
        return sum(line.kept_bytes for line in stats.plan().lines)

    made = timed(
        {
            "forward": forward,
            "PEFT": peft,
            "ours, exact": lambda: ours("gram"),
            "ours, exact, float64": lambda: ours("gram", "float64"),
            "ours, low rank": lambda: ours("truncated"),
        },
        options,
    )
    plain, rows = made["forward"][0], []
    for method, (seconds, held) in made.items():
        row = {"model": f"hidden {hidden}, {layers} layers, {count} tokens", "method": method, "s": seconds}
        if method != "forward":
            row |= {"beyond forward s": seconds - plain, "/ PEFT": (seconds - plain) / (made["PEFT"][0] - plain)}
            row["MB held"] = held / 1e6
        if method == "ours, exact":
            row |= goal("/ PEFT", row["/ PEFT"], 0.25, most=True)
        rows.append(row)
    return rows


def llama(hidden: int, layers: int, tokens: int, length: int) -> tuple[Any, list[Any]]:
    """Return a Llama with random weights and Zipf-distributed tokens, one sequence a batch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=(11 * hidden // 4) // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=4096,
    )
    ids = np.minimum(np.random.default_rng(0).zipf(1.3, tokens) - 1, 4095).reshape(-1, min(length, tokens))
    return LlamaForCausalLM(config).eval(), [torch.tensor(row)[None] for row in ids]


def peft_layer(W: Any) -> Any:
    """Return PEFT's LoRA layer around a weight, not yet initialised."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(W.shape[1], W.shape[0], bias=False))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"], init_lora_weights=False)
    return get_peft_model(model, config).base_model.model[0]


def captured(W: np.ndarray, B: Any) -> float:
    """Return the energy of W in the span of the columns of B."""
    Q = np.linalg.qr(np.asarray(B, dtype=np.float64))[0]
    return float(np.linalg.norm(Q.T @ W) ** 2)


def timed(calls: dict[str, Any], options: argparse.Namespace) -> dict[str, tuple[float, Any]]:
    """Return the median seconds of each call, taken in turns, and what it returned; one run more warms up."""
    runs, clock = options.runs, options.clock
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    out: dict[str, Any] = {}
    for run in range(runs + 1):
        for name, call in calls.items():
            start = clock()
            out[name] = call()
            if run or runs == 1:
                seconds[name].append(clock() - start)
    return {name: (median(seconds[name]), out[name]) for name in calls}


def goal(name: str, value: float, limit: float, *, most: bool) -> dict[str, str]:
    return {f"{name} goal": said(value, limit, most=most)}


def said(value: float, limit: float, *, most: bool) -> str:
    return f"{'<=' if most else '>='} {limit:.4g}" + ("" if (value <= limit if most else value >= limit) else " MISSED")


def show(rows: list[dict[str, Any]]) -> None:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    text = [heads] + [[_cell(row.get(name, "")) for name in heads] for row in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(heads))]
    for line in text:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) and not 0.9 < x < 1 else f"{x:.5f}" if isinstance(x, float) else str(x)


TABLES = {"pissa": pissa, "corda": corda, "pass": covariance_pass}

if __name__ == "__main__":
    main()
