"""Feature maps of pictures, batch after batch: computed as they are read, or kept in a file for many configurations."""

import math
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from thesis_lib import memory
from thesis_lib.embedding import Features
from thesis_lib.progress import track


class Extracted:
    """Computed whenever they are asked for; images are batches (b, 3, H, W).

    `samples` are those of the images, where they are known: it is by them that fit refuses test pictures.
    """

    def __init__(self, backbone, images: Iterable[torch.Tensor]):
        self.backbone, self.images = backbone, images
        self.samples = getattr(images, "samples", ())

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch."""
        count = len(self.images) if hasattr(self.images, "__len__") else None
        for batch in track(self.images, count, "features"):
            features = self.backbone(batch)
            yield {level: features[level] for level in layers}


class Stored:
    """The same batches, computed once: one row per picture in an unnamed file on disk; `seconds` is what that took."""

    def __init__(self, extracted: Extracted):
        self.images, self.samples, self.sizes = extracted.images, extracted.samples, []
        start = time.perf_counter()

        def rows():
            for features in extracted.batches(extracted.backbone.layers):
                self.shapes = {level: tuple(x.shape[1:]) for level, x in features.items()}
                self.sizes.append(len(features[min(features)]))
                yield torch.cat([x.flatten(1) for x in features.values()], dim=1)

        self.rows = memory.on_disk(rows())                                          # (N, F)
        self.seconds = time.perf_counter() - start

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these levels for every batch; the others are not read."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        columns = {level: slice(end - math.prod(shape), end)
                   for (level, shape), end in zip(self.shapes.items(), ends, strict=True)}
        first = 0
        for size in self.sizes:
            rows = self.rows[first:first + size]
            yield {level: torch.from_numpy(np.array(rows[:, columns[level]])).view(size, *self.shapes[level])
                   for level in layers}
            memory.release(self.rows)
            first += size
