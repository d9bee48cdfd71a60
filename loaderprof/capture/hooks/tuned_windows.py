"""What a tuned loader measures: windows of batches, cut out of one stream of the sampler's indices.

Only a job under `tune` imports this. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Tuple

# Entries that a window's record may have; in fast loops an entry stands for several batches.
MAX_ENTRIES = 512


class Feed:
    """The sampler's stream, which can be shut between two batches; the rest stays for whoever draws next."""

    def __init__(self) -> None:
        self.indices: Iterator[Any] = iter(())
        self.shut, self.over = False, True

    def renew(self, indices: Iterator[Any]) -> None:
        """Begin with an epoch's fresh stream."""
        self.indices = indices
        self.shut = self.over = False

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Any:
        if self.shut or self.over:
            raise StopIteration
        try:
            return next(self.indices)
        except StopIteration:
            self.over = True
            raise


class Window:
    """One measurement under way: its order, and what was seen so far.

    Args:
        order: `window` (its number), `settings`, `min_batches`, `min_s`, `max_s`, and `by_epoch`: measure whole epochs,
            not a stretch within one.
        warm: nothing has to settle: the inner iterator has been in use, or every epoch starts anew.
    """

    def __init__(self, order: Dict[str, Any], warm: bool) -> None:
        self.order = order
        self.warm = warm
        self.done = False
        self.count = self.most = self.since = 0
        self.batches = self.held = 0
        self.wait_ns: List[int] = []
        self.step_ns: List[int] = []
        self.elapsed_ns = 0
        self.epochs: List[Tuple[int, int]] = []
        self.group = 1
        self.open_ns = self.close_ns = 0
        self.size: Optional[Tuple[int, int]] = None
        self.iterator: Optional[int] = None

    def settle(self, workers: int, prefetch: int, ready: int) -> None:
        """Note one more batch of the warm-up: over when every worker had two turns and the queue grows no more."""
        self.count += 1
        self.since = 0 if ready > self.most else self.since + 1
        self.most = max(self.most, ready)
        turns = self.count > 2 * workers and self.since >= workers + 2
        self.warm = turns or self.count >= 2 * (prefetch + 1) * max(workers, 1)

    def add(self, step_ns: int, wait_ns: int, workers: int) -> None:
        """Note one measured batch; `done` once there are enough."""
        self.batches += 1
        self.elapsed_ns += step_ns + wait_ns
        if self.held == 0:
            self.step_ns.append(0)
            self.wait_ns.append(0)
        self.step_ns[-1] += step_ns
        self.wait_ns[-1] += wait_ns
        self.held = (self.held + 1) % self.group
        if len(self.step_ns) >= MAX_ENTRIES and self.held == 0:
            self.step_ns = [a + b for a, b in zip(self.step_ns[::2], self.step_ns[1::2])]
            self.wait_ns = [a + b for a, b in zip(self.wait_ns[::2], self.wait_ns[1::2])]
            self.group *= 2
        # Workers hand over in rounds; a part of a round would count too much or too little.
        if self.batches % max(1, workers) == 0:
            self.done = self.enough(self.batches, self.elapsed_ns)

    def add_epoch(self, ns: int, batches: int) -> None:
        """Note one whole epoch, the first of which may be a warm-up."""
        if not self.warm:
            self.warm = True
            return
        self.epochs.append((ns, batches))
        self.done = self.enough(sum(count for _, count in self.epochs), sum(ns for ns, _ in self.epochs))

    def enough(self, batches: int, ns: int) -> bool:
        """Whether so much is what was ordered."""
        order = self.order
        return bool((batches >= order["min_batches"] and ns >= order["min_s"] * 1e9) or ns >= order["max_s"] * 1e9)
