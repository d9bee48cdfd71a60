"""Why a job ended too early, and what to do: one sentence for each error that a loader is known to raise. Pure."""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.recording.reader import Recording

_SENTENCES = {
    "missing-guard": (
        'the script has no `if __name__ == "__main__":` around what starts the training, so that every worker, started '
        "anew by spawn or forkserver, ran the training again: put it under one"
    ),
    "cuda-after-fork": (
        "a worker, forked from a process that uses CUDA, used CUDA itself: leave tensors on the CPU in the dataset, or set "
        'multiprocessing_context="spawn"'
    ),
    "unpicklable": (
        "something that workers started by spawn or forkserver need cannot be pickled - a lambda, a local function or "
        "class, an open file in the dataset or the collate function: define it at the top of a module, open files in the worker"
    ),
    "open-files": (
        "the process ran out of open files{files}: each tensor of a batch in flight holds one: raise `ulimit -n`, lower "
        'num_workers x prefetch_factor, or torch.multiprocessing.set_sharing_strategy("file_system")'
    ),
    "shared-memory": (
        "/dev/shm was full{shm}, in which workers hand their batches over: lower num_workers x prefetch_factor, or make it "
        "larger (docker run --shm-size=8g, or --ipc=host)"
    ),
    "killed-worker": (
        "a worker was killed from outside, as the kernel does when memory runs out: fewer workers, smaller batches, or "
        "arrays in place of lists of Python objects, which every worker copies little by little; `dmesg | tail` tells"
    ),
    "crashed-worker": (
        "a worker crashed in native code: `PYTHONFAULTHANDLER=1 loaderprof run ...` shows where, as does num_workers=0"
    ),
    "timed-out": "no worker had a batch ready within the loader's `timeout`: a slow or hung read, which num_workers=0 shows",
    "lost-worker": "a worker ended without a word; its own last lines, or num_workers=0, tell why",
}
# An error in one process may cause another error elsewhere: the cause stands before its effect.
_ORDER = tuple(_SENTENCES)


def explained(recording: Recording) -> str | None:
    """Return why the job ended; None where it ended well, or by an error that is not the loader's."""
    code, signal = recording.meta.exit_code, recording.meta.signal
    if not (code or signal):
        return None
    known = {recording.texts[number] for number in recording.tables["end"]["error"] if number >= 0}
    error = next((each for each in _ORDER if each in known), None)
    if error is None:
        return None
    limit = recording.meta.open_files_limit
    shm = recording.host[-1].get("shm", {}).get("total") if recording.host else None
    return _SENTENCES[error].format(
        files=f" (its limit is {limit:g})" if limit is not None and limit > 0 else "",
        shm=f" ({formatting.size(shm)})" if shm else "",
    )
