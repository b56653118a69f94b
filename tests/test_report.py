"""What is reported of a state: plain values that agree with the factors, and lines that people can read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import streamsvd as ss
from streamsvd.report import bar, interval, percent, show, summary

X = np.random.default_rng(0).standard_normal((300, 9)) * 0.7 ** np.arange(9)


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_summary_agrees_with_the_factors(kind):
    state = ss.sketch(columns=9, rank=3, kind=kind).update(X)
    factors, values = state.factors(), summary(state)
    assert values["kind"] == kind
    assert values["plan"]["reason"] == state.plan.reason
    assert (values["rows"], values["columns"], values["rank"], values["kept"]) == (300, 9, 3, state.options.kept)
    lower, upper = factors.bound.sigma
    for j, part in enumerate(values["components"]):
        assert part["component"] == j + 1
        assert (part["s"], part["lower"], part["upper"]) == (factors.s[j], lower[j], upper[j])
        assert part["variance"] == factors.explained_variance[j] > 0
    assert values["explained"] == pytest.approx(factors.explained_variance_ratio.sum())
    assert values["bound"]["residual"] == factors.bound.residual > 0
    assert values["bound"]["optimal"] == list(factors.bound.optimal)


def test_summary_is_strict_json_even_where_energies_overflow():
    values = summary(ss.sketch(columns=9, rank=2).update(X * 1e160).factors())
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text) == values
    assert values["energy"] is None  # beyond float64
    assert values["components"][0]["s"] > 1e160
    assert 0 < values["explained"] < 1


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e160])
@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_every_state_can_be_shown(kind, scale, capsys):
    state = ss.sketch(columns=9, rank=3, kind=kind, half_life=50).update(X * scale)
    show(summary(state), title="a [bold] name")
    text = capsys.readouterr().out
    assert text.startswith("a [bold] name  ")
    assert f"{kind}: 300 rows, 9 columns, rank 3" in text
    assert "decay 0.986233 a row" in text
    assert "certified      residual at most" in text


def test_only_leading_components_are_shown_and_the_rest_is_counted(capsys):
    wide = np.random.default_rng(0).standard_normal((60, 30))
    show(summary(ss.sketch(columns=30, rank=25).update(wide)))
    text = capsys.readouterr().out
    assert "... and 5 more" in text
    assert [int(line.split()[0]) for line in text.splitlines() if "exact to" in line] == list(range(1, 21))


@pytest.mark.parametrize(("share", "text"), [(0.5, "████"), (1.0, "█" * 8), (0.0, ""), (1 / 64, "▏"), (2.0, "█" * 8)])
def test_a_bar_is_as_long_as_its_share(share, text):
    assert bar(share, 8) == text


def test_small_shares_keep_their_digits():
    assert [percent(share) for share in (0.25, 0.0, 1e-7, None)] == ["25.00 %", "0.00 %", "1.0e-05 %", "?"]


def test_an_interval_says_how_exact_it_is_where_digits_cannot():
    assert interval(1.0, 1.5) == "1 .. 1.5"
    assert interval(2.0, 2.0 * (1 + 3e-7)) == "exact to 3e-07"
    assert interval(0.0, 0.0) == "exact to 0e+00"
    assert interval(None, math.inf) == ""


def test_a_robust_state_is_summed_up():
    import numpy as np

    import streamsvd as ss

    X = np.random.default_rng(0).standard_normal((200, 6))
    values = summary(ss.Robust.empty(columns=6, rank=2).update(X))
    assert (values["kind"], values["rows"], values["kept"], values["bound"]) == ("robust", 200, None, None)
    assert len(values["components"]) == 2
