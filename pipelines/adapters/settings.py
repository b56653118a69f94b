"""What the adapter commands share: the model, the target layers, the calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from streamsvd.pipelines.adapters.text import batches
from streamsvd.settings import Flag, Json, Names
from streamsvd.terminal import UsageError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What all methods share."""

    model: str
    """Folder of a Hugging Face model on this machine."""
    out: str
    """Folder to write: adapter_config.json, adapter_model.safetensors (and residual/, the model to load it on)."""
    rank: int = 16
    """Rank of the adapters (their mean, where layers compete)."""
    alpha: float | None = None
    """PEFT's lora_alpha; the rank by default."""
    rslora: Flag = False
    """Scale by alpha / sqrt(rank)."""
    targets: Names = None
    """Names of layers or their ends, q_proj,v_proj; all linear ones by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Load the model as."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    picture: str | None = None
    """Picture to draw (.png, .svg, .pdf)."""
    json: Json = False
    """Print one JSON object."""

    def names(self) -> Any:
        """Return the targets as the library takes them."""
        return "all-linear" if self.targets is None else [part for word in self.targets for part in word.split(",")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Text:
    """The calibration data."""

    data: Annotated[list[str], Parameter(negative=())]
    """JSONL or Parquet files of text, or of token ids."""
    column: str | None = None
    """Column that holds it; text, content, input_ids, prompt or question by default."""
    length: int = 512
    """Tokens of a text that are read."""
    batch: int = 8
    """Texts at a time."""
    samples: int | None = None
    """Texts in all; every one by default."""

    def read(self, tokenizer: Any) -> Any:
        """Return the batches."""
        if min(self.length, self.batch, 1 if self.samples is None else self.samples) < 1:
            msg = f"--length {self.length} --batch {self.batch} --samples {self.samples}; expected numbers above 0"
            raise UsageError(msg)
        for path in self.data:
            if not Path(path).is_file():
                msg = f"there is no file {path!r} (looked from {Path.cwd()})"
                raise UsageError(msg)
        return batches(
            self.data, tokenizer, column=self.column, length=self.length, size=self.batch, samples=self.samples
        )
