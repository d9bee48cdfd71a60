"""Hooks in worker processes."""

from __future__ import annotations

from typing import Any

from loaderprof.capture.hooks.workers import loop_arguments


def test_a_workers_dataset_is_found_under_either_of_torchs_names() -> None:
    def given_itself(dataset_kind: int, dataset: Any, data_queue: Any, collate_fn: Any, worker_id: int) -> None: ...

    def given_a_holder(
        dataset_kind: int, dataset_holder: Any, data_queue: Any, collate_fn: Any, worker_id: int
    ) -> None: ...

    holder, rest = ["data"], ("queue", "collate", 3)
    assert loop_arguments(given_itself, (0, "data", *rest), {}) == ("data", "collate", "queue", 3)
    assert loop_arguments(given_a_holder, (0, holder, *rest), {}) == ("data", "collate", "queue", 3)
    # The worker takes it out itself.
    assert holder == ["data"]
