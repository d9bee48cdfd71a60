"""Samples come from an object store, one request each: waiting for the network is the limit.

The store is a small HTTP server in a process of its own that answers every GET after 20 ms, as a bucket in
the same region does.
"""

import io
import multiprocessing
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SAMPLES = 400
LATENCY_S = 0.020


class Store(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(LATENCY_S)
        number = int(self.path.rsplit("/", 1)[1])
        rng = np.random.default_rng(number)
        body = io.BytesIO()
        np.save(body, rng.normal(size=(3, 32, 32)).astype(np.float32) + number % 10)
        self.send_response(200)
        self.send_header("Content-Length", str(body.tell()))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, *_: object) -> None:
        """Quiet: one line per request would drown the losses."""


def serve(port: multiprocessing.Queue) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    port.put(server.server_port)
    server.serve_forever()


class Remote(Dataset):
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/samples"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with urllib.request.urlopen(f"{self.url}/{index}") as response:
            body = response.read()
        return torch.from_numpy(np.load(io.BytesIO(body))), index % 10


def main() -> None:
    torch.manual_seed(0)
    port: multiprocessing.Queue = multiprocessing.Queue()
    multiprocessing.Process(target=serve, args=(port,), daemon=True).start()
    loader = DataLoader(Remote(port.get()), batch_size=10, shuffle=True, num_workers=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
