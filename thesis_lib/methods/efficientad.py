"""EfficientAD: a student that fails to follow its teacher, and an autoencoder that fails to follow it as a whole.

Source: Batzner et al. 2024 (arXiv 2303.14535); thesis sec. 4.3. Where the thesis is silent (normalisation of the
teacher, augmentation, quantiles) or differs (it counts 10 % of the elements as hard, 0.1 % are) the paper and its
re-implementation nelson1425/EfficientAD decide. Differs from them: the penalty's pictures are a parameter; colours
change after the resize; the score is the maximum of the map itself, whose rim then gets the nearest values. Theirs is
that of the map with a rim of zeros, at the size of the file: up to 20 % less at 256 pixels, never below 0, in nearly
the same order. As theirs, the autoencoder pads with zeros, which raises the outermost ring of the global map in the
first few hundred steps.
All networks learn in torch, whatever the engine: it only runs what has been learned, as one ONNX model.
Letters: B images, C = 384 channels, h, w grid. Of the paper: T teacher, normalised by mu and sigma; S and S' the two
halves of the student, which follow T and the autoencoder A.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import at_least, one_of, parameter, share
from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.core.seeds import seed_of
from thesis_lib.data.pictures import denormalise, evenly, normalise
from thesis_lib.methods.base import Prediction, Stages, State
from thesis_lib.methods.trained import Optimizers, Schedules, Trained, held_out, standard
from thesis_lib.networks import autoencoder, backbones, engines
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.networks.pdn import CHANNELS, PDN, RIM
from thesis_lib.networks.torch_setup import training_layout
from thesis_lib.networks.weightfiles import torchvision
from thesis_lib.training import distillation, sources

GREY = 0.3              # of the penalty's pictures lose their colours
STRENGTH = 0.2          # a factor of 0.8 to 1.2 changes brightness, contrast or saturation
MAPS = ("local", "global", "combined")


class TaughtPictures(NamedTuple):
    images: np.ndarray          # (N, 3, H, W)
    described: np.ndarray       # (N, C, h, w), by the teacher; the same at every step, so computed once


class Outputs(NamedTuple):
    teacher: torch.Tensor       # (B, C, h, w), normalised
    student: torch.Tensor       # (B, 2 C, h, w): S and S'
    autoencoder: torch.Tensor   # (B, C, h, w)


@dataclass(kw_only=True)
class EfficientAD(Trained):
    backbone: str = parameter("pdn_small", "teacher, and the size of its student: " + ", ".join(backbones.PDNS),
                              features=True)
    weights: str = parameter("bundled", "of the teacher: bundled, random or a .safetensors file", features=True)
    engine: str = parameter("eager", "what runs the trained networks: eager (torch), fast (ONNX Runtime) or int8")
    calibration: int = parameter(100, "pictures trained on, evenly spaced, that set the ranges of int8")
    steps: int = parameter(70_000, "steps of one picture")
    penalty: str = parameter("procedural", "pictures that the student shall not describe: procedural, none, or a "
                             "folder of photographs (the paper's ImageNet)")
    held_out: float = parameter(0.1, "share of the training pictures that only set the quantiles of the maps")
    hard: float = parameter(0.999, "quantile of the squared differences above which they count")
    low: float = parameter(0.9, "quantile of a map that becomes 0")
    high: float = parameter(0.995, "quantile of a map that becomes 0.1")
    rate: float = parameter(1e-4, "learning rate of Adam, a tenth of it after 95 % of the steps")
    decay: float = parameter(1e-5, "weight decay")

    name: ClassVar[str] = "efficientad"
    layers = (1,)                   # without a type: the only one of a PDN, so a constant and no field
    trunk: ClassVar[str] = "eager"
    map_sigma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, backbones.PDNS)
        super().__post_init__()
        at_least(self, 1, "steps")
        at_least(self, 0, "rate", "decay")
        share(self, "held_out", "hard")
        if not 0 <= self.low < self.high <= 1:
            raise ThesisError(f"low={self.low}, high={self.high}: needs 0 <= low < high <= 1")

    def parameters(self, identity_only: bool = False) -> dict[str, Any]:
        given = super().parameters(identity_only)
        if identity_only and self.penalty != "none":     # a folder counts for its pictures, not for where it lies
            given["penalty"] = sources.parse(self.penalty, 32, 1).identity
        return given

    def recipe(self) -> dict[str, Any]:
        """Engines share a training; the key stays, for trainings that are under way."""
        deciding = super().recipe() | {"engine": self.trunk}
        del deciding["calibration"]
        return deciding

    @property
    def stages(self) -> Stages:
        self._learned("networks_")
        return {"extraction": self._outputs, "score": self._score}

    def maps(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Local, global and combined map, (B, h, w) each: squared differences, normalised by their quantiles.

        Of nominal pictures the low quantile q_a becomes 0 and the high one q_b becomes 0.1, for both maps alike, so
        that their mean weighs them alike.
        """
        maps = {}
        for name, heat, (q_a, q_b) in zip(MAPS[:2], _differences(outputs), self.constants_["quantiles"], strict=True):
            maps[name] = 0.1 * (heat - q_a) / (q_b - q_a)
        maps["combined"] = (maps["local"] + maps["global"]) / 2
        return maps

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        if count < 2:
            raise ThesisError(f"{count} training picture: one is held out, so it needs at least 2")
        side = autoencoder.check(torch.empty(1, 3, *height_width(size), device="meta"))
        if self.penalty != "none":
            sources.parse(self.penalty, side, 1)

    def gather(self, maps: Extracted | Stored) -> TaughtPictures:
        """All pictures and what the teacher says of them, in an unnamed file on disk."""
        def rows() -> Iterator[torch.Tensor]:
            for images, features in zip(maps.pictures(), maps.batches((1,)), strict=True):
                self.side_ = autoencoder.check(images)
                yield torch.cat([images.flatten(1), features[1].flatten(1)], dim=1)

        collected = memory.on_disk(rows())
        self.check_pictures(len(collected), self.side_)
        # A row of the file is a picture (3 * side * side), then its maps (C * h * w).
        pixels, grid = 3 * self.side_ ** 2, self.side_ // 4 - 2 * RIM
        return TaughtPictures(collected[:, :pixels].reshape(-1, 3, self.side_, self.side_),
                              collected[:, pixels:].reshape(-1, CHANNELS, grid, grid))

    def pictures(self, collected: TaughtPictures) -> np.ndarray:
        return collected.images

    def architecture(self) -> nn.ModuleDict:
        networks = {"student": PDN(self.backbone, 2 * CHANNELS), "autoencoder": autoencoder.build(self.side_, CHANNELS)}
        # The types that come with torch lack this argument.
        return nn.ModuleDict(networks).to(                                  # type: ignore[call-overload]
            memory_format=training_layout(self.torch_device))

    def steps_of(self, collected: TaughtPictures) -> int:
        return self.steps

    def optimizers(self, networks: nn.ModuleDict, steps: int) -> tuple[Optimizers, Schedules]:
        adam = torch.optim.Adam(networks.parameters(), lr=self.rate, weight_decay=self.decay)
        return [adam], [torch.optim.lr_scheduler.StepLR(adam, max(1, int(0.95 * steps)), 0.1)]

    def learn(self, collected: TaughtPictures) -> Self:
        self._teacher.to(self.torch_device)
        try:
            super().learn(collected)
        finally:
            self._teacher.to("cpu")
        if self.engine != "eager":
            for step in self.course_.kept:
                self.course_.kept[step] = self.at(step).on(self.engine, collected.images).state()
            self._take(self.course_.kept[self.course_.step])
        return self

    def on(self, engine: str, images: np.ndarray, seven_bits: bool | None = None) -> Self:
        """What has been learned from images (N, 3, H, W), on fast or int8; seven_bits as in `engines.int8`.

        The ranges of int8 come from pictures that were trained on, its quantiles from its own maps of those held out:
        the ones of the float networks would belong to other maps.
        """
        other = copy.copy(self)
        other.engine = engine
        model = engines.convert(_Networks(self), (torch.zeros(1, 3, self.side_, self.side_),), self._what,
                                inputs=["images"], outputs=list(Outputs._fields),
                                free={name: {0: "B"} for name in ("images", *Outputs._fields)})
        trained, held = self.split(len(images))
        if engine == "int8":
            chosen = evenly(sorted(trained), self.calibration)
            shown = (_picture(images, number) for number in chosen)
            model = engines.int8(model, f"int8, {self._what}", shown, seven_bits)
        other.graph_ = engines.Graph(model, self._what)
        if engine == "int8":
            outputs = (other._outputs(_picture(images, number)) for number in held)
            other.constants_ = self.constants_ | self._quantiles(outputs)
        return other

    def split(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers of the pictures that are trained on, and of those that are held out."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("split", self.seed)))
        return held_out(order.tolist(), self.held_out)

    def prepare(self, collected: TaughtPictures) -> State:
        """mu and sigma: mean and standard deviation of the teacher's channels over the training pictures, (C, 1, 1)."""
        if self.penalty != "none":
            self._penalty = sources.parse(self.penalty, self.side_, 1, seed_of("penalty", self.seed), sources.Centres)
        return standard(collected.described, self.split(len(collected.images))[0])

    def losses(self, networks: nn.ModuleDict, constants: State, collected: TaughtPictures, step: int) -> State:
        # 1. One picture I a step; every epoch visits all of them, in an order of its own.
        trained, _ = self.split(len(collected.images))
        epoch, number = divmod(step, len(trained))
        shuffle = torch.Generator().manual_seed(seed_of("shuffle", self.seed, epoch))
        order = torch.randperm(len(trained), generator=shuffle)
        image, described = self._taken(collected, [trained[order[number]]])
        # 2. One batch for the student: I, the picture P of the penalty, and I changed in its colours.
        changed, pictures = augmented(image), [image]
        if self.penalty != "none":
            pictures.append(distillation.greyed(self._penalty[step], GREY).to(self.torch_device))
        shown = torch.cat([*pictures, changed]).contiguous(memory_format=training_layout(self.torch_device))
        # 3. Of the changed picture: T, normalised, and A. Of the student: S of all others, S' of the changed one.
        teacher = (self.backbone_(shown[-1:])[1].float() - constants["mean"]) / constants["std"]
        rebuilt = networks["autoencoder"](shown[-1:]).float()
        local, other = halves(cast(PDN, networks["student"]), shown)
        # 4. L_hard = mean of the largest (T - S)^2 of I, L_AE = mean (T - A)^2, L_STAE = mean (A - S')^2, and the
        #    penalty, mean S(P)^2: what is no part of the category shall not be described. Their sum is minimised.
        target = (described - constants["mean"]) / constants["std"]
        parts = {"hard": hard_loss((target - local[:1]).square(), self.hard),
                 "autoencoder": (teacher - rebuilt).square().mean(),
                 "student_autoencoder": (rebuilt - other).square().mean()}
        if self.penalty != "none":
            parts["penalty"] = local[1].square().mean()
        return parts

    def calibrate(self, networks: nn.ModuleDict, constants: State, collected: TaughtPictures) -> State:
        """(2, 2): low and high quantile of the local and of the global map over the pictures that are held out."""
        def outputs() -> Iterator[Outputs]:
            for index in self.split(len(collected.images))[1]:
                image, described = self._taken(collected, [index])
                teacher = (described - constants["mean"]) / constants["std"]
                yield Outputs(teacher, networks["student"](image), networks["autoencoder"](image))

        return self._quantiles(outputs())

    def state(self) -> State:
        state = super().state()
        if self.graph_:
            state |= engines.packed(self.graph_.model)
        return state

    def restore(self, state: State) -> None:
        self.side_ = self._learned("image_size_")[0]
        super().restore(state)

    def _take(self, state: State) -> None:
        super()._take(state)
        self.graph_ = engines.Graph(engines.unpacked(state), self._what) if engines.MODEL in state else None

    @property
    def _teacher(self) -> backbones.Backbone:
        """The network itself: of the trunk eager it is one of torch."""
        return cast(backbones.Backbone, self.backbone_)

    @property
    def _what(self) -> str:
        return f"the networks of {self.name}, {self.backbone}"

    def _quantiles(self, outputs: Iterable[Outputs]) -> State:
        """q_a and q_b of the local map, then of the global one, over all positions of all pictures."""
        differences = [_differences(picture) for picture in outputs]                # of each picture two maps
        quantiles = []
        for maps in zip(*differences, strict=True):
            heat = torch.stack(maps).cpu().numpy()
            quantiles.append(np.quantile(heat, [self.low, self.high]).tolist())
        return {"quantiles": torch.tensor(quantiles)}

    def _taken(self, collected: TaughtPictures, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures of these numbers (B, 3, H, W), and what the teacher says of them (B, C, h, w)."""
        images = torch.from_numpy(np.array(collected.images[numbers])).to(self.torch_device)
        described = torch.from_numpy(np.array(collected.described[numbers])).to(self.torch_device)
        memory.release(collected.images)                    # both lie in one file, gigabytes of it
        return images, described

    def _outputs(self, images: torch.Tensor) -> Outputs:
        self.check_images(images)
        if self.graph_:
            return Outputs(*self.graph_(images))
        teacher = (self.backbone_(images)[1] - self.constants_["mean"]) / self.constants_["std"]
        return Outputs(teacher, self.networks_["student"](images), self.networks_["autoencoder"](images))

    def _score(self, outputs: Outputs) -> Prediction:
        """Maximum of the combined map; then the rim that a PDN cuts off gets the nearest values."""
        heat = self.maps(outputs)["combined"]
        return Prediction(heat.flatten(1).amax(1), F.pad(heat, [RIM] * 4, mode="replicate"), self.map_sigma)


class _Networks(nn.Module):
    """Images -> the fields of `Outputs`; the teacher's last convolution gives what is normalised already, so that all
    its channels have the same range.
    """

    def __init__(self, detector: EfficientAD) -> None:
        super().__init__()
        self.networks = detector.networks_
        self.teacher = copy.deepcopy(cast(PDN, detector._teacher.levels["1"]))
        # (W x + b - mu) / sigma = (W / sigma) x + (b - mu) / sigma: the normalisation goes into the convolution.
        mean, std = (detector.constants_[name].double().flatten() for name in ("mean", "std"))
        last = cast(nn.Conv2d, self.teacher[-1])
        assert last.bias is not None                        # every convolution of a PDN has one
        last.weight.data = (last.weight.double() / std[:, None, None, None]).float()
        last.bias.data = ((last.bias.double() - mean) / std).float()
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.teacher(images), self.networks["student"](images), self.networks["autoencoder"](images)


def _picture(images: np.ndarray, number: int) -> torch.Tensor:
    image = torch.from_numpy(np.array(images[number:number + 1]))
    memory.release(images)
    return image


def halves(student: PDN, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S of all pictures (B, 3, H, W) but the last one, and S' of that: (B - 1, C, h, w) and (1, C, h, w).

    The losses ask for no other half, and the student's last convolution, of 2 C outputs, is half its work.
    """
    *before, convolution = student
    for layer in before:
        shown = layer(shown)
    # The rows of the last convolution's weights: first those of S, then those of S'.
    last = cast(nn.Conv2d, convolution)
    assert last.bias is not None                            # every convolution of a PDN has one
    weights, biases = last.weight.split(CHANNELS), last.bias.split(CHANNELS)
    others, changed = shown[:-1], shown[-1:]
    return F.conv2d(others, weights[0], biases[0]).float(), F.conv2d(changed, weights[1], biases[1]).float()


def hard_loss(squared: torch.Tensor, quantile: float) -> torch.Tensor:
    """Mean of all elements at or above their quantile (linear between elements), of any number of elements.

    L_hard of the paper with its p_hard. The quantile lies at place p_hard (n - 1) of the n elements in ascending order,
    so those from the next whole place on are at or above it; torch's own quantile takes 2^24 elements at most.
    """
    count = squared.numel()
    first = int(np.ceil(quantile * (count - 1)))
    return squared.flatten().topk(count - first).values.mean()


def augmented(image: torch.Tensor) -> torch.Tensor:
    """Image (B, 3, H, W), normalised, with another brightness, contrast or saturation; by torch's generator."""
    functional = torchvision().transforms.functional
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    change = changes[int(torch.randint(3, ()).item())]
    factor = 1 + STRENGTH * (2 * torch.rand(()).item() - 1)
    return normalise(change(denormalise(image).clamp(0, 1), factor))


def _differences(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Local map (S - T)^2 and global map (S' - A)^2: mean over the channels, (B, h, w)."""
    student, other = outputs.student.split(CHANNELS, dim=1)
    return (student - outputs.teacher).square().mean(1), (other - outputs.autoencoder).square().mean(1)
