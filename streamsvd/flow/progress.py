"""A progress bar on the error stream, where that is a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamsvd.flow.sources import total_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def watch(progress: bool | None, source: Any, what: str, /, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where it is wanted; what is yielded takes the number of rows done since the last call.

    ``done`` rows were done before, by a run that is resumed.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    shown = "{task.description} {task.completed:,.0f} rows", "{task.fields[rate]}"
    columns = TextColumn(shown[0]), BarColumn(), TextColumn(shown[1]), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, began, fresh = bar.add_task(what, total=total_rows(source), completed=done, rate=""), time.monotonic(), 0

        def advance(rows: int) -> None:
            nonlocal fresh
            fresh += rows
            rate = f"{fresh / max(time.monotonic() - began, 1e-9):,.0f} rows/s"
            bar.update(task, completed=done + fresh, rate=rate)

        yield advance
        bar.update(task, total=done + fresh)
