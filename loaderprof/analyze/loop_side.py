"""The loop's own side of a step: the model's work, the loop's own Python, its stalls, and who holds the GIL meanwhile.

Found by the stacks of the thread that runs the loop, and by its stamps. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.stages import split_frame
from loaderprof.recording.files import WATCHED_FRAME
from loaderprof.recording.reader import Recording

# Fewer stack samples have no shares worth showing.
MIN_STACK_SAMPLES = 20
# A step of this many times the median, and longer than it by the second number of seconds, is a stall, not a slow step.
STALL_RATIO, MIN_STALL_S = 4.0, 0.005
# Fewer steps do not show what comes at regular distances.
MIN_STEPS = 20
# So many stalls, at distances whose deviation is no more than this share of their mean, are caused by the loop itself.
MIN_STALLS, REGULAR = 3, 0.35
# Another thread holds the GIL where the loop's thread is off the CPU for this share of its steps, and other threads of the
# process compute for at least the second share of that.
LOCKED, COMPUTING = 0.2, 0.5

# Libraries that only the loop's own Python calls, and lines of the user's that are it.
_HOST_FRAMES = re.compile(
    r"torch/serialization\.py|/(json|logging|csv|pickle|tqdm|wandb|mlflow|tensorboard|matplotlib|pandas)/|"
    r"/(csv|pickle|shutil|print|traceback|gzip)\.py|/sklearn/metrics|torchmetrics"
)
_SYNC_LINES = re.compile(r"\.item\(\)|\.cpu\(\)|\.tolist\(\)|\.numpy\(\)")
_HOST_LINES = re.compile(
    r"\bprint\(|\blog(ger|ging)?\b|\.log\(|\bsave\(|\.write\(|\.writerow|json\.dump|\.add_scalar|"
    r"checkpoint|metric|accuracy|evaluate|validate|\bplt\.|\bgc\.|\bfsync\(|\bflush\("
)
# The model's work: torch's own modules, and lines that call them. A sleep stands for a device elsewhere.
_DEVICE_FRAMES = re.compile(
    r"torch/(optim|nn|autograd|_tensor\.py|_dynamo|_inductor|amp|functional\.py|distributed|cuda)"
)
_DEVICE_LINES = re.compile(
    r"\bsleep\(|\.backward\(|\.step\(|zero_grad|\bmodel\b|\bnet(work)?\b|criterion|\bloss\w*\s*=|\bforward\(|"
    r"\btorch\.|\bF\.|\bnn\.|synchronize\(|\blogits\b|(?<!\bnp)\.(argmax|(log_)?softmax|sigmoid|matmul|einsum|bmm)\("
)

# The model at work, whatever else stands on the user's line: `loss.backward(); total += loss.item()`.
_MODEL_CALLS = re.compile(
    r"(^|\.)(_engine_run_backward|_(wrapped_)?call_impl|forward) \(.*torch/(nn|autograd|_dynamo)/"
)
# Every training loop in torch has such a line; the recording keeps these lines whether they were sampled or not.
TRAINING = re.compile(r"\.backward\(")
_EVALUATION = re.compile(r"evaluate|validate")

Part = Literal["host", "device", "unknown"]


def host_share(
    recording: Recording, loop: Loop, sources: dict[str, str]
) -> tuple[float | None, tuple[tuple[str, float], ...], int]:
    """Return the share of the step that is the loop's own Python, its lines, and how many samples of the step there are."""
    seen: Counter[tuple[Part, str]] = Counter()
    for sample in recording.stacks:
        if sample.pid == loop.process.pid and sample.thread == "MainThread" and not _in_loader(sample.frames):
            seen[part_of_step(sample.frames, sources, device=len(loop.busy) > 0)] += sample.count
    total = sum(seen.values())
    if total < MIN_STACK_SAMPLES:
        return None, (), total
    # Plain Python beside torch's work is the loop's own; where torch is not at work, it is the model itself. Samples may miss
    # torch where it takes little of a step, but the line that calls it is always recorded.
    trained = any(part == "device" for part, _ in seen) or any(map(TRAINING.search, sources.values()))
    own: tuple[Part, ...] = ("host", "unknown") if trained else ("host",)
    lines: Counter[str] = Counter()
    for (part, place), count in seen.items():
        if part in own:
            lines[place] += count
    shown = tuple((shown_place(recording, place) or place, count / total) for place, count in lines.most_common(5))
    return sum(lines.values()) / total, shown, total


def part_of_step(frames: tuple[str, ...], sources: dict[str, str], device: bool = False) -> tuple[Part, str]:
    """Return which part of the step a stack of the loop's thread is, and the user's line nearest its leaf.

    Args:
        frames: root first, `function (file:line)`.
        sources: the text of the user's source lines, by `file:line`.
        device: the step runs on a device of its own, so that a line that reads a result waits for it.
    """
    library: Part = "unknown"
    model = arrays = False
    for frame in reversed(frames):
        _, file, line = split_frame(frame)
        place = f"{file}:{line}"
        source = sources.get(place)
        if source is not None:
            part = _part_of_line(source, library, device, model and not _EVALUATION.search(source))
            # numpy at work below a line is not the model, whatever else the line calls.
            return ("unknown" if arrays and part == "device" and not model else part), place
        model = model or bool(_MODEL_CALLS.search(frame))
        arrays = arrays or "/numpy/" in file
        if library == "unknown":
            library = "host" if _HOST_FRAMES.search(file) else "device" if _DEVICE_FRAMES.search(file) else "unknown"
    return library, ""


def _part_of_line(source: str, library: Part, device: bool, model: bool) -> Part:
    """Return whose a user's line is, by its text and by what was at work below it."""
    if model:
        return "device"
    if library == "host" or _HOST_LINES.search(source):
        return "host"
    if _SYNC_LINES.search(source):
        return "device" if device else "host"
    return "device" if library == "device" or _DEVICE_LINES.search(source) else "unknown"


def host_place(frames: tuple[str, ...], sources: dict[str, str]) -> str | None:
    """Return the user's line that a main-thread stack belongs to if it is the loop's own Python, else None."""
    part, place = part_of_step(frames, sources)
    return place if part == "host" else None


def _in_loader(frames: tuple[str, ...]) -> bool:
    return any("torch/utils/data/dataloader.py" in frame or frame == WATCHED_FRAME for frame in frames)


def lock_holder(recording: Recording, loop: Loop, sources: dict[str, str]) -> str | None:
    """Return the user's line in which another thread of the loop's process computes all the time, None for none.

    Both must hold: the loop's thread is off the CPU while other threads of its process use it, and stacks show a thread at
    work in the user's own Python. The threads of a device use the CPU too, so nothing is said where there is one.
    """
    steps = loop.steady & np.isfinite(loop.step_process_cpu) & np.isfinite(loop.step_cpu)
    if not steps.any() or len(loop.busy):
        return None
    beside = float((loop.step_process_cpu - loop.step_cpu)[steps].sum())
    idle = float((loop.step - loop.step_cpu - np.nan_to_num(np.clip(loop.step_runq, 0, None)))[steps].sum())
    if idle < LOCKED * float(loop.step[steps].sum()) or beside < COMPUTING * idle:
        return None
    seen: Counter[str] = Counter()
    for sample in recording.stacks:
        if sample.pid == loop.process.pid and sample.thread != "MainThread":
            place = next((place for frame in sample.frames[-2:] if (place := _line(frame)) in sources), None)
            if place is not None:
                seen[place] += sample.count
    return shown_place(recording, seen.most_common(1)[0][0]) if sum(seen.values()) >= MIN_STACK_SAMPLES else None


def stalls(loop: Loop) -> tuple[float, float | None]:
    """Return (seconds per step beyond the usual in steps that stall regularly, steps from one stall to the next).

    What the loop does every so many steps comes at regular distances; what a busy machine does to it does not.
    """
    chosen = loop.steady & np.isfinite(loop.step) & (loop.count == 1)
    step = np.maximum(loop.step - np.nan_to_num(np.clip(loop.step_runq, 0.0, None)), 0.0)[chosen]
    if len(step) < MIN_STEPS:
        return 0.0, None
    median = float(np.median(step))
    stalled = step > max(STALL_RATIO * median, median + MIN_STALL_S)
    apart = np.diff(np.flatnonzero(stalled))
    if len(apart) < MIN_STALLS or apart.std() > REGULAR * apart.mean():
        return 0.0, None
    return float((step[stalled] - median).sum() / len(step)), float(apart.mean())


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"


def shown_place(recording: Recording, place: str) -> str | None:
    """Return `file:line` relative to the folder the job ran in or the script lies in, None for nothing."""
    if not place or place.startswith("<"):
        return None
    for folder in (recording.meta.cwd, recording.meta.script_folder):
        inside = str(folder or "").rstrip("/") + "/"
        if len(inside) > 1 and place.startswith(inside):
            return place[len(inside) :]
    return place


def helpers_waited(recording: Recording, loop: Loop) -> float:
    """Return the share of its time in which the loop lacked a thread of a library, which waited for a core.

    The threads that compute a step meet at barriers, and spin or sleep there until the last one arrives. Their waits are
    taken to be independent of one another. 0 where no window of stack samples has such threads.
    """
    mine = [use for use in recording.threads if use.pid == loop.process.pid]
    wall_s = sum(use.wall_s for use in mine if use.thread == "MainThread")
    helpers = [use for use in mine if not use.thread]
    if not wall_s or not helpers:
        return 0.0
    count = max(1.0, sum(use.wall_s for use in helpers) / wall_s)
    each = min(1.0, sum(use.runq_s for use in helpers) / wall_s / count)
    return float(1.0 - (1.0 - each) ** count)
