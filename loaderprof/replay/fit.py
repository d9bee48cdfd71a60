"""The model of a loop, fitted to its run: what was measured goes in as it is, what was not is found by replaying.

Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from loaderprof.analyze.breakdown import Breakdown, usual_batches
from loaderprof.analyze.loop import Bools, Loop, Seconds
from loaderprof.replay.costs import RunCosts, Settings
from loaderprof.replay.model import Batch, LoopModel

# A replay is as long as the run, up to this: it costs milliseconds, and more batches change nothing.
MAX_BATCHES = 240
# How near the replay's first round of batches comes to the run's.
BOOT_ERROR = 0.01
# A loop that does not wait for its device returns from a step well before the device has done it.
MIN_DEVICE_STEPS, SYNCHRONOUS = 10, 0.9
# What a worker works for to answer its receiver, by tensor; measured 0.05 to 0.1 ms on a 2-core machine.
ANSWER_PER_TENSOR_S = 0.15e-3
# How near what is fitted comes to what was seen; a wake-up takes at most this many times what an average step waits.
FIT_ERROR, MOST_WAKES = 0.03, 4.0
# Threads of a step from which on it is one of several: others of the process do little things meanwhile.
SEVERAL = 1.1
# Of what the loop's thread was busy or asleep in its steps, so much at the least was for the step itself.
LEAST_OWN = 0.1
DEFAULT_COLLATE = "torch.utils.data._utils.collate.default_collate"
# An answer that takes this many times the usual one waited for something else.
MOST_WAITED = 4.0


def fit_model(
    loop: Loop,
    parts: Breakdown,
    budget: float,
    busy_others: float | None,
    others: Sequence[Loop] = (),
    size: tuple[float, float] | None = None,
    team_waited: float = 0.0,
) -> LoopModel | None:
    """Return the replay's model of a loop; None where it was not measured enough to have one.

    Args:
        loop: the loop.
        parts: what its batches cost.
        budget: cores that the job may use.
        busy_others: cores that everything but the loop and its workers kept busy; None: not measured.
        others: loops of the same run, one of which may show what a batch costs once its worker is set up.
        size: bytes and tensors of a batch; None: not measured.
        team_waited: share of the loop's time in which threads that compute its steps beside its own waited for a core.
    """
    usual = usual_batches(loop)
    stepped = loop.steady & np.isfinite(loop.step) & (loop.count == 1)
    if parts.cpu_s is None or not usual.any() or stepped.sum() < 3:
        return None
    step_cpu = np.clip(np.nan_to_num(loop.step_cpu[stepped]), 0, loop.step[stepped])
    runq = np.nan_to_num(np.clip(loop.step_runq[stepped], 0, None))
    step_blocked = np.maximum(loop.step[stepped] - step_cpu - np.minimum(runq, loop.step[stepped] - step_cpu), 0)
    pickle = parts.pickle_s or 0.0
    workers = loop.num_workers
    inside = (loop.receive_cpu + loop.index)[loop.steady & (loop.count == 1)]
    lengths = [epoch.batches for epoch in loop.epochs if epoch.batches]
    epochs, whole = max(1, len(lengths)), max(1, int(np.median(lengths)))
    length = min(whole, MAX_BATCHES // min(epochs, 4))
    fetch_cpu, fetch_blocked, all_first = _fetch(loop, others)
    starts = [epoch.ready - epoch.begun - epoch.index_s for epoch in loop.epochs if not epoch.restarted]
    share = _own_share(loop, runq, step_cpu)
    neighbours = (busy_others or 0.0) / share
    threads = _step_threads(loop, step_cpu, stepped, neighbours)
    if workers and threads > SEVERAL and team_waited:
        # While one of them waits the others spin at a barrier, which is CPU time, or sleep there. In waits of the loop they
        # rest; what they wait together with its own thread is a wait already.
        in_steps = float(loop.step[stepped].sum() / (loop.step + loop.wait)[stepped].sum())
        own = max(LEAST_OWN, 1.0 - team_waited / in_steps)
        step_cpu, step_blocked = step_cpu * own, step_blocked * own
        runq = loop.step[stepped] - step_cpu - step_blocked
    device = _device(loop)
    if device is not None:
        # What the loop waited for its device is the device's own time, which the replay adds.
        step_blocked = np.zeros_like(step_blocked)
    costs = RunCosts(
        fetch_cpu_s=fetch_cpu + (pickle if workers else 0.0),
        fetch_blocked_s=fetch_blocked,
        step_cpu_s=step_cpu,
        step_blocked_s=step_blocked,
        receive_cpu_s=float(inside.mean()) if len(inside) else 0.0,
        answer_cpu_s=_answer(loop, share, neighbours) if workers else 0.0,
        step_threads=threads,
        worker_start_s=float(np.mean(starts)) * share / workers if workers and starts else 0.0,
        worker_stop_s=float(np.mean([epoch.shutdown_s for epoch in loop.epochs])) / workers if workers else 0.0,
        epoch_gap_s=float(np.mean([epoch.index_s for epoch in loop.epochs])),
        device_step_s=device,
        sync_every=1 if device is not None and _synchronous(loop, device) else None,
    )
    settings = Settings(
        num_workers=workers - loop.idle_workers,
        prefetch_factor=int(loop.facts.get("prefetch_factor") or 2),
        in_order=bool(loop.facts.get("in_order", True)),
        persistent_workers=bool(loop.facts.get("persistent_workers")),
        pin_memory=bool(loop.facts.get("pin_memory")),
    )
    bytes_, tensors = size or (None, None)
    batch = Batch(
        tensors,
        bytes_,
        pickle if workers else 0.0,
        parts.collate_s,
        parts.index_s or 0.0,
        loop.facts.get("collate_fn") == DEFAULT_COLLATE,
    )
    base = LoopModel(
        costs, settings, budget, neighbours, length, min(epochs, MAX_BATCHES // length), whole, all_first, batch=batch
    )
    return _booted(with_lock(_scheduled(base, loop, runq)), loop) if workers else base


def _scheduled(base: LoopModel, loop: Loop, step_runq: Seconds) -> LoopModel:
    """Return the model whose workers and loop wait for cores as long as the run's did.

    Args:
        base: the loop as it ran.
        loop: the loop.
        step_runq: seconds of each step that it waited for a core.
    """
    cpu, waited = float(loop.made.cpu.sum()), float(loop.made.runq.sum())
    share = waited / (cpu + waited) if cpu > 0 else 0.0

    def spread(imbalance: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, imbalance=imbalance))

    told = spread(_least(lambda imbalance: spread(imbalance).run().core_wait_share >= share, 1.0))
    step_s = float(step_runq.mean())
    # Where no wait for a core was seen at all, the system may not tell any.
    if base.costs.step_threads > SEVERAL and waited + step_s > 0.0:
        told = _stepping(base, told, share, step_s)

    def waking(seconds: float) -> LoopModel:
        return replace(told, costs=replace(told.costs, wake_s=seconds))

    return waking(_least(lambda seconds: waking(seconds).run().step_wait_s >= step_s, MOST_WAKES * step_s))


def _stepping(base: LoopModel, spread: LoopModel, share: float, step_s: float) -> LoopModel:
    """Return the model of a step of several threads in which these and the workers wait for cores as long as the run's did.

    Of three threads on two cores one has a core to itself, and keeps it: a worker that never sleeps, or the step, whose
    threads spin where workers sleep.

    Args:
        base: the loop as it ran, all threads getting an even share.
        spread: the same, badly spread over the cores where its workers wait longer than that.
        share: of the time in which workers wanted a core, what they waited for one.
        step_s: seconds of a step that it waited for a core.
    """

    def favouring(favour: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, favour=favour))

    def loosened(fitted: LoopModel) -> LoopModel:
        def loose(free: float) -> LoopModel:
            return replace(fitted, costs=replace(fitted.costs, lockstep=1.0 - free))

        return loose(_least(lambda free: loose(free).run().step_wait_s <= step_s, 1.0))

    if base.run().core_wait_share > share:
        return loosened(favouring(_least(lambda favour: favouring(favour).run().core_wait_share <= share, 1.0)))
    first = favouring(-_least(lambda favour: favouring(-favour).run().core_wait_share >= share, 1.0))
    return min((loosened(spread), loosened(first)), key=lambda fitted: abs(fitted.run().step_wait_s - step_s))


def _least(enough: Callable[[float], bool], most: float, error: float = FIT_ERROR) -> float:
    """Return the least number up to `most` that is enough, within a share of `most`, or `most`: 0 where nothing is needed."""
    if most <= 0.0 or enough(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > error * most:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def with_lock(base: LoopModel) -> LoopModel:
    """Return the model in which answers wait for their worker's interpreter lock, for as long as they did in the run.

    A worker answers its receiver, tensor by tensor, in a thread beside the making of the next batch. What is made in
    Python holds the lock up to 5 ms at a time. All answering counts as work where tensors were not counted.
    """
    costs, tensors = base.costs, base.batch.tensors
    work_s = ANSWER_PER_TENSOR_S * max(1.0, tensors or 1.0)
    waited_s = costs.answer_cpu_s - work_s
    if tensors is None or waited_s <= 0.0:
        return base

    def holding(held_s: float) -> LoopModel:
        return replace(base, answer_work_s=work_s, costs=replace(costs, answer_cpu_s=work_s, held_s=held_s))

    told = holding(_least(lambda held_s: holding(held_s).run().held_s >= waited_s, float(costs.fetch_cpu_s.max())))
    # Several round trips may wait one after the other.
    rest_s = max(0.0, waited_s - told.run().held_s)
    return replace(told, costs=replace(told.costs, answer_cpu_s=work_s + rest_s))


def _device(loop: Loop) -> Seconds | None:
    """Return the device's own time per step, from its events; None where it has none."""
    busy = loop.busy[loop.busy > 0]
    return busy if len(busy) >= MIN_DEVICE_STEPS else None


def _synchronous(loop: Loop, device: Seconds) -> bool:
    """Return whether the loop waits for its device every step: its steps last as long as the device's."""
    return (loop.mean(loop.step) or 0.0) >= SYNCHRONOUS * float(device.mean())


def _own_share(loop: Loop, step_runq: Seconds, step_cpu: Seconds) -> float:
    """Return CPU over CPU and run-queue wait: what this run got of the cores it wanted.

    What other programs got of them, over this, is how many threads of theirs wanted them.
    """
    cpu = float(loop.made.cpu.sum() + step_cpu.sum())
    waited = float(loop.made.runq.sum() + step_runq.sum())
    return cpu / (cpu + waited) if cpu > 0 else 1.0


def _step_threads(loop: Loop, step_cpu: Seconds, stepped: Bools, neighbours: float) -> float:
    """Return how many cores the step's CPU part keeps busy at once, from the process's CPU over the thread's.

    Threads that meet at barriers spin while one of them waits for a core. On a busy machine the step's CPU time holds
    that spinning already, and to slow the step for it once more would count it twice.
    """
    process = float(np.nansum(loop.step_process_cpu[stepped]))
    thread = float(step_cpu.sum())
    threads = float(np.clip(process / thread, 1.0, 64.0)) if thread > 0.001 * len(step_cpu) else 1.0
    return 1.0 + (threads - 1.0) / (1.0 + neighbours)


def _answer(loop: Loop, share: float, neighbours: float) -> float:
    """Return the part of receiving a batch that is waiting for the worker: it hands over file descriptors when asked.

    Args:
        loop: the loop.
        share: of its own time, what this run got of the cores: the rest of an answer's time was waiting for one.
        neighbours: threads of other programs that want the same cores.
    """
    answer = np.maximum(loop.receive - loop.receive_cpu, 0.0)[loop.steady & (loop.count == 1)]
    if not len(answer):
        return 0.0
    # Where nobody else wants the cores all of it is the job's own doing. Else a low quantile, as now and then an answer
    # waits for what others hold.
    low = float(np.quantile(answer, 0.25)) * share
    mean = float(np.mean(np.minimum(answer, MOST_WAITED * np.median(answer))))
    alone = max(0.0, 1.0 - neighbours)
    return low + alone * max(0.0, mean - low)


def _fetch(loop: Loop, others: Sequence[Loop]) -> tuple[Seconds, Seconds, bool]:
    """Return CPU and blocked seconds of usual batches, and whether what workers set up first may be in them.

    Where no worker lives to make a second batch its own batches cannot tell work from set-up; another loop over the
    same kind of dataset can, sample for sample.
    """
    made, usual = loop.made, usual_batches(loop)
    if not loop.num_workers and not loop.facts.get("watched"):
        return *_as_waited_for(loop, made.cpu[usual], made.blocked[usual], made.wall[usual]), False
    if not loop.num_workers or made.warm.any():
        return made.cpu[usual], made.blocked[usual], False
    for other in others:
        told = usual_batches(other) & other.made.warm & (other.made.samples > 0)
        if other is not loop and _same_dataset(loop, other) and told.any():
            scale = float(np.median(made.samples)) / other.made.samples[told]
            return other.made.cpu[told] * scale, other.made.blocked[told] * scale, False
    return made.cpu[usual], made.blocked[usual], True


def _as_waited_for(loop: Loop, cpu: Seconds, blocked: Seconds, wall: Seconds) -> tuple[Seconds, Seconds]:
    """Return CPU and blocked seconds of batches as often as they came, where the loop makes them itself and waits for each.

    Slow batches are always measured, usual ones now and then; of the waits all are known, and so is how often one is
    long. For each there stands the measured batch that took about as many times the usual time.

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
    # As many as a replay takes, evenly over all lengths, in the order in which they came.
    waits = waits[np.sort(order[np.searchsorted(upto, (np.arange(length) + 0.5) / length * upto[-1])])]
    by_wall = np.argsort(wall)
    between = (wall[by_wall][1:] + wall[by_wall][:-1]) / 2
    alike = by_wall[np.searchsorted(between * usual_s, waits * np.median(wall))]
    return cpu[alike], blocked[alike]


def _same_dataset(loop: Loop, other: Loop) -> bool:
    """Return whether two loops' datasets are of one class, made by the same lines."""
    mine, its = ((each.facts.get("dataset"), each.facts.get("dataset_where")) for each in (loop, other))
    return mine[0] is not None and mine == its


def _booted(base: LoopModel, loop: Loop) -> LoopModel:
    """Return the model with workers that take as long to set up as the run's did.

    A worker's imports, its worker_init_fn and what its dataset builds at the first sample are partly CPU, partly
    waiting for cores that others of them hold, and no one clock has them all. What they cost the loop was measured:
    the set-up is found with which the replay's first round of batches takes as long as the run's.
    """
    measured = _first_round_s(loop)
    if measured is None:
        return base

    def booting(seconds: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, worker_boot_s=seconds))

    def late(seconds: float) -> bool:
        return replace(booting(seconds), epochs=1).run().first_round_s >= measured

    return booting(_least(late, measured, BOOT_ERROR))


def _first_round_s(loop: Loop) -> float | None:
    """Return seconds from an epoch's start on new workers until each one's first batch was stepped on; None: not seen.

    The very first start, which warms caches, stands for the others only where there are none.
    """
    numbers = np.unique(loop.epoch)
    epochs = [epoch for epoch in loop.epochs if epoch.batches]
    rounds = []
    for number, epoch in zip(numbers, epochs, strict=False):
        mine = (loop.epoch == number) & (loop.position < loop.num_workers)
        if not epoch.restarted and (loop.count[mine] == 1).all():
            steps = loop.step[mine]
            # The last step of an epoch that was left early has no end.
            stepped = np.where(np.isfinite(steps), steps, loop.mean(loop.step) or 0.0).sum()
            rounds.append(epoch.ready - epoch.begun - epoch.index_s + float(loop.wait[mine].sum() + stepped))
    return float(np.mean(rounds[1:] or rounds)) if rounds else None
