"""The catalogue's causes for a tf.data pipeline: how they are recognised there, their evidence and the headline.

A pipeline has no loop context: a cause is recognised by what the most expensive function of its stage calls. Pure: no
torch, no clock, no processes.
"""

from __future__ import annotations

import re

from loaderprof import formatting
from loaderprof.analyze.stages import LOADER
from loaderprof.analyze.tfdata import MOSTLY_BLOCKED, STAGES, Node, Pipeline
from loaderprof.diagnose.causes.catalogue import BY_ID, CATALOGUE, WORTH_NAMING
from loaderprof.diagnose.causes.cause import CauseRule
from loaderprof.diagnose.causes.device import KEEPS_UP
from loaderprof.diagnose.causes.no_cause import NOTHING_TO_CHANGE
from loaderprof.diagnose.verdict import MIN_GAIN, Judgement
from loaderprof.findings import Cause, Evidence, Stage

# What a stage is where nothing more is known of it: the catalogue's last, which always matches.
_PLAIN = {cause.stage: cause for cause in CATALOGUE}


def cause_of(stage: Stage, pipeline: Pipeline) -> CauseRule:
    """Return the cause of the catalogue that a bottleneck of this stage is."""
    if stage == "none":
        return BY_ID["balanced"]
    if stage == "read" and (pipeline.blocked or 0.0) > MOSTLY_BLOCKED:
        return BY_ID["waiting-read"]
    node = _most_expensive(pipeline, stage)
    if node is not None and node.operation is not None:
        called = " ".join((*node.operation.ops, *node.operation.words))
        for cause in CATALOGUE:
            if cause.stage == stage and cause.tf_calls and re.search(cause.tf_calls, called, re.IGNORECASE):
                return cause
    return _PLAIN[stage]


def headline(stage: Stage, pipeline: Pipeline, gains: dict[Stage, float], loop: str) -> str:
    """Return the verdict in one sentence.

    Args:
        stage: what limits the job.
        pipeline: where its batches come from.
        gains: by stage, the speedup of the job with the stage's work removed: 1.3 for 30 %.
        loop: the loop's name.
    """
    if stage == "none":
        return NOTHING_TO_CHANGE
    if stage == "startup":
        return f"The borders of {loop}'s epochs"
    if stage == "device":
        after = max(STAGES, key=lambda each: gains[each])
        if gains[after] >= 1 + WORTH_NAMING:
            return f"{_PLAIN[stage].before}{cause_of(after, pipeline).title}"
        return KEEPS_UP
    node = _most_expensive(pipeline, stage)
    place = f" ({', '.join(filter(None, (node.label, node.where)))})" if node is not None else ""
    return f"{cause_of(stage, pipeline).title} in the tf.data pipeline{place}"


def examine(pipeline: Pipeline, gains: dict[Stage, float], judgement: Judgement) -> tuple[Cause, ...]:
    """Return the causes of one loop: the found ones first, then ruled out, then not measured."""
    found, ruled_out = [], []
    for stage in sorted(gains, key=lambda each: (each != judgement.stage, -gains[each])):
        cause, gain = cause_of(stage, pipeline), gains[stage]
        if stage == judgement.stage or stage in judgement.others:
            found.append(cause.found(gain, _evidence(stage, pipeline, gain)))
        elif stage in LOADER:
            ruled_out.append(cause.ruled_out(gain))
    missing = BY_ID["host-python"].not_measured("stacks of a graph's step are not Python's")
    return (*found, *ruled_out, missing)


def _evidence(stage: Stage, pipeline: Pipeline, gain: float) -> tuple[Evidence, ...]:
    text = f"without it the job would be {formatting.ratio(gain)} as fast"
    facts = [Evidence(text, round(gain, 3), "ratio", 1 + MIN_GAIN)]
    node = _most_expensive(pipeline, stage)
    if node is None:
        return tuple(facts)
    work = sum(each.work_s for each in pipeline.nodes)
    share = sum(each.work_s for each in pipeline.nodes if each.stage == stage) / work
    text = f"{formatting.percent(share, whole=True)} of a batch's making ({pipeline.batches} batches measured)"
    facts.append(Evidence(text, round(share, 4), "share", None))
    calls = node.parallelism if node.ahead and node.parallelism else 1
    facts.append(Evidence(f"{node.label} ran {calls} call{'s' if calls > 1 else ''} at a time", float(calls), "", None))
    if stage == "read" and pipeline.blocked is not None:
        text = f"its functions are blocked {formatting.percent(pipeline.blocked, whole=True)} of their time"
        facts.append(Evidence(text, round(pipeline.blocked, 4), "share", MOSTLY_BLOCKED))
    return tuple(facts)


def _most_expensive(pipeline: Pipeline, stage: Stage) -> Node | None:
    mine = [node for node in pipeline.nodes if node.stage == stage and node.work_s > 0]
    return max(mine, key=lambda node: node.work_s, default=None)
