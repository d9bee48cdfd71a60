"""Hand-written pipelines without a DataLoader: batches made by threads, by processes, by both.

They alone import loaderprof, because what is no DataLoader has to be named to it: outside of a recording `watch()`
only iterates.
"""

from __future__ import annotations

import io
import multiprocessing
import queue
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from PIL import Image
from stand_ins import Slow, photograph
from store import store
from torch import nn

import loaderprof

BATCH = 8


def ahead(pool: Executor, task: Callable[[int], Any], in_flight: int) -> Iterator[list[Any]]:
    """Batches of what `task` returns, with so many tasks under way."""
    futures = deque(pool.submit(task, number) for number in range(in_flight))
    number = in_flight
    while True:
        batch = []
        for _ in range(BATCH):
            batch.append(futures.popleft().result())
            futures.append(pool.submit(task, number))
            number += 1
        yield batch


def train(batches: Iterator[Any], step: Any, clock: Clock) -> None:
    for batch in loaderprof.watch(batches, name="batches"):
        step(torch.as_tensor(np.stack(batch), dtype=torch.float32))
        if clock.over():
            break


class Step:
    """Training on an accelerator elsewhere."""

    def __init__(self, knobs: Knobs, seconds: float, width: int) -> None:
        self.model, self.off = Slow(seconds, width), knobs.off("device")

    def __call__(self, x: torch.Tensor) -> None:
        if not self.off:
            self.model(x).mean().backward()
            self.model.zero_grad()


def document(words: int = 2500) -> str:
    return " ".join(f"word{number * 7919 % 1000} {number}," for number in range(words))


def parse_words(text: str) -> np.ndarray:
    counts = np.zeros(64, dtype=np.float32)
    for word in text.split():
        key = 0
        for letter in word:
            key = (key * 31 + ord(letter)) & 1023
        counts[key & 63] += 1
    return counts


class Parse:
    """A task that can go to a process: it parses a document of its own."""

    def __init__(self, text: str, zero: bool) -> None:
        self.text, self.zero = text, zero

    def __call__(self, _: int) -> np.ndarray:
        return np.zeros(64, dtype=np.float32) if self.zero else parse_words(self.text)


@case("threads", label="contention", also="decode", stages="contention decode device")
def threads_that_parse(knobs: Knobs, clock: Clock) -> None:
    """Four threads that parse in Python: one of them at a time. In processes they would be two."""
    pool = knobs.pick("contention", ThreadPoolExecutor(4), ProcessPoolExecutor(2))
    task = Parse(document(), knobs.off("decode"))
    train(ahead(pool, task, 32), Step(knobs, 0.004, 64), clock)
    pool.shutdown(cancel_futures=True)


class Download:
    """A task that can go to a process: one object of the store."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def __call__(self, number: int) -> np.ndarray:
        if self.url is None:
            return np.zeros(64, dtype=np.float32)
        with urllib.request.urlopen(f"{self.url}/{number}") as response:
            return np.frombuffer(response.read(), dtype=np.float32)


@case("processes", label="read", stages="read device")
def processes_that_wait(knobs: Knobs, clock: Clock) -> None:
    """Four processes, each waiting for a store that would answer forty at once."""
    body = np.ones(64, dtype=np.float32).tobytes()
    with store(lambda _: body, latency_s=0.03) as url, ProcessPoolExecutor(4) as pool:
        train(ahead(pool, Download(knobs.pick("read", url, None)), 32), Step(knobs, 0.01, 64), clock)
        pool.shutdown(cancel_futures=True)


@case("threads", label="read", stages="read device")
def queue_threads(knobs: Knobs, clock: Clock) -> None:
    """Plain threads and a queue, as scripts wrote it before there were executors."""
    body = np.ones(64, dtype=np.float32).tobytes()
    ready: queue.Queue[list[np.ndarray]] = queue.Queue(4)
    stop = threading.Event()

    def produce(task: Download, first: int) -> None:
        number = first
        while not stop.is_set():
            batch = [task(number + place) for place in range(BATCH)]
            number += 2 * BATCH
            while not stop.is_set():
                try:
                    ready.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue

    with store(lambda _: body, latency_s=0.01) as url:
        task = Download(knobs.pick("read", url, None))
        threads = [threading.Thread(target=produce, args=(task, first)) for first in (0, BATCH)]
        for thread in threads:
            thread.start()
        train(iter(ready.get, None), Step(knobs, 0.008, 64), clock)
        stop.set()
        for thread in threads:
            thread.join()


@case("threads", label="contention", also="read decode", stages="contention read decode device")
def threads_that_download_and_parse(knobs: Knobs, clock: Clock) -> None:
    """Six threads that download, and parse what they got: the waiting overlaps, the parsing does not."""
    raw = document().encode()
    helpers = ProcessPoolExecutor(2)
    with store(lambda _: raw, latency_s=0.02) as url:

        def task(number: int) -> np.ndarray:
            text = raw.decode() if knobs.off("read") else fetch(f"{url}/{number}")
            if knobs.off("decode"):
                return np.zeros(64, dtype=np.float32)
            return helpers.submit(parse_words, text).result() if knobs.off("contention") else parse_words(text)

        def fetch(address: str) -> str:
            with urllib.request.urlopen(address) as response:
                return response.read().decode()

        with ThreadPoolExecutor(6) as pool:
            train(ahead(pool, task, 32), Step(knobs, 0.004, 64), clock)
            pool.shutdown(cancel_futures=True)
    helpers.shutdown()


@case("threads", label="decode", stages="contention decode device")
def threads_that_unpack_jpeg(knobs: Knobs, clock: Clock) -> None:
    """Threads in which PIL decodes: it lets go of the lock, so they are as good as processes."""
    raw = io.BytesIO()
    photograph(960, 720).save(raw, "JPEG", quality=92)

    def task(_: int) -> np.ndarray:
        if knobs.off("decode"):
            return np.zeros((16, 16, 3), dtype=np.uint8)
        with Image.open(io.BytesIO(raw.getvalue())) as image:
            image.load()
            return np.asarray(image)[:16, :16]

    with ThreadPoolExecutor(3) as pool:
        model = nn.Flatten()
        step = Step(knobs, 0.006, 16 * 16 * 3)
        train(ahead(pool, task, 24), lambda x: step(model(x)), clock)
        pool.shutdown(cancel_futures=True)


def augment(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    image = rng.normal(size=(300, 300)).astype(np.float32)
    for _ in range(3):
        image = np.sort(image, axis=number & 1)[::-1] * 0.99
    return image[0, :64]


def blank(_: int) -> np.ndarray:
    return np.zeros(64, dtype=np.float32)


@case("processes", label="transform", stages="transform device")
def pool_map(knobs: Knobs, clock: Clock) -> None:
    """`Pool.map` batch by batch: the pool rests while the loop steps."""
    task = knobs.pick("transform", augment, blank)
    with multiprocessing.Pool(2) as pool:
        batches = (pool.map(task, range(first, first + 16)) for first in range(0, 10**9, 16))
        train(batches, Step(knobs, 0.005, 64), clock)


@case("threads and processes", label="transform", stages="read transform device")
def threads_before_processes(knobs: Knobs, clock: Clock) -> None:
    """As it should be: threads download, processes compute. They are what limits it."""
    body = np.ones(64, dtype=np.float32).tobytes()
    with (
        store(lambda _: body, latency_s=0.01) as url,
        ProcessPoolExecutor(2) as compute,
        ThreadPoolExecutor(12) as pool,
    ):
        download = knobs.pick("read", Download(url), Always(np.ones(64, dtype=np.float32)))
        work = knobs.pick("transform", augment, blank)

        def task(number: int) -> np.ndarray:
            return download(number) + compute.submit(work, number).result()

        train(ahead(pool, task, 24), Step(knobs, 0.003, 64), clock)
        pool.shutdown(cancel_futures=True)


@case("processes", label="transform", stages="transform device", needs="joblib")
def joblib_stream(knobs: Knobs, clock: Clock) -> None:
    """joblib's own processes, results as they come."""
    from joblib import Parallel, delayed

    task = delayed(knobs.pick("transform", augment, blank))
    results = Parallel(n_jobs=2, return_as="generator", batch_size=4)(task(number) for number in range(10**6))
    batches = ([next(results) for _ in range(BATCH)] for _ in range(10**6))
    train(batches, Step(knobs, 0.003, 64), clock)


@case("threads", label="device", also="none", stages="read device")
def threads_that_keep_up(knobs: Knobs, clock: Clock) -> None:
    """Enough threads: the step is the limit."""
    body = np.ones(64, dtype=np.float32).tobytes()
    with store(lambda _: body, latency_s=0.01) as url, ThreadPoolExecutor(8) as pool:
        train(ahead(pool, Download(knobs.pick("read", url, None)), 48), Step(knobs, 0.06, 64), clock)
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
