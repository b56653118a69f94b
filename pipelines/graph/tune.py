"""The choice of t, the regularisation of degrees: by ranking held-out edges where there are some, else by how localised the factors are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph import model
from streamsvd.pipelines.graph.evaluate import held_out, metrics
from streamsvd.pipelines.graph.recommend import filter_scores, histories
from streamsvd.pipelines.graph.refresh import check_rank, refreshed
from streamsvd.pipelines.graph.settings import GRID

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.refresh import GraphState

JUDGES = 4000
# Share of the items that carries a unit vector at t = 0, rank 64, below which factors count as localised. Measured (bench/graph.py
# threshold): yelp_sparse .0003 and frappe .0065 rank held-out edges better with t > 0, generated graphs of .012 and more as well without.
LOCALISED = 0.01
DEFAULT = 0.5


def choose(state: GraphState, validation: Any = None, /) -> tuple[float, str]:
    """Return t and why: as told, by Recall@20 of the training-free filter on validation edges, or by participation at t = 0.

    Cost: one fresh solve for each t tried with validation edges (and a ranking of at most 4000 users), one without.
    """
    settings = state.settings
    if settings.regularise != "auto":
        return float(settings.regularise), "as told"
    if settings.normalise == "raw":
        return 0.0, "normalise='raw' has no degrees to regularise"
    check_rank(state.store, settings)
    if validation is not None:
        found = {t: recall(replace(state, t=t, factors=None), validation) for t in GRID}
        best = max(found, key=lambda t: found[t])
        said = ", ".join(f"t={t:g}: {value:.4f}" for t, value in found.items())
        return best, f"best Recall@20 on the validation edges ({said})"
    return by_participation(state)


def recall(state: GraphState, validation: Any, /) -> float:
    """Return Recall@20 of the training-free filter at the state's t on at most 4000 users of the validation edges."""
    factors = refreshed(state).factors
    assert factors is not None
    users, wanted = held_out(validation, factors, limit=JUDGES, seed=state.settings.seed)
    A = state.store.matrix()[users]
    given = histories(A.indptr.astype(np.int64), A.indices, A.data, factors.v.shape[0])
    ranked, _ = filter_scores(factors, given, k=20)
    return metrics(ranked, wanted, cuts=(20,))["recall@20"]


def by_participation(state: GraphState, /) -> tuple[float, str]:
    """Return 0.5 where the vectors at t = 0 are localised (median participation over all rank vectors), else 0."""
    try:
        factors = refreshed(replace(state, t=0.0, factors=None)).factors
    except ValueError:  # the largest component is smaller than the rank
        return DEFAULT, f"the largest component allows no rank {state.settings.rank}"
    assert factors is not None
    there = int((factors.item_scale > 0).sum())
    median = float(np.median(model.participation(factors.v)))
    localised = median < LOCALISED * there
    said = f"median participation at t=0 is {median:.1f} of {there:,} items, {'below' if localised else 'above'} {LOCALISED:.1%}"
    return (DEFAULT if localised else 0.0), said
