"""Covariances of layers' inputs as metrics: from exact or truncated sketches, damped, shared by the layers that share an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from streamsvd.arrays import Array, from_numpy, to_numpy
from streamsvd.pipelines.adapters.metrics import Covariance, LowRank, Metric


def covariance_of(sketch: Any, /) -> Array:
    """Return ``X'X / weight`` (columns, columns) in float64 of an exact sketch (``Gram``).

    Raises
    ------
    ValueError
        For a truncated sketch.
    """
    if sketch.kind != "gram":
        msg = (
            "the statistics are truncated, so they hold no exact covariance; write covariance='lowrank', or gather them with "
            "ActivationStats(..., sketch='gram')"
        )
        raise ValueError(msg)
    core = sketch._folded()
    low = to_numpy(core.scatter)
    full = np.tril(low) + np.tril(low, -1).T
    return from_numpy(np.ldexp(full, 2 * core.exponent) / core.moments.weight, like=core.scatter)


def lowrank_of(sketch: Any, kept: int, /) -> tuple[Array, np.ndarray, float]:
    """Return V (columns, k), w (k,) and the mean of the remaining eigenvalues of ``X'X / weight``, from any sketch."""
    limit = getattr(sketch, "kept", sketch.columns)
    f = sketch.factors(min(kept, limit, sketch.columns))
    s = to_numpy(f.s).astype(np.float64)
    w = s * s / float(f.weight)
    total = float(f.norm) ** 2 / float(f.weight)
    rest = sketch.columns - w.size
    return f.vt.T, w, max(0.0, total - float(w.sum())) / rest if rest else 0.0


def damped(C: Array, damping: float, /) -> Covariance:
    """Return ``C + damping mean(diag C) I`` as a metric."""
    host = to_numpy(C)
    out = host.copy()
    out[np.diag_indices_from(out)] += damping * float(np.mean(np.diag(host)))
    return Covariance(from_numpy(out, like=C))


class LayerMetrics:
    """Metrics of layers by name; layers that share an input share the one that was made last, so a single one is held."""

    def __init__(
        self,
        sketch: Callable[[str], Any],
        lead: Mapping[str, str],
        damping: float,
        kept: int | None,
        calls: Mapping[str, int],
    ) -> None:
        self.sketch, self.lead, self.damping, self.kept, self.calls = sketch, lead, damping, kept, calls
        self.held: tuple[Any, Metric | None] = (None, None)
        self.plains: Any = WeakValueDictionary()

    def __call__(self, name: str, weight: Array, /) -> Metric:
        """Return the damped metric of a layer, on the device of its weight."""
        # Covariances of a layer's inputs lie where the layer does; its arithmetic may be NumPy's.
        key = (self.lead[name], type(weight), weight.shape[1])
        if self.held[0] != key or self.held[1] is None:
            self.held = (key, self._made(name, weight))
        found = self.held[1]
        assert found is not None
        return found

    def plain(self, name: str) -> Any:
        """Return the covariance, undamped, float32: the same tensor for layers that share it, for as long as somebody holds it."""
        import torch

        found = self.plains.get(self.lead[name])
        if found is None:
            found = torch.as_tensor(self._covariance(name)).to(torch.float32)
            self.plains[self.lead[name]] = found
        return found

    def _covariance(self, name: str) -> Array:
        sketch = self.sketch(name)
        return covariance_of(sketch) * self._share(name, sketch)

    def _share(self, name: str, sketch: Any) -> float:
        return float(sketch.rows) / self.calls[name] if name in self.calls else 1.0

    def _made(self, name: str, like: Array) -> Metric:
        if self.kept is None:
            C = to_numpy(self._covariance(name))
            _positive(float(np.trace(C)))
            return damped(from_numpy(C, like=like), self.damping)
        sketch = self.sketch(name)
        V, w, tail = lowrank_of(sketch, self.kept)
        w, tail = w * self._share(name, sketch), tail * self._share(name, sketch)
        total = float(w.sum()) + tail * (V.shape[0] - w.size)
        _positive(total)
        shift = self.damping * total / V.shape[0]
        # C' = V diag(w + shift) V' + (tail + shift)(I - V V')
        V64 = from_numpy(to_numpy(V).astype(np.float64), like=like)
        return LowRank(V64, from_numpy(w - tail, like=like), tail + shift)


def _positive(trace: float) -> None:
    if not trace > 0.0:
        msg = "all inputs were zero, so there is no covariance to orient by; leave it out of targets or give other data"
        raise ValueError(msg)
