"""Events: when they come, what they say of speed and drift, and that drift is what a second look at the rows would find."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamsvd as ss
from streamsvd.flow import keeper
from streamsvd.flow.checkpoints import read_run
from streamsvd.flow.events import Drift, Event
from streamsvd.flow.fold import run
from streamsvd.flow.keeper import interval

N, D, K = 1200, 10, 3
RNG = np.random.default_rng(11)
X = RNG.standard_normal((N, D)) * 0.6 ** np.arange(D) @ np.linalg.qr(RNG.standard_normal((D, D)))[0]


def told(rows=X, batch=100, every=300, **options):
    """Return the events of a run over batches, a list of Event."""
    events: list[Event] = []
    batches = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    run(batches, every=every, on_event=events.append, **{"rank": K, "center": False, "kind": "gram"} | options)
    return events


def test_events_come_every_so_many_rows_and_at_the_end():
    assert [event.rows for event in told(every=300)] == [300, 600, 900, 1200]
    assert [event.rows for event in told(every=250)] == [300, 600, 900, 1200]
    assert [event.rows for event in told(every=500)] == [500, 1000, 1200]
    assert [event.rows for event in told(every=10**6)] == [1200]


def test_events_come_every_so_many_seconds(monkeypatch):
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(keeper.time, "monotonic", lambda: next(clock))
    few, many = told(every="1h"), told(every="1s")
    assert [event.rows for event in few] == [1200]
    assert 2 < len(many) < 12
    seconds = [event.seconds for event in many]
    assert seconds == sorted(seconds)
    assert all(event.rows_per_second > 0 for event in many)


@pytest.mark.parametrize("every", [0, -5, 2.5, "soon", "5", True, None, "-3s", "0s"])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match=r"every=.*(a number of rows|not a time)"):
        run(X, rank=1, every=every)


def test_intervals():
    assert interval("30s") == (30.0, math.inf)
    assert interval("5m") == (300.0, math.inf)
    assert interval(7) == (math.inf, 7.0)


def test_an_event_is_plain_json():
    event = told()[-1]
    assert json.loads(json.dumps(event.to_json(), allow_nan=False)) == event.to_json()
    assert event.seen == event.rows == N


@given(
    st.sampled_from(["gram", "truncated"]),
    st.sampled_from([None, 0.995]),
    st.sampled_from([1.0, 1e-120, 1e120]),
    st.booleans(),
)
def test_captured_is_the_share_that_a_second_look_at_the_new_rows_finds(kind, decay, size, turned):
    rows = X * size
    if turned:
        rows = np.concatenate([rows[:600], rows[600:][:, ::-1]])
    events = told(rows, kind=kind, decay=decay, kept=D)
    states = [ss.sketch(columns=D, rank=K, kind=kind, center=False, decay=decay, kept=D)]
    for i in range(0, N, 300):
        states.append(states[-1].update(rows[i : i + 300]))
    ages = (decay or 1.0) ** np.arange(299, -1, -1.0)[:, None]
    assert events[0].captured is None
    assert events[0].angle is None
    for i, event in enumerate(events[1:], start=1):
        before, now = states[i].factors(), states[i + 1].factors()
        new = rows[i * 300 : (i + 1) * 300] / size
        truth = np.sum(ages * (new @ before.vt.T) ** 2) / np.sum(ages * new**2)
        np.testing.assert_allclose(event.captured, truth, atol=1e-9)
        np.testing.assert_allclose(event.angle, ss.verify.angles(before.vt, now.vt)[-1], atol=1e-12)
        np.testing.assert_allclose(event.residual, now.bound.relative, rtol=1e-9)


def test_captured_ages_by_time():
    import pyarrow as pa

    names = [f"c{j}" for j in range(D)]
    table = pa.table({**dict(zip(names, X.T, strict=True)), "t": np.arange(N) * 0.1})
    events: list[Event] = []
    parts = [table[i : i + 300] for i in range(0, N, 300)]
    options = {"rank": K, "kind": "gram", "center": False, "timestamps": "t", "half_life": "20s"}
    run(parts, every=300, on_event=events.append, **options)
    before = ss.sketch(columns=D, rank=K, kind="gram", center=False, half_life="20s")
    before = before.update(X[:900], timestamps=np.arange(900) * 0.1).factors()
    ages = 0.5 ** (np.arange(299, -1, -1.0)[:, None] * 0.1 / 20)
    truth = np.sum(ages * (X[900:] @ before.vt.T) ** 2) / np.sum(ages * X[900:] ** 2)
    np.testing.assert_allclose(events[-1].captured, truth, atol=1e-9)


def test_of_a_truncated_state_captured_is_at_most_the_truth_and_near_it():
    events = told(kind="truncated", kept=2 * K)
    exact = told(kind="gram")
    for event, truth in zip(events[1:], exact[1:], strict=True):
        assert truth.captured - 0.05 <= event.captured <= truth.captured + 1e-3
        assert event.estimate > 0


def test_rows_in_new_directions_are_told_from_those_in_old_ones():
    old, new = np.zeros((600, 6)), np.zeros((600, 6))
    old[:, :2], new[:, 2:4] = RNG.standard_normal((600, 2)), 5 * RNG.standard_normal((600, 2))
    events = told(np.concatenate([old, new]), rank=2)
    assert [round(event.captured, 6) for event in events[1:]] == [1.0, 0.0, 1.0]
    assert events[1].angle < 0.1
    assert events[2].angle > 1.5
    assert events[3].angle < 0.1


def test_without_new_energy_nothing_is_known_of_it():
    rows = np.concatenate([X[:600], np.zeros((600, D))])
    assert [event.captured is None for event in told(rows)] == [True, False, True, True]
    assert told(np.zeros((600, 4)), rank=2)[-1].captured is None


def test_energies_in_changing_units_are_not_compared():
    events = told(scale="unit")
    assert all(event.captured is None for event in events)
    assert events[-1].angle is not None


def test_drift_is_measured_as_often_as_it_takes_a_hundredth_of_the_time(monkeypatch):
    from streamsvd.flow import events

    now, cost = 0.0, 2.0

    def clock():
        nonlocal now
        now += cost  # between beginning and end of a measurement
        return now

    state = ss.sketch(columns=D, rank=K).update(X)
    monkeypatch.setattr(events.time, "monotonic", clock)
    drift = Drift(always=False)
    assert drift.measure(state)["residual"] is not None
    assert drift.measure(state) == {}
    now += 300.0
    assert drift.measure(state)["angle"] is not None
    listened = Drift(always=True)
    assert all(listened.measure(state) for _ in range(3))


@pytest.mark.parametrize(
    "options", [{"kind": "gram", "columns": 1500}, {"kind": "truncated", "columns": 3000, "kept": 300}]
)
def test_a_first_measurement_that_would_take_long_waits_for_its_time(options, monkeypatch):
    from streamsvd.flow import events

    now = 0.0
    monkeypatch.setattr(events.time, "monotonic", lambda: now)
    state = ss.sketch(rank=2, **options).update(RNG.standard_normal((3, options["columns"])))
    drift = Drift(always=False)
    now = 1.0
    assert drift.measure(state) == {}
    now = 1000.0
    assert drift.measure(state)["residual"] is not None


def test_events_are_kept_with_the_run_and_go_on_when_it_is_resumed(tmp_path):
    class Enough(Exception):
        pass

    def stop(event):
        if event.rows >= 600:
            raise Enough

    options = {"rank": K, "checkpoint": tmp_path / "run.svd", "every": 300}
    with pytest.raises(Enough):
        run([X[i : i + 100] for i in range(0, N, 100)], on_event=stop, **options)
    before = read_run(tmp_path / "run.svd").events
    assert [event["rows"] for event in before] == [300, 600]
    events: list[Event] = []
    outcome = run([X[i : i + 100] for i in range(0, N, 100)], on_event=events.append, **options)
    assert outcome.resumed_rows == 600
    assert [event["rows"] for event in outcome.events] == [300, 600, 900, 1200]
    assert outcome.events[:2] == before
    assert outcome.events[-1] == events[-1].to_json()
    assert events[0].captured is not None  # compared with what the checkpoint held
    assert events[0].seconds > before[-1]["seconds"]
    assert events[0].path == str(tmp_path / "run.svd")


def test_only_the_last_thousand_events_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "EVENTS", 5)
    outcome = run([X[i : i + 10] for i in range(0, N, 10)], rank=1, every=10, checkpoint=tmp_path / "run.svd")
    assert len(outcome.events) == len(read_run(tmp_path / "run.svd").events) <= 5
    assert outcome.events[-1]["rows"] == N
