"""Pictures of no category in particular, for distillation and penalties: a folder of photographs, or made by formula.

A source gives batch number i, (B, 3, S, S) and ImageNet-normalised, as a function of (seed, i) alone, so that a
training that goes on after an interruption sees what it would have seen. `identity` says which pictures they are.
"""

import hashlib
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from thesis_lib.core.preprocess import SUFFIXES, DataError, Preprocess, levels_of, pictures_in, read_rgb
from thesis_lib.core.seeds import seed_of
from thesis_lib.data.pictures import denormalise, normalise
from thesis_lib.networks.weightfiles import torchvision
from thesis_lib.training.procedural import Procedural

AREA = (0.25, 1.0)      # of a photograph that a crop takes


class Source(Protocol):
    """Batch i by `source[i]`, and which pictures these are."""

    @property
    def identity(self) -> str: ...

    def __getitem__(self, number: int) -> torch.Tensor: ...


class Folder:
    """Random crops of all pictures in and below a folder, resized to S x S, half of them mirrored."""

    def __init__(self, root: str | Path, side: int, batch: int, seed: int = 0) -> None:
        self.root, self.side, self.batch, self.seed = Path(root).expanduser(), side, batch, seed
        self.files = pictures_in(self.root, below=True)
        if not self.files:
            raise DataError(f"{self.root}: holds no pictures ({', '.join(sorted(SUFFIXES))})")

    @cached_property
    def levels(self) -> int | str:
        """Grey levels of those with more than 8 bits, decided by all together."""
        return levels_of(self.files)

    @property
    def identity(self) -> str:
        """Name of the folder and hash of all its pictures, wherever it lies."""
        return f"{self.root.resolve().name} {_content(self.root, tuple(self.files))}"

    def __getitem__(self, number: int) -> torch.Tensor:
        transforms = torchvision().transforms
        crop = transforms.Compose([transforms.RandomResizedCrop(self.side, AREA), transforms.RandomHorizontalFlip(),
                                   transforms.ToTensor()])
        with torch.random.fork_rng(devices=[]):         # torchvision draws from the global generator
            torch.manual_seed(seed_of("crop", self.seed, number))
            return torch.stack([normalise(crop(read_rgb(file, self.levels))) for file in self.drawn(number)])

    def drawn(self, number: int) -> list[Path]:
        """The pictures of batch `number`."""
        return [self.files[index] for index in drawn(len(self.files), self.batch, self.seed, number)]


class Centres(Folder):
    """The centre of every picture instead, resized to 2 S x 2 S before: the penalty of EfficientAD's reference."""

    def __getitem__(self, number: int) -> torch.Tensor:
        prepare = Preprocess(image_size=2 * self.side, crop=self.side, levels=self.levels)
        return torch.stack([torch.from_numpy(prepare.array(file)) for file in self.drawn(number)])


def drawn(count: int, batch: int, seed: int, number: int) -> np.ndarray:
    """Which of `count` pictures batch `number` shows (batch,): none twice. Where there are fewer than it takes they
    all come, in one order again and again, so that two or more never stand beside themselves.
    """
    rng = np.random.default_rng(seed_of("picture", seed, number))
    return np.resize(rng.choice(count, min(batch, count), replace=False), batch)


def parse(name: str, side: int, batch: int, seed: int = 0, folder: type[Folder] = Folder) -> Source:
    """Source of that name: procedural, or a folder of pictures."""
    if name == "procedural":
        return Procedural(side, batch, seed)
    if not Path(name).expanduser().is_dir():
        raise DataError(f"{name}: is no source of pictures; needs procedural or a folder that exists")
    return folder(name, side, batch, seed)


@cache
def _content(root: Path, files: tuple[Path, ...]) -> str:
    """Read once: every row and every seed asks for it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def greyscale(images: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, 3, H, W) without their colours, normalised again."""
    return normalise(torchvision().transforms.functional.rgb_to_grayscale(denormalise(images), 3))
