"""Batches of labelled pictures: fields of `formulas`, painted, put together to mosaics, photographed in two views.

The number of a batch goes in, a `Batch` comes out, always the same for one seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from thesis_lib.training.formulas import FAMILIES, NUMBERS
from thesis_lib.training.procedural import SCENE, Camera, masks, photograph, render

MARGIN = 8          # pixels that a scene is larger than its views, on each side


@dataclass(frozen=True)
class Batch:
    """Two views of each of B/2 scenes: images (B, 3, S, S), normalised, all first views before all second ones.

    `mask` (B, 1, S, S) is 1 where a picture shows class `first` (B,), else it shows `second` (B,). `warp` (B/2, 2, 3)
    takes places of the second view to those of the first, both -1 to 1 over the view, as in torch's affine_grid.
    """

    images: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    mask: torch.Tensor
    warp: torch.Tensor


# The two views of a scene differ no more than two pictures on one production line: what a descriptor is taught to
# overlook between them, fine dust or a faint stain, it can no longer find.
VIEW = Camera(blur=(-0.6, 0.4), slope=0.15, contrast=(-0.2, 0.2), brightness=(-0.2, 0.2), tint=0.04,
              noise=(-0.02, 0.03))


def mixed(seed: int, number: int) -> int:
    """Seed of a batch and of the places found again in it: of one stream, as the bundled weights were made.

    `core.seeds` gives every purpose its own; with that, this package would no longer make the same file.
    """
    return (seed * 0x9E3779B1 + number) % 2**32


class Stream:
    """Batch number i is a function of (seed, i) alone: a resumed run sees the pictures it would have seen.

    classes: of all families together, a multiple of their number; batch: pictures, an even number.
    """

    def __init__(self, classes: int, side: int, batch: int, seed: int, torch_device: str = "cpu") -> None:
        if classes % len(FAMILIES):
            raise ThesisError(f"classes={classes}: needs a multiple of {len(FAMILIES)}, the number of families")
        if batch % 2:
            raise ThesisError(f"batch={batch}: needs an even number, two views of each scene")
        self.classes, self.side, self.batch, self.seed, self.torch_device = classes, side, batch, seed, torch_device
        # Drawn on the CPU, so that classes are the same on every device.
        self.numbers = torch.rand(classes, NUMBERS, generator=torch.Generator().manual_seed(seed)).to(torch_device)

    def __getitem__(self, index: int) -> Batch:
        return self.batch_of(index)

    def batch_of(self, index: int, mosaics: bool = True) -> Batch:
        """Batch number `index`; without mosaics each picture shows its first class alone."""
        # 1. Scenes larger than the views, each a mosaic of its own class and that of the scene before it.
        generator = torch.Generator(self.torch_device).manual_seed(mixed(self.seed, index + 1))
        scenes, outer = self.batch // 2, self.side + 2 * MARGIN
        labels = torch.randint(self.classes, (scenes,), generator=generator, device=self.torch_device)
        images = self.render(labels, outer, generator)
        other = torch.roll(torch.arange(scenes, device=self.torch_device), 1)
        mask = masks(scenes, outer, generator)
        mask = mask if mosaics else torch.ones_like(mask)
        images = photograph(torch.lerp(images[other], images, mask), SCENE, generator)
        # 2. The first view is the middle of a scene, the second one a warped part of it; the mask is seen alike.
        warp = _warps(scenes, generator)
        grid = F.affine_grid(warp, [scenes, 1, self.side, self.side], align_corners=False) * (self.side / outer)
        views = [photograph(view, VIEW, generator) for view in _two_views(images, grid)]
        shown = torch.cat(_two_views(mask, grid))
        # 3. Normalised, all first views before all second ones.
        middle, spread = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return Batch((torch.cat(views) - middle) / spread, labels.repeat(2), labels[other].repeat(2), shown, warp)

    def render(self, labels: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
        """Pictures (n, 3, side, side), 0 to 1, of the given classes, before mosaics and camera."""
        return render(self.numbers[labels], labels % len(FAMILIES), side, generator)


def _two_views(scenes: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of each scene (n, c, S + 2 MARGIN, S + 2 MARGIN), and what lies at the places of grid (n, S, S, 2)."""
    middle = scenes[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return middle, F.grid_sample(scenes, grid, padding_mode="reflection", align_corners=False)


def _warps(count: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 2, 3): turns up to 10 degrees, zooms up to a tenth, shifts up to an eighth of the side."""
    def rand(reach: float) -> torch.Tensor:
        return reach * (2 * torch.rand(count, generator=generator, device=generator.device) - 1)

    turn, zoom = rand(0.17), 2 ** rand(0.15)
    rows = (turn.cos() * zoom, -turn.sin() * zoom, rand(0.25)), (turn.sin() * zoom, turn.cos() * zoom, rand(0.25))
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
