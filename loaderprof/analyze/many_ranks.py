"""Recordings of many ranks, read in bounded memory.

The verdict is about the rank that waits the most, so the records of a thousand others are not needed beside it. Each rank
is read alone and reduced to its means (steps, waits, number of batches); only the few ranks that wait the most are then
read in full. A report compares all ranks by their means. Pure but for reading: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.recording import reader
from loaderprof.recording.reader import Recording, SummedLoop, SummedRank

# Ranks that are read in full: a page draws as many lanes.
WHOLE = 8


def read(folder: Path, rank: int | None = None) -> Recording:
    """Read a recording; of many ranks only the few that wait the most in full.

    Args:
        folder: the recording.
        rank: one more that is read in full.

    Raises:
        RecordingError: as `reader.read`.
    """
    heads = reader.processes(folder)
    ranks = {process.rank for process in heads if process.worker is None and process.rank is not None}
    if len(ranks) <= WHOLE:
        return reader.read(folder)
    summed = [SummedRank(alone.processes[0], _loops(alone)) for alone in reader.one_by_one(folder)]
    waits = {number: max(_wait_s(each) for each in summed if each.process.rank == number) for number in ranks}
    kept = set(sorted(ranks, key=lambda number: -waits[number])[:WHOLE]) | ({rank} & ranks)
    seen = reader.read(folder, whole=lambda process: process.rank is None or process.rank in kept)
    seen.others = tuple(each for each in summed if each.process.rank is not None and each.process.rank not in kept)
    seen.notes.append(
        f"of {len(ranks):,} ranks the {len(kept)} that wait the most are told in full, the others by their steps and waits"
    )
    return seen


def _loops(alone: Recording) -> tuple[SummedLoop, ...]:
    return tuple(map(_summed, build(alone).loops))


def _summed(loop: Loop) -> SummedLoop:
    size = loop.facts.batch_size
    return SummedLoop(
        loop.name,
        loop.facts.where,
        loop.training,
        loop.main_thread,
        loop.batches,
        size,
        len(loop.epochs),
        loop.wait_s,
        loop.step_s,
        loop.pace_s,
    )


def main_loop(loops: Iterable[SummedLoop]) -> SummedLoop | None:
    """Return a rank's longest training loop, or its longest loop where it trains in none; None without any.

    Args:
        loops: the longest first, as in `Timeline.loops`.
    """
    return next(iter(sorted((loop for loop in loops if loop.main_thread), key=lambda loop: not loop.training)), None)


def _wait_s(each: SummedRank) -> float:
    loop = main_loop(each.loops)
    return (loop.wait_s or 0.0) if loop is not None else 0.0
