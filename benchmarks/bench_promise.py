"""Does the promise of a threshold hold? Training sets are drawn again and again from a large pool of good pictures.

    python -m benchmarks.bench_promise                              # draws 2000 pictures first, some minutes
    python -m benchmarks.bench_promise --method padim --pictures 200

Each draw takes some pictures as the training set, sets the threshold by cross-fitting as `thesis export` does, fits the
detector on the whole training set, and counts how many of the pool's other pictures it flags: the true rate. Told is in
how many draws the 95 % interval holds that rate. Features are extracted once. Three more numbers say why it does not
where it does not: the mean of the true rates; how far the scores of a fold's detector, which has learned from fewer
pictures, lie above those of the detector (in interquartile ranges, on the same other pictures, in the first draws);
and the draws that are held where as many scores come from fresh pictures and the detector itself: chance alone.
Printed, and stored as a row of kind "benchmark".
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from benchmarks import common
from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.core.progress import track
from thesis_lib.data import synthetic
from thesis_lib.evaluation import crossfit
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods import METHODS
from thesis_lib.methods.base import Detector
from thesis_lib.networks.backbones import Features
from thesis_lib.networks.maps import Extracted, Stored

RATES = (0.02, 0.05, 0.1)
COMPARED = 3            # draws in which the folds' detectors score the other pictures, too
Draw = tuple[np.ndarray, np.ndarray, float]     # see `one_draw`


class Kept(Stored):
    """The feature maps of some pictures in memory, as one batch."""

    keeps = False           # what is chosen of them is not asked for again

    def __init__(self, maps: Stored, features: Features, numbers: Sequence[int] | None = None) -> None:
        super().__init__(maps.extracted)
        self.features = features if numbers is None else {level: x[numbers] for level, x in features.items()}
        self.samples = tuple(maps.samples[number] for number in numbers) if numbers is not None else maps.samples

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        yield {level: self.features[level] for level in layers}


def one_draw(detector: Detector, network: object, maps: Stored, features: Features, chosen: np.ndarray,
             others: np.ndarray, compared: bool) -> Draw:
    """Cross-fitted scores of the chosen pictures; scores of the others by the detector of all chosen; and how far, in
    interquartile ranges of these, the scores of the others by the folds' detectors lie above them, in the median.
    """
    train, rest = Kept(maps, features, chosen), Kept(maps, features, others)
    planned = crossfit.plan(detector, train.samples)
    nominal = crossfit.cross_fitted(detector, network, train, planned.folds)
    whole = crossfit.fitted(detector, network, train)
    true = crossfit.scores_of(crossfit.predictions(whole, rest))
    if not compared:
        return nominal, true, np.nan
    spread = np.subtract(*np.quantile(true, [0.75, 0.25]))
    shifts = [np.median(crossfit.scores_of(crossfit.predictions(learner, rest)) - true) / spread
              for learner, _ in crossfit.fitted_folds(detector, network, train, planned.folds)]
    return nominal, true, float(np.mean(shifts))


def held(nominal: np.ndarray, true: np.ndarray, rate: float) -> tuple[float, float, bool, bool]:
    """Expected rate, true rate, whether the interval holds it, and whether it is at most what was said."""
    promised = Promise.of(nominal, false_alarms=rate)
    flagged = float((true > promised.threshold).mean())
    low, high = promised.interval
    return promised.expected, flagged, low <= flagged <= high, flagged <= promised.at_most


def summary(draws: Sequence[Draw], n: int, rates: Iterable[float]) -> list[dict]:
    """A line for each rate that n pictures can give."""
    lines = []
    for rate in (rate for rate in rates if rate >= 1 / (n + 1)):
        expected, flagged, inside, below = (np.array(column) for column in zip(
            *(held(nominal, true, rate) for nominal, true, _ in draws), strict=True))
        # The same with fresh pictures and the detector itself: the first n of the others, counted on the rest.
        fresh = [held(true[:n], true[n:], rate)[2] for _, true, _ in draws]
        lines.append({"pictures": n, "asked": rate, "expected": float(expected[0]), "true": float(flagged.mean()),
                      "held": int(inside.sum()), "at_most": int(below.sum()), "fresh": int(np.sum(fresh)),
                      "draws": len(draws), "shift": float(np.nanmean([shift for *_, shift in draws])),
                      "raw_ms": None})
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of categories whose train/good is the pool (default: drawn)")
    parser.add_argument("--category", default="bracket")
    parser.add_argument("--pool", type=int, default=2000, help="pictures to draw where no --data is given")
    parser.add_argument("--method", default="patchcore", choices=("patchcore", "padim", "spade"))
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--pictures", type=int, nargs="+", default=[60, 200], help="of a training set")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--embedding", default="avg_k3_s2_p1", help="36 patches a picture instead of 144")
    parser.add_argument("--bank", type=int, default=1000, help="rows, of PatchCore")
    parser.add_argument("--channels", type=int, default=100, help="of PaDiM")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and FAISS")
    args = parser.parse_args(arguments)
    args.rounds = args.draws
    common.set_threads(args)
    root = args.data or synthetic.write(paths.data() / f"pool_{args.category}_{args.pool}", train=args.pool, good=0,
                                        categories=(args.category,), defective=0, size=128)
    category = data.scan(root, args.category)
    more = {"patchcore": {"bank": args.bank}, "padim": {"channels": args.channels}, "spade": {}}[args.method]
    detector = METHODS[args.method](weights=args.weights, layers=tuple(args.layers), embedding=args.embedding, **more)
    images = data.Pictures(category.train, data.Preprocess(image_size=args.image_size), 50)
    network = detector.network(detector.levels, images)
    maps = Stored(Extracted(network, images))
    batches = list(maps.batches(detector.levels))
    features = {level: torch.cat([batch[level] for batch in batches]) for level in detector.levels}
    rng, lines = np.random.default_rng(0), []
    for n in args.pictures:
        draws = []
        for number in track(range(args.draws), args.draws, f"training sets of {n}"):
            order = rng.permutation(len(category.train))
            draws.append(one_draw(detector, network, maps, features, np.sort(order[:n]), order[n:],
                                  number < COMPARED))
        lines += summary(draws, n, RATES)
    subject = common.subject(detector, category, args, image_size=args.image_size)
    common.report("promise", args, subject, lines, "pictures")


if __name__ == "__main__":
    main()
