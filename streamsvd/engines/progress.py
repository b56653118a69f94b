"""Partitions done, on the error stream of the driver, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted(progress: bool | None, what: str, /, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how many partitions are done; what is yielded takes how many came since the last call."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = TextColumn("{task.description} {task.completed:,.0f} partitions"), BarColumn(), TimeElapsedColumn()
    with Progress(*shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)
