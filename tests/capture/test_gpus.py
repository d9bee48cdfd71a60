"""GPUs as NVML shows them, with the functions of the real package replaced: a wrong name fails, no driver is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loaderprof.capture.gpus import GpuSampler
from loaderprof.capture.samplers import WatchedJob


def nvml(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> Any:
    """Stand in for a driver: every function not given says that it is not supported."""
    pynvml = pytest.importorskip("pynvml")

    def refuse(*_: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in dir(pynvml):
        if name.startswith("nvmlDeviceGet"):
            monkeypatch.setattr(pynvml, name, functions.get(name, refuse))
    for name, function in {"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, **functions}.items():
        monkeypatch.setattr(pynvml, name, function)
    return pynvml


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "no NVIDIA driver"),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "no NVIDIA driver"),
        ("NVML_ERROR_NO_PERMISSION", "NVML says"),
    ],
)
def test_without_a_driver_the_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    pynvml = nvml(monkeypatch)

    def fail() -> None:
        raise pynvml.NVMLError(getattr(pynvml, code))

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    sampler = GpuSampler()
    assert sampler.missing is not None
    assert sampler.missing.startswith("not measured: ")
    assert words in sampler.missing
    assert (sampler.names(), sampler.sample(WatchedJob(1, None))) == ([], None)
    sampler.close()


def test_what_a_gpu_does_not_report_is_null_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rates:
        gpu = 87
        memory = None

    nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA H200" if handle else "NVIDIA H100",
        nvmlDeviceGetUtilizationRates=lambda _: Rates,
    )
    sampler = GpuSampler()
    assert sampler.names() == ["NVIDIA H100", "NVIDIA H200"]
    sample = sampler.sample(WatchedJob(1, None))
    assert sample is not None
    assert [gpu["index"] for gpu in sample["gpu"]] == [0, 1]
    assert {gpu["utilisation_percent"] for gpu in sample["gpu"]} == {87}
    for gpu in sample["gpu"]:
        assert {key for key, value in gpu.items() if value is None} == set(gpu) - {
            "index",
            "part",
            "utilisation_percent",
        }
    sampler.close()


def test_what_is_known_of_a_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda _: b"GPU-1234",
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=51, memory=9),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=20, total=80),
        nvmlDeviceGetClockInfo=lambda _, kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind],
        nvmlDeviceGetMaxClockInfo=lambda *_: 1980,
        nvmlDeviceGetPowerUsage=lambda _: 310_000,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: pynvml.nvmlClocksThrottleReasonSwPowerCap,
        nvmlDeviceGetPcieThroughput=lambda _, way: 2_000_000 if way == pynvml.NVML_PCIE_UTIL_RX_BYTES else 1,
        nvmlDeviceGetCurrPcieLinkGeneration=lambda _: 5,
        nvmlDeviceGetCurrPcieLinkWidth=lambda _: 16,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=4711)],
    )
    sample = GpuSampler().sample(WatchedJob(1, None))
    assert sample is not None
    assert sample["gpu"] == [
        {
            "index": 0,
            "uuid": "GPU-1234",
            "part": False,
            "utilisation_percent": 51,
            "memory_utilisation_percent": 9,
            "memory_used": 20,
            "memory_total": 80,
            "sm_clock_mhz": 1980,
            "sm_clock_max_mhz": 1980,
            "memory_clock_mhz": 2619,
            "power_mw": 310_000,
            "power_limit_mw": 700_000,
            "throttle_reasons": 4,
            "pcie_received_kb_s": 2_000_000,
            "pcie_generation": 5,
            "pcie_width": 16,
            "pids": [4711],
        }
    ]


def test_a_gpu_that_falls_off_the_bus_is_null_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: set[int] = set()

    def memory(handle: int) -> Any:
        if handle in lost:
            raise pynvml.NVMLError_GpuIsLost
        return SimpleNamespace(used=handle, total=80)

    def found(index: int) -> int:
        if index == 1:
            raise pynvml.NVMLError_GpuIsLost
        return index

    pynvml = nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=found,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetName=lambda handle: f"GPU {handle}",
    )
    sampler = GpuSampler()
    assert sampler.missing is None
    assert sampler.names() == ["GPU 0", "GPU 2"]
    for expected in ([(0, 0), (2, 2)], [(0, None), (2, 2)]):
        sample = sampler.sample(WatchedJob(1, None))
        assert sample is not None
        assert [(gpu["index"], gpu["memory_used"]) for gpu in sample["gpu"]] == expected
        lost.add(0)


def test_each_part_of_a_divided_gpu_has_an_entry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(_: Any, number: int) -> str:
        if number == 1:
            raise pynvml.NVMLError_NotFound
        return f"part {number}"

    pynvml = nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda _: "whole",
        nvmlDeviceGetMigMode=lambda _: [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE],
        nvmlDeviceGetMaxMigDeviceCount=lambda _: 3,
        nvmlDeviceGetMigDeviceHandleByIndex=part,
        nvmlDeviceGetUUID=lambda handle: f"MIG-{handle}",
        nvmlDeviceGetName=lambda _: "H100",
    )
    sampler = GpuSampler()
    sample = sampler.sample(WatchedJob(1, None))
    assert sample is not None
    assert sampler.names() == ["H100"]
    assert [(gpu["uuid"], gpu["part"]) for gpu in sample["gpu"]] == [
        ("MIG-whole", False),
        ("MIG-part 0", True),
        ("MIG-part 2", True),
    ]
