"""Milliseconds on a Raspberry Pi 4B, which was not at hand: predicted from the thesis' three times there, with error.

An unfitted detector and the size of its pictures go in. The model is that of `costs`, with arithmetic alone (bytes
explain no more of the three times); its error is the worst of the three networks predicted from the two others.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.evaluation import costs
from thesis_lib.evaluation.thesis import NETWORKS, TIMED_NETWORKS, network_times
from thesis_lib.methods.base import Detector, PatchDetector
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.methods.spade import SPADE
from thesis_lib.networks import autoencoder, backbones
from thesis_lib.networks.pdn import CHANNELS, PDN
from thesis_lib.patches import coreset

COLUMN = "raspberry_pi_4b_ms"       # of Table 2.4


@dataclass(frozen=True)
class Predicted:
    """Milliseconds of one picture, not measured: `ms`, and what it may as well be, ms divided and multiplied by
    `factor`.
    """

    ms: float
    factor: float

    @property
    def low(self) -> float:
        return self.ms / self.factor

    @property
    def high(self) -> float:
        return self.ms * self.factor


def predict(detector: Detector, size: Size, n_train: int) -> Predicted | None:
    """Of float32, the network and the search; what costs little beside them (embedding, score) is left out.

    size: (H, W) that the network sees; n_train: training pictures, of which a bank given as a share depends. None for
    Uninformed Students, whose work is not counted.
    """
    height_wide = height_width(size)
    if isinstance(detector, EfficientAD):
        with torch.device("meta"):
            networks = [PDN(detector.backbone, CHANNELS), PDN(detector.backbone, 2 * CHANNELS),
                        autoencoder.build(height_wide[0], CHANNELS)]
        works = [costs.count(network.eval(), height_wide) for network in networks]
    elif isinstance(detector, PatchDetector):
        works = [costs.cut(detector.backbone, detector.levels, height_wide, detector.tap),
                 _searched(detector, height_wide, n_train)]
    else:
        return None
    rates, factor = calibrated()
    return Predicted(rates.ms(sum(works[1:], works[0])), factor)


@lru_cache(maxsize=1)
def calibrated() -> tuple[costs.Rates, float]:
    """Rates of the Pi, and the factor by which a network that they have not seen was wrong at most."""
    times = network_times()[COLUMN]
    known = {label: (costs.whole(NETWORKS[label], 224), float(times[label])) for label in TIMED_NETWORKS}
    ratios = costs.left_out(known, with_bytes=False)
    return costs.calibrate(known, with_bytes=False), float(np.exp(np.abs(np.log(list(ratios.values()))).max()))


def _searched(detector: PatchDetector, size: Size, n_train: int) -> costs.Work:
    """What compares the patches of one picture with what was learned."""
    places, dim = detector.shape(size)
    if isinstance(detector, PatchCore):
        return costs.search(places, coreset.size(detector.bank, n_train * places), dim)
    if isinstance(detector, PaDiM):
        kept = detector.channels or dim
        numbers = kept * (kept + 1) // 2 if detector.covariance == "full" else kept
        return costs.Work(places * numbers, 4 * places * numbers)
    if isinstance(detector, SimpleNet):
        return costs.Work(places * detector.hidden * (dim + 1), 4 * places * (dim + detector.hidden))
    assert isinstance(detector, SPADE)
    channels, _ = backbones.shapes(detector.backbone, [detector.levels[-1]])
    return costs.search(1, n_train, channels[detector.levels[-1]])
