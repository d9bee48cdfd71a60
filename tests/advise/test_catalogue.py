"""Advice on hand-made runs: only what gains, never what is set already, never beyond the budget, always an interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import Fetch, Made, Plan, one_loop
from truths import LOAD, NAMES, RESIZE, findings_named, light

from loaderprof.advise.weigh import MIN_SPEEDUP
from loaderprof.conclude import findings_of
from loaderprof.findings import Advice, Findings

DECODING = Fetch(cpu=0.05, operators=[(LOAD, 0.04, 0.04), (RESIZE, 0.005, 0.005)])


def offered(found: Findings) -> dict[str, Advice]:
    return {advice.id: advice for advice in found.advice}


def is_sound(found: Findings, cores: float) -> None:
    """What holds for any advice on any run."""
    ids = [advice.id for advice in found.advice]
    assert len(set(ids)) == len(ids)
    joint = [advice for advice in found.advice if "+" in advice.id]
    assert not joint or joint == [found.advice[-1]]
    for advice in joint:
        singles = [each.expected for each in found.advice if each.id in advice.id.split("+")]
        assert singles
        assert all((advice.expected.speedup or 0) >= (each.speedup or 0) for each in singles)
    lows = [advice.expected.low for advice in found.advice if "+" not in advice.id]
    assert lows == sorted(lows, key=lambda low: -(low or 0))
    for advice in found.advice:
        speedup, low, high = advice.expected.speedup, advice.expected.low, advice.expected.high
        assert speedup is not None
        assert low is not None
        assert high is not None
        assert 0 < low <= speedup <= high
        assert speedup >= MIN_SPEEDUP
        for key, value in advice.change.items():
            assert advice.current.get(key) != value
        if "num_workers" in advice.change:
            assert advice.change["num_workers"] <= max(1, int(cores))
        if advice.expected.samples_per_s is not None:
            rate = advice.expected.samples_per_s / speedup
            assert rate == pytest.approx(found.loaders[0].samples_per_s, rel=0.01)
        assert advice.action[0].isupper()
        assert not advice.action.endswith(".")
        assert advice.why.endswith(".")
        assert advice.measured is None


@pytest.mark.parametrize("name", NAMES)
def test_advice_on_known_runs_is_sound(name: str) -> None:
    is_sound(findings_named(name), 4 if name == "contention" else 8)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cpu=st.floats(1e-4, 0.1),
    blocked=st.floats(0, 0.1),
    step=st.floats(1e-3, 0.1),
    workers=st.integers(0, 6),
    cores=st.floats(0.5, 12),
    epochs=st.integers(1, 3),
    persistent=st.booleans(),
    pinned=st.booleans(),
)
def test_advice_on_any_run_is_sound(
    tmp_path_factory: pytest.TempPathFactory,
    cpu: float,
    blocked: float,
    step: float,
    workers: int,
    cores: float,
    epochs: int,
    persistent: bool,
    pinned: bool,
) -> None:
    fetch = Fetch(cpu=cpu, blocked=blocked, operators=[("io.open", blocked, 0.0), (LOAD, cpu, cpu)])
    wait = max(0.0, (cpu + blocked) / workers - step) if workers else cpu + blocked
    plan = Plan(
        epochs=epochs,
        batches=30,
        workers=workers,
        wait=wait,
        step=step,
        persistent=persistent,
        fetch=fetch,
        startup=0.05,
        facts={"pin_memory": pinned},
    )
    is_sound(findings_of(one_loop(tmp_path_factory.mktemp("any") / "r", plan, cores)), cores)


def test_more_workers_gain_what_they_make(tmp_path: Path) -> None:
    plan = Plan(workers=1, wait=0.04, step=0.01, fetch=DECODING)
    advice = offered(findings_of(one_loop(tmp_path / "r", plan)))["num-workers"]
    # 50 ms of making for each 10 ms of step keep five workers busy.
    assert advice.change == {"num_workers": 5}
    assert advice.current == {"num_workers": 1}
    assert advice.action == "Raise num_workers from 1 to 5"
    assert advice.expected.speedup == pytest.approx(5, rel=0.12)
    assert advice.costs.cores == 4
    assert advice.where == "/home/me/train.py:50"
    assert "num_workers=5" in advice.code


@pytest.mark.parametrize(("cores", "workers"), [(1.0, None), (2.5, 2), (3.0, 3), (64.0, 5)])
def test_no_more_workers_are_advised_than_the_budget_has_cores(
    tmp_path: Path, cores: float, workers: int | None
) -> None:
    # A step on another device needs no core of these.
    plan = Plan(workers=1, wait=0.04, step=0.01, step_cpu=0.0, fetch=DECODING)
    advice = offered(findings_of(one_loop(tmp_path / "r", plan, cores))).get("num-workers")
    assert (advice.change["num_workers"] if advice else None) == workers


def test_ranks_of_a_host_share_its_cores(tmp_path: Path) -> None:
    made = Made(tmp_path / "r", cores=8)
    for rank in range(4):
        process = made.process(environment={"RANK": str(rank), "WORLD_SIZE": "4"})
        made.loop(process, Plan(workers=1, wait=0.04, step=0.01, step_cpu=0.0, fetch=DECODING))
    advice = offered(findings_of(made.read()))["num-workers"]
    assert advice.change == {"num_workers": 2}


def test_what_is_set_already_is_not_advised(tmp_path: Path) -> None:
    restarting = offered(findings_named("startup"))
    assert restarting["persistent-workers"].change == {"persistent_workers": True}
    plan = Plan(epochs=6, batches=30, workers=2, startup=0.8, wait=1e-4, persistent=True, fetch=light())
    assert "persistent-workers" not in offered(findings_of(one_loop(tmp_path / "r", plan)))


def test_spawned_workers_are_advised_to_be_forked(tmp_path: Path) -> None:
    # Two seconds until the first batch of each epoch: two interpreters that import torch, and the dataset's own set-up.
    plan = Plan(epochs=6, batches=30, workers=2, startup=2.0, wait=1e-4, step=0.01, fetch=light())
    spawned = one_loop(tmp_path / "s", dataclasses.replace(plan, facts={"start_method": "spawn"}))
    advice = offered(findings_of(spawned))["start-method"]
    assert advice.change == {"multiprocessing_context": "fork"}
    assert advice.current == {"multiprocessing_context": "spawn"}
    assert advice.expected.low is not None
    assert advice.expected.high is not None
    # How much of the set-up is the dataset's is not known.
    assert 1.0 < advice.expected.low < advice.expected.high / 1.5
    for method in ("fork", None):
        other = one_loop(tmp_path / f"o{method}", dataclasses.replace(plan, facts={"start_method": method}))
        assert "start-method" not in offered(findings_of(other))


def test_kept_workers_set_up_once_however_many_epochs_follow(tmp_path: Path) -> None:
    # 0.5 s of set-up for each 60 ms of steps: in a long job one start in twelve is not what stays.
    fetch = Fetch(cpu=lambda task: 0.5 if task < 2 else 0.002)
    plan = Plan(epochs=12, batches=6, workers=2, wait=lambda batch: 0.0 if batch else 0.5, step=0.01, fetch=fetch)
    found = findings_of(one_loop(tmp_path / "r", plan))
    expected = offered(found)["persistent-workers"].expected
    assert expected.speedup == pytest.approx(0.56 / 0.06, rel=0.1)
    # The pace is the job's, borders included.
    assert found.loaders[0].samples_per_s == pytest.approx(6 * 16 / 0.56, rel=0.01)
    assert expected.samples_per_s == pytest.approx(6 * 16 / 0.06, rel=0.1)


def test_where_no_worker_made_a_second_batch_set_up_is_not_told_from_work(tmp_path: Path) -> None:
    plan = Plan(epochs=40, batches=2, workers=2, startup=0.1, wait=0.1, step=0.01, fetch=Fetch(cpu=0.2))
    expected = offered(findings_of(one_loop(tmp_path / "r", plan)))["persistent-workers"].expected
    assert expected.speedup is not None
    assert expected.high is not None
    assert expected.speedup < 2
    assert expected.low == 1.0
    assert expected.high > 10


def test_a_gain_of_another_loop_counts_for_its_share_of_the_job(tmp_path: Path) -> None:
    made, now = Made(tmp_path / "r"), 0.0
    process = made.process()
    fetch = Fetch(cpu=lambda task: 0.5 if task < 2 else 0.002)
    now = made.loop(process, Plan(name="train", batches=400, workers=1, fetch=light()))
    val = Plan(
        name="val",
        epochs=12,
        batches=6,
        workers=2,
        wait=lambda batch: 0.0 if batch else 0.5,
        fetch=fetch,
        training=False,
    )
    made.finish(made.loop(process, val, now))
    found = findings_of(made.read())
    expected = offered(found)["persistent-workers"].expected
    # 4 s of training stay, and of 6.7 s of validation 0.7.
    assert expected.speedup == pytest.approx((4 + 12 * 0.56) / (4 + 12 * 0.06), rel=0.1)


def straggling(folder: Path, torch: str = "2.7.1", **facts: Any) -> dict[str, Advice]:
    made = Made(folder)
    fetch = light(cpu=lambda i: 0.25 if i % 15 == 14 else 0.01)
    plan = Plan(workers=2, wait=lambda i: 0.2 if i % 15 == 14 else 0.0, fetch=fetch, facts=facts)
    made.loop(made.process(torch=torch), plan)
    return offered(findings_of(made.read()))


def test_taking_batches_out_of_order_needs_a_torch_that_can(tmp_path: Path) -> None:
    assert straggling(tmp_path / "new")["out-of-order"].change == {"in_order": False}
    assert "out-of-order" not in straggling(tmp_path / "old", torch="2.6.0+cu124")
    assert "out-of-order" not in straggling(tmp_path / "odd", torch="unknown")
    assert "out-of-order" not in straggling(tmp_path / "set", in_order=False)


def test_a_cache_is_offered_where_the_samples_fit_in_memory(tmp_path: Path) -> None:
    for available, fits in ((10**9, True), (10**6, False), (None, False)):
        made = Made(tmp_path / str(available))
        process = made.process()
        made.loop(process, Plan(wait=0.05, fetch=DECODING, facts={"samples": 1000}))
        process.size(-1, 160_000, 16)
        if available is not None:
            made.lines.append({"t": 5, "memory": {"total": 10**10, "available": available}})
        found = offered(findings_of(made.read()))
        assert ("cache-in-memory" in found) == fits
        if fits:
            advice = found["cache-in-memory"]
            # What comes out of the transform is known, not what goes into it.
            assert advice.costs.memory_bytes is None
            assert advice.change["kind"] == "cache"
            assert advice.expected.speedup == pytest.approx(60 / 20, rel=0.02)


def test_what_a_cache_takes_is_known_where_nothing_follows_the_decoder(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    decoding = Fetch(cpu=0.05, operators=[(LOAD, 0.05, 0.05)])
    made.loop(process, Plan(wait=0.05, fetch=decoding, facts={"samples": 1000}))
    process.size(-1, 160_000, 16)
    made.lines.append({"t": 5, "memory": {"total": 10**10, "available": 10**9}})
    assert offered(findings_of(made.read()))["cache-in-memory"].costs.memory_bytes == 1000 * 10_000


def test_pinning_is_for_a_cuda_device_only() -> None:
    assert all("pin-memory" not in offered(findings_named(name)) for name in NAMES)


def test_latency_that_may_be_saturation_is_promised_with_care() -> None:
    advice = offered(findings_named("read"))
    assert {"num-workers", "overlapped-reads"} <= set(advice)
    assert advice["num-workers"].expected.low == 1.0
    assert advice["overlapped-reads"].expected.low == 1.0


def test_a_watched_iterable_has_no_workers_to_raise(tmp_path: Path) -> None:
    found = findings_of(one_loop(tmp_path / "r", Plan(wait=0.05, fetch=DECODING, facts={"watched": True})))
    assert "num-workers" not in offered(found)
    assert "faster-decoder" in offered(found)


def test_threads_are_advised_against_where_they_contend() -> None:
    advice = offered(findings_named("contention"))["single-threaded-workers"]
    assert advice.change["kind"] == "code"
    assert advice.current == {"threads_per_worker": pytest.approx(4.0)}


def test_a_loops_own_python_is_named_with_its_line() -> None:
    assert offered(findings_named("host"))["lighter-loop"].where == "train.py:60"


def handing_over(folder: Path, **fetch: Any) -> dict[str, Advice]:
    """Two workers that take 20 ms to make a batch and 10 to pickle it, and a loop that receives for 18 ms."""
    made = light(cpu=0.02, pickle=0.01, **fetch)
    return offered(findings_of(one_loop(folder, Plan(workers=2, wait=0.02, receive=0.018, fetch=made))))


def test_arrays_are_told_to_become_tensors(tmp_path: Path) -> None:
    advice = handing_over(tmp_path / "r", batch_bytes=1 << 20, pickled_bytes=1 << 20)["shared-memory"]
    assert advice.action == "Return tensors, not arrays: they pass through shared memory"
    # The loop's 28 ms become its step and next to nothing, but a worker's 20 ms for two batches are not its limit.
    assert advice.expected.speedup == pytest.approx(28.0 / 10.6, rel=0.15)
    assert advice.costs.memory_bytes == 1 << 20


def test_many_tensors_are_told_to_be_stacked(tmp_path: Path) -> None:
    advice = handing_over(tmp_path / "many", batch_bytes=10**5, tensors=250)
    assert advice["fewer-tensors"].change == {"kind": "code", "tensors": 4}
    assert advice["fewer-tensors"].current == {"tensors": 250}
    assert (advice["fewer-tensors"].expected.low or 0) > 2
    assert "shared-memory" not in advice
    few = handing_over(tmp_path / "few", batch_bytes=10**5, tensors=3)
    assert not {"fewer-tensors", "shared-memory"} & few.keys()


def test_objects_gain_less_for_sure_than_arrays_do(tmp_path: Path) -> None:
    objects = {"batch_bytes": 6000, "tensors": 0, "leaves": 9000, "pickled_bytes": 150_000}
    advice = handing_over(tmp_path / "r", **objects)["shared-memory"]
    assert advice.current == {"batches": "objects"}
    expected = advice.expected
    assert (expected.low or 0) < (expected.speedup or 0) < (expected.high or 0)


@pytest.mark.parametrize(("cpu", "offered_"), [(0.002, True), (0.02, False)])
def test_no_workers_are_advised_only_where_batches_are_cheap_to_make(
    tmp_path: Path, cpu: float, offered_: bool
) -> None:
    fetch = light(cpu=cpu, pickle=0.01, batch_bytes=10**5, tensors=250)
    advice = offered(findings_of(one_loop(tmp_path / "r", Plan(workers=2, wait=0.02, receive=0.018, fetch=fetch))))
    assert ("no-workers" in advice) == offered_
    if offered_:
        # 28 ms a step become 2 ms of making and a step of 10 ms, of which letting go of 250 tensors took 2 ms.
        assert advice["no-workers"].change == {"num_workers": 0}
        assert advice["no-workers"].expected.speedup == pytest.approx(30 / 10, rel=0.1)


def test_a_cheaper_sampler_gains_half_of_its_cost_to_all_of_it(tmp_path: Path) -> None:
    facts = {"batch_sampler": "__main__.HardMining", "sampler_where": "/home/me/train.py:12"}
    plan = Plan(workers=2, wait=0.03, index=0.03, receive=0.0, fetch=light(), facts=facts)
    advice = offered(findings_of(one_loop(tmp_path / "r", plan)))["cheaper-sampler"]
    assert (advice.where, advice.why.split()[0]) == ("train.py:12", "HardMining")
    assert "at once" in advice.action
    assert (advice.expected.low or 0) <= 40 / 25 < (advice.expected.speedup or 0)
    assert (advice.expected.high or 0) >= 40 / 10.5


def test_a_sampler_that_draws_too_much_at_once_is_told_to_draw_less() -> None:
    advice = offered(findings_named("sampler"))["cheaper-sampler"]
    assert "only the indices" in advice.action
    assert advice.why == "MySampler takes 0.3 s at the start of every epoch, before the first batch."


def test_advice_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings_named("decode").advice[0].id = "other"  # type: ignore[misc]


def test_rows_of_tensors_are_better_taken_as_a_slice(tmp_path: Path) -> None:
    facts = {"dataset": "torch.utils.data.dataset.TensorDataset", "samples": 1000}
    plan = Plan(wait=0.05, fetch=Fetch(cpu=0.05, collate=0.02), facts=facts)
    found = findings_of(one_loop(tmp_path / "r", plan))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("read", "rows-of-tensors")
    advice = offered(found)["slice-batches"].expected
    # Of a batch's 60 ms, 50 are fetching and stacking rows; they become 2.4 to 13 times as fast.
    assert advice.low == pytest.approx(60 / (10 + 50 / 2.4), rel=0.1)
    assert advice.high == pytest.approx(60 / (10 + 50 / 13), rel=0.15)
    assert "cache-in-memory" not in offered(found)


def test_an_archive_that_every_sample_opens_is_to_be_kept_open(tmp_path: Path) -> None:
    # 36 of 50 ms are opening the archive and reading its index up to the member; two workers on eight cores.
    opening = [("tarfile.open", 0.006, 0.006), ("tarfile.TarFile.next", 0.03, 0.03)]
    fetch = Fetch(cpu=0.05, operators=[*opening, (LOAD, 0.014, 0.014)])
    found = findings_of(one_loop(tmp_path / "r", Plan(workers=2, wait=0.024, step=0.001, step_cpu=0.0, fetch=fetch)))
    assert offered(found)["keep-open"].expected.speedup == pytest.approx(50 / 14, rel=0.06)
    once = Fetch(cpu=0.05, operators=[("tarfile.open", 0.001, 0.001), (LOAD, 0.049, 0.049)])
    kept = findings_of(one_loop(tmp_path / "kept", Plan(workers=2, wait=0.024, step=0.001, fetch=once)))
    assert "keep-open" not in offered(kept)


def test_reads_that_are_asked_for_together_are_not_to_be_overlapped(tmp_path: Path) -> None:
    waiting = [("socket.SocketIO.readinto", 0.05, 0.0)]
    plan = Plan(workers=2, wait=0.02, step=0.005, fetch=Fetch(cpu=0.001, blocked=0.05, operators=waiting))
    assert "overlapped-reads" in offered(findings_of(one_loop(tmp_path / "one", plan)))
    at_once = [*waiting, ("__main__.Remote.__getitems__@/home/me/train.py:20", 0.001, 0.001)]
    plan = dataclasses.replace(plan, fetch=Fetch(cpu=0.001, blocked=0.05, operators=at_once))
    assert "overlapped-reads" not in offered(findings_of(one_loop(tmp_path / "all", plan)))


def test_one_slow_read_among_quick_ones_overlaps_with_nothing(tmp_path: Path) -> None:
    def blocked(task: int) -> float:
        return 0.6 if task % 20 == 7 else 0.004

    fetch = Fetch(cpu=0.001, blocked=blocked, operators=[("socket.SocketIO.readinto", 0.004, 0.0)])
    plan = Plan(workers=2, wait=lambda batch: 0.58 if batch % 20 == 7 else 0.0, step=0.005, fetch=fetch)
    advice = offered(findings_of(one_loop(tmp_path / "r", plan))).get("overlapped-reads")
    assert advice is None or (advice.expected.speedup or 0.0) < 1.1
