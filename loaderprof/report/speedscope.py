"""Recording -> speedscope's own JSON of the stacks."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from loaderprof._version import __version__
from loaderprof.analyze.stages import split_frame
from loaderprof.errors import RecordingError
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def stacks_by_process(seen: Recording) -> dict[int, list[StackSamples]]:
    """Return the stacks by process, in the order in which the processes were first seen.

    Raises:
        RecordingError: there are none.
    """
    stacks: dict[int, list[StackSamples]] = defaultdict(list)
    for sample in seen.stacks:
        stacks[sample.pid].append(sample)
    if not stacks:
        raise RecordingError(
            f"{seen.folder} holds no stacks: the run was too short, or py-spy was refused",
            "loaderprof env tells whether py-spy may read stacks",
        )
    return stacks


def process_name(seen: Recording, pid: int, samples: list[StackSamples]) -> str:
    """Return what an export calls a process: its worker or rank, and its process id."""
    known = next((process for process in seen.processes if process.pid == pid), None)
    if known is not None and known.worker is not None:
        return f"worker {known.worker} ({pid})"
    if any(sample.frames[0].startswith("_worker_loop (") for sample in samples if sample.frames):
        return f"worker ({pid})"
    rank = f"rank {known.rank}" if known is not None and known.rank is not None else "process"
    return f"{rank} ({pid})"


def render(seen: Recording) -> bytes:
    """Return stacks as speedscope's own JSON: one profile a process, its threads as root frames, weights in seconds.

    Raises:
        RecordingError: there are none.
    """
    numbers: dict[str, int] = {}
    profiles = []
    for pid, samples in stacks_by_process(seen).items():
        rows = [
            [numbers.setdefault(frame, len(numbers)) for frame in (f"thread {sample.thread}", *sample.frames)]
            for sample in samples
        ]
        weights = [round(sample.count / sample.rate_hz, 6) for sample in samples]
        profiles.append(
            {
                "type": "sampled",
                "name": process_name(seen, pid, samples),
                "unit": "seconds",
                "startValue": 0,
                "endValue": round(sum(weights), 6),
                "samples": rows,
                "weights": weights,
            }
        )
    command = seen.meta.command
    document = {
        "$schema": SPEEDSCOPE_SCHEMA,
        "shared": {"frames": [_speedscope_frame(frame) for frame in numbers]},
        "profiles": profiles,
        "name": " ".join(map(str, command)) if command is not None else seen.folder.name,
        "activeProfileIndex": 0,
        "exporter": f"loaderprof {__version__}",
    }
    return json.dumps(document).encode()


def _speedscope_frame(frame: str) -> dict[str, Any]:
    function, file, line = split_frame(frame)
    shown: dict[str, Any] = {"name": function}
    if file:
        shown["file"] = file
    if line is not None:
        shown["line"] = line
    return shown
