"""The metrics of a running job over HTTP, as Prometheus fetches them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import real

from loaderprof.errors import UsageError
from loaderprof.live import endpoint

PATIENCE_S = 60
# Trains until it is told to end.
SCRIPT = """
import sys, time, torch
from torch.utils.data import DataLoader, IterableDataset

class Endless(IterableDataset):
    def __iter__(self):
        while True:
            time.sleep(0.002)
            yield torch.zeros(8)

weights = torch.zeros(8, requires_grad=True)
for number, batch in enumerate(DataLoader(Endless(), batch_size=4)):
    (batch * weights).sum().backward()
    if number == 100:
        print("training", flush=True)
    if number % 50 == 0 and __import__("pathlib").Path("end").exists():
        break
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get(port: int, path: str = "/metrics") -> tuple[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def test_a_running_job_is_asked(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    (tmp_path / "train.py").write_text(SCRIPT)
    port = free_port()
    command = ["run", "--no-html", "-o", "out", "--metrics-port", str(port), "train.py"]
    job = subprocess.Popen(
        [sys.executable, "-m", "loaderprof", *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "training\n"
        text, kind = get(port)
        end = time.monotonic() + PATIENCE_S
        while "loaderprof_wait_ratio" not in text:
            assert time.monotonic() < end, text
            time.sleep(0.05)
            text, kind = get(port)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(port, "/etc/passwd")
    finally:
        (tmp_path / "end").touch()
    stdout, stderr = job.communicate(timeout=PATIENCE_S)
    assert (job.returncode, stdout) == (0, ""), stderr
    assert kind.startswith("application/openmetrics-text")
    found = {family.name: family for family in parser.text_string_to_metric_families(text)}
    value = {name: family.samples[0].value for name, family in found.items()}
    assert value["loaderprof_steps"] >= 100
    # A batch is four samples of 2 ms, and next to all of a step is waiting for it.
    assert 0.5 < value["loaderprof_wait_ratio"] <= 1
    assert value["loaderprof_step_seconds"] >= value["loaderprof_wait_seconds"] >= 0.004
    assert value["loaderprof_load_seconds"] >= 0.008
    with pytest.raises(OSError, match="refused"):
        get(port)


def test_a_port_that_is_taken_is_said_before_the_job_starts(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('trained')\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = real.loaderprof("run", "-o", "out", "--metrics-port", str(port), "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"loaderprof: port {port} of 127.0.0.1 cannot be had: Address already in use",
        "  name another with --metrics-port",
    ]
    assert not (tmp_path / "out").exists()


def test_an_address() -> None:
    assert endpoint.address("9464") == ("127.0.0.1", 9464)
    assert endpoint.address("0.0.0.0:80") == ("0.0.0.0", 80)
    for wrong in ("", "http", "-1", "65536", "host:"):
        with pytest.raises(UsageError, match="is no port"):
            endpoint.address(wrong)


def test_what_is_not_known_yet_is_left_out() -> None:
    with endpoint.Endpoint(("127.0.0.1", 0)) as nothing:
        assert nothing.text() == "# EOF\n"
