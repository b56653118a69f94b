"""CorDA: adapters oriented by the covariance of each layer's inputs, from one pass of calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.pipelines.adapters.adapted import Adapters, LayerAdapter
from streamsvd.pipelines.adapters.covariance import LayerMetrics
from streamsvd.pipelines.adapters.split import Split, split, weight_of

MODES = ("ipm", "kpm")
KINDS = ("exact", "lowrank")


def corda(
    model: Any,
    batches: Iterable[Any],
    rank: int,
    *,
    mode: str = "ipm",
    covariance: str = "exact",
    damping: float = 0.01,
    targets: Any = "all-linear",
    ranks: Mapping[str, int] | None = None,
    alpha: float | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    kept: int = 64,
    peft_scaling: bool = False,
    lowrank_kpm: bool = False,
    dtype: str | None = None,
    stats: Any = None,
    seed: int = 0,
) -> Adapters:
    """Context-oriented adapters (Yang et al. 2024, CorDA): the SVD of ``W C``, C the covariance of the layer's inputs.

    ``W C' = U S V'`` with ``C' = C + damping mean(diag C) I``; ``B = U_r S_r^(1/2)``, ``A = S_r^(1/2) V_r' C'^-1`` (each divided by the
    square root of the scaling), and the weight becomes ``W - scaling B A``, so the model computes what it did. Since
    ``U_r S_r V_r' C'^-1 = U_r U_r'W``, no inverse is needed and none is formed.

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable of dict, tuple or tensor
        Calibration data, read once; a generator will do.
    rank : int
    mode : "ipm" or "kpm"
        Instruction-previewed (the largest components are trained) or knowledge-preserved (the smallest are).
    covariance : "exact" or "lowrank"
        All of C (in^2 numbers for each distinct input), or its leading ``kept`` directions and the mean of the rest.
    damping : float, of the mean of the diagonal; PEFT's and the paper's code start at 0.01
    targets : names, regular expression, or "all-linear"
    ranks : dict, optional
        Ranks of single layers, by module name.
    alpha : float, optional
        PEFT's ``lora_alpha`` (default: the rank, a scaling of 1). Layers of another rank get the same scaling.
    alphas : dict, optional
        ``lora_alpha`` of single layers, by module name.
    rslora : bool
        The scaling is ``alpha / sqrt(rank)``.
    kept : int
        Directions of a low-rank covariance, and rows that its sketch keeps (at least 16).
    peft_scaling : bool
        Normalise as PEFT does: each forward call is divided by |max x| and counts once. By default every token counts equally.
    lowrank_kpm : bool
        Allow ``mode="kpm"`` with a low-rank covariance.
    dtype : "float32" or "float64", optional
        Precision of the products ``X'X``, whose sums are float64 in either case: float64 by default for KPM with an exact covariance,
        float32 otherwise. float32 halves the cost beyond the forward, and leaves the small components of ``W C``, which KPM picks,
        uncertain where the gap at the rank is below some 1e-7 of the largest value.
    stats : ActivationStats, optional
        Statistics of this model that were gathered before; ``batches`` is then not read and may be empty.
    seed : int

    Returns
    -------
    adapters : Adapters
        ``save_adapter``, ``save_for_original``, ``save_cache``, ``save_covariances`` and ``to_peft`` hand them over.

    Raises
    ------
    ValueError
        No such targets (those that exist are listed), a rank above a layer's limit (it is named), no data, unknown options, statistics
        of another model or kind, and KPM with a low-rank covariance.

    Notes
    -----
    Cost beyond the forward passes: ``in^2 / 2`` multiply-adds a row for each distinct input, then for each layer some tens of
    products with W and C (IPM) or about ``7 in^3`` flops (KPM).
    """
    _check(mode, covariance, damping, lowrank_kpm)
    ranks = dict(ranks or {})
    if stats is None:
        from streamsvd.flow.activations import ActivationStats

        exact = covariance == "exact"
        stats = ActivationStats(
            model,
            targets,
            sketch="gram" if exact else "truncated",
            kept=None if exact else max(kept, 16),
            normalise="peft" if peft_scaling else None,
            dtype=dtype or ("float64" if exact and mode == "kpm" else "float32"),
            seed=seed,
        )
        check_ranks(model, stats.layers, rank, ranks)
        with stats:
            for batch in batches:
                stats.forward(batch, logits=False)
    else:
        _same_model(model, stats)
        check_ranks(model, stats.layers, rank, ranks)
    reached = [name for name in stats.layers if name not in set(stats.unreached)]
    if not reached:
        msg = f"none of the {len(stats.layers)} target layers saw a row: the data was empty, or masked; expected at least one batch"
        raise ValueError(msg)
    lead = {name: stats.groups.get(name, name) for name in reached}
    # PEFT's covariance is a mean over calls, and the scale of C decides how A and B share a product.
    calls = {name: stats.calls[name] for name in reached} if peft_scaling else {}
    metrics = LayerMetrics(stats.sketch, lead, damping, kept if covariance == "lowrank" else None, calls)
    return from_metrics(
        model,
        {name: metrics for name in reached},
        rank,
        mode=mode,
        ranks=ranks,
        alpha=alpha,
        alphas=alphas,
        rslora=rslora,
        seed=seed,
        skipped=tuple(stats.unreached),
        covariances=metrics.plain if covariance == "exact" else None,
    )


def from_metrics(
    model: Any,
    metrics: Mapping[str, Any],
    rank: int,
    /,
    *,
    mode: str = "ipm",
    ranks: Mapping[str, int] | None = None,
    alpha: float | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    seed: int = 0,
    skipped: tuple[str, ...] = (),
    covariances: Any = None,
    method: str | None = None,
    decompose: Callable[..., Split] | None = None,
) -> Adapters:
    """Return adapters of the layers named in ``metrics``: a metric each (an array, a ``Metric``, None), or a callable of name and weight.

    ``covariances`` and ``decompose`` serve ``corda`` and ``weights``: what ``save_covariances`` writes, and another split of a weight.
    """
    import torch

    ranks, alpha = dict(ranks or {}), float(rank if alpha is None else alpha)
    check_ranks(model, tuple(metrics), rank, ranks)
    scaling = alpha / (math.sqrt(rank) if rslora else rank)
    modules, layers = dict(model.named_modules()), {}
    end = "top" if mode == "ipm" else "bottom"
    with torch.no_grad():
        for name, metric in metrics.items():
            layer = modules[name]
            transposed = type(layer).__name__ == "Conv1D"
            weight = _named(name, layer.weight.T if transposed else layer.weight)
            try:
                found = metric(name, weight) if callable(metric) else metric
                r = ranks.get(name, rank)
                parts = decompose(weight, r) if decompose else split(weight, r, end=end, metric=found, seed=seed)
            except ValueError as error:
                msg = f"layer {name}: {error}"
                raise ValueError(msg) from error
            own = scaling if name not in (alphas or {}) else alphas[name] / (math.sqrt(r) if rslora else r)  # pyright: ignore[reportOptionalSubscript]
            layers[name] = _adapter(name, parts, own, transposed, layer.weight.device)
    return Adapters(model, layers, rank, alpha, rslora, method or f"corda-{mode}", skipped, covariances)


def check_ranks(model: Any, names: Iterable[str], rank: int, ranks: Mapping[str, int]) -> None:
    """Refuse a rank that a layer does not have, by name, and ranks for layers that are none."""
    modules, names = dict(model.named_modules()), list(names)
    unknown = sorted(set(ranks) - set(names))
    if unknown:
        msg = f"got a rank for {unknown[0]}, which is no target layer; expected names such as {', '.join(names[:3])}"
        raise ValueError(msg)
    for name in names:
        shape, asked = _shape(modules[name]), ranks.get(name, rank)
        most = min(shape)
        if isinstance(asked, bool) or not isinstance(asked, (int, np.integer)) or not 1 <= asked <= most:
            msg = (
                f"got rank={asked!r} for layer {name} of shape {shape}; expected 1 .. {most}: "
                f"give that layer its own with ranks={{{name!r}: {most}}}, or leave it out of targets"
            )
            raise ValueError(msg)


def _shape(layer: Any) -> tuple[int, int]:
    """Return (out, in); a quantised weight is packed, so its own shape does not tell."""
    if isinstance(getattr(layer, "in_features", None), int):
        return layer.out_features, layer.in_features
    columns, out = layer.weight.shape
    return (out, columns) if type(layer).__name__ == "Conv1D" else (columns, out)


def _same_model(model: Any, stats: Any) -> None:
    from streamsvd.flow.activation_inputs import fingerprint

    known = {name for name, _ in model.named_modules()}
    if stats.model is model:
        return
    if not known.issuperset(stats.widths) or fingerprint(model, stats.widths) != stats.fingerprint:
        msg = "the statistics are of another model: its layers or weights differ; gather them again, or pass the model they were taken of"
        raise ValueError(msg)


def _named(name: str, weight: Any) -> Array:
    try:
        return weight_of(weight)
    except (TypeError, ValueError) as error:
        msg = f"layer {name}: {error}"
        raise type(error)(msg) from error


def _adapter(name: str, parts: Split, scaling: float, transposed: bool, device: Any) -> LayerAdapter:
    import torch

    u, s, vt = (torch.as_tensor(x).to(device=device, dtype=torch.float32) for x in (parts.u, parts.s, parts.vt))
    root = (s / scaling).sqrt()
    A, B = (root[:, None] * vt).contiguous(), (u * root[None, :]).contiguous()
    return LayerAdapter(name, A, B, s, u, vt, scaling, parts.how, transposed)


def _check(mode: str, covariance: str, damping: float, lowrank_kpm: bool) -> None:
    if mode not in MODES or covariance not in KINDS:
        msg = f"got mode={mode!r}, covariance={covariance!r}; expected mode 'ipm' or 'kpm' and covariance 'exact' or 'lowrank'"
        raise ValueError(msg)
    if not (damping >= 0.0 and math.isfinite(damping)):
        msg = f"got damping={damping}; expected a number of at least 0, such as 0.01"
        raise ValueError(msg)
    if mode == "kpm" and covariance == "lowrank" and not lowrank_kpm:
        msg = (
            "got mode='kpm' with covariance='lowrank': the smallest components of W C depend on the small eigenvalues of C, which a "
            "low-rank covariance replaces by their mean, and came out 2 to 6 times too large; write covariance='exact', or "
            "lowrank_kpm=True to accept that"
        )
        raise ValueError(msg)
