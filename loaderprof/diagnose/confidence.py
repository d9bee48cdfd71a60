"""What speaks for and against a verdict beyond the replay: whether the sources agree, and how much was guessed. Pure."""

from __future__ import annotations

from loaderprof.analyze.breakdown import WORK
from loaderprof.diagnose.verdict import primary
from loaderprof.findings import Stage
from loaderprof.replay.job import LoopStudy

# Where the two shares differ by this much or more, one source misses work that the other sees.
AGREE = 0.35


def agreement(main: LoopStudy, gains: dict[Stage, float]) -> bool | None:
    """Return whether timers and stacks give the bottleneck the same share of the producers' time; None where one is missing."""
    if not main.parts.by_stack or not main.parts.timed_batches:
        return None
    stage = primary(gains)
    if stage not in WORK:
        return None
    total = sum(piece.total_s for piece in main.parts.pieces)
    timed = sum(piece.total_s for piece in main.parts.pieces if piece.stage == stage) / total if total else 0.0
    seen = main.parts.by_stack.get(stage, 0) / sum(main.parts.by_stack.values())
    return abs(timed - seen) < AGREE


def guessed(main: LoopStudy, gains: dict[Stage, float]) -> float:
    """Return the share of the bottleneck's time in the producers whose stage no source identified."""
    mine = [piece for piece in main.parts.pieces if piece.stage == primary(gains)]
    total = sum(piece.total_s for piece in mine)
    return sum(piece.total_s for piece in mine if piece.guessed) / total if total else 0.0
