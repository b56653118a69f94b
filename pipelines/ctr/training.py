"""Training and judging of click models: logloss, AUC, look-ups per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.pipelines.ctr.deepfm import DeepFM, Vocabulary
from streamsvd.pipelines.ctr.torches import functional, torch

Batch = tuple[Any, Any]


def train(
    log: Any,
    /,
    *,
    label: str = "label",
    fields: list[str] | None = None,
    dim: int = 16,
    hidden: tuple[int, ...] = (64, 32),
    epochs: int = 5,
    batch: int = 2048,
    lr: float = 2e-3,
    decay: float = 1e-5,
    seed: int = 0,
    on_epoch: Callable[[int, float], Any] | None = None,
) -> tuple[DeepFM, Vocabulary]:
    """Train a DeepFM on a click log (Parquet, frame or table) with Adam; returns the model and the vocabulary of its tables.

    Parameters
    ----------
    decay : float
        L2 penalty on all weights.
    on_epoch : function of epoch and mean training loss

    Raises
    ------
    ValueError
        For a width, epochs, batch or learning rate that is not above 0, a log without rows, and labels other than 0 and 1.

    Notes
    -----
    Memory: the log as row numbers, 8 bytes a number. The same seed gives the same model on one machine.
    """
    for name, value in (("dim", dim), ("epochs", epochs), ("batch", batch)):
        if value < 1:
            msg = f"{name}={value} arrived; expected a whole number of at least 1"
            raise ValueError(msg)
    if not (lr > 0 and all(width > 0 for width in hidden)):
        msg = f"lr={lr}, hidden={hidden} arrived; expected numbers above 0, such as lr=2e-3, hidden=(64, 32)"
        raise ValueError(msg)
    vocab = Vocabulary.of_log(log, label, fields)
    index, labels = vocab.encode(log)
    if len(labels) == 0:
        msg = "the log has no rows, and there is nothing to train on; give one with clicks"
        raise ValueError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DeepFM(vocab.sizes, dim, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=decay)
    for epoch in range(epochs):
        total = 0.0
        for x, y in shuffled(index, labels, batch, seed + epoch):
            loss = functional.binary_cross_entropy_with_logits(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(y)
        if on_epoch is not None:
            on_epoch(epoch, total / max(len(labels), 1))
    return model.eval(), vocab


def shuffled(index: Array, labels: Array, batch: int, seed: int, /) -> Iterator[Batch]:
    """Give the rows of one epoch in batches, in an order that the seed decides."""
    order = np.random.default_rng(seed).permutation(len(labels))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        yield torch.from_numpy(index[rows]), torch.from_numpy(labels[rows])


def scores(model: Any, index: Array, /, *, batch: int = 8192) -> Array:
    """Return logits (n,), float64, of row numbers (n, fields)."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(index[at : at + batch])).double().cpu().numpy() for at in range(0, len(index), batch)
        ]
    return np.concatenate(parts) if parts else np.zeros(0)


def evaluate(model: Any, index: Array, labels: Array, /) -> dict[str, float]:
    """Return AUC, logloss and look-ups per second of a model on encoded clicks."""
    began = time.perf_counter()
    found = scores(model, index)
    seconds = time.perf_counter() - began
    return {
        "auc": auc(labels, found),
        "logloss": logloss(labels, found),
        "lookups_per_second": index.size / max(seconds, 1e-9),
    }


def auc(labels: Array, found: Array, /) -> float:
    """Area under the ROC curve: the share of (click, no click) pairs in the right order, ties counting half.

    Raises
    ------
    ValueError
        All labels are alike.
    """
    from scipy.stats import rankdata

    positive = np.asarray(labels) > 0.5
    n, p = len(positive), int(positive.sum())
    if p in (0, n):
        msg = f"all {n} labels are alike, and AUC compares clicks with others; give a log that has both"
        raise ValueError(msg)
    return float((rankdata(found)[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


def logloss(labels: Array, found: Array, /) -> float:
    """Mean negative log-likelihood of labels under logits, without overflow."""
    z = np.asarray(found, np.float64)
    return float(np.mean(np.logaddexp(0.0, z) - z * np.asarray(labels, np.float64)))
