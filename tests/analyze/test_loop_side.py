"""Whose a stack of the loop's own thread is: the model's, or the loop's own Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import Made, Plan

from loaderprof.analyze.loop_side import helpers_waited, part_of_step
from loaderprof.analyze.timeline import build

LOOP = "main (train.py:41)"
BACKWARD = (
    "Tensor.backward (/env/site-packages/torch/_tensor.py:623)",
    "_engine_run_backward (/env/site-packages/torch/autograd/graph.py:979)",
)
CALL = (
    "Module._call_impl (/env/site-packages/torch/nn/modules/module.py:1789)",
    "Conv2d.forward (/env/site-packages/torch/nn/modules/conv.py:565)",
)
ARRAYS = ("histogram (/env/site-packages/numpy/lib/_histograms_impl.py:860)",)
STATE = ("Module.state_dict (/env/site-packages/torch/nn/modules/module.py:2100)",)


@pytest.mark.parametrize(
    ("line", "below", "part"),
    [
        ("loss.backward(); total += loss.item()", BACKWARD, "device"),
        ("loss.backward(); total += loss.item()", (), "host"),
        ("print(net(images).mean().item())", CALL, "device"),
        ("scores = evaluate(net, images)", CALL, "host"),
        ("torch.save(model.state_dict(), path)", STATE, "host"),
        ("loss = criterion(net(images), labels)", CALL, "device"),
        ("predicted = outputs.argmax(1)", (), "device"),
        ("counts, edges = np.histogram(model.head.weight.detach(), 60)", ARRAYS, "unknown"),
        ("best = np.argmax(scores)", (), "unknown"),
        ("hits += (outputs.argmax(1) == labels).sum().item()", (), "host"),
        ("for name, value in totals.items():", (), "unknown"),
    ],
)
def test_what_the_model_does_is_its_own_whatever_else_stands_on_the_line(
    line: str, below: tuple[str, ...], part: str
) -> None:
    assert part_of_step((LOOP, *below), {"train.py:41": line})[0] == part


@pytest.mark.parametrize(
    ("waits", "share"),
    [([], 0.0), ([0.0], 0.0), ([0.5], 0.5), ([0.5, 0.5], 0.75), ([3.0], 1.0)],
)
def test_how_long_a_loop_does_without_a_librarys_threads(tmp_path: Path, waits: list[float], share: float) -> None:
    made = Made(tmp_path / "r")
    main = made.process()
    ended = made.loop(main, Plan())
    named = [[main.pid, "MainThread", 10**9, 10**9], [main.pid, "QueueFeederThread", 0, 10**9]]
    others = [[main.pid + 1, "", 10**9, 10**9]]
    helpers = [[main.pid, "", 10**9, round(2e9 * wait)] for wait in waits]
    for second in (0.0, 4.0):
        made.window(second, second + 2.0, threads=[*named, *helpers, *others])
    made.finish(ended)
    seen = made.read()
    (loop,) = build(seen).loops
    assert helpers_waited(seen, loop) == pytest.approx(share)
