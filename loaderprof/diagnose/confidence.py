"""What speaks for and against a verdict beyond the replay: whether the sources agree, and how much was guessed. Pure."""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.analyze.stages import WORK
from loaderprof.diagnose.verdict import MODEL_ERROR, primary
from loaderprof.findings import Stage
from loaderprof.replay.job import LoopStudy

# A replay of the run as it was that is further off than this says so.
REPRODUCED = 0.03
# Cores that other programs kept busy: from here on they may be why.
NOTICED = 0.2
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


def doubts_about_replay(error: float | None, others: float) -> tuple[str, ...]:
    """Return why predictions are less sure, where the replay does not reproduce the run itself.

    Args:
        error: how far the replay of the run as it was is from the run, as a share; None: there is none.
        others: cores that other programs kept busy.
    """
    if error is None or abs(error) <= REPRODUCED:
        return ()
    off = f"the replay of the run as it was is {formatting.percent(abs(error), whole=True)} {'slower' if error > 0 else 'quicker'} than the run"
    why = f", in which other programs kept {others:.1f} cores busy" if others > NOTICED else ""
    then = "it cannot predict changes well" if abs(error) > MODEL_ERROR else "predictions may be off by as much"
    return (f"{off}{why}: {then}",)
