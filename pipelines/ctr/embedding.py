"""Compressed tables as torch modules: in the place of ``nn.Embedding`` and ``nn.EmbeddingBag``, and merged into the next layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamsvd.pipelines.ctr.torches import functional, nn, torch

Tensor = torch.Tensor


class CompressedEmbedding(nn.Module):
    """In the place of ``nn.Embedding(V, d)``: rows (V, r), projected to d numbers after the look-up.

    Parameters
    ----------
    rows : tensor (V, r), float, or int8 with ``scale``
    projection : tensor (r, d)
    mean : tensor (d,), optional
    padding_idx : int, optional
        Its vector is zero, as it is in ``nn.Embedding``.
    scale : tensor (V,), optional
        Of int8 rows: ``rows * scale``. These are not trained.

    Notes
    -----
    Bytes read by a look-up: ``4 r`` (``r + 4`` with int8) instead of ``4 d``. Cost: ``r d`` multiply-adds a look-up.
    """

    def __init__(
        self,
        rows: Tensor,
        projection: Tensor,
        mean: Tensor | None = None,
        *,
        padding_idx: int | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        (r, d), self.padding_idx = projection.shape, padding_idx
        self.num_embeddings, self.embedding_dim, self.rank = rows.shape[0], d, r
        self.scale: Tensor | None
        self.register_buffer("scale", scale)
        if scale is None:
            self.rows = nn.Parameter(rows)
        else:
            self.register_buffer("rows", rows)
        self.projection = nn.Parameter(projection.T.contiguous())  # (d, r), as nn.Linear has it
        self.bias = nn.Parameter(torch.zeros(d, dtype=projection.dtype) if mean is None else mean)

    def coordinates(self, index: Tensor, /) -> Tensor:
        """Return the rows alone: (..., r), what a layer takes into which the projection is merged."""
        if self.scale is None:
            return functional.embedding(index, self.rows)
        return self.rows[index].to(self.scale.dtype) * self.scale[index].unsqueeze(-1)

    def forward(self, index: Tensor) -> Tensor:
        """Return vectors (..., d)."""
        out = functional.linear(self.coordinates(index), self.projection, self.bias)
        return out if self.padding_idx is None else out * (index != self.padding_idx).unsqueeze(-1)


class CompressedEmbeddingBag(CompressedEmbedding):
    """In the place of ``nn.EmbeddingBag`` with mode sum or mean: bags are summed in r dimensions, so the projection is paid once a bag."""

    def __init__(
        self, rows: Tensor, projection: Tensor, mean: Tensor | None = None, *, mode: str = "mean", **options: Any
    ) -> None:
        if mode not in ("sum", "mean"):
            msg = f"mode={mode!r} arrived; a maximum does not commute with the projection, so expected 'sum' or 'mean'"
            raise ValueError(msg)
        super().__init__(rows, projection, mean, **options)
        self.mode = mode
        # The mean enters as often as a bag has members: their number is that of the same bags over the table [1; 0 for padding].
        self.register_buffer("member", torch.tensor([[1.0], [0.0]], dtype=projection.dtype), persistent=False)

    def forward(self, index: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Return one vector for each bag: (bags, d). Empty bags are zero."""
        pad = self.padding_idx
        padded = torch.zeros_like(index) if pad is None else (index == pad).to(index.dtype)
        members_of: Any = self.member
        rows = self.rows if self.scale is None else self.rows.to(self.scale.dtype) * self.scale.unsqueeze(-1)
        kept: dict[str, Any] = {"mode": self.mode, "per_sample_weights": per_sample_weights}
        summed = functional.embedding_bag(index, rows, offsets, padding_idx=pad, **kept)
        members = functional.embedding_bag(padded, members_of, offsets, padding_idx=1, **kept)
        return functional.linear(summed, self.projection) + members * self.bias


class MergedLookup(nn.Module):
    """Look-ups of several fields and the linear layer over them, with all projections merged into its weight.

    ``W [e_1, ..., e_F] + b = [W_1 P_1, ...] [t_1, ...] + b + sum W_f mu_f``: the same numbers up to rounding, with r instead of d numbers
    read and multiplied for each field. Only where nothing (no interaction layer, no norm) stands between tables and layer.

    Parameters
    ----------
    embeddings : sequence of CompressedEmbedding or nn.Embedding, in the order in which the layer reads them
    linear : nn.Linear, of the sum of their widths
    """

    def __init__(self, embeddings: Sequence[nn.Module], linear: nn.Linear) -> None:
        super().__init__()
        widths = [int(one.embedding_dim) for one in embeddings]  # pyright: ignore[reportArgumentType]
        if sum(widths) != linear.in_features:
            msg = (
                f"the layer takes {linear.in_features} numbers and the tables give {sum(widths)}; "
                "give the tables in the order in which it reads them"
            )
            raise ValueError(msg)
        with torch.no_grad():
            bias = torch.zeros(linear.out_features, dtype=torch.float64)
            bias = bias if linear.bias is None else bias + linear.bias.double()
            weights = []
            for part, one in zip(linear.weight.double().split(widths, dim=1), embeddings, strict=True):
                if isinstance(one, CompressedEmbedding):
                    if one.padding_idx is not None or isinstance(one, CompressedEmbeddingBag):
                        msg = (
                            "a table with padding_idx, or a bag, adds its mean to some look-ups "
                            "only, so it cannot be merged; keep its projection"
                        )
                        raise ValueError(msg)
                    bias = bias + part @ one.bias.double()
                    part = part @ one.projection.double()
                weights.append(part)
            weight = torch.cat(weights, dim=1).to(linear.weight.dtype)
            self.linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias.to(weight.dtype))
        self.embeddings = nn.ModuleList(embeddings)

    def forward(self, index: Tensor) -> Tensor:
        """Return the output of the layer (b, h) for row numbers (b, fields)."""
        found = [
            one.coordinates(index[:, k]) if isinstance(one, CompressedEmbedding) else one(index[:, k])
            for k, one in enumerate(self.embeddings)
        ]
        return self.linear(torch.cat(found, dim=1))
