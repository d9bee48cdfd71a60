"""The catalogue of causes: what each is told by, and the words it is told in.

A cause refines the stage that limits the job. `examine` holds every cause against one loop: found, ruled out with the
number that rules it out, or not measured with the reason. Every sentence a user reads about a cause stands here, those
of its evidence in `evidence.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loaderprof.analyze.breakdown import usual_wait_s
from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.analyze.stages import LOADER
from loaderprof.diagnose.evidence import evidence
from loaderprof.diagnose.loop_context import (
    MOSTLY_BLOCKED,
    MOSTLY_FLOATS,
    MOSTLY_REMOTE,
    LoopContext,
    blocked_share,
    cached,
    from_device,
    how_read,
    kept_waiting,
    launches,
    many_tensors,
    mapped,
    of_tensors,
    pageable,
    piped,
    piped_arrays,
    remote,
    restarts,
    sampler_of,
    single_file,
    small_files,
    step_s,
)
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Cause, Evidence, Stage

# What comes after a step that is the limit is named where it gains so much.
WORTH_NAMING = 0.1
# Below this, copying a batch into shared memory costs less than receiving any batch does.
LARGE_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class CauseRule:
    """One cause of the catalogue. `matches` says whether a bottleneck of its stage is this one."""

    id: str
    stage: Stage
    title: str
    matches: Callable[[LoopContext], bool]


def _uses(pattern: str, stage: Stage | None = None) -> Callable[[LoopContext], bool]:
    """Match where the stage's dearest operators are named like this."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def matches(context: LoopContext) -> bool:
        names = [piece.name for piece in context.parts.pieces if stage is None or piece.stage == stage][:3]
        return any(compiled.search(name) for name in names)

    return matches


def _decodes(context: LoopContext, format_: str) -> bool:
    """Whether images of this format alone are decoded: PIL decodes lazily, but the format's plugin opened the file."""
    opened = [each for each in context.operators if re.search(r"^PIL\.\w+ImagePlugin", each)]
    if opened and _uses(r"PIL\.", "decode")(context):
        return all(re.search(format_, each, re.IGNORECASE) for each in opened)
    return _uses(format_, "decode")(context)


def _always(_: LoopContext) -> bool:
    return True


# In the order in which they are tried: the first that matches its stage names it.
CATALOGUE: tuple[CauseRule, ...] = (
    CauseRule("rows-of-tensors", "read", "Tensor rows fetched one by one", of_tensors),
    CauseRule(
        "piped-command",
        "read",
        "Data piped from a command",
        lambda context: (how_read(context).command or 0) >= MOSTLY_REMOTE,
    ),
    CauseRule("remote-latency", "read", "Remote reads", remote),
    CauseRule(
        "network-file-system",
        "read",
        "Reads from a network file system",
        lambda context: how_read(context).over_network,
    ),
    CauseRule("mapped-file", "read", "Page faults of a mapped file", mapped),
    CauseRule("small-files", "read", "Many small files", small_files),
    CauseRule("disk-read", "read", "Reads from the disk", from_device),
    CauseRule("archive-read", "read", "Reads from an archive", _uses(r"tarfile|zipfile", "read")),
    CauseRule(
        "table-rows",
        "read",
        "Rows looked up in a table in memory",
        _uses(r"i?LocIndexer|_LocationIndexer|\.i?loc\b", "read"),
    ),
    CauseRule(
        "database-read",
        "read",
        "Reads from a database file",
        _uses(r"h5py|lmdb|sql|query|pyarrow|zarr|datasets", "read"),
    ),
    CauseRule("cached-read", "read", "Reads of files that are in memory", cached),
    CauseRule("single-file", "read", "Reads from one large file", single_file),
    CauseRule("waiting-read", "read", "Waiting for reads", lambda context: blocked_share(context) > MOSTLY_BLOCKED),
    CauseRule("file-read", "read", "File reads", _always),
    CauseRule("jpeg-decode", "decode", "JPEG decode", lambda context: _decodes(context, r"jpe?g")),
    CauseRule("png-decode", "decode", "PNG decode", lambda context: _decodes(context, r"png")),
    CauseRule(
        "image-decode",
        "decode",
        "Image decode",
        _uses(r"PIL|cv2\.im|imageio|read_image|png|webp|tiff|imdecode", "decode"),
    ),
    CauseRule(
        "audio-decode", "decode", "Audio decode", _uses(r"soundfile|wave\b|audio|librosa|flac|mp3|\bsf\.", "decode")
    ),
    CauseRule("video-decode", "decode", "Video decode", _uses(r"\bav\b|decord|torchcodec|video", "decode")),
    CauseRule("tokenising", "decode", "Tokenising", _uses(r"token|transformers|sentencepiece|tiktoken", "decode")),
    CauseRule("decompression", "decode", "Decompression", _uses(r"zlib|gzip|bz2|lzma|npz|compress|inflate", "decode")),
    CauseRule(
        "record-parsing",
        "decode",
        "Parsing of records",
        _uses(r"json|csv|pickle|parse|xml|yaml|html|\bre\.|torch\.load|loads", "decode"),
    ),
    CauseRule("decode", "decode", "Decoding", _always),
    CauseRule("slow-transform", "transform", "Transforms", _always),
    CauseRule("padding", "collate", "Collating with padding", _uses(r"\bpad|_pad|pad_", "collate")),
    CauseRule("slow-collate", "collate", "Collating", _always),
    CauseRule("pickled-arrays", "handover", "Arrays pickled through a pipe", piped_arrays),
    CauseRule("pickled-objects", "handover", "Objects pickled through a pipe", piped),
    CauseRule("many-tensors", "handover", "Handing many tensors over", many_tensors),
    CauseRule(
        "large-batches",
        "handover",
        "Handing large batches over",
        lambda context: (context.batch_bytes or 0) >= LARGE_BATCH,
    ),
    CauseRule("batch-handover", "handover", "Handing batches over", _always),
    CauseRule("worker-restart", "startup", "Workers start again at every epoch", restarts),
    CauseRule("slow-first-batch", "startup", "The first batch", _always),
    CauseRule("slow-samples", "straggler", "A few slow samples", _always),
    CauseRule(
        "thread-oversubscription",
        "contention",
        "Too many threads in the workers",
        lambda context: (context.parts.threads or 0) > MANY_THREADS,
    ),
    CauseRule(
        "interpreter-lock",
        "contention",
        "A Python thread holds the interpreter's lock",
        lambda context: bool(context.parts.lock_holder),
    ),
    CauseRule("bound-workers", "contention", "Workers bound to too few CPUs", lambda context: context.bound),
    CauseRule("busy-helpers", "contention", "Other processes of the job take its cores", _always),
    CauseRule("slow-sampler", "sampler", "The sampler", _always),
    CauseRule("validation", "host", "Validation inside the training loop", lambda _: False),
    CauseRule(
        "periodic-stall",
        "host",
        "The loop stalls now and then",
        lambda context: context.parts.stall_s > 0.5 * step_s(context),
    ),
    CauseRule("host-python", "host", "The loop's own Python", _always),
    CauseRule("pageable-copy", "copy", "Copies from pageable memory", pageable),
    CauseRule("float-copy", "copy", "Copies of floats", lambda context: (context.float_share or 0.0) >= MOSTLY_FLOATS),
    CauseRule("copy-bound", "copy", "Copies to the device", _always),
    CauseRule("stolen-core", "device", "Workers take the core that launches kernels", kept_waiting),
    CauseRule("launch-bound", "device", "The CPU cannot launch kernels fast enough", launches),
    CauseRule("compute-bound", "device", "The model's own work", _always),
)


def cause_of(stage: Stage, context: LoopContext) -> CauseRule:
    """Return the cause of the catalogue that a bottleneck of this stage is."""
    if stage == "host" and context.validates:
        return next(kind for kind in CATALOGUE if kind.id == "validation")
    for kind in CATALOGUE:
        if kind.stage == stage and kind.matches(context):
            return kind
    return CauseRule("balanced" if stage == "none" else "unknown", stage, "", _always)


def headline(stage: Stage, kind: CauseRule, context: LoopContext) -> str:
    """Return the verdict in one sentence."""
    named, loader = context.named(stage), context.loop.name
    if stage in ("read", "decode", "transform", "collate"):
        return f"{kind.title} in {context.producer()}" + (f" ({named})" if named else "")
    if stage == "startup":
        epochs = context.loop.epochs
        if kind.id == "worker-restart":
            lost = sum(_border_s(context, number) for number in range(len(epochs)))
            return f"{kind.title} of {loader}: {lost:.1f} s over {len(epochs)} epochs"
        return f"{kind.title} of {loader} takes {epochs[0].first_batch_s:.1f} s"
    if stage == "straggler":
        slow, usual = _slow_and_usual(context)
        order = (
            " and the loader keeps order"
            if context.loop.facts.in_order is not False and context.loop.num_workers
            else ""
        )
        return f"A few batches of {loader} take {slow:.2g} s where most take {usual:.2g} s{order}"
    if stage == "contention":
        if kind.id == "thread-oversubscription":
            return (
                f"Each of {max(1, context.loop.num_workers)} workers keeps {context.parts.threads or 0:.1f} threads busy "
                f"on {context.cores:g} cores"
            )
        if kind.id == "interpreter-lock" and context.parts.pool is not None and context.parts.pool.producers > 1:
            if context.parts.takes_turns():
                return f"{context.producer()} take turns at the interpreter's lock ({context.parts.lock_holder})"
            return (
                f"{context.producer()} hold the interpreter's lock while the loop steps ({context.parts.lock_holder})"
            )
        if kind.id == "interpreter-lock":
            return f"{kind.title} ({context.parts.lock_holder})"
        if kind.id == "bound-workers":
            return f"{context.loop.num_workers} workers of {context.loop.name} are bound to too few of {context.cores:g} cores"
        return f"{kind.title}: {context.helpers:.1f} of {context.cores:g}"
    if stage == "handover":
        if kind.id.startswith("pickled"):
            return f"{kind.title} from the workers of {loader} to the training process"
        return f"{kind.title} of {loader} from workers to the training process"
    if stage == "sampler":
        drawn_by = ", ".join(filter(None, (_short(sampler_of(context.loop)), context.sampler_where)))
        return f"The sampler of {loader} ({drawn_by})"
    if stage == "host":
        line = f": {context.parts.host_by[0][0]}" if context.parts.host_by else ""
        return f"{kind.title}{line}"
    if stage == "copy":
        return f"{kind.title}{'' if kind.id == 'copy-bound' else ' to the device'} hold it up"
    if kind.id in ("launch-bound", "stolen-core"):
        return f"{kind.title}: the device waits for the host within the step"
    if stage == "device":
        after = max(LOADER, key=context.gain)
        if context.gain(after) >= WORTH_NAMING:
            return f"The step itself is the limit; after it, {cause_of(after, context).title}"
        return "The step itself is the limit; the loader keeps up"
    return "The loader keeps up. Nothing to change here."


def examine(context: LoopContext, found: Stage, kind: CauseRule, others: tuple[Stage, ...]) -> tuple[Cause, ...]:
    """Return the causes of one loop: the found ones first, then ruled out, then not measured."""
    causes = []
    for stage in (found, *others):
        if stage in ("none", "unknown"):
            continue
        each = kind if stage == found else cause_of(stage, context)
        causes.append(
            Cause(each.id, "found", stage, evidence(stage, context), round(context.gains[stage], 3), each.title)
        )
    for stage, gain in sorted(context.gains.items(), key=lambda item: item[1]):
        # Without stacks only the stalls of the step and what lies outside of loops were seen of the host.
        if stage not in (found, *others, "device") and not (stage == "host" and context.parts.host_share is None):
            text = f"without it the job would gain {max(0.0, gain - 1):.0%}"
            each = cause_of(stage, context)
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
    return tuple(causes) + _unmeasured(context, "host" in (found, *others))


def _unmeasured(context: LoopContext, host_found: bool) -> tuple[Cause, ...]:
    reasons: list[tuple[str, Stage, str, str]] = []
    if "copy" not in context.gains:
        reason = context.gpu_missing or "not measured: the step did not run on a GPU"
        if len(context.loop.starved):
            reason = "not measured: nothing marks them; put `with loaderprof.stage('copy'):` around the batch's move"
        reasons.append(("copy-bound", "copy", "Copies to the device", reason))
    if context.parts.host_share is None and not host_found:
        reason = (
            context.stacks_missing
            or f"not measured: {context.parts.step_samples} stack samples of the step are too few"
        )
        reasons.append(("host-python", "host", "The loop's own Python", reason))
    if context.parts.runq_s is None and context.parts.wall_s is not None and "schedstat" in _unread(context):
        reasons.append(("run-queue", "contention", "Waiting for a core", "this system does not tell it"))
    if context.parts.asked_bytes is None and context.parts.wall_s is not None and "io" in _unread(context):
        reasons.append(("bytes-read", "read", "Bytes read by the makers", "this system does not tell them"))
    return tuple(
        Cause(
            each, "not_measured", stage, (Evidence(reason.removeprefix("not measured: "), None, "", None),), None, title
        )
        for each, stage, title, reason in reasons
    )


def _unread(context: LoopContext) -> tuple[str, ...]:
    return tuple(context.loop.process.header.unread)


def _border_s(context: LoopContext, number: int) -> float:
    epoch = context.loop.epochs[number]
    usual = usual_wait_s(context.loop, context.parts)
    first = epoch.first_batch_s if epoch.first_batch_s == epoch.first_batch_s else 0.0
    return max(0.0, first - usual) + epoch.shutdown_s


def _slow_and_usual(context: LoopContext) -> tuple[float, float]:
    wall = context.loop.made.wall
    usual = float(np.median(wall))
    slow = wall[wall > 3 * usual]
    return (float(slow.mean()) if len(slow) else usual), usual


def _short(name_: str) -> str:
    return name_.rsplit(".", 1)[-1]
