"""Verdicts without a cause: nothing to gain, no loader, or not enough evidence. They are explained like causes."""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.diagnose.causes.cause import CauseRule, Guide, StageEvidence, never
from loaderprof.diagnose.verdict import MIN_GAIN, MIN_STEPS

NOTHING_TO_CHANGE = "The loader keeps up. Nothing to change here."
NONE = StageEvidence(f"no stage of the loader whose removal gains {formatting.percent(MIN_GAIN)}")
UNKNOWN = StageEvidence("nothing: that is why there is no verdict")


NO_CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="balanced",
        stage="none",
        title="The loader keeps up",
        test=never,
        evidence=NONE,
        headline=lambda *_: NOTHING_TO_CHANGE,
        guide=Guide(
            means="Loader and step are in balance.",
            identified_by="each stage that was measured",
            do=("Nothing here. A faster model may make the loader the limit; then look again.",),
            commands=("loaderprof check DIR --max-wait 10%",),
        ),
    ),
    CauseRule(
        id="no-loader",
        stage="unknown",
        title="No DataLoader was seen",
        test=never,
        evidence=UNKNOWN,
        guide=Guide(
            means="The job took no batch from a torch DataLoader in a process that was watched.",
            identified_by="no record of a batch in the recording",
            do=(
                "Wrap what yields your batches: `for batch in loaderprof.watch(batches):`",
                "Where a launcher cleans the environment (`-E`, `-I`, a PYTHONPATH of its own), profile from code.",
            ),
            commands=("loaderprof env",),
        ),
    ),
    CauseRule(
        id="not-enough-evidence",
        stage="unknown",
        title="Not enough evidence",
        test=never,
        evidence=UNKNOWN,
        guide=Guide(
            means=f"Too little was seen to name a limit: below {MIN_STEPS} steady steps, or batches that could not be measured.",
            identified_by="the report's sentence says what is missing",
            do=("Let the job run for longer.",),
            commands=("loaderprof attach PID --duration 120",),
        ),
    ),
)
