"""In a job that `loaderprof tune` started: one training loader, its settings changed between windows of one stream.

The loop holds one iterator; behind it one inner iterator after another, each with other settings, draws from the same
iterator of the sampler. A window is opened, warms up, is measured, and is closed by giving its inner iterator nothing
more to draw: what it has prefetched is still handed out. So the loop gets every batch of the sampler's stream once, in
the sampler's order unless a window has `in_order=False`.

Which window comes next is read from `orders.jsonl` in the folder `LOADERPROF_TUNE`; what was seen is written to
`events.jsonl` there. Only a job under `tune` imports this. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import weakref
from typing import Any, Dict, Optional

from loaderprof.capture.hooks import describe, settings
from loaderprof.capture.hooks.tuned_windows import Feed, Window

FOLDER = "LOADERPROF_TUNE"
# Names the variable of the loader to tune; unset: the first loader that a training loop iterates.
LOADER = "LOADERPROF_TUNE_LOADER"
ORDERS, EVENTS, CLAIM = "orders.jsonl", "events.jsonl", "claim"
KEYS = ("num_workers", "prefetch_factor", "in_order", "persistent_workers", "pin_memory")
# Seconds that the start of an epoch waits for its order, because one for whole epochs cannot begin in the midst of one.
PATIENCE_S = 0.3

_NOW = time.perf_counter_ns


class Tuner:
    """The one loader of this process that is tuned, and what runs behind its iterator."""

    def __init__(self, module: Any, folder: str) -> None:
        self.module, self.folder, self.pid = module, folder, os.getpid()
        self.wanted = os.environ.get(LOADER)
        self.off = False
        self.events = os.open(
            os.path.join(folder, EVENTS), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self.orders = os.open(os.path.join(folder, ORDERS), os.O_RDONLY | os.O_CLOEXEC)
        self.read_to = 0
        self.loader: Any = None
        self.where: Optional[str] = None
        self.stream: Any = None
        self.present: Dict[str, Any] = {}
        self.settings: Dict[str, Any] = {}
        self.window: Optional[Window] = None
        self.pending: Optional[Dict[str, Any]] = None
        self.feed = Feed()
        self.inner: Any = None
        self.kept = False
        self.seed = self.opened = self.close_ns = 0
        self.begun = self.taken = self.batches = 0

    def takes(self, loader: Any) -> bool:
        """Whether this iteration of this loader is the one to tune; writes why not where it cannot be."""
        if self.off or os.getpid() != self.pid or self.module._utils.worker.get_worker_info() is not None:
            return False
        if not self.feed.over and self.stream is not None and self.stream() is not None:
            return False  # a second iterator beside one that is still in use
        known = self.loader() if self.loader is not None else None
        if known is loader:
            return True
        facts = describe.loader(loader, None)
        meant = facts["name"] == self.wanted if self.wanted else bool(describe.gradients())
        if self.loader is not None:
            # A script may make its loader anew for every epoch.
            return bool(meant and facts["where"] == self.where)
        if not meant or not self._claim():
            return False
        reason = self._obstacle(loader)
        self.loader, self.where = weakref.ref(loader), facts["where"]
        if reason:
            self.off = True
            self._write_event(event="refused", reason=reason)
            return False
        self.present = {key: getattr(loader, key, key == "in_order") for key in KEYS}
        self.settings = dict(self.present)
        facts["num_workers"] = loader.num_workers
        facts["assigned"] = describe.held(loader).get("_loaderprof_assigned")
        self._write_event(
            event="loader", facts=facts, present=self.present, length=_length(loader), pid=self.pid, **_machine()
        )
        return True

    def _claim(self) -> bool:
        """Be the one process of the job whose loader is tuned."""
        try:
            os.close(os.open(os.path.join(self.folder, CLAIM), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            self.off = True
            return False
        return True

    def _obstacle(self, loader: Any) -> Optional[str]:
        """Return why windows of one stream cannot be had from a loader; None where they can."""
        if loader._dataset_kind != self.module._DatasetKind.Map:
            return "an iterable dataset is split over its workers"
        pipe = getattr(self.module, "MapDataPipe", None)
        if pipe is not None and isinstance(loader.dataset, pipe):
            return "a data pipe is split over its workers"
        if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
            return "several ranks step together"
        return None

    def begin(self, stream: Any, begun: int) -> None:
        """Begin an epoch of the loader on a fresh iterator of its sampler."""
        entered = _NOW()
        if not self.feed.over:
            self._epoch_over(self.taken)  # the loop left the last one early
        self.stream, self.seed = weakref.ref(stream), stream._base_seed
        self.feed.renew(stream._sampler_iter)
        self.batches = self.taken = 0
        if not self.off:
            try:
                self._next_order()
            except Exception as error:
                self._give_up(error)
        # Waiting for an order is no part of the epoch.
        self.begun = _NOW() - (entered - begun)
        self._open()

    def take(self, stream: Any) -> Any:
        """Return the next batch, from this window's inner iterator or the next one's."""
        if self.stream() is not stream or (self.inner is None and self.feed.over):
            raise StopIteration
        asked = _NOW()
        while True:
            if self.inner is None:
                self._open()
            closing = _NOW()
            try:
                data = next(self.inner)
                break
            except StopIteration:
                if self.feed.over:
                    self._epoch_over(_NOW())
                    raise
                self._drop()
                self.close_ns = _NOW() - closing
        taken = _NOW()
        self.batches += 1
        if not self.off and not self.feed.shut:
            try:
                self._taken(data, asked, taken)
            except Exception as error:
                self._give_up(error)
        self.taken = taken
        return data

    def _open(self) -> None:
        """Make the inner iterator of the settings that are due, or set going again the one that was kept."""
        begun = _NOW()
        self.feed.shut = False
        if self.kept:
            self.kept = False
            self.inner._reset(self._shadow())
        else:
            name = "_MultiProcessingDataLoaderIter" if self.settings["num_workers"] else "_SingleProcessDataLoaderIter"
            self.inner = getattr(self.module, name)(self._shadow())
        self.opened += 1
        if self.window is not None:
            self.window.open_ns, self.window.close_ns = _NOW() - begun, self.close_ns

    def _shadow(self) -> Any:
        """Return the loader as the inner iterator is to see it: other settings, and the feed for its sampler.

        A seed of its own for the workers: drawing one would change what the job draws next.
        """
        import torch

        loader = self.stream().tuned_loader
        shadow = object.__new__(type(loader))
        state = dict(describe.held(loader))
        workers = self.settings["num_workers"]
        generator = torch.Generator().manual_seed(self.seed + self.opened)
        state.update(self.settings, _iterator=None, generator=generator)
        state["prefetch_factor"] = (self.settings["prefetch_factor"] or 2) if workers else None
        state["persistent_workers"] = bool(self.settings["persistent_workers"] and workers)
        if not workers:
            state["timeout"] = 0
        state["batch_sampler" if loader._auto_collation else "sampler"] = self.feed
        shadow.__dict__.update(state)
        return shadow

    def _drop(self) -> None:
        """Let go of the inner iterator; workers that were to be kept are stopped here."""
        inner, self.inner, self.kept = self.inner, None, False
        if inner is not None and hasattr(inner, "_shutdown_workers"):
            inner._shutdown_workers()

    def _epoch_over(self, now: int) -> None:
        """Note the end of an epoch of the user's loop; workers that are to be kept wait for the next."""
        # The feed may have run dry in the midst of a change of settings.
        self.kept = bool(
            self.feed.over and self.inner is not None and getattr(self.inner, "_persistent_workers", False)
        )
        self.feed.over = True
        if not self.kept:
            self._drop()
        window, batches = self.window, self.batches
        if window is None or window.done or self.off:
            return
        if not window.order["by_epoch"]:
            window.done = True
            self._report(window, cut=True)
        elif batches:
            window.add_epoch(now - self.begun, batches)
            if window.done:
                self._report(window, cut=False)

    def _taken(self, data: Any, asked: int, taken: int) -> None:
        window = self.window
        if window is None or window.done:
            self._next_order()
            return
        if window.size is None:
            window.size = describe.size(data)[:2]
            window.iterator = getattr(getattr(self.inner, "_loaderprof", None), "number", None)
        if window.order["by_epoch"]:
            return
        workers = self.settings["num_workers"]
        if not window.warm:
            window.settle(workers, self.settings["prefetch_factor"] or 2, self._ready())
        elif self.taken:
            window.add(asked - self.taken, taken - asked, workers)
        if window.done:
            self._report(window, cut=False)

    def _ready(self) -> int:
        try:
            return int(self.inner._data_queue.qsize())
        except (AttributeError, NotImplementedError, OSError, ValueError):
            return 0

    def _next_order(self) -> None:
        """Take up the next order, if there is one; within an epoch its inner iterator follows the one under way."""
        if self.window is not None and not self.window.done:
            return
        order, self.pending = self.pending or self._read_order(), None
        by_epoch = self.window is not None and self.window.order["by_epoch"]
        until = _NOW() + PATIENCE_S * 1e9
        while order is None and by_epoch and not self.batches and _NOW() < until:
            time.sleep(0.005)
            order = self._read_order()
        if order is None:
            return
        if order["by_epoch"] and self.batches:
            self.pending = order
            return
        settings = dict(self.present, **order["settings"])
        same = settings == self.settings and self.inner is not None
        # Persistent workers start once, so their first epoch is a warm-up; others start at every epoch.
        kept = settings["num_workers"] and settings["persistent_workers"]
        self.window = Window(order, warm=(same or not kept) if order["by_epoch"] else (same and self.batches > 0))
        if same:
            return
        self.settings = settings
        if self.batches == 0:
            self._drop()
        else:
            self.feed.shut = True

    def _read_order(self) -> Optional[Dict[str, Any]]:
        text = os.pread(self.orders, 1 << 16, self.read_to)
        line, newline, _ = text.partition(b"\n")
        if not newline:
            return None
        self.read_to += len(line) + 1
        order: Dict[str, Any] = json.loads(line)
        return order

    def _report(self, window: Window, cut: bool) -> None:
        self._write_event(
            event="window",
            window=window.order["window"],
            settings=self.settings,
            cut=cut,
            batches=window.batches,
            group=window.group,
            step_ns=window.step_ns,
            wait_ns=window.wait_ns,
            epochs=window.epochs,
            open_ns=window.open_ns,
            close_ns=window.close_ns,
            size=window.size,
            iterator=window.iterator,
        )

    def _write_event(self, **event: Any) -> None:
        os.write(self.events, (json.dumps(event) + "\n").encode())

    def _give_up(self, error: BaseException) -> None:
        """Change nothing any more; the loop goes on with what it has."""
        self.off = True
        self.window = None
        self.feed.shut = False
        try:
            sys.stderr.write("loaderprof: tuning stopped, training goes on: %s: %s\n" % (type(error).__name__, error))
            self._write_event(event="failed", reason="%s: %s" % (type(error).__name__, error))
        except Exception:
            return


def install(module: Any) -> None:
    """Have the loader that is to be tuned iterated through a `Tuner`; called once its module was imported."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    tuner = Tuner(module, folder)
    original, base = module.DataLoader._get_iterator, module._BaseDataLoaderIter

    class TunedLoaderIter(base):  # type: ignore[misc, valid-type]
        """What the loop holds while its loader is tuned."""

        def __init__(self, loader: Any) -> None:
            begun = _NOW()
            super().__init__(loader)
            self.tuned_loader = loader
            if loader.num_workers:
                # With workers torch calls iter(sampler) twice; a sampler that shuffles in __iter__ must see the same here.
                self._sampler_iter = iter(self._index_sampler)
            tuner.begin(self, begun)

        def _reset(self, loader: Any, first_iter: bool = False) -> None:
            begun = _NOW()
            super()._reset(loader, first_iter)
            tuner.begin(self, begun)

        def _next_data(self) -> Any:
            return tuner.take(self)

    made = module.DataLoader.__init__

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            # What `--set NAME.num_workers=4` goes by: not the variable in the loop, but the one the loader is made for.
            self.__dict__["_loaderprof_assigned"] = settings.assigned_name(sys._getframe(1))
        except Exception:
            pass
        made(self, *args, **kwargs)

    def _get_iterator(self: Any) -> Any:
        return TunedLoaderIter(self) if tuner.takes(self) else original(self)

    module.DataLoader.__init__, module.DataLoader._get_iterator = __init__, _get_iterator


def _length(loader: Any) -> Optional[int]:
    """Return the batches of an epoch; None where the sampler does not know."""
    try:
        return len(loader._index_sampler)
    except (TypeError, NotImplementedError):
        return None


def _open_files() -> Optional[int]:
    """Return how many files a process may have open; None where there is no such limit to ask for."""
    try:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):
        return None


def _machine() -> Dict[str, Any]:
    """Return what bounds the settings, as this process sees it."""
    torch: Any = sys.modules["torch"]
    return {
        "open_files": _open_files(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "torch": str(torch.__version__),
        "cuda": bool(torch.cuda.is_available()),
    }
