"""Other settings in the model: what is added where workers come, taken away where they go, and spread over larger batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Fetch, Plan, one_loop

from loaderprof.advise.whatif import SATURATED
from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.timeline import build
from loaderprof.conclude import predict as predict_each
from loaderprof.findings import Expected
from loaderprof.recording.reader import Recording
from loaderprof.replay.edits import SHARE_PER_TENSOR_S, with_batch_size, with_settings
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import LoopModel


def modelled(folder: Path, plan: Plan, size: tuple[float, float] | None = None) -> LoopModel:
    recording = one_loop(folder, plan)
    (loop,) = build(recording).loops
    base = fit_model(loop, break_down(recording, loop), 8.0, None, size=size)
    assert base is not None
    return base


def test_workers_that_come_hand_over_and_those_that_go_do_not(tmp_path: Path) -> None:
    alone = modelled(tmp_path / "r", Plan(wait=0.02, step=0.01, fetch=Fetch(cpu=0.02)), size=(1e6, 3.0))
    two = with_settings(alone, num_workers=2)
    assert two.settings.num_workers == 2
    assert two.costs.receive_cpu_s > 0
    assert two.costs.fetch_cpu_s.mean() > alone.costs.fetch_cpu_s.mean()
    back = with_settings(two, num_workers=0)
    assert back.costs.receive_cpu_s == 0
    assert back.costs.fetch_cpu_s.mean() == pytest.approx(alone.costs.fetch_cpu_s.mean())
    assert back.run().wait_s == pytest.approx(0.02, rel=0.01)


def test_other_settings_leave_the_costs_alone(tmp_path: Path) -> None:
    base = modelled(tmp_path / "r", Plan(workers=1, wait=0.02, step=0.01, fetch=Fetch(cpu=0.03)))
    more = with_settings(base, num_workers=3, in_order=False)
    assert more.costs is base.costs
    assert (more.settings.num_workers, more.settings.in_order) == (3, False)


@pytest.mark.parametrize("ratio", [0.5, 2.0, 3.0])
def test_a_larger_batch_costs_what_its_samples_do(tmp_path: Path, ratio: float) -> None:
    plan = Plan(workers=2, wait=0.02, step=0.01, fetch=Fetch(cpu=lambda n: 0.01 + 0.001 * (n % 7), blocked=0.005))
    base = modelled(tmp_path / "r", plan)
    larger = with_batch_size(base, ratio, growth=0.0, cpu_growth=0.0)
    assert larger.costs.fetch_cpu_s.mean() == pytest.approx(ratio * base.costs.fetch_cpu_s.mean(), rel=0.01)
    assert larger.costs.fetch_blocked_s.mean() == pytest.approx(ratio * base.costs.fetch_blocked_s.mean(), rel=0.01)
    assert larger.costs.step_cpu_s.mean() == base.costs.step_cpu_s.mean()
    assert larger.batches_per_epoch == round(base.batches_per_epoch / ratio)
    spread = np.std(larger.costs.fetch_cpu_s) / np.mean(larger.costs.fetch_cpu_s)
    before = np.std(base.costs.fetch_cpu_s) / np.mean(base.costs.fetch_cpu_s)
    # Slow samples and quick ones even out in larger batches; of smaller ones nothing is known.
    assert spread < 0.8 * before if ratio > 1 else spread == pytest.approx(before)
    grown = with_batch_size(base, ratio, growth=0.0, cpu_growth=1.0)
    assert grown.costs.step_cpu_s.mean() == pytest.approx(ratio * base.costs.step_cpu_s.mean())


def test_a_tensor_is_handed_over_at_the_same_price_however_large(tmp_path: Path) -> None:
    plan = Plan(workers=2, wait=0.02, step=0.001, fetch=Fetch(cpu=0.01, pickle=0.01))
    base = modelled(tmp_path / "r", plan, size=(1e3, 100.0))
    fixed = 100 * SHARE_PER_TENSOR_S
    larger = with_batch_size(base, 2.0, growth=0.0, cpu_growth=0.0)
    assert larger.costs.fetch_cpu_s.mean() == pytest.approx(2 * (0.02 - fixed) + fixed, rel=0.01)
    assert larger.batch.pickle_s == pytest.approx(2 * (0.01 - fixed) + fixed)


def predict(recording: Recording, settings: dict[str, Any]) -> Expected | None:
    (found,) = predict_each(recording, [settings])
    return found


def recorded(folder: Path, plan: Plan) -> Recording:
    return one_loop(folder, plan, cores=8.0)


def test_settings_of_the_users_own_are_predicted(tmp_path: Path) -> None:
    # One worker needs 40 ms a batch, the step takes 10: four make it ten.
    seen = recorded(tmp_path / "r", Plan(workers=1, wait=0.03, step=0.01, fetch=Fetch(cpu=0.04)))
    two, four = predict(seen, {"num_workers": 2}), predict(seen, {"loader.num_workers": 4})
    assert two is not None
    assert four is not None
    assert two.speedup == pytest.approx(2.0, rel=0.05)
    assert four.speedup == pytest.approx(4.0, rel=0.08)
    assert two.low is not None
    assert two.high is not None
    assert two.low < 2.0 < two.high
    same = predict(seen, {"prefetch_factor": 4})
    assert same is not None
    assert same.speedup == pytest.approx(1.0, abs=0.02)


def test_fewer_workers_are_predicted_to_lose(tmp_path: Path) -> None:
    seen = recorded(tmp_path / "r", Plan(workers=2, wait=0.01, step=0.01, fetch=Fetch(cpu=0.04)))
    one = predict(seen, {"num_workers": 1})
    assert one is not None
    assert one.speedup == pytest.approx(0.5, rel=0.05)
    assert one.high is not None
    assert one.high < 0.7


def test_a_batch_size_is_predicted_between_two_laws_of_the_step(tmp_path: Path) -> None:
    plan = Plan(workers=1, wait=0.0, step=0.04, fetch=Fetch(cpu=0.01), facts={"batch_size": 16})
    twice = predict(recorded(tmp_path / "r", plan), {"batch_size": 32})
    assert twice is not None
    assert twice.low is not None
    assert twice.high is not None
    # The step may take as long as before, or twice as long.
    assert twice.low <= 1.0
    assert twice.high >= 1.95


def test_a_source_that_may_be_full_promises_nothing_by_more_workers(tmp_path: Path) -> None:
    fetch = Fetch(blocked=0.04, cpu=0.001, operators=[("io.open", 0.041, 0.001)])
    seen = recorded(tmp_path / "r", Plan(workers=2, wait=0.01, step=0.01, fetch=fetch))
    more, fewer = predict(seen, {"num_workers": 4}), predict(seen, {"num_workers": 1})
    assert more is not None
    assert fewer is not None
    assert more.low == pytest.approx(1.0 / SATURATED, abs=0.001)
    assert fewer.high == pytest.approx(SATURATED, abs=0.001)


@pytest.mark.parametrize(
    "settings",
    [{"multiprocessing_context": "spawn"}, {"batch_size": None}, {"prefetch_factor": None, "num_workers": 1}],
)
def test_what_one_run_does_not_tell_is_not_predicted(tmp_path: Path, settings: dict[str, Any]) -> None:
    seen = recorded(tmp_path / "r", Plan(workers=2, wait=0.01, step=0.01, fetch=Fetch(cpu=0.04)))
    assert predict(seen, settings) is None
