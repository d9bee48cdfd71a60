"""Recording -> what the page shows beyond the findings: the main loop's steps, the batches of its producers, stacks, the host."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from loaderprof import formatting
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.machine import used_s
from loaderprof.analyze.stages import stage_of_stack
from loaderprof.analyze.timeline import Timeline, build
from loaderprof.recording.reader import Recording
from loaderprof.report.page import Bar, Host, PageData, Samples, Slow, SlowSample, Stack, Steps

SLOWEST, SLOWEST_SAMPLES = 20, 10


def page_data(recording: Recording) -> PageData:
    """Return the series and bars of a recording's longest loop, and the stacks and host samples of all of it."""
    timeline = build(recording)
    host, stacks = _host(recording, timeline), _stacks(recording, timeline)
    if not timeline.loops:
        return PageData(host=host, stacks=stacks)
    loop = next((each for each in timeline.loops if each.training), timeline.loops[0])
    return PageData(
        steps=_steps(loop),
        host=host,
        bars=_bars(loop),
        stacks=stacks,
        slow=_slow(loop),
        samples=_samples(recording, loop),
        ranks=_ranks(timeline.loops),
    )


def _steps(loop: Loop) -> Steps:
    return Steps(
        t_s=loop.asked,
        wait_s=loop.wait,
        step_s=loop.wait + loop.step,
        ready=np.where(loop.ready >= 0, loop.ready, np.nan).astype(float),
        epoch_starts_s=[epoch.begun for epoch in loop.epochs],
    )


def _ranks(loops: Sequence[Loop]) -> dict[int, Steps]:
    """Return the steps of each rank's training loop, or its first; empty where there is one rank only."""
    found: dict[int, Loop] = {}
    for loop in sorted(loops, key=lambda loop: not loop.training):
        if loop.main_thread:
            found.setdefault(loop.process.rank or 0, loop)
    return {rank: _steps(found[rank]) for rank in sorted(found)} if len(found) > 1 else {}


def _samples(recording: Recording, loop: Loop) -> Samples:
    """Return what single samples took in the loop's batches that were timed in depth."""
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows = recording.tables["sample"]
    rows = rows[np.isin(rows["process"], numbers)]
    rows = rows[rows["worker"] >= 0] if loop.num_workers else rows[rows["worker"] < 0]
    took, cpu = rows["wall_ns"] / 1e9, rows["cpu_ns"] / 1e9
    slowest = []
    for index in np.unique(rows["index"][rows["index"] >= 0]).tolist():  # -1: the sample was not requested by an index
        mine = rows["index"] == index
        files = [recording.texts[number] for number in rows["file"][mine].tolist() if number >= 0]
        slowest.append(
            SlowSample(index, float(took[mine].mean()), float(cpu[mine].mean()), int(mine.sum()), next(iter(files), ""))
        )
    slowest.sort(key=lambda each: -each.seconds)
    return Samples(took, slowest[:SLOWEST_SAMPLES])


def _bars(loop: Loop) -> list[Bar]:
    """Return each batch that was produced; a fetch and a take belong together by task and epoch."""
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
                int(made.worker[number]),
                float(made.begun[number]),
                float(made.done[number]),
                int(made.task[number]),
                taken.get((epoch, int(made.task[number]))),
            )
        )
    return bars


def _slow(loop: Loop) -> list[Slow]:
    made = loop.made
    order = np.argsort(-made.wall)[:SLOWEST]
    return [Slow(int(made.task[n]), int(made.worker[n]), float(made.wall[n]), _note(loop, int(n))) for n in order]


def _note(loop: Loop, number: int) -> str:
    made = loop.made
    parts = {"CPU": made.cpu[number], "blocked": made.blocked[number], "waiting for a core": made.runq[number]}
    word, seconds = max(parts.items(), key=lambda item: item[1])
    return f"{formatting.percent(seconds / max(made.wall[number], 1e-9), whole=True)} {word}"


def _stacks(recording: Recording, timeline: Timeline) -> list[Stack]:
    workers = {process.pid for process in recording.processes if process.worker is not None}
    sources = dict(recording.meta.sources)
    origin = timeline.origin_ns
    found = []
    for sample in recording.stacks:
        if sample.thread != "MainThread":
            continue
        # A job that was attached to has no journals that identify its workers; their stacks do.
        worker = sample.pid in workers or "".join(sample.frames[:1]).startswith("_worker_loop (")
        stage = stage_of_stack(sample.frames, sources) if worker or _loads(sample.frames) else "device"
        found.append(
            Stack(
                "worker" if worker else "main",
                sample.frames,
                stage or "unknown",
                sample.count,
                (sample.t_begun - origin) / 1e9,
                (sample.t_done - origin) / 1e9,
            )
        )
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
        times.append((after["t"] - timeline.origin_ns) / 1e9)
        cpu.append(100 * used_s(before, after) / seconds)
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
