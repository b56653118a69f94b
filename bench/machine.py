"""The machine: BLAS threads, which are set before NumPy is imported and verified afterwards, and a description for the table."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "torch", "peft", "gensim", "decompy")


def environment(threads: int) -> dict[str, str]:
    """Return the environment in which every numerical library starts with so many threads."""
    return {**os.environ, **dict.fromkeys(VARIABLES, str(threads))}


def set_threads(threads: int) -> None:
    """Set the thread count of every numerical library: by environment where they are not loaded yet, at run time where they are."""
    os.environ.update(environment(threads))
    import scipy.linalg.blas  # noqa: F401  (SciPy carries a BLAS of its own)
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    verify_threads(threads)


def verify_threads(threads: int) -> None:
    """Raise RuntimeError if a library that is loaded uses another number of threads."""
    from threadpoolctl import threadpool_info

    found = {
        f"{info['internal_api']} ({Path(info['filepath']).name})": info["num_threads"] for info in threadpool_info()
    }
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_num_threads()
    wrong = {name: count for name, count in found.items() if count != threads}
    if wrong:
        uses = ", ".join(f"{name} uses {count}" for name, count in wrong.items())
        msg = f"asked for {threads} threads, but {uses}; such numbers do not compare"
        raise RuntimeError(msg)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(threads: int) -> dict[str, Any]:
    """Return what a reader needs to place the numbers."""
    from threadpoolctl import threadpool_info

    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    blas = {f"{info['internal_api']} {info['version']} ({info.get('architecture') or 'generic'})" for info in libraries}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": cores(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
        if hasattr(os, "sysconf")
        else "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": sorted(blas),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def sentence(machine: dict[str, Any]) -> str:
    """Return the description as one line."""
    threads = f"{machine['threads']} BLAS thread{'s' if machine['threads'] != 1 else ''}"
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}", threads, ", ".join(machine["blas"])]
    return f"{'; '.join(parts)}; Python {machine['python']}, {packages}; {machine['date']}, load {machine['load']} at the start"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
