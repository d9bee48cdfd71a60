"""What a batch of a loop costs by stage, in the order of its way through the pipeline: the figures of a report's table. Pure."""

from __future__ import annotations

from typing import Literal

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.stages import WORK
from loaderprof.findings import Part, Stage, StageCost

Source = Literal["timer", "stack", "kernel"]

# Named pieces that are listed of a stage, the most expensive ones.
MAX_PARTS = 8


def stage_costs(loop: Loop, parts: Breakdown) -> tuple[StageCost, ...]:
    """Return what a batch of a loop costs by stage: seconds, None where not measured, and their share of all."""
    seconds = _seconds(loop, parts)
    total = sum(value for value in seconds.values() if value) or None
    return tuple(
        StageCost(
            stage,
            None if value is None else round(value, 7),
            share_of(value, total),
            _sources(stage, parts),
            _named(stage, parts),
        )
        for stage, value in seconds.items()
    )


def share_of(part: float | None, whole: float | None) -> float | None:
    """Return a part over the whole, to four digits; None where one of them was not measured."""
    return round(part / whole, 4) if part is not None and whole else None


def _seconds(loop: Loop, parts: Breakdown) -> dict[Stage, float | None]:
    seconds: dict[Stage, float | None] = {}
    for stage in WORK:
        mine = [piece.total_s for piece in parts.pieces if piece.stage == stage]
        seconds[stage] = sum(mine) if mine else (0.0 if parts.pieces else None)
    if loop.num_workers:
        seconds["handover"] = (parts.pickle_s or 0.0) + (loop.mean(loop.receive) or 0.0)
    seconds["sampler"] = parts.index_s
    seconds["contention"] = parts.runq_s
    step, host = loop.step_s, parts.host_share
    seconds["device"] = step * (1 - (host or 0.0)) if step is not None else None
    seconds["host"] = step * host if step is not None and host is not None else None
    if parts.copy_s is not None:
        seconds["copy"] = parts.copy_s
        seconds["device"] = max(0.0, (seconds["device"] or 0.0) - parts.copy_s)
    return seconds


def _sources(stage: Stage, parts: Breakdown) -> tuple[Source, ...]:
    if stage in WORK:
        timers: tuple[Source, ...] = ("timer",) if parts.timed_batches or stage == "collate" else ()
        stacks: tuple[Source, ...] = ("stack",) if parts.by_stack else ()
        return (*timers, *stacks, "kernel")
    return ("kernel",) if stage == "contention" else ("stack",) if stage == "host" else ("timer",)


def _named(stage: Stage, parts: Breakdown) -> tuple[Part, ...]:
    mine = [piece for piece in parts.pieces if piece.stage == stage][:MAX_PARTS]
    return tuple(Part(piece.name, piece.where, round(piece.total_s, 7)) for piece in mine)
