"""Farthest-first coreset against the plain loop in torch, on real patch features, both sides in turn in one process.

    python -m benchmarks.bench_coreset                                         # demo pictures, bundled weights
    python -m benchmarks.bench_coreset --data data/mvtec_ad --category screw --weights imagenet

Three sides per size: the library, the plain loop, and reading all features once, which is the floor of any loop that
looks at every row for every pick. Before the clock starts, the library's rows must be those of the plain loop in
float64. The table is printed and stored as a row of kind "benchmark".
"""

import numpy as np
import torch
from torch.utils.benchmark import Measurement, Timer

from benchmarks import common
from thesis_lib import data
from thesis_lib.methods import PatchCore
from thesis_lib.patches import coreset

NOISE = 0.3             # of a channel's standard deviation, on the features that are repeated


def plain_loop(features: torch.Tensor, norms: torch.Tensor, rows: int, first: int) -> list[int]:
    """Farthest first as one writes it down: |x|^2 - 2xz + |z|^2 to every row for every pick, |x|^2 given."""
    nearest, chosen = torch.full_like(norms, torch.inf), [first]
    while len(chosen) < rows:
        centre = chosen[-1]
        torch.minimum(nearest, norms - 2 * (features @ features[centre]) + norms[centre], out=nearest)
        nearest[centre] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return chosen


def resized(features: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows: evenly spaced ones, or all of them repeated with noise from the second time on."""
    if n <= len(features):
        return features[np.linspace(0, len(features) - 1, n).astype(int)]
    larger = np.resize(features, (n, features.shape[1]))
    spread = NOISE * features.std(axis=0)
    larger[len(features):] += spread * rng.standard_normal((n - len(features), features.shape[1]), dtype=np.float32)
    return larger


def compare(features: np.ndarray, picks: int, plain_picks: int, rounds: int, threads: int) -> list[dict]:
    """One line per side: milliseconds per pick, median and minimum over the rounds, and whose rows were the same."""
    tensor = torch.from_numpy(features)
    ours = coreset.select(features, picks)
    exact, float32 = (plain_loop(x, x.square().sum(dim=1), picks, int(ours[0])) for x in (tensor.double(), tensor))
    if ours.tolist() != exact:
        raise SystemExit(f"{len(features)} rows: not the rows of the plain loop in float64")
    about = {"coreset": coreset, "features": features, "tensor": tensor, "norms": tensor.square().sum(dim=1),
             "plain_loop": plain_loop, "first": int(ours[0]), "picks": picks, "plain_picks": plain_picks}
    sides = {"thesis_lib": ("coreset.select(features, picks)", picks),
             "plain loop": ("plain_loop(tensor, norms, plain_picks, first)", plain_picks),
             "reading once": ("tensor.sum()", 1)}
    timers = {name: Timer(code, globals=about, num_threads=threads) for name, (code, _) in sides.items()}
    taken = {name: [] for name in sides}
    for _ in range(rounds):
        for name, timer in timers.items():
            taken[name].append(timer.timeit(1))     # one run after two untimed ones
    seconds = {name: np.array(Measurement.merge(runs)[0].times) / sides[name][1] for name, runs in taken.items()}
    same = {"thesis_lib": picks, "plain loop": int((np.array(float32) == exact).sum())}
    return [{"rows": len(features), "dimension": features.shape[1], "side": name,
             **common.statistics(x, seconds["thesis_lib"]),
             "same_rows": f"{same[name]} of {picks}" if name in same else ""} for name, x in seconds.items()]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=7)
    common.add_pictures(parser)
    parser.add_argument("--sizes", default="61440,256000", help="rows, separated by commas")
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--plain-picks", type=int, default=30, help="of the plain loop when timed: each costs the same")
    args = parser.parse_args(arguments)
    common.set_threads(args)
    category, preprocess = common.pictures(args)
    detector = PatchCore(layers=(2,), weights=args.weights)
    patches = np.asarray(detector.collect(data.Pictures(category.train, preprocess)))
    lines = []
    for size in map(int, args.sizes.split(",")):
        features = resized(patches, size, np.random.default_rng(0))
        lines += compare(features, args.picks, args.plain_picks, args.rounds, args.threads)
    print(f"{len(patches)} patches; more rows are these repeated with noise; milliseconds per pick")
    subject = common.subject(detector, category, args, bank=args.picks, sizes=args.sizes, noise=NOISE)
    common.report("coreset", args, subject, lines, "picks", "plain_picks")


if __name__ == "__main__":
    main()
