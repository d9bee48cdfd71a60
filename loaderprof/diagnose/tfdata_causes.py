"""What a stage of a tf.data pipeline is called in the catalogue of causes, the evidence for it, and its headline.

What `causes` tells by a scene is told here by a pipeline: a cause by what the dearest function of its stage calls. Pure: no
torch, no clock, no processes.
"""

from __future__ import annotations

import re

from loaderprof.analyze.stages import LOADER
from loaderprof.analyze.tfdata import MOSTLY_BLOCKED, STAGES, Node, Pipeline
from loaderprof.diagnose.causes.catalogue import CATALOGUE, WORTH_NAMING
from loaderprof.diagnose.verdict import MIN_GAIN, Judgement
from loaderprof.findings import Cause, Evidence, Stage

_TITLES = {kind.id: kind.title for kind in CATALOGUE}
# What a stage is where nothing more is known of it: the catalogue's last, which matches always.
_PLAIN = {kind.stage: kind.id for kind in CATALOGUE}
# What a function that decodes calls, by cause: the first that is found.
_DECODERS = (
    ("jpeg-decode", r"(?i)jpe?g"),
    ("png-decode", r"(?i)png"),
    ("image-decode", r"(?i)DecodeImage|bmp|gif|webp|imread|imdecode"),
    ("audio-decode", r"(?i)wav|audio"),
    ("record-parsing", r"(?i)parse|csv|json|proto|loads"),
)


def cause_of(stage: Stage, pipeline: Pipeline) -> str:
    """Return the id of the cause that a bottleneck of this stage is."""
    if stage == "none":
        return "balanced"
    if stage == "read" and (pipeline.blocked or 0.0) > MOSTLY_BLOCKED:
        return "waiting-read"
    node = _most_expensive(pipeline, stage)
    if stage == "decode" and node is not None and node.operation is not None:
        called = " ".join((*node.operation.ops, *node.operation.words))
        return next((each for each, pattern in _DECODERS if re.search(pattern, called)), _PLAIN[stage])
    return _PLAIN[stage]


def headline(stage: Stage, pipeline: Pipeline, gains: dict[Stage, float], loop: str) -> str:
    """Return the verdict on a loop of this name in one sentence; `gains`: what each stage's removal would gain, 1.3 for 30 %."""
    if stage == "none":
        return "The loader keeps up. Nothing to change here."
    if stage == "startup":
        return f"The borders of {loop}'s epochs"
    if stage == "device":
        after = max(STAGES, key=lambda each: gains[each])
        if gains[after] >= 1 + WORTH_NAMING:
            return f"The step itself is the limit; after it, {_TITLES[cause_of(after, pipeline)]}"
        return "The step itself is the limit; the loader keeps up"
    node = _most_expensive(pipeline, stage)
    place = f" ({', '.join(filter(None, (node.label, node.where)))})" if node is not None else ""
    return f"{_TITLES[cause_of(stage, pipeline)]} in the tf.data pipeline{place}"


def examine(pipeline: Pipeline, gains: dict[Stage, float], judgement: Judgement) -> tuple[Cause, ...]:
    """Return the causes of one loop: the found ones first, then ruled out, then not measured."""
    found, ruled_out = [], []
    for stage in sorted(gains, key=lambda each: (each != judgement.stage, -gains[each])):
        cause, gain = cause_of(stage, pipeline), gains[stage]
        if stage == judgement.stage or stage in judgement.others:
            facts = _evidence(stage, pipeline, gain)
            found.append(Cause(cause, "found", stage, facts, round(gain, 3), _TITLES[cause]))
        elif stage in LOADER:
            text = f"without it the job would gain {max(0.0, gain - 1):.0%}"
            fact = Evidence(text, round(gain - 1, 4), "share", MIN_GAIN)
            ruled_out.append(Cause(cause, "ruled_out", stage, (fact,), None, _TITLES[cause]))
    missing = Evidence("stacks of a graph's step are not Python's", None, "", None)
    host = Cause("host-python", "not_measured", "host", (missing,), None, _TITLES["host-python"])
    return (*found, *ruled_out, host)


def _evidence(stage: Stage, pipeline: Pipeline, gain: float) -> tuple[Evidence, ...]:
    facts = [Evidence(f"without it the job would be {gain:.2f}x as fast", round(gain, 3), "ratio", 1 + MIN_GAIN)]
    node = _most_expensive(pipeline, stage)
    if node is None:
        return tuple(facts)
    work = sum(each.work_s for each in pipeline.nodes)
    share = sum(each.work_s for each in pipeline.nodes if each.stage == stage) / work
    text = f"{share:.0%} of a batch's making ({pipeline.batches} batches measured)"
    facts.append(Evidence(text, round(share, 4), "share", None))
    calls = node.parallelism if node.ahead and node.parallelism else 1
    facts.append(Evidence(f"{node.label} ran {calls} call{'s' if calls > 1 else ''} at a time", float(calls), "", None))
    if stage == "read" and pipeline.blocked is not None:
        text = f"its functions are blocked {pipeline.blocked:.0%} of their time"
        facts.append(Evidence(text, round(pipeline.blocked, 4), "share", MOSTLY_BLOCKED))
    return tuple(facts)


def _most_expensive(pipeline: Pipeline, stage: Stage) -> Node | None:
    mine = [node for node in pipeline.nodes if node.stage == stage and node.work_s > 0]
    return max(mine, key=lambda node: node.work_s, default=None)
