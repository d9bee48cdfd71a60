"""Findings of a job that was watched from outside: there are stack samples, but no hook stamped its batches.

Gains are estimated from shares of samples (`analyze.samples`). With the job's time for a batch as 1, w the share of it
that the loop waits, and b the share of their time that workers are busy:

* a stage that takes the share f of the workers' time gains `1 / max(1 - w, 1 - f / b)`: the wait shrinks with the work;
* work that takes the share h of the main thread's time gains `1 / max(1 - h, b)`: below b the workers are the limit;
* without workers nothing overlaps, and a stage gains `1 / (1 - f)`.

Single batches are not seen, so stragglers, queue depth and seconds a batch are not measured. Pure: no torch, no clock,
no processes.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

import numpy as np

from loaderprof import findings as results
from loaderprof import formatting
from loaderprof.analyze.machine import DISTURBANCE
from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.analyze.samples import WAITING, Seen, Share, look, share, waiting, watched_mains
from loaderprof.analyze.stages import LOADER, WORK
from loaderprof.diagnose.causes import catalogue
from loaderprof.diagnose.causes.cause import CauseRule
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.outside_context import context_of
from loaderprof.diagnose.verdict import FAIR_DRAWS, MIN_GAIN, SURE_DRAWS, primary
from loaderprof.findings import Confidence, Evidence, Findings, Stage
from loaderprof.recording.reader import Recording

# Under these a share is noise: at 50 samples it is known to 14 points.
MIN_SAMPLES, MIN_WORKER_SAMPLES = 50, 50
# Half-widths of the 95 % interval of the wait that a confidence asks for.
SURE_ERROR, FAIR_ERROR = 0.04, 0.10
# How often the samples are redrawn to see whether the verdict holds.
DRAWS = 24
# Waiting for a core this share of the time is contention, where libraries run threads of their own (as in a hooked run).
CONTENTION_SHARE = 0.15
# Threads that keep this many times the job's cores busy are more than the cores can run.
OVERSUBSCRIBED = 1.2
NOTE = "watched from outside: batches, seconds a step and queue depth are not measured; loaderprof run measures them"
# Causes that no stack shows.
UNMEASURED = ("slow-samples", "copy-bound")
NEEDS_STAMPS = "not measured: it needs the stamps of loaderprof run"


def conclude(recording: Recording, *, cores: float, busy_others: float | None) -> Findings:
    """Return the findings of a recording without journals.

    Args:
        recording: made by `loaderprof attach`.
        cores: the job's CPU budget.
        busy_others: cores that processes outside the job kept busy; None: not measured.
    """
    seen = look(recording)
    run = _run(recording, seen, cores)
    refusal = _refusal(recording, seen)
    wait = waiting(seen)
    if refusal is not None:
        share = wait.value if seen.main_samples >= MIN_SAMPLES and seen.elsewhere is None and _loads(seen) else None
        verdict = results.Verdict("unknown", "not-enough-evidence", "low", refusal, None, None, share, None)
        return Findings(run=run, verdict=verdict, ranks=_ranks(recording))
    before = _shares(seen.main), _shares(seen.worker)
    gains = estimate_gains(*before, seen.workers, _contention(seen, cores))
    stage = primary(gains)
    context = context_of(recording, seen, gains, cores, busy_others)
    cause = catalogue.cause_of(stage, context)
    confidence = _confidence(seen, stage, wait, (busy_others or 0.0) > DISTURBANCE * cores, cores)
    verdict = results.Verdict(
        stage,
        cause.id,
        confidence,
        _headline(cause, context),
        None,
        None,
        round(wait.value, 4),
        _ceiling(before[0]),
    )
    return Findings(
        run=run,
        verdict=verdict,
        stages=_stages(seen, *before),
        causes=_causes(seen, context, cause, wait),
        ranks=_ranks(recording),
    )


def _shares(counts: Counter[str]) -> dict[str, float]:
    total = sum(counts.values())
    return {part: count / total for part, count in counts.items()} if total else {}


def estimate_gains(
    main: Mapping[str, float], worker: Mapping[str, float], workers: int, contention: float | None
) -> dict[Stage, float]:
    """Return what removing each stage would gain the job: 1.3 for 30 % faster.

    Args:
        main: shares of the main thread's time by part.
        worker: shares of a worker's time by part; empty without workers.
        workers: how many there are.
        contention: share of the workers' time lost to threads that compete for cores; None where none do.
    """
    wait, hand = main.get("wait", 0.0), main.get("handover", 0.0)
    busy = 1.0 - worker.get("idle", 0.0) if workers and worker else 0.0

    def gain(*limits: float) -> float:
        return min(1000.0, 1.0 / max(*limits, 1e-3))

    gains: dict[Stage, float] = {}
    for stage in WORK:
        if busy > 0:
            gains[stage] = gain(1 - wait, 1 - worker.get(stage, 0.0) / busy)
        elif not workers:
            gains[stage] = gain(1 - main.get(stage, 0.0), 0.0)
    if busy > 0:
        put = worker.get("handover", 0.0)
        gains["handover"] = gain(1 - hand - min(wait, put / busy), busy - put)
        if contention is not None:
            gains["contention"] = gain(1 - wait, 1 - contention / busy)
    gains["sampler"] = gain(1 - main.get("sampler", 0.0), busy)
    gains["startup"] = gain(1 - main.get("startup", 0.0), 0.0)
    gains["host"] = gain(1 - main.get("host", 0.0), busy)
    gains["device"] = gain(1 - main.get("device", 0.0), busy)
    return gains


def _ceiling(main: Mapping[str, float]) -> float | None:
    free = 1 - sum(main.get(part, 0.0) for part in (*WAITING, "startup"))
    return round(min(1000.0, 1 / max(free, 1e-3)), 3)


def _contention(seen: Seen, cores: float) -> float | None:
    """Return the share of their time that workers wait for a core, where their libraries run more threads than cores."""
    account = seen.account
    if account is None or not seen.workers or (account.threads or 0.0) <= MANY_THREADS:
        return None
    busy = seen.workers * (account.threads or 0.0)
    return account.runq if busy > OVERSUBSCRIBED * cores and account.runq > CONTENTION_SHARE else None


def _confidence(seen: Seen, stage: Stage, wait: Share, disturbed: bool, cores: float) -> Confidence:
    """Return how sure the stage is: whether redrawn samples name it again, and how wide the wait's interval is."""
    generator = np.random.default_rng(0)
    agree = 0
    for _ in range(DRAWS):
        main, worker = _redrawn(seen.main, generator, _independent(wait)), _redrawn(seen.worker, generator, 1.0)
        agree += primary(estimate_gains(main, worker, seen.workers, _contention(seen, cores))) == stage
    if agree >= SURE_DRAWS * DRAWS and wait.error <= SURE_ERROR and not disturbed:
        return "high"
    return "medium" if agree >= FAIR_DRAWS * DRAWS and wait.error <= FAIR_ERROR else "low"


def _independent(wait: Share) -> float:
    """Return the share of samples that count as independent, by the error beyond the binomial one."""
    binomial = share(round(wait.value * wait.samples), wait.samples).error
    return min(1.0, (binomial / wait.error) ** 2) if wait.error > 0 else 1.0


def _redrawn(counts: Counter[str], generator: np.random.Generator, independent: float) -> dict[str, float]:
    total = sum(counts.values())
    if not total:
        return {}
    size = max(1, round(total * independent))
    drawn = generator.multinomial(size, [count / total for count in counts.values()])
    return {part: float(number) / size for part, number in zip(counts, drawn, strict=True)}


def _loads(seen: Seen) -> bool:
    return bool(seen.worker_samples) or any(seen.main[part] for part in (*WAITING, "startup"))


def _refusal(recording: Recording, seen: Seen) -> str | None:
    """Return why there is no verdict; None where there is one."""
    missing = recording.meta.missing
    stacks = missing.stacks
    if not seen.main_samples and stacks:
        return f"Not enough evidence: stacks {stacks}"
    if seen.main_samples < MIN_SAMPLES:
        return (
            f"Not enough evidence: only {seen.main_samples} stack samples of the main thread, {MIN_SAMPLES} are needed"
        )
    if seen.elsewhere is not None:
        return f"Not enough evidence: the DataLoader is read by {seen.elsewhere}, not by the main thread whose waiting counts"
    if not _loads(seen):
        return f"No DataLoader was at work in {seen.main_samples:,} stack samples of the main thread"
    if seen.workers and seen.worker_samples < MIN_WORKER_SAMPLES and waiting(seen).value >= MIN_GAIN:
        return f"Not enough evidence: only {seen.worker_samples} stack samples of the {seen.workers} workers"
    return None


def _headline(cause: CauseRule, context: LoopContext) -> str:
    # These say in seconds, or by the sampler's name, what a loop without stamps does not know.
    if cause.stage == "startup":
        return "Starting and stopping the loader's workers"
    if cause.stage == "sampler":
        return "The sampler in the training process"
    return catalogue.headline(cause, context)


def _causes(seen: Seen, context: LoopContext, cause: CauseRule, wait: Share) -> tuple[results.Cause, ...]:
    found, ruled_out = [], []
    for stage, gain in sorted(context.gains.items(), key=lambda item: (item[0] != cause.stage, -item[1])):
        each = cause if stage == cause.stage else catalogue.cause_of(stage, context)
        listed = stage in (*LOADER, "host") and gain >= 1 + MIN_GAIN and cause.stage != "none"
        if stage == cause.stage or listed:
            found.append(each.found(gain, evidence(seen, stage, gain, wait)))
        elif stage != "device":
            ruled_out.append(each.ruled_out(gain, "about "))
    if cause.stage == "none":
        facts = evidence(seen, "none", 1.0, wait)
        found.append(results.Cause(cause.id, "found", "none", facts, None, cause.title))
    missing = (catalogue.BY_ID[each].not_measured(NEEDS_STAMPS) for each in UNMEASURED)
    return (*found, *ruled_out, *missing)


def evidence(seen: Seen, stage: Stage, gain: float, wait: Share) -> tuple[Evidence, ...]:
    """Return what speaks for a stage, each share with its sampling error."""
    who = f"{wait.samples:,} stack samples of the main thread"
    facts = [Evidence(f"the loop waits {wait.text()} of its time ({who})", round(wait.value, 4), "share", None)]
    counts, whose = (seen.worker, "worker samples") if seen.workers else (seen.main, "samples of the main thread")
    if stage in WORK:
        mine = share(counts[stage], sum(counts.values()))
        text = f"{stage} {mine.text()} of {mine.samples:,} {whose}"
        facts.append(Evidence(text, round(mine.value, 4), "share", None))
    elif stage in ("device", "host", "sampler", "startup"):
        mine = share(seen.main[stage], seen.main_samples)
        facts.append(Evidence(f"{stage} {mine.text()} of the main thread's time", round(mine.value, 4), "share", None))
    if seen.worker_samples:
        idle = share(seen.worker["idle"], seen.worker_samples)
        text = f"the {seen.workers} workers wait for the loop {idle.text()} of their time"
        facts.append(Evidence(text, round(idle.value, 4), "share", None))
    if stage in ("read", "contention") and seen.account is not None:
        text = f"its makers wait for a core {formatting.percent(seen.account.runq, whole=True)} of their time"
        facts.append(Evidence(text, round(seen.account.runq, 4), "share", CONTENTION_SHARE))
    if stage != "none":
        text = f"without it the job would be about {formatting.ratio(gain)} as fast"
        facts.append(Evidence(text, round(gain, 3), "ratio", 1 + MIN_GAIN))
    return tuple(facts)


def _stages(seen: Seen, main: Mapping[str, float], worker: Mapping[str, float]) -> tuple[results.StageCost, ...]:
    """Return each stage's share of the seconds that a batch takes all who work on it; the seconds are not known."""
    weights: dict[Stage, float] = {}
    for stage in WORK:
        weights[stage] = seen.workers * worker.get(stage, 0.0) if seen.workers else main.get(stage, 0.0)
    if seen.workers:
        weights["handover"] = main.get("handover", 0.0) + seen.workers * worker.get("handover", 0.0)
    for part in ("sampler", "device", "host"):
        weights[part] = main.get(part, 0.0)
    total = sum(weights.values())
    return tuple(
        results.StageCost(stage, None, round(weight / total, 4) if total else None, ("stack",))
        for stage, weight in weights.items()
    )


def _ranks(recording: Recording) -> tuple[results.Rank, ...]:
    host = recording.meta.host or ""
    mains = enumerate(watched_mains(recording))
    return tuple(results.Rank(number if rank is None else rank, host, pid, None, None) for number, (pid, rank) in mains)


def _run(recording: Recording, seen: Seen, cores: float) -> results.Run:
    meta = recording.meta
    attached = meta.attach
    command, begun, ended = meta.command, meta.started_ns, meta.ended_ns
    duration = (ended - begun) / 1e9 if begun is not None and ended is not None else None
    sampler = meta.sampler_cpu_s
    own = sampler / (duration * cores) if isinstance(sampler, float) and duration else None
    unix = meta.started_unix_ns
    return results.Run(
        command=shlex.join(map(str, command)) if command is not None else "",
        exit_code=None,
        duration_s=duration,
        steps=None,
        world_size=max(1, len(watched_mains(recording))),
        device=attached.device,
        cpu_budget=cores,
        python=attached.python,
        torch=attached.torch,
        start_method=None,
        overhead=results.Overhead(0.0, sampler, own and round(own, 5)),
        notes=(*recording.notes, NOTE, *_by_rank(seen)),
        started_unix_s=unix / 1e9 if unix is not None else None,
        loaderprof=meta.loaderprof,
        gpus=tuple(meta.gpus),
        mode="attach",
    )


def _by_rank(seen: Seen) -> tuple[str, ...]:
    if len(seen.by_main) < 2:
        return ()
    shares = [f"{pid} {share(waits, total).text()}" for pid, (waits, total) in sorted(seen.by_main.items())[:8]]
    return (f"waiting by process: {', '.join(shares)}",)
