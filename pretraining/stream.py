"""Batches of labelled pictures: fields of `formulas`, painted, lit, photographed and put together to mosaics."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretraining.formulas import FAMILIES, NUMBERS, Canvas
from thesis_lib.data import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Batch:
    """images (B, 3, S, S), normalised; `mask` (B, 1, S, S) is 1 where a picture shows class `first`, else `second`."""

    images: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    mask: torch.Tensor


class Stream:
    """Batch number i is a function of (seed, i) alone: a resumed run sees the pictures it would have seen.

    classes: of all families together, a multiple of their number.
    """

    def __init__(self, classes: int, side: int, batch: int, seed: int, device: str = "cpu"):
        if classes % len(FAMILIES):
            raise ValueError(f"classes={classes}: needs a multiple of {len(FAMILIES)}, the number of families")
        self.classes, self.side, self.batch, self.seed, self.device = classes, side, batch, seed, device
        # Drawn on the CPU, so that classes are the same on every device.
        self.numbers = torch.rand(classes, NUMBERS, generator=torch.Generator().manual_seed(seed)).to(device)

    def __getitem__(self, index: int) -> Batch:
        return self.batch_of(index)

    def batch_of(self, index: int, mosaics: bool = True) -> Batch:
        """Batch number `index`; without mosaics each picture shows its first class alone."""
        generator = torch.Generator(self.device).manual_seed((self.seed << 32) + index + 1)
        labels = torch.randint(self.classes, (self.batch,), generator=generator, device=self.device)
        images = self.render(labels, generator)
        other = torch.roll(torch.arange(self.batch, device=self.device), 1)
        mask = _masks(self.batch, self.side, generator)
        mask = mask if mosaics else torch.ones_like(mask)
        images = torch.lerp(images[other], images, mask)
        return Batch(_photograph(images, generator), labels, labels[other], mask)

    def render(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Pictures (n, 3, S, S), 0 to 1, of the given classes, before mosaics and camera."""
        images = torch.empty(len(labels), 3, self.side, self.side, device=self.device)
        for family, draw in enumerate(FAMILIES):
            mine = (labels % len(FAMILIES) == family).nonzero()[:, 0]
            if len(mine):
                canvas = Canvas(self.numbers[labels[mine]], self.side, generator)
                images[mine] = paint(canvas, draw(canvas))
        return images


def paint(c: Canvas, field: torch.Tensor) -> torch.Tensor:
    """Field (n, S, S) -> picture (n, 3, S, S): the class' three colours and grain, relief and light."""
    c.taken = NUMBERS - 16                                              # the last numbers are for paint
    colours = 0.5 + 0.5 * c.vector(3, 3)                                # dark, middle, bright; of the class ...
    strange = c.uniform(0, 1, 3, 3)                                     # ... but in half of its pictures of none
    colours = torch.where(c.uniform(0, 1) < 0.5, strange, colours)
    grey = colours.mean(2, keepdim=True).expand_as(colours)
    colours = torch.where(c.uniform(0, 1) < 0.4, grey, colours)
    contrast = (colours[:, 2] - colours[:, 0]).abs().amax(1)[:, None, None]
    colours[:, 2] = torch.where(contrast[:, 0] < 0.25, (colours[:, 0] + 0.5) % 1, colours[:, 2])
    position = field.clamp(0, 1)[:, None] * 2
    dark, middle, bright = (colours[:, k, :, None, None] for k in range(3))
    image = torch.where(position < 1, torch.lerp(dark, middle, position), torch.lerp(middle, bright, position - 1))
    relief, angle = c.number(-3, 6).clamp(min=0), c.uniform(0, 6.2832)   # a third of the classes is flat
    dx, dy = torch.zeros_like(field), torch.zeros_like(field)
    dx[:, :, 1:-1] = (field[:, :, 2:] - field[:, :, :-2]) / 2
    dy[:, 1:-1] = (field[:, 2:] - field[:, :-2]) / 2
    slope = relief * (dx * angle.cos() + dy * angle.sin())
    light = (1 + slope) / (1 + relief**2 * (dx**2 + dy**2)).sqrt()
    gloss = c.number(-0.5, 0.7).clamp(min=0) * (light - 1).clamp(min=0) ** 2
    grain = c.number(-0.1, 0.12).clamp(min=0) * c.normal(c.side, c.side)
    return (image * (light + grain)[:, None] + gloss[:, None]).clamp(0, 1)


def _masks(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 1, S, S): a third all one, the others cut by a threshold of smooth noise, coarse or fine."""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=generator.device)
    coarse, fine = (F.interpolate(rand(count, 1, nodes, nodes), (side, side), mode="bilinear", align_corners=False)
                    for nodes in (3, 8))
    noise = torch.where(rand(count, 1, 1, 1) < 0.7, coarse, fine)
    mask = (noise > 0.3 + 0.4 * rand(count, 1, 1, 1)).float()
    return torch.where(rand(count, 1, 1, 1) < 0.34, torch.ones(()), mask)


def _photograph(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, light that falls off, exposure, contrast, tint, sensor noise; then normalised as by `thesis_lib.data`."""
    count, _, side, _ = images.shape

    def rand(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=images.device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, rand(-0.6, 1.0, 1, 1, 1).clamp(min=0))
    slope = F.interpolate(rand(-1, 1, 1, 2, 2), (side, side), mode="bilinear", align_corners=True)
    images = images * (1 + 0.4 * rand(0, 1, 1, 1, 1) * slope)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * 2 ** rand(-1.2, 0.4, 1, 1, 1) + mean * 2 ** rand(-0.8, 0.5, 1, 1, 1)
    images = images * 2 ** rand(-0.15, 0.15, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    images = images + noise * rand(-0.02, 0.05, 1, 1, 1).clamp(min=0)
    middle, spread = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.clamp(0, 1) - middle) / spread
