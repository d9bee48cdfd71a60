"""What a producer is at, by its stack below the machinery of a pool."""

from __future__ import annotations

import pytest

from loaderprof.analyze.pool_stacks import work_of

LIB = "/usr/lib/python3.11"
READ = "fetch (/home/me/train.py:30)"
SOURCES = {
    "/home/me/train.py:30": "body = response.read()",
    "/home/me/train.py:40": "tasks.put(batch)",
    "/home/me/train.py:41": "results = queue.get()",
    "/home/me/train.py:50": "image = augment(image)",
}


@pytest.mark.parametrize(
    ("task", "stage"),
    [
        ((), None),
        ((f"Queue.get ({LIB}/queue.py:171)", f"Condition.wait ({LIB}/threading.py:327)"), None),
        (("produce (/home/me/train.py:41)",), None),
        (("produce (/home/me/train.py:40)", f"Queue.put ({LIB}/queue.py:140)"), None),
        (
            (
                "train (/home/me/train.py:99)",
                f"set_result ({LIB}/concurrent/futures/_base.py:550)",
                f"send ({LIB}/asyncio/selector_events.py:139)",
            ),
            None,
        ),
        ((READ,), "read"),
        (("load (/home/me/train.py:50)", f"socket.readinto ({LIB}/socket.py:706)"), "read"),
        (("load (/home/me/train.py:50)", "ImageFile.load (/lib/PIL/ImageFile.py:1)"), "decode"),
        (("unknown (/home/me/train.py:99)",), "transform"),
        (
            (
                f"Queue._feed ({LIB}/multiprocessing/queues.py:244)",
                f"ForkingPickler.dumps ({LIB}/multiprocessing/reduction.py:51)",
            ),
            "handover",
        ),
    ],
)
def test_what_a_producer_is_at(task: tuple[str, ...], stage: str | None) -> None:
    assert work_of(task, SOURCES)[0] == stage
