"""Farthest-first coreset against the plain loop in torch, on real patch features, both sides in turn in one process.

    python benchmarks/bench_coreset.py                                          # demo pictures, bundled weights
    python benchmarks/bench_coreset.py --data data/mvtec_ad --category screw --weights imagenet

Three sides per size: the library, the plain loop, and reading all features once, which is the floor of any loop that
looks at every row for every pick. Before the clock starts, the library's rows must be those of the plain loop in
float64. The table is printed and stored as a row of kind "benchmark".
"""

import argparse

import numpy as np
import pandas as pd
import torch
from torch.utils.benchmark import Measurement, Timer

from thesis_lib import coreset, data, results, weightfiles
from thesis_lib.methods import PatchCore

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
    ms = {name: np.array(Measurement.merge(runs)[0].times) * 1e3 / sides[name][1] for name, runs in taken.items()}
    same = {"thesis_lib": picks, "plain loop": int((np.array(float32) == exact).sum())}
    return [{"rows": len(features), "dimension": features.shape[1], "side": name, "ms_median": float(np.median(x)),
             "ms_min": float(x.min()), "ratio": float(np.median(x) / np.median(ms["thesis_lib"])),
             "same_rows": f"{same[name]} of {picks}" if name in same else "", "raw_ms": x.tolist()}
            for name, x in ms.items()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="folder of categories in MVTec AD layout, or demo")
    parser.add_argument("--category", default="granulate")
    parser.add_argument("--weights", default="bundled", help="imagenet, bundled, random or a .safetensors file")
    parser.add_argument("--sizes", default="61440,256000", help="rows, separated by commas")
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--plain-picks", type=int, default=30, help="of the plain loop when timed: each costs the same")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    category, preprocess = data.scan(data.resolve(args.data), args.category), data.Preprocess()
    detector = PatchCore(layers=(2,), weights=args.weights)
    patches = np.asarray(detector.collect(data.Pictures(category.train, preprocess)))
    lines = []
    for size in map(int, args.sizes.split(",")):
        features = resized(patches, size, np.random.default_rng(0))
        lines += compare(features, args.picks, args.plain_picks, args.rounds, args.threads)
    protocol = {name: getattr(args, name) for name in ("picks", "plain_picks", "rounds", "threads")}
    subject = {"method": "coreset", "category": category.name, "data": category.fingerprint,
               "weights": weightfiles.record(detector.backbone, args.weights),
               "parameters": detector.parameters(identity_only=True), "protocol": protocol}
    subject["parameters"] |= {"bank": args.picks, "sizes": args.sizes, "noise": NOISE}
    row = results.save("benchmark", subject, {"lines": lines})
    print(f"{category.name}: {len(patches)} patches; more rows are these repeated with noise. "
          f"{args.threads} threads, {args.picks} picks, milliseconds per pick, row {row['id']}")
    print(pd.DataFrame(lines).drop(columns="raw_ms").round(3).to_string(index=False))


if __name__ == "__main__":
    main()
