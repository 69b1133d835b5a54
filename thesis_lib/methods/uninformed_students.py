"""Uninformed Students: where several students fail to say what their teacher says, and disagree, there is an anomaly.

Source: Bergmann et al. 2020 (arXiv 1911.02357); thesis sec. 4.2, where the decoder is the wrong way round, and mean and
deviation of error and variance come from the picture itself: here they come from nominal pictures held out. Differs
from the paper: all students of a step see the same picture, the correlations of the compactness are squared (their
plain sum has no lower bound), the teacher's learning rate falls along a cosine.
Letters: B images, N nominal ones, L patch sizes p, M students, d length of a descriptor, h, w grid.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import above, at_least, parameter, share
from thesis_lib.methods.base import Prediction
from thesis_lib.methods.trained import PRECISION_HELP, Trained, held_out, standard
from thesis_lib.networks import backbones, patchnets
from thesis_lib.networks.patchnets import PatchNetwork
from thesis_lib.networks.torch_setup import check_torch_device
from thesis_lib.training import sources, teachers


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
    calibration: ClassVar[int] = 1

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

    def parameters(self, identity_only=False):
        found = super().parameters(identity_only)
        if identity_only and self.source != "nominal":      # a folder counts for its pictures, not for where it lies
            found["source"] = sources.parse(self.source, 32, 1).identity
        return found

    @property
    def stages(self):
        networks, constants = self._learned("networks_"), self.constants_

        def outputs(images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
            self.check_size(images)
            described = torch.cat([describe(networks[f"teacher{p}"], images, self.stride) for p in self.patch_sizes], 1)
            return self._compared(networks, constants, images, described)

        return {"extraction": outputs, "score": lambda maps: self._score(maps, constants["moments"])}

    def gather(self, maps) -> TaughtPatches:
        """All pictures, and what the teachers say of them, on disk; teachers that are not at hand are distilled."""
        check_torch_device(self.torch_device)
        images = memory.on_disk(maps.pictures())
        if len(images) < 2:
            raise ThesisError(f"{len(images)} training picture: one is held out, so it needs at least 2")
        if min(images.shape[2:]) < max(self.patch_sizes):
            raise ThesisError(f"images of {images.shape[2]}x{images.shape[3]} pixels: patch_sizes={self.patch_sizes} "
                             "do not fit into them")
        self.teachers_ = nn.ModuleDict({f"teacher{p}": self._teacher(p, images) for p in self.patch_sizes})

        @torch.no_grad()
        def described():
            for index in range(len(images)):
                image = torch.from_numpy(np.array(images[index:index + 1])).to(self.torch_device)
                yield torch.cat([describe(teacher, image, self.stride) for teacher in self.teachers_.values()], 1).cpu()

        collected = TaughtPatches(images, memory.on_disk(described()))
        self.teachers_.to("cpu")
        return collected

    def pictures(self, collected):
        return collected.images

    def architecture(self):
        networks = {f"teacher{p}": PatchNetwork(p, self.channels) for p in self.patch_sizes}
        students = {f"student{p}_{number}": PatchNetwork(p, self.channels)
                    for p in self.patch_sizes for number in range(self.students)}
        networks = nn.ModuleDict(networks | students).to(memory_format=torch.channels_last)
        if "teachers_" in vars(self):       # else they come with the state
            networks.load_state_dict(self.teachers_.state_dict(), strict=False)
        return networks

    def steps_of(self, collected):
        return self.epochs * len(self.split(len(collected.images))[0])

    def optimizers(self, networks, steps):
        students = [weight for name, network in networks.items() if name.startswith("student")
                    for weight in network.parameters()]
        return [torch.optim.Adam(students, lr=self.rate, weight_decay=self.decay)], []

    def split(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers of the pictures that are trained on, and of those that are held out."""
        return held_out(np.random.default_rng(self.seed).permutation(count).tolist(), self.held_out)

    def prepare(self, collected):
        """Mean and deviation of every number of the teachers over the pictures trained on, (L * d, 1, 1) each."""
        return standard(collected.described, self.split(len(collected.images))[0])

    def losses(self, networks, constants, collected, step):
        trained, _ = self.split(len(collected.images))
        epoch, number = divmod(step, len(trained))
        index = trained[np.random.default_rng([self.seed, epoch]).permutation(len(trained))[number]]
        image, described = self._taken(collected, index)
        targets = ((described - constants["mean"]) / constants["std"]).split(self.channels, dim=1)
        return {f"p{p}": sum((describe(networks[f"student{p}_{m}"], image, self.stride).float() - target)
                             .square().sum(1).mean() for m in range(self.students))
                for p, target in zip(self.patch_sizes, targets, strict=True)}

    def calibrate(self, networks, constants, collected):
        """(L, 2, 2): mean and deviation of e and of v for each p, over all positions of the pictures held out."""
        found = [self._compared(networks, constants, *self._taken(collected, index))
                 for index in self.split(len(collected.images))[1]]
        moments = []
        for maps in zip(*found, strict=True):
            values = torch.stack([torch.stack(pair) for pair in maps]).double()     # (n, 2, 1, h, w)
            values = values.transpose(0, 1).flatten(1)
            moments.append(torch.stack([values.mean(1), values.std(1).clamp(min=1e-12)], dim=1))
        return {"moments": torch.stack(moments).float()}

    def _taken(self, collected: TaughtPatches, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(np.array(values[index:index + 1])).to(self.torch_device) for values in collected)

    def _compared(self, networks, constants, images, described) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Regression error e and predictive variance v, (B, h, w) each, for every p."""
        targets = ((described - constants["mean"]) / constants["std"]).split(self.channels, dim=1)
        found = []
        for p, target in zip(self.patch_sizes, targets, strict=True):
            said = torch.stack([describe(networks[f"student{p}_{m}"], images, self.stride).float()
                                for m in range(self.students)])                     # (M, B, d, h, w)
            found.append(error_and_variance(said, target))
        return found

    def _score(self, maps, moments: torch.Tensor) -> Prediction:
        heat = sum((value - mean) / std for pair, both in zip(maps, moments, strict=True)
                   for value, (mean, std) in zip(pair, both, strict=True)) / len(maps)
        return Prediction(heat.flatten(1).amax(1), heat)

    def _teacher(self, p: int, images: np.ndarray) -> PatchNetwork:
        count = -(-self.teacher_batch // teachers.PATCHES)
        source = (teachers.NominalSource(images, count, self.teacher_seed) if self.source == "nominal"
                  else sources.parse(self.source, 4 * p, count, self.teacher_seed))
        lesson = teachers.Lesson(
            p=p, channels=self.channels, steps=self.teacher_steps, batch=self.teacher_batch, rate=self.teacher_rate,
            decay=self.decay, compactness=self.compactness, metric=self.metric, precision=self.precision,
            seed=self.teacher_seed)
        return teachers.teach(lesson, self.backbone_, source, self.checkpoint_s, self.torch_device)


def describe(network: PatchNetwork, images: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, d, h, w) around the pixels (i * stride, j * stride); pictures are mirrored at their rim, for all p alike."""
    return network(F.pad(images, [network.p // 2] * 4, mode="reflect"), stride)


def error_and_variance(said: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e and v (B, h, w) of what M students say (M, B, d, h, w) and their normalised teacher (B, d, h, w)."""
    mean = said.mean(0)
    return (mean - target).square().sum(1), (said - mean).square().sum(2).mean(0)
