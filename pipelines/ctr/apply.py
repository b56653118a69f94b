"""Compressed tables put into a torch model, or into its state dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamsvd.pipelines.ctr.embedding import CompressedEmbedding, CompressedEmbeddingBag
from streamsvd.pipelines.ctr.model import CompressedField
from streamsvd.pipelines.ctr.torches import nn, torch


def apply_to(model: Any, result: Mapping[str, Any], /, *, modules: Mapping[str, str] | None = None) -> Any:
    """Return a copy of a model with the tables of the fields replaced by compressed ones; the dense tables are not copied.

    Parameters
    ----------
    model : nn.Module, or the state dict of one
    result : Compressed, or mapping of field to CompressedField or `int8.Quantized`
        Row i of a table is id i: the ids are 0 .. V - 1 in any order.
    modules : mapping of field to the path of its ``nn.Embedding`` or ``nn.EmbeddingBag``, optional
        By default the one of its shape that is called like the field: ``item``, or anything that ends in ``.item``.

    Returns
    -------
    model or state dict
        In a state dict ``PATH.weight`` becomes ``PATH.rows``, ``PATH.projection`` and ``PATH.bias``. Fields that stay dense stay.

    Raises
    ------
    ValueError
        A field without a module, with several, or with one of another shape; the message names them.
    """
    is_state = isinstance(model, Mapping)
    if is_state:
        shapes = {k.removesuffix(".weight"): tuple(v.shape) for k, v in model.items() if k.endswith(".weight")}
    else:
        shapes = {
            k: tuple(m.weight.shape) for k, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        }
    fields = {name: getattr(one, "field", one) for name, one in result.items()}
    chosen = {name: _path(one, shapes, modules) for name, one in fields.items() if one.rank is not None}
    if is_state:
        patched = {k: v for k, v in model.items() if k.removesuffix(".weight") not in chosen.values()}
        for name, path in chosen.items():
            new = module_of(result[name], like=model[f"{path}.weight"])
            patched |= {f"{path}.{k}": v for k, v in new.state_dict().items()}
        return patched
    memo: dict[int, Any] = {}
    for name, path in chosen.items():
        old = model.get_submodule(path)
        memo[id(old)] = module_of(result[name], like=old.weight, old=old)
    return copy.deepcopy(model, memo)


def module_of(one: Any, /, *, like: Any = None, old: Any = None) -> CompressedEmbedding:
    """Return a field as a torch module, in dtype, device and mode of the one that it replaces."""
    held: CompressedField = getattr(one, "field", one)
    dtype, device = (torch.float32, "cpu") if like is None else (like.dtype, like.device)
    shape = (held.vocabulary, held.projection.shape[1])
    if like is not None and tuple(like.shape) != shape:
        msg = (
            f"field {held.name!r} was compressed from a table of shape {shape}, and the "
            f"model has {tuple(like.shape)}; compress the tables of this model"
        )
        raise ValueError(msg)
    order = _order(held)

    def tensor(x: Any) -> Any:
        return torch.tensor(np.ascontiguousarray(x), dtype=dtype, device=device)

    options: dict[str, Any] = {"padding_idx": getattr(old, "padding_idx", None)}
    rows = None if hasattr(one, "codes") else tensor(held.table[order])
    if rows is None:
        rows = torch.tensor(one.codes[order], device=device)
        options["scale"] = tensor(one.scales[order])
    if isinstance(old, nn.EmbeddingBag):
        return CompressedEmbeddingBag(rows, tensor(held.projection), tensor(held.mean), mode=old.mode, **options)
    return CompressedEmbedding(rows, tensor(held.projection), tensor(held.mean), **options)


def _order(one: CompressedField) -> Any:
    ids = np.asarray(one.ids)
    if ids.dtype.kind not in "iu" or not np.array_equal(np.sort(ids), np.arange(len(ids))):
        msg = (
            f"the ids of field {one.name!r} are not the row numbers 0 .. {len(ids) - 1} of a "
            "torch table; compress the tables with their row numbers as ids"
        )
        raise ValueError(msg)
    return slice(None) if (ids[1:] > ids[:-1]).all() else np.argsort(ids)


def _path(one: CompressedField, shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, str] | None) -> str:
    name = one.name
    if modules is not None and name in modules:
        found = [path for path in shapes if path == modules[name]]
    else:
        found = [path for path in shapes if path == name or path.endswith(f".{name}")]
        alike = [path for path in found if shapes[path] == (one.vocabulary, one.projection.shape[1])]
        found = alike if len(found) > 1 else found  # a field may have a first-order weight beside its vectors
    if len(found) != 1:
        what = f"several tables ({', '.join(found)})" if found else f"no table (it has {', '.join(shapes) or 'none'})"
        msg = f"the model has {what} for field {name!r}; name it: modules={{{name!r}: 'path.of.the.embedding'}}"
        raise ValueError(msg)
    return found[0]
