"""A stand-in for torch's module of a device (torch.cuda): no device, but streams and events on a clock of the test's own.

Events behave as torch and CUDA document it: work on a stream runs in order, an event is reached when the work before it
is done; `query()` of one that was never recorded is true; `elapsed_time` raises for events that were not recorded, that
were made without `enable_timing`, that were not reached, or that lie on two devices; an event stays with the device that
recorded it first. What CUDA refuses within a graph capture is refused here. `faults` counts every refusal.
"""

from __future__ import annotations

from typing import Any


class Device:
    """Two devices with two streams each, of which `index` and `stream` are current. `host_ms` is the time; nothing passes but by `host` and `launch`."""

    def __init__(self) -> None:
        self.host_ms = 0.0
        self.ends = {(index, stream): 0.0 for index in (0, 1) for stream in (0, 1)}
        self.index = self.stream = 0
        self.initialised = self.capturing = False
        self.faults: list[str] = []
        self.made = 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
                del blocking, interprocess
                device.made += 1
                if not device.initialised:
                    device.refuse("an event was made before the device was initialised")
                self.timed, self.at, self.device, self.captured = enable_timing, None, None, False

            def record(self, stream: Any = None) -> None:
                del stream
                if self.device not in (None, device.index):
                    device.refuse(
                        f"Event device {self.device} does not match recording stream's device {device.index}."
                    )
                self.device, self.captured = device.index, device.capturing
                self.at = max(device.host_ms, device.ends[device.index, device.stream])

            def query(self) -> bool:
                if device.capturing:
                    device.refuse("CUDA error: operation not permitted when stream is capturing")
                return self.at is None or self.at <= device.host_ms

            def elapsed_time(self, end: Event) -> float:
                if self.at is None or end.at is None:
                    device.refuse("Both events must be recorded before calculating elapsed time.")
                if not (self.timed and end.timed):
                    device.refuse("Both events must be created with argument 'enable_timing=True'.")
                if self.device != end.device or self.captured or end.captured:
                    device.refuse("CUDA error: invalid resource handle")
                if not (self.query() and end.query()):
                    device.refuse("CUDA error: device not ready")
                return float(end.at - self.at)

            def synchronize(self) -> None:
                device.refuse("loaderprof synchronised")

        self.Event = Event

    def refuse(self, message: str) -> None:
        self.faults.append(message)
        raise RuntimeError(message)

    def is_initialized(self) -> bool:
        return self.initialised

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_device(self) -> int:
        if not self.initialised:
            self.refuse("current_device initialises the device")
        return self.index

    def current_stream(self) -> tuple[int, int]:
        return self.index, self.stream

    def synchronize(self) -> None:
        self.refuse("loaderprof synchronised")

    def host(self, ms: float) -> None:
        """The host is busy for so long."""
        self.host_ms += ms

    def launch(self, ms: float) -> None:
        """Put so much work on the current device's stream."""
        begun = max(self.host_ms, self.ends[self.index, self.stream])
        self.ends[self.index, self.stream] = begun + ms

    def wait(self) -> None:
        """The job itself waits for its device, as `loss.item()` does."""
        self.host_ms = max(self.host_ms, *self.ends.values())
