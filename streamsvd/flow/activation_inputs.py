"""Which layers of a torch model are sketched, what their inputs are, and which rows of them count."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Tensor = Any


@dataclass(frozen=True)
class Seen:
    """One input of a layer in one forward: the tensor (held, so that its identity stays its own), and its version when read."""

    tensor: Tensor
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor, /) -> Seen:
        """Remember a tensor without copying it."""
        return cls(tensor.detach(), None if tensor.is_inference() else tensor._version)

    @property
    def key(self) -> tuple[Any, ...]:
        """Two inputs with one key are the same memory, read the same way, unchanged between."""
        x = self.tensor
        if x.device.type == "meta" or x.numel() == 0:
            return (x.shape, x.stride(), x.untyped_storage()._cdata if x.numel() else id(x), self.version, x.dtype)
        return (x.data_ptr(), x.shape, x.stride(), x.dtype, self.version)

    @property
    def changed(self) -> bool:
        """Tell whether the tensor was written since it was read."""
        return self.version is not None and self.tensor._version != self.version


def linear_width(module: Any, /) -> int | None:
    """Return the number of inputs of a linear layer, or None for any other module.

    ``nn.Linear``, the transposed ``Conv1D`` of GPT-2, and wrappers (quantised layers) that expose ``in_features`` and ``out_features``.
    """
    width, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(width, int) and isinstance(out, int):
        return width
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return int(module.weight.shape[0])
    return None


def find_layers(model: Any, targets: str | Iterable[str], /) -> dict[str, int]:
    """Return the widths of the linear layers that ``targets`` names, by module name, in the model's order.

    Parameters
    ----------
    model : torch.nn.Module
    targets : str or names
        Names, each a whole module name or its end after a dot ("q_proj"); or one regular expression for whole names; or "all-linear",
        which leaves out the output embedding.

    Raises
    ------
    ValueError
        Nothing matches; the message lists what there is.
    """
    linear = {name: width for name, m in model.named_modules() if name and (width := linear_width(m)) is not None}
    if isinstance(targets, str):
        head = getattr(model, "get_output_embeddings", lambda: None)()
        skipped = {name for name, m in model.named_modules() if m is head and head is not None}
        try:
            pattern = re.compile(targets)
        except re.error as error:
            msg = f"targets={targets!r} is no regular expression ({error}); give a list of names, such as ['q_proj']"
            raise ValueError(msg) from error
        ends = {targets} if targets != "all-linear" else set()
        found = {
            name: width
            for name, width in linear.items()
            if (targets == "all-linear" and name not in skipped) or pattern.fullmatch(name) or _ends(name, ends)
        }
    else:
        ends = set(targets)
        found = {name: width for name, width in linear.items() if _ends(name, ends)}
    if not found:
        kinds = Counter(name.rsplit(".", 1)[-1] for name in linear)
        there = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "no linear layer at all"
        msg = f"targets={targets!r} match no linear layer of {type(model).__name__}; it has {there}"
        raise ValueError(msg)
    return found


def fingerprint(model: Any, layers: Mapping[str, int], /) -> str:
    """Return a digest of layer names, shapes and a few weights of each (rounded to 8 bits, so that a cast model keeps its own)."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    modules = dict(model.named_modules())
    for name, width in layers.items():
        digest.update(f"{name}:{width};".encode())
        weight = getattr(modules[name], "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.device.type == "meta" or not weight.is_floating_point():
            continue
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        digest.update((some > 0).to(torch.uint8).numpy().tobytes())
        digest.update(torch.round(some.abs().mean().log2() * 4).to(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def taken(x: Tensor, mask: Tensor | None, /) -> tuple[Tensor, bool]:
    """Return the rows (tokens, d) of an input that count, and whether the mask could be applied.

    A mask of shape (b, t) fits inputs (b, t, d) and (b t, d). Others (tokens routed to one expert, a pooled token) keep all rows.
    """
    rows = x.reshape(-1, x.shape[-1])
    if mask is None:
        return rows, True
    if tuple(x.shape[:-1]) != tuple(mask.shape) and not (x.ndim == 2 and x.shape[0] == mask.numel()):
        return rows, False
    keep = mask.reshape(-1).to(rows.device)
    return (rows if bool(keep.all()) else rows[keep]), True


def combined_mask(attention_mask: Any, labels: Any, label_mask_value: int, /) -> Tensor | None:
    """Return which tokens count, (b, t) bool: attended to, and with a label; None for all.

    Raises
    ------
    ValueError
        Shapes that do not go together, or a mask that is not (b, t) of 0 and 1.
    """
    import torch

    masks = []
    if attention_mask is not None:
        mask = torch.as_tensor(attention_mask)
        if mask.ndim != 2:
            msg = f"attention_mask has shape {tuple(mask.shape)}; expected (batch, tokens), 1 for tokens that count"
            raise ValueError(msg)
        masks.append(mask != 0)
    if labels is not None:
        masks.append(torch.as_tensor(labels) != label_mask_value)
    if len(masks) == 2 and masks[0].shape != masks[1].shape:
        msg = f"attention_mask has shape {tuple(masks[0].shape)} and labels {tuple(masks[1].shape)}; expected one shape (batch, tokens)"
        raise ValueError(msg)
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else masks[0] & masks[1].to(masks[0].device)


def call(model: Any, batch: Any, /) -> Any:
    """Run a model on a batch: a mapping by keywords, a tuple or list by position, a tensor alone; moved to the model's device."""
    import torch

    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    if isinstance(batch, Mapping):
        return model(**{str(key): moved(value) for key, value in batch.items()})
    if isinstance(batch, list | tuple):
        return model(*(moved(value) for value in batch))
    if isinstance(batch, torch.Tensor):
        return model(moved(batch))
    msg = f"got a batch of type {type(batch).__name__}; expected a dict of tensors, a tuple of tensors, or a tensor"
    raise TypeError(msg)


def unneeded(model: Any, batch: Mapping[str, Any], targets: Iterable[str], /) -> dict[str, Any]:
    """Return the keywords that make a model leave out what no target reads: logits and key-value cache, if its forward knows them."""
    if "labels" in batch:
        return {}  # the loss needs all logits
    head = getattr(model, "get_output_embeddings", lambda: None)()
    modules, known = dict(model.named_modules()), inspect.signature(model.forward).parameters
    wanted: dict[str, Any] = {"use_cache": False}
    if head is not None and not any(modules[name] is head for name in targets):
        wanted["logits_to_keep"] = 1
    return {name: value for name, value in wanted.items() if name in known and name not in batch}


def _ends(name: str, ends: set[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
