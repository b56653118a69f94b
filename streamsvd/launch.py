"""From words to an exit code: the log, signals, options from a file, and what is said when something goes wrong."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from streamsvd.terminal import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    USED_WRONGLY,
    Stopped,
    Terminated,
    UsageError,
    logger,
    say,
    spelled,
    usage,
)

if TYPE_CHECKING:
    from cyclopts import App


def run(app: App, tokens: Sequence[str] | None = None, /) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit code; see `streamsvd.cli.main`."""
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words or bool(os.environ.get("STREAMSVD_DEBUG"))
    left = [word for word in words if word != "--debug"]
    try:
        with (
            _terminable(),
            _logging(_taken(left, "--log-level") or "warning"),
            _configured(app, _value(left, "--config")),
            _warnings(),
        ):
            with usage(ValueError, TypeError):  # a dataclass of options checks itself while it is parsed
                command, bound, _ = app.parse_args(left, exit_on_error=False, print_error=False)
            code = command(*bound.args, **bound.kwargs) or 0
            sys.stdout.flush()
            return code
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            import traceback

            traceback.print_exc()
        return _code(error, words)


def _value(words: list[str], option: str) -> str | None:
    """Return the value of an option that is needed before the others are understood."""
    for i, word in enumerate(words):
        if word == option:
            if i + 1 == len(words):
                msg = f"{option} wants a value after it"
                raise UsageError(msg)
            return words[i + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _taken(words: list[str], option: str) -> str | None:
    value = _value(words, option)
    if value is not None:
        i = next(i for i, word in enumerate(words) if word.partition("=")[0] == option)
        del words[i : i + 1 + (words[i] == option)]
    return value


@contextmanager
def _logging(level: str) -> Iterator[None]:
    """Show the library's log on the error stream."""
    levels = ("debug", "info", "warning", "error")
    if level.lower() not in levels:
        msg = f"--log-level {level} arrived; expected one of {', '.join(levels)}"
        raise UsageError(msg)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("streamsvd: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _warnings() -> Iterator[None]:
    """Say the library's warnings as sentences, without the line of code that Python shows with them."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category is UserWarning:
            say(spelled(str(message)), 0)
        else:
            before(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _configured(app: App, path: str | None) -> Iterator[None]:
    """Take the options that the command line does not give from a TOML file."""
    if path is None:
        yield
        return
    import tomllib

    from cyclopts.config import Toml

    try:
        tomllib.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else f"it is no TOML: {error}"
        msg = f"--config {path} cannot be read: {what}; expected lines such as rank = 64"
        raise UsageError(msg) from error
    before = app.config
    app.config = [Toml(path, root_keys=[], must_exist=True, use_commands_as_keys=False)]
    try:
        yield
    finally:
        app.config = before


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may, and in another one nobody waits for an exit code
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(error: BaseException, words: Sequence[str]) -> int:
    """Say what went wrong and return the exit code."""
    from cyclopts import CycloptsError

    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0
        case Stopped():
            command = shlex.join(["streamsvd", *words])  # as it is, to be copied
            print(f"streamsvd: stopped; go on with: {command}", file=sys.stderr)
            return error.code
        case KeyboardInterrupt():
            return say("stopped; no result was written", INTERRUPTED)
        case Terminated():
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
