"""What the commands share: exit codes, errors as one sentence in the words of the command line, signals, and checks before any work."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

    from cyclopts import App

FAILED, USED_WRONGLY, REJECTED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143
logger = logging.getLogger("streamsvd")


class UsageError(Exception):
    """The command cannot be carried out as it was written."""


class _Terminated(BaseException):
    """SIGTERM came; as an exception, it lets unfinished files be removed."""


class Rejected(logging.Handler):
    """Within its context, counts the rows that the reader left out, which it reports to the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.rows = self.seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take the two numbers of the reader's message."""
        if "rows were left out" in record.msg and isinstance(record.args, tuple):
            self.rows, self.seen = (int(str(number)) for number in record.args)

    def __enter__(self) -> Rejected:
        self._before = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        logger.removeHandler(self)
        logger.setLevel(self._before)

    def code(self) -> int:
        """Say how many rows were left out, if any, and return the exit code."""
        if not self.rows:
            return 0
        return say(f"done, but {self.rows:,} of {self.seen:,} rows were left out because of nulls", REJECTED)


def run(app: App, tokens: Sequence[str] | None = None, /) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit code; see `streamsvd.cli.main`."""
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words or bool(os.environ.get("STREAMSVD_DEBUG"))
    words = [word for word in words if word != "--debug"]
    try:
        with _terminable():
            code = app(words, exit_on_error=False, print_error=False, result_action="return_value") or 0
            sys.stdout.flush()
            return code
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            import traceback

            traceback.print_exc()
        return _code(error)


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


_NAMES = "rank select kind kept exact decay half_life weights timestamps dtype nulls center"
# Not within a path or a quoted text, where kind=a may be the name of a folder.
_OPTION = re.compile(rf"(?<![\w/'\"=-])({_NAMES.replace(' ', '|')})=(\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[\w.+-]*\w)?")


def _spelling(found: re.Match[str]) -> str:
    name, value = found[1].replace("_", "-"), found[2] or ""
    if value in ("True", "False"):
        return f"--{'no-' * (value == 'False')}{name}"
    if value.startswith("["):
        return " ".join(f"--{name} {item}" for item in re.findall(r"['\"]([^'\"]*)['\"]", value) or ["NAME"])
    return f"--{name} {value.strip(chr(34) + chr(39))}".strip()


@contextmanager
def usage() -> Iterator[None]:
    """Take what goes wrong here as a command that was written wrongly."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(str(error)) from error


def checked_target(path: str, inputs: Iterable[str], /, *, suffixes: tuple[str, ...] = ()) -> Path:
    """Return where to write, checked before any work is done: it can be written, and it is not a file that is read."""
    from streamsvd.flow.sinks import check_target

    with usage():
        target = check_target(path, suffixes=suffixes)
    if target.exists() and any(os.path.exists(name) and os.path.samefile(name, target) for name in inputs):  # noqa: PTH110, PTH121
        msg = f"--out {path} is also read here, and would be replaced; choose another name"
        raise UsageError(msg)
    return target


def found_columns(
    data: Sequence[str], select: Sequence[str] | None, beside: Iterable[str | None], /, *, known: Sequence[str] = ()
) -> list[str] | None:
    """Return the columns to read, once the files and their columns are known to exist.

    A name with commas stands for several, unless there is such a column. Without ``select``, those that the ``known`` names of a model
    came from.
    """
    from streamsvd.flow.files import find, open_file
    from streamsvd.flow.sources import existing

    with usage():
        files = [file for part in data for file in find(part)]
    if files[0].suffix.lower() == ".npy":
        return None if select is None else list(select)
    there, where = open_file(files[0])[0].names, f"{str(files[0])!r}: "
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


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may, and in another one nobody waits for an exit code
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(error: BaseException) -> int:
    """Say what went wrong and return the exit code."""
    from cyclopts import CycloptsError

    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0
        case KeyboardInterrupt():
            return say("stopped; no result was written", INTERRUPTED)
        case _Terminated():
            return say("stopped by SIGTERM; no result was written", TERMINATED)
        case BrokenPipeError():
            # Python would complain once more when it closes the pipe that nobody reads.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        case CycloptsError():
            return say(f"{error} (streamsvd --help shows how it is used)", USED_WRONGLY)
        case UsageError():
            return say(spelled(str(error)), USED_WRONGLY)
        case ValueError() | TypeError() | OSError() | ImportError():
            return say(spelled(str(error)), FAILED)
        case MemoryError():
            return say(f"out of memory ({error}); try --kind truncated, or a smaller --kept", FAILED)
    return say(f"unexpected {type(error).__name__}: {error}; run again with --debug and report what it shows", FAILED)
