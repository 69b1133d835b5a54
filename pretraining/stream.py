"""Batches of labelled pictures: fields of `formulas`, painted, put together to mosaics, photographed in two views."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretraining.formulas import FAMILIES, NUMBERS, Canvas
from thesis_lib.preprocess import IMAGENET_MEAN, IMAGENET_STD

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


@dataclass(frozen=True)
class Camera:
    """Ranges of what a photograph changes: powers of two for contrast, brightness, tint; no blur or noise below 0."""

    blur: tuple[float, float]
    slope: float
    contrast: tuple[float, float]
    brightness: tuple[float, float]
    tint: float
    noise: tuple[float, float]


# A scene may be lit in any way, but its two views differ no more than two pictures on one production line: what a
# descriptor is taught to overlook between them, fine dust or a faint stain, it can no longer find.
SCENE = Camera(blur=(-0.6, 1), slope=0.4, contrast=(-1.2, 0.4), brightness=(-0.8, 0.5), tint=0.15, noise=(-0.02, 0.05))
VIEW = Camera(blur=(-0.6, 0.4), slope=0.15, contrast=(-0.2, 0.2), brightness=(-0.2, 0.2), tint=0.04,
              noise=(-0.02, 0.03))


class Stream:
    """Batch number i is a function of (seed, i) alone: a resumed run sees the pictures it would have seen.

    classes: of all families together, a multiple of their number; batch: pictures, an even number.
    """

    def __init__(self, classes: int, side: int, batch: int, seed: int, device: str = "cpu"):
        if classes % len(FAMILIES):
            raise ValueError(f"classes={classes}: needs a multiple of {len(FAMILIES)}, the number of families")
        if batch % 2:
            raise ValueError(f"batch={batch}: needs an even number, two views of each scene")
        self.classes, self.side, self.batch, self.seed, self.device = classes, side, batch, seed, device
        # Drawn on the CPU, so that classes are the same on every device.
        self.numbers = torch.rand(classes, NUMBERS, generator=torch.Generator().manual_seed(seed)).to(device)

    def __getitem__(self, index: int) -> Batch:
        return self.batch_of(index)

    def batch_of(self, index: int, mosaics: bool = True) -> Batch:
        """Batch number `index`; without mosaics each picture shows its first class alone."""
        generator = torch.Generator(self.device).manual_seed((self.seed << 32) + index + 1)
        scenes, outer = self.batch // 2, self.side + 2 * MARGIN
        labels = torch.randint(self.classes, (scenes,), generator=generator, device=self.device)
        images = self.render(labels, outer, generator)
        other = torch.roll(torch.arange(scenes, device=self.device), 1)
        mask = _masks(scenes, outer, generator)
        mask = mask if mosaics else torch.ones_like(mask)
        images = _photograph(torch.lerp(images[other], images, mask), SCENE, generator)
        warp = _warps(scenes, generator)
        grid = F.affine_grid(warp, (scenes, 1, self.side, self.side), align_corners=False) * (self.side / outer)
        views, masks = ((x[..., MARGIN:-MARGIN, MARGIN:-MARGIN],
                         F.grid_sample(x, grid, padding_mode="reflection", align_corners=False))
                        for x in (images, mask))
        middle, spread = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        views = torch.cat([_photograph(view, VIEW, generator) for view in views])
        return Batch((views - middle) / spread, labels.repeat(2), labels[other].repeat(2), torch.cat(masks), warp)

    def render(self, labels: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
        """Pictures (n, 3, side, side), 0 to 1, of the given classes, before mosaics and camera."""
        images = torch.empty(len(labels), 3, side, side, device=self.device)
        for family, draw in enumerate(FAMILIES):
            mine = (labels % len(FAMILIES) == family).nonzero()[:, 0]
            if len(mine):
                canvas = Canvas(self.numbers[labels[mine]], side, generator)
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
    """(n, 1, S, S), 0 or 1: a third all one, the others cut by a threshold of smooth noise, coarse or fine.

    In half of them a few places are sprinkled with specks of the other value, a few pixels each: small things count.
    """
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=generator.device)

    def noise(nodes):
        return F.interpolate(rand(count, 1, nodes, nodes), (side, side), mode="bilinear", align_corners=False)
    coarse, fine = noise(3), noise(8)
    cut = torch.where(rand(count, 1, 1, 1) < 0.7, coarse, fine) > 0.3 + 0.4 * rand(count, 1, 1, 1)
    mask = cut | (rand(count, 1, 1, 1) < 0.34)
    specks = (noise(side // 3) > 0.62) & (noise(5) > 0.5 + 0.25 * rand(count, 1, 1, 1))
    return (mask ^ (specks & (rand(count, 1, 1, 1) < 0.5))).float()


def _warps(count: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 2, 3): turns up to 10 degrees, zooms up to a tenth, shifts up to an eighth of the side."""
    def rand(reach):
        return reach * (2 * torch.rand(count, generator=generator, device=generator.device) - 1)
    turn, zoom = rand(0.17), 2 ** rand(0.15)
    rows = (turn.cos() * zoom, -turn.sin() * zoom, rand(0.25)), (turn.sin() * zoom, turn.cos() * zoom, rand(0.25))
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _photograph(images: torch.Tensor, camera: Camera, generator: torch.Generator) -> torch.Tensor:
    """Blur, light that falls off, contrast, exposure, tint, sensor noise; 0 to 1."""
    count, _, side, _ = images.shape

    def rand(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=images.device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, rand(*camera.blur, 1, 1, 1).clamp(min=0))
    slope = F.interpolate(rand(-1, 1, 1, 2, 2), (side, side), mode="bilinear", align_corners=True)
    images = images * (1 + camera.slope * rand(0, 1, 1, 1, 1) * slope)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * 2 ** rand(*camera.contrast, 1, 1, 1) + mean * 2 ** rand(*camera.brightness, 1, 1, 1)
    images = images * 2 ** rand(-camera.tint, camera.tint, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + noise * rand(*camera.noise, 1, 1, 1).clamp(min=0)).clamp(0, 1)
