"""EVA: LoRA factors from the principal components of each layer's inputs, with ranks where the variance is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamsvd.pipelines.adapters import peft_io
from streamsvd.pipelines.adapters.allocate import allocate_ranks
from streamsvd.pipelines.adapters.eva_result import EvaLayer, EvaResult
from streamsvd.pipelines.adapters.watch import Watch

Metric = Literal["ratio", "raw", "sum", "max"]


def eva(
    model: Any,
    batches: Iterable[Any],
    rank: int = 16,
    *,
    rho: float = 2.0,
    whiten: bool = False,
    redistribute: bool = True,
    stop: float | None = 0.999,
    targets: Any = "all-linear",
    rows: int | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    metric: Metric = "ratio",
    minimum: int = 0,
    center: bool = True,
    use_labels: bool = True,
    label_mask_value: int = -100,
    sketch: Literal["auto", "gram", "truncated"] = "auto",
    kept: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
    on_plan: Callable[[Any], None] | None = None,
) -> EvaResult:
    """Explained-variance adapters (Paischer et al. 2024, EVA): A from the principal components of each layer's inputs, B zero.

    Rows X (tokens that the masks leave) of each distinct input are folded into a sketch; ``A_j`` is the j-th right singular vector of
    ``X - mean``. Components of all layers compete with their explained variance ratio for ``sum rank`` places, at most ``rho rank`` for one
    layer (section 3 of the paper, and PEFT's rule).

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable of dict, tuple or tensor
        Read once, and no further than needed; a generator will do. Of a dict, ``attention_mask`` and (``use_labels``) ``labels`` say which
        tokens count.
    rank : int
    rho : float, at least 1
    whiten : bool
        Divide row j of A by the square root of its singular value.
    redistribute : bool
        Let layers compete; otherwise each gets ``rank``.
    stop : float or None
        A layer is done when the components that at most half of its rows gave capture this share of the best energy of all its rows; when
        all are, no more data is read. None reads everything.
    targets : names, regular expression, or "all-linear"
    rows : int, optional
        Cap on the tokens of a layer.
    alpha : float, optional
        PEFT's ``lora_alpha`` (default: the rank). The scaling of a layer does not change with its rank.
    rslora : bool
        The scaling is ``alpha / sqrt(rank)``.
    metric : {"ratio", "raw", "sum", "max"}
        What layers compete with: variance as a share of the layer's total, as it is, as a share of that of its candidates, or of its first.
    minimum : int
        Ranks that every layer keeps.
    center : bool
        Components of ``X - mean`` (PEFT's and the authors' code) or of X.
    sketch, kept, memory, seed
        See ``ActivationStats``; ``kept`` is twice the candidates by default.
    progress : bool, optional
        Show progress on the error stream; by default where that is a terminal.
    on_plan : callable, optional
        Gets the ``MemoryPlan`` when the first batch has shown which layers share inputs, before anything is folded.

    Returns
    -------
    result : EvaResult

    Raises
    ------
    ValueError
        No matching targets (those that exist are listed), a rank above a layer's limit (it is named), no batch, no token that counts, NaN
        in activations (layer and batch are named), options out of range.

    Notes
    -----
    Cost beyond the forwards: ``d^2 / 2`` float32 multiply-adds a token for each distinct input of d columns (exact moments), and some tens
    of products with ``d^2 (rho rank + 16)`` at the end, and at each doubling of the rows.
    """
    from streamsvd.flow.activation_inputs import find_layers
    from streamsvd.flow.activations import ActivationStats

    cap = _checked(rank, rho, stop, metric, minimum, kept)
    narrowest = min(find_layers(model, targets).values())
    stats = ActivationStats(
        model,
        targets,
        sketch=sketch,
        rank=min(cap, narrowest),
        kept=2 * cap if kept is None else kept,
        center=center,
        rows=rows,
        memory=memory,
        seed=seed,
        on_plan=on_plan,
    )
    peft_io.check_ranks(stats, rank)
    began = time.perf_counter()
    watch = Watch(stats, cap, stop, seed)
    shown = sys.stderr.isatty() if progress is None else progress
    training = model.training
    model.eval()
    try:
        with stats:
            for batch in [batches] if isinstance(batches, Mapping) else batches:
                stats.forward(batch, use_labels=use_labels, label_mask_value=label_mask_value, logits=False)
                if watch.advance(shown) or stats.full:
                    break
    finally:
        model.train(training)
        watch.close()
    if not stats.groups:
        what = (
            "no batch came"
            if stats.forwards == 0
            else f"{stats.forwards} batches came, and none reached a target with a token that counts"
        )
        msg = f"{what}; EVA needs at least one batch with tokens (a generator that was used up gives none)"
        raise ValueError(msg)
    alpha = float(rank if alpha is None else alpha)
    scaling = alpha / (rank**0.5 if rslora else rank)
    share = _Share(rank, cap, redistribute, metric, minimum, whiten, scaling)
    layers = _layers(stats, watch, share)
    seconds = time.perf_counter() - began
    return EvaResult(model, layers, rank, alpha, rho, rslora, whiten, stats.unreached, stats, seconds, stats.batches)


@dataclass(frozen=True)
class _Share:
    """How components become adapters."""

    rank: int
    cap: int
    redistribute: bool
    metric: Metric
    minimum: int
    whiten: bool
    scaling: float

    def ranks(self, scores: dict[str, np.ndarray], limits: dict[str, int]) -> dict[str, int]:
        """Return the rank of each layer."""
        if not self.redistribute:
            return {name: min(self.rank, limits[name]) for name in scores}
        return allocate_ranks(scores, self.rank * len(scores), limits, self.minimum)


def _layers(stats: Any, watch: Watch, share: _Share) -> dict[str, EvaLayer]:
    """Read every sketch, share out the ranks, and cut the components to them."""
    import torch

    found = watch.final()
    modules = dict(stats.model.named_modules())
    scores = {name: _scores(found[lead], share.metric, stats.asked.center) for name, lead in stats.groups.items()}
    limits = {n: min(share.cap, x.size, peft_io.out_features(modules[n])) for n, x in scores.items()}
    ranks, layers = share.ranks(scores, limits), {}
    for name, lead in stats.groups.items():
        read, r = found[lead], ranks[name]
        A = read.vt[:r]
        if share.whiten:
            root = np.sqrt(np.sqrt(read.power[:r]))
            A = A / np.where(root > 0, root, 1.0)[:, None]
        stability = watch.stability.get(lead)
        layers[name] = EvaLayer(
            name=name,
            rank=r,
            A=torch.tensor(A, dtype=torch.float32),
            explained_variance=_variance(read, stats.asked.center),
            explained_variance_ratio=read.ratio,
            captured=float(read.ratio[:r].sum()),
            stability=stability,
            rows=read.rows,
            done=None if watch.stop is None else stability is not None and stability >= watch.stop,
            shared_with=lead,
            kind=stats.kinds[lead],
            scaling=share.scaling,
            out_features=peft_io.out_features(modules[name]),
            transposed=type(modules[name]).__name__ == "Conv1D",
        )
    return layers


def _variance(read: Any, center: bool) -> np.ndarray:
    return read.power / max(read.rows - center, 1)


def _scores(read: Any, metric: Metric, center: bool) -> np.ndarray:
    if metric == "ratio":
        return read.ratio
    variance = _variance(read, center)
    if metric == "raw":
        return variance
    whole = variance.sum() if metric == "sum" else variance.max(initial=0.0)
    return variance / whole if whole > 0 else variance


def _checked(rank: int, rho: float, stop: float | None, metric: str, minimum: int, kept: int | None) -> int:
    """Return the candidates of a layer, ``round(rho rank)``."""
    if rank < 1 or rho < 1:
        msg = f"rank={rank} and rho={rho}; expected rank >= 1 and rho >= 1 (1 leaves every layer at most its rank)"
        raise ValueError(msg)
    if stop is not None and not 0.0 < stop < 1.0:
        msg = (
            f"stop={stop}; expected a share of the energy between 0 and 1, such as 0.999, or None to read all the data"
        )
        raise ValueError(msg)
    if metric not in ("ratio", "raw", "sum", "max"):
        msg = f"metric={metric!r} is not known; expected 'ratio', 'raw', 'sum' or 'max'"
        raise ValueError(msg)
    if not 0 <= minimum <= rank:
        msg = f"minimum={minimum}; expected 0 .. rank={rank}"
        raise ValueError(msg)
    cap = round(rank * rho)
    if kept is not None and kept < cap:
        msg = f"kept={kept} is below the {cap} candidates of a layer (rank={rank} times rho={rho}); give kept={2 * cap}, or a smaller rho"
        raise ValueError(msg)
    return cap
