"""Activation statistics of several processes together: each sends its sketches once, nothing is pickled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Tensor = Any


def gathered(stats: Any, group: Any = None, /) -> Any:
    """Return the statistics of all processes of a group merged in the order of their ranks: the same bits in each process.

    Raises
    ------
    RuntimeError
        ``torch.distributed`` is not initialised.
    ValueError
        Statistics that do not go together.

    Notes
    -----
    Traffic: the sketches of every process to every other, one process and one array at a time. Memory: one process's sketches more.
    """
    import torch.distributed as dist

    from streamsvd.flow.activation_files import merged, restore

    if not dist.is_initialized():
        msg = "torch.distributed is not initialised; call torch.distributed.init_process_group first, or merge files with merge()"
        raise RuntimeError(msg)
    out = None
    for rank in range(dist.get_world_size(group)):
        arrays, meta = _broadcast(stats, dist.get_global_rank(group, rank) if group is not None else rank, group)
        one = restore(type(stats), arrays, meta, stats.model, {"rows": stats.cap, "memory": stats.memory})
        out = one if out is None else merged(out, one)
    return out


def _broadcast(stats: Any, source: int, group: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Send the parts of one process to all: a header as JSON, then array by array."""
    import torch
    import torch.distributed as dist

    from streamsvd.flow.activation_files import parts
    from streamsvd.flow.checkpoint import plain, restored, storable

    device = (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )
    own: dict[str, np.ndarray] = {}
    head = b""
    if dist.get_rank() == source:
        arrays, meta = parts(stats)
        own = {name: storable(name, value) for name, value in arrays.items()}
        shapes = {name: [value.dtype.name, *value.shape] for name, value in own.items()}
        head = json.dumps([shapes, plain(meta, "meta")]).encode()
    length = torch.tensor([len(head)], device=device)
    dist.broadcast(length, source, group)
    text = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if head:
        text.copy_(torch.frombuffer(bytearray(head), dtype=torch.uint8))
    dist.broadcast(text, source, group)
    shapes, meta = json.loads(text.cpu().numpy().tobytes())
    arrays = {}
    for name, (dtype, *shape) in shapes.items():
        data = torch.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=torch.uint8, device=device)
        if name in own and data.numel():
            data.copy_(torch.from_numpy(np.ascontiguousarray(own[name]).reshape(-1).view(np.uint8).copy()))
        if data.numel():
            dist.broadcast(data, source, group)
        arrays[name] = data.cpu().numpy().view(dtype).reshape(shape)
    return arrays, restored(meta)
