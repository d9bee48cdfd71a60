"""Recording -> findings: the loops, what their batches cost, what each stage's removal gains, verdict and advice.

Composes `analyze`, `replay`, `diagnose` and `advise`; decides nothing itself. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loaderprof import conclude_tf
from loaderprof import findings as results
from loaderprof.advise.catalogue import advise
from loaderprof.advise.change import RunFacts
from loaderprof.advise.changes.decoder import decoders_of
from loaderprof.advise.weigh import unevenness
from loaderprof.advise.whatif import what_if
from loaderprof.analyze import device, loop_side, machine
from loaderprof.analyze.loop import Loop, total_of
from loaderprof.analyze.making import of_producers
from loaderprof.analyze.many_ranks import main_loop
from loaderprof.analyze.stage_costs import share_of, stage_costs
from loaderprof.analyze.timeline import Timeline, build
from loaderprof.diagnose import endings, outside
from loaderprof.diagnose.causes import catalogue
from loaderprof.diagnose.causes.cause import CauseRule
from loaderprof.diagnose.confidence import agreement, doubts_about_replay, guessed
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.risks import risks_of
from loaderprof.diagnose.verdict import Judgement, RunEvidence, judge
from loaderprof.findings import Findings, Stage
from loaderprof.measure.verified import joined
from loaderprof.recording.reader import Process, Recording, SummedRank
from loaderprof.replay import job

BACKGROUND = "a background thread takes the batches: how long the training itself waits was not measured"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Findings, and what their advice was made from: `readvised` makes it again without another replay.

    `judged` is None where there is no advice that could change: no loader, a job watched from outside, tf.data.
    """

    findings: Findings
    judged: tuple[Sequence[job.LoopStudy], LoopContext, Judgement] | None = None


def findings_of(recording: Recording) -> Findings:
    """Return the findings of a recording, joined with what `verify` measured of the advice."""
    return joined(conclude(recording).findings, recording.folder)


def readvised(recording: Recording, conclusion: Conclusion) -> Findings:
    """Return the findings with their advice made again, for facts that came after: decoders that were tried."""
    if conclusion.judged is None:
        return conclusion.findings
    return replace(conclusion.findings, advice=_advice(recording, *conclusion.judged))


def conclude(recording: Recording) -> Conclusion:
    """Return what a recording says."""
    if recording.meta.mode == "attach" and not recording.processes:
        cores, busy = machine.cpu_budget(recording), machine.busy_others(recording)
        return Conclusion(outside.conclude(recording, cores=cores, busy_others=busy))
    timeline = build(recording)
    if conclude_tf.applies(timeline):
        return Conclusion(conclude_tf.conclude(recording, timeline, _run(recording, timeline)))
    budget, others = machine.cpu_budget(recording), machine.busy_others(recording)
    everyone = _study(recording, timeline, budget, others)
    run = _run(recording, timeline)
    if not everyone:
        return Conclusion(Findings(run=run, verdict=_no_loader()))
    studied = job.slowest_rank(everyone)
    main = job.main(studied)
    job_gains = job.job_gains(studied)
    draws = [job.job_gains(studied, number) for number in range(job.DRAWS)] if main.draws else []
    evidence = RunEvidence(
        steps=int(main.loop.count[main.loop.steady].sum()),
        model_error=main.model_error,
        draws=draws,
        disturbed=(others or 0.0) > machine.DISTURBANCE * budget or main.loop.background,
        sources_agree=agreement(main, job_gains),
        guessed=guessed(main, job_gains),
        locked=main.parts.takes_turns(),
        producers_unseen=main.parts.producers_unseen,
        wait_share=share_of(main.loop.idle_s, main.loop.batch_s),
    )
    judgement = judge(job_gains, evidence)
    context = replace(
        _context(recording, job.holder(studied, judgement.stage, main), job_gains, budget, others),
        validates=job.mostly_validation(studied, job_gains, judgement.stage),
    )
    cause = catalogue.cause_of(judgement.stage, context)
    verdict = _verdict(main, context, judgement, cause, job.job_ceiling(studied))
    found = Findings(
        run=replace(run, notes=(*run.notes, *doubts_about_replay(main.model_error, others or 0.0))),
        verdict=verdict,
        stages=stage_costs(main.loop, main.parts),
        causes=catalogue.examine(context, cause, judgement.others) if judgement.stage != "unknown" else (),
        advice=_advice(recording, studied, context, judgement),
        loaders=(*(_loader(recording, each, budget, others) for each in everyone), *_summed_loaders(recording)),
        ranks=_ranks(everyone, recording.others),
        risks=risks_of(recording, [each.loop for each in everyone], budget),
        phases=device.phases_of(recording, main.loop),
        gpus=device.gpus_of(recording),
    )
    return Conclusion(found, (studied, context, judgement))


def predict(recording: Recording, changes: Sequence[Mapping[str, Any]]) -> list[results.Expected | None]:
    """Return what settings would do to the job's speed, advised or not; None where this run does not show it.

    Args:
        recording: of the job as it is set now.
        changes: each one's settings of the job's main loader, as `--set` takes them.
    """
    budget, others = machine.cpu_budget(recording), machine.busy_others(recording)
    everyone = _study(recording, build(recording), budget, others)
    studied = job.slowest_rank(everyone) if everyone else ()
    main = job.main(studied) if studied else None
    if main is None or main.base is None or main.loop.facts.watched or main.parts.pool is not None:
        return [None for _ in changes]
    context = _context(recording, main, job.job_gains(studied), budget, others)
    facts, base, prefix = _facts(recording, main, studied), main.base, f"{main.loop.name}."
    plain = ({key.removeprefix(prefix): value for key, value in each.items()} for each in changes)
    return [what_if(each, context, base, facts) for each in plain]


def _study(recording: Recording, timeline: Timeline, budget: float, others: float | None) -> list[job.LoopStudy]:
    share = budget / job.ranks_a_host(timeline)
    return [job.study(recording, loop, share, others, timeline.loops) for loop in timeline.loops]


def _context(
    recording: Recording, each: job.LoopStudy, gains: dict[Stage, float], budget: float, others: float | None
) -> LoopContext:
    missing = recording.meta.missing
    names = np.unique(of_producers(recording, each.loop, recording.tables["operator"])["name"])
    mine = of_producers(recording, each.loop, recording.tables["size"])
    pickles = recording.tables["pickle"]
    pickled = of_producers(recording, each.loop, pickles) if each.loop.num_workers else pickles[:0]
    return LoopContext(
        each.loop,
        each.parts,
        gains,
        budget,
        others,
        missing.gpu,
        missing.stacks,
        tuple(recording.texts[int(number)].split("@")[0] for number in names if number >= 0),
        float(np.median(mine["bytes"])) if len(mine) else None,
        float(np.median(mine["tensors"])) if len(mine) else None,
        bound=(each.cores.cpus or budget) < min(each.loop.num_workers, budget),
        helpers=each.cores.helpers,
        batch_leaves=float(np.median(mine["leaves"])) if len(mine) else None,
        pickled_bytes=float(np.median(pickled["bytes"])) if len(pickled) else None,
        sampler_where=loop_side.shown_place(recording, str(each.loop.facts.sampler_where or "")),
        float_share=float(np.median(mine["extra"])) / 100 if len(mine) else None,
        phases=device.phases_of(recording, each.loop),
        gpus=device.gpus_of(recording),
    )


def _verdict(
    main: job.LoopStudy, context: LoopContext, judgement: Judgement, cause: CauseRule, ceiling: float | None
) -> results.Verdict:
    wait, total = main.loop.idle_s, main.loop.batch_s
    if main.loop.background:
        wait = ceiling = None
    if judgement.stage == "unknown":
        text = f"Not enough evidence: {judgement.reason}"
        return results.Verdict("unknown", "not-enough-evidence", "low", text, total, wait, share_of(wait, total), None)
    text = catalogue.headline(cause, context)
    return results.Verdict(
        judgement.stage, cause.id, judgement.confidence, text, total, wait, share_of(wait, total), ceiling
    )


def _no_loader() -> results.Verdict:
    text = "No batch was taken from a torch DataLoader"
    return results.Verdict("unknown", "no-loader", "low", text, None, None, None, None)


def _advice(
    recording: Recording, studied: Sequence[job.LoopStudy], context: LoopContext, judgement: Judgement
) -> tuple[results.Advice, ...]:
    each = next(each for each in studied if each.loop is context.loop)
    least = judgement.least_speedup
    if each.base is None or least is None:
        return ()
    return advise(context, each.base, _facts(recording, each, studied), least)


def _facts(recording: Recording, each: job.LoopStudy, studied: Sequence[job.LoopStudy]) -> RunFacts:
    samples = of_producers(recording, each.loop, recording.tables["size"])
    per_sample = samples["bytes"] / np.maximum(samples["samples"], 1)
    memory = recording.host[-1].get("memory", {}) if recording.host else {}
    return RunFacts(
        job.samples_per_s(each, studied),
        memory.get("available") if isinstance(memory, dict) else None,
        float(np.median(per_sample)) if len(per_sample) else None,
        _device(recording) == "cuda",
        _torch(recording),
        job.share_of(each, studied),
        decoders_of(recording.meta),
        unevenness(each.loop),
    )


def _rate(each: job.LoopStudy) -> float | None:
    """Return the samples per second that a loop took as it went on, the borders of its epochs included."""
    pace, size = each.loop.pace_s, each.loop.facts.batch_size
    return size / pace if pace and size is not None else None


def _loader(recording: Recording, each: job.LoopStudy, budget: float, others: float | None) -> results.Loader:
    loop, wait = each.loop, each.loop.wait_s
    settings = {key: getattr(loop.facts, key) for key in _SETTINGS}
    size = loop.facts.batch_size
    rate = _rate(each)
    evidence = RunEvidence(
        steps=int(loop.count[loop.steady].sum()),
        model_error=each.model_error,
        draws=list(each.draws),
        disturbed=(others or 0.0) > machine.DISTURBANCE * budget,
        locked=each.parts.takes_turns(),
        producers_unseen=each.parts.producers_unseen,
        wait_share=share_of(loop.idle_s, loop.batch_s),
    )
    judgement = judge(each.gains, evidence)
    context = _context(recording, each, each.gains, budget, others)
    verdict = _verdict(
        each, context, judgement, catalogue.cause_of(judgement.stage, context), each.ceiling and round(each.ceiling, 3)
    )
    first = [epoch.first_batch_s for epoch in loop.epochs if np.isfinite(epoch.first_batch_s)]
    return results.Loader(
        name=loop.name,
        where=loop.facts.where,
        settings=settings,
        batches=loop.batches,
        batch_size=size,
        samples_per_s=rate and round(rate, 2),
        wait_s=wait,
        wait_share=share_of(wait, loop.batch_s),
        first_batch_s=first[0] if first else None,
        epochs=len(loop.epochs),
        verdict=verdict,
    )


_SETTINGS = (
    "num_workers",
    "batch_size",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory",
    "in_order",
    "start_method",
    "drop_last",
    "sampler",
    "batch_sampler",
    "sampler_where",
    "collate_fn",
    "worker_init_fn",
    "dataset",
    "dataset_where",
    "type",
    "iterable",
    "samples",
)


def _summed_loaders(recording: Recording) -> Iterator[results.Loader]:
    """Yield the loaders of ranks that were only summed up: their pace, and no verdict of their own."""
    text = "Not enough evidence: of many ranks only those that wait the most are studied"
    for loop in (loop for rank in recording.others for loop in rank.loops):
        total = total_of(loop.wait_s, loop.step_s)
        share = share_of(loop.wait_s, total)
        verdict = results.Verdict("unknown", "not-enough-evidence", "low", text, total, loop.wait_s, share, None)
        rate = loop.batch_size / loop.pace_s if loop.batch_size and loop.pace_s else None
        yield results.Loader(
            name=loop.name,
            where=loop.where,
            settings={},
            batches=loop.batches,
            batch_size=loop.batch_size,
            samples_per_s=rate and round(rate, 2),
            wait_s=loop.wait_s,
            wait_share=share,
            first_batch_s=None,
            epochs=loop.epochs,
            verdict=verdict,
        )


def _ranks(studied: Sequence[job.LoopStudy], others: Sequence[SummedRank]) -> tuple[results.Rank, ...]:
    """Return each rank by its longest training loop, or its longest loop where it trains in none."""
    ranks: dict[int, results.Rank] = {}
    for other in others:
        main, of = main_loop(other.loops), other.process
        if main is not None:
            total = total_of(main.wait_s, main.step_s)
            ranks.setdefault(of.rank or 0, results.Rank(of.rank or 0, of.host, of.own_pid, total, main.wait_s))
    for each in sorted(studied, key=lambda each: not each.loop.training):
        process, loop = each.loop.process, each.loop
        if loop.main_thread and (process.rank or 0) not in ranks:
            ranks[process.rank or 0] = results.Rank(
                process.rank or 0, process.host, process.own_pid, loop.batch_s, loop.wait_s
            )
    return tuple(ranks[number] for number in sorted(ranks))


def _run(recording: Recording, timeline: Timeline) -> results.Run:
    meta = recording.meta
    command = meta.command
    mains = [process for process in recording.processes if process.worker is None]
    ranks = {process.rank for process in mains if process.rank is not None}
    taken = [(loop.training, loop.batches) for loop in timeline.loops]
    taken += [(loop.training, loop.batches) for rank in recording.others for loop in rank.loops]
    methods = [loop.facts.start_method for loop in timeline.loops if loop.facts.start_method]
    return results.Run(
        command=shlex.join(map(str, command)) if command is not None else "",
        exit_code=meta.exit_code,
        duration_s=timeline.duration_s,
        steps=sum(batches for training, batches in taken if training) or sum(batches for _, batches in taken),
        world_size=max(1, len(ranks)),
        device=_device(recording),
        cpu_budget=machine.cpu_budget(recording),
        python=next((process.header.python for process in mains), None),
        torch=_torch(recording),
        start_method=methods[0] if methods else None,
        overhead=machine.overhead(recording, timeline.duration_s),
        notes=(*recording.notes, *_restarts(mains), *(note for loop in timeline.loops[:1] for note in _notes(loop))),
        signal=meta.signal,
        started_unix_s=meta.started_unix_ns / 1e9 if meta.started_unix_ns is not None else None,
        loaderprof=meta.loaderprof,
        gpus=tuple(meta.gpus),
        failure=endings.explained(recording),
    )


def _restarts(mains: Sequence[Process]) -> Iterator[str]:
    """Yield how often an elastic launcher started all ranks anew: each start has processes and loops of its own."""
    counts = [str(main.header.environment.get("TORCHELASTIC_RESTART_COUNT", "")) for main in mains]
    most = max([0, *(int(count) for count in counts if count.isdecimal() and len(count) < 8)])
    if most:
        often = "once" if most == 1 else f"{most} times"
        yield f"the launcher started the ranks again {often}; each start is a segment of its own"


def _notes(loop: Loop) -> Iterator[str]:
    if loop.background:
        yield BACKGROUND
    stamped = int((loop.count == 1).sum())
    # A loop inside a TensorFlow graph has no batch with a time of its own.
    if stamped and loop.batches >= 2 * stamped:
        yield (
            f"batches of {loop.name} are so quick that one in {round(loop.batches / max(1, stamped))} was stamped; of the "
            "others the sums are known"
        )


def _torch(recording: Recording) -> str | None:
    return next((process.header.torch for process in recording.processes if process.header.torch), None)


def _device(recording: Recording) -> str | None:
    if not recording.processes:
        return None
    return "cuda" if len(recording.tables["device"]) else "cpu"
