"""Batches of pictures, read when they are iterated: samples go in, tensors (B, 3, H, W) come out.

Letters: B pictures, H, W sides in pixels after `Preprocess`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Sample

if TYPE_CHECKING:       # whoever only looks for pictures should not wait for it
    import torch

Item = TypeVar("Item")


def load_image(path: Path, preprocess: Preprocess) -> "torch.Tensor":
    """(3, H, W) float32, ImageNet-normalised. DataError names a file that cannot be read."""
    import torch

    return torch.from_numpy(preprocess.array(path))


class Pictures:
    """Batches (B, 3, H, W) of the samples, read when iterated; knows what it reads, so that `fit` can refuse.

    Training pictures decide `levels` of their preprocessing where it is auto; test pictures need what these decided.
    """

    def __init__(self, samples: Sequence[Sample], preprocess: Preprocess, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ThesisError(f"batch_size={batch_size}: needs at least 1")
        self.samples, self.preprocess, self.batch_size = tuple(samples), preprocess, batch_size
        if preprocess.levels == "auto" and all(sample.split == "train" for sample in samples):
            self.preprocess = preprocess.decided(samples)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.samples) // self.batch_size)

    def evenly(self, count: int) -> "Pictures":
        """At most so many of them, evenly spaced."""
        return Pictures(evenly(self.samples, count), self.preprocess, self.batch_size)

    def __iter__(self) -> "Iterator[torch.Tensor]":
        import torch

        for start in range(0, len(self.samples), self.batch_size):
            yield torch.stack([load_image(sample.path, self.preprocess)
                               for sample in self.samples[start:start + self.batch_size]])


def normalise(images: "torch.Tensor") -> "torch.Tensor":
    """(..., 3, H, W), 0 to 1 -> by ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def denormalise(images: "torch.Tensor") -> "torch.Tensor":
    """Back to 0 to 1."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return images * std + mean


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most count of the items, evenly spaced, the first and the last among them; 0 takes all."""
    if not count or count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]
