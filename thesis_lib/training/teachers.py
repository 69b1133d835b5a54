"""Teachers of Uninformed Students: a patch network learns what a large network says of the same patch.

A large network and a source of pictures go in, a frozen patch network comes out.
Source: Bergmann et al. 2020 (arXiv 1911.02357); thesis sec. 4.2.1, whose decoder D is the wrong way round: it maps the
descriptor to the vector of the large network, and only the distillation needs it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import files, identity, paths
from thesis_lib.core.seeds import seed_of
from thesis_lib.networks import backbones
from thesis_lib.networks.patchnets import PatchNetwork
from thesis_lib.training import distillation
from thesis_lib.training.sources import Source, drawn

ENLARGED = 64           # pixels of a patch as the large network sees it
PATCHES = 16            # cut out of each picture
STRIDE = 8              # of the teacher: a patch gives one descriptor with any, with this all its poolings are coarse
MARGIN = 1.0            # delta of the metric learning
BRIGHTNESS, NOISE = 0.25, 0.1       # of p+: a factor of 0.75 to 1.25, and a deviation in units of a normalised picture


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What decides a teacher, beside the large network and the pictures; `steps` of `batch` patches."""

    p: int
    channels: int
    steps: int
    batch: int
    rate: float
    decay: float
    compactness: float
    metric: float
    precision: str
    seed: int


def teach(lesson: Lesson, backbone: backbones.Backbone, source: Source, every_s: float,
          torch_device: str) -> PatchNetwork:
    """Frozen teacher, on the torch device: it learned the mean of the deepest level over patches of the source.

    Whoever asks for the same again gets it from its checkpoint; an interrupted one goes on.
    """
    level = backbone.layers[-1]
    subject: Mapping[str, Any] = asdict(lesson) | {"backbone": backbone.name, "level": level,
                                                   "weights": backbone.weights, "pictures": source.identity}
    with torch.random.fork_rng(devices=[]):     # PyTorch initialises from the global generator
        torch.manual_seed(seed_of("weights", lesson.seed))
        teacher = PatchNetwork(lesson.p, lesson.channels)
        decoder = nn.Linear(lesson.channels, backbone.channels[level])
    networks = nn.ModuleDict({"teacher": teacher, "decoder": decoder})

    def losses(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = cut(pictures, lesson.p)[:lesson.batch].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            enlarged = F.interpolate(patches, (ENLARGED, ENLARGED), mode="bilinear", align_corners=False)
            wanted = backbone(enlarged)[level].float().mean((2, 3))                 # (n, C)
        said = teacher(patches, STRIDE)[..., 0, 0].float()                          # (n, d)
        # L_k, L_c and L_m of the paper, each with its weight.
        parts = {"knowledge": (decoder(said).float() - wanted).square().sum(1).mean(),
                 "compactness": lesson.compactness * compactness(said)}
        if lesson.metric:
            factor = 1 + BRIGHTNESS * (2 * torch.rand(len(patches), 1, 1, 1).to(torch_device) - 1)
            near = teacher(factor * patches + NOISE * torch.randn_like(patches), STRIDE)[..., 0, 0]
            parts["metric"] = lesson.metric * triplet(said, near.float(), said[strangers(len(said))])
        return parts

    key = files.digest(repr(sorted(subject.items())))[:16]
    backbone.to(torch_device)
    try:
        distillation.distil(networks, losses, source, steps=lesson.steps, rate=lesson.rate, decay=lesson.decay,
                            seed=lesson.seed, precision=lesson.precision, subject=subject, every_s=every_s,
                            code=identity.code(__name__), torch_device=torch_device,
                            checkpoint=paths.checkpoints() / f"teacher{lesson.p}-{key}.checkpoint",
                            what=f"teacher of {lesson.p} pixels")
    finally:
        backbone.to("cpu")
    return teacher.eval().requires_grad_(False)


class NominalSource:
    """Batches of the pictures themselves (N, 3, H, W), drawn anew for every number."""

    def __init__(self, images: np.ndarray, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.identity = f"nominal {files.digest(images)[:16]}"

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.images[drawn(len(self.images), self.batch, self.seed, number)])


def cut(images: torch.Tensor, p: int) -> torch.Tensor:
    """PATCHES random patches (B * PATCHES, 3, p, p) of each image, by torch's generator."""
    height, width = images.shape[-2:]
    rows = torch.randint(height - p + 1, (len(images), PATCHES)).tolist()
    columns = torch.randint(width - p + 1, (len(images), PATCHES)).tolist()
    patches = []
    for number, image in enumerate(images):
        for i, j in zip(rows[number], columns[number], strict=True):
            patches.append(image[:, i:i + p, j:j + p])
    return torch.stack(patches)


def strangers(count: int) -> torch.Tensor:
    """For each of `count` patches of two pictures or more, in the order of `cut`: the number of one of another picture.

    It is one of the picture before its own, for the first picture of the second; where that is cut short, its patches
    serve several times.

    >>> strangers(18).tolist()              # 16 patches of picture 0, two of picture 1
    [16, 17, 16, 17, 16, 17, 16, 17, 16, 17, 16, 17, 16, 17, 16, 17, 0, 1]
    """
    numbers = torch.arange(count)
    first = PATCHES * (numbers // PATCHES - 1).abs()        # number of the first patch of the other picture
    return first + numbers % PATCHES % (count - first).clamp(max=PATCHES)


def compactness(descriptors: torch.Tensor) -> torch.Tensor:
    """L_C of (n, d): sum of the squared correlations of different numbers; their plain sum has no lower bound."""
    centred = descriptors - descriptors.mean(0)
    normed = centred / centred.square().sum(0).add(1e-12).sqrt()
    return (normed.T @ normed).fill_diagonal_(0).square().sum()


def triplet(patch: torch.Tensor, near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """L_M of descriptors (n, d) of p, p+ and p-: mean of max(0, delta + d+ - d-), d- to the nearer of p and p+."""
    apart = torch.minimum((patch - far).square().sum(1), (near - far).square().sum(1))      # d-
    return F.relu(MARGIN + (patch - near).square().sum(1) - apart).mean()
