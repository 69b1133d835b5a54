"""A training step of EfficientAD-S and of SimpleNet: ours, and a plain restatement of the published step, in turn.

    python -m benchmarks.bench_training                                            # demo pictures, bundled weights
    python -m benchmarks.bench_training --methods efficientad --threads 1 --precision bfloat16

The restatement is the step as its paper and code tell it, without anything kept: the teacher describes both pictures
at every step and the student's whole last layer runs three times; SimpleNet's network looks at its pictures in every
pass. Both sides begin with the same weights and draw the same numbers, so that their losses are equal up to rounding;
where they are not, nothing is printed but that. Steps take turns (--rounds of them, after one that is not timed).
EfficientAD's step stands beside anomalib 2.7's, too, where `--peer` names an environment with it (`bench_methods` says
how to make one), in float32 and with a penalty: it gets our pictures, the changed one and the penalty's among them, our
weights and our statistics of the teacher. Its memory layout draws another dropout, so the first step, which is not
timed, has none on any side, and there the losses must be equal; later ones differ by that. Pictures of the penalty are
drawn before the clock starts, for all sides (one takes some 31 ms).

The arithmetic is what our step multiplies, forwards and backwards, at the rate of a large float32 matrix product; it is
no bound, since convolutions may run faster than that product. The table is printed and stored as a row "benchmark".
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from thesis_lib import data
from thesis_lib.core.seeds import seed_of
from thesis_lib.data.pictures import denormalise
from thesis_lib.evaluation import limits
from thesis_lib.methods import EfficientAD, SimpleNet
from thesis_lib.methods.efficientad import CHANNELS, GREY, augmented, hard_loss
from thesis_lib.methods.simplenet import pictures_of
from thesis_lib.methods.trained import Trained
from thesis_lib.networks import autoencoder
from thesis_lib.training import distillation

TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}     # relative difference of a loss; roundings grow from step to step
DROPOUT = autoencoder.DROPOUT
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

    def shown(self, number: int) -> dict[str, torch.Tensor]:
        """What EfficientAD's student will see in this step, from 0 to 1: picture, penalty's, changed one."""
        seen = []
        hook = self.networks["student"][0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        torch.manual_seed(seed_of("step", self.seed, number))
        with torch.no_grad():
            self.losses(self.networks, number)
        hook.remove()
        image, penalty, changed = denormalise(seen[0]).contiguous().split(1)
        return {"image": image, "penalty": penalty, "changed": changed}

    def drop(self, share: float) -> None:
        for layer in self.networks.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = share


def prepare_peer(peer: common.Peer, detector: EfficientAD, side: Side, constants: Losses, rounds: int) -> None:
    """anomalib's networks as ours begin."""
    begin = side.networks.state_dict()
    seeds = [seed_of("step", detector.seed, number) for number in range(rounds + 1)]
    peer.ask("prepare", {"weights": common.torchvision_state(detector.backbone_), "begin": begin, "seeds": seeds,
                         "steps": detector.steps}, method=detector.name)
    peer.ask("adopt", {**begin, **constants, "quantiles": torch.tensor([[0.0, 1.0], [0.0, 1.0]])})


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


def sides_of(detector: Trained, train: data.Pictures, rounds: int) -> tuple[dict[str, Side], Losses]:
    """Both trainings, ready for their first step, and the constants; `gather` has done for ours what it does once."""
    collected = detector.collect(train)
    with torch.no_grad():
        constants = detector.prepare(collected)
    if isinstance(detector, EfficientAD):
        if detector.penalty != "none":
            detector._penalty = [detector._penalty[number] for number in range(rounds + 1)]
        plain = plain_efficientad(detector, collected, constants)
    else:
        plain = plain_simplenet(detector, torch.cat(list(train)))
    ours = Side(detector, collected, lambda *at: detector.losses(at[0], constants, collected, at[1]))
    return {"thesis_lib": ours, "plain": Side(detector, collected, plain)}, constants


def compare(detector: Trained, train: data.Pictures, rounds: int, machine: limits.Machine, clock: Callable[[], float],
            peer: common.Peer | None = None) -> list[dict]:
    """One line per side: milliseconds of a step, its losses in the last round, and times the arithmetic."""
    sides, constants = sides_of(detector, train, rounds)
    names, other = list(sides), None
    if peer and isinstance(detector, EfficientAD) and detector.penalty != "none" and detector.precision == "float32":
        prepare_peer(peer, detector, sides["thesis_lib"], constants, rounds)
        other = f"anomalib {peer.version}"
        names.append(other)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rng, macs, last = np.random.default_rng(0), 0.0, {}
    for number in range(rounds + 1):
        share = 0.0 if other and number == 0 else DROPOUT
        for side in sides.values():
            side.drop(share)
        shown = sides["thesis_lib"].shown(number) if other else None
        for name in rng.permutation(names):
            if name == other:
                answer = peer.ask("step", shown, number=number, dropout=share)
                last[name], taken = answer["losses"], answer["seconds"]
            else:
                began = clock()
                with FlopCounterMode(display=False) if number == 0 else nullcontext() as counted:
                    last[name] = sides[name].step(number)
                taken = clock() - began
                if number == 0 and name == "thesis_lib":
                    macs = counted.get_total_flops() / 2
            if number > 0:
                seconds[name].append(taken)
        check(detector, number, last, other if number == 0 else None)
    floor = 1e3 * macs / machine.macs_per_s
    taken, lines = {name: np.array(values) for name, values in seconds.items()}, []
    for name in names:
        line = {"method": detector.name, "side": name, **common.statistics(taken[name], taken["plain"])}
        line["spread"] = common.spread(taken[name] / taken["plain"])
        if other:
            line["to_anomalib"] = float(np.median(taken[name] / taken[other]))
        lines.append(line | {"steps_per_s": 1e3 / line["ms_median"], "times_arithmetic": line["ms_median"] / floor,
                             **last[name]})
    plain = lines[1]
    return [*lines, {"method": detector.name, "side": "arithmetic, float32", "ms_median": floor,
                     "ratio": floor / plain["ms_median"], "steps_per_s": 1e3 / floor}]


def check(detector: Trained, number: int, last: dict[str, dict[str, float]], other: str | None) -> None:
    """SystemExit where the sides do not lose the same; other: the one that adds the penalty to the first loss."""
    ours, compared = last["thesis_lib"], {"plain": last["plain"]}
    if other:
        compared[other] = last[other]
    for name, losses in compared.items():
        for loss, value in losses.items():
            own = sum(ours[part] for part in loss.split("+"))
            if abs(own - value) > TOLERANCE[detector.precision] * max(LEAST, value):
                raise SystemExit(f"{detector.name}, step {number + 1}: the sides do not lose the same, {name}: {loss} "
                                 f"{value}, thesis_lib: {own}")


def detectors(args: argparse.Namespace) -> list[Trained]:
    given = {"seed": 0, "precision": args.precision}
    known = {"efficientad": lambda: EfficientAD(weights=args.pdn_weights, penalty=args.penalty, **given),
             "simplenet": lambda: SimpleNet(weights=args.weights, **given)}
    return [known[name]() for name in args.methods]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=20)
    common.add_pictures(parser)
    common.add_peer(parser)
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
    with ExitStack() as stack:
        peer = common.peer(args) if "efficientad" in args.methods else None
        if peer:
            stack.enter_context(peer)
        for detector in compared:
            lines += compare(detector, train, args.rounds, machine, common.clock(args), peer)
    subject = {"category": category.name, "data": category.fingerprint,
               "weights": {detector.name: detector.backbone_.weights for detector in compared},
               "parameters": {detector.name: detector.parameters(identity_only=True) for detector in compared}}
    common.report("training", args, subject, lines, "precision", "penalty", "train_pictures", "image_size", "clock")


if __name__ == "__main__":
    main()
