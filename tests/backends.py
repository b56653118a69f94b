"""Where arrays live: each backend turns a NumPy array into its own, and read-only or strict arrays stand in for a GPU's rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamsvd.arrays import to_numpy

Backend = Callable[[np.ndarray], Any]


def plain(x: np.ndarray) -> Any:
    return x.copy()


def read_only(x: np.ndarray) -> Any:
    out = x.copy()
    out.flags.writeable = False
    return out


def strict(x: np.ndarray) -> Any:
    import array_api_strict

    return array_api_strict.asarray(x.copy())


def torch_cpu(x: np.ndarray) -> Any:
    import torch

    torch.set_num_threads(1)  # its pool spins for arrays of this size, many times slower on a busy machine
    return torch.from_numpy(x.copy())


def torch_cuda(x: np.ndarray) -> Any:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch reaches no CUDA device")
    return torch.from_numpy(x.copy()).cuda()


def cupy(x: np.ndarray) -> Any:
    module = pytest.importorskip("cupy")
    return module.asarray(x)


BACKENDS = [
    pytest.param(plain, id="numpy"),
    pytest.param(read_only, id="read-only"),
    pytest.param(strict, id="strict"),
    pytest.param(torch_cpu, id="torch"),
    pytest.param(torch_cuda, id="torch-cuda", marks=pytest.mark.cuda),
    pytest.param(cupy, id="cupy", marks=pytest.mark.cuda),
]


def digest(thing: Any) -> str:
    """Hash of all that a state or factors hold: arrays with dtype and shape, and the rest as JSON."""
    arrays, meta = thing.parts()
    hashed = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(to_numpy(arrays[name]))
        hashed.update(f"{name} {x.dtype} {x.shape}".encode())
        hashed.update(x.tobytes())
    return hashed.hexdigest()
