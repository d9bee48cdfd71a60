"""Recording -> findings: the loops, what their batches cost, what each stage's removal gains, verdict and advice.

Composes `diagnose` and `predict`; decides nothing itself. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from loaderprof.analyze.breakdown import WORK, Breakdown
from loaderprof.analyze.many_ranks import main_loop
from loaderprof.analyze.timeline import Loop, Timeline, build, of_producers
from loaderprof.diagnose import endings, outside
from loaderprof.diagnose.causes import catalogue
from loaderprof.diagnose.causes.cause import CauseRule
from loaderprof.diagnose.confidence import agreement, guessed
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.risks import risks_of
from loaderprof.diagnose.verdict import MIN_GAIN, MODEL_ERROR, Judgement, RunEvidence, judge
from loaderprof.findings import Findings, Stage
from loaderprof.measure.verified import joined
from loaderprof.recording.reader import Process, Recording, SummedRank
from loaderprof.replay import job

# A replay of the run as it was that is further off than this does not know it well, and says so.
REPRODUCED = 0.03
# Cores that other programs kept busy: from here on they are worth a word.
NOTICED = 0.2
BACKGROUND = "a background thread takes the batches: how long the training itself waits was not measured"


def findings_of(recording: Recording) -> Findings:
    """Return the findings of a recording, joined with what `verify` measured of the advice."""
    return joined(conclude(recording), recording.folder)


def conclude(recording: Recording) -> Findings:
    """Return the findings of a recording."""
    if recording.meta.get("mode") == "attach" and not recording.processes:
        return outside.conclude(
            recording, cores=machine.cpu_budget(recording), busy_others=machine.busy_others(recording)
        )
    timeline = build(recording)
    if conclude_tf.applies(timeline):
        return conclude_tf.conclude(recording, timeline, _run(recording, timeline))
    budget, others = machine.cpu_budget(recording), machine.busy_others(recording)
    everyone = _study(recording, timeline, budget, others)
    run = _run(recording, timeline)
    if not everyone:
        return Findings(run=run, verdict=_no_loader())
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
        wait_share=_share(*_wait_and_step(main.loop)),
    )
    judgement = judge(job_gains, evidence)
    context = _context(recording, job.holder(studied, judgement.stage, main), job_gains, budget, others)
    cause = catalogue.cause_of(judgement.stage, context)
    if judgement.stage == "host" and job.validation_s(studied) > 0.5 * job.saved_s(studied, job_gains["host"]):
        cause = catalogue.BY_ID["validation"]
    verdict = _verdict(main, context, judgement, cause, job.job_ceiling(studied))
    return Findings(
        run=replace(run, notes=(*run.notes, *_about_the_replay(main, others or 0.0))),
        verdict=verdict,
        stages=_stages(main),
        causes=catalogue.examine(context, cause, judgement.others) if judgement.stage != "unknown" else (),
        advice=_advice(recording, studied, context, judgement),
        loaders=(*(_loader(recording, each, budget, others) for each in everyone), *_summed_loaders(recording)),
        ranks=_ranks(everyone, recording.others),
        risks=risks_of(recording, [each.loop for each in everyone], budget),
        phases=device.phases_of(recording, main.loop),
        gpus=device.gpus_of(recording),
    )


def predict(recording: Recording, changes: Sequence[Mapping[str, Any]]) -> list[results.Expected | None]:
    """Return what settings would do to the job's speed, advised or not; None where this run cannot tell.

    Args:
        recording: of the job as it is set now.
        changes: each one's settings of the job's main loader, as `--set` takes them.
    """
    budget, others = machine.cpu_budget(recording), machine.busy_others(recording)
    everyone = _study(recording, build(recording), budget, others)
    studied = job.slowest_rank(everyone) if everyone else ()
    main = job.main(studied) if studied else None
    if main is None or main.base is None or main.loop.facts.get("watched") or main.parts.pool is not None:
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
    missing = recording.meta.get("missing")
    missing = missing if isinstance(missing, dict) else {}
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
        missing.get("gpu"),
        missing.get("stacks"),
        tuple(recording.texts[int(number)].split("@")[0] for number in names if number >= 0),
        float(np.median(mine["bytes"])) if len(mine) else None,
        float(np.median(mine["tensors"])) if len(mine) else None,
        bound=(each.cpus or budget) < min(each.loop.num_workers, budget),
        helpers=each.helpers,
        batch_leaves=float(np.median(mine["leaves"])) if len(mine) else None,
        pickled_bytes=float(np.median(pickled["bytes"])) if len(pickled) else None,
        sampler_where=loop_side.shown_place(recording, str(each.loop.facts.get("sampler_where") or "")),
        float_share=float(np.median(mine["extra"])) / 100 if len(mine) else None,
        phases=device.phases_of(recording, each.loop),
        gpus=device.gpus_of(recording),
    )


def _verdict(
    main: job.LoopStudy, context: LoopContext, judgement: Judgement, cause: CauseRule, ceiling: float | None
) -> results.Verdict:
    wait, total = _wait_and_step(main.loop)
    if main.loop.background:
        wait = ceiling = None
    if judgement.stage == "unknown":
        text = f"Not enough evidence: {judgement.reason}"
        return results.Verdict("unknown", "not-enough-evidence", "low", text, total, wait, _share(wait, total), None)
    text = catalogue.headline(cause, context)
    return results.Verdict(
        judgement.stage, cause.id, judgement.confidence, text, total, wait, _share(wait, total), ceiling
    )


def _wait_and_step(loop: Loop) -> tuple[float | None, float | None]:
    """Return seconds per step that whoever computes had nothing to do, and seconds per step in all."""
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    total = wait + step if wait is not None and step is not None else None
    # A wait that the device did not feel is no cost: by its own clock, where it has one.
    return (float(loop.starved.mean()) if len(loop.starved) >= 10 else wait), total


def _share(part: float | None, whole: float | None) -> float | None:
    return round(part / whole, 4) if part is not None and whole else None


def _no_loader() -> results.Verdict:
    text = "No batch was taken from a torch DataLoader"
    return results.Verdict("unknown", "no-loader", "low", text, None, None, None, None)


def _stages(main: job.LoopStudy) -> tuple[results.StageCost, ...]:
    """Return what a batch of the main loop costs by stage, in the order of its way through the pipeline."""
    parts, loop = main.parts, main.loop
    seconds: dict[Stage, float | None] = {}
    for stage in WORK:
        mine = [piece.total_s for piece in parts.pieces if piece.stage == stage]
        seconds[stage] = sum(mine) if mine else (0.0 if parts.pieces else None)
    if loop.num_workers:
        seconds["handover"] = (parts.pickle_s or 0.0) + (loop.mean(loop.receive) or 0.0)
    seconds["sampler"] = parts.index_s
    seconds["contention"] = parts.runq_s
    step = loop.mean(loop.step)
    host = parts.host_share
    seconds["device"] = step * (1 - (host or 0.0)) if step is not None else None
    seconds["host"] = step * host if step is not None and host is not None else None
    if parts.copy_s is not None:
        seconds["copy"] = parts.copy_s
        seconds["device"] = max(0.0, (seconds["device"] or 0.0) - parts.copy_s)
    total = sum(value for value in seconds.values() if value) or None
    return tuple(
        results.StageCost(
            stage,
            None if value is None else round(value, 7),
            _share(value, total),
            _sources(stage, parts),
            _by(stage, parts),
        )
        for stage, value in seconds.items()
    )


def _sources(stage: Stage, parts: Breakdown) -> Any:
    if stage in WORK:
        timers = ("timer",) if parts.timed_batches or stage == "collate" else ()
        return (*timers, *(("stack",) if parts.by_stack else ()), "kernel")
    return ("kernel",) if stage == "contention" else ("stack",) if stage == "host" else ("timer",)


def _by(stage: Stage, parts: Breakdown) -> tuple[results.Part, ...]:
    mine = [piece for piece in parts.pieces if piece.stage == stage][:8]
    return tuple(results.Part(piece.name, piece.where, round(piece.total_s, 7)) for piece in mine)


def _advice(
    recording: Recording, studied: Sequence[job.LoopStudy], context: LoopContext, judgement: Judgement
) -> tuple[results.Advice, ...]:
    each = next(each for each in studied if each.loop is context.loop)
    if each.base is None or judgement.stage in ("none", "unknown"):
        return ()
    facts = _facts(recording, each, studied)
    # A job that its step limits is told only what surely gains something.
    return advise(context, each.base, facts, least=1 + MIN_GAIN if judgement.stage == "device" else 0.0)


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
    pace, size = each.loop.pace_s, each.loop.facts.get("batch_size")
    return size / pace if pace and isinstance(size, int) else None


def _loader(recording: Recording, each: job.LoopStudy, budget: float, others: float | None) -> results.Loader:
    loop = each.loop
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    total = wait + step if wait is not None and step is not None else None
    settings = {key: loop.facts.get(key) for key in _SETTINGS}
    size = loop.facts.get("batch_size")
    rate = _rate(each)
    evidence = RunEvidence(
        steps=int(loop.count[loop.steady].sum()),
        model_error=each.model_error,
        draws=each.draws,
        disturbed=(others or 0.0) > machine.DISTURBANCE * budget,
        locked=each.parts.takes_turns(),
        producers_unseen=each.parts.producers_unseen,
        wait_share=_share(*_wait_and_step(loop)),
    )
    judgement = judge(each.gains, evidence)
    context = _context(recording, each, each.gains, budget, others)
    verdict = _verdict(
        each, context, judgement, catalogue.cause_of(judgement.stage, context), each.ceiling and round(each.ceiling, 3)
    )
    first = [epoch.first_batch_s for epoch in loop.epochs if np.isfinite(epoch.first_batch_s)]
    return results.Loader(
        name=loop.name,
        where=loop.facts.get("where"),
        settings=settings,
        batches=loop.batches,
        batch_size=size if isinstance(size, int) else None,
        samples_per_s=rate and round(rate, 2),
        wait_s=wait,
        wait_share=_share(wait, total),
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
        total = loop.wait_s + loop.step_s if loop.wait_s is not None and loop.step_s is not None else None
        share = _share(loop.wait_s, total)
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
            total = main.wait_s + main.step_s if main.wait_s is not None and main.step_s is not None else None
            ranks.setdefault(of.rank or 0, results.Rank(of.rank or 0, of.host, of.own_pid, total, main.wait_s))
    for each in sorted(studied, key=lambda each: not each.loop.training):
        process, loop = each.loop.process, each.loop
        if loop.main_thread and (process.rank or 0) not in ranks:
            wait, step = loop.mean(loop.wait), loop.mean(loop.step)
            total = wait + step if wait is not None and step is not None else None
            ranks[process.rank or 0] = results.Rank(process.rank or 0, process.host, process.own_pid, total, wait)
    return tuple(ranks[number] for number in sorted(ranks))


def _run(recording: Recording, timeline: Timeline) -> results.Run:
    meta = recording.meta
    command = meta.get("command")
    mains = [process for process in recording.processes if process.worker is None]
    ranks = {process.rank for process in mains if process.rank is not None}
    taken = [(loop.training, loop.batches) for loop in timeline.loops]
    taken += [(loop.training, loop.batches) for rank in recording.others for loop in rank.loops]
    methods = [loop.facts.get("start_method") for loop in timeline.loops if loop.facts.get("start_method")]
    return results.Run(
        command=shlex.join(map(str, command)) if isinstance(command, list) else "",
        exit_code=meta.get("exit_code"),
        duration_s=timeline.duration_s,
        steps=sum(batches for training, batches in taken if training) or sum(batches for _, batches in taken),
        world_size=max(1, len(ranks)),
        device=_device(recording),
        cpu_budget=machine.cpu_budget(recording),
        python=next((process.header.get("python") for process in mains), None),
        torch=_torch(recording),
        start_method=methods[0] if methods else None,
        overhead=machine.overhead(recording, timeline.duration_s),
        notes=(*recording.notes, *_restarts(mains), *(note for loop in timeline.loops[:1] for note in _notes(loop))),
        signal=meta.get("signal"),
        started_unix_s=meta["started_unix_ns"] / 1e9 if isinstance(meta.get("started_unix_ns"), int) else None,
        loaderprof=meta.get("loaderprof"),
        gpus=tuple(meta.get("gpus") or ()),
        failure=endings.explained(recording),
    )


def _restarts(mains: Sequence[Process]) -> Iterator[str]:
    """Yield how often an elastic launcher started all ranks anew: each start has processes and loops of its own."""
    counts = [str((main.header.get("environment") or {}).get("TORCHELASTIC_RESTART_COUNT", "")) for main in mains]
    most = max([0, *(int(count) for count in counts if count.isdecimal() and len(count) < 8)])
    if most:
        often = "once" if most == 1 else f"{most} times"
        yield f"the launcher started the ranks again {often}; each start is a segment of its own"


def _notes(loop: Loop) -> Iterator[str]:
    if loop.background:
        yield BACKGROUND
    stamped = int((loop.count == 1).sum())
    # Of batches that a graph takes none is stamped.
    if stamped and loop.batches >= 2 * stamped:
        yield (
            f"batches of {loop.name} are so quick that one in {round(loop.batches / max(1, stamped))} was stamped; of the "
            "others the sums are known"
        )


def _about_the_replay(main: job.LoopStudy, others: float) -> Iterator[str]:
    """Yield why predictions are less sure where the replay does not reproduce the run itself."""
    error = main.model_error
    if error is None or abs(error) <= REPRODUCED:
        return
    off = f"the replay of the run as it was is {abs(error):.0%} {'slower' if error > 0 else 'quicker'} than the run"
    why = f", in which other programs kept {others:.1f} cores busy" if others > NOTICED else ""
    then = "it cannot predict changes well" if abs(error) > MODEL_ERROR else "predictions may be off by as much"
    yield f"{off}{why}: {then}"


def _torch(recording: Recording) -> str | None:
    return next((process.header["torch"] for process in recording.processes if process.header.get("torch")), None)


def _device(recording: Recording) -> str | None:
    if not recording.processes:
        return None
    return "cuda" if len(recording.tables["device"]) else "cpu"
