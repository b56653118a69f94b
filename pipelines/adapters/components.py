"""The leading principal components of an input, from its sketch, at the price of a few products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import fix_signs, small_eigh, to_numpy
from streamsvd.flow.packed import Packed

Tensor = Any
SMALL, LAPACK, OVERSAMPLE, SETTLED = 192, 768, 8, 1e-5


@dataclass(frozen=True, eq=False)
class Components:
    """Leading components of one input at one moment.

    Attributes
    ----------
    vt : array (k, d), float64, orthonormal rows, signs fixed
    power : array (k,), float64, ``|A v|^2`` of each row v: the energy that is in the sketch along it, a lower bound of the truth
    energy : float, ``|A|_F^2``
    rows : int
    held : float or None, the energy that the sketch has along the components of the earlier reading (a lower bound, as above)
    """

    vt: np.ndarray
    power: np.ndarray
    energy: float
    rows: int
    held: float | None = None

    @property
    def ratio(self) -> np.ndarray:
        """Explained variance ratio, array (k,)."""
        return self.power / self.energy if self.energy > 0 else np.zeros_like(self.power)


def components(state: Any, k: int, /, *, before: Components | None = None, seed: int = 0) -> Components:
    """Return the k leading components of a sketch.

    Parameters
    ----------
    state : Packed or Truncated
    k : int
    before : Components, optional
        An earlier reading of the same stream, to start from.

    Notes
    -----
    Exact moments S of up to 768 columns: LAPACK's leading part of the eigenvectors. Wider ones, and those with a start: a block
    Krylov space with 8 vectors more than asked for (Musco and Musco 2015), in float32, until one more block gains less than 1e-5 of
    the energy of the k leading Ritz values (what is then missing was below 1e-6 on every input measured), and a last Rayleigh-Ritz
    step in float64.
    The energies are those of the sketch along the vectors returned, whether or not the iteration has converged.
    """
    import torch

    old = None if before is None else before.vt
    if not isinstance(state, Packed):
        f = state.factors(min(state.kept, state.columns))
        s, vt = (to_numpy(x).astype(np.float64) for x in (f.s, f.vt))
        held = None if old is None else float(np.sum(np.square((vt @ old.T) * s[:, None])))
        return Components(vt[:k], s[:k] ** 2, float(f.energy), f.rows, held)
    S = state.matrix()
    start = None if old is None else torch.from_numpy(np.ascontiguousarray(old.T)).to(S.device, S.dtype)
    held = None if start is None else float(((S @ start) * start).sum())
    values, vectors = _eigen(S, k, start, seed)
    vt = fix_signs(np.ascontiguousarray(to_numpy(vectors[:, :k]).T))
    return Components(vt, np.maximum(to_numpy(values[:k]), 0.0), float(S.diagonal().sum()), state.rows, held)


def _eigen(S: Tensor, k: int, start: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return the k leading eigenvalues, descending, and vectors (d, k), float64."""
    import torch

    d = S.shape[0]
    if S.device.type == "cpu" and d <= (LAPACK if start is None else SMALL):
        values, vectors = small_eigh(S.numpy(), top=k)
        return torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(np.ascontiguousarray(vectors))
    if d <= max(SMALL, 3 * (k + OVERSAMPLE)):
        values, vectors = torch.linalg.eigh(S)
        return values.flip(0)[:k], vectors.flip(1)[:, :k]
    V = torch.linalg.qr(_leading(S, k, start, seed).double())[0]
    values, turn = torch.linalg.eigh(V.T @ (S @ V))
    return values.flip(0), V @ turn.flip(1)


def _leading(S: Tensor, k: int, start: Tensor | None, seed: int) -> Tensor:
    """Return Ritz vectors (d, k), float32, of a block Krylov space that grows until their energy has settled."""
    import torch

    # Scaled, so that float32 holds it.
    T = (S / S.diagonal().mean().clamp_min(torch.finfo(S.dtype).tiny)).float()
    d, held = T.shape[0], 0 if start is None else start.shape[1]
    width = max(k, held) + OVERSAMPLE
    drawn = torch.randn(d, width - held, generator=torch.Generator().manual_seed(seed)).to(T.device)
    basis = torch.linalg.qr(drawn if start is None else torch.cat([start.float(), drawn], dim=1))[0]
    image, last, best = T @ basis, -1.0, basis[:, :k]
    for _ in range(max(1, d // width - 1)):
        Q = image[:, -width:]
        for _ in range(2):
            # Normalised in between: of an input with few directions the first round leaves rounding, which is not orthogonal to anything.
            Q = torch.linalg.qr(Q - basis @ (basis.T @ Q))[0]
        basis, image = torch.cat([basis, Q], dim=1), torch.cat([image, T @ Q], dim=1)
        values, turn = torch.linalg.eigh((basis.T @ image).double())
        best, now = basis @ turn[:, -k:].float(), float(values[-k:].sum())
        if now - last <= SETTLED * abs(now):
            break
        last = now
    return best
