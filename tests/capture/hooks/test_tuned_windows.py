"""Windows of a tuned loader: when they are warm, when they end, what they keep."""

from __future__ import annotations

from typing import Any

from loaderprof.capture.hooks.tuned_windows import MAX_ENTRIES, Feed, Window


def test_a_feed_that_is_shut_keeps_the_rest() -> None:
    feed = Feed()
    feed.renew(iter(range(5)))
    assert [next(feed), next(feed)] == [0, 1]
    feed.shut = True
    assert list(feed) == []
    feed.shut = False
    assert not feed.over
    assert list(feed) == [2, 3, 4]
    assert feed.over


def window(**order: Any) -> Window:
    return Window({"min_batches": 10, "min_s": 0.0, "max_s": 1.0, "by_epoch": False, **order}, warm=False)


def test_the_warm_up_ends_when_the_queue_grows_no_more() -> None:
    empty, growing = window(), window()
    for count in range(1, 40):
        empty.settle(2, 8, 0)
        growing.settle(2, 8, min(count, 16))
        if count == 5:
            assert empty.warm
            assert not growing.warm
    assert growing.warm
    late = window()
    for count in range(1, 37):
        assert not late.warm
        late.settle(2, 8, count)
    assert late.warm


def test_a_window_is_whole_rounds_of_the_workers() -> None:
    one = window()
    for _ in range(12):
        one.add(1, 1, 4)
        if one.done:
            break
    assert one.batches == 12


def test_a_window_ends_by_time_too() -> None:
    one = window(max_s=0.5)
    for _ in range(3):
        one.add(100_000_000, 100_000_000, 0)
    assert one.done


def test_a_fast_loop_keeps_a_bounded_record() -> None:
    one = window(min_batches=10_000, max_s=1e9)
    for _ in range(10_000):
        one.add(3, 2, 0)
    assert one.done
    assert len(one.step_ns) <= MAX_ENTRIES
    assert (sum(one.step_ns), sum(one.wait_ns)) == (30_000, 20_000)
