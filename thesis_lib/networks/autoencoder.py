"""The autoencoder of EfficientAD: what a picture looks like as a whole, told on the grid of a PDN.

Source: Batzner et al. 2024 (arXiv 2303.14535), appendix A.1; thesis sec. 4.3.3.
"""

from collections import OrderedDict

import torch
from torch import nn

from thesis_lib.core.errors import ThesisError
from thesis_lib.networks.pdn import RIM

DROPOUT = 0.2


def build(side: int, channels: int) -> nn.Sequential:
    """Images (B, 3, side, side) -> (B, channels, side/4 - 8, side/4 - 8), through 64 numbers."""
    layers: dict[str, nn.Module] = {}
    inputs = 3
    for number, width in enumerate((32, 32, 64, 64, 64), start=1):
        layers |= {f"encode{number}": nn.Conv2d(inputs, width, 4, 2, 1), f"relu{number}": nn.ReLU(inplace=True)}
        inputs = width
    layers["narrow"] = nn.Conv2d(64, 64, side // 32)
    sides = (max(1, side // 64 - 1), side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1)
    for number, wide in enumerate(sides, start=1):
        layers |= {f"resize{number}": nn.Upsample((wide, wide), mode="bilinear"),
                   f"decode{number}": nn.Conv2d(64, 64, 4, 1, 2), f"rectify{number}": nn.ReLU(inplace=True),
                   f"drop{number}": nn.Dropout(DROPOUT)}
    grid = side // 4 - 2 * RIM
    layers |= {"fit": nn.Upsample((grid, grid), mode="bilinear"), "last": nn.Conv2d(64, 64, 3, 1, 1),
               "relu": nn.ReLU(inplace=True), "describe": nn.Conv2d(64, channels, 3, 1, 1)}
    return nn.Sequential(OrderedDict(layers))


def check(images: torch.Tensor) -> int:
    """Side of square images (B, 3, H, W); ValueError for one that the autoencoder cannot halve."""
    height, width = images.shape[-2:]
    if height != width or width % 32 or width < 64:
        raise ThesisError(f"images of {width}x{height} pixels: the autoencoder needs squares of 64, 96, 128, ... (the "
                         "paper has 256)")
    return width
