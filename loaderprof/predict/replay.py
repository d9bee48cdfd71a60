"""The DataLoader protocol replayed event by event with a run's own costs: "what if it were set otherwise?".

Follows torch's `_MultiProcessingDataLoaderIter`: who is dealt which batch, how many are outstanding, what is
put aside until its turn. Actors (the loop, the workers, the pin thread) are generators that ask a small
machine for core time, for blocked time, or to be woken. Pure: standard library and numpy, no torch, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Literal

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Actor = Generator[tuple[int, float], None, None]

# What an actor asks of the machine; the number beside it is in seconds.
CPU, GANG, BLOCKED, READ, WAKE, PARK = range(6)
_PARK = (PARK, 0.0)
# Whoever wants a core gets this much of one, lest a replay come to a halt.
LEAST_SHARE = 1e-3
# An epoch of so many times what is outstanding has a middle in which there is always more to deal.
LONG = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """How a DataLoader is set; names and meaning are torch's."""

    num_workers: int
    prefetch_factor: int = 2
    in_order: bool = True
    persistent_workers: bool = False
    pin_memory: bool = False

    @property
    def outstanding(self) -> int:
        """Batches that workers are dealt ahead of the loop."""
        return self.prefetch_factor * self.num_workers


@dataclass(frozen=True, slots=True)
class Costs:
    """What one loader and its loop cost, in seconds; arrays hold one entry per batch or step, as seen.

    Costs are what an actor needs when nobody is in its way: time spent waiting for a core (run queue), for a
    batch, or for a queue belongs to the outcome and must not be in them.

    Attributes:
        fetch_cpu_s: CPU to make one batch: read, decode, transform, collate; pickling too unless it is given
            as `send_cpu_s`.
        fetch_blocked_s: time the maker of the batch was blocked (I/O, sleep); same length.
        step_cpu_s: part of the loop's step that keeps the main thread on a core.
        step_blocked_s: part of the step that needs no core: a sleep, a synchronous device. Waits for an
            asynchronous device do not belong here: its time is `device_step_s`.
        receive_cpu_s: CPU to take one batch from a worker (unpickle, file descriptors, mapping), and to draw the indices
            of the next; spent on the pin thread where there is one. Without workers only indices are drawn.
        step_threads: cores the step's CPU part keeps busy at once (intra-op threads).
        worker_start_s: main-thread time to start one worker.
        worker_boot_s: CPU inside a worker between its start and its first fetch.
        epoch_gap_s: the loop's own work between two epochs.
        pin_cpu_s: CPU of the pin thread to pin one batch.
        io_slots: how many blocked reads are served at once, first come first served; None: any number.
        device_step_s: an asynchronous device's own time per step; the loop runs ahead of it until it syncs.
        sync_every: the loop waits for the device every so many steps; None: never.
        sync_at: whether that wait ends a step (`loss.item()`) or begins it (a copy from pageable memory).
        worker_stop_s: for each worker, the end of an epoch whose workers are not persistent: they are joined one by one.
        send_cpu_s: CPU of a worker's queue thread to pickle and send a batch, beside the making of the next;
            not at all without workers.
        answer_cpu_s: CPU of the worker while the receiver waits for it in the midst of receiving (it hands
            over file descriptors, a round trip a tensor): the receive's time less its CPU and run-queue wait.
        held_s: what an answer waits at most for a worker that is computing its next batch, whose interpreter lock it needs;
            never longer than until that batch is made.
        imbalance: how badly the system spreads threads over cores: 0, a core is idle only where nobody wants it; 1, the
            threads beyond all cores but two stay on one of these at random.
        favour: how far the makers' threads are spared while a step of several threads wants the same cores: 0, all get an
            even share; 1, the makers stay on cores that fewer threads share, and the step has what is left; -1, the step's
            threads come first.
        lockstep: how far a step of several threads stands still while one of them has no core: 1, it advances only while
            all of them are on one; 0, they may as well take turns.
        wake_s: how long the loop waits for a core after it was blocked, where as many threads as cores are at work; where
            there are more, longer by as much.
    """

    fetch_cpu_s: Seconds
    fetch_blocked_s: Seconds
    step_cpu_s: Seconds
    step_blocked_s: Seconds
    receive_cpu_s: float
    step_threads: float = 1.0
    worker_start_s: float = 0.0
    worker_boot_s: float = 0.0
    epoch_gap_s: float = 0.0
    pin_cpu_s: float = 0.0
    io_slots: int | None = None
    device_step_s: Seconds | None = None
    sync_every: int | None = None
    sync_at: Literal["end", "start"] = "end"
    worker_stop_s: float = 0.0
    send_cpu_s: float = 0.0
    answer_cpu_s: float = 0.0
    held_s: float = 0.0
    imbalance: float = 0.0
    favour: float = 0.0
    lockstep: float = 1.0
    wake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the replayed run did, in seconds.

    Steady state leaves out each epoch's first `prefetch_factor * num_workers` batches, at most half an epoch, and where an
    epoch is long enough as many last ones, which are made while no more are dealt. It is whole rounds of the workers.

    Attributes:
        total_s: the whole run, starting and stopping workers and the device's last step included.
        steady_step_s: mean time from one step's end to the next in steady state.
        wait_s: mean time per steady batch in which the loop had nothing to take; without workers, the fetch.
        first_batch_s: from asking for the first batch, workers not yet started, until it is in hand.
        first_round_s: from asking for the first batch until each worker's first one has been stepped on.
        later_epoch_s: mean time of an epoch after the first, the gap before it included; None for one epoch.
        batches: batches taken by the loop.
        worker_busy_share: share of the workers' time spent making batches, while there were batches to make.
        parked: share of the loop's waiting time in which a later batch lay ready (head-of-line blocking).
        held_s: mean time that receiving a batch waited for its worker's interpreter lock.
        device_idle_s: mean time per steady batch in which the device had nothing to do; None without one.
        core_wait_share: of the time in which workers wanted a core to make a batch, the share that they waited for one.
        step_wait_s: mean time of a step that the loop waited for a core.
    """

    total_s: float
    steady_step_s: float
    wait_s: float
    first_batch_s: float
    batches: int
    worker_busy_share: float
    parked: float
    device_idle_s: float | None = None
    first_round_s: float = 0.0
    later_epoch_s: float | None = None
    held_s: float = 0.0
    core_wait_share: float = 0.0
    step_wait_s: float = 0.0


def replay(
    costs: Costs,
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
    machine = _Machine(costs, cores, neighbours)
    run = _Run(costs, settings, machine, batches_per_epoch, epochs, seed)
    machine.run(run.loop())
    return run.outcome()


def _check(costs: Costs, settings: Settings, cores: float, neighbours: float, batches: int, epochs: int) -> None:
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


class _Machine:
    """Cores shared by whoever can run, and waits that overlap.

    Single-threaded work shares the cores evenly (processor sharing): all of it advances by one virtual clock,
    so the next to finish is the top of a heap. A gang is the step of several threads that meet at barriers.
    """

    def __init__(self, costs: Costs, cores: float, neighbours: float) -> None:
        self.now = 0.0
        self._cores = cores
        self._imbalance = costs.imbalance * min(1.0, max(0.0, cores - 1.0))
        self._neighbours = neighbours
        # More threads than cores keep no more than the cores busy.
        self._gang_threads = min(max(1.0, costs.step_threads), cores)
        self._favour = costs.favour
        self._barriers = 1.0 + (self._gang_threads - 1.0) * costs.lockstep
        self._free_slots = math.inf if costs.io_slots is None else costs.io_slots
        self._readers: deque[tuple[Actor, float]] = deque()
        self._ready: deque[Actor] = deque()
        self._timers: list[tuple[float, int, Actor, bool]] = []
        self._running: list[tuple[float, int, Actor]] = []
        self._virtual = 0.0
        self._gang: Actor | None = None
        self._gang_left = 0.0
        self._order = count()

    def wake(self, actor: Actor) -> None:
        """Let a new or parked actor go on, now."""
        self._ready.append(actor)

    def run(self, main: Actor) -> None:
        """Run until `main` has ended."""
        self._ready.append(main)
        while True:
            while self._ready:
                actor = self._ready.popleft()
                if not self._resume(actor) and actor is main:
                    return
            self._advance()

    def _resume(self, actor: Actor) -> bool:
        """Let an actor ask for its next thing; False when it has ended."""
        for kind, amount in actor:
            if kind == PARK:
                return True
            if amount <= 0.0:
                continue
            if kind == CPU:
                heappush(self._running, (self._virtual + amount, next(self._order), actor))
            elif kind == GANG:
                self._gang, self._gang_left = actor, amount
            elif kind == WAKE:
                demand = self._demand()
                if demand < self._cores:
                    continue
                heappush(self._timers, (self.now + amount * demand / self._cores, next(self._order), actor, False))
            elif kind == READ and self._free_slots < 1:
                self._readers.append((actor, amount))
            else:
                self._free_slots -= kind == READ
                heappush(self._timers, (self.now + amount, next(self._order), actor, kind == READ))
            return True
        return False

    def _advance(self) -> None:
        """Move time to the next thing that ends, and wake who waited for it."""
        share, gang_share = self._shares()
        timer = self._timers[0][0] if self._timers else math.inf
        single = self.now + (self._running[0][0] - self._virtual) / share if self._running else math.inf
        gang = self.now + self._gang_left / gang_share if self._gang else math.inf
        then = min(timer, single, gang)
        if then == math.inf:
            raise RuntimeError("the replay came to a halt: every actor is parked")
        self._virtual += (then - self.now) * share
        self._gang_left -= (then - self.now) * gang_share
        self.now = then
        if then == single:
            # The heap's own number, so that rounding cannot leave a sliver of work behind.
            self._virtual, _, actor = heappop(self._running)
            self._ready.append(actor)
        elif then == timer:
            _, _, actor, is_read = heappop(self._timers)
            if is_read:
                self._end_read()
            self._ready.append(actor)
        elif self._gang:
            self._ready.append(self._gang)
            self._gang = None

    def _demand(self) -> float:
        return self._neighbours + len(self._running) + (self._gang_threads if self._gang else 0.0)

    def _shares(self) -> tuple[float, float]:
        """Return how quickly single-threaded work, and a gang, advance beside one another."""
        demand, makers = self._demand(), len(self._running)
        share = even = self._share(demand)
        if not self._gang:
            return share, 0.0
        if self._favour and makers and demand > self._cores:
            limit = self._undisturbed(demand, makers) if self._favour > 0.0 else LEAST_SHARE
            share += abs(self._favour) * (limit - even)
        left = (even * (self._gang_threads + makers) - share * makers) / self._gang_threads
        # Between barriers a gang advances only while all its threads are on a core.
        return share, min(1.0, max(LEAST_SHARE, left)) ** self._barriers

    def _undisturbed(self, demand: float, makers: int) -> float:
        """Return what share of a core makers have that stay where fewer threads are: these do not divide evenly."""
        few = max(1.0, demand // self._cores)
        places = few * (self._cores - (demand - few * self._cores))
        return (min(makers, places) / few + max(0.0, makers - places) / (few + 1.0)) / makers

    def _share(self, demand: float) -> float:
        """Return what share of a core each thread gets where so many want one."""
        if demand <= 1.0:
            return min(1.0, self._cores / demand) if demand > 0 else 1.0
        busy = min(demand, self._cores)
        if self._imbalance:
            # The last two cores: two threads share one of them half of the time, three a quarter.
            last = max(0.0, demand - self._cores + 2.0)
            busy -= self._imbalance * max(0.0, min(last, 2.0) - 2.0 * (1.0 - 0.5**last))
        return busy / demand

    def _end_read(self) -> None:
        """Give the slot of a finished read to the one that has waited longest."""
        self._free_slots += 1
        if self._readers:
            actor, amount = self._readers.popleft()
            self._free_slots -= 1
            heappush(self._timers, (self.now + amount, next(self._order), actor, True))


class _Run:
    """One replayed run: the loop, its workers and pin thread, and what is between them."""

    def __init__(
        self, costs: Costs, settings: Settings, machine: _Machine, batches: int, epochs: int, seed: int
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
        # Workers that boot while a short epoch ends must not serve the next one, which has its own.
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
        self.makers_cpu_s = self.makers_waited_s = self.step_waited_s = 0.0
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
            self.makers_cpu_s += cpu_s
            self.makers_waited_s += machine.now - self.computing[me]
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
        # Workers that started together hand over together: part of a round would count its wait for a whole one.
        last -= (last - skip) % workers if last - skip > workers else 0
        spans = np.array([np.subtract(marks[last], marks[skip]) for marks in self.marks])
        step_s, wait_s, idle_s = spans.sum(axis=0) / (self.epochs * (last - skip))
        wanted_s = self.makers_cpu_s + self.makers_waited_s
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
            core_wait_share=self.makers_waited_s / wanted_s if wanted_s > 0 else 0.0,
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
