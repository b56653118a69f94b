"""Partitions that the tests of all engines share, and a job whose worker is killed in the middle of it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamsvd.engines.contract import Part
from streamsvd.engines.job import Job

SIZES = (300, 1, 2000, 40, 500, 500, 3, 900, 120, 700, 60)  # skewed
SCRATCH = "STREAMSVD_TEST_SCRATCH"  # the folder in which a killed worker leaves a note, so that it dies once


def tables(d: int = 8, sizes: tuple[int, ...] = SIZES) -> list[pa.Table]:
    rng = np.random.default_rng(11)
    columns = [{f"c{j}": rng.standard_normal(n) / (j + 1) + 2.0 for j in range(d)} for n in sizes]
    return [pa.table(one) for one in columns]


def bits(outcome: Any) -> bytes:
    return Part(0, 1, outcome.state, outcome.intake, {}, outcome.names).to_bytes()


@dataclass(frozen=True)
class Deadly(Job):
    """A job that kills a process, by SIGKILL, when it has folded the partition of 2000 rows for the first time."""

    def fold(self, source: Any, number: int = 0, /, *, key: str | None = None) -> bytes:
        data = super().fold(source, number, key=key)
        note = Path(os.environ[SCRATCH]) / "killed"
        if Part.from_bytes(data).intake.seen == 2000 and not note.exists():
            victim = self.victim()
            note.write_text(str(victim))
            os.kill(victim, signal.SIGKILL)
            time.sleep(60)
        return data

    def victim(self) -> int:
        return os.getpid()


@dataclass(frozen=True)
class DeadlyToExecutors(Deadly):
    """The same, for the JVM above the Python worker and its daemon."""

    def victim(self) -> int:
        above = Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1]
        return int(above)
