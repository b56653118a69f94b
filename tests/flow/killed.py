"""A run that is killed with SIGKILL again and again until it ends; test_faults.py starts it as a process of its own.

python killed.py SOURCE FOLDER KILLS SEED: prints how it was killed each time, as JSON. Every process is forked from this one, so that
a trial does not take the time of the imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import pyarrow.parquet  # noqa: F401  imported here, so that no trial spends its time on it

from streamsvd.flow import fold, keeper, pieces, statefile  # noqa: F401

OPTIONS = {"rank": 3, "kind": "truncated", "nonfinite": "drop"}
STEPS = {"sync": "fsync", "link": "link", "rename": "replace", "write": "write_atomically", "digest": "encode"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half(chunks):
    """Give half of what is to be written, and no more."""
    for chunk in chunks:
        yield bytes(chunk)[: len(chunk) // 2]
        die()


def die_at(step: str, number: int) -> None:
    """Have the process killed just before or after the number-th time that it does something."""
    home = {"replace": Path, "encode": statefile, "write_atomically": statefile}.get(STEPS[step], os)
    original, count, after = getattr(home, STEPS[step]), 0, number % 2

    def counted(*args, **options):
        nonlocal count
        count += 1
        if count == number and step == "write":
            args = args[0], half(args[1])
        elif count == number and not after:
            die()
        result = original(*args, **options)
        if count == number and after:
            die()
        return result

    setattr(home, STEPS[step], counted)


def trial(source: str, folder: Path, how: str, when: float) -> None:
    if how == "time":
        threading.Timer(when * 0.25, die).start()
    else:
        die_at(how, 1 + int(when * 12))
    slow = lambda event: time.sleep(0.002)  # noqa: E731
    places = {"checkpoint": folder / "run.svd", "quarantine": folder / "rejected"}
    fold.run(source, **places, on_event=slow, every=400, progress=False, **OPTIONS)


def tried(source: str, folder: Path, how: str, when: float) -> bool:
    """Let a process run, and tell whether it was killed."""
    child = os.fork()
    if not child:
        try:
            trial(source, folder, how, when)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        sys.exit(status)
    return status != 0


def main(source: str, folder: Path, kills: int, seed: int) -> None:
    rng, done, finished = random.Random(seed), [], 0
    while len(done) < kills:
        how, when = rng.choice(["time", "time", *STEPS]), rng.random()
        if tried(source, folder, how, when):
            done.append(how)
            continue
        finished += 1
        for name in ("run.svd", "rejected"):
            (folder / name).rename(folder / f"finished-{finished}-{name}")
        for file in folder.glob("run.svd*"):
            file.unlink()
    assert not tried(source, folder, "time", 1e6)
    print(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
