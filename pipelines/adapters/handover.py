"""From adapters to what PEFT loads: adapter folders, residual models, the form of rank 2r, and CorDA's cache and covariance files."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Tensor = Any
PREFIX = "base_model.model."
TESTED = ("0.21",)


def peft_version() -> str | None:
    """Return the version of peft that is installed, or None, and warn where its formats are untested here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("peft")
    except PackageNotFoundError:
        return None
    if not any(found == known or found.startswith(known + ".") for known in TESTED):
        msg = f"peft {found} is installed; its formats were tested with {', '.join(TESTED)}: check one adapter after loading"
        warnings.warn(msg, UserWarning, stacklevel=3)
    return found


def state_dict(pairs: Mapping[str, tuple[Tensor, Tensor]], /) -> dict[str, Tensor]:
    """Return PEFT's names for pairs of A (r, in) and B (out, r), by module name."""
    out = {}
    for name, (A, B) in pairs.items():
        out[f"{PREFIX}{name}.lora_A.weight"] = A.detach().cpu().contiguous()
        out[f"{PREFIX}{name}.lora_B.weight"] = B.detach().cpu().contiguous()
    return out


def lora_config(adapters: Any, /, *, factor: int = 1, base: str | None = None) -> dict[str, Any]:
    """Return ``adapter_config.json`` as a dict; ``factor`` multiplies the ranks and keeps the scaling."""
    ranks = {n: factor * one.rank for n, one in adapters.layers.items() if one.rank != adapters.rank}
    power = math.sqrt(factor) if adapters.rslora else factor
    alphas = {
        n: one.scaling * (math.sqrt(one.rank) if adapters.rslora else one.rank) for n, one in adapters.layers.items()
    }
    alphas = {n: power * a for n, a in alphas.items() if n in ranks or not math.isclose(a, adapters.alpha)}
    return {
        "peft_type": "LORA",
        "task_type": _task(adapters.model),
        "base_model_name_or_path": base
        or getattr(getattr(adapters.model, "config", None), "_name_or_path", None)
        or None,
        "r": factor * adapters.rank,
        "lora_alpha": power * adapters.alpha,
        "use_rslora": adapters.rslora,
        "target_modules": list(adapters.layers),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": any(one.transposed for one in adapters.layers.values()),
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def write_adapter(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], /) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into a folder, each file whole or not at all."""
    from safetensors.torch import save_file

    peft_version()
    path.mkdir(parents=True, exist_ok=True)
    _whole(path / "adapter_model.safetensors", lambda at: save_file(dict(tensors), at, metadata={"format": "pt"}))
    _whole(path / "adapter_config.json", lambda at: at.write_text(json.dumps(dict(config), indent=2)))
    return path


def save_adapter(adapters: Any, path: Path, /, *, residual: bool) -> Path:
    """Write the adapter and, unless told not to, the residual model beside it."""
    base = None
    if residual:
        base = str(save_residual(adapters, path / "residual"))
    return write_adapter(path, adapters.state_dict(), lora_config(adapters, base=base))


def save_residual(adapters: Any, path: Path, /) -> Path:
    """Write the model with the residual weights; the model itself is not changed."""
    state = dict(adapters.model.state_dict())
    for name, weight in adapters.residual_weights():
        state[f"{name}.weight"] = weight
    path.mkdir(parents=True, exist_ok=True)
    if hasattr(adapters.model, "save_pretrained"):
        adapters.model.save_pretrained(path, state_dict=state)
    else:
        from safetensors.torch import save_file

        tensors = {name: x.detach().cpu().clone().contiguous() for name, x in state.items()}
        _whole(path / "model.safetensors", lambda at: save_file(tensors, at, metadata={"format": "pt"}))
    return path


def save_for_original(adapters: Any, path: Path, trained: Any, /) -> Path:
    """Write ``[A; A_0]``, ``[B, -B_0]`` of rank 2r, whose product with the same scaling is the change from the original weights."""
    import torch

    config = lora_config(adapters, factor=2)
    if adapters.rslora and (config["rank_pattern"] or config["alpha_pattern"]):
        msg = (
            "got rslora and layers of different rank or alpha; PEFT's patterns cannot express their scaling at twice the rank: "
            "use one rank for all layers, rslora=False, or save_adapter with its residual model"
        )
        raise ValueError(msg)
    found = adapters.state_dict() if trained is None else _trained(trained)
    start, pairs = adapters.state_dict(), {}
    if set(found) != set(start) or any(found[key].shape != start[key].shape for key in start):
        odd = sorted(set(found) ^ set(start)) or [key for key in start if found[key].shape != start[key].shape]
        msg = f"the trained adapter and these initial ones differ in {odd[0]}; expected one that was trained from these"
        raise ValueError(msg)
    for name in adapters.layers:
        (A, B), (A0, B0) = (
            (state[f"{PREFIX}{name}.lora_A.weight"].float(), state[f"{PREFIX}{name}.lora_B.weight"].float())
            for state in (found, start)
        )
        pairs[name] = (torch.cat([A, A0]), torch.cat([B, -B0], dim=1))
    return write_adapter(path, state_dict(pairs), config)


def save_cache(adapters: Any, path: Path, /) -> Path:
    """Write ``{name.eigens.S_WC, .U_WC, .V_WC}``, V (in, r) with the inverse covariance in it."""
    import torch

    peft_version()
    out = {}
    for name, one in adapters.layers.items():
        parts = {"S_WC": one.s, "U_WC": one.u, "V_WC": one.vt.T}
        out |= {f"{name}.eigens.{key}": x.detach().cpu().contiguous() for key, x in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    _whole(path, lambda at: torch.save(out, at))
    return path


def save_covariances(adapters: Any, path: Path, /) -> Path:
    """Write ``{name: C}``, C (in, in) float32 and undamped: PEFT damps it."""
    import torch

    peft_version()
    if adapters.covariances is None:
        msg = f"these adapters ({adapters.method}) keep no exact covariances; make them with corda(..., covariance='exact')"
        raise ValueError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Layers that share an input give the same tensor, which torch writes once.
    out = {name: adapters.covariances(name).cpu() for name in adapters.layers}
    _whole(path, lambda at: torch.save(out, at))
    return path


def to_peft(adapters: Any, /) -> Any:
    """Return a PeftModel with these factors around the model with the residual weights."""
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        msg = "to_peft needs peft: pip install 'streamsvd[adapters]'"
        raise ImportError(msg) from error
    peft_version()
    made = {k: v for k, v in lora_config(adapters).items() if k not in ("peft_type", "inference_mode")}
    model = get_peft_model(adapters.apply(), LoraConfig(**made))
    outcome = set_peft_model_state_dict(model, adapters.state_dict())
    if outcome.unexpected_keys:
        msg = f"peft did not take {outcome.unexpected_keys[0]}; its names differ from those of the versions tested ({', '.join(TESTED)})"
        raise RuntimeError(msg)
    return model


def _trained(given: Any) -> dict[str, Tensor]:
    if isinstance(given, Mapping):
        return {_plain(name): x for name, x in given.items()}
    from safetensors.torch import load_file

    return load_file(Path(given) / "adapter_model.safetensors")


def _plain(name: str) -> str:
    """Drop the adapter's name, which live models have within the key and files have not."""
    for part in ("lora_A", "lora_B"):
        head, found, tail = name.partition(f".{part}.")
        if found and tail != "weight":
            return f"{head}.{part}.weight"
    return name


def _task(model: Any) -> str | None:
    kinds = {
        "ForCausalLM": "CAUSAL_LM",
        "LMHeadModel": "CAUSAL_LM",
        "ForSequenceClassification": "SEQ_CLS",
        "ForTokenClassification": "TOKEN_CLS",
        "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    }
    return next((task for end, task in kinds.items() if type(model).__name__.endswith(end)), None)


def _whole(path: Path, write: Callable[[Path], Any], /) -> None:
    """Write a file under another name and move it into place."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
