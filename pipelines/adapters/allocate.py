"""Who gets the rank: scores of all layers' components pooled, and the best of them taken until the budget is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def allocate_ranks(
    scores: Mapping[str, Any], budget: int, cap: int | Mapping[str, int] | None = None, minimum: int = 0
) -> dict[str, int]:
    """Share a budget of ranks between layers by the scores of their components.

    The rule of EVA (Paischer et al. 2024, section 3; PEFT's ``redistribute``) with explained variance ratios as scores, and of AdaLoRA
    (Zhang et al. 2023, section 3.2) with importance scores: pool all components, take the ``budget`` best.

    Parameters
    ----------
    scores : dict of array (k_i,)
        Not negative, one for each component that a layer could have.
    budget : int
        Ranks to give away in all.
    cap : int or dict, optional
        Most ranks of a layer; never more than it has scores.
    minimum : int
        Ranks that every layer gets before the pool is opened (as far as its cap allows).

    Returns
    -------
    ranks : dict, in the order of ``scores``; fewer than the budget in all only where every layer is at its cap

    Raises
    ------
    ValueError
        Scores that are negative or NaN, a negative budget, or one that the minimum alone exceeds.

    Notes
    -----
    Ties go to the layer that comes first, then to its earlier component, so the result is the same everywhere.

    Examples
    --------
    >>> allocate_ranks({"q": [0.5, 0.2, 0.1], "up": [0.3, 0.25, 0.2]}, budget=4)
    {'q': 2, 'up': 2}
    """
    tables = {name: _checked(name, values) for name, values in scores.items()}
    most = {name: min(x.size, _cap(cap, name, x.size)) for name, x in tables.items()}
    ranks = {name: min(minimum, most[name]) for name in tables}
    left = budget - sum(ranks.values())
    if budget < 0 or minimum < 0 or left < 0:
        least = budget - left
        msg = f"budget={budget} with minimum={minimum} for {len(tables)} layers; expected minimum >= 0 and a budget of at least {least}"
        raise ValueError(msg)
    rest = [
        (-score, number, position, name)
        for number, (name, x) in enumerate(tables.items())
        for position, score in enumerate(np.sort(x)[::-1][ranks[name] : most[name]])
    ]
    for _, _, _, name in sorted(rest)[:left]:
        ranks[name] += 1
    return ranks


def _cap(cap: int | Mapping[str, int] | None, name: str, size: int) -> int:
    return size if cap is None else int(cap[name] if isinstance(cap, Mapping) else cap)


def _checked(name: str, values: Any) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not (np.isfinite(x).all() and (x >= 0).all()):
        msg = f"the scores of layer {name!r} hold negative numbers or NaN; expected one number >= 0 for each component"
        raise ValueError(msg)
    return x
