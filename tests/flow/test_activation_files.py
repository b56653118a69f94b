"""Statistics on disk, merged, across processes, and their plan of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.flow.activation_plan import choose, layer_plan  # noqa: E402
from streamsvd.flow.activations import ActivationStats  # noqa: E402
from streamsvd.flow.packed import Packed  # noqa: E402


def net(seed: int = 0, d: int = 10) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(d, d), torch.nn.Tanh(), torch.nn.Linear(d, d))


def batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(37, 10, generator=generator) + 3.0 for _ in range(count)]


def taken(parts, **options) -> ActivationStats:
    with ActivationStats(net(), ["0", "2"], rank=3, **options) as stats:
        for part in parts:
            stats.forward(part)
    return stats


def same(a: ActivationStats, b: ActivationStats, tolerance: float = 0.0) -> bool:
    return all(
        np.allclose(a.sketch(n).factors().s, b.sketch(n).factors().s, rtol=tolerance, atol=0) and a.rows(n) == b.rows(n)
        for n in a.groups
    )


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("center", [False, True])
def test_a_stream_that_goes_on_from_a_file_ends_in_the_same_bits(tmp_path, kind, center):
    parts = batches(30)
    whole = taken(parts, sketch=kind, center=center)
    taken(parts[:13], sketch=kind, center=center).save(tmp_path / "a.svd")
    again = ActivationStats.load(tmp_path / "a.svd", net())
    with again:
        for part in parts[13:]:
            again.forward(part)
    assert same(whole, again)
    assert (again.batches, again.groups, again.calls) == (whole.batches, whole.groups, whole.calls)


def test_statistics_of_another_model_are_refused(tmp_path):
    taken(batches(2)).save(tmp_path / "a.svd")
    with pytest.raises(ValueError, match="taken of another model than this Sequential: its layers have other shapes"):
        ActivationStats.load(tmp_path / "a.svd", net(seed=1))
    with pytest.raises(ValueError, match="it has no layer '2'"):
        ActivationStats.load(tmp_path / "a.svd", net()[:1])
    ActivationStats.load(tmp_path / "a.svd", net().to(torch.bfloat16))
    damaged = bytearray((tmp_path / "a.svd").read_bytes())
    damaged[-20] ^= 1
    (tmp_path / "a.svd").write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        ActivationStats.load(tmp_path / "a.svd", net())


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("center", [False, True])
def test_merged_statistics_are_those_of_all_rows(kind, center):
    parts = [x * (1 + i / 5) + i for i, x in enumerate(batches(12))]
    options = {"sketch": kind, "center": center, "kept": 10}
    whole, a, b = (taken(p, **options) for p in (parts, parts[:5], parts[5:]))
    before = a.sketch("0").factors().s
    both = a.merge(b)
    assert same(whole, both, 2e-5)
    assert np.array_equal(a.sketch("0").factors().s, before)
    assert both.batches == 12
    if center:
        np.testing.assert_allclose(both.sketch("0").factors().mean, torch.cat(parts).double().mean(0), rtol=1e-5)


def test_merging_what_does_not_go_together_names_the_difference():
    a = taken(batches(1))
    with pytest.raises(ValueError, match="center=False and center=True"):
        a.merge(taken(batches(1), center=True))
    with pytest.raises(ValueError, match="different models or targets"):
        a.merge(ActivationStats(net(seed=1), ["0", "2"], rank=3))
    # With "auto", two budgets can lead to two kinds.
    wide, narrow = (taken(batches(1), memory=m, kept=3) for m in (10**9, 10_000))
    assert (wide.kinds["0"], narrow.kinds["0"]) == ("gram", "truncated")
    with pytest.raises(ValueError, match="cannot merge gram with truncated"):
        wide.merge(narrow)


RANK = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from test_activation_files import batches, taken
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
parts = batches(9)
own = taken(parts[:4] if rank == 0 else parts[4:], sketch=sys.argv[4], center=True)
own.merge_across_ranks().save(f"{sys.argv[2]}/{rank}.svd")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_two_processes_end_with_the_same_bits_and_all_rows(tmp_path, kind):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    here = str(Path(__file__).parent)
    command = [sys.executable, str(script)]
    running = [subprocess.Popen([*command, str(r), str(tmp_path), here, kind]) for r in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert (tmp_path / "0.svd").read_bytes() == (tmp_path / "1.svd").read_bytes()
    assert same(taken(batches(9), sketch=kind, center=True), ActivationStats.load(tmp_path / "0.svd", net()), 1e-5)


def test_without_processes_the_message_says_what_to_call():
    with pytest.raises(RuntimeError, match="init_process_group"):
        taken(batches(1)).merge_across_ranks()


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_the_plan_counts_every_array_that_is_kept(kind):
    stats = taken([torch.randn(1100, 10)], sketch=kind, center=True, kept=5)
    line = stats.plan().lines[0]
    state = stats.state_of("0")
    if isinstance(state, Packed):
        arrays = [*state.panels, state.sums, state.shift]
        buffer = [state.waiting]
        held, waiting = (sum(x.numel() * x.element_size() for x in some) for some in (arrays, buffer))
    else:
        core = state.core
        arrays = [core.vt, core.s, core.basis.C, core.test, core.moments.shift, core.moments.delta]
        store = state.pending.pieces[0].rows
        held, waiting = sum(x.nbytes for x in arrays), sum(x.nbytes for x in (store.data, store.weights, store.times))
    assert (line.state, line.buffer) == (held, waiting)


LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(("kind", "kept", "limit"), [("gram", None, 22.5e9), ("truncated", 64, 0.85e9)])
def test_the_statistics_of_llama_2_7b_fit(kind, kept, limit):
    """Widths and sharing of the model on meta tensors: nothing is allocated, and one forward shows who shares."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, num_hidden_layers=32))
    plans = []
    with ActivationStats(model, LLAMA, sketch=kind, rank=16, kept=kept, on_plan=plans.append) as stats:
        stats.forward(torch.zeros(1, 4, dtype=torch.long, device="meta"))
    plan = stats.plan()
    assert len(plan.lines) == 4 * 32
    assert 0.9 * limit < plan.kept_bytes <= limit
    assert plans[0].kept_bytes == plan.kept_bytes
    assert "kept between batches" in str(plan)
    assert plan.workspace < 0.2e9


def test_a_budget_gives_up_exact_moments_of_the_widest_layers_first():
    stats = ActivationStats(net(), ["0"], rank=2)
    lines = {
        kind: {
            n: layer_plan(n, kind, type(stats.asked)(rank=2).options(d)).kept_bytes
            for n, d in (("a", 500), ("b", 3000), ("c", 1000))
        }
        for kind in ("gram", "truncated")
    }
    assert set(choose("auto", lines, None, 0).values()) == {"gram"}
    assert choose("auto", lines, lines["gram"]["a"] + lines["gram"]["c"] + lines["truncated"]["b"], 0) == {
        "a": "gram",
        "b": "truncated",
        "c": "gram",
    }
    with pytest.raises(ValueError, match=r"memory=1,000 bytes, but these sketches take .*; give more"):
        choose("auto", lines, 1000, 0)
    with pytest.raises(ValueError, match="sketch='truncated'"):
        ActivationStats(net(), ["0"], rank=2, sketch="gram", memory=100).plan()


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_sketches_stay_on_the_device_of_their_layer(kind):
    model, parts = net().cuda(), batches(12)
    with ActivationStats(model, ["0", "2"], rank=3, kept=10, sketch=kind, center=True) as stats:
        for part in parts:
            stats.forward(part)
    sketch = stats.sketch("0")
    assert (sketch.core.scatter if kind == "gram" else sketch.core.vt).device.type == "cuda"
    s = np.asarray(sketch.factors().s.cpu())
    np.testing.assert_allclose(
        s, np.asarray(taken(parts, sketch=kind, kept=10, center=True).sketch("0").factors().s), rtol=1e-5
    )
