"""What the replay predicts from the present settings, and when it is not used."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import Fetch, Plan, one_loop

from loaderprof.analyze.timeline import build
from loaderprof.measure.bench import predictions, present_settings
from loaderprof.recording.facts import LoaderFacts
from loaderprof.replay.costs import Settings


def test_the_replay_predicts_what_workers_would_gain(tmp_path: Path) -> None:
    seen = one_loop(tmp_path / "seen", Plan(wait=0.04, step=0.01, fetch=Fetch(blocked=0.04)))
    loop = build(seen).loops[0]
    pace = predictions(seen, loop, Settings(0), 4, (1000, 1), by_epoch=False)
    assert set(pace) >= {Settings(0), Settings(1), Settings(2), Settings(4, 8, in_order=False)}
    assert pace[Settings(0)] == pytest.approx(20, rel=0.1)
    assert pace[Settings(4)] > 1.8 * pace[Settings(1)]


def test_a_replay_that_errs_is_not_used(tmp_path: Path) -> None:
    # Waits of which the batches' making explains a tenth.
    seen = one_loop(tmp_path / "seen", Plan(wait=0.1, step=0.01, fetch=Fetch(blocked=0.01)))
    assert predictions(seen, build(seen).loops[0], Settings(0), 4, None, by_epoch=False) == {}


def test_settings_of_a_loader_by_its_facts() -> None:
    assert present_settings(LoaderFacts(num_workers=0, in_order=False)) == Settings(0)
    facts = LoaderFacts(num_workers=2, prefetch_factor=4, in_order=True, persistent_workers=True)
    assert present_settings(facts) == Settings(2, 4, persistent_workers=True)
