from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.pipelines.ctr.budget import allocate, offer


@st.composite
def fields(draw) -> list:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        d = draw(st.integers(2, 5))
        values = sorted((draw(st.floats(0, 10)) for _ in range(d)), reverse=True)
        found.append(offer(draw(st.integers(1, 60)), np.array(values), draw(st.floats(0.1, 100))))
    return found


def spent(offers, ranks) -> tuple[int, float]:
    at = [one.ranks.index(r) for one, r in zip(offers, ranks, strict=True)]
    return sum(int(o.bytes[j]) for o, j in zip(offers, at, strict=True)), sum(
        float(o.error[j]) for o, j in zip(offers, at, strict=True)
    )


@given(offers=fields(), share=st.floats(0, 1.2))
def test_the_choice_is_the_best_of_all(offers: list, share: float) -> None:
    floor, top = sum(int(o.bytes[0]) for o in offers), sum(int(o.bytes[-1]) for o in offers)
    budget = int(floor + share * (top - floor))
    cost, error = spent(offers, allocate(offers, budget))
    every = [spent(offers, ranks) for ranks in itertools.product(*(o.ranks for o in offers))]
    assert cost <= budget
    assert error <= min(e for c, e in every if c <= budget) * (1 + 1e-12) + 1e-12


@given(offers=fields(), budgets=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_bytes_never_give_more_error(offers: list, budgets: tuple[float, float]) -> None:
    floor, top = sum(int(o.bytes[0]) for o in offers), sum(int(o.bytes[-1]) for o in offers)
    less, more = (spent(offers, allocate(offers, int(floor + b * (top - floor))))[1] for b in sorted(budgets))
    assert more <= less


def test_a_thinned_front_is_never_worse_than_uniform_ranks(monkeypatch) -> None:
    import streamsvd.pipelines.ctr.budget as budget

    monkeypatch.setattr(budget, "FRONT", 8)
    rng = np.random.default_rng(0)
    offers = [
        offer(int(v), np.sort(rng.random(16))[::-1], float(w))
        for v, w in zip(rng.integers(5, 5000, 12), rng.random(12), strict=True)
    ]
    for r in range(1, 16):
        uniform = [r if r in one.ranks else None for one in offers]
        cost, error = spent(offers, uniform)
        assert spent(offers, allocate(offers, cost))[1] <= error


def test_small_vocabularies_are_never_made_larger() -> None:
    for v in range(1, 30):
        one = offer(v, np.ones(8), 1.0)
        assert one.ranks[-1] is None
        assert (one.bytes[:-1] < one.bytes[-1]).all()


def test_everything_is_dense_when_the_budget_allows_it() -> None:
    offers = [offer(100, np.ones(4), 1.0), offer(7, np.ones(4), 1.0)]
    assert allocate(offers, 10**6) == [None, None]
    with pytest.raises(ValueError, match="below the smallest possible, 32 bytes"):
        allocate(offers, 31)
