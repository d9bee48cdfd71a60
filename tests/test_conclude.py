"""From hand-made runs to conclusions: the stage that is known to limit each of them, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop
from truths import LOAD, NAMES, RESIZE, findings_named, in_stacks, light, recording_of, validating

from loaderprof.analyze.machine import busy_others
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings


@pytest.mark.parametrize("name", NAMES)
def test_a_run_made_to_be_limited_by_a_stage_is_limited_by_it(name: str) -> None:
    verdict = findings_named(name).verdict
    assert verdict.bottleneck == name
    assert verdict.confidence == ("low" if name == "unknown" else "high") or name == "contention"
    assert verdict.headline


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"unknown"}))
def test_waits_and_ceilings_are_those_of_the_run(name: str) -> None:
    found, recording = findings_named(name), recording_of(name)
    verdict = found.verdict
    assert verdict.wait_s is not None
    assert verdict.step_s is not None
    assert verdict.wait_share == pytest.approx(verdict.wait_s / verdict.step_s, abs=1e-3)
    assert verdict.ceiling_speedup is not None
    best = max(
        (cause.speedup_if_removed or 1.0 for cause in found.causes if cause.stage not in ("device", "host")),
        default=1.0,
    )
    assert best - 0.05 <= verdict.ceiling_speedup
    assert found.run.steps == recording.tables["take"]["count"].sum()


def test_a_known_wait_is_told_to_the_millisecond() -> None:
    verdict = findings_named("decode").verdict
    assert (verdict.wait_s, verdict.step_s) == pytest.approx((0.05, 0.06))
    # Without its 50 ms of loading, a step of 60 ms takes 10.
    assert verdict.ceiling_speedup == pytest.approx(6.0, rel=0.01)


def test_removing_a_stage_gains_what_arithmetic_says() -> None:
    found = {
        cause.stage: cause.speedup_if_removed for cause in findings_named("decode").causes if cause.status == "found"
    }
    # Of a batch's 60 ms decoding takes 40; 10 are the transform and what no timer told, 10 the step.
    assert found["decode"] == pytest.approx(60 / (60 - 40), rel=0.01)
    assert found["transform"] == pytest.approx(60 / (60 - 10), rel=0.01)


def test_under_twenty_steps_nothing_is_advised(said: Check) -> None:
    found = findings_named("unknown")
    assert (found.verdict.cause, found.advice, found.causes) == ("not-enough-evidence", (), ())
    said("under twenty steps", found.verdict.headline)
    assert found.verdict.ceiling_speedup is None


@pytest.mark.parametrize("name", ["none", "device"])
def test_where_the_loader_keeps_up_nothing_is_advised(name: str) -> None:
    assert findings_named(name).advice == ()


def test_stages_come_in_the_order_of_a_batch_and_their_pieces_add_up() -> None:
    for name in ("decode", "read", "collate", "transform"):
        stages = {stage.stage: stage for stage in findings_named(name).stages}
        assert list(stages)[:4] == ["read", "decode", "transform", "collate"]
        made = sum(stages[stage].s_per_batch or 0.0 for stage in ("read", "decode", "transform", "collate"))
        assert made == pytest.approx(0.05, rel=0.01)
        for stage in stages.values():
            if stage.by:
                assert sum(part.s_per_batch for part in stage.by) == pytest.approx(stage.s_per_batch)


def test_what_only_stacks_saw_is_told_by_the_line_they_were_in(tmp_path: Path) -> None:
    found = findings_of(in_stacks(tmp_path / "r"))
    assert found.verdict.bottleneck == "decode"
    assert "train.py:33" in found.verdict.headline
    (decode,) = [stage for stage in found.stages if stage.stage == "decode"]
    assert "stack" in decode.sources


def test_validation_that_takes_as_long_as_training_is_the_loops_own(tmp_path: Path) -> None:
    found = findings_of(validating(tmp_path / "r"))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("host", "validation")
    assert {loader.name for loader in found.loaders} == {"valid", "train"}


def two_loops(folder: Path, train_wait: float, valid_wait: float) -> Findings:
    """A job that trains on decoded images and then validates on transformed ones, equally often."""
    made = Made(folder)
    process, now = made.process(), 0.0
    for _ in range(3):
        for name, wait, operator in (("train", train_wait, LOAD), ("valid", valid_wait, RESIZE)):
            fetch = Fetch(cpu=wait, operators=[(operator, wait, wait)])
            plan = Plan(name=name, batches=30, wait=wait, step=0.01, workers=1, training=name == "train", fetch=fetch)
            now = made.loop(process, plan, now)
    made.finish(now)
    return findings_of(made.read())


def test_a_stage_is_weighed_over_all_loops_of_the_job(tmp_path: Path) -> None:
    mostly_training = two_loops(tmp_path / "train", 0.06, 0.005)
    mostly_validation = two_loops(tmp_path / "valid", 0.005, 0.06)
    assert mostly_training.verdict.bottleneck == "decode"
    assert mostly_validation.verdict.bottleneck in ("transform", "host")
    assert "valid" in {loader.name for loader in mostly_validation.loaders}
    names = [loader.name for loader in mostly_training.loaders]
    assert sorted(names) == ["train", "valid"]


def test_each_loader_has_its_own_verdict(tmp_path: Path) -> None:
    by_name = {loader.name: loader for loader in two_loops(tmp_path / "r", 0.06, 0.04).loaders}
    verdicts = {name: loader.verdict.bottleneck for name, loader in by_name.items() if loader.verdict}
    assert verdicts == {"train": "decode", "valid": "transform"}
    assert by_name["train"].epochs == 3
    assert by_name["train"].batches == 90
    assert by_name["train"].batch_size == 16
    assert by_name["train"].samples_per_s is not None


def test_two_training_loops_of_one_process_are_one_rank(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    now = made.loop(process, Plan(name="long", batches=50, step=0.02))
    made.loop(process, Plan(name="short", batches=30, step=0.01), now)
    (rank,) = findings_of(made.read()).ranks
    assert (rank.rank, rank.pid, rank.step_s) == (0, process.pid, pytest.approx(0.02))


@pytest.mark.parametrize("training", [True, False])
def test_every_rank_is_listed_and_the_slowest_one_decides(tmp_path: Path, training: bool) -> None:
    made = Made(tmp_path / "r", cores=16)
    for rank in range(3):
        process = made.process(environment={"RANK": str(rank), "WORLD_SIZE": "3"})
        fetch = Fetch(cpu=0.03, operators=[(LOAD, 0.03, 0.03)]) if rank == 1 else light(cpu=0.001)
        made.loop(process, Plan(wait=fetch.wall(0), step=0.02, training=training, fetch=fetch))
    found = findings_of(made.read())
    assert [rank.rank for rank in found.ranks] == [0, 1, 2]
    assert found.run.world_size == 3
    assert found.verdict.bottleneck == "decode"
    assert found.verdict.wait_s == pytest.approx(0.03)


def test_a_run_without_a_loader_says_so(said: Check) -> None:
    verdict = _empty().verdict
    assert (verdict.bottleneck, verdict.cause) == ("unknown", "no-loader")
    said("no loader", verdict.headline)


def _empty() -> Findings:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return findings_of(Made(Path(folder) / "r").read())


def test_other_programs_are_what_the_host_did_and_the_job_did_not(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    for second in range(6):
        made.host(second, busy=3.0 * second, job=[(1, 1.5 * second), (2, 0.5 * second)])
    assert busy_others(made.read()) == pytest.approx(1.0)


def test_a_process_that_ended_is_no_other_program(tmp_path: Path) -> None:
    # A worker a second, each of which uses one core and ends before the next sample.
    made = Made(tmp_path / "r")
    for second in range(6):
        made.host(second, busy=1.5 * second, job=[(1, 0.5 * second), (100 + second, 0.0)], ended=[(1, 1.0 * second)])
    assert busy_others(made.read()) == pytest.approx(0.0, abs=0.01)


def test_too_few_host_samples_measure_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    for second in range(2):
        made.host(second, busy=second, job=[])
    assert busy_others(made.read()) is None


def test_a_busy_machine_lowers_the_confidence(tmp_path: Path) -> None:
    plan = Plan(wait=0.05, fetch=Fetch(cpu=0.05, operators=[(LOAD, 0.04, 0.04)]))
    found = []
    for name, others in (("quiet", 0.0), ("busy", 4.0)):
        made = Made(tmp_path / name, cores=8)
        process = made.process()
        ended = made.loop(process, plan)
        for second in range(6):
            made.host(second, busy=second * (1 + others), job=[(process.pid, second)])
        made.finish(ended)
        found.append(findings_of(made.read()).verdict)
    assert [verdict.confidence for verdict in found] == ["high", "medium"]
    assert {verdict.bottleneck for verdict in found} == {"decode"}


def test_risks_name_what_may_end_the_next_run(tmp_path: Path) -> None:
    made = Made(tmp_path / "r", cores=2)
    process = made.process()
    made.loop(process, Plan(workers=4, step=0.02, wait=0.001, fetch=light()))
    process.size(0, 400_000_000, 16)
    made.lines.append({"t": 5, "shm": {"total": 1_000_000_000, "free": 1}})
    risks = {risk.id: risk for risk in findings_of(made.read()).risks}
    assert set(risks) == {"workers-over-budget", "shared-memory"}
    assert (risks["workers-over-budget"].value, risks["workers-over-budget"].limit) == (4, 2)
    assert risks["shared-memory"].value == 4 * 2 * 400_000_000


def test_our_own_cost_is_counted(tmp_path: Path) -> None:
    made = Made(tmp_path / "r", sampler_cpu_s=0.5)
    ended = made.loop(made.process(), Plan(wait=0.01, fetch=light()))
    made.finish(ended)
    overhead = findings_of(made.read()).run.overhead
    assert overhead.sampler_cpu_s == 0.5
    assert overhead.capture_cpu_s is not None
    assert 0 < overhead.capture_cpu_s < 0.1


def test_an_iterator_made_for_every_batch_is_start_up(tmp_path: Path, said: Check) -> None:
    # `next(iter(loader))`: each batch waits 0.3 s for new workers, which make it in 10 ms.
    plan = Plan(epochs=30, batches=1, workers=2, startup=0.02, wait=0.3, shutdown=0.0, step=0.02, fetch=light(cpu=0.01))
    found = findings_of(one_loop(tmp_path / "r", plan))
    assert found.verdict.bottleneck == "startup"
    said("an iterator for every batch", found.verdict.headline)
    assert " 9." in found.verdict.headline


@pytest.mark.parametrize(
    ("blocked", "count"),
    # Waits that making a batch explains; waits that it explains but for a little, and hardly at all.
    [(0.1, 0), (0.092, 1), (0.05, 1)],
)
def test_a_replay_that_does_not_reproduce_its_run_is_told(
    tmp_path: Path, said: Check, blocked: float, count: int
) -> None:
    plan = Plan(wait=0.1, step=0.01, fetch=Fetch(blocked=blocked))
    notes = [each for each in findings_of(one_loop(tmp_path / "r", plan)).run.notes if each.startswith("the replay of")]
    assert len(notes) == count
    said(f"a replay of {blocked} s where the run had 0.1 s", "\n".join(notes))
