"""Feature maps of pictures, batch after batch: computed as they are read, or kept on disk for whoever asks again.

A network and batches of images (b, 3, H, W) go in; {level: maps (b, C, h, w)} comes out, a batch at a time. Letters: N
pictures, C channels of a level, h, w its grid.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch

from thesis_lib.core import files, identity, memory, paths, stamp
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import deciding, values
from thesis_lib.core.preprocess import Preprocess, Sample, in_pixels
from thesis_lib.core.progress import track
from thesis_lib.data.pictures import Pictures
from thesis_lib.networks.backbones import INSIDE, Features, Network
from thesis_lib.networks.torch_setup import check_finite

log = logging.getLogger(__name__)
LIMIT_GB = 4.0          # of kept maps, where THESIS_FEATURES_GB says nothing else
SPARE_GB = 2.0          # of the disk, which kept maps leave free
ABANDONED_S = 86_400    # a file that nobody has written to for a day will not be finished


class Facts(TypedDict):
    """What has to be known of the maps of one level to read them: JSON beside the file that holds their numbers."""

    sizes: list[int]        # pictures of each batch
    seconds: float          # that computing the maps took, all levels together
    channels_last: bool     # a picture's maps lie as (h, w, C), not as (C, h, w)
    shape: list[int]        # of one picture's maps, as they lie


Level = tuple[Facts, np.memmap]


class Extracted:
    """Computed whenever they are asked for; images are batches (b, 3, H, W).

    `samples` are those of the images, where they are known: it is by them that fit refuses test pictures.
    """

    seconds = found_seconds = 0.0       # spent beforehand; see Stored
    keeps = False                       # what is made of them, for the next evaluation

    def __init__(self, backbone: Network, images: Iterable[torch.Tensor]) -> None:
        self.backbone, self.images = backbone, images
        self.samples: tuple[Sample, ...] = getattr(images, "samples", ())
        self.preprocess: Preprocess | None = getattr(images, "preprocess", None)    # None: nobody told
        self.image_size: tuple[int, int] | None = None      # (H, W), as soon as one was seen

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves; ThesisError where they are not all of one size, or hold NaN."""
        first = 0
        for batch in self.images:
            self._check("images", batch, first)
            first += len(batch)
            height, width = batch.shape[-2:]
            self.image_size = self.image_size or (height, width)
            if (height, width) != self.image_size:
                raise ThesisError(f"images of {in_pixels((height, width))} pixels after some of "
                                  f"{in_pixels(self.image_size)}: fit needs one size")
            yield batch

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch, with what counts; the next one is read meanwhile."""
        count, first = len(self.images) if isinstance(self.images, Sized) else None, 0
        for batch in track(_ahead(self.pictures()), count, "features"):
            features = self.backbone(batch)
            for level in layers:
                self._check(f"feature maps of level {level}", features[level], first)
            first += len(batch)
            yield {level: features[level] for level in (*layers, *({INSIDE} & features.keys()))}

    def _check(self, name: str, values: torch.Tensor, first: int) -> None:
        """ThesisError that names the picture with NaN of a batch of values (b, ...), whose first has this number."""
        try:
            check_finite(name, values)
        except ThesisError:
            bad = first + int((~values.flatten(1).isfinite().all(1)).nonzero()[0])
            picture = self.samples[bad].path if self.samples else f"picture {bad}"
            raise ThesisError(f"{picture}: its {name} hold NaN or infinity") from None


class Stored:
    """The same batches, computed when they are first asked for: one file per level on disk.

    What `keepable` allows is kept below outputs/features, named by a hash of all that decides its numbers, and found
    again by the next evaluation, whatever its method; it may be deleted at any time. THESIS_FEATURES_GB limits it: the
    longest unused maps go first. Anything else lies in unnamed files. `found_seconds` is what computing the maps took
    where all of them were found.
    """

    def __init__(self, extracted: Extracted) -> None:
        self.extracted, self.images, self.samples = extracted, extracted.images, extracted.samples
        self.preprocess, self.found_seconds = extracted.preprocess, 0.0

    @property
    def seconds(self) -> float:
        """What computing the maps took, whenever that was done; 0 as long as nobody has asked for one."""
        levels: dict[int, Level] = vars(self).get("_levels", {})        # not computed by asking for them
        return max((facts["seconds"] for facts, _ in levels.values()), default=0.0)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images; of maps that were found nobody has seen one."""
        if self.extracted.image_size is None and self.preprocess is not None:
            return self.preprocess.shape
        return self.extracted.image_size

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves."""
        return self.extracted.pictures()

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch; the others are not read."""
        levels = {level: self._levels[level] for level in (*layers, *_beside(self.preprocess))}
        first = 0                               # picture of the batch
        for size in next(iter(levels.values()))[0]["sizes"]:
            batch = {}
            for level, (facts, rows) in levels.items():
                maps = torch.from_numpy(np.array(rows[first:first + size]))
                batch[level] = maps.permute(0, 3, 1, 2) if facts["channels_last"] else maps
            yield batch
            for _, rows in levels.values():
                memory.release(rows)
            first += size

    @property
    def keeps(self) -> bool:
        """Whether what is made of them may be kept, too, for the next evaluation."""
        return keepable(self.extracted)

    @cached_property
    def _levels(self) -> dict[int, Level]:
        """Facts of each level, and its maps (N, C, h, w) or (N, h, w, C): in memory's order, sums depend on it."""
        # 1. Levels that an earlier evaluation has kept.
        targets = _targets(self.extracted) if keepable(self.extracted) else {}
        levels: dict[int, Level] = {}
        for level, file in targets.items():
            stored = _read(file)
            if stored is not None:
                levels[level] = stored
        # 2. The others, in one pass over the pictures.
        wanted = (*self.extracted.backbone.layers, *_beside(self.preprocess))
        missing = [level for level in wanted if level not in levels]
        if missing:
            return levels | self._compute(missing, targets)
        self.found_seconds = max(facts["seconds"] for facts, _ in levels.values())
        return levels

    def _compute(self, layers: Sequence[int], targets: dict[int, Path]) -> dict[int, Level]:
        """These levels, each written to its target, or to an unnamed file where it has none."""
        start = time.perf_counter()
        sizes: list[int] = []                           # pictures of each batch
        layout: dict[int, tuple[bool, list[int]]] = {}  # level -> channels_last and shape, see Facts
        if targets:
            _make_room(_bytes(self.extracted))
        with ExitStack() as stack:
            streams = {level: stack.enter_context(_stream(targets.get(level))) for level in layers}
            for features in self.extracted.batches(layers):
                sizes.append(len(features[layers[0]]))
                for level in layers:
                    x = features[level]
                    # Written as they lie in memory and read back in the same order: a sum over other strides rounds
                    # otherwise.
                    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
                    rows = (x.permute(0, 2, 3, 1) if channels_last else x).contiguous()
                    layout[level] = channels_last, list(rows.shape[1:])
                    streams[level].write(rows.numpy().data)
            if not sizes:
                raise ThesisError("fit was given no pictures")
            seconds, levels = time.perf_counter() - start, {}
            for level, stream in streams.items():
                stream.flush()
                channels_last, shape = layout[level]
                facts = Facts(channels_last=channels_last, shape=shape, sizes=sizes, seconds=seconds)
                levels[level] = facts, _rows(stream, facts)
                if level in targets:                    # the facts first: numbers without them would not be found
                    files.write(_facts_of(targets[level]), json.dumps(facts))
                    os.replace(stream.name, targets[level])
        return levels


def _beside(preprocess: Preprocess | None) -> tuple[int, ...]:
    """What there is to keep beside the levels of the network: which pixels count, where not all do."""
    return (INSIDE,) if preprocess is not None and preprocess.masked else ()


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


def _pictures(extracted: Extracted) -> Pictures:
    """The images of what is `keepable`."""
    if not isinstance(extracted.images, Pictures):
        raise TypeError(f"images: {type(extracted.images).__name__} says nothing of its files, needs Pictures")
    return extracted.images


def _bytes(extracted: Extracted) -> int:
    """Of the maps of all pictures and levels: float32, h = H / stride and w = W / stride, rounded up."""
    network, (height, width) = extracted.backbone, _pictures(extracted).preprocess.shape
    numbers = 0
    for level, channels in network.channels.items():
        stride = network.strides[level]
        numbers += channels * -(-height // stride) * -(-width // stride)
    numbers += height * width * len(_beside(_pictures(extracted).preprocess))
    return 4 * len(extracted.samples) * numbers


def _ahead(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same batches; while one is worked on, the next is read by a thread."""
    with ThreadPoolExecutor(1) as reader:
        iterator = iter(batches)
        coming = reader.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, iterator, None)
            yield batch


def _targets(extracted: Extracted) -> dict[int, Path]:
    """Where the maps of each level are kept: a hash of network, preprocessing, pictures, code and machine."""
    network, pictures = extracted.backbone, _pictures(extracted)
    model = getattr(network, "model", None)
    origin = {"network": network.name, "weights": network.weights, "tap": getattr(network, "tap", None),
              "tiles": network.tiles,
              "model": model and [files.digest(model), network.layers, identity.version_of("onnxruntime")],
              "preprocess": deciding(pictures.preprocess, values(pictures.preprocess)),
              "batch_size": pictures.batch_size,
              "pictures": [files.digest_of(sample.path) for sample in pictures.samples],
              "code": identity.key(__name__), "cpu": stamp.cpu_model(), "threads": torch.get_num_threads()}
    return {level: paths.features() / files.digest(json.dumps([level, origin]))[:32]
            for level in (*network.layers, *_beside(pictures.preprocess))}


def _read(file: Path) -> Level | None:
    """Facts and maps; None where they are not there, cut short, or go while they are opened."""
    try:
        facts: Facts = json.loads(_facts_of(file).read_text())
        rows = _rows(file, facts)
        os.utime(file)                              # the longest unused one goes first
    except (OSError, ValueError):
        return None
    return facts, rows


def _rows(file: Path | BinaryIO, facts: Facts) -> np.memmap:
    """Maps (N, ...) of all pictures, read from the file as they are asked for."""
    return np.memmap(file, dtype=np.float32, mode="r", shape=(sum(facts["sizes"]), *facts["shape"]))


def _facts_of(file: Path) -> Path:
    """The file of the facts beside the file of the maps."""
    return file.with_suffix(".json")


def _sizes() -> dict[Path, int]:
    """Bytes of the kept maps, the longest unused first; one that goes meanwhile counts nothing."""
    states = {}
    for file in paths.features().iterdir():
        with suppress(FileNotFoundError):
            if not file.suffix:
                states[file] = file.stat()
    return {file: states[file].st_size for file in sorted(states, key=lambda file: states[file].st_mtime_ns)}


def _make_room(needed: int) -> None:
    """Delete what was unused for longest until so many bytes more are within the limit, and what was left half-written
    by processes that were killed.
    """
    for file in paths.features().glob("*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()
    sizes = _sizes()
    total = sum(sizes.values())
    for file, size in sizes.items():
        if total + needed <= limit_bytes():
            return
        file.unlink(missing_ok=True)
        _facts_of(file).unlink(missing_ok=True)
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
