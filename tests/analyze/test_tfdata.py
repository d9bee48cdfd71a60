"""tf.data pipelines on recordings made by hand: stages by operation, verdict and advice of pipelines whose costs are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made import Made, Process, ns, span

from loaderprof.analyze.tfdata import family, pipeline_of
from loaderprof.analyze.timeline import build
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings
from loaderprof.recording import journal as layout
from loaderprof.recording import reader

BATCHES, EPOCHS, READ_EVERY = 60, 3, 20


@dataclass(frozen=True)
class Running:
    """One node as TensorFlow runs it: seconds a batch, elements a batch, calls at once."""

    name: str
    work: float = 0.0
    elements: int = 1
    parallelism: int = 0
    tunable: bool = False


def operation(kind: str, **facts: Any) -> dict[str, Any]:
    return {"op": kind, "where": "/home/me/train.py:12", **facts}


DECODE = operation("Map", function="load", told=["DecodeJpeg", "ReadFile"], words=[], random=False)
PYTHON = operation("Map", function="fetch", told=["EagerPyFunc"], words=["open"], random=False)
BATCH = operation("Batch", size=8)
SERIAL = (Running("Root"), Running("BatchV2", 0.001), Running("Map", 0.03, 8), Running("TensorSlice", 0.0001, 8))
AHEAD = (Running("Root"), Running("Prefetch"), Running("BatchV2", 0.001), Running("Map", 0.03, 8))


def write_reading(
    process: Process, number: int, moment: float, batches: int, nodes: tuple[Running, ...], cpu: float
) -> None:
    for place, node in enumerate(nodes):
        process.journal.write(
            layout.NODE,
            node.tunable,
            0,
            number,
            ns(moment),
            place,
            place - 1,
            100 * number + place,
            process.journal.text(node.name),
            node.elements * batches,
            span(node.work * batches),
            node.parallelism,
            0,
            0,
            1000 * node.elements * batches,
            span(cpu * batches),
            0,
        )


def made(
    folder: Path,
    nodes: tuple[Running, ...],
    operations: list[dict[str, Any]],
    *,
    wait: float,
    step: float,
    cpu: float,
    calls: tuple[float, float] | None = None,
) -> Made:
    """Make a recording of a loop; `calls`: wall and CPU seconds of each timed Python function."""
    recorded = Made(folder, cores=2.0)
    process, now = recorded.process(torch=None), 0.0
    facts = {
        "name": "train",
        "where": "/home/me/train.py:20",
        "num_workers": 0,
        "watched": True,
        "dataset": "tf.data",
        "batch_size": 8,
        "tensorflow": "2.21.0",
        "pipeline": json.dumps(operations),
    }
    for _ in range(EPOCHS):
        number = process.iterator(facts, now, now)
        for batch in range(BATCHES + 1):
            if batch % READ_EVERY == 0:
                write_reading(process, number, now, batch, nodes, cpu)
            if batch < BATCHES:
                process.take(number, now, now + wait)
                now += wait + step
        process.end(number, now, now)
    for batch in range(20 if calls else 0):
        process.journal.write(layout.CALL, 0, 0, ns(batch), ns(batch + calls[0]), span(calls[1]), 0)
    recorded.finish(now)
    return recorded


def found(*arguments: Any, **keywords: Any) -> Findings:
    return findings_of(reader.read(made(*arguments, **keywords).folder))


def test_nodes_are_matched_with_the_users_operations(tmp_path: Path) -> None:
    nodes = (
        Running("Root"),
        Running("Prefetch"),
        Running("MapAndBatch", 0.004, parallelism=2),
        Running("ParallelMapV2", 0.03, 8, 2, True),
    )
    operations = [
        operation("Prefetch"),
        BATCH,
        operation("Map", function="small", told=[]),
        DECODE,
        operation("Repeat"),
    ]
    seen = reader.read(made(tmp_path / "r", nodes, operations, wait=0.02, step=0.005, cpu=0.03).folder)
    pipeline = pipeline_of(seen, build(seen).loops[0], 0.005)
    assert pipeline is not None
    assert [(node.label, node.stage) for node in pipeline.nodes[2:]] == [
        ("map(small)", "transform"),
        ("map(load)", "decode"),
    ]
    assert pipeline.nodes[3].work_s == pytest.approx(0.03)
    assert pipeline.nodes[3].elements == pytest.approx(8)
    assert pipeline.nodes[3].operation is not None
    assert pipeline.nodes[3].operation.where == "train.py:12"
    assert pipeline.batches == EPOCHS * BATCHES


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("ParallelMapV2", "map"),
        ("MapAndBatch", "map"),
        ("ParallelInterleaveV4", "interleave"),
        ("ParallelBatch", "batch"),
        ("MemoryCache", "cache"),
        ("ShuffleV3", "shuffle"),
        ("TFRecord", "file"),
        ("Root", "other"),
    ],
)
def test_families(name: str, does: str) -> None:
    assert family(name) == does


def test_a_serial_map_is_the_limit_and_is_told_what_it_gains(tmp_path: Path) -> None:
    seen = found(tmp_path / "r", SERIAL, [BATCH, DECODE, operation("TensorSlice")], wait=0.031, step=0.01, cpu=0.04)
    assert (seen.verdict.bottleneck, seen.verdict.cause) == ("decode", "jpeg-decode")
    assert seen.verdict.wait_share == pytest.approx(0.756, abs=0.01)
    assert "map(load), train.py:12" in seen.verdict.headline
    assert seen.verdict.ceiling_speedup == pytest.approx(4.1, abs=0.1)
    advice = {each.id: each for each in seen.advice}
    # Two calls at once on two cores: the step and what is left of the pipeline are 40 ms of CPU, that is 20 ms a batch.
    assert advice["parallel-calls"].expected.speedup == pytest.approx(0.041 / 0.02, rel=0.05)
    assert advice["parallel-calls"].change == {"tf.num_parallel_calls": "AUTOTUNE"}
    # Ahead of the step: 31 ms of work beside 10 ms.
    assert advice["prefetch"].expected.speedup == pytest.approx(0.041 / 0.031, rel=0.05)
    assert advice["cache"].expected.speedup == pytest.approx(0.041 / 0.011, rel=0.08)
    assert advice["cache"].costs.memory_bytes == 1000 * 8 * BATCHES
    stages = {each.stage: each for each in seen.stages}
    assert stages["decode"].s_per_batch == pytest.approx(0.03)
    assert stages["decode"].by[0].name == "map(load)"


@pytest.mark.parametrize(
    ("cpu", "call_cpu", "limit", "change", "speedup"),
    [
        (0.005, 0.0002, ("read", "waiting-read"), {"tf.num_parallel_calls": 16, "tf.private_threadpool_size": 16}, 3.1),
        # 40 ms of CPU on two cores are 20 ms a batch.
        (0.04, 0.0039, ("transform", "slow-transform"), {"tf.num_parallel_calls": "AUTOTUNE"}, 0.031 / 0.02),
    ],
    ids=["waits", "computes"],
)
def test_python_that_waits_reads_and_what_computes_transforms(
    cpu: float, call_cpu: float, limit: tuple[str, str], change: dict[str, Any], speedup: float, tmp_path: Path
) -> None:
    operations = [operation("Prefetch"), BATCH, PYTHON]
    seen = found(tmp_path / "r", AHEAD, operations, wait=0.021, step=0.01, cpu=cpu, calls=(0.004, call_cpu))
    assert (seen.verdict.bottleneck, seen.verdict.cause) == limit
    parallel = next(each for each in seen.advice if each.id == "parallel-calls")
    assert parallel.change == change
    assert parallel.expected.speedup == pytest.approx(speedup, abs=0.1)


def test_what_is_tuned_or_random_already_is_not_advised(tmp_path: Path) -> None:
    nodes = (Running("Root"), Running("Prefetch"), Running("ParallelMapV2", 0.03, 8, 1, True))
    random = operation("ParallelMap", function="augment", told=[], random=True)
    seen = found(tmp_path / "r", nodes, [operation("Prefetch"), random], wait=0.02, step=0.01, cpu=0.03)
    assert seen.verdict.bottleneck == "transform"
    assert [each.id for each in seen.advice] == ["cheaper-function"]


def test_a_pipeline_that_keeps_up_behind_a_long_step(tmp_path: Path) -> None:
    nodes = (Running("Root"), Running("Prefetch"), Running("ParallelMapV2", 0.004, 8, 2, True))
    seen = found(tmp_path / "r", nodes, [operation("Prefetch"), DECODE], wait=0.0002, step=0.05, cpu=0.05)
    assert seen.verdict.bottleneck == "device"
    assert seen.advice == ()


def test_a_pipeline_whose_model_was_not_read_is_no_verdict(tmp_path: Path) -> None:
    seen = found(tmp_path / "r", (), [BATCH, DECODE], wait=0.03, step=0.01, cpu=0.04)
    assert seen.verdict.bottleneck == "unknown"
    assert "autotune" in seen.verdict.headline
    assert seen.verdict.wait_s == pytest.approx(0.03)
    assert all(each.s_per_batch is None for each in seen.stages if each.stage != "device")
