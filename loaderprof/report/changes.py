"""The changes of the catalogue of advice in general words, for the guide to the causes. Ids are those of `predict`."""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.advise.changes.decoder import DECODER_RATIOS


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the catalogue of advice in general words. `code` is Python; a setting is measured by `verify`."""

    action: str
    setting: bool = True
    code: str = ""


CHANGES: dict[str, Change] = {
    "num-workers": Change(
        "Set `num_workers` to the least number that is within 1 % of the best; never more than the CPU budget has cores"
    ),
    "prefetch-factor": Change(
        "Raise `prefetch_factor`: a deeper queue rides over slow batches, at the price of memory"
    ),
    "persistent-workers": Change("Keep the workers between epochs: `persistent_workers=True`"),
    "one-loader": Change(
        "Make the DataLoader once, before the loop over epochs, with `persistent_workers=True`", setting=False
    ),
    "start-method": Change(
        "Start workers with `multiprocessing_context='fork'`, where they leave CUDA alone: a forked worker imports nothing"
    ),
    "out-of-order": Change(
        "Take batches as they are ready: `in_order=False` (torch 2.7 or newer); their order changes"
    ),
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
    "more-shards": Change(
        "Split a streamed dataset into as many shards as there are workers, or a multiple: those without one are idle",
        setting=False,
        code="dataset.to_iterable_dataset(num_shards=8)  # Hugging Face datasets; others: more files",
    ),
    "larger-cache": Change(
        "Let the local cache of a streamed dataset hold all of its shards (`cache_limit` of mosaicml-streaming, "
        "`max_cache_size` of litdata): else they are fetched anew in every epoch",
        setting=False,
        code='StreamingDataset(..., cache_limit="200gb")',
    ),
    "fewer-canonical-nodes": Change(
        "Let a machine read fewer places of a mosaicml-streaming dataset by turns (`num_canonical_nodes`), so that "
        "their shards lie in its local cache together",
        setting=False,
        code="StreamingDataset(..., num_canonical_nodes=1)  # one a machine",
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
    "cheaper-collate": Change(
        "Make the dearest part of collate cheaper; the report names it and its line", setting=False
    ),
    "lighter-loop": Change(
        "Take logging, metrics and checkpoints off the step: do them less often, or beside it", setting=False
    ),
}
