"""tf.data pipelines: how long a loop waits for them, and what TensorFlow's own model says of their operations.

An eager loop takes batches by `next()`, and is stamped like any watched loop. Keras' `fit`, and custom loops that hand an
iterator to a `tf.function`, take them inside a graph, where Python cannot observe them. There TensorFlow's model of the
pipeline, which AUTOTUNE works with, reports how long the job was away between two batches; the rest of the wall time it
waited. The same model reports the cost of each operation. It is read a few times a second, between two batches; nothing
is added to a graph or a pipeline.

Standard library only, Python >= 3.8; of TensorFlow only what the job has imported.
"""

from __future__ import annotations

import os
import time
import weakref
from typing import Any, Dict, List, Optional, Tuple

from loaderprof.capture.hooks import describe, tf_settings
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.iteration import Iteration
from loaderprof.capture.hooks.kernel import SchedStat
from loaderprof.capture.hooks.process import process, stand_aside
from loaderprof.capture.hooks.tf_facts import described, origin
from loaderprof.recording import journal as layout

_NOW = time.perf_counter_ns
_BEGUN = _NOW()
DATASETS = "tensorflow.python.data.ops.dataset_ops"
ITERATORS = "tensorflow.python.data.ops.iterator_ops"
FUNCTIONS = "tensorflow.python.eager.polymorphic_function.polymorphic_function"
PYTHON = "tensorflow.python.ops.script_ops"
# Nanoseconds between two calls of the pipeline's Python functions that are timed.
CALL_NS = 20_000_000
# Nanoseconds between two readings of a pipeline's model, and how many times its own cost that is at least: 0.5 %.
READ_NS, READ_COSTS = 250_000_000, 200
# The model keeps so many of the times between two batches (kGapTimeWindow in TensorFlow's model.h).
GAPS = 100
# Batches before the first reading: what a first one costs is not the pace.
FIRST = 2
# Readings become rarer the longer a job runs: so many are made of its present length.
READINGS = 200
# By the text that describes a pipeline: its last iterator, which is read once more when the next one is made, and the
# time at which the next reading is due.
_last: Dict[str, Any] = {}
_due: Dict[str, int] = {}


def patch(module: Any) -> None:
    """Install the hooks of one imported module of TensorFlow; one of an unknown shape is left alone."""
    if module.__name__ == DATASETS:
        tf_settings.install(module.DatasetV2)
        module.DatasetV2.__init__ = _dataset_init(module.DatasetV2.__init__)
    elif module.__name__ == ITERATORS:
        kind = module.OwnedIterator
        kind._create_iterator = _create(kind._create_iterator, module.context)
        for name in ("__next__", "get_next"):
            setattr(kind, name, _next(getattr(kind, name), module.context))
    elif module.__name__ == FUNCTIONS:
        module.Function.__call__ = _call(module.Function.__call__, module.context)
    elif module.__name__ == PYTHON:
        module.FuncRegistry.__call__ = _python_call(module.FuncRegistry.__call__)


@unseen
def _dataset_init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if not process.off:
            try:
                origin(self)
            except Exception as error:
                stand_aside(error)

    return __init__


@unseen
def _create(original: Any, context: Any) -> Any:
    def _create_iterator(self: Any, dataset: Any) -> Any:
        begun, cpu = _NOW(), time.thread_time_ns()
        made = tf_settings.finished(dataset) if context.executing_eagerly() else dataset
        result = original(self, made)
        if not process.off and context.executing_eagerly() and "worker" not in process.header:
            try:
                self._loaderprof = WatchedPipeline(self, dataset, made, begun, time.thread_time_ns() - cpu)
            except Exception as error:
                stand_aside(error)
        return result

    return _create_iterator


@unseen
def _next(original: Any, context: Any) -> Any:
    def __next__(self: Any) -> Any:  # noqa: N807
        pipeline = _pipeline(self, context)
        return original(self) if pipeline is None else pipeline.take(self, original)

    return __next__


@unseen
def _call(original: Any, context: Any) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        taken = None
        for each in (*args, *kwargs.values()):
            if "_loaderprof" in getattr(each, "__dict__", ()) and isinstance(each._loaderprof, WatchedPipeline):
                taken = each
                break
        pipeline = _pipeline(taken, context) if taken is not None else None
        if pipeline is None:
            return original(self, *args, **kwargs)
        pipeline.called(taken)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            pipeline.call_failed(taken, error)
            raise

    return __call__


@unseen
def _python_call(original: Any) -> Any:
    due = [0]

    def __call__(self: Any, *args: Any) -> Any:  # noqa: N807
        journal, begun = process.journal, _NOW()
        if process.off or journal is None or begun < due[0]:
            return original(self, *args)
        due[0] = begun + CALL_NS * journal.pressure()
        stat = SchedStat()
        waited, cpu = stat.read(), time.thread_time_ns()
        begun = _NOW()
        try:
            return original(self, *args)
        finally:
            try:
                spent = time.thread_time_ns() - cpu
                journal.write(layout.CALL, 0, 0, begun, _NOW(), spent, stat.read() - waited)
            except Exception as error:
                stand_aside(error)

    return __call__


def _pipeline(iterator: Any, context: Any) -> Optional["WatchedPipeline"]:
    pipeline = iterator.__dict__.get("_loaderprof")
    if pipeline is None or process.off or not context.executing_eagerly():
        return None
    # One inherited over a fork has its parent's journal, which is not this process's to write.
    return pipeline if pipeline.iteration.journal is process.journal else None


class _Taken(Iteration):
    """An iteration whose end may come as TensorFlow's own error."""

    def ended(self, asked: int, error: BaseException) -> None:
        super().ended(asked, StopIteration() if _is_end(error) else error)


def _is_end(error: BaseException) -> bool:
    return isinstance(error, StopIteration) or type(error).__name__ == "OutOfRangeError"


class WatchedPipeline:
    """One iterator over a tf.data pipeline: its record, and when its model is read. Held by the iterator."""

    def __init__(self, iterator: Any, dataset: Any, made: Any, begun: int, cpu_ns: int) -> None:
        facts = described(dataset, made, tf_settings.wanted())
        before = _last.get(facts)
        held = before() if before is not None else None
        if held is not None:
            held._loaderprof.over(held)
        # A function that takes batches is traced when it is called for the first time: that is no waiting.
        self.anew = facts not in _last
        _last[facts] = weakref.ref(iterator)
        self.facts = facts
        self.iteration = _Taken.of_iterable(dataset, facts, begun, cpu_ns)
        self.iteration.fetches = None  # the batches are made by TensorFlow's own threads
        self.batches = self.readings = 0
        self.eager = False
        # Batches taken inside a graph: when the last reading was, the batches by then, and the process's CPU.
        self.in_graph = self.ended = self.blind = False
        self.t_read = self.read_elements = self.cpu_read = 0

    @unseen
    def take(self, iterator: Any, original: Any) -> Any:
        """Take one batch in an eager loop, through the original."""
        self.eager = True
        self._read_if_due(iterator)
        try:
            return self.iteration.take(iterator, original)
        except BaseException as error:
            # An epoch too short for any reading gets none at its end.
            if _is_end(error) and self.readings:
                self._read(iterator)
            raise

    def called(self, iterator: Any) -> None:
        """Note that a function which takes batches from the iterator is about to be called."""
        if self.eager:  # functions run eagerly, by `tf.config.run_functions_eagerly`
            self.in_graph = False
        elif not self.in_graph:
            self.in_graph, self.t_read, self.cpu_read = True, _NOW(), time.process_time_ns()
        self._read_if_due(iterator)

    def call_failed(self, iterator: Any, error: BaseException) -> None:
        """Note that such a call did not return: at the end of the data, mostly."""
        self.over(iterator)
        if not _is_end(error):
            self.iteration.ended(_NOW(), error)

    def over(self, iterator: Any) -> None:
        """Note that nothing more is taken from the iterator, of which a graph took batches."""
        if self.in_graph and not self.eager and not self.ended:
            self.ended = True
            self._read(iterator)
            self.iteration.ended(_NOW(), StopIteration())

    def _read_if_due(self, iterator: Any) -> None:
        if self.batches >= FIRST and _NOW() >= _due.get(self.facts, 0):
            self._read(iterator)
        self.batches += 1

    def _read(self, iterator: Any) -> None:
        """Read the pipeline's model, and write each operation's costs and the batches since the last reading."""
        if self.blind:
            return
        begun, cpu = _NOW(), time.thread_time_ns()
        try:
            model = _model(iterator)
        except Exception:  # its options turn autotuning off, or this TensorFlow is too old: not measured
            self.blind = True
            return
        try:
            self._write(model, begun)
        except Exception as error:
            stand_aside(error)
        self.readings += 1
        now = _NOW()
        period = max(READ_NS, READ_COSTS * (time.thread_time_ns() - cpu), (now - _BEGUN) // READINGS)
        _due[self.facts] = now + period * self.iteration.journal.pressure()

    def _write(self, model: Any, now: int) -> None:
        journal, number, usage = self.iteration.journal, self.iteration.number, _cpu_ns()
        for position, (node, parent) in enumerate(_in_order(model)):
            values = {each.name: int(each.value) for each in node.parameters}
            tunable = any(each.name == "parallelism" and each.tunable for each in node.parameters)
            journal.write(
                layout.NODE,
                int(tunable),
                0,
                number,
                now,
                position,
                parent,
                node.id,
                journal.text(str(node.name)),
                node.num_elements,
                max(0, node.processing_time),
                values.get("parallelism", 0),
                values.get("buffer_size", 0),
                max(0, node.buffered_elements),
                max(0, node.bytes_produced),
                *usage,
            )
        if self.in_graph and not self.eager:
            self._write_taken(model, now, usage[0])

    def _write_taken(self, model: Any, now: int, cpu: int) -> None:
        elements = int(model.nodes[model.output].num_elements)
        count = elements - self.read_elements
        if count <= 0:
            return
        begun, waited = self.t_read, 0
        gaps = list(model.gap_times)[-min(count, GAPS) :]
        if self.anew or not gaps:
            # The first call of a function also traces it, which cannot be separated from waiting.
            self.anew, begun = False, now
        else:
            away = 1000 * sum(gaps) * count // len(gaps)
            waited = min(max(0, now - begun - away), now - begun)
        self.iteration.journal.write(
            layout.TAKE,
            describe.gradients(),
            0,
            self.iteration.number,
            begun,
            now,
            0,
            0,
            0,
            0,
            self.cpu_read,
            cpu,
            0,
            -1,
            0,
            0,
            count,
            waited,
        )
        self.t_read, self.read_elements, self.cpu_read = now, elements, cpu


def _model(iterator: Any) -> Any:
    """Return TensorFlow's model of the pipeline behind an iterator."""
    from tensorflow.core.framework import model_pb2
    from tensorflow.python.ops import gen_experimental_dataset_ops

    text = gen_experimental_dataset_ops.iterator_get_model_proto(iterator._iterator_resource)
    return model_pb2.ModelProto.FromString(text.numpy())


def _in_order(model: Any) -> List[Tuple[Any, int]]:
    """Return the model's nodes from the output on, each with the position of the one that it feeds; -1: none."""
    found: List[Tuple[Any, int]] = []
    queue = [(model.output, -1)]
    while queue and len(found) < 200:
        number, parent = queue.pop(0)
        if number in model.nodes:
            node = model.nodes[number]
            found.append((node, parent))
            queue.extend((each, len(found) - 1) for each in node.inputs)
    return found


def _cpu_ns() -> Tuple[int, int]:
    """Return the CPU time of this process so far, and for how long its threads waited for a core; 0: not known."""
    waited = 0
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open("/proc/self/task/%s/schedstat" % thread, "rb") as file:
                    waited += int(file.read().split()[1])
            except (OSError, IndexError, ValueError):
                continue
    except OSError:
        pass
    return time.process_time_ns(), waited
