"""The catalogue of causes: the evidence each needs, and the words it is told in.

A cause refines the stage that limits the job. `examine` holds every cause against one loop: found, ruled out with the
number that rules it out, or not measured with the reason. Every sentence a user reads about a cause stands here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loaderprof.diagnose.breakdown import MANY_THREADS, WORK, Breakdown, usual_wait_s
from loaderprof.diagnose.operators import TENSORS
from loaderprof.diagnose.pools import HELD, LOCKED_SHARE, MOSTLY_WAITING, Pool
from loaderprof.diagnose.reads import Reads
from loaderprof.diagnose.timeline import Loop, Seconds
from loaderprof.diagnose.verdict import LOADER
from loaderprof.findings import Cause, Evidence, Gpu, Stage, StepPhases

# DESIGN's definition: a stage whose removal gains less than this is no bottleneck.
MIN_GAIN = 0.05
# What comes after a step that is the limit is named where it gains so much.
WORTH_NAMING = 0.1
# Fetches that wait this share of their time are waiting, not working.
MOSTLY_BLOCKED = 0.5
# This share of the makers' reading must be seen in sockets for it to be remote.
MOSTLY_REMOTE = 0.5
# Below this share of the bytes that came from a disk, nobody asked for them; and the other way round.
UNASKED = 0.2
# Where files are this small, and as many a batch, opening them costs more than reading them.
SMALL_FILE, MANY_FILES = 32 << 10, 4
# Copying this much a batch out of memory is worth telling.
MUCH = 1 << 20
LARGE_FILE = 64 << 20
# A tensor in shared memory leaves a handle of 70 to 130 bytes in the pickle. What is beyond the handles, and beyond what
# the buffer of a pipe takes at once, is data that passes through the pipe.
HANDLE_BYTES, PIPE_BYTES = 256, 64 << 10
# Above this many, receiving tensors costs several times what receiving a batch does anyhow (predict/handover_advice.py).
MANY_TENSORS = 20
# Below this, copying a batch into shared memory costs less than receiving any batch does.
LARGE_BATCH = 1 << 20
# A queue that was empty, or not, at this share of the steps speaks for or against the making of batches.
MOSTLY = 0.5
# A batch is mostly floats, or lies in pinned memory, from these shares of its bytes on.
MOSTLY_FLOATS, MOSTLY_PINNED = 0.9, 0.5
# A thread that works this much of the step, beside a GPU that runs a kernel less than this of the time, cannot feed it.
# Without the latter nothing is told: a thread that waits for its device spins.
LAUNCHING, MANY_KERNELS_PERCENT = 0.85, 70.0
# A thread that waits for a core this share of its step is kept from launching kernels.
KEPT_WAITING = 0.15
# Beyond this share of its memory a larger batch does not fit.
MEMORY_FULL = 0.9
TORCH_BATCH_SAMPLER = "torch.utils.data.sampler.BatchSampler"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a cause may look at: one loop, what its batches cost, what each stage's removal would gain.

    `gains` are speedups of the job (1.3: 30 % faster), `cores` the CPU budget, `busy_others` cores that processes
    outside the job used (None: not measured). `batch_bytes`, `batch_tensors` and `batch_leaves` are of the tensors,
    arrays and strings of a batch, `float_share` is the share of its bytes that are floating-point numbers, `pickled_bytes`
    what a batch put into the pipe (None: not measured, or no workers).
    """

    loop: Loop
    parts: Breakdown
    gains: dict[Stage, float]
    cores: float
    busy_others: float | None
    gpu_missing: str | None
    stacks_missing: str | None
    operators: tuple[str, ...]
    batch_bytes: float | None
    batch_tensors: float | None
    bound: bool = False
    helpers: float = 0.0
    batch_leaves: float | None = None
    pickled_bytes: float | None = None
    sampler_where: str | None = None
    float_share: float | None = None
    phases: StepPhases | None = None
    gpus: tuple[Gpu, ...] = ()

    def gain(self, stage: Stage) -> float:
        """Return what removing a stage would gain: 0.3 for 30 %."""
        return self.gains.get(stage, 1.0) - 1.0

    def share(self, stage: Stage) -> float | None:
        """Return a stage's share of the time a batch takes its maker."""
        total = sum(piece.total_s for piece in self.parts.pieces)
        mine = sum(piece.total_s for piece in self.parts.pieces if piece.stage == stage)
        return mine / total if total > 0 else None

    def named(self, stage: Stage) -> str:
        """Return the dearest piece of a stage with its line: `decode (train.py:41)`."""
        for piece in self.parts.pieces:
            if piece.stage == stage:
                short = ".".join(piece.name.split(".")[-2:])
                return f"{short}, {piece.where}" if piece.where else short
        return ""

    def maker(self) -> str:
        """Return who makes the batches, in words."""
        if self.parts.pool is not None:
            return f"{self.parts.pool.words()} of {self.loop.name}"
        return "the loader workers" if self.loop.num_workers else "the training process"


@dataclass(frozen=True, slots=True)
class Kind:
    """One cause of the catalogue. `matches` says whether a bottleneck of its stage is this one."""

    id: str
    stage: Stage
    title: str
    matches: Callable[[Scene], bool]


def _uses(pattern: str, stage: Stage | None = None) -> Callable[[Scene], bool]:
    """Match where the stage's dearest operators are named like this."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def matches(scene: Scene) -> bool:
        names = [piece.name for piece in scene.parts.pieces if stage is None or piece.stage == stage][:3]
        return any(compiled.search(name) for name in names)

    return matches


def _operator(pattern: str) -> Callable[[Scene], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda scene: any(compiled.search(name) for name in scene.operators)


def _always(_: Scene) -> bool:
    return True


def _from_device(scene: Scene) -> bool:
    device, asked = scene.parts.device_bytes, scene.parts.asked_bytes
    return bool(device and device > 4096 and device > 0.2 * (asked or 0.0))


_REMOTE = re.compile(r"^(socket|ssl|urllib|http|requests|httpx|urllib3|boto|fsspec|s3fs|gcsfs|aiohttp)", re.IGNORECASE)


def _reads(scene: Scene) -> Reads:
    # A job that was watched from outside has none.
    return scene.parts.reads or Reads()


def _remote(scene: Scene) -> bool:
    """Whether bytes come over sockets, as timers or stacks tell."""
    remote = _reads(scene).remote
    return remote >= MOSTLY_REMOTE if remote is not None else any(map(_REMOTE.search, scene.operators))


def _mapped(scene: Scene) -> bool:
    """Whether bytes come from the disk that nobody asked for in a read: by page faults."""
    device, asked = scene.parts.device_bytes, scene.parts.asked_bytes
    return bool(device and device > 4096 and (asked or 0.0) < UNASKED * device)


def small_files(scene: Scene) -> bool:
    """Return whether a batch opens many files, each of them small."""
    reads = _reads(scene)
    size = reads.bytes_per_file
    return bool(reads.opened and reads.opened >= MANY_FILES and size is not None and size < SMALL_FILE)


def _cached(scene: Scene) -> bool:
    """Whether nearly all that is asked for comes from memory, and copying it is the work."""
    device, asked = scene.parts.device_bytes, scene.parts.asked_bytes
    local = _reads(scene).file_system is not None or bool(_reads(scene).opened)
    much = asked is not None and asked > MUCH and device is not None and device < UNASKED * asked
    return much and local and _blocked_share(scene) < MOSTLY_BLOCKED


def _single_file(scene: Scene) -> bool:
    reads = _reads(scene)
    return reads.held_open == 1 and reads.largest is not None and reads.largest[1] >= LARGE_FILE and not reads.opened


def _restarts(scene: Scene) -> bool:
    return scene.loop.num_workers > 0 and len([epoch for epoch in scene.loop.epochs if not epoch.restarted]) > 1


def of_tensors(scene: Scene) -> bool:
    """Return whether the dataset is torch's own of tensors in memory, which a batch could be sliced from."""
    return scene.loop.facts.get("dataset") == TENSORS


def piped(scene: Scene) -> bool:
    """Whether the data of a batch passes through the pipe: its pickle is larger than handles of shared memory are."""
    handles = HANDLE_BYTES * (scene.batch_tensors or 0.0)
    return scene.pickled_bytes is not None and scene.pickled_bytes - handles > PIPE_BYTES


def piped_arrays(scene: Scene) -> bool:
    """Whether what passes through the pipe are arrays: a batch holds little else, or they make up the pickle's size."""
    tensors, leaves = scene.batch_tensors or 0.0, scene.batch_leaves or 0.0
    size, pickled = scene.batch_bytes or 0.0, scene.pickled_bytes or 0.0
    return piped(scene) and tensors > 0 and (tensors > MOSTLY * leaves or MOSTLY * pickled < size < pickled / MOSTLY)


def many_tensors(scene: Scene) -> bool:
    """Whether a batch holds so many tensors that their number is what costs."""
    return (scene.batch_tensors or 0.0) >= MANY_TENSORS


def pageable(scene: Scene) -> bool:
    """Whether batches are copied to the device from memory that is not pinned."""
    copies = scene.parts.copies
    return copies is not None and copies.pinned is not None and copies.pinned < MOSTLY_PINNED


def _utilisation(scene: Scene) -> float | None:
    """Return percent of the time in which any kernel ran, of the GPU that ran the fewest."""
    return min((each.utilisation_percent for each in scene.gpus if each.utilisation_percent is not None), default=None)


def _step_share(scene: Scene, seconds: Seconds) -> float:
    """Return what part of a loop's steps some of their seconds are; 0 where the step did not run on a device."""
    mean, step = scene.loop.mean(np.clip(seconds, 0.0, None)), _step(scene)
    return mean / step if len(scene.loop.busy) and mean is not None and step else 0.0


def _kept_waiting(scene: Scene) -> bool:
    return _step_share(scene, scene.loop.step_runq) >= KEPT_WAITING


def _launches(scene: Scene) -> bool:
    used = _utilisation(scene)
    return used is not None and used < MANY_KERNELS_PERCENT and _step_share(scene, scene.loop.step_cpu) >= LAUNCHING


# In the order in which they are tried: the first that matches its stage names it.
CATALOGUE: tuple[Kind, ...] = (
    Kind("rows-of-tensors", "read", "Tensor rows fetched one by one", lambda scene: of_tensors(scene)),
    Kind("piped-command", "read", "Data piped from a command", lambda scene: (_reads(scene).command or 0) >= MOSTLY_REMOTE),
    Kind("remote-latency", "read", "Remote reads", lambda scene: _remote(scene)),
    Kind("network-file-system", "read", "Reads from a network file system", lambda scene: _reads(scene).over_network),
    Kind("mapped-file", "read", "Page faults of a mapped file", lambda scene: _mapped(scene)),
    Kind("small-files", "read", "Many small files", small_files),
    Kind("disk-read", "read", "Reads from the disk", _from_device),
    Kind("archive-read", "read", "Reads from an archive", _uses(r"tarfile|zipfile", "read")),
    Kind("table-rows", "read", "Rows looked up in a table in memory", _uses(r"i?LocIndexer|_LocationIndexer|\.i?loc\b", "read")),
    Kind("database-read", "read", "Reads from a database file", _uses(r"h5py|lmdb|sql|query|pyarrow|zarr|datasets", "read")),
    Kind("cached-read", "read", "Reads of files that are in memory", lambda scene: _cached(scene)),
    Kind("single-file", "read", "Reads from one large file", lambda scene: _single_file(scene)),
    Kind("waiting-read", "read", "Waiting for reads", lambda scene: _blocked_share(scene) > MOSTLY_BLOCKED),
    Kind("file-read", "read", "File reads", _always),
    Kind("jpeg-decode", "decode", "JPEG decode", lambda scene: _decodes(scene, r"jpe?g")),
    Kind("png-decode", "decode", "PNG decode", lambda scene: _decodes(scene, r"png")),
    Kind("image-decode", "decode", "Image decode", _uses(r"PIL|cv2\.im|imageio|read_image|png|webp|tiff|imdecode", "decode")),
    Kind("audio-decode", "decode", "Audio decode", _uses(r"soundfile|wave\b|audio|librosa|flac|mp3|\bsf\.", "decode")),
    Kind("video-decode", "decode", "Video decode", _uses(r"\bav\b|decord|torchcodec|video", "decode")),
    Kind("tokenising", "decode", "Tokenising", _uses(r"token|transformers|sentencepiece|tiktoken", "decode")),
    Kind("decompression", "decode", "Decompression", _uses(r"zlib|gzip|bz2|lzma|npz|compress|inflate", "decode")),
    Kind("record-parsing", "decode", "Parsing of records", _uses(r"json|csv|pickle|parse|xml|yaml|html|\bre\.|torch\.load|loads", "decode")),
    Kind("decode", "decode", "Decoding", _always),
    Kind("slow-transform", "transform", "Transforms", _always),
    Kind("padding", "collate", "Collating with padding", _uses(r"\bpad|_pad|pad_", "collate")),
    Kind("slow-collate", "collate", "Collating", _always),
    Kind("pickled-arrays", "handover", "Arrays pickled through a pipe", piped_arrays),
    Kind("pickled-objects", "handover", "Objects pickled through a pipe", piped),
    Kind("many-tensors", "handover", "Handing many tensors over", many_tensors),
    Kind("large-batches", "handover", "Handing large batches over", lambda scene: (scene.batch_bytes or 0) >= LARGE_BATCH),
    Kind("batch-handover", "handover", "Handing batches over", _always),
    Kind("worker-restart", "startup", "Workers start again at every epoch", _restarts),
    Kind("slow-first-batch", "startup", "The first batch", _always),
    Kind("slow-samples", "straggler", "A few slow samples", _always),
    Kind("thread-oversubscription", "contention", "Too many threads in the workers", lambda scene: (scene.parts.threads or 0) > MANY_THREADS),
    Kind("interpreter-lock", "contention", "A Python thread holds the interpreter's lock", lambda scene: bool(scene.parts.lock_holder)),
    Kind("bound-workers", "contention", "Workers bound to too few CPUs", lambda scene: scene.bound),
    Kind("busy-helpers", "contention", "Other processes of the job take its cores", _always),
    Kind("slow-sampler", "sampler", "The sampler", _always),
    Kind("validation", "host", "Validation inside the training loop", lambda _: False),
    Kind("periodic-stall", "host", "The loop stalls now and then", lambda scene: scene.parts.stall_s > 0.5 * _step(scene)),
    Kind("host-python", "host", "The loop's own Python", _always),
    Kind("pageable-copy", "copy", "Copies from pageable memory", pageable),
    Kind("float-copy", "copy", "Copies of floats", lambda scene: (scene.float_share or 0.0) >= MOSTLY_FLOATS),
    Kind("copy-bound", "copy", "Copies to the device", _always),
    Kind("stolen-core", "device", "Workers take the core that launches kernels", lambda scene: _kept_waiting(scene)),
    Kind("launch-bound", "device", "The CPU cannot launch kernels fast enough", lambda scene: _launches(scene)),
    Kind("compute-bound", "device", "The model's own work", _always),
)  # fmt: skip


def _decodes(scene: Scene, format_: str) -> bool:
    """Whether images of this format alone are decoded: PIL decodes lazily, but the format's plugin opened the file."""
    opened = [each for each in scene.operators if re.search(r"^PIL\.\w+ImagePlugin", each)]
    if opened and _uses(r"PIL\.", "decode")(scene):
        return all(re.search(format_, each, re.IGNORECASE) for each in opened)
    return _uses(format_, "decode")(scene)


def _blocked_share(scene: Scene) -> float:
    if scene.parts.pool is not None:
        return scene.parts.pool.waiting
    return (scene.parts.blocked_s or 0.0) / scene.parts.wall_s if scene.parts.wall_s else 0.0


def _step(scene: Scene) -> float:
    return scene.loop.mean(scene.loop.step) or 0.0


def name(stage: Stage, scene: Scene) -> Kind:
    """Return the cause of the catalogue that a bottleneck of this stage is."""
    for kind in CATALOGUE:
        if kind.stage == stage and kind.matches(scene):
            return kind
    return Kind("balanced" if stage == "none" else "unknown", stage, "", _always)


def headline(stage: Stage, kind: Kind, scene: Scene) -> str:
    """Return the verdict in one sentence."""
    named, loader = scene.named(stage), scene.loop.name
    if stage in ("read", "decode", "transform", "collate"):
        return f"{kind.title} in {scene.maker()}" + (f" ({named})" if named else "")
    if stage == "startup":
        epochs = scene.loop.epochs
        if kind.id == "worker-restart":
            lost = sum(_border_s(scene, number) for number in range(len(epochs)))
            return f"{kind.title} of {loader}: {lost:.1f} s over {len(epochs)} epochs"
        return f"{kind.title} of {loader} takes {epochs[0].first_batch_s:.1f} s"
    if stage == "straggler":
        slow, usual = _slow_and_usual(scene)
        order = (
            " and the loader keeps order" if scene.loop.facts.get("in_order", True) and scene.loop.num_workers else ""
        )
        return f"A few batches of {loader} take {slow:.2g} s where most take {usual:.2g} s{order}"
    if stage == "contention":
        if kind.id == "thread-oversubscription":
            return (
                f"Each of {max(1, scene.loop.num_workers)} workers keeps {scene.parts.threads or 0:.1f} threads busy "
                f"on {scene.cores:g} cores"
            )
        if kind.id == "interpreter-lock" and scene.parts.pool is not None and scene.parts.pool.makers > 1:
            if scene.parts.takes_turns():
                return f"{scene.maker()} take turns at the interpreter's lock ({scene.parts.lock_holder})"
            return f"{scene.maker()} hold the interpreter's lock while the loop steps ({scene.parts.lock_holder})"
        if kind.id == "interpreter-lock":
            return f"{kind.title} ({scene.parts.lock_holder})"
        if kind.id == "bound-workers":
            return (
                f"{scene.loop.num_workers} workers of {scene.loop.name} are bound to too few of {scene.cores:g} cores"
            )
        return f"{kind.title}: {scene.helpers:.1f} of {scene.cores:g}"
    if stage == "handover":
        if kind.id.startswith("pickled"):
            return f"{kind.title} from the workers of {loader} to the training process"
        return f"{kind.title} of {loader} from workers to the training process"
    if stage == "sampler":
        drawn_by = ", ".join(filter(None, (_short(sampler_of(scene.loop)), scene.sampler_where)))
        return f"The sampler of {loader} ({drawn_by})"
    if stage == "host":
        line = f": {scene.parts.host_by[0][0]}" if scene.parts.host_by else ""
        return f"{kind.title}{line}"
    if stage == "copy":
        return f"{kind.title}{'' if kind.id == 'copy-bound' else ' to the device'} hold it up"
    if kind.id in ("launch-bound", "stolen-core"):
        return f"{kind.title}: the device waits for the host within the step"
    if stage == "device":
        after = max(LOADER, key=scene.gain)
        if scene.gain(after) >= WORTH_NAMING:
            return f"The step itself is the limit; after it, {name(after, scene).title}"
        return "The step itself is the limit; the loader keeps up"
    return "The loader keeps up. Nothing to change here."


def evidence(stage: Stage, scene: Scene) -> tuple[Evidence, ...]:
    """Return what speaks for a stage being the limit."""
    facts = [
        Evidence(
            f"without it the job would be {scene.gains[stage]:.2f}x as fast", scene.gains[stage], "ratio", 1 + MIN_GAIN
        )
    ]
    share = scene.share(stage)
    parts, loop = scene.parts, scene.loop
    if share is not None and stage in ("read", "decode", "transform", "collate"):
        made = f"{parts.measured} batches measured, {parts.timed_batches} timed in depth"
        if parts.pool is not None:
            made = f"{parts.pool.samples} stack samples of {parts.pool.words()}"
        facts.append(Evidence(f"{share:.0%} of a batch's making ({made})", share, "share", None))
        if parts.by_stack and parts.pool is None:
            seen = parts.by_stack.get(stage, 0) / max(1, sum(parts.by_stack.values()))
            facts.append(
                Evidence(f"{seen:.0%} of {parts.stack_samples} stack samples of its makers", seen, "share", None)
            )
        if stage == "read" and parts.blocked_s is not None and parts.wall_s and parts.pool is None:
            facts.append(
                Evidence(
                    f"makers are blocked {_blocked_share(scene):.0%} of their time",
                    _blocked_share(scene),
                    "share",
                    MOSTLY_BLOCKED,
                )
            )
    if stage == "read":
        facts.extend(_of_reads(_reads(scene)))
    if parts.pool is not None and stage in (*WORK, "contention"):
        facts.extend(_of_pool(parts.pool, stage))
    facts.extend(_of_queue(stage, loop))
    if stage in LOADER and len(loop.starved) and _step(scene):
        starved = float(loop.starved.mean())
        text = f"the device has nothing to do {starved * 1e3:.3g} ms of every step, by its own clock"
        facts.append(Evidence(text, starved, "s", None))
    if stage == "copy":
        facts.extend(_of_copies(scene))
    if stage == "device" and len(loop.busy):
        facts.extend(_of_device(scene))
    if stage == "handover":
        facts.extend(_of_handover(scene))
    if stage == "host" and parts.host_share is not None:
        text = f"{parts.host_share:.0%} of {parts.step_samples} stack samples of the step are the loop's own Python"
        facts.append(Evidence(text, parts.host_share, "share", None))
    if stage == "contention" and parts.runq_s is not None and parts.wall_s and parts.pool is None:
        waiting = parts.runq_s / parts.wall_s
        facts.append(Evidence(f"workers wait {waiting:.0%} of their time for a core", waiting, "share", 0.25))
    if stage == "sampler" and parts.index_s is not None:
        facts.append(Evidence(f"{parts.index_s * 1e3:.2g} ms a batch in the sampler", parts.index_s, "s", None))
    return tuple(facts)


def _of_queue(stage: Stage, loop: Loop) -> list[Evidence]:
    """Return what the queue of made batches says, where it speaks for the stage.

    Batches are counted as they are made, before they are pickled: where one lies there and the loop waits all the same,
    handing over or the loop's own thread is what takes long.
    """
    empty = _empty_share(loop)
    if empty is None:
        return []
    if stage in ("device", "host", "none", "handover", "sampler"):
        lay = 1.0 - empty
        text = f"a batch was already made at {lay:.0%} of the steps"
        if stage in ("handover", "sampler"):
            text += ", so making it is not what the loop waits for"
        return [Evidence(text, lay, "share", MOSTLY)] if lay >= MOSTLY else []
    least = 0.0 if stage in ("straggler", "startup") else MOSTLY
    return [Evidence(f"no batch was ready at {empty:.0%} of the steps", empty, "share", None)] if empty > least else []


def _of_handover(scene: Scene) -> list[Evidence]:
    """Return what a batch holds and how it travels, as far as it was measured."""
    facts = []
    size, tensors, pickled = scene.batch_bytes, scene.batch_tensors, scene.pickled_bytes
    if pickled is not None and piped(scene):
        text = f"{_size(pickled)} of every batch pass through a pipe, not through shared memory"
        facts.append(Evidence(text, pickled, "bytes", float(PIPE_BYTES)))
    if size is not None and tensors is not None:
        text = (
            f"a batch holds {_size(size)} in {tensors:.0f} {'tensor or array' if tensors == 1 else 'tensors or arrays'}"
        )
        if not tensors:
            text = f"a batch holds {scene.batch_leaves or 0.0:.0f} objects, none of them a tensor or array"
        facts.append(Evidence(text, tensors, "tensors", float(MANY_TENSORS)))
    for seconds, what in ((scene.parts.pickle_s, "to pickle"), (scene.parts.receive_s, "to receive")):
        if seconds is not None:
            facts.append(Evidence(f"{seconds * 1e3:.2g} ms a batch {what}", seconds, "s", None))
    return facts


def _of_copies(scene: Scene) -> list[Evidence]:
    """Return how a batch gets to the device, as far as it was measured."""
    facts, copies = [], scene.parts.copies
    if scene.parts.copy_s is not None:
        facts.append(Evidence(f"{scene.parts.copy_s * 1e3:.3g} ms of a step", scene.parts.copy_s, "s", None))
    if copies is None or copies.bytes_ is None:
        return facts
    if scene.parts.copy_s:
        speed = copies.bytes_ / scene.parts.copy_s
        text = f"{_size(copies.bytes_)} a batch at {speed / 1e9:.3g} GB/s"
        facts.append(Evidence(text, speed, "bytes/s", copies.bytes_ / copies.least_s if copies.least_s else None))
    if copies.least_s is not None:
        facts.append(Evidence(f"the link would take {copies.least_s * 1e3:.3g} ms", copies.least_s, "s", None))
    if copies.pinned is not None:
        facts.append(
            Evidence(f"{copies.pinned:.0%} of its bytes are in pinned memory", copies.pinned, "share", MOSTLY_PINNED)
        )
    if scene.float_share is not None:
        facts.append(Evidence(f"{scene.float_share:.0%} of them are floats", scene.float_share, "share", MOSTLY_FLOATS))
    return facts


def _of_device(scene: Scene) -> list[Evidence]:
    """Return what the device and NVML say of a step that is the limit."""
    facts = []
    used, launching = _utilisation(scene), _step_share(scene, scene.loop.step_cpu)
    waits = _step_share(scene, scene.loop.step_runq)
    if used is not None:
        facts.append(Evidence(f"a kernel runs {used:.0f} % of the time", used, "percent", MANY_KERNELS_PERCENT))
        if used < MANY_KERNELS_PERCENT:
            text = f"the thread that launches kernels is at work {launching:.0%} of the step"
            facts.append(Evidence(text, launching, "share", LAUNCHING))
    if waits >= KEPT_WAITING:
        facts.append(Evidence(f"it waits {waits:.0%} of the step for a core", waits, "share", KEPT_WAITING))
    for gpu in scene.gpus:
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            full = gpu.memory_used_bytes / gpu.memory_total_bytes
            then = "no larger batch fits" if full >= MEMORY_FULL else "a larger batch may fit"
            facts.append(
                Evidence(f"GPU {gpu.index} has {full:.0%} of its memory in use: {then}", full, "share", MEMORY_FULL)
            )
        if gpu.throttled:
            facts.append(Evidence(f"GPU {gpu.index} is kept slow by {', '.join(gpu.throttled)}", None, "", None))
    return facts


def _of_reads(reads: Reads) -> list[Evidence]:
    """Return how the bytes come, as far as it was measured."""
    facts = []
    if reads.command:
        facts.append(
            Evidence(f"{reads.command:.0%} of their reading waits for a command", reads.command, "share", MOSTLY_REMOTE)
        )
    if reads.remote:
        facts.append(
            Evidence(f"{reads.remote:.0%} of their reading is in sockets", reads.remote, "share", MOSTLY_REMOTE)
        )
    if reads.file_system is not None:
        facts.append(Evidence(f"the data lies on {reads.file_system} ({reads.path})", None, reads.file_system, None))
    if reads.opened:
        size = reads.bytes_per_file
        each = f" of {size / 1024:.3g} KiB" if size is not None else ""
        facts.append(Evidence(f"{reads.opened:.0f} files{each} are opened a batch", reads.opened, "files", MANY_FILES))
    if reads.asked_bytes is not None and reads.device_bytes is not None:
        asked, device = reads.asked_bytes / 1024, reads.device_bytes / 1024
        text = f"{asked:.3g} KiB a batch are asked for, {device:.3g} KiB come from a disk"
        facts.append(Evidence(text, reads.device_bytes, "bytes", None))
    if reads.faults:
        facts.append(Evidence(f"{reads.faults:.3g} page faults a batch wait for a disk", reads.faults, "faults", None))
    if reads.held_open == 1 and reads.largest is not None and not reads.opened:
        path, size = reads.largest
        facts.append(Evidence(f"all is read from {path}, {size / (1 << 20):.0f} MiB", float(size), "bytes", None))
    return facts


def _of_pool(pool: Pool, stage: Stage) -> list[Evidence]:
    """Return what is known of the threads or processes that make a watched loop's batches."""
    used = f"{pool.words()}, {pool.busy:.1f} at work at once"
    facts = [
        Evidence(f"{used} on {pool.cores:.1f} cores" if pool.cores is not None else used, pool.busy, pool.kind, None)
    ]
    if stage == "contention" and pool.held is not None:
        facts.append(Evidence(f"the interpreter's lock is held {pool.held:.0%} of the time", pool.held, "share", HELD))
    if stage == "contention":
        text = f"they wait for it {pool.locked:.0%} of their work"
        facts.append(Evidence(text, pool.locked, "share", LOCKED_SHARE))
    if stage == "read":
        facts.append(
            Evidence(f"they wait for reads {pool.waiting:.0%} of their work", pool.waiting, "share", MOSTLY_WAITING)
        )
    return facts


def examine(scene: Scene, found: Stage, kind: Kind, others: tuple[Stage, ...]) -> tuple[Cause, ...]:
    """Return the causes of one loop: the found ones first, then ruled out, then not measured."""
    causes = []
    for stage in (found, *others):
        if stage in ("none", "unknown"):
            continue
        each = kind if stage == found else name(stage, scene)
        causes.append(Cause(each.id, "found", stage, evidence(stage, scene), round(scene.gains[stage], 3), each.title))
    for stage, gain in sorted(scene.gains.items(), key=lambda item: item[1]):
        # Without stacks only the stalls of the step and what lies outside of loops were seen of the host.
        if stage not in (found, *others, "device") and not (stage == "host" and scene.parts.host_share is None):
            text = f"without it the job would gain {max(0.0, gain - 1):.0%}"
            each = name(stage, scene)
            causes.append(
                Cause(
                    each.id,
                    "ruled_out",
                    stage,
                    (Evidence(text, round(gain - 1, 4), "share", MIN_GAIN),),
                    None,
                    each.title,
                )
            )
    return tuple(causes) + _unmeasured(scene, "host" in (found, *others))


def _unmeasured(scene: Scene, host_found: bool) -> tuple[Cause, ...]:
    reasons: list[tuple[str, Stage, str, str]] = []
    if "copy" not in scene.gains:
        reason = scene.gpu_missing or "not measured: the step did not run on a GPU"
        if len(scene.loop.starved):
            reason = "not measured: nothing marks them; put `with loaderprof.stage('copy'):` around the batch's move"
        reasons.append(("copy-bound", "copy", "Copies to the device", reason))
    if scene.parts.host_share is None and not host_found:
        reason = (
            scene.stacks_missing or f"not measured: {scene.parts.step_samples} stack samples of the step are too few"
        )
        reasons.append(("host-python", "host", "The loop's own Python", reason))
    if scene.parts.runq_s is None and scene.parts.wall_s is not None and "schedstat" in _unread(scene):
        reasons.append(("run-queue", "contention", "Waiting for a core", "this system does not tell it"))
    if scene.parts.asked_bytes is None and scene.parts.wall_s is not None and "io" in _unread(scene):
        reasons.append(("bytes-read", "read", "Bytes read by the makers", "this system does not tell them"))
    return tuple(
        Cause(
            each, "not_measured", stage, (Evidence(reason.removeprefix("not measured: "), None, "", None),), None, title
        )
        for each, stage, title, reason in reasons
    )


def _unread(scene: Scene) -> tuple[str, ...]:
    return tuple(scene.loop.process.header.get("unread", ()))


def _empty_share(loop: Loop) -> float | None:
    known = loop.steady & (loop.ready >= 0) & (loop.count == 1)
    return float((loop.ready[known] == 0).mean()) if known.any() else None


def _border_s(scene: Scene, number: int) -> float:
    epoch = scene.loop.epochs[number]
    usual = usual_wait_s(scene.loop, scene.parts)
    first = epoch.first_batch_s if epoch.first_batch_s == epoch.first_batch_s else 0.0
    return max(0.0, first - usual) + epoch.shutdown_s


def _slow_and_usual(scene: Scene) -> tuple[float, float]:
    wall = scene.loop.made.wall
    usual = float(np.median(wall))
    slow = wall[wall > 3 * usual]
    return (float(slow.mean()) if len(slow) else usual), usual


def _size(bytes_: float) -> str:
    return f"{bytes_ / (1 << 20):.3g} MiB" if bytes_ >= 1 << 20 else f"{bytes_ / 1024:.3g} KiB"


def sampler_of(loop: Loop) -> str:
    """Return the type of what draws the indices: a batch sampler of the user's, else the sampler."""
    batches = str(loop.facts.get("batch_sampler") or TORCH_BATCH_SAMPLER)
    return str(loop.facts.get("sampler") or "") if batches == TORCH_BATCH_SAMPLER else batches


def _short(name_: str) -> str:
    return name_.rsplit(".", 1)[-1]
