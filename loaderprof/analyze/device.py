"""The device's own side of a step: its phases, how the batch gets to it, and what NVML says of the GPUs that the job uses.

Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.stages import split_frame
from loaderprof.findings import Gpu, StepPhases
from loaderprof.recording.reader import Recording
from loaderprof.recording.tables import Table

# Fewer measured steps have no mean worth showing; fewer stack samples of the step no share.
MIN_MEASURED, MIN_STACK_SAMPLES = 5, 20
# A line of the user's that moves a batch to the device, and functions of libraries that do.
_COPY_LINES = re.compile(r"\.to\(|\.cuda\(|send_to_device|_prepare_inputs?\(|batch_to_device")
# A device that has nothing to do for this share of its step is idle when a batch comes.
STARVED = 0.1
# Calls that wait for the device themselves: a line that also has one does not show what its copy takes.
_ALSO = re.compile(r"\.item\(|\.cpu\(|\.backward\(|synchronize\(")
# Bytes per second of a lane, by generation of PCI Express, encoding taken off.
LANE_BYTES_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
# Bits of NVML's reasons for low clocks that mean a limit; idle, and clocks that somebody set, are none.
THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Copies:
    """How a batch gets to the device, per batch; None where it was not measured.

    Attributes:
        bytes_: of tensors in the host's memory when the loop had its batch.
        pinned: share of these bytes in pinned memory.
        s: seconds of the device's step that are the copy, by its own clock; only where the copy was marked.
        host_s: seconds that the loop stands at the line that copies, by stacks; with a device that is behind, waiting
            for it is in them.
        least_s: seconds that the bytes take at the link's full speed.
    """

    bytes_: float | None
    pinned: float | None
    s: float | None
    host_s: float | None
    least_s: float | None

    def seconds(self, starved: bool) -> float | None:
        """Return what the copy takes of a step: measured, or, where the device waits for it, as the host felt it.

        Args:
            starved: the device is idle when the copy begins, so that the host waits for nothing but the copy.
        """
        if self.s is not None:
            return self.s
        # From pinned memory the host does not wait for a copy.
        pageable = self.pinned is not None and self.pinned < 0.5
        return self.host_s if pageable and starved else None


def phases_of(recording: Recording, loop: Loop) -> StepPhases | None:
    """Return what the steps of a loop consist of; None where too few were measured, or none went backward."""
    rows = _measured(recording, loop)
    if len(rows) < MIN_MEASURED or not rows["backwards"].any():
        return None
    seconds = {
        name: float(rows[f"{name}_ns"].mean()) / 1e9 for name in ("copy", "forward", "backward", "optimizer", "rest")
    }
    return StepPhases(
        "device" if rows["device"][0] >= 0 else "host",
        len(rows),
        seconds["copy"] if rows["copies"].any() else None,
        seconds["forward"],
        seconds["backward"],
        seconds["optimizer"] if rows["optimizers"].any() else None,
        seconds["rest"],
    )


def _measured(recording: Recording, loop: Loop) -> Table:
    """Return the measured steps of a loop, by the device's clock where there is one.

    Loops that step together share their steps, which are then the last one's to have asked.
    """
    rows = recording.tables["phases"]
    rows = rows[rows["process"] == loop.process.number]
    mine = rows[np.isin(rows["iterator"], loop.iterators)]
    rows = mine if mine["backwards"].any() else rows
    clocked: Table = rows[rows["device"] >= 0]
    return clocked if len(clocked) else rows


def copies_of(recording: Recording, loop: Loop, sources: dict[str, str]) -> Copies | None:
    """Return how batches get to the device; None where the step did not run on one."""
    if not len(loop.starved):
        return None
    rows = _measured(recording, loop)
    sized = rows[(rows["flags"] & 1) > 0]
    bytes_ = float(sized["bytes"].mean()) if len(sized) else None
    phases = phases_of(recording, loop)
    share, step = _at_copy_lines(recording, loop, sources), loop.mean(loop.step)
    speed = max((each.link_bytes_s for each in gpus_of(recording) if each.link_bytes_s), default=None)
    return Copies(
        bytes_,
        float(sized["pinned_bytes"].sum() / sized["bytes"].sum()) if bytes_ else None,
        phases.copy_s if phases is not None else None,
        share * step if share is not None and step is not None else None,
        bytes_ / speed if bytes_ and speed else None,
    )


def _at_copy_lines(recording: Recording, loop: Loop, sources: dict[str, str]) -> float | None:
    """Return the share of the step in which its thread stands at a line that copies; None: too few stack samples.

    A copy is called in C, so that the line which asks for it is the last of its stack.
    """
    seen = copying = 0
    for sample in recording.stacks:
        inside = any("torch/utils/data/dataloader.py" in frame for frame in sample.frames)
        if sample.pid != loop.process.pid or sample.thread != "MainThread" or inside:
            continue
        seen += sample.count
        _, file, line = split_frame(sample.frames[-1])
        source = sources.get(f"{file}:{line}", "")
        if _COPY_LINES.search(source) and not _ALSO.search(source):
            copying += sample.count
    return copying / seen if seen >= MIN_STACK_SAMPLES else None


def visible(devices: Sequence[dict[str, Any]], environment: Mapping[str, str | None]) -> list[dict[str, Any]] | None:
    """Return what NVML shows of the devices a process sees, in its own order; None where that is unknown.

    Args:
        devices: entries with NVML's `index`, its `uuid`, and whether it is a `part`.
        environment: of the process. NVML counts by the bus; CUDA's own order is by speed unless CUDA_DEVICE_ORDER says so,
            which is the same where there is one GPU, and unknown else.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    whole = [each for each in devices if not each.get("part")]
    if named is None:
        return whole if len(whole) < 2 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" else None
    seen = []
    for name in (part.strip() for part in str(named).split(",")):
        if name.isdecimal():
            if len(whole) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
                return None
            found = [each for each in whole if each["index"] == int(name)]
        else:
            # A prefix does, as long as it is one device's.
            found = [each for each in devices if name and str(each.get("uuid") or "").startswith(name)]
        if len(found) != 1:
            # CUDA ignores the first name without a device, and all after it.
            break
        seen += found
    return seen


def gpus_of(recording: Recording) -> tuple[Gpu, ...]:
    """Return what NVML reported of the GPUs that the job used; of all GPUs where it is unknown which these are."""
    entries: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in recording.host:
        for entry in line.get("gpu", ()):
            entries.setdefault((int(entry["index"]), str(entry.get("uuid") or "")), []).append(entry)
    if not entries:
        return ()
    used = _used(recording, [samples[-1] for samples in entries.values()])
    return tuple(_gpu(samples) for key, samples in sorted(entries.items()) if used is None or key in used)


def _used(recording: Recording, devices: list[dict[str, Any]]) -> set[tuple[int, str]] | None:
    used = set()
    for process in recording.processes:
        rows = recording.tables["device"]
        rows = rows[rows["process"] == process.number]
        seen = visible(devices, process.header.environment)
        for number in np.unique(rows["device"]):
            if seen is None or not 0 <= number < len(seen):
                return None
            used.add((int(seen[number]["index"]), str(seen[number].get("uuid") or "")))
    return used or None


def _gpu(samples: list[dict[str, Any]]) -> Gpu:
    def middle(name: str) -> float | None:
        numbers = [float(each[name]) for each in samples if _is_number(each.get(name))]
        return float(np.median(numbers)) if numbers else None

    def most(name: str) -> float | None:
        return max((float(each[name]) for each in samples if _is_number(each.get(name))), default=None)

    generation, width = most("pcie_generation"), most("pcie_width")
    lane = LANE_BYTES_S.get(int(generation)) if generation else None
    reasons = {
        words
        for bit, words in THROTTLED.items()
        if 2
        * sum(bool(int(each["throttle_reasons"]) & bit) for each in samples if _is_number(each.get("throttle_reasons")))
        > len(samples)
    }
    memory, total = most("memory_used"), most("memory_total")
    received, power = middle("pcie_received_kb_s"), middle("power_mw")
    return Gpu(
        int(samples[0]["index"]),
        samples[0].get("uuid") if isinstance(samples[0].get("uuid"), str) else None,
        middle("utilisation_percent"),
        int(memory) if memory is not None else None,
        int(total) if total is not None else None,
        middle("sm_clock_mhz"),
        power / 1e3 if power is not None else None,
        tuple(sorted(reasons)),
        received * 1e3 if received is not None else None,
        lane * width if lane and width else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
