"""What a batch costs by stage and by name: timers, stacks and counters of hand-made recordings brought together."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import FETCH_FRAME, Fetch, Made, Plan

from loaderprof.analyze.breakdown import Breakdown, break_down
from loaderprof.analyze.loop_side import host_place
from loaderprof.analyze.timeline import build

LOAD = "PIL.ImageFile.ImageFile.load"
RESIZE = "torchvision.transforms.transforms.Resize.__call__@/usr/lib/python3/site-packages/torchvision/t.py:1"
OWN = "__main__.Images.__getitem__@/home/me/train.py:30"
SOURCES = {
    "/home/me/train.py:33": "image = cv2.imdecode(raw, 1)",
    "/home/me/train.py:35": "value = step_two(image)",
    "/home/me/train.py:58": "y = model(x)",
    "/home/me/train.py:60": "print(loss.item())",
    "/home/me/train.py:61": "torch.save(model, path)",
}
MODEL = "<module> (/home/me/train.py:58)"


def parts(
    made: Made, plan: Plan, stacks: tuple[tuple[list[str], int], ...] = (), thread: str = "MainThread"
) -> Breakdown:
    process = made.process()
    made.finish(made.loop(process, plan))
    for frames, count in stacks:
        made.stacks(process.pid, frames, count, thread)
    recording = made.read()
    (loop,) = build(recording).loops
    return break_down(recording, loop)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r", sources=SOURCES)


@pytest.mark.parametrize("workers", [0, 2])
def test_pieces_add_up_to_the_makers_time_without_its_queue(made: Made, workers: int) -> None:
    fetch = Fetch(cpu=0.040, blocked=0.020, collate=0.004, operators=[("io.open", 0.021, 0.001), (LOAD, 0.03, 0.03)])
    found = parts(made, Plan(wait=0.06, workers=workers, fetch=fetch))
    assert sum(piece.total_s for piece in found.pieces) == pytest.approx(0.060, rel=0.01)
    assert sum(piece.cpu_s for piece in found.pieces) == pytest.approx(0.040, rel=0.01)
    assert (found.wall_s, found.cpu_s, found.runq_s, found.blocked_s) == pytest.approx((0.06, 0.04, 0.0, 0.02))
    by_stage = {piece.stage: piece for piece in found.pieces if not piece.guessed}
    assert by_stage["read"].blocked_s == pytest.approx(0.020, rel=0.01)
    assert by_stage["decode"].cpu_s == pytest.approx(0.030, rel=0.01)
    assert by_stage["collate"].total_s == pytest.approx(0.004, rel=0.01)
    assert [piece.total_s for piece in found.pieces] == sorted((p.total_s for p in found.pieces), reverse=True)


def test_waiting_for_a_core_is_no_piece_of_a_batch(made: Made) -> None:
    found = parts(made, Plan(wait=0.07, fetch=Fetch(cpu=0.04, blocked=0.02, runq=0.01, operators=[(LOAD, 0.05, 0.04)])))
    assert found.runq_s == pytest.approx(0.01)
    assert sum(piece.total_s for piece in found.pieces) == pytest.approx(0.06, rel=0.01)


def test_batches_timed_in_depth_are_dearer_and_only_their_shares_count(made: Made) -> None:
    # Timers make a batch dearer than the usual one; here by half.
    fetch = Fetch(
        cpu=lambda task: 0.03 if task % 10 == 9 else 0.02, operators=[(LOAD, 0.02, 0.02), (RESIZE, 0.01, 0.01)]
    )
    found = parts(made, Plan(wait=0.02, fetch=fetch))
    assert found.cpu_s == pytest.approx(0.02)
    decode, transform = (sum(p.total_s for p in found.pieces if p.stage == stage) for stage in ("decode", "transform"))
    assert (decode, transform) == pytest.approx((0.02 * 2 / 3, 0.02 / 3), rel=0.02)


def test_what_blocks_a_library_that_decodes_is_its_reading(made: Made) -> None:
    found = parts(made, Plan(wait=0.05, fetch=Fetch(cpu=0.02, blocked=0.03, operators=[(LOAD, 0.05, 0.02)])))
    assert {(p.stage, p.cpu_s > 0, p.blocked_s > 0) for p in found.pieces if p.name == LOAD} == {
        ("decode", True, False),
        ("read", False, True),
    }


def test_the_users_own_function_is_split_by_the_lines_it_was_seen_in(made: Made) -> None:
    fetch = Fetch(cpu=0.04, operators=[(OWN, 0.04, 0.04)])
    stacks = (
        ([MODEL, FETCH_FRAME, "Images.__getitem__ (/home/me/train.py:33)"], 60),
        ([MODEL, FETCH_FRAME, "Images.__getitem__ (/home/me/train.py:35)"], 20),
    )
    found = parts(made, Plan(wait=0.04, fetch=fetch), stacks)
    seconds = {(piece.stage, piece.where): piece.cpu_s for piece in found.pieces if piece.name.endswith("__getitem__")}
    assert seconds["decode", "train.py:33"] == pytest.approx(0.03, rel=0.05)
    assert {piece.where: piece.guessed for piece in found.pieces} == {"train.py:33": False, "train.py:35": True}


def test_too_few_stacks_tell_nothing(made: Made) -> None:
    found = parts(
        made, Plan(wait=0.04, fetch=Fetch(cpu=0.04)), (([MODEL, FETCH_FRAME, "f (/home/me/train.py:33)"], 3),)
    )
    assert found.by_stack == {}
    assert found.stack_samples == 3
    assert all(piece.guessed for piece in found.pieces if piece.stage == "transform")


def test_stacks_of_makers_are_counted_by_stage(made: Made) -> None:
    stacks = (
        ([MODEL, FETCH_FRAME, "__getitem__ (/home/me/train.py:33)"], 30),
        ([MODEL, FETCH_FRAME, "default_collate (/lib/torch/utils/data/_utils/collate.py:200)"], 10),
        ([MODEL, "next (/lib/torch/utils/data/dataloader.py:700)"], 500),
    )
    found = parts(made, Plan(wait=0.04, fetch=Fetch(cpu=0.04)), stacks)
    assert found.by_stack == {"decode": 30, "collate": 10}
    assert found.stack_samples == 40


def test_the_loops_own_python_is_told_by_its_stacks(made: Made) -> None:
    stacks = (
        ([MODEL], 55),
        ([MODEL, "forward (/lib/torch/nn/modules/linear.py:114)"], 20),
        (["<module> (/home/me/train.py:60)"], 15),
        (["<module> (/home/me/train.py:61)", "save (/lib/torch/serialization.py:500)"], 10),
        (["<module> (/home/me/train.py:50)", "__next__ (/lib/torch/utils/data/dataloader.py:700)"], 400),
    )
    found = parts(made, Plan(workers=1, wait=1e-4, fetch=Fetch(cpu=0.001)), stacks)
    assert found.step_samples == 100
    assert found.host_share == pytest.approx(0.25)
    assert found.host_by == (("train.py:60", 0.15), ("train.py:61", 0.10))


@pytest.mark.parametrize(("line", "share"), [("loss.backward()", 1.0), ("weights -= rate * gradient", 0.0)])
def test_plain_python_is_the_loops_own_where_torch_trains_and_else_the_model(
    tmp_path: Path, line: str, share: float
) -> None:
    # Torch takes so little of the step that no sample hit it.
    made = Made(tmp_path / "m", sources={"/home/me/train.py:64": "ranked = sorted(seen)", "/home/me/train.py:70": line})
    stacks = ((["<module> (/home/me/train.py:64)"], 40),)
    found = parts(made, Plan(workers=1, wait=1e-4, fetch=Fetch(cpu=0.001)), stacks)
    assert found.host_share == share


def test_stacks_of_other_threads_are_not_the_loops(made: Made) -> None:
    found = parts(
        made, Plan(workers=1, fetch=Fetch(cpu=0.001)), ((["<module> (/home/me/train.py:60)"], 100),), "logger"
    )
    assert (found.host_share, found.step_samples) == (None, 0)


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        (["<module> (/home/me/train.py:58)"], None),
        (["<module> (/home/me/train.py:60)"], "/home/me/train.py:60"),
        (["<module> (/home/me/train.py:61)", "save (/lib/torch/serialization.py:5)"], "/home/me/train.py:61"),
        (["<module> (/home/me/train.py:58)", "dumps (/usr/lib/python3/json/encoder.py:5)"], "/home/me/train.py:58"),
        (["<module> (/home/me/train.py:58)", "step (/lib/torch/optim/sgd.py:9)"], None),
        ([], None),
    ],
)
def test_a_host_line_is_the_users_own(frames: list[str], place: str | None) -> None:
    assert host_place(tuple(frames), SOURCES) == place


def test_stalls_are_what_few_steps_take_beyond_the_usual(made: Made) -> None:
    plan = Plan(workers=1, batches=102, step=lambda i: 0.11 if i % 10 == 9 else 0.01, fetch=Fetch(cpu=0.001))
    found = parts(made, plan)
    assert found.stall_s == pytest.approx(0.01, rel=0.02)
    assert found.stall_every == pytest.approx(10, rel=0.02)


def test_steps_that_vary_a_little_do_not_stall(made: Made) -> None:
    found = parts(made, Plan(batches=100, step=lambda i: 0.01 + 0.001 * (i % 7), fetch=Fetch(cpu=0.001)))
    assert (found.stall_s, found.stall_every) == (0, None)


def test_threads_are_the_processs_cpu_over_its_makers(made: Made) -> None:
    assert parts(made, Plan(workers=2, fetch=Fetch(cpu=0.03, threads=3.0))).threads == pytest.approx(3.0)


def test_handing_over_and_the_sampler_are_told_apart(made: Made) -> None:
    found = parts(made, Plan(workers=2, wait=0.01, receive=0.004, index=0.003, fetch=Fetch(cpu=0.01, pickle=0.002)))
    assert (found.receive_s, found.index_s, found.pickle_s) == pytest.approx((0.004, 0.003, 0.002))


def test_a_loop_whose_batches_nobody_measured_has_nothing_to_break_down(made: Made) -> None:
    process = made.process()
    number = process.iterator({"name": "loader", "num_workers": 2}, 0, 0)
    for batch in range(30):
        process.take(number, batch, batch + 0.5)
    recording = made.read()
    (loop,) = build(recording).loops
    found = break_down(recording, loop)
    assert (found.pieces, found.wall_s, found.cpu_s, found.threads) == ((), None, None, None)
