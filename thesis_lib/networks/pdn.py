"""Patch description network: every vector of its map describes the 33 x 33 pixels below it and nothing else.

Source: Batzner et al. 2024 (EfficientAD, arXiv 2303.14535), Tables 5 and 6; thesis sec. 3.5.2 and 4.3.1.
"""

from collections import OrderedDict

from torch import nn

CHANNELS = 384      # of the description
STRIDE = 4
FIELD = 33          # receptive field, pixels
RIM = 4             # positions that are cut off on each side without padding
# (outputs, kernel, padding in distillation) of each convolution; the first two are followed by a 2x2 pooling.
CONVOLUTIONS = {
    "pdn_small": ((128, 4, 3), (256, 4, 3), (256, 3, 1), (CHANNELS, 4, 0)),
    "pdn_medium": ((256, 4, 3), (512, 4, 3), (512, 1, 0), (512, 3, 1), (CHANNELS, 4, 0), (CHANNELS, 1, 0))}


class PDN(nn.Sequential):
    """Images (B, 3, H, W) -> (B, outputs, H/4 - 8, W/4 - 8), or with padding H/4 and W/4; sides are multiples of 4.

    Padding is for the distillation alone: its target has a vector for every 4 x 4 pixels. Leaving it out only cuts
    the rim of 4 vectors off.
    """

    def __init__(self, name: str, outputs: int = CHANNELS, padding: bool = False) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for number, (channels, kernel, pad) in enumerate(CONVOLUTIONS[name], start=1):
            last = number == len(CONVOLUTIONS[name])
            channels = outputs if last else channels
            layers[f"conv{number}"] = nn.Conv2d(inputs, channels, kernel, padding=pad if padding else 0)
            if not last:
                layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if number <= 2:
                layers[f"pool{number}"] = nn.AvgPool2d(2, 2, padding=1 if padding else 0)
            inputs = channels
        super().__init__(layers)
