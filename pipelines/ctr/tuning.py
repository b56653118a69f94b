"""Fine-tuning by feature mimicking: a compressed model learns to answer as the original does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamsvd.pipelines.ctr.torches import functional, torch


def mimic(
    original: Any,
    compressed: Any,
    batches: Iterable[Any],
    /,
    *,
    lr: float = 1e-3,
    labels: float = 0.5,
    only: str | None = None,
) -> list[float]:
    """Train a compressed model, in place, on the outputs of the original.

    Parameters
    ----------
    original, compressed : nn.Module
        Models of the same inputs and outputs.
    batches : iterable of inputs, or of (inputs, labels)
        One pass is made; give it several times for several epochs.
    lr : float, of Adam
    labels : float in [0, 1]
        Share of the loss that is the logloss of the labels, where there are any; the rest is the squared difference of the outputs.
    only : str, optional
        Train only parameters with this in their name: "embeddings" leaves the layers as they are.

    Returns
    -------
    losses : list of float, one for each batch
    """
    if not 0.0 <= labels <= 1.0:
        msg = f"labels={labels} arrived; expected the share of the loss that the labels have, 0 to 1"
        raise ValueError(msg)
    chosen = [p for name, p in compressed.named_parameters() if only is None or only in name]
    if not chosen:
        msg = (
            f"no parameter has {only!r} in its name; there are "
            f"{', '.join(name for name, _ in compressed.named_parameters())}"
        )
        raise ValueError(msg)
    optimizer, losses = torch.optim.Adam(chosen, lr=lr), []
    original.eval()
    compressed.train()
    for batch in batches:
        x, y = batch if isinstance(batch, tuple | list) else (batch, None)
        with torch.no_grad():
            wanted = original(x)
        got = compressed(x)
        loss = functional.mse_loss(got, wanted)
        if y is not None and labels > 0:
            loss = (1.0 - labels) * loss + labels * functional.binary_cross_entropy_with_logits(got, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    compressed.eval()
    return losses
