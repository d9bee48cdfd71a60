"""The phases of a step: copy, forward, backward, optimizer, rest - by the device's own clock where there is one.

One step in so many is measured. Marks are set where the loop gets its batch, where a backward pass and an optimizer's
step begin and end, and where the loop asks again. What comes before a backward pass is forward. Copies are recognised
only where they pass through a function that is known to move batches, or a stage that the user named "copy": to put
something in the place of `torch.Tensor.to` would show, since libraries look it up by identity (docs/decisions.md).

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections import deque
from typing import Any, Deque, List, Optional, Tuple

from loaderprof.capture.hooks import overhead
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.process import process
from loaderprof.capture.hooks.steps import Events, Mark, captures, in_use
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

_NOW = time.perf_counter_ns
_IDENT = threading.get_ident
COPY, FORWARD, BACKWARD, OPTIMIZER, REST = range(5)
# A measured step costs about this much by the wall clock and by events (docs/gpu.md), and this share may go into it.
WALL_NS, DEVICE_NS = 100_000, 250_000
PHASES_BUDGET = 0.001
# A step with more marks than this, as of an optimizer for each parameter, is not recorded.
MAX_MARKS = 64
# Measured steps whose events the device has not reached yet.
MAX_PENDING = 16
# Tensors of a batch that are looked at.
MAX_TENSORS = 64
# Functions of libraries that move a batch to the device, looked up in these modules at every call.
MOVERS = (
    ("accelerate.data_loader", "", "send_to_device"),
    ("transformers.trainer", "Trainer", "_prepare_inputs"),
    ("lightning.pytorch.strategies.strategy", "Strategy", "batch_to_device"),
    ("pytorch_lightning.strategies.strategy", "Strategy", "batch_to_device"),
)


class Step:
    """One step under way, in segments that each end at a mark.

    Marks are nanoseconds, or events and their device where `module`, torch's of that device, is given. Dynamo comes past
    here where a compiled function goes backward; it leaves `unseen` code alone.
    """

    def __init__(self, phases: Phases, module: Any, events: Events) -> None:
        self.thread = _IDENT()
        self.phases, self.module, self._events = phases, module, events
        self.begun_ns, self.ended_ns = _NOW(), 0
        # For each segment its phase (None: known only from the segment after it) and the mark at its end.
        self.segments: List[Tuple[Optional[int], Any]] = []
        self._within: List[int] = []
        self.counts = [0] * 5
        self.sizes: Optional[Tuple[int, int]] = None
        self.whole = True
        self._stream = module.current_stream() if module is not None else None
        self.first = self._mark()

    @unseen
    def enter(self, phase: int) -> None:
        """A phase begins, perhaps within another one."""
        if self._is_here():
            # An optimizer that is given a closure goes forward and backward within its step.
            self._close(FORWARD if phase == BACKWARD and self._within[-1:] == [OPTIMIZER] else None)
            self._within.append(phase)
            self.counts[phase] += 1

    @unseen
    def leave(self, phase: int) -> None:
        """A phase ends; those within it that were left by an exception end too."""
        if phase in self._within and self._is_here():
            self._close()
            while self._within.pop() != phase:
                pass

    def end(self) -> None:
        """The loop asks for its next batch."""
        # An optimizer's step that raised has no end.
        self.whole = self.whole and not self._within
        if self.whole:
            self._close()
            self.ended_ns = _NOW()

    @unseen
    def _close(self, phase: Optional[int] = None) -> None:
        if len(self.segments) >= MAX_MARKS:
            self.whole = False
            return
        if phase is None and self._within:
            phase = self._within[-1]
        self.segments.append((phase, self._mark()))

    @unseen
    def _is_here(self) -> bool:
        """Return whether a phase is the step's: on another stream, as a prefetcher's copies are, it is beside it."""
        if not self.whole or _IDENT() != self.thread:
            return False
        if self.module is None:
            return True
        try:
            # No single clock covers a step on several devices.
            self.whole = self.first is not None and self.module.current_device() == self.first[1]
            return self.whole and self.module.current_stream() == self._stream
        except Exception:
            self.whole = False
            return False

    @unseen
    def _mark(self) -> Any:
        if self.module is None:
            return _NOW()
        mark = None
        try:
            # Events in a graph that is being captured are no moments.
            if not captures(self.module):
                mark = self._events.record(self.module)
        except Exception:
            mark = None
        self.whole = self.whole and mark is not None
        return mark

    # `fetches.stage_ends` ends a stage named by hand by this.
    end_stage = leave

    def marks(self) -> List[Mark]:
        """Return the events of the step, in order."""
        return [mark for mark in (self.first, *(mark for _, mark in self.segments)) if mark is not None]

    def on_one_device(self) -> bool:
        """Return whether times between all marks can be had."""
        return self.module is None or len({device for _, device in self.marks()}) == 1

    def lasted_ns(self) -> List[int]:
        """Return the nanoseconds of each phase."""
        spent, before, after = [0] * 5, [self.first, *(mark for _, mark in self.segments)], REST
        for (phase, mark), begun in zip(reversed(self.segments), reversed(before[:-1])):
            # What leads to a backward pass is forward; after the last one, and before an optimizer, is the rest.
            if phase == BACKWARD:
                after = FORWARD
            elif phase == OPTIMIZER:
                after = REST
            spent[after if phase is None else phase] += self._between_ns(begun, mark)
        return spent

    def _between_ns(self, begun: Any, ended: Any) -> int:
        return ended - begun if self.module is None else max(0, int(begun[0].elapsed_time(ended[0]) * 1e6))


class Phases:
    """The phases of one loop's steps."""

    def __init__(self, iterator: int) -> None:
        self._iterator = iterator
        self._events = Events()
        self._pending: Deque[Step] = deque()
        self._seen = 0
        self._countdown = 1
        self._broken = False

    def taken(self, journal: Journal, pace: List[int], batch: Any) -> None:
        """The loop has a batch: its step is measured if it is this one's turn.

        Args:
            journal: of this process.
            pace: batches of the loop, and the nanoseconds that they took.
            batch: what the loop got.
        """
        if self._pending:
            self._drain(journal)
        # The first steps warm up.
        if not pace[0] or self._broken or process.step is not None or "worker" in process.header:
            return
        self._countdown -= 1
        if self._countdown > 0 or len(self._pending) >= MAX_PENDING:
            return
        module = in_use()
        if module is not None and (captures(module) or _IDENT() != threading.main_thread().ident):
            return
        self._seen += 1
        budget = overhead.allowed(PHASES_BUDGET)
        every = max(1, int((WALL_NS if module is None else DEVICE_NS) * pace[0] / (budget * max(1, pace[1]))))
        # A fixed stride could miss, or hit only, what recurs every K steps; a hash of the count varies it without an RNG.
        self._countdown = 1 + (self._seen * 2654435761 >> 8) % (2 * every - 1)
        try:
            step = Step(self, module, self._events)
            if module is not None:
                step.sizes = on_host(batch)
        except Exception:
            # If the device refuses events, batches are still recorded; only phases are given up.
            self._broken = True
            return
        process.step = step

    def ended(self, journal: Journal, step: Step) -> None:
        """A measured step has ended: its phases are written now, or once its device has come so far."""
        if step.whole and step.module is None:
            self._write(journal, step, -1)
        elif step.whole and step.on_one_device():
            self._pending.append(step)
        else:
            self._give_back(step)

    def _drain(self, journal: Journal) -> None:
        try:
            while self._pending and self._pending[0].segments[-1][1][0].query():
                step = self._pending.popleft()
                self._write(journal, step, step.first[1])
                self._give_back(step)
        except Exception:
            self._broken = True
            self._pending.clear()

    def _write(self, journal: Journal, step: Step, device: int) -> None:
        sizes = step.sizes
        journal.write(
            layout.PHASES,
            sizes is not None,
            0,
            self._iterator,
            step.begun_ns,
            step.ended_ns,
            device,
            *step.lasted_ns(),
            step.counts[BACKWARD],
            step.counts[OPTIMIZER],
            step.counts[COPY],
            *(sizes or (0, 0)),
        )

    def _give_back(self, step: Step) -> None:
        if step.module is not None:
            for mark in step.marks():
                self._events.give_back(mark)


def ask(journal: Journal) -> None:
    """A loop of this thread asks for a batch: the step that is measured has ended, whichever loop's it is."""
    step: Any = process.step
    if step is not None and step.thread == _IDENT():
        process.step = None
        step.end()
        step.phases.ended(journal, step)


def on_host(batch: Any) -> Optional[Tuple[int, int]]:
    """Return bytes of a batch's tensors that lie in the host's memory, and how many of these are pinned.

    None where the batch holds none of torch's own tensors. Containers are walked, no code of the user's runs.
    """
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    queue, seen, total, pinned = [batch], 0, 0, 0
    while queue and seen < MAX_TENSORS:
        item = queue.pop()
        if type(item) is kind:
            seen += 1
            if item.device.type == "cpu":
                total += item.nbytes
                pinned += item.nbytes if item.is_pinned() else 0
        elif issubclass(type(item), dict):
            queue.extend(list(dict.values(item))[:MAX_TENSORS])
        elif issubclass(type(item), (list, tuple)):
            base: Any = list if issubclass(type(item), list) else tuple
            queue.extend(base.__getitem__(item, slice(MAX_TENSORS)))
    return (total, pinned) if seen else None


def install() -> None:
    """Set the hooks of this process, once; each does next to nothing while no step is measured."""
    global _is_compiling
    if process.marked or "worker" in process.header:
        return
    process.marked = True
    torch = sys.modules.get("torch")
    optimizers = sys.modules.get("torch.optim.optimizer")
    # torch 2.2 has it here only.
    old = getattr(getattr(torch, "_utils", None), "is_compiling", None)
    compiling = getattr(getattr(torch, "compiler", None), "is_compiling", old)
    register = getattr(optimizers, "register_optimizer_step_pre_hook", None)
    if torch is None or register is None or optimizers is None or compiling is None:
        return
    _is_compiling = compiling
    register(_optimizer_begins)
    optimizers.register_optimizer_step_post_hook(_optimizer_ended)
    torch.autograd.backward = functools.wraps(torch.autograd.backward)(_within(torch.autograd.backward, BACKWARD))
    for module, owner, name in MOVERS:
        held: Any = sys.modules.get(module)
        held = getattr(held, owner, None) if owner else held
        if held is not None and name in vars(held):
            original = vars(held)[name]
            setattr(held, name, functools.wraps(original)(_within(original, COPY)))


def _is_compiling() -> bool:
    return False


# Dynamo traces these two with the optimizer's step; by their first line it finds nothing in them. So they must be no
# `unseen` functions, which it would not enter, and break the graph for.
def _optimizer_begins(*_: Any) -> None:
    if _is_compiling():
        return
    step: Any = process.step
    if step is not None:
        step.enter(OPTIMIZER)


def _optimizer_ended(*_: Any) -> None:
    if _is_compiling():
        return
    step: Any = process.step
    if step is not None:
        step.leave(OPTIMIZER)


@unseen
def _within(original: Any, phase: int) -> Any:
    def hook(*args: Any, **kwargs: Any) -> Any:
        step: Any = process.step
        if step is None:
            return original(*args, **kwargs)
        step.enter(phase)
        try:
            return original(*args, **kwargs)
        finally:
            step.leave(phase)

    return hook
