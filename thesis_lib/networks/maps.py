"""Feature maps of pictures, batch after batch: computed as they are read, or kept on disk for whoever asks again."""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from thesis_lib.core import files, identity, memory, paths, stamp
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import deciding, values
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.core.progress import track
from thesis_lib.data.pictures import Pictures
from thesis_lib.networks.backbones import Features

log = logging.getLogger(__name__)
LIMIT_GB = 4.0          # of kept maps, where THESIS_FEATURES_GB says nothing else
SPARE_GB = 2.0          # of the disk, which kept maps leave free
ABANDONED_S = 86_400    # a file that nobody has written to for a day will not be finished


class Extracted:
    """Computed whenever they are asked for; images are batches (b, 3, H, W).

    `samples` are those of the images, where they are known: it is by them that fit refuses test pictures.
    """

    seconds = found_seconds = 0.0       # spent beforehand; see Stored
    keeps = False                       # what is made of them, for the next evaluation

    def __init__(self, backbone, images: Iterable[torch.Tensor]):
        self.backbone, self.images = backbone, images
        self.samples = getattr(images, "samples", ())
        self.preprocess: Preprocess | None = getattr(images, "preprocess", None)    # None: nobody told
        self.image_size: tuple[int, int] | None = None      # (H, W), as soon as one was seen

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves; ThesisError where they are not all of one size."""
        for batch in self.images:
            self.image_size = self.image_size or tuple(batch.shape[-2:])
            if tuple(batch.shape[-2:]) != self.image_size:
                raise ThesisError(f"images of {_by(batch.shape[-2:])} pixels after some of {_by(self.image_size)}: fit "
                                  "needs one size")
            yield batch

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch; the next one is read meanwhile."""
        count = len(self.images) if hasattr(self.images, "__len__") else None
        for batch in track(_ahead(self.pictures()), count, "features"):
            features = self.backbone(batch)
            yield {level: features[level] for level in layers}


class Stored:
    """The same batches, computed when they are first asked for: one file per level on disk.

    What `keepable` allows is kept below outputs/features, named by a hash of all that decides its numbers, and found
    again by the next evaluation, whatever its method; it may be deleted at any time. THESIS_FEATURES_GB limits it: the
    longest unused maps go first. Anything else lies in unnamed files. `found_seconds` is what computing the maps took
    where all of them were found.
    """

    def __init__(self, extracted: Extracted):
        self.extracted, self.images, self.samples = extracted, extracted.images, extracted.samples
        self.preprocess, self.found_seconds = extracted.preprocess, 0.0

    @property
    def seconds(self) -> float:
        """What computing the maps took, whenever that was done; 0 as long as nobody has asked for one."""
        return max((facts["seconds"] for facts, _ in vars(self).get("_levels", {}).values()), default=0.0)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images; of maps that were found nobody has seen one."""
        return self.extracted.image_size or (self.preprocess and (self.preprocess.side,) * 2)

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves."""
        return self.extracted.pictures()

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch; the others are not read."""
        read = {level: self._levels[level] for level in layers}
        first = 0
        for size in next(iter(read.values()))[0]["sizes"]:
            batch = {level: torch.from_numpy(np.array(rows[first:first + size])) for level, (_, rows) in read.items()}
            yield {level: x.permute(0, 3, 1, 2) if read[level][0]["channels_last"] else x for level, x in batch.items()}
            for _, rows in read.values():
                memory.release(rows)
            first += size

    @property
    def keeps(self) -> bool:
        return keepable(self.extracted)

    @cached_property
    def _levels(self) -> dict[int, tuple[dict, np.memmap]]:
        """Facts of each level, and its maps (N, C, h, w) or (N, h, w, C): in memory's order, sums depend on it."""
        layers = self.extracted.backbone.layers
        targets = _targets(self.extracted) if keepable(self.extracted) else {}
        found = {level: kept for level, file in targets.items() if (kept := _kept(file))}
        missing = [level for level in layers if level not in found]
        if missing:
            return found | self._compute(missing, targets)
        self.found_seconds = max(facts["seconds"] for facts, _ in found.values())
        return found

    def _compute(self, layers: Sequence[int], targets: dict[int, Path]) -> dict[int, tuple[dict, np.memmap]]:
        start, sizes, facts = time.perf_counter(), [], {}
        if targets:
            _make_room(_bytes(self.extracted))
        with ExitStack() as stack:
            streams = {level: stack.enter_context(_stream(targets.get(level))) for level in layers}
            for features in self.extracted.batches(layers):
                sizes.append(len(features[layers[0]]))
                for level, x in features.items():
                    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
                    rows = (x.permute(0, 2, 3, 1) if channels_last else x).contiguous()
                    facts[level] = {"channels_last": channels_last, "shape": rows.shape[1:]}
                    streams[level].write(rows.numpy().data)
            if not sizes:
                raise ThesisError("fit was given no pictures")
            common, found = {"sizes": sizes, "seconds": time.perf_counter() - start}, {}
            for level, stream in streams.items():
                stream.flush()
                about = facts[level] | common
                found[level] = about, _rows(stream, about)
                if level in targets:
                    files.write(_about(targets[level]), json.dumps(about))
                    os.replace(stream.name, targets[level])
        return found


def limit_bytes() -> float:
    """Of kept feature maps: THESIS_FEATURES_GB, 0 keeps none; ThesisError where it is no number."""
    text = os.environ.get("THESIS_FEATURES_GB") or LIMIT_GB
    with suppress(ValueError):
        if float(text) >= 0:
            return float(text) * 1e9
    raise ThesisError(f"THESIS_FEATURES_GB={text!r}: needs gigabytes, or 0 to keep no feature maps")


def keepable(extracted: Extracted) -> bool:
    """Whether the maps are those of `Pictures`, within the limit, and leave SPARE_GB of the disk free."""
    if not isinstance(extracted.images, Pictures) or not limit_bytes():
        return False
    folder = paths.features()
    folder.mkdir(parents=True, exist_ok=True)
    needed, room = _bytes(extracted), sum(_sizes().values()) + shutil.disk_usage(folder).free - SPARE_GB * 1e9
    if needed > limit_bytes():
        return False
    if needed > room:
        _warn_once(f"{folder}: this disk is too full to keep feature maps of {needed / 1e9:.2f} GB and leave "
                   f"{SPARE_GB:.0f} GB free; they will be computed again")
    return needed <= room


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _bytes(extracted: Extracted) -> int:
    network, side = extracted.backbone, extracted.images.preprocess.side
    return 4 * len(extracted.samples) * sum(channels * (-(-side // network.strides[level])) ** 2
                                            for level, channels in network.channels.items())


def _ahead(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    with ThreadPoolExecutor(1) as reader:
        iterator = iter(batches)
        coming = reader.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, iterator, None)
            yield batch


def _targets(extracted: Extracted) -> dict[int, Path]:
    """Where the maps of each level are kept: a hash of network, preprocessing, pictures, code and machine."""
    network, pictures = extracted.backbone, extracted.images
    model = getattr(network, "model", None)
    about = {"network": network.name, "weights": network.weights, "tap": getattr(network, "tap", None),
             "model": model and [files.digest(model), network.layers, identity.version_of("onnxruntime")],
             "preprocess": deciding(pictures.preprocess, values(pictures.preprocess)),
             "batch_size": pictures.batch_size,
             "pictures": [files.digest_of(sample.path) for sample in pictures.samples],
             "code": identity.key(__name__), "cpu": stamp.cpu_model(), "threads": torch.get_num_threads()}
    return {level: paths.features() / files.digest(json.dumps([level, about]))[:32] for level in network.layers}


def _by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _kept(file: Path) -> tuple[dict, np.memmap] | None:
    """Facts and maps; None where they are not there, cut short, or go while they are opened."""
    try:
        about = json.loads(_about(file).read_text())
        rows = _rows(file, about)
        os.utime(file)                              # the longest unused one goes first
    except (OSError, ValueError):
        return None
    return about, rows


def _rows(file: Path | BinaryIO, about: dict) -> np.memmap:
    return np.memmap(file, dtype=np.float32, mode="r", shape=(sum(about["sizes"]), *about["shape"]))


def _about(file: Path) -> Path:
    return file.with_suffix(".json")


def _sizes() -> dict[Path, int]:
    """Bytes of the kept maps, the longest unused first; one that goes meanwhile counts nothing."""
    found = {}
    for file in paths.features().iterdir():
        with suppress(FileNotFoundError):
            if not file.suffix:
                found[file] = file.stat()
    return {file: found[file].st_size for file in sorted(found, key=lambda file: found[file].st_mtime_ns)}


def _make_room(needed: int) -> None:
    """Delete what was unused for longest until so many bytes more are within the limit, and what was left half-written
    by processes that were killed.
    """
    for file in paths.features().glob("*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()
    kept = _sizes()
    total = sum(kept.values())
    for file, size in kept.items():
        if total + needed <= limit_bytes():
            return
        file.unlink(missing_ok=True)
        _about(file).unlink(missing_ok=True)
        total -= size


@contextmanager
def _stream(file: Path | None) -> Iterator[BinaryIO]:
    """A file to write to: unnamed, or beside the one that it will become and gone where that does not happen."""
    if file is None:
        with files.unnamed() as stream:
            yield stream
        return
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    with partial.open("w+b") as stream:
        try:
            yield stream
        finally:
            partial.unlink(missing_ok=True)
