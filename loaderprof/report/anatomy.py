"""What a step and a worker's batch consist of, in pieces to lay side by side in the terminal or a picture."""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.findings import Findings, Stage
from loaderprof.report import sentences
from loaderprof.report.palette import COLOURS, NAMES, STEP_STAGES, WORKER_STAGES


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a stacked bar; waiting differs from work by its hatching, not by colour alone."""

    name: str
    seconds: float
    colour: str
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Whole:
    """A stacked bar: what it shows, how long that took, and its pieces."""

    name: str
    seconds: float
    pieces: tuple[Segment, ...]


def step(findings: Findings, *, phases: bool) -> Whole | None:
    """Return a step: waiting, and working as one piece or in its phases; `None` where it was not measured."""
    verdict, who = findings.verdict, sentences.waiter(findings)
    if not verdict.step_s or verdict.wait_s is None:
        return None
    work_s = max(verdict.step_s - verdict.wait_s, 0.0)
    works = _phases(findings, work_s) if phases else ()
    waits = Segment(f"{who} waits", verdict.wait_s, COLOURS[verdict.bottleneck], True)
    return Whole("A step", verdict.step_s, (waits, *(works or [Segment(f"{who} works", work_s, COLOURS["device"])])))


def worker(findings: Findings) -> Whole | None:
    """Return a batch in its worker, by stage; `None` where no stage was measured."""
    pieces = _pieces(findings, WORKER_STAGES)
    total_s = sum(piece.seconds for piece in pieces)
    return Whole("A batch in its worker", total_s, pieces) if pieces else None


def _phases(findings: Findings, work_s: float) -> tuple[Segment, ...]:
    """Return the phases of the work where they add up to it; on a GPU they may run side by side."""
    pieces = _pieces(findings, STEP_STAGES)
    total_s = sum(piece.seconds for piece in pieces)
    return pieces if 0.9 * work_s <= total_s <= 1.1 * work_s else ()


def _pieces(findings: Findings, stages: tuple[Stage, ...]) -> tuple[Segment, ...]:
    costs = {cost.stage: cost.s_per_batch for cost in findings.stages}
    return tuple(Segment(NAMES[each], costs[each] or 0.0, COLOURS[each]) for each in stages if costs.get(each))
