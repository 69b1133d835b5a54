"""Elongated parts: a rectangle that keeps their aspect against squares; tiles against the whole picture; a device.

    python -m benchmarks.bench_rectangle                            # draws 288 pictures first
    python -m benchmarks.bench_rectangle --contrast 25 --methods patchcore

The parts are drawn: brushed metal of 500 x 1260 pixels with two holes, and thin scratches along or across it, apart
from the holes. A square squeezes the long side, so that a scratch across becomes thinner than a pixel. Three sizes are
compared on the same pictures: the square of 256, the rectangle of 256x640, and the square of 405 that has as many
pixels as the rectangle. Told are image AUROC and its interval, of all defects and of each kind, and the paired
difference of the rectangle and each square, mean of the seeds. The scratches of PaDiM are fainter: it knows what every
place of a part looks like, and finds those of PatchCore in the square of 256, too. Then the network sees a large
picture whole and in tiles: AUROC, milliseconds a picture in turn, and memory of a fresh process. Last a bundle of the
rectangle is written, and what a device says of the test pictures is held against the library. Printed, and stored as a
row of kind "benchmark".
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter1d

from benchmarks import common
from thesis_lib import data
from thesis_lib.core import memory, paths, timing
from thesis_lib.core.progress import track
from thesis_lib.data.pictures import load_image
from thesis_lib.device import bundle, export, run
from thesis_lib.evaluation import crossfit, metrics
from thesis_lib.methods import PaDiM, PatchCore
from thesis_lib.networks.maps import Extracted, Stored

WIDTH, HEIGHT = 500, 1260           # pixels of a part
HOLES, RADIUS = (210, 1050), 70     # their rows, and pixels
KINDS = ("along", "across")
FINE = 4                            # a scratch is drawn so many times as large, and shrunk
RECTANGLE = (256, 640)
SIZES = {"256": 256, "405": 405, "256x640": RECTANGLE}
LARGE = (512, 1280)                 # of the tiles
CONTRASTS = {"patchcore": 28.0, "padim": 18.0}      # grey levels of a scratch: the square of 256 finds some of them


def part(rng: np.random.Generator) -> np.ndarray:
    """(H, W) grey: brushed along, lit unevenly, with two holes that have a bright rim."""
    noise = rng.normal(size=(HEIGHT, WIDTH))
    brushed = uniform_filter1d(rng.normal(size=(HEIGHT, WIDTH)), 25, axis=0, mode="constant")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = (10 * np.cos((x - WIDTH / 2 + rng.normal(0, 15)) / WIDTH * 2.5)
             + 6 * np.sin(y / HEIGHT * 3 + rng.normal(0, 0.2)))
    grey = 120 + light + 2.5 * noise + 14 * brushed
    for row in HOLES:
        away = np.hypot(y - row - rng.normal(0, 2), x - WIDTH / 2 - rng.normal(0, 2))
        grey = np.where(away < RADIUS, 35 + 2 * noise, np.where(away < RADIUS + 8, 170 + 2 * noise, grey))
    return grey


def scratch(rng: np.random.Generator, kind: str, width: float) -> np.ndarray:
    """(H, W) of 0 to 1: a straight line of 40 to 90 pixels between the holes, hardly oblique."""
    length, slope = rng.uniform(40, 90), rng.uniform(-0.06, 0.06)
    middle = np.array([rng.uniform(60, WIDTH - 60), rng.uniform(330, 930)])
    half = length / 2 * np.array([1, slope] if kind == "across" else [slope, 1])
    ends = np.clip(np.stack([middle - half, middle + half]), 5, [WIDTH - 5, HEIGHT - 5])
    drawn = Image.new("L", (FINE * WIDTH, FINE * HEIGHT))
    ImageDraw.Draw(drawn).line([tuple(end) for end in FINE * ends], fill=255, width=round(FINE * width))
    return np.asarray(drawn.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=float) / 255


def write(folder: Path, counts: dict[str, int], contrast: float, width: float, seed: int) -> None:
    """Pictures of a category, `counts` of each of its folders; each is drawn from a stream of its own."""
    for number, (kind, count) in enumerate(counts.items()):
        (folder / kind).mkdir(parents=True)
        for index in track(range(count), count, f"drawing {kind}"):
            rng = np.random.default_rng([seed, number, index])
            grey = part(rng)
            if (defect := Path(kind).name) in KINDS:
                grey = grey + contrast * scratch(rng, defect, width)
            Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).save(folder / kind / f"{index:03d}.png")


def drawn(args: argparse.Namespace, method: str) -> data.Category:
    """The category for a method; drawn once and kept below the data folder."""
    contrast = args.contrast or CONTRASTS[method]
    root = paths.data() / f"elongated_{args.train}_{args.test}_{contrast:g}_{args.width:g}_{args.seed}"
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as temporary:
            counts = {"train/good": args.train, "test/good": args.test} | {f"test/{kind}": args.test for kind in KINDS}
            write(Path(temporary) / "new" / "part", counts, contrast, args.width, args.seed)
            (Path(temporary) / "new").rename(root)
    return data.scan(root, "part")


def detector(method: str, **more) -> PatchCore | PaDiM:
    """PatchCore as the guide has it; PaDiM with a quarter of the positions, which fits a large picture."""
    if method == "patchcore":
        return PatchCore(layers=(1,), weights="bundled", bank=500, **more)
    return PaDiM(layers=(1, 2), weights="bundled", channels=50, embedding="avg_k3_s2_p1",
                 join="interpolate", **more)            # maps of 405 pixels do not divide


def scores(one: PatchCore | PaDiM, category: data.Category, preprocess: data.Preprocess, seeds: int) -> np.ndarray:
    """(S, n) of the test pictures; the network sees every picture once."""
    train, test = data.Pictures(category.train, preprocess), data.Pictures(category.test, preprocess)
    network = one.network(one.levels, train)
    learned, tested = (Stored(Extracted(network, images)) for images in (train, test))
    fitted = (crossfit.fitted(one.reseeded(seed), network, learned) for seed in range(seeds))
    return np.array([crossfit.scores_of(crossfit.predictions(whole, tested)) for whole in fitted])


def line(category: data.Category, found: np.ndarray, against: np.ndarray | None = None) -> dict:
    """AUROC in %, its interval, and that of each kind; or the paired differences to other scores."""
    told, kinds = {}, np.array([sample.defect for sample in category.test])
    for name in ("all", *KINDS):
        chosen = np.isin(kinds, [name, "good"]) | (name == "all")
        labels, own = category.labels[chosen], found[:, chosen]
        if against is None:
            value = np.mean([metrics.image_auroc(labels, row) for row in own])
            low, high = metrics.auroc_interval(labels, own)
        else:
            value, low, high = metrics.auroc_difference(labels, own, against[:, chosen])
        told |= {name: f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})", f"raw_{name}": [value, low, high]}
    return told


def sizes(method: str, category: data.Category, seeds: int) -> list[dict]:
    """A line for each size, and one for the rectangle minus each square."""
    found = {name: scores(detector(method), category, data.Preprocess(image_size=size), seeds)
             for name, size in track(SIZES.items(), len(SIZES), method)}
    *squares, last = found
    return [*({"method": method, "pictures": name, **line(category, found[name])} for name in found),
            *({"method": method, "pictures": f"{last} minus {name}", **line(category, found[last], found[name])}
              for name in squares)]


def tiles(category: data.Category, ways: Sequence[tuple[int, int]], args: argparse.Namespace) -> list[dict]:
    """PatchCore on a large picture, whole and in tiles: a line each."""
    preprocess, lines = data.Preprocess(image_size=LARGE), []
    few = category.subset(args.tiled, 2 * args.tiled)
    whole = "x".join(map(str, LARGE))
    named = {whole: None} | {f"{whole}, {way[0]}x{way[1]} tiles": way for way in ways}
    found = {name: detector("patchcore", tiles=way).fit(data.Pictures(few.train, preprocess, 1))
             for name, way in named.items()}
    image = load_image(few.test[0].path, preprocess)[None]
    seconds = timing.interleaved({name: one.predict for name, one in found.items()}, image, rounds=args.rounds, seed=0)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        for name, one in found.items():
            seen = np.array([[float(one.predict(picture).score) for picture in data.Pictures(few.test, preprocess, 1)]])
            times = common.statistics(seconds[name], seconds[whole])
            lines.append({"method": "patchcore", "pictures": name, **line(few, seen), "ms": times["ms_median"],
                          "ratio": times["ratio"], "raw_ms": times["raw_ms"],
                          "mb": fresh.submit(taken_mb, few, named[name], args.threads).result()})
    return lines


def taken_mb(category: data.Category, way: tuple[int, int] | None, threads: int) -> float:
    """Memory that the network takes for a large picture, above what the process had with its packages; by itself."""
    torch.set_num_threads(threads)
    one = detector("patchcore", tiles=way)
    image = load_image(category.test[0].path, data.Preprocess(image_size=LARGE))[None]
    network = one.network(one.levels, data.Pictures(category.train[:1], data.Preprocess(image_size=LARGE)))
    before, peak = psutil.Process().memory_info().rss, memory.Peak()
    network(image)
    return 1e3 * (peak.gb or np.nan) - before / 1e6


def on_device(category: data.Category) -> dict:
    """A bundle of the rectangle: AUROC of its scores, and the largest difference to the library as a share."""
    one, preprocess = detector("patchcore"), data.Preprocess(image_size=RECTANGLE)
    expected = scores(one, category, preprocess, 1)
    with tempfile.TemporaryDirectory() as folder:
        export.export(one, category, preprocess, Path(folder) / "bundle", false_alarms=0.2)
        opened = bundle.Bundle.open(Path(folder) / "bundle")
        files = [sample.path for sample in category.test]
        found = np.array([[detection.score for _, detection in run.detect(opened, files)]])
    return {"method": "patchcore", "pictures": "x".join(map(str, RECTANGLE)) + ", device", **line(category, found),
            "difference": float(np.abs(found / expected - 1).max())}


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=10)
    parser.add_argument("--train", type=int, default=24, help="good parts to learn from")
    parser.add_argument("--test", type=int, default=40, help="good parts, and parts with each kind of scratch, to test")
    parser.add_argument("--contrast", type=float, help="of a scratch, grey levels (default: "
                        + ", ".join(f"{contrast:g} for {method}" for method, contrast in CONTRASTS.items()) + ")")
    parser.add_argument("--width", type=float, default=1.5, help="of a scratch, pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument("--seeds", type=int, default=3, help="memory banks, or draws of channels")
    parser.add_argument("--methods", nargs="+", default=list(CONTRASTS), choices=list(CONTRASTS))
    parser.add_argument("--tiles", nargs="*", default=["1x2", "2x4"], help="columns x rows")
    parser.add_argument("--tiled", type=int, default=12, help="pictures to learn from in tiles; twice as many to test")
    args = parser.parse_args(arguments)
    common.set_threads(args)
    lines = [told for method in args.methods for told in sizes(method, drawn(args, method), args.seeds)]
    category, args.weights = drawn(args, "patchcore"), "bundled"
    lines += tiles(category, [tuple(map(int, way.split("x"))) for way in args.tiles], args)
    lines.append(on_device(category))
    common.report("rectangle", args, common.subject(detector("patchcore"), category, args), lines, "seeds", "contrast",
                  "width", "methods", "tiles", "tiled", markdown=True)


if __name__ == "__main__":
    main()
