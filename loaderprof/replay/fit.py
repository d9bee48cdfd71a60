"""The model of a loop, fitted to its run.

What was measured goes in as it is; waits that no clock shows are found by replaying, see `waits`. Pure: no torch, no clock,
no processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze.breakdown import Breakdown, usual_batches
from loaderprof.analyze.loop import Bools, Loop, Seconds
from loaderprof.replay import waits
from loaderprof.replay.costs import RunCosts, Settings
from loaderprof.replay.model import Batch, LoopModel

# A replay is as long as the run, up to this many batches: it costs milliseconds, and more batches change nothing. They
# are shared out among this many epochs.
MAX_BATCHES, MAX_EPOCHS = 240, 4
# Fewer measured steps have no distribution to replay.
MIN_STEPS = 3
# Enough steps timed by the device for a mean. A loop whose steps last less than this share of the device's runs ahead of
# it; one whose steps last as long waits for it.
MIN_DEVICE_STEPS, SYNCHRONOUS = 10, 0.9
# A step keeps no more cores busy than this, whatever its clocks say; below this CPU time a step the ratio is noise.
MAX_THREADS, MIN_STEP_CPU_S = 64.0, 0.001
# Threads that wait at a barrier never account for all of a step: this share of it is its own at the least.
LEAST_OWN = 0.1
DEFAULT_COLLATE = "torch.utils.data._utils.collate.default_collate"
# An answer that takes this many times the usual one waited for something else. Where other programs want the cores, this
# quantile of the answers stands for all: it is the least disturbed.
MOST_WAITED, UNDISTURBED = 4.0, 0.25


@dataclass(frozen=True, slots=True)
class _Steps:
    """What each measured step did: seconds on a CPU, blocked, and waiting for a core in a run queue."""

    cpu: Seconds
    blocked: Seconds
    runq: Seconds


def fit_model(
    loop: Loop,
    parts: Breakdown,
    budget: float,
    busy_others: float | None,
    others: Sequence[Loop] = (),
    size: tuple[float, float] | None = None,
    team_waited: float = 0.0,
) -> LoopModel | None:
    """Return the replay's model of a loop; None where too little of it was measured.

    Args:
        loop: the loop.
        parts: what its batches cost.
        budget: cores that the job may use.
        busy_others: cores that everything but the loop and its workers kept busy; None: not measured.
        others: loops of the same run, one of which may show what a batch costs once its worker is set up.
        size: bytes and tensors of a batch; None: not measured.
        team_waited: share of the loop's time in which threads that compute its steps beside its own waited for a core.
    """
    stepped = loop.steady & np.isfinite(loop.step) & (loop.count == 1)
    if parts.cpu_s is None or not usual_batches(loop).any() or stepped.sum() < MIN_STEPS:
        return None
    steps, workers = _steps(loop, stepped), loop.num_workers
    share = _own_share(loop, steps)
    neighbours = (busy_others or 0.0) / share
    threads = _step_threads(loop, steps.cpu, stepped, neighbours)
    if workers and threads > waits.SEVERAL and team_waited:
        steps = _without_barriers(loop, steps, stepped, team_waited)
    lengths = [epoch.batches for epoch in loop.epochs if epoch.batches]
    epochs, whole = max(1, len(lengths)), max(1, int(np.median(lengths)))
    length = min(whole, MAX_BATCHES // min(epochs, MAX_EPOCHS))
    costs, all_first = _costs(loop, parts, steps, others)
    if workers:
        costs = _with_workers(costs, loop, share, neighbours)
    base = LoopModel(
        replace(costs, step_threads=threads),
        _settings(loop),
        budget,
        neighbours,
        length,
        min(epochs, MAX_BATCHES // length),
        whole,
        all_first,
        batch=_batch(loop, parts, size),
    )
    return waits.booted(waits.with_lock(waits.scheduled(base, loop, steps.runq)), loop) if workers else base


def _steps(loop: Loop, stepped: Bools) -> _Steps:
    cpu = np.clip(np.nan_to_num(loop.step_cpu[stepped]), 0, loop.step[stepped])
    runq = np.nan_to_num(np.clip(loop.step_runq[stepped], 0, None))
    return _Steps(cpu, np.maximum(loop.step[stepped] - cpu - np.minimum(runq, loop.step[stepped] - cpu), 0), runq)


def _without_barriers(loop: Loop, steps: _Steps, stepped: Bools, team_waited: float) -> _Steps:
    """Return steps of several threads whose waits for one another count as waits for a core.

    While one thread has no core the others spin at a barrier, which is CPU time, or sleep there. While the loop waits for
    a batch they rest; what they wait together with the loop's own thread is counted as a wait already.
    """
    in_steps = float(loop.step[stepped].sum() / (loop.step + loop.wait)[stepped].sum())
    own = max(LEAST_OWN, 1.0 - team_waited / in_steps)
    cpu, blocked = steps.cpu * own, steps.blocked * own
    return _Steps(cpu, blocked, loop.step[stepped] - cpu - blocked)


def _costs(loop: Loop, parts: Breakdown, steps: _Steps, others: Sequence[Loop]) -> tuple[RunCosts, bool]:
    """Return what making and stepping on batches costs, and whether setting up workers may be in it."""
    fetch_cpu, fetch_blocked, all_first = _fetch(loop, others)
    inside = (loop.receive_cpu + loop.index)[loop.steady & (loop.count == 1)]
    device = _device(loop)
    costs = RunCosts(
        fetch_cpu_s=fetch_cpu + ((parts.pickle_s or 0.0) if loop.num_workers else 0.0),
        fetch_blocked_s=fetch_blocked,
        step_cpu_s=steps.cpu,
        # What the loop waited for its device is the device's own time, which the replay adds.
        step_blocked_s=steps.blocked if device is None else np.zeros_like(steps.blocked),
        receive_cpu_s=float(inside.mean()) if len(inside) else 0.0,
        epoch_gap_s=float(np.mean([epoch.index_s for epoch in loop.epochs])),
        device_step_s=device,
        sync_every=1 if device is not None and _synchronous(loop, device) else None,
    )
    return costs, all_first


def _with_workers(costs: RunCosts, loop: Loop, share: float, neighbours: float) -> RunCosts:
    """Return costs with those of having workers: starting and stopping them, and their answers to the receiver."""
    starts = [epoch.ready - epoch.begun - epoch.index_s for epoch in loop.epochs if not epoch.restarted]
    return replace(
        costs,
        answer_cpu_s=_answer(loop, share, neighbours),
        worker_start_s=float(np.mean(starts)) * share / loop.num_workers if starts else 0.0,
        worker_stop_s=float(np.mean([epoch.shutdown_s for epoch in loop.epochs])) / loop.num_workers,
    )


def _settings(loop: Loop) -> Settings:
    return Settings(
        num_workers=loop.num_workers - loop.idle_workers,
        prefetch_factor=loop.facts.prefetch_factor or 2,
        in_order=loop.facts.in_order is not False,
        persistent_workers=bool(loop.facts.persistent_workers),
        pin_memory=bool(loop.facts.pin_memory),
    )


def _batch(loop: Loop, parts: Breakdown, size: tuple[float, float] | None) -> Batch:
    bytes_, tensors = size or (None, None)
    return Batch(
        tensors,
        bytes_,
        (parts.pickle_s or 0.0) if loop.num_workers else 0.0,
        parts.collate_s,
        parts.index_s or 0.0,
        loop.facts.collate_fn == DEFAULT_COLLATE,
    )


def _device(loop: Loop) -> Seconds | None:
    """Return the seconds that the device worked in each step, by its own clock; None where too few were measured."""
    busy = loop.busy[loop.busy > 0]
    return busy if len(busy) >= MIN_DEVICE_STEPS else None


def _synchronous(loop: Loop, device: Seconds) -> bool:
    """Return whether the loop waits for its device every step: its steps last as long as the device's."""
    return (loop.mean(loop.step) or 0.0) >= SYNCHRONOUS * float(device.mean())


def _own_share(loop: Loop, steps: _Steps) -> float:
    """Return which share of the core time that this run wanted it got: its CPU over CPU and run-queue wait.

    Cores that other programs kept busy, divided by this share, are how many of their threads wanted a core.
    """
    cpu = float(loop.made.cpu.sum() + steps.cpu.sum())
    waited = float(loop.made.runq.sum() + steps.runq.sum())
    return cpu / (cpu + waited) if cpu > 0 else 1.0


def _step_threads(loop: Loop, step_cpu: Seconds, stepped: Bools, neighbours: float) -> float:
    """Return how many cores the CPU part of a step keeps busy at once: the CPU of its process over that of its thread.

    Threads that meet at barriers spin while one of them waits for a core. Beside `neighbours` the measured CPU time holds
    that spinning already; as the replay slows such a step down by itself, fewer threads go into it.
    """
    process = float(np.nansum(loop.step_process_cpu[stepped]))
    thread = float(step_cpu.sum())
    threads = float(np.clip(process / thread, 1.0, MAX_THREADS)) if thread > MIN_STEP_CPU_S * len(step_cpu) else 1.0
    return 1.0 + (threads - 1.0) / (1.0 + neighbours)


def _answer(loop: Loop, share: float, neighbours: float) -> float:
    """Return seconds of receiving a batch in which the receiver waits for its worker, which hands over file descriptors.

    Args:
        loop: the loop.
        share: of the core time that this run wanted, what it got: the rest of an answer was waiting for a core.
        neighbours: threads of other programs that want the same cores.
    """
    answer = np.maximum(loop.receive - loop.receive_cpu, 0.0)[loop.steady & (loop.count == 1)]
    if not len(answer):
        return 0.0
    # Where nobody else wants the cores the mean is the job's own doing; the more do, the more counts the low quantile.
    low = float(np.quantile(answer, UNDISTURBED)) * share
    mean = float(np.mean(np.minimum(answer, MOST_WAITED * np.median(answer))))
    alone = max(0.0, 1.0 - neighbours)
    return low + alone * max(0.0, mean - low)


def _fetch(loop: Loop, others: Sequence[Loop]) -> tuple[Seconds, Seconds, bool]:
    """Return CPU and blocked seconds of usual batches, and whether setting up workers may be in them.

    A worker's first batch holds what its dataset builds once. Where no worker made a second one, a loop over the same
    dataset whose workers did shows what a sample costs.
    """
    made, usual = loop.made, usual_batches(loop)
    if not loop.num_workers and not loop.facts.watched:
        return *_as_waited_for(loop, made.cpu[usual], made.blocked[usual], made.wall[usual]), False
    if not loop.num_workers or made.warm.any():
        return made.cpu[usual], made.blocked[usual], False
    for other in others:
        warm = usual_batches(other) & other.made.warm & (other.made.samples > 0)
        if other is not loop and _same_dataset(loop, other) and warm.any():
            scale = float(np.median(made.samples)) / other.made.samples[warm]
            return other.made.cpu[warm] * scale, other.made.blocked[warm] * scale, False
    return made.cpu[usual], made.blocked[usual], True


def _as_waited_for(loop: Loop, cpu: Seconds, blocked: Seconds, wall: Seconds) -> tuple[Seconds, Seconds]:
    """Return CPU and blocked seconds of batches, slow ones as often as they came, where the loop makes each itself.

    Slow batches are always measured, usual ones only now and then, so that measured batches are slower than all. The wait
    for a batch is known of all of them: each is represented by the measured batch that is as slow, relative to the median.

    Args:
        loop: the loop.
        cpu, blocked, wall: seconds of each batch that was measured.
    """
    waits = np.maximum(loop.wait - loop.index, 0.0)[loop.steady] / loop.count[loop.steady]
    if not len(waits):
        return cpu, blocked
    order = np.argsort(waits)
    upto = np.cumsum(loop.count[loop.steady][order])
    usual_s = waits[order[np.searchsorted(upto, upto[-1] / 2)]]
    length = min(MAX_BATCHES, int(upto[-1]))
    # As many as a replay takes, at even quantiles, in the order in which they came.
    waits = waits[np.sort(order[np.searchsorted(upto, (np.arange(length) + 0.5) / length * upto[-1])])]
    by_wall = np.argsort(wall)
    between = (wall[by_wall][1:] + wall[by_wall][:-1]) / 2
    alike = by_wall[np.searchsorted(between * usual_s, waits * np.median(wall))]
    return cpu[alike], blocked[alike]


def _same_dataset(loop: Loop, other: Loop) -> bool:
    """Return whether the datasets of two loops are of one class, created by the same line."""
    mine, its = ((each.facts.dataset, each.facts.dataset_where) for each in (loop, other))
    return mine[0] is not None and mine == its
