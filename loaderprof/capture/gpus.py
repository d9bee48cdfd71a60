"""What NVML reports of every GPU, for the supervisor: it corroborates the device's own clock, and is no verdict by itself.

What a GPU does not report, or one that fell off the bus does no more, is None, and the others go on. Runs only in
loaderprof's own processes.
"""

from __future__ import annotations

import time
from typing import Any

from loaderprof.capture.hooks import overhead
from loaderprof.capture.samplers import HOST_BUDGET, WatchedJob


class GpuSampler:
    """Every GPU that NVML shows, and every part of one under MIG: utilisation, memory, clocks, power, link, processes."""

    def __init__(self) -> None:
        self.period_s = 1.0
        self.missing: str | None = None
        self._nvml: Any = None
        # NVML's number of a GPU, its handle, and whether that is of a part of it.
        self._handles: list[tuple[int, Any, bool]] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            for index in range(pynvml.nvmlDeviceGetCount()):
                # One that is lost, or not ours to see, does not hide the others.
                handle = self._ask(pynvml.nvmlDeviceGetHandleByIndex, index)
                if handle is not None:
                    self._handles.append((index, handle, False))
                    self._handles += [(index, part, True) for part in self._parts(handle)]
        except ImportError:
            self.missing = "not measured: the package nvidia-ml-py is not installed"
        except pynvml.NVMLError as error:
            absent = error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            self.missing = "not measured: no NVIDIA driver" if absent else f"not measured: NVML says {error}"

    def names(self) -> list[str]:
        """Return the GPUs' names; empty without a driver."""
        named = (self._ask(self._nvml.nvmlDeviceGetName, handle) for _, handle, part in self._handles if not part)
        return [_text(name) for name in named if name is not None]

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:  # noqa: ARG002 - the protocol's signature
        """Return one entry a GPU, or part of one; what it does not report is None."""
        if self._nvml is None:
            return None
        begun = time.thread_time()
        sample = {"gpu": [self._one(*each) for each in self._handles]}
        self.period_s = max(1.0, (time.thread_time() - begun) / overhead.allowed(HOST_BUDGET))
        return sample

    def close(self) -> None:
        """Leave NVML."""
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)

    def _parts(self, handle: Any) -> list[Any]:
        """Return the handles of a GPU's parts; none where it is not divided."""
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return []
        count = self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        parts = (self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number) for number in range(count))
        return [part for part in parts if part is not None]

    def _one(self, index: int, handle: Any, part: bool) -> dict[str, Any]:
        nvml, ask = self._nvml, self._ask
        utilisation = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        uuid = ask(nvml.nvmlDeviceGetUUID, handle)
        return {
            "index": index,
            "uuid": _text(uuid) if uuid is not None else None,
            "part": part,
            "utilisation_percent": utilisation.gpu if utilisation else None,
            "memory_utilisation_percent": utilisation.memory if utilisation else None,
            "memory_used": memory.used if memory else None,
            "memory_total": memory.total if memory else None,
            "sm_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "sm_clock_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "power_mw": ask(nvml.nvmlDeviceGetPowerUsage, handle),
            "power_limit_mw": ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle),
            "throttle_reasons": ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            "pcie_received_kb_s": ask(nvml.nvmlDeviceGetPcieThroughput, handle, nvml.NVML_PCIE_UTIL_RX_BYTES),
            "pcie_generation": ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            "pcie_width": ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            "pids": [process.pid for process in processes] if processes is not None else None,
        }

    def _ask(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
