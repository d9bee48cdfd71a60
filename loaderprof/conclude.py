"""Recording -> findings: the loops, what their batches cost, what each stage's removal gains, verdict and advice.

Composes `diagnose` and `predict`; decides nothing itself. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from loaderprof import findings as results
from loaderprof.diagnose import causes, outside
from loaderprof.diagnose.breakdown import WORK, Breakdown, break_down
from loaderprof.diagnose.causes import Scene
from loaderprof.diagnose.timeline import Loop, Timeline, build
from loaderprof.diagnose.verdict import LOADER, Judgement, judge, primary
from loaderprof.findings import Findings, Stage
from loaderprof.predict.advice import Facts, advise
from loaderprof.predict.removal import Model, model, without
from loaderprof.recording import Recording

DRAWS = 12
# A job's very first start is no bottleneck of a longer run, unless it is this much of what was seen.
FIRST_START_SHARE = 0.2
# A loop of which a stage of its own loader explains so much is told as that stage, not as validation.
EXPLAINED = 0.6
# Cores that others may take before a verdict is called disturbed, as a share of the budget.
DISTURBANCE = 0.2


@dataclass(slots=True)
class Studied:
    """One loop with all that was worked out about it.

    `others` and `helpers` are cores that processes outside the job, and the job's processes besides this loop and its
    workers, kept busy; `cpus` how many CPUs the workers may run on together; `contention` the share of the pace lost.
    """

    loop: Loop
    parts: Breakdown
    base: Model | None
    gains: dict[Stage, float]
    draws: list[dict[Stage, float]]
    model_error: float | None
    ceiling: float | None
    others: float = 0.0
    helpers: float = 0.0
    cpus: int | None = None
    contention: float | None = None


def conclude(recording: Recording) -> Findings:
    """Return the findings of a recording."""
    if recording.meta.get("mode") == "attach" and not recording.processes:
        return outside.conclude(recording, cores=_budget(recording), busy_others=busy_others(recording))
    timeline = build(recording)
    budget = _budget(recording)
    others = busy_others(recording)
    share = budget / _ranks_a_host(timeline)
    everyone = [_study(recording, loop, share, others) for loop in timeline.loops]
    run = _run(recording, timeline)
    if not everyone:
        return Findings(run=run, verdict=_no_loader())
    studied = _slowest_rank(everyone)
    main = _main(studied)
    job_gains = _job_gains(studied)
    draws = [_job_gains(studied, number) for number in range(DRAWS)] if main.draws else []
    judgement = judge(
        job_gains, steps=int(main.loop.count[main.loop.steady].sum()), model_error=main.model_error, draws=draws,
        disturbed=(others or 0.0) > DISTURBANCE * budget, sources_agree=_agreement(main, job_gains),
        guessed=_guessed(main, job_gains),
    )  # fmt: skip
    scene = _scene(recording, _holder(studied, judgement.stage, main), job_gains, budget, others)
    kind = causes.name(judgement.stage, scene)
    if judgement.stage == "host" and _validation_s(studied) > 0.5 * _host_s(studied):
        kind = next(each for each in causes.CATALOGUE if each.id == "validation")
    verdict = _verdict(main, scene, judgement, kind, _job_ceiling(studied))
    return Findings(
        run=run,
        verdict=verdict,
        stages=_stages(main),
        causes=causes.examine(scene, judgement.stage, kind, judgement.others) if judgement.stage != "unknown" else (),
        advice=_advice(recording, studied, scene, judgement),
        loaders=tuple(_loader(recording, each, budget, others) for each in everyone),
        ranks=_ranks(everyone),
        risks=_risks(recording, everyone, budget),
    )


def _ranks_a_host(timeline: Timeline) -> int:
    """Return how many processes with a training loop of their own share a host's cores."""
    hosts: dict[str, set[int]] = {}
    for loop in timeline.loops:
        if loop.process.rank is not None:
            hosts.setdefault(loop.process.host, set()).add(loop.process.number)
    return max([1, *map(len, hosts.values())])


def _slowest_rank(everyone: Sequence[Studied]) -> Sequence[Studied]:
    """Return the loops of the process whose training waits the most: the ranks of a job wait for their slowest."""
    processes = {each.loop.process.number for each in everyone if each.loop.process.rank is not None}
    if len(processes) < 2:
        return everyone
    ranks = [[each for each in everyone if each.loop.process.number == number] for number in sorted(processes)]
    return max(ranks, key=lambda loops: _main(loops).loop.mean(_main(loops).loop.wait) or 0.0)


def _study(recording: Recording, loop: Loop, budget: float, others: float | None) -> Studied:
    parts = break_down(recording, loop)
    helpers = busy_helpers(recording) or 0.0
    base = model(loop, parts, budget, (others or 0.0) + helpers)
    if base is None:
        return Studied(loop, parts, None, {}, [], None, None)
    iterable = bool(loop.facts.get("iterable"))
    variants = {stage: each for stage in _STAGES if (each := without(base, stage, parts, iterable)) is not None}
    before = base.run().steady_step_s
    gains = {stage: _ratio(before, variant.run().steady_step_s) for stage, variant in variants.items()}
    draws = [_draw(base, variants, seed) for seed in range(1, DRAWS + 1)]
    measured = (loop.mean(loop.wait) or 0.0) + (loop.mean(loop.step) or 0.0)
    error = before / measured - 1 if measured > 0 else None
    bare = base
    for stage in (*WORK, "handover", "sampler"):
        bare = without(bare, stage, parts) or bare
    ceiling = _ratio(before, bare.run().steady_step_s)
    studied = Studied(loop, parts, base, gains, draws, error, ceiling, others or 0.0, helpers, _cpus(recording, loop))
    studied.contention = _contention_share(studied)
    return studied


_STAGES: tuple[Stage, ...] = (*WORK, "handover", "sampler", "straggler", "device", "host")


def _cpus(recording: Recording, loop: Loop) -> int | None:
    """Return how many CPUs the loop's workers may run on together; None where it was not told."""
    table = recording.tables["setup"]
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows = table[np.isin(table["process"], numbers) & (table["worker"] >= 0)]
    if not len(rows) or (rows["cpus"] > 63).any():
        return None
    return int(np.bitwise_or.reduce(rows["cpu_mask"])).bit_count() or None


def _draw(base: Model, variants: dict[Stage, Model], seed: int) -> dict[Stage, float]:
    before = base.run(seed).steady_step_s
    return {stage: _ratio(before, variant.run(seed).steady_step_s) for stage, variant in variants.items()}


def _ratio(before: float, after: float) -> float:
    # A loop with nothing left to do has no rate; a thousandfold says as much.
    return float(min(1000.0, before / after)) if after > 0 else 1000.0


def _main(studied: Sequence[Studied]) -> Studied:
    """Return the loop that the job is about: the longest training loop, else the longest."""
    training = [each for each in studied if each.loop.training and each.base is not None]
    return next(iter(training or [each for each in studied if each.base is not None]), studied[0])


def _active_s(studied: Sequence[Studied]) -> float:
    """Return seconds from the first loop's beginning to the last one's end."""
    begun = min(each.loop.epochs[0].begun for each in studied if each.loop.epochs)
    last = max(float(np.nanmax(each.loop.taken)) for each in studied)
    ends = [epoch.ended for each in studied for epoch in each.loop.epochs if epoch.ended is not None]
    return max([last, *ends]) - begun


def _steady_s(each: Studied) -> float:
    """Return the seconds that a loop spends at its steady pace: all of its batches' waits and steps."""
    step = (each.loop.mean(each.loop.wait) or 0.0) + (each.loop.mean(each.loop.step) or 0.0)
    return step * each.loop.batches


def _borders_s(each: Studied, active_s: float) -> float:
    """Return seconds lost at the borders of epochs: starting workers, the first batch, stopping workers."""
    usual = each.loop.mean(each.loop.wait) or 0.0
    lost = []
    firsts = each.loop.index[each.loop.position == 0]
    for epoch, index in zip(each.loop.epochs, _padded(firsts, len(each.loop.epochs)), strict=True):
        first = epoch.first_batch_s if np.isfinite(epoch.first_batch_s) else epoch.ready - epoch.begun
        lost.append(max(0.0, first - epoch.index_s - index - usual) + epoch.shutdown_s)
    if lost and lost[0] < FIRST_START_SHARE * active_s:
        # The very first start is no more than each later one costs.
        lost[0] = min(lost[0], statistics.median(lost[1:])) if len(lost) > 1 else 0.0
    return sum(lost)


def _padded(values: Any, length: int) -> list[float]:
    return [float(value) for value in values[:length]] + [0.0] * (length - len(values[:length]))


def _index_s(each: Studied) -> float:
    """Return seconds in the sampler at the beginning of epochs: in making the iterator, and in its first batch."""
    return sum(epoch.index_s for epoch in each.loop.epochs) + float(each.loop.index[each.loop.position == 0].sum())


def _host_s(studied: Sequence[Studied]) -> float:
    """Return seconds of the job outside any loop, and in loops that do not train while another does."""
    active = _active_s(studied)
    covered = sum(each.loop.span_s for each in studied if each.loop.main_thread)
    return max(0.0, active - covered) + _validation_s(studied)


def _validation_s(studied: Sequence[Studied]) -> float:
    return sum(each.loop.span_s for each in studied if _validates(each, studied))


def _validates(each: Studied, studied: Sequence[Studied]) -> bool:
    """Return whether a loop does not train while another does, and no stage of its own loader explains it."""
    trained = not each.loop.training and any(other.loop.training for other in studied)
    return trained and _loader_s(each) < EXPLAINED * each.loop.span_s


def _loader_s(each: Studied) -> float:
    """Return seconds of a loop that its loader's dearest stage, or starting and stopping it, costs."""
    dearest = max((gain for stage, gain in each.gains.items() if stage in LOADER), default=1.0)
    return max(_steady_s(each) * (1 - 1 / dearest), _borders_s(each, np.inf))


def _job_gains(studied: Sequence[Studied], draw: int | None = None) -> dict[Stage, float]:
    """Return what removing each stage, from every loop that has it, would gain the whole job."""
    active = _active_s(studied)
    saved: dict[Stage, float] = {}
    for each in studied:
        gains = each.gains if draw is None or draw >= len(each.draws) else each.draws[draw]
        # All of a validation loop is the host's, so its steps are not the training step's too.
        own = {"device", "host"} if _validates(each, studied) else set()
        for stage, gain in gains.items():
            if stage not in own:
                saved[stage] = saved.get(stage, 0.0) + _steady_s(each) * (1 - 1 / gain)
        if each.loop.epochs:
            saved["startup"] = saved.get("startup", 0.0) + _borders_s(each, active)
            saved["sampler"] = saved.get("sampler", 0.0) + _index_s(each)
            if each.contention is not None:
                saved["contention"] = saved.get("contention", 0.0) + _steady_s(each) * each.contention
    if any(each.base is not None for each in studied) and any(len(each.loop.epochs) > 1 for each in studied):
        saved["host"] = saved.get("host", 0.0) + _host_s(studied)
    return {
        stage: _ratio(active, max(active - seconds, active / 1000)) for stage, seconds in saved.items() if active > 0
    }


def _contention_share(each: Studied) -> float | None:
    """Return the share of the steady pace lost to a fight for cores; None where nothing fights.

    The replay knows what the work needs and which cores there are, but not of threads that libraries start, of
    workers bound to a few CPUs, or of helpers of the job: what the run took beyond the replay is theirs. Plain lack
    of cores is no contention; it is the price of the work, and told as the stage that does it.
    """
    base, parts = each.base, each.parts
    if base is None:
        return None
    workers = max(1, each.loop.num_workers)
    threads = parts.threads or 1.0
    crowded = threads > causes.MANY_THREADS and workers * threads > 1.2 * base.cores
    bound = each.loop.num_workers > 0 and (each.cpus or workers) < min(workers, int(base.cores))
    helped = each.helpers > 0.3 and base.neighbours > 0
    if not (crowded or bound or helped or parts.lock_holder):
        return None
    costs = base.costs
    if crowded or parts.lock_holder:
        # Threads that meet at barriers, or at the interpreter's lock, block each other.
        costs = replace(costs, fetch_blocked_s=costs.fetch_blocked_s * 0.0)
    if parts.lock_holder:
        costs = replace(costs, step_blocked_s=costs.step_blocked_s * 0.0)
    neighbours = base.neighbours
    if helped:
        neighbours *= each.others / (each.helpers + each.others)
    measured = _steady_s(each) / max(1, each.loop.batches)
    needed = replace(base, costs=costs, neighbours=neighbours).run().steady_step_s
    return max(0.0, 1 - needed / measured) if measured > 0 else None


def _job_ceiling(studied: Sequence[Studied]) -> float | None:
    active = _active_s(studied)
    saved = sum(
        _steady_s(each) * (1 - (1 - (each.contention or 0.0)) / each.ceiling) for each in studied if each.ceiling
    )
    saved += sum(_borders_s(each, active) + _index_s(each) for each in studied if each.base is not None)
    known = any(each.ceiling for each in studied)
    return round(_ratio(active, max(active - saved, active / 1000)), 3) if known and active > 0 else None


def _agreement(main: Studied, gains: dict[Stage, float]) -> bool | None:
    """Return whether timers and stacks see the same dearest stage in the makers; None where one of them is silent."""
    if not main.parts.by_stack or not main.parts.timed_batches:
        return None
    stage = primary(gains)
    if stage not in WORK:
        return None
    total = sum(piece.total_s for piece in main.parts.pieces)
    timed = sum(piece.total_s for piece in main.parts.pieces if piece.stage == stage) / total if total else 0.0
    seen = main.parts.by_stack.get(stage, 0) / sum(main.parts.by_stack.values())
    return abs(timed - seen) < 0.35


def _guessed(main: Studied, gains: dict[Stage, float]) -> float:
    """Return the share of the bottleneck's time in the makers whose stage nothing told."""
    mine = [piece for piece in main.parts.pieces if piece.stage == primary(gains)]
    total = sum(piece.total_s for piece in mine)
    return sum(piece.total_s for piece in mine if piece.guessed) / total if total else 0.0


def _holder(studied: Sequence[Studied], stage: Stage, main: Studied) -> Studied:
    """Return the loop in which a stage costs the job the most."""
    if stage not in LOADER:
        return main
    return max(
        (each for each in studied if each.base is not None),
        key=lambda each: (
            _steady_s(each) * (1 - 1 / each.gains.get(stage, 1.0))
            + (_borders_s(each, np.inf) if stage == "startup" else 0.0)
        ),
        default=main,
    )


def _scene(
    recording: Recording, each: Studied, gains: dict[Stage, float], budget: float, others: float | None
) -> Scene:
    missing = recording.meta.get("missing")
    missing = missing if isinstance(missing, dict) else {}
    pids = set(each.loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    table = recording.tables["operator"]
    names = np.unique(table["name"][np.isin(table["process"], numbers)])
    sizes = recording.tables["size"]
    mine = sizes[np.isin(sizes["process"], numbers)]
    return Scene(
        each.loop, each.parts, gains, budget, others, missing.get("gpu"), missing.get("stacks"),
        tuple(recording.texts[int(number)].split("@")[0] for number in names if number >= 0),
        float(np.median(mine["bytes"])) if len(mine) else None,
        float(np.median(mine["tensors"])) if len(mine) else None,
        bound=(each.cpus or budget) < min(each.loop.num_workers, budget), helpers=each.helpers,
    )  # fmt: skip


def _verdict(
    main: Studied, scene: Scene, judgement: Judgement, kind: causes.Kind, ceiling: float | None
) -> results.Verdict:
    wait, total = _wait_and_step(main.loop)
    if judgement.stage == "unknown":
        text = f"Not enough evidence: {judgement.reason}"
        return results.Verdict("unknown", "not-enough-evidence", "low", text, total, wait, _share(wait, total), None)
    text = causes.headline(judgement.stage, kind, scene)
    return results.Verdict(
        judgement.stage, kind.id, judgement.confidence, text, total, wait, _share(wait, total), ceiling
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


def _stages(main: Studied) -> tuple[results.StageCost, ...]:
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
    recording: Recording, studied: Sequence[Studied], scene: Scene, judgement: Judgement
) -> tuple[results.Advice, ...]:
    each = next(each for each in studied if each.loop is scene.loop)
    if each.base is None or judgement.stage in ("none", "device", "unknown"):
        return ()
    samples = recording.tables["size"]
    per_sample = samples["bytes"] / np.maximum(samples["samples"], 1)
    memory = recording.host[-1].get("memory", {}) if recording.host else {}
    rate = _rate(each)
    facts = Facts(
        rate, memory.get("available") if isinstance(memory, dict) else None,
        float(np.median(per_sample)) if len(per_sample) else None, _device(recording) == "cuda", _torch(recording),
    )  # fmt: skip
    return advise(scene, each.base, facts)


def _rate(each: Studied) -> float | None:
    step = (each.loop.mean(each.loop.wait) or 0.0) + (each.loop.mean(each.loop.step) or 0.0)
    size = each.loop.facts.get("batch_size")
    return size / step if step > 0 and isinstance(size, int) else None


def _loader(recording: Recording, each: Studied, budget: float, others: float | None) -> results.Loader:
    loop = each.loop
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    total = wait + step if wait is not None and step is not None else None
    settings = {key: loop.facts.get(key) for key in _SETTINGS}
    size = loop.facts.get("batch_size")
    rate = _rate(each)
    judgement = judge(
        each.gains, steps=int(loop.count[loop.steady].sum()), model_error=each.model_error, draws=each.draws,
        disturbed=(others or 0.0) > DISTURBANCE * budget, sources_agree=None,
    )  # fmt: skip
    scene = _scene(recording, each, each.gains, budget, others)
    verdict = _verdict(
        each, scene, judgement, causes.name(judgement.stage, scene), each.ceiling and round(each.ceiling, 3)
    )
    first = [epoch.first_batch_s for epoch in loop.epochs if np.isfinite(epoch.first_batch_s)]
    return results.Loader(
        name=loop.name, where=loop.facts.get("where"), settings=settings, batches=loop.batches,
        batch_size=size if isinstance(size, int) else None, samples_per_s=rate and round(rate, 2), wait_s=wait,
        wait_share=_share(wait, total), first_batch_s=first[0] if first else None, epochs=len(loop.epochs), verdict=verdict,
    )  # fmt: skip


_SETTINGS = (
    "num_workers", "batch_size", "prefetch_factor", "persistent_workers", "pin_memory", "in_order", "start_method",
    "drop_last", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "dataset", "dataset_where", "type", "iterable",
    "samples",
)  # fmt: skip


def _ranks(studied: Sequence[Studied]) -> tuple[results.Rank, ...]:
    """Return each rank by its longest training loop, or its longest loop where it trains in none."""
    ranks: dict[int, results.Rank] = {}
    for each in sorted(studied, key=lambda each: not each.loop.training):
        process, loop = each.loop.process, each.loop
        if loop.main_thread and (process.rank or 0) not in ranks:
            wait, step = loop.mean(loop.wait), loop.mean(loop.step)
            total = wait + step if wait is not None and step is not None else None
            ranks[process.rank or 0] = results.Rank(process.rank or 0, process.host, process.pid, total, wait)
    return tuple(ranks[number] for number in sorted(ranks))


def _risks(recording: Recording, studied: Sequence[Studied], budget: float) -> tuple[results.Risk, ...]:
    risks = []
    workers = sum(each.loop.num_workers for each in studied)
    if workers > budget:
        text = f"{workers} workers over all loaders share a CPU budget of {budget:g} cores"
        risks.append(results.Risk("workers-over-budget", text, float(workers), "workers", budget))
    shm = recording.host[-1].get("shm") if recording.host else None
    sizes = recording.tables["size"]["bytes"]
    if isinstance(shm, dict) and len(sizes):
        in_flight = sum(
            each.loop.num_workers * int(each.loop.facts.get("prefetch_factor") or 2) for each in studied
        ) * float(np.median(sizes))
        if in_flight > 0.8 * shm.get("total", float("inf")):
            text = "batches in flight would fill /dev/shm: the job may die with a bus error"
            risks.append(results.Risk("shared-memory", text, in_flight, "bytes", float(shm["total"])))
    return tuple(risks)


def _run(recording: Recording, timeline: Timeline) -> results.Run:
    meta = recording.meta
    command = meta.get("command")
    mains = [process for process in recording.processes if process.worker is None]
    ranks = {process.rank for process in mains if process.rank is not None}
    methods = [loop.facts.get("start_method") for loop in timeline.loops if loop.facts.get("start_method")]
    return results.Run(
        command=shlex.join(map(str, command)) if isinstance(command, list) else "", exit_code=meta.get("exit_code"),
        duration_s=timeline.duration_s, steps=sum(loop.batches for loop in timeline.loops if loop.training)
        or sum(loop.batches for loop in timeline.loops),
        world_size=max(1, len(ranks)), device=_device(recording), cpu_budget=_budget(recording),
        python=next((process.header.get("python") for process in mains), None), torch=_torch(recording),
        start_method=methods[0] if methods else None, overhead=_overhead(recording, timeline),
        notes=tuple(recording.notes), signal=meta.get("signal"),
        started_unix_s=meta["started_unix_ns"] / 1e9 if isinstance(meta.get("started_unix_ns"), int) else None,
        loaderprof=meta.get("loaderprof"), gpus=tuple(meta.get("gpus") or ()),
    )  # fmt: skip


def _torch(recording: Recording) -> str | None:
    return next((process.header["torch"] for process in recording.processes if process.header.get("torch")), None)


def _device(recording: Recording) -> str | None:
    if not recording.processes:
        return None
    return "cuda" if len(recording.tables["device"]) else "cpu"


def _budget(recording: Recording) -> float:
    budget = recording.meta.get("cpu_budget")
    cores = budget.get("cores") if isinstance(budget, dict) else None
    return float(cores) if isinstance(cores, int | float) and cores > 0 else 1.0


# What one record of each kind costs in the job, seconds of CPU: benchmarks in docs/overhead.md.
RECORD_COST_S = {"take": 4e-6, "fetch": 15e-6, "operator": 3e-6, "pickle": 2.5e-6, "sample": 1.5e-6}
PROCESS_COST_S = 1.5e-3


def _overhead(recording: Recording, timeline: Timeline) -> results.Overhead:
    """Return loaderprof's own cost: counted records times their measured cost, and the samplers' CPU as measured."""
    calls = float(recording.tables["operator"]["calls"].sum()) * 1.6e-6
    capture = calls + sum(len(recording.tables[kind]) * cost for kind, cost in RECORD_COST_S.items())
    capture += PROCESS_COST_S * len(recording.processes)
    sampler = recording.meta.get("sampler_cpu_s")
    duration = timeline.duration_s
    budget = _budget(recording)
    share = (capture + (sampler or 0.0)) / (duration * budget) if duration else None
    return results.Overhead(round(capture, 4), sampler and round(sampler, 4), share and round(share, 5))


def busy_helpers(recording: Recording) -> float | None:
    """Return cores that the job's processes besides its loops and their workers kept busy; None: not measured."""
    watched = {process.pid for process in recording.processes}
    lines = [line for line in recording.host if isinstance(line.get("processes"), list)]
    if len(lines) < 3 or not watched:
        return None
    used: dict[int, list[float]] = {}
    for line in lines:
        for entry in line["processes"]:
            if entry["pid"] not in watched:
                used.setdefault(entry["pid"], []).append(entry["user"] + entry["system"])
    seconds = (lines[-1]["t"] - lines[0]["t"]) / 1e9
    return sum(times[-1] - times[0] for times in used.values()) / seconds if seconds > 0 else None


def busy_others(recording: Recording) -> float | None:
    """Return cores that processes outside the job kept busy while it ran; None where it was not measured."""
    lines = [
        line for line in recording.host if isinstance(line.get("cpu"), dict) and isinstance(line.get("processes"), list)
    ]
    if len(lines) < 3:
        return None
    first, last = lines[1] if len(lines) > 4 else lines[0], lines[-1]
    seconds = (last["t"] - first["t"]) / 1e9
    busy = sum(float(last["cpu"].get(key, 0)) - float(first["cpu"].get(key, 0)) for key in ("user", "system", "nice"))
    mine = 0.0
    for before, after in pairwise(lines):
        if before["t"] < first["t"]:
            continue
        known = {entry["pid"]: entry["user"] + entry["system"] for entry in before["processes"]}
        for entry in after["processes"]:
            mine += max(0.0, entry["user"] + entry["system"] - known.get(entry["pid"], 0.0))
    return max(0.0, (busy - mine) / seconds) if seconds > 0 else None
