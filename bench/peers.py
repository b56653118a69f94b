"""Who is measured: each method is a function that returns a callable for one case, which folds the batches and returns what it found.

Whatever is prepared before the callable is not timed; everything from the empty state to the final factors is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cases import Case

Batches = list[np.ndarray]


class NotMeasuredError(Exception):
    """A peer that is not installed, or that refuses such batches; the text is the reason."""


@dataclass(frozen=True)
class Found:
    """What a method found; ``kind`` is the state that was chosen, ``kept`` its rows."""

    s: np.ndarray
    vt: np.ndarray | None = None
    bound: float | None = None
    kind: str = ""
    kept: int = 0
    reason: str = ""


Run = Callable[[Batches], Found]


@dataclass(frozen=True)
class Method:
    """A way to fold a stream. ``slow`` peers are timed on fewer rows where a case says so."""

    name: str
    label: str
    make: Callable[[Case], Run]
    package: str | None = None
    center: bool = True
    slow: bool = False
    ours: bool = False
    exact: bool = True
    note: str = ""

    def prepare(self, case: Case) -> Run:
        """Import what is needed and return the callable."""
        try:
            return self.make(case)
        except ImportError as error:
            msg = f"{error.name or self.package} is not installed"
            raise NotMeasuredError(msg) from error

    @property
    def version(self) -> str:
        """Version of the package, for the description of the run."""
        return version(self.package) if self.package else ""


def _sklearn(case: Case) -> Run:
    from sklearn.decomposition import IncrementalPCA

    def run(batches: Batches) -> Found:
        model = IncrementalPCA(n_components=case.rank)
        for X in batches:
            model.partial_fit(X)
        return Found(model.singular_values_, model.components_)

    return run


def _peft(case: Case) -> Run:
    import torch
    from peft.utils.incremental_pca import IncrementalPCA

    if case.batch < case.rank:
        msg = f"every batch must have at least {case.rank} rows"
        raise NotMeasuredError(msg)

    @torch.no_grad()
    def run(batches: Batches) -> Found:
        model = IncrementalPCA(n_components=case.rank, copy=True, lowrank=True, lowrank_seed=42)
        for X in batches:
            model.partial_fit(torch.from_numpy(X))
        return Found(model.singular_values_.numpy(), model.components_.numpy())

    return run


def _gensim(case: Case) -> Run:
    import scipy.linalg
    from gensim.models.lsimodel import Projection

    d, k = case.columns, case.rank

    def project(X: np.ndarray) -> Any:
        """Factor a batch by LAPACK: gensim's own factorization is made for sparse text and slower on dense rows."""
        part = Projection(d, k)
        u, s, _ = scipy.linalg.svd(X.T, full_matrices=False, check_finite=False)
        part.u, part.s = u[:, :k].copy(), s[:k].copy()
        return part

    def run(batches: Batches) -> Found:
        model = Projection(d, k)
        for X in batches:
            model.merge(project(X))
        return Found(model.s, model.u.T)

    return run


def _floor(case: Case) -> Run:
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((case.columns, case.rank)))[0].T.astype(np.float32).copy()

    def run(batches: Batches) -> Found:
        for X in batches:
            Z = X @ V.T
            Z.T @ X
        return Found(np.zeros(0))

    return run


def _ours(kind: str) -> Callable[[Case], Run]:
    def make(case: Case) -> Run:
        import streamsvd as ss

        size = 3 * 8 * case.columns**2
        if kind == "gram" and size > 4 << 30:
            msg = f"its state needs {size / 2**30:.0f} GiB here"
            raise NotMeasuredError(msg)

        def run(batches: Batches) -> Found:
            sketch = ss.sketch(columns=case.columns, rank=case.rank, kind=kind)
            for X in batches:
                sketch = sketch.update(X)
            f = sketch.factors()
            return Found(f.s, f.vt, f.bound.residual, sketch.kind, getattr(sketch, "kept", 0), sketch.plan.reason)

        return run

    return make


PEERS = {
    "sklearn": Method("sklearn", "scikit-learn IncrementalPCA", _sklearn, "scikit-learn", slow=True),
    "peft": Method("peft", "PEFT IncrementalPCA (lowrank)", _peft, "peft", slow=True),
    "gensim": Method(
        "gensim",
        "gensim merge (uncentred)",
        _gensim,
        "gensim",
        center=False,
        slow=True,
        note="gensim cannot centre: it folds the rows as they are and is compared with their uncentred singular values; "
        "its batches are factored by LAPACK and joined by Projection.merge",
    ),
    "ours": Method("ours", "streamsvd", _ours("auto"), "streamsvd", ours=True),
    "floor": Method("floor", "floor: two rank-k GEMM passes", _floor, exact=False),
}


def find(names: str | None, kinds: str = "auto") -> list[Method]:
    """Return the methods of a comma-separated list (default: all), with one of ours for each kind."""
    chosen = names.split(",") if names else list(PEERS)
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        msg = f"no method is called {', '.join(unknown)}; the methods are {', '.join(PEERS)}"
        raise ValueError(msg)
    found = []
    for name in chosen:
        found += [ours(kind) for kind in kinds.split(",")] if name == "ours" else [PEERS[name]]
    return found


def ours(kind: str) -> Method:
    """Return our method with a kind of state: "auto", "gram" or "truncated"."""
    if kind not in ("auto", "gram", "truncated"):
        msg = f"kind {kind!r} is not known; the kinds are auto, gram, truncated"
        raise ValueError(msg)
    if kind == "auto":
        return PEERS["ours"]
    return Method(f"ours-{kind}", f"streamsvd, {kind}", _ours(kind), "streamsvd", ours=True)


def by_name(name: str) -> Method:
    """Return the method that a child process was told to run."""
    return ours(name.removeprefix("ours-")) if name.startswith("ours-") else PEERS[name]
