"""Whatever a schedule does to partitions (other orders, copies, failures, a driver that dies), the bits are the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsvd as ss
from streams import Truth
from streamsvd.engines.contract import Part
from streamsvd.engines.driver import PartitionError
from streamsvd.engines.job import Job
from streamsvd.engines.local import Desk, fit_local, run_local
from streamsvd.engines.tree import Tree, groups


def partitions(seed: int, sizes: list[int], d: int = 10) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) / np.arange(1, d + 1)[:, None] ** 2
    return [rng.standard_normal((n, d)) @ mix for n in sizes]


def bits(outcome) -> bytes:
    whole = Part(0, 1, outcome.state, outcome.intake, {}, outcome.names)
    return whole.to_bytes()


@st.composite
def schedules(draw):
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=19).filter(any))
    order = draw(st.permutations(range(len(sizes))))
    for copy in draw(st.lists(st.integers(0, len(sizes) - 1), max_size=6)):
        order.insert(draw(st.integers(0, len(order))), copy)
    return sizes, order


class Unreliable:
    """A task that raises at its first attempts, as those of a worker that is killed do, sometimes after its work was done."""

    def __init__(self, losses: dict[int, int]) -> None:
        self.losses = dict(losses)

    def __call__(self, job: Job, partition, number: int) -> bytes:
        data = job.fold(partition, number)
        if self.losses.get(number, 0):
            self.losses[number] -= 1
            msg = "the worker is gone"
            raise ConnectionError(msg)
        return data


@given(
    schedules(),
    st.sampled_from(["gram", "truncated"]),
    st.integers(2, 5),
    st.dictionaries(st.integers(0, 18), st.integers(1, 3)),
)
@settings(max_examples=60)
def test_any_schedule_gives_the_same_bits(schedule, kind, fan_in, losses):
    sizes, order = schedule
    parts = partitions(1, sizes)
    options = {"rank": 2, "kind": kind, "fan_in": fan_in}
    plain = run_local(parts, **options)
    assert bits(run_local(parts, schedule=order, fold=Unreliable(losses), **options)) == bits(plain)
    assert plain.state.rows == sum(sizes)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any),
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=40)
def test_the_certificate_holds_for_merged_partitions(sizes, center, dtype):
    parts = partitions(2, sizes)
    factors = fit_local(parts, rank=2, kind="truncated", kept=3, center=center, dtype=dtype)
    truth = Truth(np.concatenate(parts).astype(dtype), center=center)
    bound, slack = factors.bound, 1e-9 * truth.energy**0.5
    lower, upper = bound.sigma
    assert (lower <= truth.s[:2] + slack).all()
    assert (truth.s[:2] <= upper + slack).all()
    assert truth.residual(factors.vt) <= bound.residual * (1 + 1e-9) + 1e-12 * truth.energy


def test_one_partition_is_what_fit_gives():
    x = partitions(3, [200])[0]
    one, fit = fit_local([x], rank=3), ss.fit(x, rank=3)
    assert one.s.tobytes() == fit.s.tobytes()
    assert one.vt.tobytes() == fit.vt.tobytes()


def test_states_for_each_key_merge_too():
    table = pa.table({"k": ["a", "b", "a", "b"] * 10, "x": np.arange(40.0), "y": np.arange(40.0) ** 2})
    whole = fit_local([table.slice(0, 13), table.slice(13)], rank=1, by="k")
    alone = ss.fit(table, rank=1, by="k")
    assert set(whole) == {"a", "b"}
    np.testing.assert_allclose(whole["b"].s, alone["b"].s, rtol=1e-10)


def test_a_second_copy_with_other_rows_is_refused_by_number():
    job = Job.of(rank=2)
    desk = Desk(job)
    a, b = partitions(4, [20, 20])
    assert desk.take(job.fold(a, 0), 0)
    assert not desk.take(job.fold(a, 0), 0)
    with pytest.raises(ValueError, match="partition 0 came twice with different rows"):
        desk.take(job.fold(b, 0), 0)


def test_a_partition_that_never_comes_is_missed():
    with pytest.raises(RuntimeError, match=r"partitions \[1\] of 3 never came"):
        run_local(partitions(5, [20, 20, 20]), rank=2, schedule=[2, 0])


def test_a_partition_that_fails_for_good_is_named_and_the_others_are_kept(tmp_path):
    parts = partitions(6, [30, 30, 30])
    bad = [*parts, parts[0].copy()]
    bad[3][4, 1] = np.inf
    with pytest.raises(PartitionError, match=r"partition 3: .*row 4 .*90 rows of the others") as caught:
        fit_local(bad, rank=2, checkpoint=tmp_path / "run.svd")
    assert caught.value.failed.keys() == {3}
    assert ss.load(tmp_path / "run.svd").rows == caught.value.state.rows == 90
    assert sorted(f.name for f in (tmp_path / "run.svd.parts").iterdir()) == [f"{n:06d}.svd" for n in range(3)]
    mended = [*parts, parts[0]]
    again = run_local(mended, rank=2, checkpoint=tmp_path / "run.svd")
    assert bits(again) == bits(run_local(mended, rank=2))
    assert not (tmp_path / "run.svd.parts").exists()


def test_a_partition_whose_worker_always_dies_is_named():
    with pytest.raises(PartitionError, match="partition 1: failed 4 times: ConnectionError"):
        fit_local(partitions(6, [30, 30]), rank=2, fold=Unreliable({1: 99}))


def test_a_partition_larger_than_memory_is_named():
    def huge():
        raise MemoryError
        yield

    with pytest.raises(
        PartitionError, match="partition 1: MemoryError: it does not fit in the memory of a worker; cut"
    ):
        fit_local([partitions(6, [30])[0], huge()], rank=2)


@given(st.integers(0, 6), st.permutations(range(7)))
@settings(max_examples=20)
def test_a_driver_that_is_started_again_ends_in_the_same_bits(tmp_path_factory, dies, order):
    folder = tmp_path_factory.mktemp("run")
    parts = partitions(7, [25, 0, 31, 8, 40, 1, 22])
    folded: list[int] = []

    def fold(job: Job, partition, number: int) -> bytes:
        if len(folded) == dies:
            raise KeyboardInterrupt
        folded.append(number)
        return job.fold(partition, number)

    options = {"rank": 2, "checkpoint": folder / "run.svd"}
    with pytest.raises(KeyboardInterrupt):
        run_local(parts, schedule=order, fold=fold, **options)
    poisoned = [np.full((3, 10), np.nan) if n in folded and parts[n].size else part for n, part in enumerate(parts)]
    assert bits(run_local(poisoned, **options)) == bits(run_local(parts, rank=2))


def test_a_finished_run_is_returned_and_other_options_are_refused(tmp_path):
    parts, path = partitions(8, [20, 20]), tmp_path / "run.svd"
    first = run_local(parts, rank=2, checkpoint=path)
    again = run_local(parts, rank=2, checkpoint=path)
    assert bits(first) == bits(again)
    assert "nothing was read again" in again.info["notes"][0]
    with pytest.raises(ValueError, match="rank=2 became rank=3"):
        run_local(parts, rank=3, checkpoint=path)


def test_runs_of_fit_and_of_engines_are_not_mixed_up(tmp_path):
    x = partitions(8, [40])[0]
    ss.fit(x, rank=2, checkpoint=tmp_path / "fit.svd")
    with pytest.raises(ValueError, match=r"made by streamsvd\.fit"):
        fit_local([x], rank=2, checkpoint=tmp_path / "fit.svd")
    fit_local([x], rank=2, checkpoint=tmp_path / "engine.svd")
    with pytest.raises(ValueError, match="cannot go on"):
        ss.fit(x, rank=2, checkpoint=tmp_path / "engine.svd")


def test_a_kept_partition_of_other_options_is_refused(tmp_path):
    parts = partitions(8, [20, 20])
    with pytest.raises(PartitionError):
        fit_local([parts[0], np.full((5, 10), np.nan)], rank=2, checkpoint=tmp_path / "run.svd")
    (tmp_path / "run.svd").unlink()
    with pytest.raises((ValueError, PartitionError), match="rank=2 became rank=3"):
        fit_local(parts, rank=3, checkpoint=tmp_path / "run.svd")


@pytest.mark.parametrize("parts", [[], [np.zeros((0, 4))]])
def test_no_rows_are_an_error(parts):
    with pytest.raises(ValueError, match="gave no rows"):
        fit_local(parts, rank=2)


@given(st.integers(1, 200), st.integers(2, 9))
def test_a_tree_keeps_the_order_and_holds_few_nodes(leaves, fan_in):
    most = 0
    tree = Tree(lambda nodes: [leaf for node in nodes for leaf in node], fan_in)
    for leaf in range(leaves):
        tree.add([leaf])
        most = max(most, tree.waiting())
    assert tree.root() == list(range(leaves))
    assert most <= (fan_in - 1) * (groups(leaves, fan_in) + 1)
