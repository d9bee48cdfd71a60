"""Settings of tf.data pipelines, applied by `--set`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loaderprof.capture.hooks import tf_settings


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("tf.cache", True, True),
        ("tf.cache", False, False),
        ("tf.prefetch", "AUTOTUNE", True),
        ("tf.prefetch", 2, True),
        ("tf.prefetch", 0, False),
        ("tf.num_parallel_calls", True, False),
        ("tf.num_parallel_calls", "many", False),
        ("tf.private_threadpool_size", "AUTOTUNE", False),
    ],
)
def test_values_of_settings(key: str, value: object, fits: bool) -> None:
    assert tf_settings.fits(key, value) == fits


def test_settings_are_applied_where_pipelines_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dataset:
        def map(self, function: Any, num_parallel_calls: Any = None) -> Any:
            return num_parallel_calls

        def interleave(
            self, function: Any, cycle: Any = None, block: Any = None, num_parallel_calls: Any = None
        ) -> Any:
            return num_parallel_calls

        def prefetch(self, size: int) -> tuple[str, int]:
            return "prefetched", size

    monkeypatch.setenv(
        "LOADERPROF_SET", json.dumps({"tf.num_parallel_calls": "AUTOTUNE", "tf.prefetch": 3, "num_workers": 2})
    )
    tf_settings.install(Dataset)
    dataset = Dataset()
    assert [dataset.map(abs), dataset.map(abs, 4), dataset.map(abs, num_parallel_calls=4)] == [-1, -1, -1]
    assert [dataset.interleave(abs), dataset.interleave(abs, 2, 1, 4)] == [-1, -1]
    assert tf_settings.finished(dataset) == ("prefetched", 3)
    assert tf_settings.wanted() == {"num_parallel_calls": "AUTOTUNE", "prefetch": 3}
