"""The named pieces of making a batch: operators that were timed in some batches, scaled to a usual one and given stages.

Timers say which operator used the CPU and which was blocked; what they see no further into is split by stacks. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze import loop_side, operators
from loaderprof.analyze.loop import Bools, Loop
from loaderprof.analyze.operators import REST, Operator
from loaderprof.analyze.stages import WORK, never_reads, split_frame, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

# Stack samples from which on they say more of a function than its name does.
MIN_SAMPLES = 5
# A producer that keeps more cores than this busy runs threads of its own, and is blocked by them, not by reading, where
# they compute for this share of the time in which it is blocked.
MANY_THREADS, BUSY_THREADS = 1.4, 0.5


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One named piece of making a batch: seconds of CPU and seconds blocked, per batch.

    `where` is the user's line, `file:line`; None: unknown. `guessed`: nothing showed its stage, which is then what an
    unknown piece most often is.
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


def pieces_of(
    recording: Recording,
    loop: Loop,
    usual: Bools,
    stacks: list[StackSamples],
    sources: dict[str, str],
    threads: float | None,
) -> tuple[OperatorCost, ...]:
    """Return the named pieces of making a batch, scaled from batches timed per operator to usual ones; most expensive first.

    Args:
        recording: the run.
        loop: one of its loops.
        usual: which of its made batches are usual ones.
        stacks: of its producers while they made batches.
        sources: the text of the user's source lines, by `file:line`.
        threads: cores that a producer keeps busy; None: unknown.
    """
    made = loop.made
    if not len(made.wall):
        return ()
    fetch_cpu = float(np.maximum(made.cpu - made.collate_cpu, 0)[usual].mean())
    collate_blocked = np.maximum(made.collate - made.collate_cpu - made.runq * _ratio(made.collate, made.wall), 0)
    fetch_blocked = float(np.maximum(made.blocked - collate_blocked, 0)[usual].mean())
    # A producer that waits for threads of its own, which compute meanwhile, is not reading.
    beside = (threads or 1.0) - 1.0
    threaded = beside > max(MANY_THREADS - 1.0, BUSY_THREADS * fetch_blocked / max(fetch_cpu, 1e-9))
    fetching = operators.of_fetching(recording, loop)
    pieces = _scaled(recording, fetching, fetch_cpu, fetch_blocked, stacks, sources, threaded)
    collating = operators.of_collating(recording, loop)
    cpu, blocked = float(made.collate_cpu[usual].mean()), float(collate_blocked[usual].mean())
    pieces += [replace(piece, stage="collate") for piece in _plainly_scaled(collating, cpu, blocked)]
    kept = [piece for piece in pieces if piece.total_s > 0]
    return tuple(sorted(kept, key=lambda piece: -piece.total_s))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(part / np.maximum(whole, 1e-12))


def _plainly_scaled(found: list[Operator], cpu_s: float, blocked_s: float) -> list[OperatorCost]:
    """Return operators as pieces whose CPU and blocked seconds add up to those of a usual batch."""
    all_cpu = sum(each.cpu_s for each in found) or 1.0
    all_blocked = sum(each.blocked_s for each in found) or 1.0
    return [
        OperatorCost(
            each.stage or "transform",
            each.name,
            each.where,
            each.cpu_s / all_cpu * cpu_s,
            each.blocked_s / all_blocked * blocked_s,
            guessed=each.stage is None,
        )
        for each in found
    ]


def _scaled(
    recording: Recording,
    found: list[Operator],
    fetch_cpu: float,
    fetch_blocked: float,
    stacks: list[StackSamples],
    sources: dict[str, str],
    threaded: bool,
) -> list[OperatorCost]:
    """Scale operators to a usual batch and give each its stage: its CPU part and its blocked part may differ."""
    pieces: list[OperatorCost] = []
    owned = _by_owner(stacks, found)
    for each, piece in zip(found, _plainly_scaled(found, fetch_cpu, fetch_blocked), strict=True):
        mine = owned[""] if each.place == REST else owned[each.name]
        # A function of the user's may be called `read_clip` and decode: the lines that it was seen in decide.
        named = each.stage == "read" and each.place != "" and sum(sample.count for sample in mine) >= MIN_SAMPLES
        if each.stage is None or named:
            # What blocks is taken for reading where nothing says otherwise.
            reads = not (threaded or named)
            split = _split_by_stacks(
                replace(piece, blocked_s=0.0) if reads else piece, mine, sources, each.place == REST
            )
            pieces.extend(replace(part, where=loop_side.shown_place(recording, part.where or "")) for part in split)
            if reads:
                pieces.append(replace(piece, stage="read", cpu_s=0.0, guessed=True))
        elif each.stage == "decode" and not each.place and not never_reads(each.name):
            # A library's decoder opens the file itself: what blocked it was reading.
            pieces += [replace(piece, blocked_s=0.0), replace(piece, stage="read", cpu_s=0.0)]
        else:
            line = _slowest_line(each, owned[each.name], sources) if each.place else ""
            pieces.append(replace(piece, where=loop_side.shown_place(recording, line) or piece.where))
    return pieces


def _slowest_line(own: Operator, stacks: list[StackSamples], sources: dict[str, str]) -> str:
    """Return the line inside a function of the user's in which it was seen most often; empty for too few stacks."""
    file = own.place.rpartition(":")[0]
    seen: Counter[str] = Counter()
    for sample in stacks:
        lines = (_line(frame) for frame in reversed(sample.frames))
        seen[next((line for line in lines if line in sources and line.startswith(file)), "")] += sample.count
    line, count = seen.most_common(1)[0] if seen else ("", 0)
    return line if count >= MIN_SAMPLES else ""


def _split_by_stacks(
    whole: OperatorCost, stacks: list[StackSamples], sources: dict[str, str], rest: bool
) -> list[OperatorCost]:
    """Split what timers see no further into, by the lines and library frames in which it was seen.

    Args:
        whole: the piece to split.
        stacks: of producers while they were in it.
        sources: the text of the user's source lines, by `file:line`.
        rest: it is what timers left of a batch, so that each part is named by the user's function it was seen in.
    """
    seen: Counter[tuple[Stage | None, str, str]] = Counter()
    for sample in stacks:
        stage = stage_of_stack(sample.frames, sources)
        # In a function named after reading, decoding is kept apart; copying what was read is part of reading.
        stage = whole.stage if whole.stage == "read" and stage != "decode" else stage
        own = next((frame for frame in reversed(sample.frames) if _line(frame) in sources), "")
        name = split_frame(own)[0] if own and rest else whole.name
        seen[stage if stage in WORK else None, name, _line(own) if own else whole.where or ""] += sample.count
    total = sum(seen.values())
    if total < MIN_SAMPLES:
        return [replace(whole, guessed=True)]
    return [
        OperatorCost(
            stage or whole.stage,
            name,
            place,
            whole.cpu_s * count / total,
            whole.blocked_s * count / total,
            guessed=stage is None and whole.guessed,
        )
        for (stage, name, place), count in seen.items()
    ]


def _by_owner(stacks: list[StackSamples], found: list[Operator]) -> dict[str, list[StackSamples]]:
    """Return stacks by the innermost timed function that they are in, without the frames outside it; "" for none."""
    timed = {(each.name.rsplit(".", 1)[-1], each.place.rsplit(":", 1)[0]): each.name for each in found if each.place}
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


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"
