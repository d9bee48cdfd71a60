"""What a user should know of each cause: what it means, what tells it, what to do. Rendered by `guide`.

Ids, titles and stages are those of the catalogue in `diagnose.causes`; here are the words around them.
"""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.diagnose.loop_context import MOSTLY_BLOCKED
from loaderprof.diagnose.verdict import MIN_GAIN, MIN_STEPS, STEP_BOUND
from loaderprof.findings import Stage
from loaderprof.replay.removal import STRAGGLER_RATIO


@dataclass(frozen=True, slots=True)
class Guide:
    """What a user should know of one cause.

    Attributes:
        means: what is going on.
        told_by: what tells it from its neighbours; its stage's evidence is added.
        changes: ids of the advice that may be offered for it.
        do: further things to do that no replay can put a number on.
        typed: lines for a shell beyond those that measure the changes.
    """

    means: str
    told_by: str
    changes: tuple[str, ...] = ()
    do: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()


GAIN = f"the replay of the run without it is at least {MIN_GAIN * 100:g} % faster"
_MADE = f"{GAIN}; its share of the making of batches, by timers and by stack samples of the makers"
EVIDENCE: dict[Stage, str] = {
    "read": f"{_MADE}; how much of their time makers are blocked",
    "decode": _MADE,
    "transform": _MADE,
    "collate": _MADE,
    "handover": f"{GAIN}; the time to pickle a batch in the worker and to receive it in the loop",
    "startup": f"{GAIN}; the time until an epoch's first batch and to shut its workers down, over a usual wait",
    "straggler": f"{GAIN}; batches that took over {STRAGGLER_RATIO:g} times the median",
    "contention": f"{GAIN}; the workers' wait for a core, as the kernel counts it",
    "sampler": f"{GAIN}; the time a batch spends in the sampler",
    "host": f"{GAIN}; stack samples of the step that lie in the loop's own Python",
    "device": f"the loader alone could go at least {STEP_BOUND:g} times as fast as the job",
    "copy": f"{GAIN}; without a GPU it is not measured",
    "none": f"no stage of the loader whose removal gains {MIN_GAIN * 100:g} %",
    "unknown": "nothing: that is why there is no verdict",
}

_WORK = ("num-workers", "more-shards")
_DECODE = ("num-workers", "cache-in-memory", "cache-on-disk")
_READ = (
    "num-workers",
    "keep-open",
    "overlapped-reads",
    "requests-in-flight",
    "threads",
    "batches-ahead",
    "cache-in-memory",
)
_STORE = "Store the decoded, or partly decoded, form once (arrays of uint8, tokens, columns) and read that instead."

GUIDES: dict[str, Guide] = {
    "rows-of-tensors": Guide(
        "A `TensorDataset` is indexed once for every sample, and the rows are stacked again; one indexing call does both.",
        "the dataset is torch's own of tensors in memory",
        ("slice-batches", "num-workers"),
        ("Move the whole table to the device if it fits, and shuffle indices there.",),
    ),
    "remote-latency": Guide(
        "Samples are fetched over a network, one after another; the makers of batches wait for answers and hardly work.",
        "calls into sockets or into an HTTP or object-store library within the timed batches",
        (*_READ, "larger-cache", "fewer-canonical-nodes"),
        (
            "Pack samples into shards and read those in sequence: one request then brings many samples.",
            "Stage the data on a local disk before training.",
        ),
    ),
    "piped-command": Guide(
        "Each sample or shard comes through the pipe of a command (`aws s3 cp`, `curl`, `cat`): it is started, and waited for.",
        "the makers' reading is seen in `subprocess`",
        _READ,
        (
            "Start a command for a shard of many samples, not for each; or use a library that keeps its connection.",
            "Copy the data to a local disk before training.",
        ),
    ),
    "network-file-system": Guide(
        "The files lie on a network file system (NFS, Lustre, FUSE, ...): every open and read is a request to a server.",
        "the kernel's table of mounts, looked up for the files that the makers of batches had open",
        _READ,
        ("Copy the data to a local disk before training, or pack it into shards: one open then brings many samples.",),
        ("findmnt -T FILE",),
    ),
    "mapped-file": Guide(
        "Samples are cut from a memory-mapped file that is not in memory: each first touch of a page waits for the disk.",
        "major page faults of the makers of batches",
        ("overlapped-reads",),
        (
            "Read in the order in which samples lie in the file, or in large pieces.",
            "Give the page cache room: a smaller encoding, or more memory.",
        ),
        ("free -g",),
    ),
    "small-files": Guide(
        "Each sample is a small file: opening it costs more than reading it.",
        "the open calls and the bytes of a sample, as the timers and the kernel count them",
        (*_READ, "shards"),
    ),
    "cached-read": Guide(
        "The bytes come from memory (the page cache), yet reading them is the limit: copying and parsing calls, not the disk.",
        "nothing of what was asked for came from the device",
        ("num-workers", "cache-in-memory"),
        ("Read a sample in one call, in its final form; memory-map arrays instead of copying them.",),
    ),
    "single-file": Guide(
        "All samples come out of one large file, read piece by piece.",
        "one file open in the makers of batches, and many bytes a read",
        _READ,
        ("Memory-map it, or cut it into as many parts as there are workers.",),
    ),
    "disk-read": Guide(
        "Bytes come from the device, not from the page cache: the disk, or the file system behind it, sets the pace.",
        "over a fifth of the bytes that were asked for came from the device",
        _READ,
        (
            "Make the data fit in memory, so that later epochs read the page cache: smaller encoding, fewer files.",
            "Read in sequence (shards) instead of at random.",
        ),
        ("iostat -x 1",),
    ),
    "archive-read": Guide(
        "Samples are taken out of a tar or zip archive; finding and unpacking the member is the work.",
        "tarfile or zipfile among the dearest reads",
        _READ,
        ("Keep the archive open in each worker, and read its members in the order in which they lie in it.",),
    ),
    "table-rows": Guide(
        "Rows are looked up one by one in a table that is in memory (pandas): each look-up makes an object of Python.",
        "such a look-up among the dearest reads",
        _READ,
        (
            "Turn the columns into arrays or tensors once, in `__init__`, and index these.",
            "Ask for a batch of rows in one call (`__getitems__`).",
        ),
    ),
    "database-read": Guide(
        "Samples come out of a database file (HDF5, LMDB, Arrow, zarr, SQLite): looking up, copying and converting rows.",
        "such a library among the dearest reads",
        _READ,
        (
            "Open the file once in each worker, on first use.",
            "Ask for a batch of rows in one call (`__getitems__`), and match chunks to what a sample reads.",
        ),
    ),
    "waiting-read": Guide(
        "The makers of batches wait for most of the time of a read: for a network file system, another process, or a lock.",
        f"makers are blocked over {MOSTLY_BLOCKED * 100:g} % of their time, and neither a network library nor the disk is seen",
        (*_READ, "larger-cache", "fewer-canonical-nodes"),
        ("Look at what the report's dearest read calls, and whether others use the same server.",),
    ),
    "file-read": Guide(
        "Opening and reading files takes the time: many small files, or large ones copied from the page cache.",
        "reads that are none of the kinds above",
        (*_READ, "larger-cache", "fewer-canonical-nodes"),
        ("Join small files into shards, or memory-map one large array.",),
    ),
    "jpeg-decode": Guide(
        "Workers turn JPEG bytes into pixels, usually many more pixels than the model gets.",
        "the dearest decode is JPEG's: by its name, or because only JPEG files were opened",
        (*_DECODE, "faster-decoder"),
        ("Store the pictures at the size that training uses.",),
    ),
    "png-decode": Guide(
        "Workers inflate PNG pictures; that is several times dearer than a JPEG of the same size.",
        "the dearest decode is PNG's",
        (*_DECODE, "faster-decoder"),
        ("Store the pictures as JPEG or WebP of high quality, or raw, where that is exact enough.",),
    ),
    "image-decode": Guide(
        "Workers turn encoded pictures of several or other formats into pixels.",
        "a picture library among the dearest decodes",
        (*_DECODE, "faster-decoder"),
        ("Store the pictures at the size that training uses.",),
    ),
    "audio-decode": Guide(
        "Workers turn encoded sound into samples.",
        "a sound library among the dearest decodes",
        _DECODE,
        ("Cut and resample the recordings once, and store the pieces that training uses.",),
    ),
    "video-decode": Guide(
        "Workers turn encoded video into frames; a clip from the middle makes the decoder work from the last key frame on.",
        "a video library among the dearest decodes",
        _DECODE,
        ("Keep the decoder open, ask for frames in ascending order, encode with more key frames, or store frames.",),
    ),
    "tokenising": Guide(
        "Text becomes tokens while training runs, again in each epoch.",
        "a tokeniser among the dearest decodes",
        _DECODE,
        ("Tokenise once, in batches, and train on stored tokens.", "Use the library's fast tokeniser."),
    ),
    "decompression": Guide(
        "Workers inflate compressed arrays or files (gzip, npz, bz2, lzma).",
        "a compression library among the dearest decodes",
        _DECODE,
        (_STORE,),
    ),
    "record-parsing": Guide(
        "Workers parse records: JSON, CSV, XML, pickle, `torch.load`.",
        "a parser among the dearest decodes",
        _DECODE,
        (_STORE,),
    ),
    "decode": Guide(
        "Bytes become values in a way that none of the kinds above names.",
        "decodes that no kind above matches",
        _DECODE,
        (_STORE,),
    ),
    "slow-transform": Guide(
        "What is done to a decoded sample - augmentation, resizing, conversion - takes most of making a batch.",
        "the operators that the user's pipeline calls, each by name and line",
        (*_WORK, "crop-first", "uint8-batches", "cheaper-transform"),
        (
            "Work on uint8 and convert to float last; drop what does nothing; let the library do whole batches.",
            "Move what is not random before the cache.",
        ),
    ),
    "padding": Guide(
        "Joining samples of unequal length into a batch, and filling the rest, takes most of making a batch.",
        "a padding function among the dearest parts of collate",
        (*_WORK, "cheaper-collate"),
        ("Batch samples of like length together; allocate the batch once and copy into it.",),
    ),
    "slow-collate": Guide(
        "Joining samples into a batch takes most of making it: Python loops, conversions, many small tensors.",
        "the collate function and what it calls",
        (*_WORK, "cheaper-collate"),
        ("Stack arrays in one call; fetch whole batches with `__getitems__`.",),
    ),
    "pickled-arrays": Guide(
        "The arrays of a batch are pickled, written to a pipe, read and unpickled; tensors would pass through shared memory.",
        "pickles as large as the batch",
        ("shared-memory", "no-workers"),
    ),
    "pickled-objects": Guide(
        "A batch holds objects of Python's own, which are pickled through a pipe and built anew in the training thread.",
        "pickles larger than handles of shared memory are, in batches that hold few arrays",
        ("shared-memory", "no-workers"),
        ("Send columns instead of objects: one array for each field.",),
    ),
    "many-tensors": Guide(
        "A batch consists of so many pieces that taking it out of the queue holds up the training thread.",
        "the number of tensors in a batch",
        ("fewer-tensors", "no-workers", "pin-memory"),
        ("Hand over few large tensors instead of lists and dictionaries of small ones.",),
    ),
    "large-batches": Guide(
        "Moving a batch from the worker to the loop takes the time: its bytes are copied into shared memory.",
        "handing over takes the time, and not for the number of pieces",
        ("uint8-batches", "no-workers", "pin-memory"),
        ("Leave out what the step does not use.",),
    ),
    "batch-handover": Guide(
        "Making a batch costs so little that handing it from a worker to the loop is what takes the time.",
        "handing over takes the time, and the batch is neither large nor of many tensors",
        ("no-workers", "pin-memory"),
        ("Larger batches share the cost of one handing over.",),
    ),
    "worker-restart": Guide(
        "Workers are started anew for each epoch: imports, the copy of the dataset, and the first batches are waited for.",
        "more than one epoch began with new workers",
        ("persistent-workers", "one-loader", "start-method"),
        ("Make epochs longer, or the dataset cheap to hand to a new process.",),
    ),
    "slow-first-batch": Guide(
        "The wait for the first batch is a good part of what was seen.",
        "workers were not started again; the first batch alone is late",
        ("start-method",),
        (
            "Do less before the first sample: index files once and store the list, import less in workers.",
            "Watch a longer run: beside hours of training a slow start may not matter.",
        ),
        ("python -X importtime train.py",),
    ),
    "slow-samples": Guide(
        "A few batches take much longer than the others, and the batches behind them wait in line.",
        "the replay without the slow batches recovers most of what a perfect loader would gain",
        ("out-of-order", "prefetch-factor"),
        (
            "Look at the slowest batches and samples in the report's page; store what is special about them differently.",
        ),
    ),
    "thread-oversubscription": Guide(
        "Each worker runs several threads of a library (OpenMP, MKL, OpenCV), and all of them fight for the same cores.",
        f"a worker's process burns over {MANY_THREADS:g} times the CPU time of its own thread",
        ("single-threaded-workers", "num-workers"),
        (),
        ("OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 loaderprof run train.py",),
    ),
    "interpreter-lock": Guide(
        "Python threads compute at once - makers of batches, or one beside the training - and take turns at the "
        "interpreter's lock.",
        "stack samples of threads that run Python while batches are made or taken, and how long the lock is held",
        ("processes", "threads-and-processes"),
        ("Move that thread's work into a process, or into a library call that gives the lock back.",),
    ),
    "bound-workers": Guide(
        "Workers may use fewer CPUs than the job has: an affinity was inherited, or set in `worker_init_fn`.",
        "the mask of CPUs that each maker of batches reported",
        (),
        ("Give the workers all CPUs of the budget again; look for KMP_AFFINITY, GOMP_CPU_AFFINITY, taskset, numactl.",),
        ("grep Cpus_allowed_list /proc/PID/status",),
    ),
    "busy-helpers": Guide(
        "Other processes of the same job take cores that loop and workers want.",
        "the CPU time of the job's processes that are neither loop nor workers",
        (),
        ("Stop them, move them to another time, or give the job more cores.",),
        ("ps --ppid PID -o pid,pcpu,args",),
    ),
    "slow-sampler": Guide(
        "The loop waits for the next indices before it can ask for a batch: the sampler runs in the training thread.",
        "the time spent in the sampler",
        ("cheaper-sampler",),
        (
            "Make the order once, as an array, and iterate that; weights and buckets can be drawn for many batches at once.",
        ),
    ),
    "validation": Guide(
        "Validation, or another loop inside the training loop, holds up training.",
        "another loader is iterated between two steps for most of the time that the loop's own Python takes",
        ("lighter-loop",),
        ("Validate less often, on less data, or in another process; keep its workers (`persistent_workers=True`).",),
    ),
    "periodic-stall": Guide(
        "Every so many steps one takes much longer: a checkpoint, a log, an evaluation.",
        "stalls of the step at a regular distance make up over half of its time",
        ("lighter-loop",),
        ("Write checkpoints in another thread or less often.",),
    ),
    "host-python": Guide(
        "The loop's own Python - metrics, logging, moving numbers to the CPU - takes the time, not model or loader.",
        "the line that most of those samples end in",
        ("lighter-loop",),
        ("Keep metrics on the device and read them every so many steps: `loss.item()` waits for the device.",),
    ),
    "pageable-copy": Guide(
        "Batches are copied to the device from memory that is not pinned: the host takes part in every copy, and waits.",
        "the share of a batch's bytes in pinned memory, and what the copy takes of a step",
        ("pin-memory",),
        ("Copy with `non_blocking=True`, so that the host goes on meanwhile.",),
    ),
    "float-copy": Guide(
        "Batches of floats are copied to the device; where they were made from bytes, that is four times as much.",
        "the share of a batch's bytes that are floats, and how fast the link is",
        ("uint8-batches", "overlapped-copy"),
        ("Send half precision where the model computes in it anyhow.",),
    ),
    "copy-bound": Guide(
        "Copies of batches to the device are not hidden behind its work.",
        "what the copy takes of a step, as marked by `loaderprof.stage('copy')` or a library's function that moves batches",
        ("overlapped-copy",),
        ("Copy the next batch on a stream of its own while the step goes on.",),
    ),
    "stolen-core": Guide(
        "The thread that launches kernels waits for a core that workers hold, and the device waits for it.",
        "how much of the step that thread waited for a core",
        ("num-workers",),
        ("Leave a core free: fewer workers, or `os.sched_setaffinity` in `worker_init_fn`.",),
    ),
    "launch-bound": Guide(
        "The host launches kernels more slowly than the device runs them: many small kernels, or much Python around them.",
        "a GPU that runs a kernel less than so much of the time, beside a thread that is at work nearly all of the step",
        (),
        ("A larger batch, `torch.compile`, or CUDA graphs: fewer launches for the same work.",),
    ),
    "compute-bound": Guide(
        "The step itself is the limit. The loader keeps up; a change to it gains nothing.",
        "finished batches wait to be taken",
        (),
        ("Profile the model: `torch.profiler`. Fewer workers may do as well and free cores.",),
        ("loaderprof run --set num_workers=1 train.py",),
    ),
}

# Verdicts and entries of the report that stand for no cause of the catalogue.
OTHERS: dict[str, tuple[str, Stage, Guide]] = {
    "balanced": (
        "The loader keeps up",
        "none",
        Guide(
            "Loader and step are in balance.",
            "each stage that was measured",
            (),
            ("Nothing here. A faster model may make the loader the limit; then look again.",),
            ("loaderprof check DIR --max-wait 10%",),
        ),
    ),
    "no-loader": (
        "No DataLoader was seen",
        "unknown",
        Guide(
            "The job took no batch from a torch DataLoader in a process that was watched.",
            "no record of a batch in the recording",
            (),
            (
                "Wrap what yields your batches: `for batch in loaderprof.watch(batches):`",
                "Where a launcher cleans the environment (`-E`, `-I`, a PYTHONPATH of its own), profile from code.",
            ),
            ("loaderprof env",),
        ),
    ),
    "not-enough-evidence": (
        "Not enough evidence",
        "unknown",
        Guide(
            f"Too little was seen to name a limit: below {MIN_STEPS} steady steps, or batches that could not be measured.",
            "the report's sentence says what is missing",
            (),
            ("Let the job run for longer.",),
            ("loaderprof attach PID --duration 120",),
        ),
    ),
}
