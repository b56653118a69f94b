"""What a run shows while it runs: a progress line on a terminal, and a page with the last frame on this machine only."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from streamsvd.pipelines.video.read import _package

logger = logging.getLogger("streamsvd")
BOUNDARY = "frame"


@contextmanager
def bar(progress: bool | None) -> Iterator[Callable[[int, str], None] | None]:
    """Yield what advances a progress line, or None where there is no terminal."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} frames  {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as line:
        task = line.add_task("", total=None)
        yield lambda count, text: line.update(task, advance=count, description=text)


@contextmanager
def preview(port: int | None) -> Iterator[Callable[[np.ndarray], None] | None]:
    """Serve the pictures that are handed over as an MJPEG page on 127.0.0.1 (port 0: any free one), or yield None."""
    if port is None:
        yield None
        return
    cv2 = _package("cv2", "opencv-python-headless")
    fresh, last = threading.Condition(), {"jpeg": b"", "number": 0, "open": True}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            _stream(self.wfile, fresh, last)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent: the terminal belongs to the progress line."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    logger.warning("preview on http://127.0.0.1:%d", server.server_address[1])

    def show(picture: np.ndarray) -> None:
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        with fresh:
            last.update(jpeg=jpeg, number=last["number"] + 1)
            fresh.notify_all()

    try:
        yield show
    finally:
        with fresh:
            last["open"] = False
            fresh.notify_all()
        server.shutdown()
        server.server_close()


def _stream(out: Any, fresh: threading.Condition, last: dict[str, Any]) -> None:
    seen = 0
    try:
        while True:
            with fresh:
                if last["open"] and last["number"] == seen:
                    fresh.wait(timeout=5.0)
                if not last["open"]:
                    return
                seen, jpeg = last["number"], last["jpeg"]
            if jpeg:
                out.write(
                    f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                    + jpeg
                    + b"\r\n"
                )
    except OSError:
        return  # the browser went away
