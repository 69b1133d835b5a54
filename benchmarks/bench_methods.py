"""Fit and one picture of five methods beside another implementation of each, in turn, and whether both say the same.

    python -m benchmarks.bench_methods                                         # demo pictures, bundled weights
    python -m benchmarks.bench_methods --data data/mvtec_ad --category screw --weights imagenet --threads 1

PatchCore, PaDiM and EfficientAD-S stand beside anomalib 2.7, which needs an environment of its own and is no dependency
of this project (of its packages these methods need only torch, timm, kornia and Lightning; pip takes all):

    python3 -m venv outputs/peer
    outputs/peer/bin/pip install 'anomalib==2.7.*' torch==2.13.0 torchvision==0.28.0

(`--peer` names another one's Python.) SPADE and SimpleNet stand beside plain restatements of their formulas. Without
that environment only these two run. Both sides have the same pictures in memory, in the same batches, the same weights,
channels, rows of the bank and threads. Sides take turns in a new order each round: `--fits` fits of each, then one
picture each for `--rounds` rounds. A ratio is the time of a side over that of the other implementation in the same
round, the median of all; a spread is their interquartile range over it. Where both ought to say the same, `difference`
is the largest relative difference over the test pictures; `rank` is Spearman's correlation of the scores themselves.
`times_arithmetic` is a picture of EfficientAD over its convolutions alone, in torch with channels last. What each
comparison leaves different stands in DIFFERENCES and is printed. Ours loads its network from the file in every fit,
anomalib's is loaded before; engine `fast` exports it, too.
"""

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from benchmarks import bench_training, common
from thesis_lib import data
from thesis_lib.core.seeds import seed_of
from thesis_lib.data.pictures import denormalise, load_image
from thesis_lib.methods import SPADE, EfficientAD, PaDiM, PatchCore, SimpleNet
from thesis_lib.methods.base import Detector
from thesis_lib.networks import backbones
from thesis_lib.training import sources

ENGINES = ("eager", "fast")
ANOMALIB = ("patchcore", "padim", "efficientad")
METHODS = (*ANOMALIB, "spade", "simplenet")
EPS = 0.01 + 1e-5       # on the diagonals of anomalib's covariances
DIFFERENCES = {
    "patchcore": "its coreset begins elsewhere and is chosen in a random projection, so pictures are compared with our "
                 "bank in both; it smooths and enlarges every map",
    "padim": "its score is the maximum of the map enlarged to the picture and smoothed there, ours of the map smoothed "
             "on its grid; the difference is that of the largest distances themselves; it computes in float32, we in "
             "float64",
    "efficientad": "pictures of the penalty are in its memory, ours are drawn; its score is that of the enlarged map "
                   "with a rim of zeros, so the difference is that of the maps themselves, with our networks in both",
    "spade": "nothing differs",
    "simplenet": "the restatement's network looks at its pictures in every pass; ours measures the batch norm anew "
                 "after the training; pictures are compared with our networks in both"}


class Side:
    """One implementation of a method; `clock` gives seconds."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def fit(self) -> float:
        """Seconds of learning from the training pictures."""
        return self._seconds(self._fit)

    def adopt(self, ours: "Ours") -> None:
        """Take over what ours has learned, where that is not the same anyway."""

    def predict(self, number: int) -> float:
        """Seconds of one test picture."""
        return self._seconds(lambda: self.score(number))

    def score(self, number: int) -> float:
        raise NotImplementedError

    def same(self, number: int) -> list[float]:
        """What the other implementation ought to say of this picture, too."""
        return [self.score(number)]

    def _fit(self) -> None:
        raise NotImplementedError

    def _seconds(self, call: Callable[[], object]) -> float:
        began = Side.clock()
        call()
        return Side.clock() - began


class Ours(Side):
    """A detector of this library on one engine."""

    def __init__(self, detector: Detector, batches: list[torch.Tensor], images: list[torch.Tensor]) -> None:
        self.blank, self.batches, self.images = detector, batches, images
        self.detector = detector

    def _fit(self) -> None:
        self.detector = replace(self.blank).fit(self.batches)

    def score(self, number: int) -> float:
        return float(self.detector.predict(self.images[number]).score)

    def same(self, number: int) -> list[float]:
        found = self.detector.predict(self.images[number])
        largest = float(found.map.max())
        by_method = {"padim": [largest], "spade": [float(found.score), largest]}
        return by_method.get(self.detector.name, [float(found.score)])


class Anomalib(Side):
    """The same method in anomalib."""

    def __init__(self, peer: common.Peer, ours: Ours) -> None:
        self.peer, self.name = peer, ours.blank.name
        detector = replace(ours.blank)
        collected = detector.collect(ours.batches)
        given = {"backbone": detector.backbone, "layers": list(detector.layers), "train": ours.batches,
                 "test": ours.images, "weights": common.torchvision_state(detector.backbone_)}
        if isinstance(detector, PatchCore):
            given["bank"] = detector.bank
        elif isinstance(detector, PaDiM):
            given["channels"] = detector.learn(collected).channels_
        elif isinstance(detector, EfficientAD):
            trained, held = detector.split(len(collected.images))
            torch.manual_seed(seed_of("weights", detector.seed))
            drawn = sources.parse("procedural", detector.side_, 1, seed_of("penalty", detector.seed))
            penalty = [denormalise(drawn[step]) for step in range(detector.steps)]
            # It prepares pictures as 0 to 1 and normalises them inside.
            given |= {"train": [denormalise(batch) for batch in ours.batches], "steps": detector.steps,
                      "test": [denormalise(image) for image in ours.images], "trained": trained, "held": held,
                      "begin": detector.architecture().state_dict(), "penalty": penalty,
                      "seeds": [seed_of("step", detector.seed, step) for step in range(detector.steps)]}
        peer.ask("prepare", given, method=self.name)

    def fit(self) -> float:
        return self.peer.ask("fit")["seconds"]

    def adopt(self, ours: Ours) -> None:
        state = {key.removeprefix("networks.").removeprefix("constants."): value
                 for key, value in ours.detector.state().items()}
        self.peer.ask("adopt", state)

    def predict(self, number: int) -> float:
        return self.peer.ask("predict", number=number)["seconds"]

    def score(self, number: int) -> float:
        return self.peer.ask("predict", number=number)["score"]

    def same(self, number: int) -> list[float]:
        return [self.peer.ask("plain", number=number)["score"]]


class PlainSPADE(Side):
    """Squared distances: of pooled vectors to those of all training pictures, of patches to those of the K nearest."""

    def __init__(self, ours: Ours) -> None:
        self.blank, self.batches, self.images = ours.blank, ours.batches, ours.images

    def _fit(self) -> None:
        self.network = backbones.load(self.blank.backbone, self.blank.layers, self.blank.weights)
        described = [self._describe(batch) for batch in self.batches]
        self.pooled = torch.cat([pooled for pooled, _ in described])                            # (N, C)
        self.patches = torch.cat([patches for _, patches in described])                         # (N, P, D)

    def _describe(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network(images)
        finest = features[min(features)].shape[-2:]
        joined = torch.cat([F.interpolate(features[level], finest) for level in sorted(features)], dim=1)
        return features[max(features)].mean(dim=(2, 3)), joined.flatten(2).mT

    def score(self, number: int) -> float:
        return self.same(number)[0]

    def same(self, number: int) -> list[float]:
        pooled, (patches,) = self._describe(self.images[number])
        distances = (self.pooled - pooled).square().sum(dim=1)
        nearest = distances.topk(self.blank.k, largest=False)
        gallery = self.patches[nearest.indices].flatten(0, 1)
        found = torch.cdist(patches, gallery).amin(dim=1).square()
        return [float(nearest.values.mean()), float(found.max())]


class PlainSimpleNet(Side):
    """The published step again and again; of a picture network, adaptor and discriminator, layer by layer."""

    def __init__(self, ours: Ours) -> None:
        self.blank, self.batches, self.images = ours.blank, ours.batches, ours.images

    def _fit(self) -> None:
        detector, images = replace(self.blank), torch.cat(self.batches)
        detector.backbone_ = backbones.load(detector.backbone, detector.layers, detector.weights)
        side = bench_training.Side(detector, images, bench_training.plain_simplenet(detector, images))
        for step in range(detector.steps_of(images)):
            side.step(step)

    def adopt(self, ours: Ours) -> None:
        self.networks, self.network = ours.detector.networks_, ours.detector.backbone_
        self.embed = ours.detector.embed_of()

    @torch.no_grad()
    def score(self, number: int) -> float:
        patches = self.embed(self.network(self.images[number])).vectors[0]
        return float(-self.networks["discriminator"](self.networks["adaptor"](patches)).amin())


@dataclass
class Case:
    """A method with our engines and one other implementation."""

    sides: dict[str, Side]
    other: str          # the name of the other implementation among the sides

    def fits(self, rounds: int) -> dict[str, np.ndarray]:
        """Seconds (rounds,) of each side."""
        return self._in_turn({name: [side.fit] * rounds for name, side in self.sides.items()})

    def pictures(self, rounds: int, count: int) -> dict[str, np.ndarray]:
        """Seconds (rounds,) of one picture; each side sees it once before the clock starts."""
        def call(side, number):
            side.predict(number)
            return side.predict(number)

        return self._in_turn({name: [lambda side=side, number=number: call(side, number)
                                     for number in islice(cycle(range(count)), rounds)]
                              for name, side in self.sides.items()})

    @staticmethod
    def _in_turn(calls: dict[str, list[Callable[[], float]]]) -> dict[str, np.ndarray]:
        rng, rounds = np.random.default_rng(0), len(next(iter(calls.values())))
        taken = {name: np.empty(rounds) for name in calls}
        for number in range(rounds):
            for name in rng.permutation(list(calls)):
                taken[name][number] = calls[name][number]()
        return taken


def detectors(args: argparse.Namespace) -> dict[str, Detector]:
    trained = {"snapshots": 1, "resume": False, "checkpoint_s": 1e9, "seed": 0}
    return {"patchcore": PatchCore(layers=(2, 3), join="interpolate", weights=args.weights, bank=args.bank, seed=0),
            "padim": PaDiM(weights=args.weights, channels=args.channels, eps=EPS, seed=0),
            "efficientad": EfficientAD(weights=args.pdn_weights, steps=args.steps, **trained),
            "spade": SPADE(weights=args.weights, k=args.neighbours),
            "simplenet": SimpleNet(weights=args.weights, epochs=1, passes=args.passes, **trained)}


def case(detector: Detector, peer: common.Peer | None, batches: list[torch.Tensor],
         images: list[torch.Tensor]) -> Case:
    sides = {f"thesis_lib, {engine}": Ours(replace(detector, engine=engine), batches, images) for engine in ENGINES}
    eager = sides["thesis_lib, eager"]
    if detector.name in ANOMALIB:
        other = f"anomalib {peer.version}"
        return Case(sides | {other: Anomalib(peer, eager)}, other)
    kind = {"spade": PlainSPADE, "simplenet": PlainSimpleNet}[detector.name]
    return Case(sides | {"plain": kind(eager)}, "plain")


@torch.no_grad()
def arithmetic_ms(detector: EfficientAD, image: torch.Tensor) -> float:
    """Milliseconds of all convolutions of the three networks alone, each the median of 5 calls on its own input."""
    seen: list[tuple[nn.Conv2d, torch.Tensor]] = []
    teacher, student, autoencoder = detector.backbone_.levels, *detector.networks_.values()
    hooks = [layer.register_forward_hook(lambda layer, given, _: seen.append((layer, given[0])))
             for network in (teacher, student, autoencoder) for layer in network.modules()
             if isinstance(layer, nn.Conv2d)]
    detector.predict(image)
    for hook in hooks:
        hook.remove()
    seconds = 0.0
    for layer, given in seen:
        laid = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        given = given.contiguous(memory_format=torch.channels_last)
        laid(given)
        taken = []
        for _ in range(5):
            began = Side.clock()
            laid(given)
            taken.append(Side.clock() - began)
        seconds += float(np.median(taken))
    return 1e3 * seconds


def compare(detector: Detector, found: Case, fits: int, rounds: int, images: int) -> list[dict]:
    """One line per side; the ratios are to the other implementation in the same round."""
    fitted = found.fits(fits)
    other = found.sides[found.other]
    other.adopt(found.sides["thesis_lib, eager"])
    pictures = found.pictures(rounds, images)
    scores = {name: [side.score(number) for number in range(images)] for name, side in found.sides.items()}
    same = {name: np.array([side.same(number) for number in range(images)]) for name, side in found.sides.items()}
    lines = []
    for name in found.sides:
        fit, picture = fitted[name] / fitted[found.other], pictures[name] / pictures[found.other]
        line = {"method": detector.name, "side": name, "fit_s": float(np.median(fitted[name])),
                "fit_ratio": float(np.median(fit)), "fit_spread": common.spread(fit),
                "picture_ms": 1e3 * float(np.median(pictures[name])), "picture_ratio": float(np.median(picture)),
                "picture_spread": common.spread(picture), "raw_fit_s": fitted[name].tolist(),
                "raw_picture_ms": (1e3 * pictures[name]).tolist()}
        if name != found.other:
            line["difference"] = float(np.abs(same[name] / same[found.other] - 1).max())
            line["rank"] = float(spearmanr(scores[name], scores[found.other]).statistic)
        lines.append(line)
    if isinstance(detector, EfficientAD):
        floor = arithmetic_ms(found.sides["thesis_lib, eager"].detector, found.sides["thesis_lib, eager"].images[0])
        for line in lines:
            line["times_arithmetic"] = line["picture_ms"] / floor
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=10)
    common.add_pictures(parser)
    common.add_peer(parser)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--fits", type=int, default=3, help="timed fits of every side")
    parser.add_argument("--train-pictures", type=int, default=24, help="as many of the category are learned from")
    parser.add_argument("--test-pictures", type=int, default=5, help="evenly spaced ones of the category are compared")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels")
    parser.add_argument("--pdn-weights", default="bundled", help="of EfficientAD's teacher: bundled, random or a file")
    parser.add_argument("--bank", type=int, default=1000, help="rows of PatchCore's")
    parser.add_argument("--channels", type=int, default=100, help="of PaDiM")
    parser.add_argument("--steps", type=int, default=3, help="of EfficientAD's training")
    parser.add_argument("--neighbours", type=int, default=3, help="nearest pictures of SPADE")
    parser.add_argument("--passes", type=int, default=2, help="of SimpleNet's training through all pictures")
    args = parser.parse_args(arguments)
    common.set_threads(args)
    Side.clock = staticmethod(common.clock(args))
    category, _ = common.pictures(args)
    preprocess = data.Preprocess(image_size=args.image_size)
    batches = list(data.Pictures(category.train[:args.train_pictures], preprocess))
    chosen = np.linspace(0, len(category.test) - 1, min(args.test_pictures, len(category.test))).astype(int)
    images = [load_image(category.test[number].path, preprocess)[None] for number in chosen]
    known, peer, lines = detectors(args), common.peer(args), []
    methods = [name for name in args.methods if peer or name not in ANOMALIB]
    with peer or nullcontext():
        for name in methods:
            lines += compare(known[name], case(known[name], peer, batches, images), args.fits, args.rounds, len(images))
            print(f"{name}: {DIFFERENCES[name]}")
    subject = {"category": category.name, "data": category.fingerprint,
               "weights": {name: backbones.record(known[name].backbone, known[name].weights) for name in methods},
               "parameters": {name: known[name].parameters(identity_only=True) for name in methods}}
    common.report("methods", args, subject, lines, "fits", "train_pictures", "test_pictures", "image_size",
                  "clock", markdown=True)


if __name__ == "__main__":
    main()
