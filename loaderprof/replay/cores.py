"""The machine that a replay runs on: cores that its actors share, and waits that overlap.

Actors (the loop, the workers, the pin thread) are generators that ask it for core time, for blocked time, or to be woken.
Pure: no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush
from itertools import count

from loaderprof.replay.costs import RunCosts

Actor = Generator[tuple[int, float], None, None]

# What an actor asks of the machine; the number beside it is in seconds.
CPU, GANG, BLOCKED, READ, WAKE, PARK = range(6)
# Whoever wants a core gets at least this much of one: with nothing it would never finish, and the replay would not end.
LEAST_SHARE = 1e-3


class Machine:
    """Cores shared by whoever can run, and waits that overlap.

    Single-threaded work shares the cores evenly (processor sharing): all of it advances by one virtual clock,
    so the next to finish is the top of a heap. A gang is the step of several threads that meet at barriers.
    """

    def __init__(self, costs: RunCosts, cores: float, neighbours: float) -> None:
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
            # Taken from the heap instead of computed, so that rounding leaves no remainder of work.
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
        demand, producers = self._demand(), len(self._running)
        share = even = self._share(demand)
        if not self._gang:
            return share, 0.0
        if self._favour and producers and demand > self._cores:
            limit = self._undisturbed(demand, producers) if self._favour > 0.0 else LEAST_SHARE
            share += abs(self._favour) * (limit - even)
        left = (even * (self._gang_threads + producers) - share * producers) / self._gang_threads
        # Between barriers a gang advances only while all its threads are on a core.
        return share, min(1.0, max(LEAST_SHARE, left)) ** self._barriers

    def _undisturbed(self, demand: float, producers: int) -> float:
        """Return the share of a core that producers get on the cores with fewer threads, where threads do not divide evenly."""
        few = max(1.0, demand // self._cores)
        places = few * (self._cores - (demand - few * self._cores))
        return (min(producers, places) / few + max(0.0, producers - places) / (few + 1.0)) / producers

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
