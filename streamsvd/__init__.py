"""Streaming SVD and PCA: a stream of rows is folded into a small state whose distance from the truth is known.

>>> import numpy as np
>>> import streamsvd as ss
>>> rows = np.random.default_rng(0).standard_normal((1000, 20)) / np.arange(1, 21)
>>> state = ss.sketch(columns=20, rank=4)
>>> for batch in np.array_split(rows, 10):
...     state = state.update(batch)
>>> factors = state.factors()
>>> factors.vt.shape
(4, 20)
>>> ss.verify.residual(rows, factors.vt, mean=factors.mean) <= factors.bound.residual
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# The two estimators are no part of `from streamsvd import *`, which would then fail without scikit-learn.
__all__ = [
    "Bound",
    "Factors",
    "Follow",
    "Gram",
    "Robust",
    "Sketch",
    "Truncated",
    "__version__",
    "batches",
    "fit",
    "load",
    "robust_svd",
    "save",
    "scan_scores",
    "sketch",
    "svd",
    "transform",
    "verify",
    "widen",
]

if TYPE_CHECKING:
    from streamsvd import verify
    from streamsvd.estimators import StreamingPCA as StreamingPCA
    from streamsvd.estimators import StreamingSVD as StreamingSVD
    from streamsvd.factors import Bound, Factors
    from streamsvd.flow.batches import batches
    from streamsvd.flow.checkpoint import load, save
    from streamsvd.flow.fold import fit
    from streamsvd.flow.follow import Follow
    from streamsvd.flow.scan import scan_scores
    from streamsvd.flow.scores import transform
    from streamsvd.gram import Gram
    from streamsvd.planner import Sketch, sketch, widen
    from streamsvd.randomized import svd
    from streamsvd.robust import Robust, robust_svd
    from streamsvd.truncated import Truncated
else:
    # Every name is imported at first use, so that `import streamsvd` costs next to nothing.
    _HOME = {
        "Bound": "factors",
        "Factors": "factors",
        "Follow": "flow.follow",
        "Gram": "gram",
        "Robust": "robust",
        "Sketch": "planner",
        "StreamingPCA": "estimators",
        "StreamingSVD": "estimators",
        "Truncated": "truncated",
        "batches": "flow.batches",
        "fit": "flow.fold",
        "load": "flow.checkpoint",
        "robust_svd": "robust",
        "save": "flow.checkpoint",
        "scan_scores": "flow.scan",
        "sketch": "planner",
        "svd": "randomized",
        "transform": "flow.scores",
        "verify": "verify",
        "widen": "planner",
    }

    def __getattr__(name):
        if name not in _HOME:
            msg = f"module 'streamsvd' has no attribute {name!r}; its public names are {', '.join(sorted(_HOME))}"
            raise AttributeError(msg)
        try:
            module = import_module(f"streamsvd.{_HOME[name]}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "sklearn":
                raise
            msg = f'streamsvd.{name} needs scikit-learn, which is not installed: run pip install "streamsvd[sklearn]"'
            raise ImportError(msg) from error
        value = module if name == "verify" else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_HOME})
