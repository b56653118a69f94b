"""From the inputs of one forward to folded sketches: checked first, so that a batch counts everywhere or nowhere."""

from __future__ import annotations

from typing import Any

from streamsvd.flow.activation_inputs import Seen, taken
from streamsvd.flow.packed import Packed
from streamsvd.truncated import Truncated

Tensor = Any


def prepared(
    stats: Any, inputs: dict[str, list[Seen]], mask: Tensor | None, /
) -> tuple[dict[str, list[Tensor]], set[str]]:
    """Return the rows that count for each sketch, and the sketches that the mask did not fit.

    Raises
    ------
    ValueError
        NaN or infinity, rows too large for the products, a wrong width, or an input that was overwritten; names layer and batch.
    """
    import torch

    ready: dict[str, list[Tensor]] = {}
    unmasked: set[str] = set()
    sizes: list[tuple[str, Tensor, Tensor]] = []
    precision = getattr(torch, stats.asked.dtype)
    for name, seen in inputs.items():
        ready[name] = []
        for one in seen:
            _check(stats, name, one)
            rows, fits = taken(one.tensor, mask)
            if not fits:
                unmasked.add(name)
            if rows.shape[0] == 0:
                continue
            ready[name].append(_scaled(rows, one.tensor, stats.asked.normalise))
            if rows.device.type != "meta":
                sizes.append((name, rows, torch.linalg.vector_norm(ready[name][-1], dtype=precision)))
    # All sizes are asked for before the first is looked at, so that a GPU is waited for once.
    for name, rows, size in sizes:
        if not bool(torch.isfinite(size)):
            raise _refusal(stats, name, rows)
    return ready, unmasked


def folded(
    stats: Any, ready: dict[str, list[Tensor]], clones: dict[str, str], kinds: dict[str, str], /
) -> dict[str, Packed | Truncated]:
    """Return the sketches with the rows folded in. Truncated states are new, and checked; exact ones, which cannot fail, come last."""
    new: dict[str, Any] = {lead: _copy(stats._states[old]) for lead, old in clones.items()}
    exact: list[tuple[Packed, Tensor]] = []
    for name, parts in ready.items():
        state = new.get(name, stats._states.get(name))
        options = stats.asked.options(stats.widths[name])
        for rows in parts:
            if state is None:
                state = Truncated(options) if kinds.get(name) == "truncated" else None
            if state is None:
                state = Packed(options, rows[:0].to(_precision(stats)))
            if isinstance(state, Truncated):
                state = state.update(_array(rows.to(_precision(stats))))
            else:
                exact.append((state, rows))
        if state is not None:
            new[name] = state
    for state, rows in exact:
        state.add(rows.to(_precision(stats)))
    return new


def _copy(state: Packed | Truncated) -> Packed | Truncated:
    return state.copy() if isinstance(state, Packed) else state


def _precision(stats: Any) -> Any:
    import torch

    return getattr(torch, stats.asked.dtype)


def _array(rows: Tensor) -> Any:
    """Return rows as the engine takes them: NumPy on the CPU (no copy), torch elsewhere."""
    return rows.numpy() if rows.device.type == "cpu" else rows


def _scaled(rows: Tensor, whole: Tensor, normalise: str | None) -> Tensor:
    if normalise is None:
        return rows
    import torch

    peak = whole.float().max().abs()
    # PEFT divides by |max x|, which is 0 for inputs that are nowhere positive; those are left as they are.
    return rows.float() / torch.where(peak > 0, peak, torch.ones_like(peak))


def _check(stats: Any, name: str, one: Seen) -> None:
    if one.tensor.ndim == 0 or one.tensor.shape[-1] != stats.widths[name]:
        msg = f"layer {name!r} read an input of shape {tuple(one.tensor.shape)}; expected (..., {stats.widths[name]})"
        raise ValueError(msg)
    if one.changed:
        msg = f"the input of layer {name!r} was overwritten in place after the layer had read it; run the model without such operations"
        raise ValueError(msg)


def _refusal(stats: Any, name: str, rows: Tensor) -> ValueError:
    import torch

    where = f"layer {name!r}, batch {stats.forwards}"
    bad = ~torch.isfinite(rows).all(dim=1)
    if not bool(bad.any()):
        return ValueError(f"{where}: inputs are finite, but too large for float32 products; pass dtype='float64'")
    count, first = int(bad.sum()), int(torch.nonzero(bad)[0])
    kind = "infinity" if bool(torch.isinf(rows).any()) else "NaN"
    cure = "run the model in bfloat16 or float32" if rows.dtype is torch.float16 else "check the model and this batch"
    what = (
        f"{count} of {rows.shape[0]} tokens (the first is {first}) hold {kind} in {str(rows.dtype).rsplit('.', 1)[-1]}"
    )
    return ValueError(f"{where}: {what}; the batch changes nothing: {cure}")
