"""How much capture may cost, as the environment says."""

from __future__ import annotations

import pytest

from loaderprof.capture.hooks import overhead


@pytest.mark.parametrize(("asked", "share"), [(None, 0.01), (0.05, 0.05), (0.002, 0.002)])
def test_a_part_may_take_its_share_of_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: float | None, share: float
) -> None:
    monkeypatch.delenv(overhead.MAX_OVERHEAD, raising=False)
    for name, value in overhead.environment(asked, keep=False).items():
        monkeypatch.setenv(name, value)
    assert overhead.max_overhead() == pytest.approx(share)
    assert overhead.allowed(0.002) == pytest.approx(0.2 * share)


def test_a_value_that_is_no_number_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(overhead.MAX_OVERHEAD, "much")
    assert overhead.max_overhead() == overhead.USUAL


def test_all_is_kept_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(overhead.KEEP, raising=False)
    assert not overhead.keeps_all()
    for name, value in overhead.environment(None, keep=True).items():
        monkeypatch.setenv(name, value)
    assert overhead.keeps_all()
