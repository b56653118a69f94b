"""A small DeepFM to judge compression by: ids of fields in, a click logit out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.flow import statefile
from streamsvd.pipelines.ctr.torches import nn, torch

Tensor = torch.Tensor


class DeepFM(nn.Module):
    """First-order terms, pairwise products of vectors, and an MLP over all vectors, summed to a logit.

    Parameters
    ----------
    vocabulary : mapping of field to number of rows, in the order of the columns
    dim : int, width d of the vectors
    hidden : widths of the MLP

    References
    ----------
    Guo et al. 2017 (DeepFM, IJCAI).
    """

    def __init__(self, vocabulary: Mapping[str, int], dim: int = 16, hidden: Sequence[int] = (64, 32)) -> None:
        super().__init__()
        self.settings = {"vocabulary": dict(vocabulary), "dim": dim, "hidden": list(hidden)}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(rows, dim) for name, rows in vocabulary.items()})
        self.first = nn.ModuleDict({name: nn.Embedding(rows, 1) for name, rows in vocabulary.items()})
        for name in vocabulary:
            nn.init.normal_(self.embeddings[name].weight, std=0.05)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(self.first[name].weight)  # pyright: ignore[reportArgumentType]
        widths = [dim * len(vocabulary), *hidden]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, index: Tensor) -> Tensor:
        """Return logits (b,) for row numbers (b, fields)."""
        e = torch.stack([one(index[:, k]) for k, one in enumerate(self.embeddings.values())], dim=1)
        first = torch.cat([one(index[:, k]) for k, one in enumerate(self.first.values())], dim=1)
        pairs = 0.5 * (e.sum(1).square() - e.square().sum(1)).sum(1)
        return self.bias + first.sum(1) + pairs + self.mlp(e.flatten(1)).squeeze(1)

    def tables(self) -> dict[str, Array]:
        """Return the embedding tables (V, d) by field, as `compress_tables` takes them."""
        return {name: one.weight.detach().cpu().numpy() for name, one in self.embeddings.items()}  # pyright: ignore[reportCallIssue]

    def save(self, folder: str | Path, vocab: Vocabulary, /) -> None:
        """Write weights, settings and vocabulary to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: x.detach().cpu().numpy() for name, x in self.state_dict().items()}
        statefile.write(
            folder / "model.svd",
            "ctr-deepfm",
            arrays,
            {"settings": self.settings, "fields": list(vocab.ids), "label": vocab.label},
        )
        vocab.table().write_parquet(folder / "vocabulary.parquet")

    @classmethod
    def load(cls, folder: str | Path, /) -> tuple[DeepFM, Vocabulary, str]:
        """Return model, vocabulary and fingerprint of what `save` wrote."""
        import polars as pl

        folder = Path(folder)
        _, arrays, meta = statefile.read(folder / "model.svd", kinds=("ctr-deepfm",))
        settings = meta["settings"]
        # The file keeps its keys sorted, and the order of the fields is that of the columns.
        settings["vocabulary"] = {name: settings["vocabulary"][name] for name in meta["fields"]}
        model = cls(**settings)
        model.load_state_dict({name: torch.tensor(x) for name, x in arrays.items()})
        rows = pl.read_parquet(folder / "vocabulary.parquet")
        return (
            model,
            Vocabulary.of_table(rows, meta["label"], meta["settings"]["vocabulary"]),
            statefile.digest(folder / "model.svd")[:16],
        )


class Vocabulary:
    """Which row of its table each id of a field has; row 0 is for ids that training has not seen.

    Attributes
    ----------
    label : str, the column with 0 or 1
    ids : dict of polars Series by field: ids in the order of rows 1, 2, ...
    """

    def __init__(self, label: str, ids: Mapping[str, Any]) -> None:
        self.label, self.ids = label, dict(ids)

    @classmethod
    def of_log(cls, log: Any, label: str, fields: Sequence[str] | None = None) -> Vocabulary:
        """Read the ids of all fields off a click log; by default all its columns but the label."""
        import polars as pl

        from streamsvd.pipelines.ctr.counts import _lazy

        frame = _lazy(log)
        names = frame.collect_schema().names()
        if label not in names:
            msg = (
                f"the log has no column {label!r} (it has {', '.join(names)}); "
                "name the column that holds 0 or 1: label='click'"
            )
            raise ValueError(msg)
        fields = [name for name in names if name != label] if fields is None else list(fields)
        missing = [name for name in fields if name not in names]
        if missing:
            msg = f"the log has no column {', '.join(missing)}; it has {', '.join(names)}"
            raise ValueError(msg)
        queries = [frame.select(pl.col(name).drop_nulls().unique().sort()) for name in fields]
        found = pl.collect_all(queries, engine="streaming")
        return cls(label, {name: one[name] for name, one in zip(fields, found, strict=True)})

    @classmethod
    def of_table(cls, rows: Any, label: str, fields: Mapping[str, int]) -> Vocabulary:
        """Restore what `table` made."""
        import polars as pl

        ids = {}
        for name in fields:
            own = rows.filter(pl.col("field") == name).sort("row")
            ids[name] = own["id"].cast(getattr(pl, own["type"][0])) if len(own) else pl.Series([], dtype=pl.Int64)
        return cls(label, ids)

    def table(self) -> Any:
        """Return all ids as one frame ``field, row, id (text), type``."""
        import polars as pl

        parts = [
            pl.DataFrame({"id": ids.cast(pl.String)}).select(
                pl.lit(name).alias("field"),
                pl.int_range(1, pl.len() + 1).alias("row"),
                "id",
                pl.lit(str(ids.dtype.base_type())).alias("type"),
            )
            for name, ids in self.ids.items()
        ]
        return pl.concat(parts)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each table."""
        return {name: len(ids) + 1 for name, ids in self.ids.items()}

    def rows(self, name: str, ids: Any, /) -> Array:
        """Return the row of each id of one field: array (n,), int64; 0 for an id that is new or null."""
        import polars as pl

        known = self.ids[name]
        frame = pl.DataFrame({"id": known, "row": np.arange(1, len(known) + 1)})
        found = pl.DataFrame({"id": pl.Series(ids)}).with_columns(pl.col("id").cast(known.dtype, strict=False))
        return found.join(frame, on="id", how="left", maintain_order="left")["row"].fill_null(0).to_numpy()

    def encode(self, log: Any, /) -> tuple[Array, Array]:
        """Return row numbers (n, fields), int64, and labels (n,), float32. Memory: 8 bytes a number."""
        from streamsvd.pipelines.ctr.counts import _lazy

        names = [self.label, *self.ids]
        frame = _lazy(log)
        missing = [name for name in names if name not in frame.collect_schema().names()]
        if missing:
            msg = (
                f"the log lacks {', '.join(missing)}, which this model was trained "
                f"on; it has {', '.join(frame.collect_schema().names())}"
            )
            raise ValueError(msg)
        data = frame.select(names).collect(engine="streaming")
        labels = data[self.label].cast(float).to_numpy().astype(np.float32)
        if not np.isin(labels, (0.0, 1.0)).all():
            msg = (
                f"label {self.label!r} has other values than 0 and 1, such as "
                f"{labels[~np.isin(labels, (0.0, 1.0))][0]}; give 0 or 1"
            )
            raise ValueError(msg)
        return np.column_stack([self.rows(name, data[name]) for name in self.ids]), labels

    def counts(self, log: Any, /, **options: Any) -> dict[str, Array]:
        """Return how often each row is looked up by a log, array (V,) by field, by one streaming query; options of `count_ids`."""
        from streamsvd.pipelines.ctr.counts import count_ids

        found = count_ids(log, list(self.ids), **options)
        return {
            name: np.bincount(self.rows(name, one["id"]), one["count"].to_numpy(), minlength=self.sizes[name])
            for name, one in found.items()
        }

    def __repr__(self) -> str:
        return f"Vocabulary({json.dumps(self.sizes)})"
