"""Advice on datasets streamed from shards: where workers are idle, or shards fetched again, and not where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan

from loaderprof.conclude import findings_of
from loaderprof.findings import Advice

MIB = 1 << 20
FEW = Plan(
    workers=4,
    idle=2,
    wait=0.028,
    step=0.002,
    fetch=Fetch(cpu=0.06, pickle=0.0),
    facts={"iterable": True, "shards": 2, "dataset": "datasets.iterable_dataset.IterableDataset"},
)


def offered(made: Made, ended: float) -> dict[str, Advice]:
    made.finish(ended)
    return {each.id: each for each in findings_of(made.read()).advice}


def few(folder: Path, plan: Plan) -> dict[str, Advice]:
    made = Made(folder)
    return offered(made, made.loop(made.process(), plan))


def test_as_many_shards_as_workers_where_some_made_no_batch(tmp_path: Path, said: Check) -> None:
    found = few(tmp_path / "r", FEW)
    advice = found["more-shards"]
    assert (advice.change["shards"], advice.current) == (4, {"shards": 2})
    said("more-shards", advice.why)
    assert "num_shards=4" in advice.code
    # Two workers make a batch every 30 ms, four one every 15 ms.
    assert advice.expected.speedup == pytest.approx(2.0, rel=0.1)
    # Workers beyond the shards would be idle as well.
    assert "num-workers" not in found


@pytest.mark.parametrize(
    "plan",
    [
        replace(FEW, idle=0, wait=0.013),
        replace(FEW, facts={**FEW.facts, "shards": 4}, idle=0, wait=0.013),
        replace(FEW, facts={**FEW.facts, "shards": None}),
    ],
)
def test_shards_are_left_alone_where_every_worker_is_at_work_or_they_are_not_known(tmp_path: Path, plan: Plan) -> None:
    assert "more-shards" not in few(tmp_path / "r", plan)


CACHED = {"iterable": True, "cache_knob": "cache_limit", "cache_bytes": 12 * MIB, "stored_bytes": 32 * MIB}


def streamed(
    folder: Path, written: float | None, facts: dict[str, Any] = CACHED, wait: float = 0.05
) -> dict[str, Advice]:
    """Return the advice on four epochs of 4 s, whose worker writes so many MiB an epoch after the first."""
    fetch = Fetch(
        cpu=0.002, blocked=wait, operators=[("streaming.base.dataset.StreamingDataset.get_item", wait, 0.001)]
    )
    plan = Plan(epochs=4, batches=80, workers=1, persistent=True, wait=wait, step=0.01, fetch=fetch, facts=facts)
    made = Made(folder)
    main = made.process()
    ended = made.loop(main, plan)
    for second in range(int(ended) + 1):
        made.host(second, busy=second, job=[(main.pid, second * 0.1), (main.pid + 1, second * 0.1)])
        if written is not None:
            made.lines[-1]["processes"][1]["written"] = round(32 * MIB + written * MIB * second / (ended / 4))
    return offered(made, ended)


def test_a_cache_that_drops_what_is_read_again_is_to_be_raised(tmp_path: Path, said: Check) -> None:
    advice = streamed(tmp_path / "r", 24.0)["larger-cache"]
    said("larger-cache", advice.action)
    assert advice.change["cache_limit"] == round(1.1 * 32 * MIB)
    assert advice.expected.speedup is None
    fetched = float(advice.why.split("fetched ")[1].split(" MB")[0])
    assert fetched == pytest.approx(24.0 * MIB / 1e6, rel=0.1)


def test_a_cache_too_small_for_the_places_that_are_interleaved(tmp_path: Path, said: Check) -> None:
    for few in (1.0, None, "many"):
        assert "fewer-canonical-nodes" not in streamed(
            tmp_path / f"few-{few}", 24.0, {**CACHED, "canonical_nodes": few}
        )
    advice = streamed(tmp_path / "many", 24.0, {**CACHED, "canonical_nodes": 16.0})["fewer-canonical-nodes"]
    said("fewer-canonical-nodes", f"{advice.action}\n{advice.why}")
    assert advice.expected.speedup is None


def test_a_cache_of_a_dataset_whose_size_is_not_known(tmp_path: Path, said: Check) -> None:
    facts = {"iterable": True, "cache_knob": "max_cache_size", "cache_bytes": 12 * MIB}
    advice = streamed(tmp_path / "r", 24.0, facts)["larger-cache"]
    said("larger-cache of a dataset of unknown size", advice.action)


@pytest.mark.parametrize(
    ("written", "facts", "wait"),
    [
        (1.0, CACHED, 0.05),
        (None, CACHED, 0.05),
        (24.0, {**CACHED, "cache_bytes": 64 * MIB}, 0.05),
        (24.0, {"iterable": True}, 0.05),
        (24.0, CACHED, 0.0005),
    ],
)
def test_a_cache_is_left_alone_where_nothing_is_fetched_again_or_nothing_waits(
    tmp_path: Path, written: float | None, facts: dict[str, Any], wait: float
) -> None:
    assert "larger-cache" not in streamed(tmp_path / "r", written, facts, wait)
