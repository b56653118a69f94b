"""Channel estimation: sparse Bayesian learning with Kronecker-structured dictionaries, for frames, streams and growing pilots."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Estimate", "KronSBL", "Options"]

if TYPE_CHECKING:
    from streamsvd.pipelines.channel.estimate import Estimate
    from streamsvd.pipelines.channel.model import KronSBL
    from streamsvd.pipelines.channel.options import Options
else:

    def __getattr__(name):
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}"
            raise AttributeError(msg)
        from streamsvd.pipelines.channel import model

        return getattr(model, name)
