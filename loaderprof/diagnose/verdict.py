"""One primary bottleneck, the rest ranked, or an honest refusal - from what each stage's removal would gain.

The numbers come from the replay (`replay.removal`), the words from `causes`. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loaderprof.analyze.stages import LOADER
from loaderprof.findings import Confidence, Stage

# Below this gain a stage is no bottleneck: loader and step are in balance.
MIN_GAIN = 0.05
# Under the first nothing is concluded; from the second on, the number of steps is no reason to doubt.
MIN_STEPS, SURE_STEPS = 20, 60
# The loop's step limits the job, rather than being in balance with the loader, where the loader alone could go this
# much faster.
STEP_BOUND = 1.5
# A stage of the loader that gains less than this of what the step does is not what limits a job bound by its step.
CLOSE = 0.8
# A narrower explanation is preferred where it recovers this much of what the widest would.
SPECIFIC = 0.6
# Contention for cores slows the step too, and is named instead of the step where it explains this much of it.
CROWDED = 0.3
# A verdict is sure, or fairly sure, where this share of the redrawn runs names the same stage.
SURE_DRAWS, FAIR_DRAWS = 0.95, 0.8
# Beyond this the replay does not describe the run well enough to rank what it says.
MODEL_ERROR = 0.15
# Where no source identified the stage of this much of the bottleneck's time, the verdict is not sure.
MAX_GUESSED = 0.4
# A copy that takes this much of the step is named before the step: it can be hidden behind it.
COPY_GAIN = 0.15
# Producers that take turns at the GIL are reported as contention, not by the work they do, where letting them run at once
# gains this: that takes one changed line, while their work is what the job is for.
LOCK_GAIN = 0.2
# These slow down the work of another stage: removing that work removes them too.
NARROW: tuple[Stage, ...] = ("straggler", "contention")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What limits the job, what else matters in order, and how sure that is."""

    stage: Stage
    others: tuple[Stage, ...]
    confidence: Confidence
    reason: str = ""

    @property
    def least_speedup(self) -> float | None:
        """What a change must gain at the least to be advised; None: there is nothing to advise.

        Where the step limits the job only a change that surely gains something is worth it.
        """
        if self.stage in ("none", "unknown"):
            return None
        return 1 + MIN_GAIN if self.stage == "device" else 0.0


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What a run says beside its gains: how much was measured, and what speaks for and against the replay.

    Attributes:
        steps: steps that were measured in steady state.
        model_error: how far the replay of the run as it was is from the run, as a share; None: there is no replay.
        draws: the gains by bootstrap replays; may be empty.
        disturbed: other processes took a good part of the CPU, or the training itself was not seen.
        sources_agree: whether timers and stacks name the same stage; None where only one of them names any.
        guessed: share of the bottleneck's time whose stage no source identified.
        locked: the producers are threads that take turns at the GIL.
        producers_unseen: threads or processes produce the batches, and too few samples show what they do.
        wait_share: share of its time that the loop waited for batches; None: not measured.
    """

    steps: int
    model_error: float | None = None
    draws: Sequence[dict[Stage, float]] = ()
    disturbed: bool = False
    sources_agree: bool | None = None
    guessed: float = 0.0
    locked: bool = False
    producers_unseen: bool = False
    wait_share: float | None = None


def judge(gains: dict[Stage, float], run: RunEvidence) -> Judgement:
    """Return the bottleneck, or why none can be named.

    Args:
        gains: by stage, the speedup of the job with the stage's work removed.
        run: what else is known of the run.
    """
    if run.steps < MIN_STEPS:
        return Judgement("unknown", (), "low", f"only {run.steps} steps were measured, {MIN_STEPS} are needed")
    if run.producers_unseen:
        return Judgement("unknown", (), "low", "what makes the batches was not seen: too few stack samples show it")
    if not gains:
        return Judgement("unknown", (), "low", "the loader's batches were not measured")
    off, draws = abs(run.model_error or 0.0) > MODEL_ERROR, run.draws
    if run.wait_share and off:
        # A replay that is off may not blame the step for more than was measured: without it all the waiting is left.
        gains, *draws = (_at_most(each, "device", 1 / run.wait_share) for each in (gains, *draws))
    stage = primary(gains, run.locked)
    ranked = sorted((each for each in gains if each != stage), key=lambda each: -gains[each])
    others = tuple(each for each in ranked if each in (*LOADER, "host", "copy") and gains[each] >= 1 + MIN_GAIN)
    agree = sum(primary(draw, run.locked) == stage for draw in draws) / len(draws) if draws else 0.0
    doubtful = run.sources_agree is False or run.disturbed or off or run.guessed > MAX_GUESSED
    if run.steps >= SURE_STEPS and agree >= SURE_DRAWS and not doubtful:
        confidence: Confidence = "high"
    elif agree >= FAIR_DRAWS and not (doubtful and run.steps < SURE_STEPS):
        confidence = "medium"
    else:
        confidence = "low"
    return Judgement(stage, others, confidence)


def _at_most(gains: dict[Stage, float], stage: Stage, most: float) -> dict[Stage, float]:
    return {each: min(gain, most) if each == stage else gain for each, gain in gains.items()}


def primary(gains: dict[Stage, float], locked: bool = False) -> Stage:
    """Return the stage whose removal gains the most, or a narrower one that recovers most of that.

    Args:
        gains: by stage, the speedup of the job with the stage's work removed.
        locked: the producers are threads that take turns at the GIL.
    """
    if locked and gains.get("contention", 1.0) >= 1 + LOCK_GAIN:
        return "contention"
    loader = {stage: gain - 1 for stage, gain in gains.items() if stage in LOADER}
    host, device = gains.get("host", 1.0) - 1, gains.get("device", 1.0) - 1
    host_leads = host >= MIN_GAIN and host >= device
    best = max(loader, key=lambda stage: loader[stage], default=None)
    crowded = loader.get("contention", 0.0) >= max(MIN_GAIN, CROWDED * device)
    step_bound = device >= STEP_BOUND - 1 and (best is None or loader[best] < CLOSE * device) and not crowded
    if best is not None and loader[best] >= MIN_GAIN and not step_bound and (loader[best] >= host or not host_leads):
        narrow = [stage for stage in NARROW if loader.get(stage, 0.0) >= max(MIN_GAIN, SPECIFIC * loader[best])]
        return max(narrow, key=lambda stage: loader[stage]) if narrow else best
    if host_leads:
        return "host"
    if gains.get("copy", 1.0) >= 1 + COPY_GAIN:
        return "copy"
    return "device" if device >= STEP_BOUND - 1 else "none"
