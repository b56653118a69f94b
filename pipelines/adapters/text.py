"""Text (or token ids) from JSONL and Parquet files as batches for a local Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GUESSES = ("text", "content", "input_ids", "prompt", "question")


def load_model(folder: str, /, *, dtype: str = "auto", device: str = "cpu") -> tuple[Any, Any]:
    """Return the model and the tokenizer (None where there is none) of a local folder; nothing is downloaded.

    Raises
    ------
    ImportError
        Without transformers.
    FileNotFoundError
        The folder is none, or holds no ``config.json``.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        msg = "models are read by transformers: pip install 'streamsvd[adapters]'"
        raise ImportError(msg) from error
    if not (Path(folder) / "config.json").is_file():
        msg = f"{folder!r} holds no config.json; give the folder of a Hugging Face model that is on this machine"
        raise FileNotFoundError(msg)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    causal = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
    kind: Any = AutoModelForCausalLM if causal else AutoModel
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    model = kind.from_pretrained(folder, local_files_only=True, dtype=wanted, use_safetensors=True).to(device).eval()
    has_tokenizer = any((Path(folder) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None


def records(path: str, column: str | None, /) -> Iterator[Any]:
    """Yield the values of one column of a Parquet or JSONL file, nulls left out.

    Raises
    ------
    ValueError
        No such column (those that exist are listed), another suffix, or a line that is no JSON object.
    """
    suffix = Path(path).suffix
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        name = _chosen(column, file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=256, columns=[name]):
            yield from (value for value in batch.column(0).to_pylist() if value is not None)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = _row(line, path, number)
                    value = row[_chosen(column, list(row), f"{path}, line {number}")]
                    if value is not None:
                        yield value
    else:
        msg = f"{path} is neither Parquet (.parquet) nor JSON lines (.jsonl); convert it to one of these"
        raise ValueError(msg)


def batches(
    paths: Sequence[str], tokenizer: Any, /, *, column: str | None, length: int, size: int, samples: int | None
) -> Iterator[dict[str, Any]]:
    """Yield dicts of ``input_ids`` and ``attention_mask`` (size, at most length), cut on the right and padded.

    Values that are lists of numbers are token ids; texts need the model's tokenizer.
    """
    waiting: list[list[int]] = []
    count = 0
    for path in paths:
        for value in records(path, column):
            if samples is not None and count >= samples:
                break
            ids = _ids(value, tokenizer, length, path)
            if ids:
                waiting.append(ids)
                count += 1
            if len(waiting) == size:
                yield _padded(waiting)
                waiting = []
    if waiting:
        yield _padded(waiting)


def _ids(value: Any, tokenizer: Any, length: int, path: str) -> list[int]:
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return value[:length]
    if not isinstance(value, str):
        msg = f"{path}: the column holds {type(value).__name__}; expected text, or lists of token ids: name another with --column"
        raise ValueError(msg)
    if tokenizer is None:
        msg = f"{path}: the column holds text, and the model's folder has no tokenizer; add one, or name a column of token ids"
        raise ValueError(msg)
    return list(tokenizer(value, truncation=True, max_length=length)["input_ids"])


def _padded(rows: list[list[int]]) -> dict[str, Any]:
    import torch

    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def _row(line: str, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        msg = f"{path}, line {number}: no JSON ({error}); expected one object on each line"
        raise ValueError(msg) from error
    if not isinstance(row, dict):
        msg = f"{path}, line {number}: a {type(row).__name__}; expected an object such as {{'text': '...'}}"
        raise ValueError(msg)
    return row


def _chosen(column: str | None, there: list[str], where: str) -> str:
    found = column if column is not None else next((name for name in GUESSES if name in there), None)
    if found not in there:
        asked = (
            f"there is no column {column!r}"
            if column is not None
            else f"none of the usual columns ({', '.join(GUESSES)}) is there"
        )
        msg = f"{where}: {asked}; there are {', '.join(there) or 'none'}: name one with --column"
        raise ValueError(msg)
    return found
