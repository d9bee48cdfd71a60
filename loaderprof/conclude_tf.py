"""Recording -> findings, for a job whose batches come from a tf.data pipeline.

Composes `analyze.tfdata`, `replay.tfdata`, its causes and its changes; decides nothing itself. Pure: no torch, no clock,
no processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loaderprof import findings as results
from loaderprof.advise.changes.tfdata import PipelineFacts, advise
from loaderprof.analyze import machine
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.tfdata import STAGES, Node, Pipeline, pipeline_of
from loaderprof.analyze.timeline import Timeline
from loaderprof.diagnose.causes import tfdata as tfdata_causes
from loaderprof.diagnose.verdict import Judgement, RunEvidence, judge
from loaderprof.findings import Cause, Findings, Stage
from loaderprof.recording.reader import Recording
from loaderprof.replay.tfdata import PipelineModel, error_of, gains_of, model_of, spread_of

# Bootstrap draws behind a confidence, as in `replay.job`.
DRAWS = 12
UNREAD = "TensorFlow's model of the pipeline could not be read (autotune is off, or TensorFlow is older than 2.16)"
NOT_APART = (
    "operations inside one function of a pipeline are not timed apart: its stage is that of its decoding, if it has any"
)


@dataclass(frozen=True, slots=True)
class _Studied:
    """A loop with its pipeline, and what each stage's removal would gain; None where its model was not read."""

    loop: Loop
    wait_s: float
    step_s: float
    pipeline: Pipeline | None = None
    model: PipelineModel | None = None
    gains: dict[Stage, float] | None = None
    judgement: Judgement | None = None


def applies(timeline: Timeline) -> bool:
    """Return whether the longest loop of a run takes its batches from tf.data."""
    return bool(timeline.loops) and timeline.loops[0].facts.dataset == "tf.data"


def conclude(recording: Recording, timeline: Timeline, run: results.Run) -> Findings:
    """Return the findings.

    Args:
        recording: the run.
        timeline: its loops.
        run: what was concluded about the run as a whole.
    """
    cores, others = machine.cpu_budget(recording), machine.busy_others(recording)
    disturbed = (others or 0.0) > machine.DISTURBANCE * cores
    loops = [loop for loop in timeline.loops if loop.facts.dataset == "tf.data"]
    studied = [_study(recording, loop, cores, disturbed) for loop in loops]
    main = studied[0]
    verdict = _verdict(main)
    notes = (f"TensorFlow {main.loop.facts.tensorflow}", NOT_APART) if main.pipeline is not None else ()
    return Findings(
        run=replace(run, notes=(*run.notes, *notes)),
        verdict=verdict,
        stages=_stages(main),
        causes=_causes(main),
        advice=_advice(recording, main, disturbed),
        loaders=tuple(_loader(each) for each in studied),
        ranks=(_rank(main),),
    )


def _study(recording: Recording, loop: Loop, cores: float, disturbed: bool) -> _Studied:
    wait_s, step_s = loop.mean(loop.wait) or 0.0, loop.mean(loop.step) or 0.0
    found = _Studied(loop, wait_s, step_s)
    pipeline = pipeline_of(recording, loop, step_s)
    steps = int(loop.count[loop.steady].sum())
    if pipeline is None or not wait_s + step_s:
        return replace(found, judgement=judge({}, RunEvidence(steps)))
    model = model_of(pipeline, wait_s, step_s, cores)
    gains = _with_borders(gains_of(model), loop, wait_s + step_s)
    draws = []
    for seed in range(DRAWS):
        drawn = pipeline_of(recording, loop, step_s, np.random.default_rng(seed))
        if drawn is not None:
            draws.append(_with_borders(gains_of(model_of(drawn, wait_s, step_s, cores)), loop, wait_s + step_s))
    error, share = error_of(model, wait_s + step_s), wait_s / (wait_s + step_s)
    evidence = RunEvidence(steps, model_error=error, draws=draws, disturbed=disturbed, wait_share=share)
    return replace(found, pipeline=pipeline, model=model, gains=gains, judgement=judge(gains, evidence))


def _with_borders(gains: dict[Stage, float], loop: Loop, batch_s: float) -> dict[Stage, float]:
    """Return gains with that of the borders of epochs, where more than one was seen."""
    pace = loop.pace_s
    return {**gains, "startup": max(1.0, pace / batch_s)} if pace and len(loop.epochs) > 1 else gains


def _verdict(main: _Studied) -> results.Verdict:
    judgement, total = main.judgement, main.wait_s + main.step_s
    share = round(main.wait_s / total, 4) if total else None
    pipeline, model, gains = main.pipeline, main.model, main.gains
    if judgement is None or judgement.stage == "unknown" or pipeline is None or model is None or gains is None:
        reason = UNREAD if pipeline is None else judgement.reason if judgement else ""
        text = f"Not enough evidence: {reason}"
        return results.Verdict("unknown", "not-enough-evidence", "low", text, total or None, main.wait_s, share, None)
    stage = judgement.stage
    empty = model.of(replace(node, work_s=0.0) for node in model.nodes)
    return results.Verdict(
        stage,
        tfdata_causes.cause_of(stage, pipeline).id,
        judgement.confidence,
        tfdata_causes.headline(stage, pipeline, gains, main.loop.name),
        total,
        main.wait_s,
        share,
        round(model.batch_s() / empty.batch_s(), 3),
    )


def _causes(main: _Studied) -> tuple[Cause, ...]:
    pipeline, gains, judgement = main.pipeline, main.gains, main.judgement
    if pipeline is None or gains is None or judgement is None or judgement.stage == "unknown":
        return ()
    return tfdata_causes.examine(pipeline, gains, judgement)


def _stages(main: _Studied) -> tuple[results.StageCost, ...]:
    nodes = main.model.nodes if main.model is not None else ()
    seconds: dict[Stage, float | None] = {
        stage: sum(node.work_s for node in nodes if node.stage == stage) if nodes else None for stage in STAGES
    }
    seconds["device"] = main.step_s
    total = sum(value for value in seconds.values() if value) or None
    return tuple(
        results.StageCost(
            stage,
            None if value is None else round(value, 7),
            round(value / total, 4) if value is not None and total else None,
            ("timer",),
            _parts(nodes, stage),
        )
        for stage, value in seconds.items()
    )


def _parts(nodes: Sequence[Node], stage: Stage) -> tuple[results.Part, ...]:
    mine = sorted((node for node in nodes if node.stage == stage and node.work_s > 0), key=lambda node: -node.work_s)
    return tuple(results.Part(node.label, node.where, round(node.work_s, 7)) for node in mine[:8])


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
    facts = PipelineFacts(
        len(epochs),
        float(np.median(epochs)) if epochs else 0.0,
        _rate(main.loop),
        spread_of(_paces(main.loop)),
        memory.get("available") if isinstance(memory, dict) else None,
        disturbed,
    )
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
    pace, size = loop.pace_s, loop.facts.batch_size
    return size / pace if pace and size is not None else None


def _loader(each: _Studied) -> results.Loader:
    loop, total = each.loop, each.wait_s + each.step_s
    operations = each.pipeline.operations if each.pipeline is not None else ()
    size, rate = loop.facts.batch_size, _rate(loop)
    settings = {
        "type": "tf.data",
        "pipeline": " > ".join(operation.name for operation in reversed(operations)) or None,
        **{
            key: getattr(loop.facts, key)
            for key in ("batch_size", "num_parallel_calls", "private_threadpool_size", "prefetch", "cache")
        },
    }
    return results.Loader(
        name=loop.name,
        where=loop.facts.where,
        settings=settings,
        batches=loop.batches,
        batch_size=size,
        samples_per_s=rate and round(rate, 2),
        wait_s=each.wait_s,
        wait_share=round(each.wait_s / total, 4) if total else None,
        first_batch_s=_first_batch(loop),
        epochs=len(loop.epochs),
        verdict=_verdict(each),
    )


def _first_batch(loop: Loop) -> float | None:
    return next((epoch.first_batch_s for epoch in loop.epochs if np.isfinite(epoch.first_batch_s)), None)


def _rank(main: _Studied) -> results.Rank:
    process = main.loop.process
    return results.Rank(process.rank or 0, process.host, process.own_pid, main.wait_s + main.step_s, main.wait_s)
