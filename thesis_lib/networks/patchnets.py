"""Patch networks: p x p pixels to one descriptor, and the same for every position of a picture at once.

Source: Bergmann et al. 2020 (arXiv 1911.02357), supplement; the dense evaluation after Bailer et al. 2018 (Fast
Feature Extraction with CNNs with Pooling Layers), with dilation in place of their re-ordering; thesis sec. 4.2.1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core.errors import ThesisError

SLOPE = 0.005           # of the leaky ReLU
POOL = "pool"           # maximum of 2 x 2, every second one taken
# p -> layers: (kernel, width in units of d) or a pooling; the last one gives the descriptor of d numbers.
LAYERS: dict[int, tuple[tuple[int, int] | str, ...]] = {
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), POOL, (5, 2), POOL, (2, 2), (4, 1)),
    65: ((5, 1), POOL, (5, 1), POOL, (5, 1), POOL, (4, 2), (1, 1))}


class PatchNetwork(nn.Module):
    """Images (B, 3, H, W) -> (B, d, h, w): [..., i, j] describes the p x p pixels from (i * stride, j * stride) on.

    h = (H - p) // stride + 1. As long as the poolings' common stride divides `stride`, maps are as coarse as in
    the network that sees one patch; from there on every pixel keeps its own map entry and the layers are dilated.
    """

    def __init__(self, p: int, d: int) -> None:
        super().__init__()
        self.p, self.convolutions, inputs = p, nn.ModuleList(), 3
        for layer in LAYERS[p]:
            if not isinstance(layer, str):      # a pooling has no numbers
                kernel, width = layer
                self.convolutions.append(nn.Conv2d(inputs, width * d, kernel))
                inputs = width * d

    def forward(self, images: torch.Tensor, stride: int = 1) -> torch.Tensor:
        h, w = ((side - self.p) // stride + 1 for side in images.shape[-2:])
        if h < 1 or w < 1:
            raise ThesisError(f"images of {images.shape[-2]}x{images.shape[-1]} pixels: a patch has {self.p}x{self.p}")
        later = [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]      # all of them
        x = images
        # Pixels between two neighbours that a layer looks at: in the network for one patch, whose poolings take every
        # second place, and in the map x here. Their quotient is the dilation that stands for the poolings left out.
        apart, sampled = 1, 1
        for layer in LAYERS[self.p]:
            dilation = max(1, apart // sampled)     # of a 1 x 1 alone the map may be too coarse
            if layer == POOL:
                # It may take every second place as long as all patches asked for begin at the places that stay.
                step = 2 if stride % (2 * sampled) == 0 else 1
                x = F.max_pool2d(x, 2, step, dilation=dilation)
                apart, sampled = 2 * apart, step * sampled
                continue
            convolution, later = later[0], later[1:]
            # Where no later layer has neighbours, this one may leave out what is not asked for.
            wide = any(other.kernel_size[0] > 1 for other in later)
            step = 1 if wide else stride // sampled
            x = F.conv2d(x, convolution.weight, convolution.bias, step, dilation=dilation)
            sampled *= step
            if later:                               # the descriptor itself may be negative
                x = F.leaky_relu(x, SLOPE)
        return x[..., :h, :w]           # the poolings of one patch drop its last pixels, so there may be more
