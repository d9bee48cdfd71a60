"""A thousand images over HTTP, each downloaded and preprocessed: by threads, by processes, by both.

    loaderprof run train.py threads      16 threads do all: they wait well, and take turns at the interpreter's lock
    loaderprof run train.py processes    4 processes do all: they compute well, and 4 requests are all that is in flight
    loaderprof run train.py both         threads download, processes preprocess

Whichever way, each image must come out once. `python tests/benchmarks/download_and_preprocess.py` runs all three.
"""

import argparse
import io
import multiprocessing
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import loaderprof

COUNT, BATCH, LATENCY_S, SIZE, PIXELS = 1000, 20, 0.08, 256, 288
THREADS, PROCESSES, PREPROCESSES = 16, 4, 2


def jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    colours = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIZE, SIZE))
    file = io.BytesIO()
    colours.save(file, "JPEG", quality=90)
    return file.getvalue()


IMAGES = [jpeg(number) for number in range(16)]


class Handler(BaseHTTPRequestHandler):
    """Gives image N for /N, after a while, as a store far away does; requests wait side by side."""

    def do_GET(self) -> None:
        time.sleep(LATENCY_S)
        image = IMAGES[int(self.path[1:]) % len(IMAGES)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(image)))
        self.end_headers()
        self.wfile.write(image)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Store(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


def serve(ports: Any) -> None:
    server = Store(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def preprocess(raw: bytes) -> np.ndarray:
    """Decode, and find the edges that the network is trained on, pixel by pixel in plain Python."""
    image = Image.open(io.BytesIO(raw)).convert("L").resize((PIXELS, PIXELS))
    pixels = np.asarray(image, dtype=np.int16).tolist()
    edges = [
        [abs(row[x + 1] - row[x]) + abs(below[x] - row[x]) for x in range(len(row) - 1)]
        for row, below in pairwise(pixels)
    ]
    return np.array(edges, dtype=np.float32)


def all_of(url: str) -> tuple[str, np.ndarray]:
    return url, preprocess(download(url))


def batches(urls: list[str], submit: Callable[[str], Any], in_flight: int) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Batches in order, with so many images under way."""
    waiting = iter(urls)
    futures = deque(submit(url) for url in islice(waiting, in_flight))
    while futures:
        batch = []
        while futures and len(batch) < BATCH:
            batch.append(futures.popleft().result())
            futures.extend(submit(url) for url in islice(waiting, 1))
        yield [url for url, _ in batch], torch.from_numpy(np.stack([edges for _, edges in batch]))


def pipeline(way: str, urls: list[str], pools: list[Executor]) -> Iterator[tuple[list[str], torch.Tensor]]:
    if way == "threads":
        pools.append(ThreadPoolExecutor(THREADS))
        return batches(urls, lambda url: pools[0].submit(all_of, url), 2 * THREADS)
    context = multiprocessing.get_context("fork")
    if way == "processes":
        pools.append(ProcessPoolExecutor(PROCESSES, context))
        return batches(urls, lambda url: pools[0].submit(all_of, url), 2 * PROCESSES)
    compute, downloads = ProcessPoolExecutor(PREPROCESSES, context), ThreadPoolExecutor(THREADS)
    pools += [downloads, compute]
    # A forked process must not inherit a lock that a thread of ours holds: all of them start first.
    list(compute.map(abs, range(4 * PREPROCESSES)))

    def both(url: str) -> tuple[str, np.ndarray]:
        return url, compute.submit(preprocess, download(url)).result()

    return batches(urls, lambda url: downloads.submit(both, url), 2 * THREADS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("threads", "processes", "both"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    context = multiprocessing.get_context("fork")
    ports = context.SimpleQueue()
    server = context.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    port = ports.get()
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(COUNT)]
    model = nn.Sequential(nn.Flatten(), nn.Linear((PIXELS - 1) ** 2, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pools: list[Executor] = []
    begun, seen = time.perf_counter(), []
    for names, edges in loaderprof.watch(pipeline(asked.way, urls, pools), name="images"):
        loss = model(edges).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += names
    seconds = time.perf_counter() - begun
    for pool in pools:
        pool.shutdown()
    server.terminate()
    print(
        f"{asked.way}: {len(urls)} images in, {len(seen)} out, each once: {seen == urls}, {seconds:.1f} s", flush=True
    )


if __name__ == "__main__":
    main()
