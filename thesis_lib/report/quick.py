"""First results in a minute: PatchCore on one category of the demo set, as a page that needs nothing but itself.

The name of a category goes in; a folder of its own with drawn pictures, a row and `index.html` come out.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core import files, paths, stamp
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data import synthetic
from thesis_lib.data.folders import Category, scan
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation.scores import evaluate, worst
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.report import figures, html, tables

PICTURES: dict[str, Any] = {"train": 60, "good": 20, "defective": 30}       # as many as the demo set has of a category
SHOWN = ("cpu", "cpus_usable", "system", "python", "library", "commit")     # facts of the stamp, beside the versions
log = logging.getLogger("thesis_lib")

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>First results: {auroc} % on {category}</title>
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; color: #222; max-width: 56rem; margin: 0 auto; padding: 0 1rem 2rem }}
h1, h2 {{ line-height: 1.2 }}
.number {{ font-size: 2.2rem; font-weight: 700; color: #2f7d4f; margin: 1rem 0 0 }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem }}
figure {{ margin: 0 }}
img {{ width: 100%; max-width: 22rem; display: block; margin: 0 auto }}
pre {{ background: #f3f3f3; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }}
footer {{ color: #555; font-size: .85rem; border-top: 1px solid #ccc; margin-top: 2rem; overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>Does it find the defects?</h1>
<p>A program has seen {n_train} pictures of good parts ({category}, drawn by this project) and no defect at all. Then it
gave {n_test} new pictures, {n_good} good and {n_bad} defective, a score each: the higher, the less a picture is like
the good ones.</p>
<p class="number">Image AUROC {auroc} %</p>
<p>95 % interval: {interval}</p>

<h2>What you see</h2>
<p>Above is the picture, with the true defect outlined in green. Below is the anomaly map of the same picture: bright
places are unlike anything good. The program did not know the outlines. The three were not picked to look nice: the
first is the best that it did, the other two are its worst.</p>
<div class="cards">
{cards}
</div>

<h2>What the number means</h2>
<p>Take one good and one defective picture by chance. In {auroc} of 100 such pairs the defective one has the higher
score. 100 % would be perfect, 50 % is guessing. {n_test} pictures are few, so the number is not exact: with other
pictures of the same kind it would probably lie in the interval, {interval}.</p>

<h2>What to do next</h2>
<p>See all that the project has to say. This executes every notebook; README says how long it takes.</p>
<pre>make run</pre>
<p>Try your own pictures. Put good parts into <code>myset/part/train/good</code> and <code>myset/part/test/good</code>,
and defective ones into <code>myset/part/test/defect</code>. Then:</p>
<pre>.venv/bin/thesis evaluate patchcore \\
  --data myset --category part \\
  --weights bundled --layers 1</pre>
<p>This page was made in the same way: PatchCore with the bundled network, level 1. With a connection to the internet
<code>--weights imagenet --layers 2</code> takes a network that was trained on photographs.</p>
<footer><p>Made on {date}. {facts}</p></footer>
</body>
</html>
"""


def build(category: str = "bracket") -> tuple[Path, pd.Series]:
    """outputs/quick/index.html of this category, and its line of `tables.summary`. Pictures are drawn once.

    Raises ThesisError for a category that the demo set does not have.
    """
    # 1. The pictures: those of the demo set, in a folder of their own.
    root = paths.quick() / category
    if category in synthetic.CATEGORIES and not root.exists():
        log.info("drawing %d pictures in %s", sum(PICTURES.values()), root)
    pictures = scan(synthetic.write(root, categories=category, **PICTURES), category)
    # 2. The row, always measured: the detector is then fitted, too.
    detector, preprocess = PatchCore(layers=(1,), weights="bundled"), Preprocess()
    rows = evaluate(detector, pictures, preprocess, seeds=1, pixels=False, force=True)
    line = tables.summary(rows).iloc[0]
    # 3. The best and the worst of what was found, and the page.
    shown = _shown(pictures, rows["scores"].iloc[0])
    samples = [pictures.test[index] for index in shown.values()]
    (images,) = Pictures(samples, detector.preprocess_ or preprocess, len(samples))
    maps = detector.predict(images).full_map(preprocess.shape).numpy()
    limits = float(np.quantile(maps, 0.05)), float(np.quantile(maps, 0.998))
    scores = [rows["scores"].iloc[0][index] for index in shown.values()]
    cards = [_card(text, figures.maps([sample], heat[None], [score], preprocess, limits))
             for text, sample, heat, score in zip(shown, samples, maps, scores, strict=True)]
    page = paths.quick() / "index.html"
    files.write(page, _page(line, pictures, cards))
    return page, line


def _shown(category: Category, scores: Sequence[float]) -> dict[str, int]:
    """What is said of a picture -> its number in the test set."""
    good, missed = worst(category, scores, 1)
    found = int(np.argmax(np.where(category.labels == 1, scores, -np.inf)))
    beaten = int((np.asarray(scores)[category.labels == 0] > scores[missed]).sum())
    lower = f"{beaten} good ones score higher" if beaten != 1 else "1 good one scores higher"
    kinds = {index: category.test[index].defect.replace("_", " ") for index in (found, missed)}
    return {f"Defective ({kinds[found]}). It has the highest score of all defective pictures.": found,
            f"Defective ({kinds[missed]}). It has the lowest score of them: {lower}.": missed,
            "Good. It has the highest score of all good pictures.": good}


def _card(text: str, figure: figures.Figure) -> str:
    """A figure inside the page, with what is said of it; its colour bar would be read as the scale of the scores."""
    *axes, bar = figure.axes
    bar.remove()
    figure.set_layout_engine("none")               # it would keep a place for the bar
    for axis, bottom in zip(axes, (0.5, 0), strict=True):
        axis.set_position((0, bottom, 1, 0.44))
        axis.set_anchor("C")
    figure.set_dpi(150)
    picture = html.picture(figure, "picture and anomaly map")
    return f"<figure>{picture}<figcaption>{escape(text)}</figcaption></figure>"


def _page(line: pd.Series, category: Category, cards: Sequence[str]) -> str:
    facts = stamp.stamp()
    told = [f"{name.replace('_', ' ')}: {facts[name]}" for name in SHOWN if facts[name] is not None]
    told += [f"{name} {version}" for name, version in facts["versions"].items() if version]
    bad = int(category.labels.sum())
    return PAGE.format(category=escape(category.name), auroc=f"{line['auroc']:.1f}", interval=in_words(line),
                       n_train=line["n_train"], n_test=line["n_test"], n_good=line["n_test"] - bad, n_bad=bad,
                       cards="\n".join(cards), date=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
                       facts=escape("; ".join(told)))


def in_words(line: pd.Series) -> str:
    """The interval of a line of `tables.summary`, with its unit where it has one."""
    words = tables.interval(line)
    return words if words == tables.NO_INTERVAL else f"{words} %"
