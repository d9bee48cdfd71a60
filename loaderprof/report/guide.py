"""The guide to the causes: what each means, the evidence it rests on, what to do and what to type.

`python -m loaderprof.report.guide > docs/causes.md` writes the page. Ids, titles, stages and thresholds are those of
the catalogues in `diagnose` and `predict`; here are the words around them.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass

from loaderprof.diagnose.breakdown import MANY_THREADS
from loaderprof.diagnose.causes import CATALOGUE
from loaderprof.diagnose.scene import MOSTLY_BLOCKED
from loaderprof.diagnose.verdict import MIN_GAIN, MIN_STEPS, STEP_BOUND
from loaderprof.findings import Stage
from loaderprof.predict.decoder_advice import DECODER_RATIOS
from loaderprof.predict.removal import STRAGGLER_RATIO

PAGE = "docs/causes.md"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the catalogue of advice in general words. `code` is Python; a setting is measured by `verify`."""

    action: str
    setting: bool = True
    code: str = ""


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


CHANGES: dict[str, Change] = {
    "num-workers": Change(
        "Set `num_workers` to the least number that is within 1 % of the best; never more than the CPU budget has cores"
    ),
    "prefetch-factor": Change("Raise `prefetch_factor`: a deeper queue rides over slow batches, at the price of memory"),
    "persistent-workers": Change("Keep the workers between epochs: `persistent_workers=True`"),
    "one-loader": Change(
        "Make the DataLoader once, before the loop over epochs, with `persistent_workers=True`", setting=False
    ),
    "start-method": Change(
        "Start workers with `multiprocessing_context='fork'`, where they leave CUDA alone: a forked worker imports nothing"
    ),
    "out-of-order": Change("Take batches as they are ready: `in_order=False` (torch 2.7 or newer); their order changes"),
    "pin-memory": Change("`pin_memory=True` on a GPU: a thread receives and pins batches beside the training thread"),
    "overlapped-copy": Change(
        "Copy the next batch on a stream of its own, while the step goes on",
        setting=False,
        code=(
            "with torch.cuda.stream(side):\n    following = next(batches).to(device, non_blocking=True)\n"
            "step(batch)\ntorch.cuda.current_stream().wait_stream(side)\n"
            "following.record_stream(torch.cuda.current_stream())"
        ),
    ),
    "gpu-decode": Change(
        "Decode on the GPU where it has time to spare (nvJPEG by `torchvision.io.decode_jpeg(..., device='cuda')`, or DALI)",
        setting=False,
        code='images = torchvision.io.decode_jpeg(encoded, device="cuda")  # a batch of encoded files at once, in the loop',
    ),
    "cache-in-memory": Change(
        "Cache samples in memory, before what is random; it gains from the second epoch on",
        setting=False,
        code="self.cache = [self.load(i) for i in range(len(self))]  # in the dataset, before the workers start",
    ),
    "cache-on-disk": Change(
        "Where samples do not fit in memory: store them decoded, as arrays in one file that is mapped",
        setting=False,
        code=(
            'decoded = np.lib.format.open_memmap("decoded.npy", "w+", np.uint8, (len(files), *shape))  # filled once\n'
            'decoded = np.load("decoded.npy", mmap_mode="r")  # in the dataset'
        ),
    ),
    "shards": Change(
        "Pack small files into a few large ones (tar, LMDB, Parquet, one array), and read these in a row",
        setting=False,
        code='webdataset.WebDataset("train-{000..099}.tar", shardshuffle=100).shuffle(1000)',
    ),
    "uint8-batches": Change(
        "Send images as uint8, and make them floats after the copy to the device: a quarter of the bytes",
        setting=False,
        code="images = images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)",
    ),
    "crop-first": Change(
        "Cut samples to size while they are bytes: the crop or the resize before what makes floats of them",
        setting=False,
        code="Compose([RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)])",
    ),
    "faster-decoder": Change(
        f"Decode at reduced size or with a faster decoder (tried on the job's own files; "
        f"{DECODER_RATIOS[0]:g} to {DECODER_RATIOS[-1]:g} times as fast is assumed where they have gone)",
        setting=False,
        code='image = Image.open(path)\nimage.draft("RGB", (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8',
    ),
    "keep-open": Change(
        "Open an archive or a database file once in each worker, on first use, not for every sample",
        setting=False,
        code=(
            "def __getitem__(self, index):\n    if self.file is None:  # None in __init__: each worker opens its own\n"
            "        self.file = h5py.File(self.path)"
        ),
    ),
    "overlapped-reads": Change(
        "Read the samples of a batch at once, in threads within `__getitems__`",
        setting=False,
        code=(
            "def __getitems__(self, indices):\n    with ThreadPoolExecutor(8) as pool:\n"
            "        return list(pool.map(self.__getitem__, indices))"
        ),
    ),
    "single-threaded-workers": Change(
        "Give each worker one thread",
        setting=False,
        code="def one_thread(worker_id):  # worker_init_fn=one_thread\n    torch.set_num_threads(1)\n    cv2.setNumThreads(0)",
    ),
    "slice-batches": Change(
        "Take each batch as one slice of the tensors instead of row by row",
        setting=False,
        code=(
            "sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)\n"
            "loader = DataLoader(dataset, sampler=sampler, batch_size=None)  # dataset[list of indices]"
        ),
    ),
    "shared-memory": Change(
        "Return tensors, not arrays or objects: they pass through shared memory",
        setting=False,
        code="def collate(samples):\n    return torch.from_numpy(np.stack(samples))",
    ),
    "fewer-tensors": Change(
        "Stack what a batch holds into a few tensors in `collate_fn`",
        setting=False,
        code="def collate(samples):\n    return torch.stack([box for sample in samples for box in sample])",
    ),
    "no-workers": Change("Make batches in the training process, where handing them over costs more: `num_workers=0`"),
    "cheaper-sampler": Change("Make the sampler cheaper: draw the indices of an epoch at once", setting=False),
    "processes": Change("Use processes for the threads: `ProcessPoolExecutor` for `ThreadPoolExecutor`", setting=False),
    "threads": Change("Use threads for the processes: they only wait", setting=False),
    "requests-in-flight": Change("Keep more requests in flight: more threads that wait", setting=False),
    "threads-and-processes": Change("Threads for what waits, processes for what computes", setting=False),
    "batches-ahead": Change("Submit the next batch before the step, so that it is made meanwhile", setting=False),
    "ray-tasks": Change("Let more tasks of Ray's `map_batches` run at once", setting=False),
    "ray-prefetch": Change("Have Ray fetch batches ahead of the loop: `prefetch_batches`", setting=False),
    "cheaper-transform": Change("Make the dearest transform cheaper; the report names it and its line", setting=False),
    "cheaper-collate": Change("Make the dearest part of collate cheaper; the report names it and its line", setting=False),
    "lighter-loop": Change(
        "Take logging, metrics and checkpoints off the step: do them less often, or beside it", setting=False
    ),
}  # fmt: skip

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

_WORK = ("num-workers",)
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
        _READ,
        ("Pack samples into shards and read those in sequence: one request then brings many samples.",
         "Stage the data on a local disk before training."),
    ),
    "piped-command": Guide(
        "Each sample or shard comes through the pipe of a command (`aws s3 cp`, `curl`, `cat`): it is started, and waited for.",
        "the makers' reading is seen in `subprocess`",
        _READ,
        ("Start a command for a shard of many samples, not for each; or use a library that keeps its connection.",
         "Copy the data to a local disk before training."),
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
        ("Read in the order in which samples lie in the file, or in large pieces.",
         "Give the page cache room: a smaller encoding, or more memory."),
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
        ("Make the data fit in memory, so that later epochs read the page cache: smaller encoding, fewer files.",
         "Read in sequence (shards) instead of at random."),
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
        ("Turn the columns into arrays or tensors once, in `__init__`, and index these.",
         "Ask for a batch of rows in one call (`__getitems__`)."),
    ),
    "database-read": Guide(
        "Samples come out of a database file (HDF5, LMDB, Arrow, zarr, SQLite): looking up, copying and converting rows.",
        "such a library among the dearest reads",
        _READ,
        ("Open the file once in each worker, on first use.",
         "Ask for a batch of rows in one call (`__getitems__`), and match chunks to what a sample reads."),
    ),
    "waiting-read": Guide(
        "The makers of batches wait for most of the time of a read: for a network file system, another process, or a lock.",
        f"makers are blocked over {MOSTLY_BLOCKED * 100:g} % of their time, and neither a network library nor the disk is seen",
        _READ,
        ("Look at what the report's dearest read calls, and whether others use the same server.",),
    ),
    "file-read": Guide(
        "Opening and reading files takes the time: many small files, or large ones copied from the page cache.",
        "reads that are none of the kinds above",
        _READ,
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
        ("Work on uint8 and convert to float last; drop what does nothing; let the library do whole batches.",
         "Move what is not random before the cache."),
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
        ("Do less before the first sample: index files once and store the list, import less in workers.",
         "Watch a longer run: beside hours of training a slow start may not matter."),
        ("python -X importtime train.py",),
    ),
    "slow-samples": Guide(
        "A few batches take much longer than the others, and the batches behind them wait in line.",
        "the replay without the slow batches recovers most of what a perfect loader would gain",
        ("out-of-order", "prefetch-factor"),
        ("Look at the slowest batches and samples in the report's page; store what is special about them differently.",),
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
        ("Make the order once, as an array, and iterate that; weights and buckets can be drawn for many batches at once.",),
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
}  # fmt: skip

# Verdicts and entries of the report that stand for no cause of the catalogue.
OTHERS: dict[str, tuple[str, Stage, Guide]] = {
    "balanced": ("The loader keeps up", "none", Guide(
        "Loader and step are in balance.",
        "each stage that was measured",
        (),
        ("Nothing here. A faster model may make the loader the limit; then look again.",),
        ("loaderprof check DIR --max-wait 10%",),
    )),
    "no-loader": ("No DataLoader was seen", "unknown", Guide(
        "The job took no batch from a torch DataLoader in a process that was watched.",
        "no record of a batch in the recording",
        (),
        ("Wrap what yields your batches: `for batch in loaderprof.watch(batches):`",
         "Where a launcher cleans the environment (`-E`, `-I`, a PYTHONPATH of its own), profile from code."),
        ("loaderprof env",),
    )),
    "not-enough-evidence": ("Not enough evidence", "unknown", Guide(
        f"Too little was seen to name a limit: below {MIN_STEPS} steady steps, or batches that could not be measured.",
        "the report's sentence says what is missing",
        (),
        ("Let the job run for longer.",),
        ("loaderprof attach PID --duration 120",),
    )),
}  # fmt: skip

HEAD = f"""# Causes

Each verdict names a stage and its cause. Here is what every cause means, the evidence it rests on, what to do, and what
to type; `DIR` is the recording's folder. A change with an id in brackets is offered by the report where the replay of
your run says that it gains, with how much.

This page is made by `python -m loaderprof.report.guide > {PAGE}` from the catalogues that the reports use.
"""


def render() -> str:
    """Return the guide as Markdown, a section a cause, under a heading that is the cause's id."""
    entries = [(kind.id, kind.title, kind.stage, GUIDES[kind.id]) for kind in CATALOGUE]
    entries += [(each, *rest) for each, rest in OTHERS.items()]
    return HEAD + "".join(_section(*entry) for entry in entries)


def place(cause: str) -> str:
    """Return where the guide tells of a cause: `docs/causes.md#jpeg-decode`; empty where it does not."""
    return f"{PAGE}#{cause}" if cause in GUIDES or cause in OTHERS else ""


def _section(cause: str, title: str, stage: Stage, guide: Guide) -> str:
    offered = [(each, CHANGES[each]) for each in guide.changes]
    do = [_filled(f"- {change.action} (`{each}`).", "  ") for each, change in offered]
    do += [_filled(f"- {text}", "  ") for text in guide.do]
    measured = [f"loaderprof verify DIR --change {each}" for each, change in offered if change.setting]
    shell = [*measured, *guide.typed] or ["loaderprof run train.py  # again, after the change"]
    code = [change.code for _, change in offered if change.code]
    parts = [
        f"## {cause}", _filled(f"**{title}** (stage `{stage}`). {guide.means}"),
        _filled(f"**Evidence.** {_sentence(guide.told_by)} {_sentence(EVIDENCE[stage])}"),
        "**What to do.**", "\n".join(do), "**What to type.**", _block("bash", shell),
        *(_block("python", [each]) for each in code),
    ]  # fmt: skip
    return "\n" + "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _block(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


if __name__ == "__main__":
    sys.stdout.write(render())
