"""Components of wide inputs by block Krylov against LAPACK in float64: energy, orthonormality, an earlier reading to start from."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsvd.flow.packed import Packed  # noqa: E402
from streamsvd.options import Options  # noqa: E402
from streamsvd.pipelines.adapters.components import LAPACK, components  # noqa: E402


def packed(power, size=1.0, d=LAPACK + 80, n=1500):
    draw = torch.Generator().manual_seed(3)
    scale = torch.arange(1, d + 1, dtype=torch.float32) ** -power
    X = size * torch.randn(n, d, generator=draw) * scale[torch.randperm(d, generator=draw)]
    state = Packed(Options(columns=d, rank=8, kept=16, center=True), X)
    return state, X


@pytest.mark.parametrize(("power", "size"), [(0.0, 1.0), (0.3, 1e-12), (1.0, 1.0), (3.0, 1e12)])
def test_wide_inputs_lose_less_than_1e_5_of_the_energy_on_any_spectrum(power, size):
    state, X = packed(power, size)
    state.add(X)
    S = state.matrix().numpy()
    best = np.linalg.eigvalsh(S)[::-1][:32].sum()
    found = components(state, 32)
    assert np.linalg.norm(found.vt @ found.vt.T - np.eye(32)) <= 1e-10
    np.testing.assert_allclose(
        found.power, np.sum((found.vt @ S) * found.vt, axis=1), rtol=1e-9, atol=1e-13 * found.power[0]
    )
    # A flat spectrum has no leading subspace; what is asked for is its energy.
    assert found.power.sum() >= (1 - (1e-5 if power >= 0.3 else 1e-3)) * best


def test_an_earlier_reading_starts_the_next_and_is_judged_by_it():
    state, X = packed(0.6)
    state.add(X[:600])
    before = components(state, 24)
    state.add(X[600:])
    now = components(state, 24, before=before)
    S = state.matrix().numpy()
    np.testing.assert_allclose(now.held, np.sum((before.vt @ S) * before.vt), rtol=1e-9)
    assert now.held < now.power.sum()
    assert now.power.sum() >= (1 - 1e-5) * np.linalg.eigvalsh(S)[::-1][:24].sum()


def test_fewer_directions_than_asked_for():
    state, X = packed(0.5, n=10)
    state.add(X)
    found = components(state, 32)
    assert found.power[9:].max() <= 1e-6 * found.power[0]  # what float32 leaves
    assert np.isfinite(found.vt).all()
    np.testing.assert_allclose(found.power.sum(), found.energy, rtol=1e-6)
