"""Pictures made by formula: fields of `formulas`, painted, put together to mosaics, photographed.

The number of a batch goes in, a batch (B, 3, S, S) comes out, always the same for one seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from thesis_lib.core.seeds import seed_of
from thesis_lib.data.pictures import normalise
from thesis_lib.training.formulas import FAMILIES, NUMBERS, Canvas


@dataclass(frozen=True)
class Camera:
    """Ranges of what a photograph changes: powers of two for contrast, brightness, tint; no blur or noise below 0."""

    blur: tuple[float, float]
    slope: float
    contrast: tuple[float, float]
    brightness: tuple[float, float]
    tint: float
    noise: tuple[float, float]


# A scene may be lit in any way.
SCENE = Camera(blur=(-0.6, 1), slope=0.4, contrast=(-1.2, 0.4), brightness=(-0.8, 0.5), tint=0.15, noise=(-0.02, 0.05))


class Procedural:
    """Batch number i (B, 3, S, S), ImageNet-normalised, is a function of (seed, i): scenes of ever new classes."""

    identity = "procedural"

    def __init__(self, side: int, batch: int, seed: int = 0) -> None:
        self.side, self.batch, self.seed = side, batch, seed

    @torch.autocast("cpu", enabled=False)       # asked for within a training in bfloat16: the pictures are the same
    def __getitem__(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_of("picture", self.seed, number))
        # A new class for every picture; the other part of its mosaic is the picture before it.
        numbers = torch.rand(self.batch, NUMBERS, generator=generator)
        families = torch.randint(len(FAMILIES), (self.batch,), generator=generator)
        images = render(numbers, families, self.side, generator)
        mosaics = torch.lerp(images.roll(1, 0), images, masks(self.batch, self.side, generator))
        return normalise(photograph(mosaics, SCENE, generator))


def render(numbers: torch.Tensor, families: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Pictures (n, 3, side, side), 0 to 1, of classes: their numbers (n, NUMBERS) and families (n,)."""
    images = torch.empty(len(numbers), 3, side, side, device=numbers.device)
    for family, draw in enumerate(FAMILIES):
        members = (families == family).nonzero()[:, 0]
        if len(members):
            canvas = Canvas(numbers[members], side, generator)
            images[members] = paint(canvas, draw(canvas))
    return images


def paint(c: Canvas, field: torch.Tensor) -> torch.Tensor:
    """Field (n, S, S) -> picture (n, 3, S, S): the class' three colours and grain, relief and light."""
    c.taken = NUMBERS - 16                                              # the last numbers are for paint
    # 1. Three colours (n, 3 colours, 3 channels), some without hue; bright is moved away where it is too like dark.
    colours = 0.5 + 0.5 * c.vector(3, 3)                                # dark, middle, bright; of the class ...
    strange = c.uniform(0, 1, 3, 3)                                     # ... but in half of its pictures of none
    colours = torch.where(c.uniform(0, 1) < 0.5, strange, colours)
    grey = colours.mean(2, keepdim=True).expand_as(colours)
    colours = torch.where(c.uniform(0, 1) < 0.4, grey, colours)
    contrast = (colours[:, 2] - colours[:, 0]).abs().amax(1)[:, None, None]
    colours[:, 2] = torch.where(contrast[:, 0] < 0.25, (colours[:, 0] + 0.5) % 1, colours[:, 2])
    # 2. A value of the field from 0 over 0.5 to 1 goes from dark over middle to bright, linearly.
    position = field.clamp(0, 1)[:, None] * 2
    dark, middle, bright = (colours[:, k, :, None, None] for k in range(3))
    image = torch.where(position < 1, torch.lerp(dark, middle, position), torch.lerp(middle, bright, position - 1))
    # 3. The field as a height map: its slope towards a lamp, over the length of the surface's normal.
    relief, angle = c.number(-3, 6).clamp(min=0), c.uniform(0, 6.2832)   # a third of the classes is flat
    dx, dy = torch.zeros_like(field), torch.zeros_like(field)
    dx[:, :, 1:-1] = (field[:, :, 2:] - field[:, :, :-2]) / 2
    dy[:, 1:-1] = (field[:, 2:] - field[:, :-2]) / 2
    slope = relief * (dx * angle.cos() + dy * angle.sin())
    light = (1 + slope) / (1 + relief**2 * (dx**2 + dy**2)).sqrt()
    # 4. What faces the lamp shines, and the class has a grain of its own.
    gloss = c.number(-0.5, 0.7).clamp(min=0) * (light - 1).clamp(min=0) ** 2
    grain = c.number(-0.1, 0.12).clamp(min=0) * c.normal(c.side, c.side)
    return (image * (light + grain)[:, None] + gloss[:, None]).clamp(0, 1)


def masks(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 1, S, S), 0 or 1: a third all one, the others cut by a threshold of smooth noise, coarse or fine.

    In half of them a few places are sprinkled with specks of the other value, a few pixels each: small things count.
    """
    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    def noise(nodes: int) -> torch.Tensor:
        return F.interpolate(rand(count, 1, nodes, nodes), (side, side), mode="bilinear", align_corners=False)

    coarse, fine = noise(3), noise(8)
    cut = torch.where(rand(count, 1, 1, 1) < 0.7, coarse, fine) > 0.3 + 0.4 * rand(count, 1, 1, 1)
    mask = cut | (rand(count, 1, 1, 1) < 0.34)
    specks = (noise(side // 3) > 0.62) & (noise(5) > 0.5 + 0.25 * rand(count, 1, 1, 1))
    return (mask ^ (specks & (rand(count, 1, 1, 1) < 0.5))).float()


def photograph(images: torch.Tensor, camera: Camera, generator: torch.Generator) -> torch.Tensor:
    """Blur, light that falls off, contrast, exposure, tint, sensor noise; 0 to 1."""
    count, _, side, _ = images.shape

    def rand(low: float, high: float, *shape: int) -> torch.Tensor:
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
