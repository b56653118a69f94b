"""Activation statistics as one state file, back again, and two of them merged."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamsvd.flow.packed import Packed
from streamsvd.truncated import Truncated

if TYPE_CHECKING:
    import os

KIND = "activations"


def parts(stats: Any, /) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return named arrays (tensors or NumPy) and JSON-ready values, from which ``restore`` makes the same statistics."""
    arrays: dict[str, Any] = {}
    states: dict[str, Any] = {}
    for number, (name, state) in enumerate(stats._states.items()):
        own, meta = state.parts()
        arrays |= {f"{number}.{key}": value for key, value in own.items()}
        states[name] = {"kind": state.kind, "number": number, "meta": meta}
    meta = {
        "asked": asdict(stats.asked),
        "widths": stats.widths,
        "groups": stats.groups,
        "kinds": stats.kinds,
        "calls": stats.calls,
        "counts": [stats.batches, stats.forwards],
        "unmasked": sorted(stats.unmasked),
        "fingerprint": stats.fingerprint,
        "states": states,
    }
    return arrays, meta


def restore(cls: Any, arrays: dict[str, Any], meta: dict[str, Any], model: Any, options: dict[str, Any], /) -> Any:
    """Return statistics from their parts (NumPy arrays), for the model they were taken of."""
    from streamsvd.flow.activation_inputs import find_layers, fingerprint

    widths = {name: int(width) for name, width in meta["widths"].items()}
    there = dict(model.named_modules())
    missing = [name for name in widths if name not in there]
    if missing or fingerprint(model, widths) != meta["fingerprint"]:
        why = f"it has no layer {missing[0]!r}" if missing else "its layers have other shapes or weights"
        msg = f"these statistics were taken of another model than this {type(model).__name__}: {why}; give the model they were taken of"
        raise ValueError(msg)
    find_layers(model, list(widths))
    asked = meta["asked"]
    rank = asked.pop("rank")
    stats = cls(model, list(widths), **asked, **options)
    stats.asked = type(stats.asked)(rank=rank, **asked)
    stats.widths = widths
    stats.groups, stats.kinds, stats.calls = dict(meta["groups"]), dict(meta["kinds"]), dict(meta["calls"])
    (stats.batches, stats.forwards), stats.unmasked = meta["counts"], set(meta["unmasked"])
    for name, entry in meta["states"].items():
        prefix = f"{entry['number']}."
        own = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        stats._states[name] = _state(entry["kind"], stats.asked.options(widths[name]), own, entry["meta"], there[name])
    return stats


def write(stats: Any, path: str | os.PathLike[str], /) -> None:
    """Write the statistics, bit for bit, rows that wait included."""
    from streamsvd.flow import statefile
    from streamsvd.flow.checkpoint import plain, storable

    arrays, meta = parts(stats)
    statefile.write(path, KIND, {name: storable(name, value) for name, value in arrays.items()}, plain(meta, "meta"))


def read(cls: Any, path: str | os.PathLike[str], model: Any, options: dict[str, Any], /) -> Any:
    """Read statistics for a model; see ``ActivationStats.load``."""
    from streamsvd.flow import statefile
    from streamsvd.flow.checkpoint import restored

    _, arrays, meta = statefile.read(path, kinds=(KIND,))
    return restore(cls, arrays, restored(meta), model, options)


def merged(a: Any, b: Any, /) -> Any:
    """Return the statistics of both together; neither is changed."""
    if a.fingerprint != b.fingerprint or a.widths != b.widths:
        msg = "these statistics are of different models or targets, and cannot be merged; take both of the same model"
        raise ValueError(msg)
    if a.asked != b.asked:
        name = next(n for n, value in asdict(a.asked).items() if value != getattr(b.asked, n))
        msg = f"cannot merge statistics taken with {name}={getattr(a.asked, name)} and {name}={getattr(b.asked, name)}; make both alike"
        raise ValueError(msg)
    out = type(a)(a.model, list(a.widths), rows=a.cap, memory=a.memory)
    out.asked, out.widths = a.asked, a.widths
    homes: dict[tuple[str | None, str | None], str] = {}
    for name in a.widths:
        home = (a.groups.get(name), b.groups.get(name))
        if home == (None, None):
            continue
        if home not in homes:
            homes[home] = name
            out._states[name] = _joined(*(s._states.get(lead) for s, lead in zip((a, b), home, strict=True)))
            out.kinds[name] = out._states[name].kind
        out.groups[name] = homes[home]
    out.calls = {name: a.calls[name] + b.calls[name] for name in a.widths}
    out.batches, out.forwards, out.unmasked = a.batches + b.batches, a.forwards + b.forwards, a.unmasked | b.unmasked
    return out


def _joined(x: Any, y: Any) -> Any:
    if x is None or y is None:
        one = x if y is None else y
        return one.copy() if isinstance(one, Packed) else one
    if x.kind != y.kind:
        msg = f"cannot merge {x.kind} with {y.kind} sketches; take both statistics with the same sketch= and memory="
        raise ValueError(msg)
    if isinstance(x, Truncated):
        return x.merge(y)
    out = x.copy()
    out.merge(y)
    return out


def _state(kind: str, options: Any, arrays: dict[str, Any], meta: dict[str, Any], module: Any) -> Any:
    import torch

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if kind == "truncated":
        if device.type != "cpu":
            arrays = {name: torch.as_tensor(value, device=device) for name, value in arrays.items()}
        return Truncated.from_parts(arrays, meta)
    # A copy, since arrays of a file may be read-only, which torch does not know.
    tensors = {name: torch.tensor(value, device=device) for name, value in arrays.items()}
    return Packed.restore(options, tensors, meta)
