"""What only a GPU can show: `pytest tests/gpu`, on a machine with one; everywhere else skipped.

Written against CUDA's documented events before a GPU was to be had: until docs/limits.md says otherwise nobody has seen
these pass.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]
TRAIN = str(Path(__file__).parent / "train.py")
# What makes the host wait for the device.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def run(folder: Path, *words: str, hooked: bool = True) -> str:
    """Run a job, and return what it printed."""
    profiled = ["-m", "loaderprof", "run", "--no-html", "-o", "seen"] if hooked else []
    done = subprocess.run(
        [sys.executable, *profiled, TRAIN, *words], cwd=folder, capture_output=True, text=True, timeout=280, check=True
    )
    return done.stdout


def found(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "seen/findings.json").read_text())
    return values


def events(trace: Path) -> list[dict[str, Any]]:
    return [each for each in json.loads(trace.read_text())["traceEvents"] if each.get("ph") == "X"]


@pytest.mark.parametrize(
    ("kind", "bottlenecks"),
    [("starved", {"read", "transform"}), ("compute", {"device"}), ("logger", {"device", "none", "host"})],
)
def test_the_verdict_is_what_the_device_felt(tmp_path: Path, kind: str, bottlenecks: set[str]) -> None:
    run(tmp_path, kind)
    findings = found(tmp_path)
    assert findings["run"]["device"] == "cuda"
    assert findings["verdict"]["bottleneck"] in bottlenecks


def kernels_of(trace: Path) -> list[tuple[float, float]]:
    """Return when each kernel began and ended, in microseconds."""
    return sorted((each["ts"], each["ts"] + each["dur"]) for each in events(trace) if each.get("cat") == "kernel")


def test_starved_time_is_that_of_the_profilers_timeline(tmp_path: Path) -> None:
    import loaderprof

    run(tmp_path, "starved", "--trace", "trace.json")
    kernels = kernels_of(tmp_path / "trace.json")
    starved = loaderprof.read(tmp_path / "seen").tables["device"]["starved_ns"] / 1e3
    # As many of the longest gaps between kernels as there are steps: the loader is slower than any gap within a step.
    gaps = np.sort(np.array([later[0] - earlier[1] for earlier, later in itertools.pairwise(kernels)]))
    longest = gaps[-len(starved) :]
    step_us = (kernels[-1][1] - kernels[0][0]) / len(starved)
    assert abs(float(np.median(longest)) - float(np.median(starved))) < 0.02 * step_us


@pytest.mark.parametrize("kind", ["pageable", "pinned"])
def test_copies_are_those_of_the_profilers_timeline(tmp_path: Path, kind: str) -> None:
    import loaderprof

    run(tmp_path, kind, "--trace", "trace.json")
    # A batch of 32 MiB is copied in one piece from pinned memory, and in some from pageable.
    copied = [
        each
        for each in events(tmp_path / "trace.json")
        if each.get("cat") == "gpu_memcpy" and "HtoD" in each["name"] and each["args"].get("bytes", 0) > 1 << 20
    ]
    table = loaderprof.read(tmp_path / "seen").tables["phases"]
    assert len(table) >= 20
    message = float(np.median(table["copy_ns"])) / 1e3
    lasted = sum(each["dur"] for each in copied) / 200
    if kind == "pinned":
        assert message == pytest.approx(lasted, rel=0.05)
    else:
        # Between the pieces of a pageable copy the device waits for the host.
        assert message >= 0.95 * lasted
    pinned = table["pinned_bytes"].sum() / table["bytes"].sum()
    assert pinned == (1.0 if kind == "pinned" else 0.0)


def test_phases_are_those_of_the_profilers_kernels(tmp_path: Path) -> None:
    import loaderprof

    run(tmp_path, "compute", "--trace", "trace.json")
    kernels = kernels_of(tmp_path / "trace.json")
    table = loaderprof.read(tmp_path / "seen").tables["phases"]
    busy_us = sum(ended - begun for begun, ended in kernels) / 200
    message = {name: float(table[f"{name}_ns"].mean()) / 1e3 for name in ("forward", "backward", "optimizer", "rest")}
    # A step that computes all the time: its phases are its kernels, and a backward pass is two products to each forward.
    assert sum(message.values()) == pytest.approx(busy_us, rel=0.05)
    assert message["backward"] / message["forward"] == pytest.approx(2.0, rel=0.3)


def test_capture_costs_a_quick_step_little(tmp_path: Path) -> None:
    def seconds(hooked: bool) -> float:
        printed = run(tmp_path, "quick", "--seconds", "--steps", "2000", hooked=hooked)
        if hooked:
            shutil.rmtree(tmp_path / "seen")
        return float(printed.split()[-1])

    ratios = [seconds(True) / seconds(False) - 1 for _ in range(5)]
    print(f"capture on a quick step: {np.median(ratios):+.2%} of {ratios}")
    assert np.median(ratios) < 0.01


def test_nothing_waits_for_the_device_that_did_not_before(tmp_path: Path) -> None:
    counts = []
    for hooked in (False, True):
        run(tmp_path, "compute", "--trace", f"{hooked}.json", hooked=hooked)
        names = Counter(each["name"] for each in events(tmp_path / f"{hooked}.json"))
        counts.append({name: names[name] for name in WAITS})
    assert counts[0] == counts[1]


def test_losses_are_the_same(tmp_path: Path) -> None:
    assert run(tmp_path, "logger") == run(tmp_path, "logger", hooked=False)


def test_the_gpu_is_sampled(tmp_path: Path) -> None:
    run(tmp_path, "compute")
    assert found(tmp_path)["run"]["gpus"]
    lines = [json.loads(line) for line in (tmp_path / "seen/host.jsonl").read_text().splitlines()]
    seen = [line["gpu"][0]["utilisation_percent"] for line in lines if line.get("gpu")]
    assert max(filter(None, seen), default=0) > 20
