"""Uninformed Students: where several students fail to say what their teacher says, and disagree, there is an anomaly.

What is learned: for every patch size a teacher, distilled from a large network, and students who follow it on nominal
pictures; and mean and deviation of their error and variance.
Source: Bergmann et al. 2020 (arXiv 1911.02357); thesis sec. 4.2, where the decoder is the wrong way round, and mean and
deviation of error and variance come from the picture itself: here they come from nominal pictures held out. Differs
from the paper: all students of a step see the same picture, the correlations of the compactness are squared (their
plain sum has no lower bound), the teacher's learning rate falls along a cosine. Differs from its re-implementations:
they correlate the descriptors, not their numbers, take mean and deviation of error and variance from the pictures that
are trained on, and score patches that leave the picture, padded with zeros or mirrored. Here none decides a score.
Letters: B images, N nominal ones, L patch sizes p, M students, d length of a descriptor, h, w grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import above, at_least, parameter, share
from thesis_lib.core.preprocess import Size, height_width, in_pixels
from thesis_lib.core.seeds import seed_of
from thesis_lib.methods.base import Prediction, Stages, State
from thesis_lib.methods.trained import PRECISION_HELP, Optimizers, Schedules, Trained, held_out, standard
from thesis_lib.networks import backbones, patchnets
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.networks.patchnets import PatchNetwork
from thesis_lib.training import sources, teachers

Compared = list[tuple[torch.Tensor, torch.Tensor]]      # regression error e and predictive variance v of every p


class TaughtPatches(NamedTuple):
    images: np.ndarray                  # (N, 3, H, W)
    described: np.ndarray               # (N, L * d, h, w), by the teachers


@dataclass(kw_only=True)
class UninformedStudents(Trained):
    backbone: str = parameter("resnet18", "network that the teachers are distilled from: "
                              + ", ".join(backbones.RESNETS), features=True)
    layers: tuple[int, ...] = parameter((4,), "its level whose mean over a patch they learn", features=True)
    engine: str = parameter("eager", "what runs the networks: eager (torch)")
    patch_sizes: tuple[int, ...] = parameter((17, 33, 65), "p of each teacher and its students", features=True)
    channels: int = parameter(128, "d, length of a descriptor; inner layers have d or 2 d", features=True)
    stride: int = parameter(4, "pixels between two positions; 1 is the paper's", features=True)
    source: str = parameter("procedural", "pictures of the distillation: procedural, nominal (those of fit) or a "
                            "folder of photographs (the paper's ImageNet)", features=True)
    teacher_steps: int = parameter(50_000, "steps of the distillation", features=True)
    teacher_batch: int = parameter(64, "patches of a step of the distillation", features=True)
    teacher_rate: float = parameter(2e-4, "highest learning rate of Adam for the teacher", features=True)
    teacher_seed: int = parameter(0, "of the teachers; one teacher serves every seed", features=True)
    compactness: float = parameter(1.0, "weight of the decorrelation of the teacher's numbers", features=True)
    metric: float = parameter(0.0, "weight of the metric learning of the teacher", features=True)
    precision: str = parameter("float32", PRECISION_HELP, features=True)
    students: int = parameter(3, "M, students of every teacher")
    epochs: int = parameter(100, "passes of the students through the pictures, one at a time")
    rate: float = parameter(1e-4, "learning rate of Adam for the students")
    decay: float = parameter(1e-5, "weight decay of teachers and students", features=True)
    held_out: float = parameter(0.1, "share of the pictures that only set mean and deviation of error and variance")

    name: ClassVar[str] = "uninformed_students"
    map_sigma: ClassVar[float] = 0.0
    calibration: ClassVar[int] = 1      # type: ignore[misc]  # takes the field away: there is no int8 to calibrate

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in backbones.RESNETS or len(self.layers) != 1:
            raise ThesisError(f"backbone={self.backbone!r}, layers={self.layers}: needs one level of one of "
                             f"{', '.join(backbones.RESNETS)}")
        if self.engine != "eager":
            raise ThesisError(f"engine={self.engine!r}: uninformed_students runs on eager only")
        self.patch_sizes = tuple(sorted(set(self.patch_sizes)))
        if not self.patch_sizes or set(self.patch_sizes) - set(patchnets.LAYERS):
            raise ThesisError(f"patch_sizes={self.patch_sizes}: needs some of {', '.join(map(str, patchnets.LAYERS))}")
        at_least(self, 1, "channels", "stride", "teacher_steps", "teacher_batch", "students", "epochs")
        above(self, 0, "teacher_rate", "rate")
        at_least(self, 0, "compactness", "metric", "decay")
        share(self, "held_out")
        if self.metric and self.teacher_batch <= teachers.PATCHES:
            raise ThesisError(f"metric={self.metric}, teacher_batch={self.teacher_batch}: metric learning compares "
                              f"patches of two pictures, {teachers.PATCHES} of the first; needs a teacher_batch of at "
                              f"least {teachers.PATCHES + 1}, or metric=0")

    def parameters(self, identity_only: bool = False) -> dict[str, Any]:
        given = super().parameters(identity_only)
        if identity_only and self.source != "nominal":      # a folder counts for its pictures, not for where it lies
            given["source"] = self._pictures(32, 1, 0).identity
        return given

    @property
    def stages(self) -> Stages:
        networks, constants = self._learned("networks_"), self.constants_

        def outputs(images: torch.Tensor) -> Compared:
            self.check_images(images)
            return self._compared(networks, constants, images)

        def score(maps: Compared) -> Prediction:
            return self._score(maps, constants["moments"])

        return {"extraction": outputs, "score": score}

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        if count < 2:
            raise ThesisError(f"{count} training picture: one is held out, so it needs at least 2")
        side = min(height_width(size))
        if sum(rims(max(self.patch_sizes), side, self.stride)) >= len(centres(side, self.stride)):
            raise ThesisError(f"images of {in_pixels(size)} pixels: patch_sizes={self.patch_sizes} do not fit into "
                              f"them at stride={self.stride}")
        if self.source != "nominal":
            sources.parse(self.source, 4 * max(self.patch_sizes), 1)

    def gather(self, maps: Extracted | Stored) -> TaughtPatches:
        """All pictures, and what the teachers say of them, on disk; teachers that are not at hand are distilled."""
        images = memory.on_disk(maps.pictures())
        self.check_pictures(len(images), images.shape[2:])
        self.teachers_ = nn.ModuleDict({f"teacher{p}": self._teacher(p, images) for p in self.patch_sizes})

        @torch.no_grad()
        def described() -> Iterator[torch.Tensor]:
            for index in range(len(images)):
                image = torch.from_numpy(np.array(images[index:index + 1])).to(self.torch_device)
                yield self._taught(self.teachers_, image).cpu()

        collected = TaughtPatches(images, memory.on_disk(described()))
        self.teachers_.to("cpu")
        return collected

    def pictures(self, collected: TaughtPatches) -> np.ndarray:
        return collected.images

    def architecture(self) -> nn.ModuleDict:
        fixed = {f"teacher{p}": PatchNetwork(p, self.channels) for p in self.patch_sizes}
        trained = {f"student{p}_{m}": PatchNetwork(p, self.channels)
                   for p in self.patch_sizes for m in range(self.students)}
        networks = nn.ModuleDict(fixed | trained)
        # The types that come with torch lack this argument.
        networks.to(memory_format=torch.channels_last)      # type: ignore[call-overload]
        if "teachers_" in vars(self):       # else they come with the state
            networks.load_state_dict(self.teachers_.state_dict(), strict=False)
        return networks

    def steps_of(self, collected: TaughtPatches) -> int:
        return self.epochs * len(self.split(len(collected.images))[0])

    def optimizers(self, networks: nn.ModuleDict, steps: int) -> tuple[Optimizers, Schedules]:
        students = [weight for name, network in networks.items() if name.startswith("student")
                    for weight in network.parameters()]
        return [torch.optim.Adam(students, lr=self.rate, weight_decay=self.decay)], []

    def split(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers of the pictures that are trained on, and of those that are held out."""
        order = np.random.default_rng(seed_of("split", self.seed)).permutation(count)
        return held_out(order.tolist(), self.held_out)

    def prepare(self, collected: TaughtPatches) -> State:
        """Mean and deviation of every number of the teachers over the pictures trained on, (L * d, 1, 1) each."""
        return standard(collected.described, self.split(len(collected.images))[0])

    def losses(self, networks: nn.ModuleDict, constants: State, collected: TaughtPatches, step: int) -> State:
        # 1. One picture a step; every epoch visits all of them, in an order of its own.
        trained, _ = self.split(len(collected.images))
        epoch, number = divmod(step, len(trained))
        order = np.random.default_rng(seed_of("shuffle", self.seed, epoch)).permutation(len(trained))
        index = trained[order[number]]
        image, described = self._taken(collected, index)
        # 2. For each p: every student comes near to the normalised descriptor of its teacher, each for itself.
        targets = ((described - constants["mean"]) / constants["std"]).split(self.channels, dim=1)
        parts = {}
        for p, target in zip(self.patch_sizes, targets, strict=True):
            errors = []
            for m in range(self.students):
                said = self._said(networks, f"student{p}_{m}", image).float()       # (1, d, h, w)
                errors.append((said - target).square().sum(1).mean())
            parts[f"p{p}"] = sum(errors[1:], errors[0])
        return parts

    def calibrate(self, networks: nn.ModuleDict, constants: State, collected: TaughtPatches) -> State:
        """(L, 2, 2): mean and deviation of e and of v for each p, over its positions of the pictures held out."""
        compared = [self._compared(networks, constants, self._taken(collected, index)[0])
                    for index in self.split(len(collected.images))[1]]
        moments = []
        for maps in zip(*compared, strict=True):            # of one p, a pair (e, v) per picture
            values = torch.stack([torch.stack(pair) for pair in maps]).double()     # (n, 2, 1, h, w)
            values = values.transpose(0, 1).flatten(1)
            moments.append(torch.stack([values.mean(1), values.std(1, correction=0).clamp(min=1e-12)], dim=1))
        return {"moments": torch.stack(moments).float()}

    def _taken(self, collected: TaughtPatches, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A picture (1, 3, H, W), and what the teachers say of it (1, L * d, h, w)."""
        image = torch.from_numpy(np.array(collected.images[index:index + 1])).to(self.torch_device)
        described = torch.from_numpy(np.array(collected.described[index:index + 1])).to(self.torch_device)
        return image, described

    def _said(self, networks: nn.ModuleDict, name: str, images: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w): what one of the networks says, up to the rim."""
        return describe(cast(PatchNetwork, networks[name]), images, self.stride)

    def _taught(self, networks: nn.ModuleDict, images: torch.Tensor) -> torch.Tensor:
        """(B, L * d, h, w): what the teachers say, one below the other."""
        return torch.cat([self._said(networks, f"teacher{p}", images) for p in self.patch_sizes], 1)

    def _compared(self, networks: nn.ModuleDict, constants: State, images: torch.Tensor) -> Compared:
        """Regression error e and predictive variance v for every p, where its patch lies in the picture."""
        def said(name: str) -> torch.Tensor:
            return inside(cast(PatchNetwork, networks[name]), images, self.stride).float()

        means, stds = (constants[name].split(self.channels) for name in ("mean", "std"))
        compared = []
        for p, mean, std in zip(self.patch_sizes, means, stds, strict=True):
            students = torch.stack([said(f"student{p}_{m}") for m in range(self.students)])     # (M, B, d, h_p, w_p)
            compared.append(error_and_variance(students, (said(f"teacher{p}") - mean) / std))
        return compared

    def _score(self, maps: Compared, moments: torch.Tensor) -> Prediction:
        """Map (B, h, w): mean over all p of (e - e_mu) / e_sigma + (v - v_mu) / v_sigma. Its maximum is the score.

        The rim of each p, where no patch of its size fits, gets the nearest values of that p. So every part is one of
        a patch inside the picture, all parts have the same mean everywhere, and the small patches see up to their own
        rim: only where all fit, the largest one would keep half of its size from them, too.
        """
        height, width = self._learned("image_size_")
        filled = []
        for p, (e, v), ((e_mu, e_sigma), (v_mu, v_sigma)) in zip(self.patch_sizes, maps, moments, strict=True):
            heat = (e - e_mu) / e_sigma + (v - v_mu) / v_sigma
            sides = *rims(p, width, self.stride), *rims(p, height, self.stride)
            filled.append(F.pad(heat, sides, mode="replicate"))
        heat = sum(filled[1:], filled[0]) / len(maps)
        return Prediction(heat.flatten(1).amax(1), heat, self.map_sigma)

    def _pictures(self, side: int, batch: int, seed: int) -> sources.Source:
        """Pictures of the distillation that are not those of fit; ThesisError where metric learning finds only one."""
        source = sources.parse(self.source, side, batch, seed)
        if self.metric and isinstance(source, sources.Folder) and len(source.files) < 2:
            raise ThesisError(f"metric={self.metric}, source={self.source}: metric learning compares patches of two "
                              "pictures, and this folder holds one; needs at least 2, or metric=0")
        return source

    def _teacher(self, p: int, images: np.ndarray) -> PatchNetwork:
        """Of p x p pixels, distilled from the network unless that has been done before."""
        count = -(-self.teacher_batch // teachers.PATCHES)      # pictures that so many patches are cut out of
        seed = seed_of("teacher", self.teacher_seed, p)
        source = (teachers.NominalSource(images, count, seed) if self.source == "nominal"
                  else self._pictures(4 * p, count, seed))
        lesson = teachers.Lesson(
            p=p, channels=self.channels, steps=self.teacher_steps, batch=self.teacher_batch, rate=self.teacher_rate,
            decay=self.decay, compactness=self.compactness, metric=self.metric, precision=self.precision, seed=seed)
        network = cast(backbones.Backbone, self.backbone_)      # engine eager is the only one here
        return teachers.teach(lesson, network, source, self.checkpoint_s, self.torch_device)


def describe(network: PatchNetwork, images: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, d, h, w) around the pixels of `centres`; pictures are mirrored at their rim, for all p alike."""
    padded = F.pad(images, [network.p // 2] * 4, mode="reflect")
    return network(padded[..., stride // 2:, stride // 2:], stride)


def inside(network: PatchNetwork, images: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, d, h_p, w_p): of `describe` the positions whose patch lies in the picture."""
    first = (stride // 2 - network.p // 2) % stride         # pixel where the first of these patches begins
    return network(images[..., first:, first:], stride)


def centres(side: int, stride: int) -> range:
    """Pixels along a side around which a patch is described: the middle of every `stride` pixels, so that a map
    enlarged to full size lies where its patches do.

    >>> list(centres(16, 4))
    [2, 6, 10, 14]
    """
    return range(stride // 2, side, stride)


def rims(p: int, side: int, stride: int) -> tuple[int, int]:
    """Positions along a side before and behind those whose patch lies in the picture.

    >>> rims(33, 256, 4)
    (4, 4)
    """
    within = [p // 2 <= centre < side - p // 2 for centre in centres(side, stride)]
    return (within.index(True), within[::-1].index(True)) if any(within) else (len(within), len(within))


def error_and_variance(said: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e and v (B, h, w) of what M students say (M, B, d, h, w) and their normalised teacher (B, d, h, w)."""
    mean = said.mean(0)
    return (mean - target).square().sum(1), (said - mean).square().sum(2).mean(0)
