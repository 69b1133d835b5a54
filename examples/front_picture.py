"""Draw the picture at the top of README: python examples/front_picture.py docs/front.png (a minute on 2 cores).

PatchCore learns the good pictures of a demo category with the bundled weights. Shown are the first good test picture
and the first one of every kind of defect. Above lie the pictures, outlined where a defect was drawn; below lie the
anomaly maps, which the detector made without knowing the outlines.
"""

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from thesis_lib import data
from thesis_lib.core import files
from thesis_lib.core.preprocess import Sample
from thesis_lib.methods import PatchCore
from thesis_lib.report import figures

LIMIT_KB = 250          # so that the page of the project loads at once


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path, help="the picture, a .png file")
    options.add_argument("--category", default="weave", help="granulate, weave or bracket (default weave)")
    args = options.parse_args()

    category, preprocess = data.scan("demo", args.category), data.Preprocess()
    detector = PatchCore(layers=(1,), weights="bundled").fit(data.Pictures(category.train, preprocess))
    samples = one_of_each(category)
    (images,) = data.Pictures(samples, preprocess, len(samples))
    prediction = detector.predict(images)

    png = drawn(samples, prediction.full_map(preprocess.shape).numpy(), prediction.score.tolist(), preprocess)
    files.write(args.out, png)
    print(f"{args.out}: {len(png) / 1000:.0f} kB" + (f", more than {LIMIT_KB}" if len(png) > 1000 * LIMIT_KB else ""))


def one_of_each(category: data.Category) -> list[Sample]:
    """The first good test picture, then the first one of every kind of defect."""
    first: dict[str, Sample] = {}
    for sample in category.test:
        first.setdefault(sample.defect, sample)
    return [first.pop("good"), *first.values()]


def drawn(samples: list[Sample], full_maps: np.ndarray, scores: list[float], preprocess: data.Preprocess) -> bytes:
    """`figures.maps` as a PNG: larger titles, no colour bar, and outlines in the upper row only."""
    limits = float(np.quantile(full_maps, 0.05)), float(np.quantile(full_maps, 0.998))
    figure = figures.maps(samples, full_maps, scores, preprocess, limits)
    *axes, bar = figure.axes
    bar.remove()
    columns = len(samples)
    figure.set_size_inches(1.9 * columns, 4.3)
    for column, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        above, below = axes[column], axes[columns + column]
        for axis, bottom in ((above, 0.505), (below, 0)):       # the layout would keep a place for the bar
            axis.set_position([column / columns, bottom, 0.97 / columns, 0.43])
        above.set_title(sample.defect.replace("_", " "), fontsize=12)
        below.set_title(f"score {score:.2f}", fontsize=12)
        for outline in list(below.collections):
            outline.remove()

    # 256 colours in a file a quarter as large; "maximum coverage" keeps the few bright ones of the maps.
    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", dpi=94, bbox_inches="tight", pad_inches=0.03)
    reduced = Image.open(full).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    reduced.save(small, format="png", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    main()
