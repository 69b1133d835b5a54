"""A training step of EfficientAD-S and of SimpleNet: ours, and a plain restatement of the published step, in turn.

    python -m benchmarks.bench_training                                            # demo pictures, bundled weights
    python -m benchmarks.bench_training --methods efficientad --threads 1 --precision bfloat16

The restatement is the step as its paper and code tell it, without anything kept: the teacher describes both pictures
at every step and the student's whole last layer runs three times; SimpleNet's network looks at its pictures in every
pass. Both sides begin with the same weights and draw the same numbers, so that their losses are equal up to rounding;
where they are not, nothing is printed but that. Steps take turns (--rounds of them, after one that is not timed). The
arithmetic is what our step multiplies, forwards and backwards, at the rate of a large float32 matrix product; it is no
bound, since convolutions may run faster than that product. The table is printed and stored as a row "benchmark".
"""

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from thesis_lib import data
from thesis_lib.core.seeds import seed_of
from thesis_lib.evaluation import limits
from thesis_lib.methods import EfficientAD, SimpleNet
from thesis_lib.methods.efficientad import CHANNELS, GREY, augmented, hard_loss
from thesis_lib.methods.simplenet import pictures_of
from thesis_lib.methods.trained import Trained
from thesis_lib.training import distillation

TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}     # relative difference of a loss; roundings grow from step to step
LEAST = 1e-3            # a loss below it is compared as if it were this
Losses = Mapping[str, torch.Tensor]


class Side:
    """One of two trainings of the same detector: its networks, its optimizers, and what a step loses."""

    def __init__(self, detector: Trained, collected, losses: Callable[[nn.ModuleDict, int], Losses]):
        torch.manual_seed(seed_of("weights", detector.seed))
        self.networks = detector.architecture().train()
        self.optimizers, self.schedules = detector.optimizers(self.networks, detector.steps_of(collected))
        self.losses, self.seed, self.bfloat16 = losses, detector.seed, detector.precision == "bfloat16"

    def step(self, number: int) -> dict[str, float]:
        torch.manual_seed(seed_of("step", self.seed, number))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            values = self.losses(self.networks, number)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        sum(values.values()).backward()
        for part in (*self.optimizers, *self.schedules):
            part.step()
        return {name: value.item() for name, value in values.items()}


def plain_efficientad(detector: EfficientAD, collected, constants: Losses) -> Callable[[nn.ModuleDict, int], Losses]:
    """Every network runs on every picture that its loss names, whole."""
    trained, _ = detector.split(len(collected.images))

    def teacher(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return (detector.backbone_(image)[1].float() - constants["mean"]) / constants["std"]

    def losses(networks: nn.ModuleDict, step: int) -> Losses:
        epoch, number = divmod(step, len(trained))
        shuffle = torch.Generator().manual_seed(seed_of("shuffle", detector.seed, epoch))
        chosen = trained[torch.randperm(len(trained), generator=shuffle)[number]]
        image = torch.from_numpy(np.array(collected.images[[chosen]]))
        changed = augmented(image)
        values = {"hard": hard_loss((teacher(image) - networks["student"](image)[:, :CHANNELS]).float().square(),
                                    detector.hard)}
        other = distillation.greyed(detector._penalty[step], GREY) if detector.penalty != "none" else None
        rebuilt, target = networks["autoencoder"](changed).float(), teacher(changed)
        values["autoencoder"] = (target - rebuilt).square().mean()
        values["student_autoencoder"] = (rebuilt - networks["student"](changed)[:, CHANNELS:].float()).square().mean()
        if other is not None:
            values["penalty"] = networks["student"](other)[:, :CHANNELS].float().square().mean()
        return values

    return losses


def plain_simplenet(detector: SimpleNet, images: torch.Tensor) -> Callable[[nn.ModuleDict, int], Losses]:
    """The network looks at the pictures of a step, then adaptor, noise and discriminator."""
    embed = detector.embed_of()

    def losses(networks: nn.ModuleDict, step: int) -> Losses:
        chosen = pictures_of(step, len(images), detector.batch, detector.seed)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            patches = embed(detector.backbone_(images[chosen])).vectors.flatten(0, 1)
        adapted = networks["adaptor"](patches).float()
        pseudo = adapted + detector.noise * torch.randn_like(adapted)
        d, d_pseudo = networks["discriminator"](torch.cat([adapted, pseudo])).float().view(2, -1)
        return {"nominal": F.relu(detector.margin - d).mean(), "pseudo": F.relu(d_pseudo + detector.margin).mean()}

    return losses


def sides_of(detector: Trained, train: data.Pictures) -> dict[str, Side]:
    """Both trainings, ready for their first step; `gather` has done for ours what it does once."""
    collected = detector.collect(train)
    with torch.no_grad():
        constants = detector.prepare(collected)
    if isinstance(detector, EfficientAD):
        plain = plain_efficientad(detector, collected, constants)
    else:
        plain = plain_simplenet(detector, torch.cat(list(train)))
    return {"thesis_lib": Side(detector, collected, lambda *at: detector.losses(at[0], constants, collected, at[1])),
            "plain": Side(detector, collected, plain)}


def compare(detector: Trained, train: data.Pictures, rounds: int, machine: limits.Machine) -> list[dict]:
    """One line per side: milliseconds of a step, its losses in the last round, and times the arithmetic."""
    sides = sides_of(detector, train)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rng, macs, last = np.random.default_rng(0), 0.0, {}
    for number in range(rounds + 1):
        for name in rng.permutation(list(sides)):
            began = time.perf_counter()
            if number == 0 and name == "thesis_lib":
                with FlopCounterMode(display=False) as counted:
                    last[name] = sides[name].step(number)
                macs = counted.get_total_flops() / 2
            else:
                last[name] = sides[name].step(number)
            if number > 0:
                seconds[name].append(time.perf_counter() - began)
        for loss, value in last["plain"].items():
            if abs(last["thesis_lib"][loss] - value) > TOLERANCE[detector.precision] * max(LEAST, value):
                raise SystemExit(f"{detector.name}, step {number + 1}: the sides do not lose the same, {last}")
    floor = 1e3 * macs / machine.macs_per_s
    lines = []
    for name in sides:
        taken = common.statistics(np.array(seconds[name]), np.array(seconds["plain"]))
        lines.append({"method": detector.name, "side": name, **taken, "steps_per_s": 1e3 / taken["ms_median"],
                      "times_arithmetic": taken["ms_median"] / floor, **last[name]})
    return [*lines, {"method": detector.name, "side": "arithmetic, float32", "ms_median": floor,
                     "ratio": floor / lines[-1]["ms_median"], "steps_per_s": 1e3 / floor}]


def detectors(args: argparse.Namespace) -> list[Trained]:
    given = {"seed": 0, "precision": args.precision}
    known = {"efficientad": lambda: EfficientAD(weights=args.pdn_weights, penalty=args.penalty, **given),
             "simplenet": lambda: SimpleNet(weights=args.weights, **given)}
    return [known[name]() for name in args.methods]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=20)
    common.add_pictures(parser)
    parser.add_argument("--methods", nargs="+", default=["efficientad", "simplenet"],
                        choices=["efficientad", "simplenet"])
    parser.add_argument("--pdn-weights", default="bundled", help="of EfficientAD's teacher: bundled, random or a file")
    parser.add_argument("--penalty", default="procedural", help="pictures of EfficientAD's penalty: procedural or none")
    parser.add_argument("--precision", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--train-pictures", type=int, default=24, help="as many of the category are trained on")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels")
    args = parser.parse_args(arguments)
    common.set_threads(args)
    category, _ = common.pictures(args)
    train = data.Pictures(category.train[:args.train_pictures], data.Preprocess(image_size=args.image_size))
    machine, lines, compared = limits.machine(), [], detectors(args)
    for detector in compared:
        lines += compare(detector, train, args.rounds, machine)
    subject = {"category": category.name, "data": category.fingerprint,
               "weights": {detector.name: detector.backbone_.weights for detector in compared},
               "parameters": {detector.name: detector.parameters(identity_only=True) for detector in compared}}
    common.report("training", args, subject, lines, "precision", "penalty", "train_pictures", "image_size")


if __name__ == "__main__":
    main()
