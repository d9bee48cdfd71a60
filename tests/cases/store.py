"""A small object store in a process of its own: answers each GET late, or slowly, as a real one does."""

from __future__ import annotations

import multiprocessing
import socketserver
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 64 * 1024  # bytes sent between two pauses of a slow line


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body: Callable[[str], bytes]
    latency_s: Callable[[str], float]
    bytes_per_s: float

    def do_GET(self) -> None:
        body = type(self).body(self.path)
        time.sleep(type(self).latency_s(self.path))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        begun = time.perf_counter()
        for start in range(0, len(body), PIECE):
            self.wfile.write(body[start : start + PIECE])
            early = begun + (start + PIECE) / self.bytes_per_s - time.perf_counter()
            if early > 0:
                time.sleep(early)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the usual 5 a sixth connection at once is answered a second late

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left at the end of the case is no error."""


def _serve(port: multiprocessing.Queue, handler: type[Handler]) -> None:
    server: socketserver.BaseServer = Quiet(("127.0.0.1", 0), handler)
    port.put(server.server_address[1])
    server.serve_forever()


@contextmanager
def store(
    body: Callable[[str], bytes],
    latency_s: float | Callable[[str], float] = 0.0,
    bytes_per_s: float = float("inf"),
) -> Iterator[str]:
    """The address of a store that serves `body(path)` until the block ends."""
    late = latency_s if callable(latency_s) else (lambda _: latency_s)
    words = {"body": staticmethod(body), "latency_s": staticmethod(late), "bytes_per_s": bytes_per_s}
    port: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=_serve, args=(port, type("Store", (Handler,), words)), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get()}"
    finally:
        process.terminate()
        process.join()
