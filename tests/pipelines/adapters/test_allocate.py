"""Sharing out ranks: the best components win, within caps and minima, and everything is spent that can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.pipelines.adapters.allocate import allocate_ranks

LAYERS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.floats(0, 10), min_size=0, max_size=8), min_size=1, max_size=6
)


@given(LAYERS, st.integers(0, 30), st.integers(0, 8), st.integers(0, 3))
def test_the_best_components_are_taken_within_the_limits(scores, budget, cap, minimum):
    most = {name: min(cap, len(x)) for name, x in scores.items()}
    least = {name: min(minimum, most[name]) for name in scores}
    if sum(least.values()) > budget:
        with pytest.raises(ValueError, match="expected minimum >= 0 and a budget of at least"):
            allocate_ranks(scores, budget, cap, minimum)
        return
    ranks = allocate_ranks(scores, budget, cap, minimum)
    assert list(ranks) == list(scores)
    assert all(least[n] <= r <= most[n] for n, r in ranks.items())
    assert sum(ranks.values()) == min(budget, sum(most.values()))
    ordered = {n: sorted(x, reverse=True) for n, x in scores.items()}
    taken = [ordered[n][r - 1] for n, r in ranks.items() if r > least[n]]
    left = [ordered[n][r] for n, r in ranks.items() if r < most[n]]
    assert not taken or not left or min(taken) >= max(left)


def test_it_is_the_rule_of_peft_where_no_scores_tie():
    rng = np.random.default_rng(0)
    ratios = {name: np.sort(rng.random(8))[::-1] for name in "abc"}
    pooled = sorted(((x, name) for name, values in ratios.items() for x in values), reverse=True)[:12]
    ranks = allocate_ranks(ratios, 12, 8)
    assert ranks == {name: sum(n == name for _, n in pooled) for name in "abc"}


def test_ties_go_to_the_layer_that_comes_first():
    assert allocate_ranks({"b": [1, 1], "a": [1, 1]}, 3) == {"b": 2, "a": 1}


@pytest.mark.parametrize("bad", [[-1.0], [float("nan")], [float("inf")]])
def test_scores_that_are_none_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="the scores of layer 'up'"):
        allocate_ranks({"q": [1.0], "up": bad}, 1)
