"""What a graph's refresh delivers: factors with the ids of their rows, aligned to the version before, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from streamsvd.arrays import Array


@dataclass(frozen=True, eq=False)
class GraphFactors:
    """The normalised graph as ``N ~ u core v'``: u (m, k), v (n, k) orthonormal but for rows without edges, which are zero.

    The singular vectors are ``u R'`` and ``v R'`` with R = ``rotation``, and ``core = R' diag(s) R``: R turns each version to the one
    before (orthogonal Procrustes problem, Schönemann 1966), so that a model which reads the factors sees no rotations. R = I at first.

    Attributes
    ----------
    users, items : Arrow array (m,), (n,), the id of each row
    s : array (k,), singular values, descending
    u, v : array (m, k), (n, k), float32
    rotation : array (k, k), float64
    item_scale : array (n,), float64, ``sqrt(degree + tau)``, 0 where an item has no edges
    version : int, counts the refreshes
    info : dict, the manifest: edges, degrees, components, t, tau, participation, energy and residual estimates, alignment
    """

    users: pa.Array
    items: pa.Array
    s: np.ndarray
    u: np.ndarray
    v: np.ndarray
    rotation: np.ndarray
    item_scale: np.ndarray
    version: int = 1
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.s.size

    @cached_property
    def core(self) -> np.ndarray:
        """The k x k matrix between u and v; diagonal in the first version."""
        return (self.rotation.T * self.s) @ self.rotation

    @cached_property
    def u_mul_s(self) -> np.ndarray:
        """LightGCL's ``U S``, array (m, k), float32."""
        return self.u @ self.core.astype(np.float32)

    @cached_property
    def v_mul_s(self) -> np.ndarray:
        """LightGCL's ``V S``, array (n, k), float32."""
        return self.v @ self.core.astype(np.float32)

    @property
    def ut(self) -> np.ndarray:
        """LightGCL's ``U'``, array (k, m)."""
        return self.u.T

    @property
    def vt(self) -> np.ndarray:
        """LightGCL's ``V'``, array (k, n)."""
        return self.v.T

    def tensors(self, device: Any = "cpu") -> tuple[Array, Array, Array, Array]:
        """Return LightGCL's ``(u_mul_s, v_mul_s, ut, vt)`` as torch tensors."""
        from streamsvd.pipelines.graph.io import need_torch

        torch = need_torch("tensors()")
        return tuple(
            torch.tensor(np.ascontiguousarray(x), device=device) for x in (self.u_mul_s, self.v_mul_s, self.ut, self.vt)
        )
