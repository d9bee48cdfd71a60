"""What one batch of a loop costs, by stage and by name: timers, kernel counters and stacks brought together.

In the maker of a batch (a worker, or the main process without workers) wall time is thread CPU + run-queue wait +
blocked time. Timers say which operator used the CPU and which was blocked; what they leave is told by stacks. In the
loop's own process stacks tell the model's work from the loop's own Python. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.diagnose import loop_side
from loaderprof.diagnose.stages import split_frame, stage_of_operator, stage_of_stack
from loaderprof.diagnose.timeline import Bools, Loop
from loaderprof.findings import Stage
from loaderprof.recording import Recording, StackSamples

MIN_STACK_SAMPLES = 20
# So few samples still tell more of a function than its name does.
MIN_TOLD = 5
# Below this a batch's other threads are those that hand over the one before.
MIN_THREADED_S = 0.001
WORK: tuple[Stage, ...] = ("read", "decode", "transform", "collate")


@dataclass(frozen=True, slots=True)
class Piece:
    """One named piece of a batch's making: seconds of CPU and seconds blocked, per batch.

    `guessed`: nothing told its stage; it is what an unknown piece most often is.
    """

    stage: Stage
    name: str
    where: str | None
    cpu_s: float
    blocked_s: float
    guessed: bool = False

    @property
    def total_s(self) -> float:
        """CPU and blocked seconds together."""
        return self.cpu_s + self.blocked_s


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a batch of one loop costs, in seconds per batch; None where nothing was measured.

    Attributes:
        pieces: what making a batch took, by name, dearest first; their CPU and blocked seconds add up to the maker's.
        by_stack: samples of the makers by stage; empty where there were too few stacks.
        host_share: share of the step that is the loop's own Python, by stacks; None where there were too few.
        stall_s: seconds per step beyond the usual step, in steps that stalled.
        threads: CPU of the maker's whole process over its thread's: above 1, libraries run threads of their own. None
            where batches are too short to tell.
        lock_holder: the line of a Python thread that computes beside the loop and holds the interpreter's lock.
    """

    measured: int
    wall_s: float | None
    cpu_s: float | None
    runq_s: float | None
    blocked_s: float | None
    collate_s: float | None
    pickle_s: float | None
    receive_s: float | None
    index_s: float | None
    pieces: tuple[Piece, ...]
    timed_batches: int
    by_stack: dict[Stage, int]
    stack_samples: int
    host_share: float | None
    host_by: tuple[tuple[str, float], ...]
    step_samples: int
    stall_s: float
    stall_every: float | None
    threads: float | None
    lock_holder: str | None
    device_bytes: float | None
    asked_bytes: float | None


def break_down(recording: Recording, loop: Loop) -> Breakdown:
    """Return what a batch of `loop` costs."""
    made, sources = loop.made, sources_of(recording)
    usual = usual_batches(loop)
    stacks = _maker_stacks(recording, loop)
    by_stack = _count_stages(stacks, sources)
    enough = sum(by_stack.values()) >= MIN_STACK_SAMPLES

    def mean(values: np.ndarray) -> float | None:
        chosen = values[usual]
        chosen = chosen[np.isfinite(chosen)]
        return float(chosen.mean()) if len(chosen) else None

    pieces = _pieces(recording, loop, usual, stacks, sources)
    host_share, host_by, step_samples = loop_side.host_share(recording, loop, sources)
    holder = loop_side.lock_holder(recording, loop, sources)
    # A thread that holds the lock stalls the loop too; it is not the loop's own doing.
    stall_s, stall_every = (0.0, None) if holder else loop_side.stalls(loop)
    told = usual & np.isfinite(made.threads_cpu)
    cpu = mean(made.cpu)
    own = float(made.cpu[told].mean()) if told.any() else 0.0
    return Breakdown(
        measured=int(usual.sum()), wall_s=mean(made.wall), cpu_s=cpu, runq_s=mean(made.runq),
        blocked_s=mean(made.blocked), collate_s=mean(made.collate), pickle_s=mean(made.pickle_cpu),
        receive_s=loop.mean(loop.receive_cpu), index_s=loop.mean(loop.index), pieces=pieces,
        timed_batches=int(made.deep.sum()), by_stack=by_stack if enough else {}, stack_samples=sum(by_stack.values()),
        host_share=host_share, host_by=host_by, step_samples=step_samples, stall_s=stall_s, stall_every=stall_every,
        threads=1.0 + float(made.threads_cpu[told].mean()) / own if own > MIN_THREADED_S else None,
        lock_holder=holder, device_bytes=mean(made.device_bytes), asked_bytes=mean(made.asked_bytes),
    )  # fmt: skip


def usual_batches(loop: Loop) -> Bools:
    """Return which made batches stand for the others: past a process's first one and not timed in depth."""
    made = loop.made
    usual = made.warm & ~made.deep
    return usual if usual.any() else made.warm if made.warm.any() else np.ones(len(made.wall), np.bool_)


def sources_of(recording: Recording) -> dict[str, str]:
    """Return the user's source lines that came with a recording, by `file:line`."""
    sources = recording.meta.get("sources")
    return {str(key): str(value) for key, value in sources.items()} if isinstance(sources, dict) else {}


def _pieces(
    recording: Recording, loop: Loop, usual: Bools, stacks: list[StackSamples], sources: dict[str, str]
) -> tuple[Piece, ...]:
    """Return the named pieces of making a batch, scaled from batches timed in depth to the usual ones."""
    made = loop.made
    if not len(made.wall):
        return ()
    fetch_cpu = float(np.maximum(made.cpu - made.collate_cpu, 0)[usual].mean())
    collate_blocked = np.maximum(made.collate - made.collate_cpu - made.runq * _ratio(made.collate, made.wall), 0)
    fetch_blocked = float(np.maximum(made.blocked - collate_blocked, 0)[usual].mean())
    rows, batches = _operators(recording, loop)
    raw = _raw_pieces(recording, rows, batches, float(made.deep.sum()), loop)
    pieces = _scaled(recording, raw, fetch_cpu, fetch_blocked, stacks, sources)
    collate_name = str(loop.facts.get("collate_fn") or "collate")
    pieces.append(
        Piece(
            "collate", collate_name, None, float(made.collate_cpu[usual].mean()), float(collate_blocked[usual].mean())
        )
    )
    kept = [piece for piece in pieces if piece.total_s > 0]
    return tuple(sorted(kept, key=lambda piece: -piece.total_s))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(part / np.maximum(whole, 1e-12))


def _operators(recording: Recording, loop: Loop) -> tuple[np.ndarray, int]:
    """Return the operator rows of a loop's makers, and how many batches they come from."""
    table = recording.tables["operator"]
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows = table[np.isin(table["process"], numbers) & (table["name"] >= 0)]
    rows = rows[rows["worker"] >= 0] if loop.num_workers else rows[rows["worker"] < 0]
    return rows, len(np.unique(rows[["process", "batch"]])) if len(rows) else 0


# What timers leave of a batch belongs to no timed function.
REST = "(rest)"
# Stage if the name tells it, shown name, line, CPU and blocked seconds, and `file:line` where the user defines it.
_Raw = tuple[Stage | None, str, str | None, float, float, str]


def _raw_pieces(recording: Recording, rows: np.ndarray, batches: int, deep: float, loop: Loop) -> list[_Raw]:
    """Return the operators of a batch timed in depth, and what they leave of it."""
    cpu: dict[tuple[str, str], float] = defaultdict(float)
    wall: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows[(rows["flags"] & 1) == 0]:
        key = (recording.texts[row["name"]], recording.texts[row["caller"]] if row["caller"] >= 0 else "")
        cpu[key] += row["cpu_ns"] / 1e9 / max(1, batches)
        wall[key] += row["wall_ns"] / 1e9 / max(1, batches)
    raw: list[_Raw] = []
    for (text, caller), seconds in wall.items():
        name, _, place = text.partition("@")
        users_own = bool(place) and not _installed(place)
        where = loop_side.shown_place(recording, place if users_own else caller)
        stage = stage_of_operator(name)
        spent = min(cpu[text, caller], seconds)
        raw.append((stage, _shown(name), where, spent, max(0.0, seconds - spent), place if users_own else ""))
    made = loop.made
    if deep:
        rest_cpu = float((made.cpu - made.collate_cpu)[made.deep].mean()) - sum(cpu.values())
        rest_wall = float((made.wall - made.collate)[made.deep].mean()) - sum(wall.values())
        # Calls of the timers themselves are in the rest, about a microsecond each.
        calls = float(rows["calls"].sum()) / max(1, batches) * 2e-6 if len(rows) else 0.0
        rest_cpu, rest_wall = rest_cpu - calls, rest_wall - calls
        if rest_cpu > 0 or rest_wall > 0:
            rest_cpu = max(rest_cpu, 0.0)
            where = loop_side.shown_place(recording, str(loop.facts.get("dataset_where") or ""))
            name = _shown(str(loop.facts.get("dataset") or "dataset"))
            raw.append((None, name, where, rest_cpu, max(0.0, rest_wall - rest_cpu), REST))
    if not raw:
        where = loop_side.shown_place(recording, str(loop.facts.get("dataset_where") or ""))
        raw.append((None, _shown(str(loop.facts.get("dataset") or "dataset")), where, 1.0, 1.0, REST))
    return raw


def _scaled(
    recording: Recording,
    raw: list[_Raw],
    fetch_cpu: float,
    fetch_blocked: float,
    stacks: list[StackSamples],
    sources: dict[str, str],
) -> list[Piece]:
    """Scale pieces to the usual batch, and give each its stage: the CPU part and the blocked part may differ."""
    total_cpu = sum(item[3] for item in raw) or 1.0
    total_blocked = sum(item[4] for item in raw) or 1.0
    pieces: list[Piece] = []
    owned = _by_owner(stacks, raw)
    for stage, name, where, cpu, blocked, place in raw:
        cpu_s, blocked_s = cpu / total_cpu * fetch_cpu, blocked / total_blocked * fetch_blocked
        if stage is None:
            mine = owned[""] if place == REST else owned[name]
            told = _told_by_stacks(name, where, cpu_s, mine, sources)
            pieces.extend(replace(piece, where=loop_side.shown_place(recording, piece.where or "")) for piece in told)
            pieces.append(Piece("read", name, where, 0.0, blocked_s, guessed=True))
        elif stage == "decode" and not place:
            # A library that decodes also reads: what blocked it was the reading.
            pieces += [Piece("decode", name, where, cpu_s, 0.0), Piece("read", name, where, 0.0, blocked_s)]
        else:
            pieces.append(Piece(stage, name, where, cpu_s, blocked_s))
    return pieces


def _told_by_stacks(
    name: str, where: str | None, cpu_s: float, stacks: list[StackSamples], sources: dict[str, str]
) -> list[Piece]:
    """Split the CPU that timers see no further into by the lines and library frames in which it was seen."""
    seen: Counter[tuple[Stage | None, str]] = Counter()
    for sample in stacks:
        stage = stage_of_stack(sample.frames, sources)
        place = next((place for frame in reversed(sample.frames) if (place := _line(frame)) in sources), where or "")
        seen[stage if stage in WORK else None, place] += sample.count
    total = sum(seen.values())
    if total < MIN_TOLD:
        return [Piece("transform", name, where, cpu_s, 0.0, guessed=True)]
    return [
        Piece(stage or "transform", name, place, cpu_s * count / total, 0.0, guessed=stage is None)
        for (stage, place), count in seen.items()
    ]


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"


def _by_owner(stacks: list[StackSamples], raw: list[_Raw]) -> dict[str, list[StackSamples]]:
    """Return stacks by the innermost timed function that they are in, cut to what lies inside it; "" for none."""
    timed = {(name.rsplit(".", 1)[-1], place.rsplit(":", 1)[0]): name for _, name, _, _, _, place in raw if place}
    owned: dict[str, list[StackSamples]] = defaultdict(list)
    for sample in stacks:
        owner, at = "", 0
        for number in range(len(sample.frames) - 1, -1, -1):
            function, file, _ = split_frame(sample.frames[number])
            name = timed.get((function.rsplit(".", 1)[-1], file))
            if name is not None:
                owner, at = name, number
                break
        owned[owner].append(replace(sample, frames=sample.frames[at:]))
    return owned


def _maker_stacks(recording: Recording, loop: Loop) -> list[StackSamples]:
    """Return the stacks of this loop's makers while they made batches."""
    pids = set(loop.made.pid.tolist())
    found = []
    for sample in recording.stacks:
        if sample.pid not in pids or (sample.thread != "MainThread" and loop.num_workers):
            continue
        at = fetch_frame(sample.frames)
        if at is not None:
            found.append(
                StackSamples(
                    sample.t_begun,
                    sample.t_done,
                    sample.rate_hz,
                    sample.pid,
                    sample.thread,
                    sample.frames[at:],
                    sample.count,
                )
            )
    return found


def fetch_frame(frames: tuple[str, ...]) -> int | None:
    """Return where in a stack the making of a batch begins: the leaf-most frame of torch's fetchers."""
    for number in range(len(frames) - 1, -1, -1):
        if "utils/data/_utils/fetch.py" in frames[number]:
            return number
    return None


def _count_stages(stacks: list[StackSamples], sources: dict[str, str]) -> dict[Stage, int]:
    counts: Counter[Stage] = Counter()
    for sample in stacks:
        stage = stage_of_stack(sample.frames, sources) or "transform"
        counts[stage if stage in WORK else "transform"] += sample.count
    return dict(counts)


def _installed(place: str) -> bool:
    return "site-packages" in place or "dist-packages" in place or "/lib/python3" in place


def _shown(name: str) -> str:
    return name.removeprefix("__main__.").removeprefix("__mp_main__.").replace(".<locals>", "")
