"""What the commands share: exit codes, errors as one sentence in the words of the command line, signals, and checks before any work."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsvd.flow.events import Event
    from streamsvd.flow.policies import Intake

FAILED, USED_WRONGLY, REJECTED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143  # exit codes
logger = logging.getLogger("streamsvd")


class UsageError(Exception):
    """The command cannot be carried out as it was written."""


class Terminated(BaseException):
    """SIGTERM came; as an exception, it lets unfinished files be removed."""


class Stopped(BaseException):
    """A signal stopped a run that the same command goes on with."""

    def __init__(self, checkpoint: str, code: int) -> None:
        super().__init__(checkpoint, code)
        self.checkpoint, self.code = checkpoint, code


@contextmanager
def resumable(checkpoint: str | None, /) -> Iterator[None]:
    """Tell a signal that leaves a checkpoint behind from one that leaves nothing."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        if checkpoint is None or not Path(checkpoint).expanduser().exists():
            raise
        raise Stopped(checkpoint, INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED) from error


def say(sentence: str, code: int, /) -> int:
    """Print one sentence on the error stream; return the code."""
    print(f"streamsvd: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def spelled(message: str, /) -> str:
    """Return a message of the library with its options as the command line spells them: ``nulls="drop"`` as ``--nulls drop``.

    >>> spelled("rank=9 is too large; write select=['x', 'y'], half_life='30s' or center=False")
    '--rank 9 is too large; write --select x --select y, --half-life 30s or --no-center'
    """
    return _OPTION.sub(_spelling, message)


_NAMES = (
    "rank select kind kept shrink exact scale decay half_life weights timestamps dtype seed nulls nonfinite quarantine center by keys "
    "overflow checkpoint every keep ids residual leverage "
    "label fields dim hidden epochs batch lr width layers anchors dropout patience nodes decay modules "
    "regularise normalise components duplicates energy passes users histories k contrast propagate init learning_rate temperature "
    "budget_bytes smoothing power min_rank ignore_unknown fade max_angle max_lost "
    "alpha absorb tau least fps reset resize threads memory start end stride "
    "method noise prune significance tol max_iter floor coupling bound rank_one unidentifiable snapshots warm stream "
    "rho stop whiten redistribute rows damping covariance mode targets column"
)
# Not within a path or a quoted text, where kind=a may be the name of a folder.
_OPTION = re.compile(rf"(?<![\w/'\"=-])({_NAMES.replace(' ', '|')})=(\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[\w.+-]*\w)?")


def _spelling(found: re.Match[str]) -> str:
    name, value = found[1].replace("_", "-"), found[2] or ""
    if value == "None":
        return f"no --{name}"
    if value in ("True", "False"):
        return f"--{'no-' * (value == 'False')}{name}"
    if value.startswith("["):
        return " ".join(f"--{name} {item}" for item in re.findall(r"['\"]([^'\"]*)['\"]", value) or ["NAME"])
    return f"--{name} {value.strip(chr(34) + chr(39))}".strip()


@contextmanager
def usage(*errors: type[Exception]) -> Iterator[None]:
    """Take what goes wrong here, of these kinds or of any usual one, as a command that was written wrongly."""
    kinds = errors or (ValueError, TypeError, FileNotFoundError, IsADirectoryError)
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error


@contextmanager
def metrics_to(path: str | None, data: Sequence[str], /) -> Iterator[Callable[[Event], None] | None]:
    """Give what adds one line of JSON to a file for each event, and tells the log of it; None where neither is wanted."""
    if path is None:
        yield _logged if logger.isEnabledFor(logging.INFO) else None
        return
    with checked_target(path, data, option="metrics").open("a") as file:

        def add(event: Event) -> None:
            file.write(json.dumps(event.to_json(), allow_nan=False) + "\n")
            file.flush()
            _logged(event)

        yield add


def _logged(event: Event) -> None:
    drift = "" if event.angle is None else f", drift {math.degrees(event.angle):.3g} degrees"
    logger.info("%s rows, %s rows/s%s", f"{event.rows:,}", f"{event.rows_per_second:,.0f}", drift)


def checked_target(path: str, inputs: Iterable[str], /, *, suffixes: tuple[str, ...] = (), option: str = "out") -> Path:
    """Return where to write, checked before any work is done: it can be written, and it is not a file that is read."""
    from streamsvd.flow.sinks import check_target

    with usage():
        target = check_target(path, suffixes=suffixes)
    if target.exists() and any(os.path.exists(name) and os.path.samefile(name, target) for name in inputs):  # noqa: PTH110, PTH121
        msg = f"--{option} {path} is also read here, and would be replaced; choose another name"
        raise UsageError(msg)
    return target


def checked_folder(path: str, /, *, option: str = "out") -> str:
    """Return the folder to write, checked before any work is done: it is there, or can be made."""
    there = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
    if not there.is_dir():
        msg = f"--{option} {path} cannot be a folder: {there} is a file; give another name"
        raise UsageError(msg)
    return path


def found_columns(
    data: Sequence[str], select: Sequence[str] | None, beside: Iterable[str | None], /, *, known: Sequence[str] = ()
) -> list[str] | None:
    """Return the columns to read, once the files and their columns are known to exist.

    A name with commas stands for several, unless there is such a column. Without ``select``, those that the ``known`` names of a model
    came from.
    """
    from streamsvd.flow.files import find
    from streamsvd.flow.readers import column_names
    from streamsvd.flow.sources import existing

    if not data:
        return None if select is None else [name for item in select for name in item.split(",")]
    with usage():
        files = [file for part in data for file in find(part)]
    there, where = column_names(files[0]), f"{str(files[0])!r}: "
    if there is None:
        return None if select is None else list(select)
    with usage():
        if select is not None:
            select = [name for item in select for name in ([item] if item in there else item.split(","))]
        elif known:  # a message about e[0] to e[767] would help nobody
            select = list(dict.fromkeys(name if name in there else re.sub(r"\[\d+\]$", "", name) for name in known))
        existing(there, [name for name in beside if name is not None], where)
        return existing(there, select, where)


def print_json(values: dict[str, Any], /) -> None:
    """Print one JSON object on the standard output."""
    print(json.dumps(values, allow_nan=False))


def rejected(intake: Intake | None, quarantine: str | None = None, /) -> int:
    """Say how many rows were left out, if any, and return the exit code."""
    dropped = {} if intake is None else {reason: n for reason, n in intake.dropped.items() if n}
    if intake is None or not dropped:
        return 0
    words = {"null": "because of nulls", "nonfinite": "because of NaN or infinity"}
    count = f"{sum(dropped.values()):,} of {intake.seen:,} rows were left out"
    several = len(dropped) > 1
    why = ", ".join(f"{f'{n:,} ' * several}{words.get(reason, reason)}" for reason, n in dropped.items())
    kept = f"; they are in {quarantine}" if quarantine else ""
    return say(f"done, but {count}{':' * several} {why}{kept}", REJECTED)
