"""Bytes from rank to rank of torch.distributed; objects would travel as pickles, which are never read here."""

from __future__ import annotations

from typing import Any

import numpy as np


class Link:
    """Bytes between the ranks of a group, on the device that its backend carries."""

    def __init__(self, group: Any) -> None:
        import torch
        import torch.distributed as dist

        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        nccl = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def send(self, data: bytes, rank: int) -> None:
        """Send bytes to a rank of the group."""
        import torch.distributed as dist

        for tensor in (self._tensor(len(data).to_bytes(8, "little")), self._tensor(data)):
            dist.send(tensor, self._global(rank), group=self.group)

    def receive(self, rank: int) -> bytes:
        """Wait for bytes from a rank of the group."""
        import torch.distributed as dist

        length = self._empty(8)
        dist.recv(length, self._global(rank), group=self.group)
        data = self._empty(int.from_bytes(_bytes(length), "little"))
        dist.recv(data, self._global(rank), group=self.group)
        return _bytes(data)

    def broadcast(self, data: bytes | None) -> bytes:
        """Return the bytes of rank 0 on every rank."""
        import torch.distributed as dist

        length = self._tensor((0 if data is None else len(data)).to_bytes(8, "little"))
        dist.broadcast(length, self._global(0), group=self.group)
        tensor = self._empty(int.from_bytes(_bytes(length), "little")) if data is None else self._tensor(data)
        dist.broadcast(tensor, self._global(0), group=self.group)
        return _bytes(tensor) if data is None else data

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank on every rank."""
        import torch
        import torch.distributed as dist

        lengths = [self._empty(8) for _ in range(self.size)]
        dist.all_gather(lengths, self._tensor(len(data).to_bytes(8, "little")), group=self.group)
        sizes = [int.from_bytes(_bytes(one), "little") for one in lengths]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        padded[: len(data)] = self._tensor(data)
        tensors = [self._empty(max(sizes)) for _ in range(self.size)]
        dist.all_gather(tensors, padded, group=self.group)
        return [_bytes(one)[:size] for one, size in zip(tensors, sizes, strict=True)]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of the float64 arrays of all ranks, the same bits on every rank."""
        import torch
        import torch.distributed as dist

        tensor = torch.asarray(np.array(array, np.float64), device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self.group)
        return tensor.cpu().numpy()

    def largest(self, value: float) -> float:
        """Return the largest of the numbers of all ranks."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return float(tensor[0])

    def _tensor(self, data: bytes) -> Any:
        import torch

        return torch.asarray(np.frombuffer(data, np.uint8).copy(), device=self.device)

    def _empty(self, size: int) -> Any:
        import torch

        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def _global(self, rank: int) -> int:
        import torch.distributed as dist

        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def linked(group: Any, /) -> Link:
    """Return the link of a group (None: all ranks).

    Raises
    ------
    RuntimeError
        There is no process group.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        msg = "torch.distributed is not initialised; call torch.distributed.init_process_group(...) first, or run under torchrun"
        raise RuntimeError(msg)
    return Link(group)


def _bytes(tensor: Any) -> bytes:
    return tensor.cpu().numpy().tobytes()
