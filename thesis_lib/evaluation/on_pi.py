"""Milliseconds on a Raspberry Pi 4B at 1.8 GHz, which was not at hand: predicted from times that others published.

An unfitted detector and the size of its pictures go in. The network runs at the rates of an engine, the search, a
product of matrices, at those of ONNX Runtime in float32, with which NumPy shares the processor in a bundle.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.evaluation import costs, engines
from thesis_lib.evaluation.costs import Work
from thesis_lib.methods.base import Detector, PatchDetector
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.methods.spade import SPADE
from thesis_lib.networks import autoencoder, backbones
from thesis_lib.networks.pdn import CHANNELS, PDN
from thesis_lib.patches import coreset

BUNDLE = "onnxruntime"          # series of published times: what a bundle in float32 runs on
# Engine and precision -> series. Two where nobody published the engine's own times: its time is taken to lie between.
SERIES = {("onnxruntime", "float32"): (BUNDLE,), ("onnxruntime", "int8"): ("ncnn int8", "pytorch int8"),
          ("ncnn", "float32"): ("ncnn",), ("ncnn", "int8"): ("ncnn int8",),
          ("pytorch", "float32"): ("pytorch",), ("pytorch", "int8"): ("pytorch int8",)}
TIMED = ("resnet", "wide_resnet")       # beginnings of backbones of whose kind networks were timed


class Parts(NamedTuple):
    """What one picture costs: the networks, and the comparison of its patches with what was learned."""

    network: Work
    search: Work | None

    def within(self, other: "Parts") -> bool:
        """Whether nothing is more than in the other."""
        return self.network.within(other.network) and (self.search is None or (
            other.search is not None and self.search.within(other.search)))


@dataclass(frozen=True)
class Predicted:
    """Milliseconds of one picture, not measured, and from where to where they may as well be.

    calibrated: the engine's own times were published; without them `ms` is the middle of what others take.
    extrapolated: no network of this kind is among those that were timed.
    """

    ms: float
    low: float
    high: float
    calibrated: bool = True
    extrapolated: bool = False


def predict(detector: Detector, size: Size, n_train: int, engine: str = "onnxruntime",
            precision: str = "float32") -> Predicted | None:
    """The network and the search; what costs little beside them (embedding, score) is left out.

    size: (H, W) that the network sees; n_train: training pictures, of which a bank given as a share depends. The search
    is in float32 whatever the network. None for Uninformed Students, whose work is not counted.
    """
    parts = work(detector, size, n_train)
    if parts is None:
        return None
    extrapolated = isinstance(detector, EfficientAD) or not getattr(detector, "backbone", "").startswith(TIMED)
    return time_of(parts, engine, precision, extrapolated)


def time_of(parts: Parts, engine: str = "onnxruntime", precision: str = "float32",
            extrapolated: bool = False) -> Predicted:
    """The same of work that was counted; ThesisError lists the engines."""
    if (engine, precision) not in SERIES:
        raise ThesisError(f"engine={engine}, precision={precision}: there are "
                          f"{', '.join(' '.join(key) for key in SERIES)}")
    ends = [np.array(_span(series, parts.network)) for series in SERIES[engine, precision]]
    search = np.array(_span(BUNDLE, parts.search)) if parts.search else np.zeros(3)
    low, high = (float(least(end[place] for end in ends) + search[place]) for least, place in ((min, 1), (max, 2)))
    ms = float(np.exp(np.mean([np.log(end[0]) for end in ends])) + search[0])
    return Predicted(ms, low, high, len(ends) == 1, extrapolated)


def work(detector: Detector, size: Size, n_train: int) -> Parts | None:
    """What one picture costs an unfitted detector; None where it is not counted."""
    height_wide = height_width(size)
    if isinstance(detector, EfficientAD):
        with torch.device("meta"):
            networks = [PDN(detector.backbone, CHANNELS), PDN(detector.backbone, 2 * CHANNELS),
                        autoencoder.build(height_wide[0], CHANNELS)]
        works = [costs.count(network.eval(), height_wide) for network in networks]
        return Parts(sum(works[1:], works[0]), None)
    if isinstance(detector, PatchDetector):
        return Parts(costs.cut(detector.backbone, detector.levels, height_wide, detector.tap),
                     _searched(detector, height_wide, n_train))
    return None


def _span(series: str, what: Work) -> tuple[float, float, float]:
    """Milliseconds, and from where to where."""
    model = engines.model(series)
    ms = model.rates.ms(what)
    return ms, *model.span(ms)


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
