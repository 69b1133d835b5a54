"""One picture through PatchCore, all stages: a plain prototype, our engines, and the arithmetic floor, in turn.

    python -m benchmarks.bench_picture                                         # demo pictures, bundled weights
    python -m benchmarks.bench_picture --data data/mvtec_ad --category screw --weights imagenet --threads 1

The prototype is what one writes in an afternoon: network and pooling as one frozen, fused TorchScript graph, the
search by FAISS' flat index. Every side scores every picture (--rounds of them) after one untimed run, in a new order
each time. Before the clock starts, all but int8 must give the same scores. The floor is
that of `thesis_lib.evaluation.limits`: float32 at the rate of a matrix product. The table is printed and stored as a
row "benchmark".
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import common
from thesis_lib import data
from thesis_lib.core import timing
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import limits
from thesis_lib.methods import PatchCore
from thesis_lib.networks import backbones, engines
from thesis_lib.patches import search

TOLERANCE = 1e-4        # relative difference of a score


class Plain(nn.Module):
    """Network, 3x3 mean pooling, deeper maps repeated onto the finest grid, patch vectors (P, D) of one picture."""

    def __init__(self, backbone: backbones.Backbone):
        super().__init__()
        self.network = backbones.Maps(backbone)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = [F.avg_pool2d(x, 3, 1, 1) for x in self.network(image)]
        grid = pooled[0].shape[-2:]
        joined = torch.cat([pooled[0], *(F.interpolate(x, grid, mode="nearest") for x in pooled[1:])], dim=1)
        return joined.flatten(2).transpose(1, 2)[0]


@torch.no_grad()
def prototype(detector: PatchCore, image: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """image (1, 3, H, W) -> score, with network and memory bank of a fitted eager detector."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        traced = torch.jit.trace(Plain(detector.backbone_).eval(), image)
        network = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    index = faiss.IndexFlatL2(detector.bank_.shape[1])
    index.add(detector.bank_.numpy())

    @torch.no_grad()
    def score(image: torch.Tensor) -> float:
        return float(np.sqrt(index.search(network(image).contiguous().numpy(), 1)[0].max()))

    return score


def with_engines(detector: PatchCore, train: data.Pictures) -> dict[str, PatchCore]:
    """The fitted eager detector and the same with other engines, all with its memory bank; `pruned` makes no map."""
    found = {"eager": detector}
    for engine in engines.ENGINES[1:]:
        found[engine] = replace(detector, engine=engine)
        found[engine].adopt(detector)
        found[engine].backbone_ = found[engine].network(detector.levels, train)
    found["fast, pruned"] = replace(found["fast"], search="pruned")
    found["fast, pruned"].adopt(found["fast"])
    found["fast, pruned"].search_ = search.Pruned().fit(detector.bank_)
    return found


def compare(detector: PatchCore, train: data.Pictures, images: list[torch.Tensor]) -> list[dict]:
    """One line per side, and two for the machine: its matrix product and its copying."""
    sides = {"prototype": prototype(detector, images[0])}
    for engine, one in with_engines(detector, train).items():
        sides[engine] = lambda image, one=one: float(one.predict(image).score)
    for image in images:
        scores = {name: side(image) for name, side in sides.items() if name != "int8"}
        if max(abs(score / scores["eager"] - 1) for score in scores.values()) > TOLERANCE:
            raise SystemExit(f"layers {detector.layers}: the sides do not give the same score, {scores}")
    taken = [timing.interleaved(sides, image, rounds=1, seed=number) for number, image in enumerate(images)]
    seconds = {name: np.concatenate([one[name] for one in taken]) for name in sides}
    machine, size = limits.machine(), tuple(images[0].shape[-2:])
    work = limits.stage_work(detector, size)
    floor = sum(limits.floor_ms(work, machine).values())
    gmac = sum(macs for macs, _ in work.values()) / 1e9
    about = {"layers": "+".join(map(str, detector.layers))}
    lines = [about | {"side": name, **common.statistics(x, seconds["prototype"])} for name, x in seconds.items()]
    lines.append(about | {"side": "floor, float32", "ms_median": floor, "ratio": floor / lines[0]["ms_median"]})
    for line in lines:
        line |= {"times_floor": line["ms_median"] / floor, "gmac": gmac, "gmac_per_s": 1e3 * gmac / line["ms_median"]}
    return [*lines, about | {"side": "matrix product", "gmac_per_s": machine.macs_per_s / 1e9},
            about | {"side": "copying", "gb_per_s": machine.bytes_per_s / 1e9}]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=50)
    common.add_pictures(parser)
    parser.add_argument("--layers", nargs="+", default=["2", "2,3"], help="configurations, e.g. 2 2,3")
    parser.add_argument("--bank", type=int, default=1000)
    args = parser.parse_args(arguments)
    common.set_threads(args)
    category, preprocess = common.pictures(args)
    train = data.Pictures(category.train, preprocess)
    images = [load_image(sample.path, preprocess)[None] for sample in islice(cycle(category.test), args.rounds)]
    lines = []
    for layers in args.layers:
        detector = PatchCore(layers=tuple(map(int, layers.split(","))), weights=args.weights, bank=args.bank)
        lines += compare(detector.fit(train), train, images)
    common.report("picture", args, common.subject(detector, category, args, layers=args.layers), lines)


if __name__ == "__main__":
    main()
