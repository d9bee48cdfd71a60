"""Whose a stack of the loop's own thread is: the model's, or the loop's own Python."""

from __future__ import annotations

import pytest

from loaderprof.diagnose.loop_side import part_of_step

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
