"""Memory above the input, measured in a child process: ``python bench/memory.py``, which ``compare.py`` starts and reads.

Peak resident memory sees what native code allocates. A part of the stream is folded first, for everyone, so that imports, compiled code
and the libraries' own work areas do not count; what that left free is handed back to the system before the measurement. Our states are
also traced (``tracemalloc`` counts NumPy's arrays to the byte), for small ones are below the resolution of resident memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import machine

LIMITS = {"truncated": 8, "gram": 3}


def in_child(*arguments: object, threads: int, script: str = __file__) -> dict[str, Any]:
    """Run a script, this file by default, with the arguments in a fresh process and return what it measured."""
    command = [sys.executable, str(Path(script).resolve()), *map(str, arguments)]
    done = subprocess.run(command, env=machine.environment(threads), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        msg = f"the memory of {' '.join(map(str, arguments))} was not measured: {reason}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])


def unit(kind: str, columns: int, kept: int, itemsize: int = 4) -> tuple[str, int]:
    """Return the unit of a state's limit and its bytes: kept * d numbers, or d * d float64."""
    return ("d²", 8 * columns**2) if kind == "gram" else ("kept·d", itemsize * kept * columns)


def measure(case_name: str, method_name: str, how: str) -> dict[str, Any]:
    """Return the peak memory of one method on one case above the memory that holds the data."""
    import cases
    import peers

    case, method = cases.find(case_name)[0], peers.by_name(method_name)
    X = cases.data(case)[: case.slow_rows if method.slow else None]
    run, batches = method.prepare(case), case.batches(X)
    _touch_libraries()
    run(batches[: max(2, len(batches) // 4)])
    before = _start(how)
    run(batches)
    return {"bytes": peak(how) - before}


def growth(kind: str, columns: int, rank: int, batch: int, marks: list[int], how: str) -> list[dict[str, Any]]:
    """Fold generated rows into one input batch that is written anew each time, and return the memory above it at each mark."""
    import numpy as np

    import streamsvd as ss

    _touch_libraries()
    rng, scale = np.random.default_rng(0), 1 / np.arange(1, columns + 1, dtype=np.float32)
    X = np.zeros((batch, columns), dtype=np.float32)
    empty, rows = ss.sketch(columns=columns, rank=rank, kind=kind), 0
    warm = empty
    for _ in range(128):
        rng.standard_normal(out=X, dtype=np.float32)
        warm = warm.update(X[: batch // 8])
    assert warm.factors().bound is not None
    del warm
    sketch, start, most, read_most, found = empty, _start(how), 0, 0, []
    for mark in marks:
        while rows < mark:
            rng.standard_normal(out=X, dtype=np.float32)
            X *= scale
            sketch = sketch.update(X[: min(batch, mark - rows)])
            rows = sketch.rows
        most = max(most, peak(how) - start)
        assert sketch.factors().bound is not None
        read_most = max(read_most, peak(how) - start)
        found.append({"rows": rows, "bytes": most, "with_factors": read_most})
        _start(how)
    return found


def growth_table(shapes: dict[str, tuple[int, int]], batch: int, marks: list[int], threads: int) -> str:
    """Measure both kinds (of so many columns and rank) in both ways, each in its own process, and return the table."""
    lines = [
        f"memory above the input batch, peak since the start, batches of {batch} rows, float32; "
        + "; ".join(f"{kind}: {columns} columns, rank {rank}" for kind, (columns, rank) in shapes.items()),
        f"{'kind':<10} {'rows':>8} {'arrays':>10} {'in units':>14} {'limit':>6} {'with factors()':>15} {'in units':>14} {'resident':>10}",
    ]
    for kind, limit in LIMITS.items():
        columns, rank = shapes[kind]
        name, size = unit(kind, columns, min(columns, max(2 * rank, rank + 10)))
        options = (kind, columns, rank, batch, ",".join(map(str, marks)))
        traced, resident = (
            in_child("growth", *options, how, threads=threads)["marks"] for how in ("traced", "resident")
        )
        for exact, seen in zip(traced, resident, strict=True):
            own, read = (f"{exact[key] / size:.2f} {name}" for key in ("bytes", "with_factors"))
            bytes_own, bytes_read, all_seen = (
                n / 1e6 for n in (exact["bytes"], exact["with_factors"], seen["with_factors"])
            )
            row = f"{kind:<10} {exact['rows']:>8} {bytes_own:>7.2f} MB {own:>14} {limit:>6}"
            lines.append(f"{row} {bytes_read:>12.2f} MB {read:>14} {all_seen:>7.2f} MB")
    return "\n".join(lines)


def _touch_libraries() -> None:
    """Let each BLAS touch its packing buffers, which stay with the process whatever it multiplies."""
    import numpy as np
    from scipy.linalg import blas

    for dtype, gemm in ((np.float32, blas.sgemm), (np.float64, blas.dgemm)):
        A, B = np.ones((512, 768), dtype), np.ones((768, 8192), dtype)
        A @ B
        gemm(1.0, A.T, B.T, trans_a=True, trans_b=True)


def _start(how: str = "resident") -> int:
    """Begin to watch for a peak and return what is in use now."""
    if how == "traced":
        import tracemalloc

        # A full collection empties Python's lists of free objects, whose refilling would then look like growth of the state.
        gc.collect(1)
        gc.set_threshold(700, 10, 1_000_000)
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        tracemalloc.reset_peak()
        return tracemalloc.get_traced_memory()[0]
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return peak()
    clear.write_text("5")
    return _status("VmRSS")


def peak(how: str = "resident") -> int:
    """Return the highest use since ``_start``; where /proc is missing, since the process began."""
    if how == "traced":
        import tracemalloc

        return tracemalloc.get_traced_memory()[1]
    if Path("/proc/self/clear_refs").exists():
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main(arguments: list[str]) -> None:
    """Measure what the parent asked for and print one line of JSON."""
    machine.set_threads(int(machine.os.environ["OPENBLAS_NUM_THREADS"]))
    if arguments[0] == "growth":
        kind, columns, rank, batch, marks, how = arguments[1:]
        found: dict[str, Any] = {
            "marks": growth(kind, int(columns), int(rank), int(batch), [int(m) for m in marks.split(",")], how)
        }
    else:
        found = measure(*arguments[1:])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
