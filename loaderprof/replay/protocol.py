"""The DataLoader protocol replayed event by event with a run's own costs: "what if it were set otherwise?".

Follows torch's `_MultiProcessingDataLoaderIter`: who is dealt which batch, how many are outstanding, what is
put aside until its turn. Pure: standard library and numpy, no torch, no clock.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from loaderprof.replay.cores import BLOCKED, CPU, GANG, PARK, READ, WAKE, Actor, Machine
from loaderprof.replay.costs import Outcome, RunCosts, Seconds, Settings

_PARK = (PARK, 0.0)
# An epoch of this many times the outstanding batches has a steady middle, in which there is always another batch to deal.
LONG = 3


def replay(
    costs: RunCosts,
    settings: Settings,
    *,
    cores: float,
    batches_per_epoch: int,
    epochs: int = 1,
    seed: int = 0,
    neighbours: float = 0.0,
) -> Outcome:
    """Replay `epochs` epochs of a loader and its loop.

    Args:
        costs: what batches, steps and hand-over cost in the run that was seen.
        settings: how the loader is set in this replay; need not be what the run used.
        cores: cores that this loop and its workers may use together; need not be whole.
        batches_per_epoch: batches the sampler yields.
        epochs: how many times the loop goes over the loader.
        seed: 0 takes costs in the order seen, over and over; any other number draws blocks of them anew.
        neighbours: how many threads of other programs want these cores, on average; they get an even share.
            From a run: the cores they used / that run's own share, which is CPU / (CPU + run-queue wait).

    Raises:
        ValueError: no costs, arrays of unlike length, or a count that cannot be.
    """
    _check(costs, settings, cores, neighbours, batches_per_epoch, epochs)
    machine = Machine(costs, cores, neighbours)
    run = _Run(costs, settings, machine, batches_per_epoch, epochs, seed)
    machine.run(run.loop())
    return run.outcome()


def _check(costs: RunCosts, settings: Settings, cores: float, neighbours: float, batches: int, epochs: int) -> None:
    """Refuse what has no meaning, before it loops for ever."""
    for name, pair in {
        "fetch": (costs.fetch_cpu_s, costs.fetch_blocked_s),
        "step": (costs.step_cpu_s, costs.step_blocked_s),
    }.items():
        if len(pair[0]) == 0 or len(pair[0]) != len(pair[1]):
            raise ValueError(f"{name} costs need two arrays of one length, not {len(pair[0])} and {len(pair[1])}")
    if cores <= 0 or neighbours < 0 or batches < 1 or epochs < 1:
        raise ValueError(f"cannot replay {epochs} epochs of {batches} batches on {cores} cores")
    if settings.num_workers < 0 or settings.prefetch_factor < 1:
        raise ValueError(f"no such loader: {settings}")
    if costs.io_slots is not None and costs.io_slots < 1:
        raise ValueError("io_slots is None or at least 1")


class _Run:
    """One replayed run: the loop, its workers and pin thread, and what is between them."""

    def __init__(
        self, costs: RunCosts, settings: Settings, machine: Machine, batches: int, epochs: int, seed: int
    ) -> None:
        self.costs, self.settings, self.batches, self.epochs = costs, settings, batches, epochs
        self.machine = machine
        rng = np.random.default_rng(seed) if seed else None
        total = batches * epochs
        self.fetch = _drawn((costs.fetch_blocked_s, costs.fetch_cpu_s), total, rng)
        self.step = _drawn((costs.step_cpu_s, costs.step_blocked_s), total, rng)
        device = costs.device_step_s
        self.device = None if device is None else [one for (one,) in _drawn((device,), total, rng)]
        self.device_free_s = self.device_idle_s = 0.0
        self.workers: list[Actor] = []
        self.senders: list[Actor] = []
        # Workers that are still starting when a short epoch ends must not serve the next epoch, which has its own.
        self.generation = 0
        self.pinner: Actor | None = None
        self.main: Actor | None = None
        # While a worker answers the receiver does not run, so the two are one stretch on a core.
        self._receive_s = costs.receive_cpu_s + costs.answer_cpu_s
        self.parked_actors: set[Actor] = set()
        self.first_batch_s = self.first_epoch_s = 0.0
        self.wait_s = self.parked_s = 0.0
        self.busy_s = self.making_s = 0.0
        # When each worker that is computing will be done, if it has a core to itself.
        self.computing: dict[int, float] = {}
        self.held_s = 0.0
        self.producers_cpu_s = self.producers_waited_s = self.step_waited_s = 0.0
        # (time, wait, device idle) as each step ends; one list an epoch, headed by its start.
        self.marks: list[list[tuple[float, float, float]]] = []
        self.open_epoch()

    def open_epoch(self) -> None:
        """Empty queues: nothing is dealt, made, or put aside."""
        workers = self.settings.num_workers
        self.tasks: list[deque[int]] = [deque() for _ in range(workers)]
        self.unsent: list[deque[int]] = [deque() for _ in range(workers)]
        self.dealt = [0] * workers
        self.next_worker = 0
        self.sent = 0
        self.made: deque[tuple[int, int]] = deque()
        self.pinned: deque[tuple[int, int]] = deque()
        self.aside: dict[int, int] = {}

    def loop(self) -> Actor:
        """The main thread, from the first epoch's start to the last one's end."""
        self.main = self._loop()
        return self.main

    def _loop(self) -> Actor:
        for epoch in range(self.epochs):
            if epoch:
                yield BLOCKED, self.costs.epoch_gap_s
            yield from self._epoch(epoch)
            if not epoch:
                self.first_epoch_s = self.machine.now
        yield BLOCKED, self.device_free_s - self.machine.now

    def _epoch(self, epoch: int) -> Actor:
        has_workers = self.settings.num_workers > 0
        self.first = epoch * self.batches
        if has_workers:
            yield from self._start_workers()
        self._mark_new_epoch()
        opened_s = self.machine.now
        for index in range(self.batches):
            yield from self._take(index) if has_workers else self._make(index)
            if not epoch and not index:
                self.first_batch_s = self.machine.now
            yield from self._step(self.first + index)
        if has_workers:
            self.making_s += self.last_made_s - opened_s
            if not self.settings.persistent_workers:
                self.workers, self.senders = [], []
                self.generation += 1
                self.parked_actors.clear()
                yield BLOCKED, self.costs.worker_stop_s * self.settings.num_workers

    def _start_workers(self) -> Actor:
        """Start the workers, or resume those that persist, and deal the first batches."""
        self.open_epoch()
        if not self.workers:
            for worker in range(self.settings.num_workers):
                yield CPU, self.costs.worker_start_s
                self.workers.append(self._work(worker))
                self.senders.append(self._send(worker))
                self.machine.wake(self.workers[worker])
                self.machine.wake(self.senders[worker])
            if self.settings.pin_memory:
                self.pinner = self._pin()
                self.machine.wake(self.pinner)
        for _ in range(self.settings.outstanding):
            self._deal()

    def _deal(self) -> None:
        """Send the sampler's next batch to a worker: the next in turn, or the next in turn with room."""
        if self.sent >= self.batches:
            return
        workers = self.settings.num_workers
        worker = self.next_worker
        if not self.settings.in_order:
            while self.dealt[worker] >= self.settings.prefetch_factor:
                worker = (worker + 1) % workers
        self.next_worker = (worker + 1) % workers
        self.tasks[worker].append(self.sent)
        self.dealt[worker] += 1
        self.sent += 1
        self._rouse(self.workers[worker])

    def _take(self, index: int) -> Actor:
        """Take batch `index`, or whichever is ready when order does not matter, and deal one more."""
        queue = self.pinned if self.settings.pin_memory else self.made
        receive_s = 0.0 if self.settings.pin_memory else self._receive_s
        in_order = self.settings.in_order
        while True:
            if index in self.aside:
                worker = self.aside.pop(index)
                break
            if not queue:
                yield from self._wait()
                continue
            made, worker = queue.popleft()
            yield CPU, receive_s
            if not self.settings.pin_memory:
                yield BLOCKED, self._hold(worker)
            if made == index or not in_order:
                break
            self.aside[made] = worker
        self.dealt[worker] -= 1
        self._deal()

    def _hold(self, worker: int) -> float:
        """Return how long an answer of a worker waits for what it computes meanwhile."""
        held_s = min(self.costs.held_s, max(0.0, self.computing.get(worker, 0.0) - self.machine.now))
        self.held_s += held_s
        return held_s

    def _wait(self) -> Actor:
        """Wait for any batch, and count it as parked time where a later one lies ready."""
        since_s = self.machine.now
        yield self._park(self.main)
        waited_s = self.machine.now - since_s
        self.wait_s += waited_s
        self.parked_s += waited_s if self.aside else 0.0

    def _make(self, index: int) -> Actor:
        """Make a batch in the loop itself, which waits all the while."""
        since_s = self.machine.now
        blocked_s, cpu_s = self.fetch[self.first + index]
        yield CPU, self.costs.receive_cpu_s
        yield READ, blocked_s
        yield CPU, cpu_s
        self.wait_s += self.machine.now - since_s

    def _step(self, step: int) -> Actor:
        cpu_s, blocked_s = self.step[step]
        syncs = self.costs.sync_every is not None and (step + 1) % self.costs.sync_every == 0
        if syncs and self.costs.sync_at == "start":
            yield BLOCKED, self.device_free_s - self.machine.now
        begun_s = self.machine.now
        yield (GANG if self.costs.step_threads > 1.0 else CPU), cpu_s
        yield BLOCKED, blocked_s
        if blocked_s > 0.0:
            yield WAKE, self.costs.wake_s
        self.step_waited_s += self.machine.now - begun_s - cpu_s - blocked_s
        ended_s = self.machine.now
        if self.device is not None:
            ended_s = self._launch(begun_s, self.device[step])
        if syncs and self.costs.sync_at == "end":
            yield BLOCKED, self.device_free_s - self.machine.now
        self.marks[-1].append((max(ended_s, self.machine.now), self.wait_s, self.device_idle_s))

    def _launch(self, begun_s: float, device_s: float) -> float:
        """Queue a step on the device, which starts with the first launch; returns when it will be done."""
        self.device_idle_s += max(0.0, begun_s - self.device_free_s)
        # The device cannot end before the loop's last launch.
        self.device_free_s = max(max(begun_s, self.device_free_s) + device_s, self.machine.now)
        return self.device_free_s

    def _work(self, worker: int) -> Actor:
        """A worker: makes the batches it is dealt, one after the other."""
        machine, me, generation = self.machine, worker, self.generation
        yield CPU, self.costs.worker_boot_s
        while generation == self.generation:
            if not self.tasks[me]:
                yield self._park(self.workers[me])
                continue
            index = self.tasks[me].popleft()
            begun_s = machine.now
            blocked_s, cpu_s = self.fetch[self.first + index]
            yield READ, blocked_s
            self.computing[me] = machine.now + cpu_s
            yield CPU, cpu_s
            self.producers_cpu_s += cpu_s
            self.producers_waited_s += machine.now - self.computing[me]
            if generation != self.generation:
                return
            del self.computing[me]
            self.busy_s += machine.now - begun_s
            self.last_made_s = machine.now
            if self.costs.send_cpu_s > 0:
                self.unsent[me].append(index)
                self._rouse(self.senders[me])
            else:
                self._deliver(index, me)

    def _send(self, worker: int) -> Actor:
        """The thread of a worker's result queue: pickles and sends while the worker makes its next batch."""
        generation = self.generation
        while generation == self.generation:
            if not self.unsent[worker]:
                yield self._park(self.senders[worker])
                continue
            yield CPU, self.costs.send_cpu_s
            if generation != self.generation:
                return
            self._deliver(self.unsent[worker].popleft(), worker)

    def _deliver(self, index: int, worker: int) -> None:
        self.made.append((index, worker))
        self._rouse(self.pinner if self.settings.pin_memory else self.main)

    def _pin(self) -> Actor:
        """The pin thread: receives, pins, passes on, in the order of arrival."""
        generation = self.generation
        while generation == self.generation:
            if not self.made:
                yield self._park(self.pinner)
                continue
            yield CPU, self._receive_s + self.costs.pin_cpu_s
            yield BLOCKED, self._hold(self.made[0][1])
            if generation != self.generation:
                return
            self.pinned.append(self.made.popleft())
            self._rouse(self.main)

    def _park(self, actor: Actor | None) -> tuple[int, float]:
        assert actor is not None
        self.parked_actors.add(actor)
        return _PARK

    def _rouse(self, actor: Actor | None) -> None:
        """Wake an actor if it is parked; one that is busy looks at its queue by itself."""
        if actor in self.parked_actors:
            self.parked_actors.discard(actor)
            self.machine.wake(actor)

    def _mark_new_epoch(self) -> None:
        self.marks.append([(self.machine.now, self.wait_s, self.device_idle_s)])

    def outcome(self) -> Outcome:
        workers = max(1, self.settings.num_workers)
        depth = self.settings.outstanding or 1
        skip = min(depth, self.batches // 2)
        last = self.batches - depth if self.batches >= LONG * depth else self.batches
        # Workers that started together hand over together: a partial round would count the wait of a whole one.
        last -= (last - skip) % workers if last - skip > workers else 0
        spans = np.array([np.subtract(marks[last], marks[skip]) for marks in self.marks])
        step_s, wait_s, idle_s = spans.sum(axis=0) / (self.epochs * (last - skip))
        wanted_s = self.producers_cpu_s + self.producers_waited_s
        made_by = self.making_s * self.settings.num_workers
        later = self.epochs - 1
        return Outcome(
            total_s=self.machine.now,
            steady_step_s=float(step_s),
            wait_s=float(wait_s),
            first_batch_s=self.first_batch_s,
            batches=sum(len(marks) - 1 for marks in self.marks),
            worker_busy_share=self.busy_s / made_by if made_by > 0 else 0.0,
            parked=self.parked_s / self.wait_s if self.wait_s > 0 else 0.0,
            device_idle_s=None if self.device is None else float(idle_s),
            first_round_s=self.marks[0][min(max(1, self.settings.num_workers), self.batches)][0],
            later_epoch_s=(self.machine.now - self.first_epoch_s) / later if later else None,
            held_s=self.held_s / (self.batches * self.epochs),
            core_wait_share=self.producers_waited_s / wanted_s if wanted_s > 0 else 0.0,
            step_wait_s=self.step_waited_s / (self.batches * self.epochs),
        )


def _drawn(columns: tuple[Seconds, ...], length: int, rng: np.random.Generator | None) -> list[tuple[float, ...]]:
    """`length` rows of the columns: over and over as seen, or in random blocks (correlation is kept)."""
    seen = len(columns[0])
    rows = np.arange(length)
    if rng is not None:
        # Blocks of n^(1/3) minimise the error of a block bootstrap's variance (Hall, Horowitz, Jing 1995).
        block = max(1, round(seen ** (1 / 3)))
        rows = (rng.integers(0, seen, -(-length // block))[:, None] + np.arange(block)).ravel()[:length]
    return list(zip(*(np.asarray(column, dtype=float)[rows % seen].tolist() for column in columns), strict=True))
