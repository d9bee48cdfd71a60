"""An object store in a process of its own, for recordings that lie at a URL."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec")
PATIENCE_S = 60


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Start an object store in a process of its own; return its address."""
    pytest.importorskip("s3fs")
    if not shutil.which("moto_server", path=str(Path(sys.executable).parent)):
        pytest.skip("needs moto's server: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        assert server.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=PATIENCE_S)


@pytest.fixture
def bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty bucket, with the environment that finds it."""
    for name, value in (
        ("AWS_ENDPOINT_URL", store),
        ("AWS_ACCESS_KEY_ID", "me"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    call(f"{store}/moto-api/reset", "POST")
    call(f"{store}/runs", "PUT")
    # A file system that was opened for another address is not the one to use.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return "s3://runs"


def call(address: str, method: str, data: bytes = b"") -> None:
    request = urllib.request.Request(address, data, {"Content-Type": "text/plain"}, method=method)
    urllib.request.urlopen(request, timeout=PATIENCE_S).close()


def stored(url: str) -> set[str]:
    system, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return {path[len(root) :].lstrip("/") for path in system.find(root)}
