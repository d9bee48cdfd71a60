"""Recording -> findings, for a job whose batches come from a tf.data pipeline.

Composes `diagnose.tfdata` and `predict.tfdata`; decides nothing itself. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loaderprof import findings as results
from loaderprof.diagnose import machine
from loaderprof.diagnose.tfdata import MOSTLY_BLOCKED, Node, Pipeline, pipeline_of
from loaderprof.diagnose.timeline import Loop, Timeline
from loaderprof.diagnose.verdict import LOADER, MIN_GAIN, Judgement, judge
from loaderprof.findings import Cause, Evidence, Findings, Stage
from loaderprof.predict.tfdata import STAGES, Model, error_of, gains_of, model_of, spread_of
from loaderprof.predict.tfdata_advice import Facts, advise
from loaderprof.recording import Recording

DRAWS = 12
UNREAD = "TensorFlow's model of the pipeline could not be read (autotune is off, or TensorFlow is older than 2.16)"
NOT_APART = (
    "operations inside one function of a pipeline are not timed apart: its stage is that of its decoding, if it has any"
)
# Causes of the catalogue by stage: the first whose pattern is found in what the dearest function holds.
_KINDS: dict[Stage, tuple[tuple[str, str, str], ...]] = {
    "decode": (
        ("jpeg-decode", r"(?i)jpe?g", "JPEG decode"), ("png-decode", r"(?i)png", "PNG decode"),
        ("image-decode", r"(?i)DecodeImage|bmp|gif|webp|imread|imdecode", "Image decode"),
        ("audio-decode", r"(?i)wav|audio", "Audio decode"), ("record-parsing", r"(?i)parse|csv|json|proto|loads", "Parsing of records"),
        ("decode", "", "Decoding"),
    ),
    "read": (("file-read", "", "File reads"),),
    "transform": (("slow-transform", "", "Transforms"),),
    "collate": (("slow-collate", "", "Collating"),),
    "sampler": (("slow-sampler", "", "The sampler"),),
    "handover": (("batch-handover", "", "Handing batches over"),),
    "startup": (("slow-first-batch", "", "The first batch"),),
    "device": (("compute-bound", "", "The model's own work"),),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Studied:
    """A loop with its pipeline, and what each stage's removal would gain; None where its model was not read."""

    loop: Loop
    wait_s: float
    step_s: float
    pipeline: Pipeline | None = None
    model: Model | None = None
    gains: dict[Stage, float] | None = None
    judgement: Judgement | None = None


def applies(timeline: Timeline) -> bool:
    """Return whether the longest loop of a run takes its batches from tf.data."""
    return bool(timeline.loops) and timeline.loops[0].facts.get("dataset") == "tf.data"


def conclude(recording: Recording, timeline: Timeline, run: results.Run) -> Findings:
    """Return the findings.

    Args:
        recording: the run.
        timeline: its loops.
        run: what is told of the run as a whole.
    """
    cores, others = machine.cpu_budget(recording), machine.busy_others(recording)
    disturbed = (others or 0.0) > machine.DISTURBANCE * cores
    loops = [loop for loop in timeline.loops if loop.facts.get("dataset") == "tf.data"]
    studied = [_study(recording, loop, cores, disturbed) for loop in loops]
    main = studied[0]
    verdict = _verdict(main)
    notes = (f"TensorFlow {main.loop.facts.get('tensorflow')}", NOT_APART) if main.pipeline is not None else ()
    return Findings(
        run=replace(run, notes=(*run.notes, *notes)), verdict=verdict,
        stages=_stages(main), causes=_causes(main), advice=_advice(recording, main, disturbed),
        loaders=tuple(_loader(each) for each in studied), ranks=(_rank(main),),
    )  # fmt: skip


def _study(recording: Recording, loop: Loop, cores: float, disturbed: bool) -> _Studied:
    wait_s, step_s = loop.mean(loop.wait) or 0.0, loop.mean(loop.step) or 0.0
    found = _Studied(loop, wait_s, step_s)
    pipeline = pipeline_of(recording, loop, step_s)
    steps = int(loop.count[loop.steady].sum())
    if pipeline is None or not wait_s + step_s:
        return replace(
            found, judgement=judge({}, steps=steps, model_error=None, draws=[], disturbed=False, sources_agree=None)
        )
    model = model_of(pipeline, wait_s, step_s, cores)
    gains = _with_borders(gains_of(model), loop, wait_s + step_s)
    draws = []
    for seed in range(DRAWS):
        drawn = pipeline_of(recording, loop, step_s, np.random.default_rng(seed))
        if drawn is not None:
            draws.append(_with_borders(gains_of(model_of(drawn, wait_s, step_s, cores)), loop, wait_s + step_s))
    judgement = judge(
        gains, steps=steps, model_error=error_of(model, wait_s + step_s), draws=draws,
        disturbed=disturbed, sources_agree=None,
        wait_share=wait_s / (wait_s + step_s),
    )  # fmt: skip
    return replace(found, pipeline=pipeline, model=model, gains=gains, judgement=judgement)


def _with_borders(gains: dict[Stage, float], loop: Loop, batch_s: float) -> dict[Stage, float]:
    """Return gains with that of the borders of epochs, where more than one was seen."""
    pace = loop.pace_s
    return {**gains, "startup": max(1.0, pace / batch_s)} if pace and len(loop.epochs) > 1 else gains


def _verdict(main: _Studied) -> results.Verdict:
    judgement, total = main.judgement, main.wait_s + main.step_s
    share = round(main.wait_s / total, 4) if total else None
    if judgement is None or judgement.stage == "unknown" or main.model is None:
        reason = UNREAD if main.pipeline is None else judgement.reason if judgement else ""
        text = f"Not enough evidence: {reason}"
        return results.Verdict("unknown", "not-enough-evidence", "low", text, total or None, main.wait_s, share, None)
    stage = judgement.stage
    kind, _ = _kind(main, stage)
    empty = main.model.of(replace(node, work_s=0.0) for node in main.model.nodes)
    ceiling = round(main.model.batch_s() / empty.batch_s(), 3)
    return results.Verdict(
        stage, kind, judgement.confidence, _headline(main, stage), total, main.wait_s, share, ceiling
    )


def _dearest(main: _Studied, stage: Stage) -> Node | None:
    mine = [node for node in (main.model.nodes if main.model else ()) if node.stage == stage and node.work_s > 0]
    return max(mine, key=lambda node: node.work_s, default=None)


def _kind(main: _Studied, stage: Stage) -> tuple[str, str]:
    """Return id and title of the cause that a stage is."""
    if stage == "none":
        return "balanced", "The loader keeps up"
    if stage == "read" and main.model is not None and main.model.blocked > MOSTLY_BLOCKED:
        return "waiting-read", "Waiting for reads"
    node = _dearest(main, stage)
    operation = node.operation if node is not None else None
    held = " ".join((*operation.told, *operation.words)) if operation is not None else ""
    return next((id_, title) for id_, pattern, title in _KINDS[stage] if re.search(pattern, held))


def _headline(main: _Studied, stage: Stage) -> str:
    if stage == "none":
        return "The loader keeps up. Nothing to change here."
    if stage == "startup":
        return f"The borders of {main.loop.name}'s epochs"
    if stage == "device":
        gains = main.gains or {}
        after = max(STAGES, key=lambda each: gains.get(each, 1.0))
        if gains.get(after, 1.0) >= 1.1:
            return f"The step itself is the limit; after it, {_kind(main, after)[1]}"
        return "The step itself is the limit; the loader keeps up"
    node = _dearest(main, stage)
    place = (
        f" ({', '.join(filter(None, (node.label, node.operation.where if node.operation else None)))})" if node else ""
    )
    return f"{_kind(main, stage)[1]} in the tf.data pipeline{place}"


def _stages(main: _Studied) -> tuple[results.StageCost, ...]:
    nodes = main.model.nodes if main.model is not None else ()
    seconds: dict[Stage, float | None] = {
        stage: sum(node.work_s for node in nodes if node.stage == stage) if nodes else None for stage in STAGES
    }
    seconds["device"] = main.step_s
    total = sum(value for value in seconds.values() if value) or None
    return tuple(
        results.StageCost(
            stage, None if value is None else round(value, 7), round(value / total, 4) if value is not None and total else None,
            ("timer",), _parts(nodes, stage),
        )
        for stage, value in seconds.items()
    )  # fmt: skip


def _parts(nodes: Sequence[Node], stage: Stage) -> tuple[results.Part, ...]:
    mine = sorted((node for node in nodes if node.stage == stage and node.work_s > 0), key=lambda node: -node.work_s)
    return tuple(
        results.Part(node.label, node.operation.where if node.operation else None, round(node.work_s, 7))
        for node in mine[:8]
    )


def _causes(main: _Studied) -> tuple[Cause, ...]:
    judgement, gains = main.judgement, main.gains
    if judgement is None or gains is None or judgement.stage == "unknown":
        return ()
    found, ruled_out = [], []
    for stage in sorted(gains, key=lambda each: (each != judgement.stage, -gains[each])):
        kind, title = _kind(main, stage)
        if stage == judgement.stage or stage in judgement.others:
            found.append(
                Cause(kind, "found", stage, _evidence(main, stage, gains[stage]), round(gains[stage], 3), title)
            )
        elif stage in LOADER:
            text = f"without it the job would gain {max(0.0, gains[stage] - 1):.0%}"
            fact = Evidence(text, round(gains[stage] - 1, 4), "share", MIN_GAIN)
            ruled_out.append(Cause(kind, "ruled_out", stage, (fact,), None, title))
    missing = Evidence("stacks of a graph's step are not Python's", None, "", None)
    return (*found, *ruled_out, Cause("host-python", "not_measured", "host", (missing,), None, "The loop's own Python"))


def _evidence(main: _Studied, stage: Stage, gain: float) -> tuple[Evidence, ...]:
    facts = [Evidence(f"without it the job would be {gain:.2f}x as fast", round(gain, 3), "ratio", 1 + MIN_GAIN)]
    pipeline, model, node = main.pipeline, main.model, _dearest(main, stage)
    if pipeline is None or model is None or node is None:
        return tuple(facts)
    work = sum(each.work_s for each in model.nodes)
    share = sum(each.work_s for each in model.nodes if each.stage == stage) / work
    facts.append(
        Evidence(
            f"{share:.0%} of a batch's making ({pipeline.batches} batches measured)", round(share, 4), "share", None
        )
    )
    calls = node.parallelism if node.ahead and node.parallelism else 1
    facts.append(Evidence(f"{node.label} ran {calls} call{'s' if calls > 1 else ''} at a time", float(calls), "", None))
    if stage == "read" and pipeline.blocked is not None:
        text = f"its functions are blocked {pipeline.blocked:.0%} of their time"
        facts.append(Evidence(text, round(pipeline.blocked, 4), "share", MOSTLY_BLOCKED))
    return tuple(facts)


def _advice(recording: Recording, main: _Studied, disturbed: bool) -> tuple[results.Advice, ...]:
    judgement = main.judgement
    if (
        main.pipeline is None
        or main.model is None
        or judgement is None
        or judgement.stage in ("none", "unknown", "device")
    ):
        return ()
    epochs = [epoch.batches for epoch in main.loop.epochs if epoch.batches]
    memory = recording.host[-1].get("memory", {}) if recording.host else {}
    facts = Facts(
        len(epochs), float(np.median(epochs)) if epochs else 0.0, _rate(main.loop), spread_of(_paces(main.loop)),
        memory.get("available") if isinstance(memory, dict) else None, disturbed,
    )  # fmt: skip
    return advise(main.pipeline, main.model, facts)


def _paces(loop: Loop) -> list[float]:
    """Return seconds a batch of each epoch, as far as it was steady."""
    paces = []
    for epoch in np.unique(loop.epoch):
        mine = (loop.epoch == epoch) & loop.steady & np.isfinite(loop.step)
        if mine.any():
            paces.append(float((loop.wait[mine] + loop.step[mine]).sum() / loop.count[mine].sum()))
    return paces


def _rate(loop: Loop) -> float | None:
    pace, size = loop.pace_s, loop.facts.get("batch_size")
    return size / pace if pace and isinstance(size, int) else None


def _loader(each: _Studied) -> results.Loader:
    loop, total = each.loop, each.wait_s + each.step_s
    operations = each.pipeline.operations if each.pipeline is not None else ()
    size, rate = loop.facts.get("batch_size"), _rate(loop)
    settings = {
        "type": "tf.data", "pipeline": " > ".join(operation.name for operation in reversed(operations)) or None,
        **{key: loop.facts.get(key) for key in ("batch_size", "num_parallel_calls", "private_threadpool_size", "prefetch", "cache")},
    }  # fmt: skip
    return results.Loader(
        name=loop.name, where=loop.facts.get("where"), settings=settings, batches=loop.batches,
        batch_size=size if isinstance(size, int) else None, samples_per_s=rate and round(rate, 2), wait_s=each.wait_s,
        wait_share=round(each.wait_s / total, 4) if total else None, first_batch_s=_first_batch(loop),
        epochs=len(loop.epochs), verdict=_verdict(each),
    )  # fmt: skip


def _first_batch(loop: Loop) -> float | None:
    return next((epoch.first_batch_s for epoch in loop.epochs if np.isfinite(epoch.first_batch_s)), None)


def _rank(main: _Studied) -> results.Rank:
    process = main.loop.process
    return results.Rank(process.rank or 0, process.host, process.own_pid, main.wait_s + main.step_s, main.wait_s)
