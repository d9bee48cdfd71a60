"""The device's own side of a step, on recordings made by hand: phases, copies, GPUs, and the verdict that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, Process, ns, span

from loaderprof.analyze import device
from loaderprof.analyze.timeline import build
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings
from loaderprof.recording import journal as layout
from loaderprof.recording.reader import Recording

MIB = 1 << 20
GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "part": False,
    "utilisation_percent": 95,
    "memory_used": 20 << 30,
    "memory_total": 80 << 30,
    "pcie_generation": 4,
    "pcie_width": 16,
    "power_mw": 300_000,
    "throttle_reasons": 0,
}


def made_on_a_gpu(
    folder: Path,
    *,
    wait: float = 0.0002,
    step: float = 0.02,
    starved: float = 0.0,
    busy: float | None = None,
    copy: float = 0.0,
    pinned: float = 1.0,
    bytes_: int = 64 * MIB,
    step_cpu: float = 0.1,
    making: float = 0.002,
    gpu: dict[str, Any] | None = None,
    floats: int = 0,
    step_runq: float = 0.0,
    lines: dict[int, int] | None = None,
) -> Recording:
    """A loop of 120 steps on a device, with two workers and measured phases; `copy` is marked.

    `lines` of train.py: how many stack samples of the step stand there.
    """
    made = Made(folder)
    process = made.process()
    fetch = Fetch(
        cpu=making,
        batch_bytes=bytes_,
        floats=floats,
        operators=[("PIL.JpegImagePlugin.JpegImageFile.load_prepare", making, making)],
    )
    plan = Plan(
        batches=120, wait=wait, step=step, step_cpu=step_cpu, step_runq=step_runq, workers=2, ready=1, fetch=fetch
    )
    ended = made.loop(process, plan)
    for number in range(120):
        clocked(process, number * (wait + step), starved, step if busy is None else busy, copy, pinned, bytes_)
    for line, count in (lines or {}).items():
        made.stacks(process.pid, [f"<module> (/home/me/train.py:{line})"], count)
    for second in range(4):
        made.host(float(second), busy=0.0, job=[(process.pid, 0.0)])
        made.lines[-1]["gpu"] = [GPU | (gpu or {})]
    made.finish(ended)
    return made.read()


def clocked(
    process: Process, begun: float, starved: float, busy: float, copy: float, pinned: float, bytes_: int
) -> None:
    rest = busy - copy
    process.journal.write(layout.DEVICE, 0, 0, 1, 0, span(starved), span(busy))
    process.journal.write(
        layout.PHASES,
        1,
        0,
        1,
        ns(begun),
        ns(begun + busy),
        0,
        span(copy),
        span(0.3 * rest),
        span(0.5 * rest),
        span(0.1 * rest),
        span(0.1 * rest),
        1,
        1,
        int(copy > 0),
        bytes_,
        int(pinned * bytes_),
    )


def texts(findings: Findings, cause: str) -> str:
    return "; ".join(fact.text for each in findings.causes if each.id == cause for fact in each.evidence)


def test_phases_are_means_of_the_measured_steps(tmp_path: Path) -> None:
    seen = made_on_a_gpu(tmp_path / "r", copy=0.002)
    phases = findings_of(seen).phases
    assert phases is not None
    assert (phases.clock, phases.steps) == ("device", 120)
    message = (phases.copy_s, phases.forward_s, phases.backward_s, phases.optimizer_s, phases.rest_s)
    assert message == pytest.approx((0.002, 0.0054, 0.009, 0.0018, 0.0018))


def test_what_was_not_marked_is_not_zero(tmp_path: Path) -> None:
    phases = findings_of(made_on_a_gpu(tmp_path / "r")).phases
    assert phases is not None
    assert phases.copy_s is None


def test_a_job_without_a_device_or_a_backward_pass_has_neither(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    made.loop(process, Plan(batches=60))
    for _ in range(30):
        process.journal.write(layout.PHASES, 0, 0, 1, ns(0), ns(1), -1, 0, 0, 0, 0, span(1), 0, 0, 0)
    seen = made.read()
    (loop,) = build(seen).loops
    assert device.phases_of(seen, loop) is None
    assert device.copies_of(seen, loop, {}) is None
    assert device.gpus_of(seen) == ()


def test_pageable_copies_are_the_limit_and_pinning_them_has_a_number(tmp_path: Path, said: Check) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", copy=0.008, pinned=0.0))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("copy", "pageable-copy")
    message = texts(found, "pageable-copy")
    # 64 MiB in 8 ms; a link of generation 4 and 16 lanes takes 31.5 GB/s.
    said("pageable copies", message)
    assert all(number in message for number in ("67 MB", "8.4 GB/s", "2.1 ms", "0 % "))
    (pin,) = (each for each in found.advice if each.id == "pin-memory")
    assert pin.expected.speedup is not None
    # 20 ms of which 5.3 go; and at most all 8.
    assert pin.expected.speedup == pytest.approx(20 / 14.7, rel=0.04)
    assert pin.expected.high is not None
    assert pin.expected.high >= 20 / 12 * 0.97


def test_pinned_copies_that_the_step_waits_for_can_be_hidden(tmp_path: Path) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", copy=0.008, floats=100))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("copy", "float-copy")
    assert "overlapped-copy" in {each.id for each in found.advice}
    assert "pin-memory" not in {each.id for each in found.advice} or found.advice[0].id != "pin-memory"


def test_a_small_copy_is_ruled_out_by_its_number(tmp_path: Path, said: Check) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", copy=0.0002))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("device", "compute-bound")
    assert [each.status for each in found.causes if each.stage == "copy"] == ["ruled_out"]
    said("a GPU with room", texts(found, "compute-bound"))
    assert "GPU 0 has 25 % " in texts(found, "compute-bound")


def test_copies_that_nothing_marks_are_not_measured(tmp_path: Path) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r"))
    assert [each.status for each in found.causes if each.stage == "copy"] == ["not_measured"]


def test_an_unmarked_copy_is_told_by_stacks_where_the_host_waits_for_it_alone(tmp_path: Path) -> None:
    sources = {
        "/home/me/train.py:5": "x = batch.to(device)",
        "/home/me/train.py:6": "loss.backward()",
        "/home/me/train.py:7": "losses.append(loss.cpu().to(torch.float64))",
    }

    def copies(name: str, pinned: float, lines: dict[int, int]) -> device.Copies:
        seen = made_on_a_gpu(tmp_path / name, pinned=pinned, lines=lines)
        (loop,) = build(seen).loops
        message = device.copies_of(seen, loop, sources)
        assert message is not None
        return message

    pageable = copies("pageable", 0.0, {5: 40, 6: 40, 7: 20})
    assert pageable.host_s == pytest.approx(0.4 * 0.02)
    assert pageable.seconds(starved=True) == pageable.host_s
    # A device that is behind is waited for as well, and nobody waits for a copy of pinned memory.
    assert pageable.seconds(starved=False) is None
    assert copies("pinned", 1.0, {5: 40, 6: 60}).seconds(starved=True) is None
    assert copies("few", 0.0, {5: 4, 6: 6}).host_s is None


def test_a_thread_that_is_kept_from_its_core_cannot_launch(tmp_path: Path, said: Check) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", step_runq=0.3))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("device", "stolen-core")
    said("a stolen core", texts(found, "stolen-core"))
    assert " 30 % " in texts(found, "stolen-core")


@pytest.mark.parametrize(
    ("utilisation", "cause"), [(30, "launch-bound"), (95, "compute-bound"), (None, "compute-bound")]
)
def test_a_busy_thread_beside_an_idle_gpu_cannot_feed_it(tmp_path: Path, utilisation: int | None, cause: str) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", step_cpu=0.97, gpu={"utilisation_percent": utilisation}))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("device", cause)


def test_a_full_or_throttled_gpu_is_told(tmp_path: Path, said: Check) -> None:
    found = findings_of(made_on_a_gpu(tmp_path / "r", gpu={"memory_used": 76 << 30, "throttle_reasons": 0x04 | 0x01}))
    message = texts(found, "compute-bound")
    said("a full and throttled GPU", message)
    assert "95 % " in message
    assert "power cap" in message


def test_what_the_device_felt_bounds_what_the_loop_waited(tmp_path: Path, said: Check) -> None:
    # The loop waits 30 ms for a batch; the device, which is behind, for none of them.
    found = findings_of(made_on_a_gpu(tmp_path / "r", wait=0.03, step=0.01, starved=0.0, busy=0.04, making=0.06))
    assert found.verdict.wait_s == 0
    starved = findings_of(made_on_a_gpu(tmp_path / "s", wait=0.03, step=0.01, starved=0.029, busy=0.011, making=0.08))
    assert starved.verdict.bottleneck == "decode"
    said("a starved device", texts(starved, "jpeg-decode"))
    assert " 29 ms " in texts(starved, "jpeg-decode")
    assert "gpu-decode" in {each.id for each in starved.advice}


DEVICES = [
    {"index": 0, "uuid": "GPU-aa", "part": False},
    {"index": 0, "uuid": "MIG-11", "part": True},
    {"index": 0, "uuid": "MIG-12", "part": True},
    {"index": 1, "uuid": "GPU-bb", "part": False},
]
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (BY_BUS, ["GPU-aa", "GPU-bb"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "1,0", **BY_BUS}, ["GPU-bb", "GPU-aa"]),
        ({"CUDA_VISIBLE_DEVICES": "1,7,0", **BY_BUS}, ["GPU-bb"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bb"}, ["GPU-bb"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, ["GPU-bb"]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-12"}, ["MIG-12"]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1", **BY_BUS}, []),
    ],
)
def test_the_devices_that_a_process_sees(environment: dict[str, str], expected: list[str] | None) -> None:
    seen = device.visible(DEVICES, environment)
    assert (None if seen is None else [each["uuid"] for each in seen]) == expected
