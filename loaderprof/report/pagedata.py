"""Recording -> what the page shows beyond the findings: the main loop's steps, its makers' batches, stacks, the host."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from loaderprof.diagnose.stages import stage_of_stack
from loaderprof.diagnose.timeline import Loop, Timeline, build
from loaderprof.recording import Recording
from loaderprof.report.page import Bar, Host, PageData, Slow, Stack, Steps

SLOWEST = 20


def page_data(recording: Recording) -> PageData:
    """Return the series and bars of a recording's longest loop, and the stacks and host samples of all of it."""
    timeline = build(recording)
    host, stacks = _host(recording, timeline), _stacks(recording, timeline)
    if not timeline.loops:
        return PageData(host=host, stacks=stacks)
    loop = next((each for each in timeline.loops if each.training), timeline.loops[0])
    steps = Steps(
        t_s=loop.asked, wait_s=loop.wait, step_s=loop.wait + loop.step,
        ready=np.where(loop.ready >= 0, loop.ready, np.nan).astype(float),
        epoch_starts_s=[epoch.begun for epoch in loop.epochs],
    )  # fmt: skip
    return PageData(steps=steps, host=host, bars=_bars(loop), stacks=stacks, slow=_slow(loop))


def _bars(loop: Loop) -> list[Bar]:
    """Return each made batch; taken when the loop took the batch of the same task in the same epoch."""
    taken: dict[tuple[int, int], float] = {}
    for epoch, position, moment in zip(loop.epoch.tolist(), loop.position.tolist(), loop.taken.tolist(), strict=True):
        taken[epoch, position] = moment
    made = loop.made
    starts = np.array([epoch.begun for epoch in loop.epochs] or [0.0])
    bars = []
    for number in range(len(made.wall)):
        epoch = max(0, int(np.searchsorted(starts, made.begun[number], side="right")) - 1)
        bars.append(
            Bar(
                int(made.worker[number]), float(made.begun[number]), float(made.done[number]), int(made.task[number]),
                taken.get((epoch, int(made.task[number]))),
            )
        )  # fmt: skip
    return bars


def _slow(loop: Loop) -> list[Slow]:
    made = loop.made
    order = np.argsort(-made.wall)[:SLOWEST]
    return [Slow(int(made.task[n]), int(made.worker[n]), float(made.wall[n]), _note(loop, int(n))) for n in order]


def _note(loop: Loop, number: int) -> str:
    made = loop.made
    parts = {"CPU": made.cpu[number], "blocked": made.blocked[number], "waiting for a core": made.runq[number]}
    word, seconds = max(parts.items(), key=lambda item: item[1])
    return f"{seconds / max(made.wall[number], 1e-9):.0%} {word}"


def _stacks(recording: Recording, timeline: Timeline) -> list[Stack]:
    workers = {process.pid for process in recording.processes if process.worker is not None}
    sources = recording.meta.get("sources")
    sources = sources if isinstance(sources, dict) else {}
    origin = timeline.origin_ns
    found = []
    for sample in recording.stacks:
        if sample.thread != "MainThread":
            continue
        # A job that was watched from outside has no journals that tell its workers; their stacks do.
        worker = sample.pid in workers or "".join(sample.frames[:1]).startswith("_worker_loop (")
        stage = stage_of_stack(sample.frames, sources) if worker or _loads(sample.frames) else "device"
        found.append(
            Stack(
                "worker" if worker else "main", sample.frames, stage or "unknown", sample.count,
                (sample.t_begun - origin) / 1e9, (sample.t_done - origin) / 1e9,
            )
        )  # fmt: skip
    return found


def _loads(frames: tuple[str, ...]) -> bool:
    return any("torch/utils/data/" in frame for frame in frames)


def _host(recording: Recording, timeline: Timeline) -> Host:
    lines = [line for line in recording.host if isinstance(line.get("processes"), list)]
    times, cpu, disk = [], [], []
    for before, after in pairwise(lines):
        seconds = (after["t"] - before["t"]) / 1e9
        if seconds <= 0:
            continue
        known = {entry["pid"]: entry["user"] + entry["system"] for entry in before["processes"]}
        used = sum(
            max(0.0, entry["user"] + entry["system"] - known[entry["pid"]])
            for entry in after["processes"]
            if entry["pid"] in known
        )
        times.append((after["t"] - timeline.origin_ns) / 1e9)
        cpu.append(100 * used / seconds)
        disk.append(_rate(before, after, seconds))
    gpus = _gpus(recording, times, timeline)
    return Host(t_s=times, cpu_percent=cpu, gpu_percent=gpus, disk_bytes_per_s=disk)


def _rate(before: dict[str, Any], after: dict[str, Any], seconds: float) -> float | None:
    if not before.get("disk") or not after.get("disk"):
        return None
    return float(after["disk"]["read_bytes"] - before["disk"]["read_bytes"]) / seconds


def _gpus(recording: Recording, times: list[float], timeline: Timeline) -> dict[str, list[float]]:
    """Return each GPU's utilisation at the host's sample times; empty where none was sampled."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for line in recording.host:
        for gpu in line.get("gpu", ()):
            if gpu.get("utilisation_percent") is not None:
                moment = (line["t"] - timeline.origin_ns) / 1e9
                seen.setdefault(f"GPU {gpu['index']}", []).append((moment, float(gpu["utilisation_percent"])))
    return {
        name: np.interp(times, [moment for moment, _ in samples], [value for _, value in samples]).tolist()
        for name, samples in seen.items()
    }
