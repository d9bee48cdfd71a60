"""`loaderprof run --metrics-port`: what is known of the job while it runs, over HTTP, for Prometheus to fetch.

Served by the supervisor's process, never by the job, and only to this machine unless another address is asked for.
"""

from __future__ import annotations

import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaderprof.errors import UsageError

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Journals
    from loaderprof.capture.samplers import WatchedJob

LOOPBACK = "127.0.0.1"
CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# Seconds for which a client that sends nothing may keep others waiting.
PATIENCE_S = 5.0


def address(text: str) -> tuple[str, int]:
    """Return the host and port that `[HOST:]PORT` names.

    Raises:
        UsageError: it names none.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise UsageError(f"--metrics-port {text} is no port", "loaderprof run --metrics-port 9464 train.py")
    return host or LOOPBACK, int(port)


class Endpoint(socketserver.TCPServer):
    """Answers `GET /metrics`; a sampler, so that it begins to answer and closes with them.

    The port is taken here, before the job starts: the supervisor must have no second thread by then.

    Args:
        where: host and port.

    Raises:
        UsageError: the port cannot be had.
    """

    allow_reuse_address = True

    def __init__(self, where: tuple[str, int]) -> None:
        self.period_s = 1e9
        self.missing: str | None = None
        self.folder: Path | None = None
        self._journals: Journals | None = None
        self._thread: threading.Thread | None = None
        try:
            super().__init__(where, _Handler)
        except OSError as error:
            reason = f"port {where[1]} of {where[0]} cannot be had: {error.strerror}"
            raise UsageError(reason, "name another with --metrics-port") from None

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:  # noqa: ARG002 - the protocol's signature
        """Begin to answer; nothing is recorded."""
        self._thread = threading.Thread(target=self.serve_forever, name="loaderprof-metrics", daemon=True)
        self._thread.start()
        return None

    def close(self) -> None:
        """Answer no more, and give the port back."""
        if self._thread is not None:
            self.shutdown()
        self.server_close()

    def text(self) -> str:
        """Return what is known now, as OpenMetrics text."""
        from loaderprof.analyze.glance import Glance, Journals
        from loaderprof.report import metrics

        if self._journals is None and self.folder is not None:
            self._journals = Journals(self.folder)
        glance = self._journals.look(time.perf_counter_ns()) if self._journals is not None else Glance()
        return metrics.render_glance(glance)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing about clients that went away: standard error belongs to the job."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: Endpoint

    def do_GET(self) -> None:
        """Answer `/metrics` with the metrics as of now, anything else with 404."""
        if self.path.split("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.server.text().encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log no requests, for the same reason."""
