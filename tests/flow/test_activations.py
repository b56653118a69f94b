"""Activation statistics against plain moments in float64: what counts, what is shared, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from streamsvd.flow.activation_groups import regrouped  # noqa: E402
from streamsvd.flow.activations import ActivationStats  # noqa: E402


class Block(torch.nn.Module):
    """q, k, v read one tensor, o another, and an expert only what is routed to it."""

    def __init__(self, d: int = 12, experts: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(d, d) for _ in range(3))
        self.o = torch.nn.Linear(d, d)
        self.expert = torch.nn.Linear(d, d)
        self.routed = experts

    def forward(self, x, attention_mask=None, labels=None):
        out = self.o(torch.tanh(self.q(x) + self.k(x)) * self.v(x))
        if self.routed:
            chosen = out.reshape(-1, out.shape[-1])[::3]
            return out.sum() + self.expert(chosen).sum()
        return out


def model(**options) -> Block:
    torch.manual_seed(0)
    return Block(**options).eval()


def moments(rows, center: bool) -> np.ndarray:
    X = rows.double().numpy()
    X = X - X.mean(0) if center else X
    return X.T @ X


def scatter(sketch) -> np.ndarray:
    core = sketch.core
    S = np.tril(np.asarray(core.scatter)) * 4.0**core.exponent
    return S + np.tril(S, -1).T


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_moments_are_those_of_the_rows_that_the_mask_leaves(center, dtype):
    torch.manual_seed(1)
    batches = [torch.randn(3, n, 12) + 5.0 for n in (7, 40, 1, 300)]
    masks = [torch.rand(b.shape[:2]) > 0.3 for b in batches]
    with ActivationStats(model(), ["q", "o"], sketch="gram", rank=4, center=center, dtype=dtype) as stats:
        for batch, mask in zip(batches, masks, strict=True):
            stats.forward({"x": batch, "attention_mask": mask.long()})
    rows = torch.cat([b[m] for b, m in zip(batches, masks, strict=True)])
    sketch = stats.sketch("q")
    truth = moments(rows, center)
    assert sketch.rows == len(rows)
    error = np.abs(scatter(sketch) - truth).max() / np.trace(truth)
    assert error <= (3e-7 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_the_certificate_of_a_layer_holds(kind):
    torch.manual_seed(2)
    rows = torch.randn(900, 12) * torch.logspace(0, -3, 12)
    with ActivationStats(model(), ["q"], sketch=kind, rank=3, kept=6, center=True) as stats:
        for part in rows.split(70):
            stats.forward((part[None],))
    f = stats.sketch("q").factors()
    w = np.linalg.eigvalsh(moments(rows, True))[::-1]
    V = np.asarray(f.vt, dtype=np.float64)
    left = np.trace(moments(rows, True)) - np.trace(V @ moments(rows, True) @ V.T)
    assert w[3:].sum() * (1 - 1e-5) <= left <= f.bound.residual <= 1.05 * left


def test_layers_that_read_one_tensor_share_one_sketch_and_equal_values_do_not():
    class Twins(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.a(x) + self.b(x.clone()) + self.c(x.view(x.shape))

    with ActivationStats(Twins(), ["a", "b", "c"]) as stats:
        stats.forward(torch.randn(2, 3, 4))
    assert stats.groups == {"a": "a", "b": "b", "c": "a"}


def test_a_group_comes_apart_when_its_layers_stop_reading_the_same():
    class Switch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.apart = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), False

        def forward(self, x):
            return self.a(x) + self.b(2.0 * x if self.apart else x)

    net, x, y = Switch(), torch.randn(5, 4), torch.randn(6, 4)
    with ActivationStats(net, ["a", "b"], sketch="gram", rank=2) as stats:
        stats.forward(x)
        assert stats.groups == {"a": "a", "b": "a"}
        net.apart = True
        stats.forward(y)
    assert stats.groups == {"a": "a", "b": "b"}
    for name, rows in (("a", torch.cat([x, y])), ("b", torch.cat([x, 2 * y]))):
        np.testing.assert_allclose(scatter(stats.sketch(name)), moments(rows, False), rtol=1e-5, atol=1e-5)


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_layers_share_exactly_where_they_read_the_same_in_every_forward(history):
    names, groups, told = ["a", "b", "c", "d"], {}, {name: [] for name in "abcd"}
    for keys in history:
        seen = {name: (key,) for name, key in zip(names, keys, strict=True) if key}
        groups, clones = regrouped(groups, seen, names)
        for name in names:
            told[name].append(seen.get(name, ()))
        assert not set(clones) & set(clones.values())
    for x in names:
        for y in names:
            if any(told[x]) and any(told[y]):
                assert (groups[x] == groups[y]) == (told[x] == told[y])
            else:
                assert (x in groups) == bool(any(told[x]))


def test_experts_that_nothing_reached_are_reported_and_routed_rows_keep_no_mask():
    x = torch.randn(2, 6, 12)
    with ActivationStats(model(), ["q", "expert"], rank=2) as stats:
        stats.forward((x,))
    assert stats.unreached == ("expert",)
    with pytest.raises(KeyError, match="no batch has reached the layer 'expert'"):
        stats.sketch("expert")
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    with ActivationStats(model(experts=True), ["q", "expert"], rank=2) as stats:
        stats.forward({"x": x, "attention_mask": mask})
    assert stats.unmasked == {"expert"}
    assert (stats.rows("q"), stats.rows("expert")) == (6, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_named(value, kind):
    good, bad = torch.randn(2, 300, 12), torch.randn(2, 300, 12)
    net = model()
    with ActivationStats(net, ["q", "o"], sketch=kind, rank=2) as stats:
        stats.forward((good,))
        before = {n: stats.sketch(n).factors().s for n in ("q", "o")}
        handle = net.v.register_forward_hook(lambda m, a, out: out.index_fill(1, torch.tensor([4]), value))
        with pytest.raises(ValueError, match=r"layer 'o', batch 2: .*tokens \(the first is 4\) hold .*changes nothing"):
            stats.forward((bad,))
        handle.remove()
        assert stats.rows("q") == stats.rows("o") == 600
        for name, s in before.items():
            assert np.array_equal(stats.sketch(name).factors().s, s)
        stats.forward((bad,))
    assert stats.batches == 2
    assert stats.rows("q") == 1200


def test_a_forward_that_fails_half_way_counts_nowhere():
    net, x = model(), torch.randn(1, 5, 12)
    with ActivationStats(net, ["q", "o"], rank=2) as stats:
        handle = net.o.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stats.forward((x,))
        handle.remove()
        assert stats.groups == {}
        stats.forward((x,))
    assert stats.rows("q") == stats.rows("o") == 5


def test_an_input_overwritten_after_it_was_read_is_refused():
    class Inplace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(4, 4)

        def forward(self, x):
            out = self.a(x)
            x += 1.0
            return out

    with ActivationStats(Inplace(), ["a"]) as stats, pytest.raises(ValueError, match="'a' was overwritten in place"):
        stats.forward(torch.randn(3, 4))
    assert stats.groups == {}


def test_hooks_are_taken_off_in_every_case_and_those_of_others_stay():
    net, seen = model(), []
    net.q.register_forward_pre_hook(lambda *_: seen.append(1))
    stats = ActivationStats(net, ["q", "o"])

    def stopped():
        with stats:
            stats.forward((torch.randn(1, 2, 12),))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    net(torch.randn(1, 2, 12))
    assert len(seen) == 2
    assert stats.rows("q") == 2
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()) == 1


def test_half_precision_is_widened_before_anything_is_squared():
    rows = torch.full((1, 400, 12), 300.0)
    with ActivationStats(model().half(), ["q"], sketch="gram", rank=1) as stats:
        stats.masks()
        with torch.no_grad():
            stats.model(rows.half())
    np.testing.assert_allclose(scatter(stats.sketch("q")), np.full((12, 12), 400 * 300.0**2), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e12])
def test_very_small_and_large_activations_keep_their_spectrum(scale):
    torch.manual_seed(3)
    rows = torch.randn(50, 12, dtype=torch.float64) * scale
    net = model().double()
    with ActivationStats(net, ["q"], sketch="gram", rank=2, dtype="float64") as stats:
        stats.forward((rows[None],))
    truth = np.linalg.svd(rows.numpy(), compute_uv=False)[:2]
    np.testing.assert_allclose(stats.sketch("q").factors().s, truth, rtol=1e-10)


def test_inputs_of_any_batch_form_count_the_same():
    x = torch.randn(2, 3, 12)
    found = []
    for batch in ({"x": x}, (x,), [x], x, x.reshape(6, 12), x.reshape(1, 2, 3, 12)):
        with ActivationStats(model(), ["q"], sketch="gram", rank=2) as stats:
            stats.forward(batch)
        found.append(scatter(stats.sketch("q")))
    assert all(np.array_equal(one, found[0]) for one in found)
    with ActivationStats(model(), ["q"]) as stats, pytest.raises(TypeError, match="expected a dict of tensors"):
        stats.forward("text")


def test_labels_leave_tokens_out_and_masks_that_do_not_fit_are_refused():
    x = torch.randn(1, 4, 12)
    labels = torch.tensor([[-100, 5, -100, 7]])
    with ActivationStats(model(), ["q"], rank=2) as stats:
        stats.forward({"x": x, "attention_mask": torch.tensor([[1, 1, 1, 0]]), "labels": labels}, use_labels=True)
        assert stats.rows("q") == 1
        with pytest.raises(ValueError, match=r"expected one shape \(batch, tokens\)"):
            stats.masks(torch.ones(1, 4), torch.ones(1, 3))


def test_wrappers_that_expose_their_width_and_transposed_layers_are_found():
    class Quantised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 12, 3

        def forward(self, x):
            return x[..., :3]

    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 12)
    net = torch.nn.Sequential(torch.nn.Identity(), Quantised())
    with ActivationStats(net, "all-linear") as stats:
        stats.forward(torch.randn(2, 12))
    assert stats.rows("1") == 2
    assert ActivationStats(torch.nn.Sequential(conv), ["0"]).widths == {"0": 12}


def test_targets_that_match_nothing_list_what_there_is():
    with pytest.raises(ValueError, match=r"match no linear layer of Block; it has q \(1\), k \(1\)"):
        ActivationStats(model(), ["query"])
    with pytest.raises(ValueError, match="rank=13 is above the limit of layer 'q', which has 12 inputs"):
        ActivationStats(model(), ["q"], rank=13)
    assert ActivationStats(model(), r"[qk]").layers == ("q", "k")


def test_peft_scaling_divides_each_call_by_its_largest_value():
    x, y = torch.rand(1, 9, 12), 100 * torch.rand(1, 9, 12)
    with ActivationStats(model(), ["q"], sketch="gram", rank=2, normalise="peft") as stats:
        stats.forward((x,))
        stats.forward((y,))
    truth = sum(moments(z[0] / z.max().abs(), False) for z in (x, y))
    np.testing.assert_allclose(scatter(stats.sketch("q")), truth, rtol=1e-5)
    assert stats.calls["q"] == 2


def test_the_cap_on_rows_ends_the_counting():
    with ActivationStats(model(), ["q"], rank=2, rows=10) as stats:
        for _ in range(4):
            stats.forward((torch.randn(1, 6, 12),))
    assert stats.full
    assert stats.rows("q") == 12


def test_the_rows_wait_across_calls_and_the_cut_does_not_matter():
    rows = torch.randn(1, 1400, 12)
    found = []
    for size in (1, 33, 700, 1400):
        with ActivationStats(model(), ["q"], sketch="gram", rank=2) as stats:
            for part in rows.split(size, dim=1):
                stats.forward((part,))
        found.append(scatter(stats.sketch("q")))
    truth = moments(rows[0], False)
    for one in found:
        assert np.abs(one - truth).max() <= 3e-7 * np.trace(truth)
