"""The interactive end of a notebook: one picture after the other through a detector, with every part of its answer.

A detector and a category go in; what comes out is shown in the notebook. Widgets appear where somebody watches; the
batch and rendered pages get the same view of one picture instead.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from html import escape
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from IPython.display import display

from thesis_lib.core import progress
from thesis_lib.core.errors import ThesisError, user_message
from thesis_lib.core.preprocess import DataError, Preprocess
from thesis_lib.data.folders import Category, categories, resolve, scan, some_categories
from thesis_lib.data.pictures import Pictures, load_image
from thesis_lib.evaluation import metrics
from thesis_lib.evaluation.stage_times import measure
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.patches import scoring
from thesis_lib.report import figures

if TYPE_CHECKING:       # a page that nobody watches needs no widgets
    from ipywidgets import VBox

SHOWN = 3               # nearest bank patches


@dataclass(frozen=True)
class View:
    """A fitted detector on a category, with what it says of every test picture."""

    detector: Detector
    category: Category
    preprocess: Preprocess
    given: Sequence[Prediction] | None = None       # of each test picture, where they are there already

    @cached_property
    def predictions(self) -> Sequence[Prediction]:
        if self.given is not None:
            return self.given
        batches = Pictures(self.category.test, self.preprocess, batch_size=1)
        return [self.detector.predict(image) for image in progress.track(batches, len(batches), "test pictures")]

    @cached_property
    def scores(self) -> np.ndarray:
        """(n,) of the test pictures."""
        return torch.cat([prediction.score for prediction in self.predictions]).double().numpy()

    @property
    def usual(self) -> float:
        """A threshold that one in twenty nominal test pictures exceeds; without such pictures, of all."""
        nominal = self.scores[self.category.labels == 0]
        return float(np.quantile(nominal if len(nominal) else self.scores, 0.95))

    def nearest(self, index: int) -> list[np.ndarray]:
        """Crops (S, S, 3): the farthest patch of the picture, then the bank patches nearest to it (PatchCore only)."""
        if not isinstance(self.detector, PatchCore):
            return []
        image, stages = load_image(self.category.test[index].path, self.preprocess), self.detector.stages
        patches = stages["embedding"](stages["extraction"](image[None]))
        worst = int(stages["search"](patches).distances[0, :, 0].argmax())
        count = min(SHOWN, len(self.detector.bank_))
        rows = self.detector.search_.query(patches.vectors[0, worst:worst + 1], count)[1][0]
        crops = [self._crop(image, worst, patches.grid)]
        for row in self.detector.rows_[rows.numpy()]:
            number, place = divmod(int(row), patches.grid[0] * patches.grid[1])
            crops.append(self._crop(load_image(self.category.train[number].path, self.preprocess), place, patches.grid))
        return crops

    def _crop(self, image: torch.Tensor, place: int, grid: tuple[int, int]) -> np.ndarray:
        """Pixels around the patch of this number, a square that does not leave the picture (3, S, S)."""
        shape, half = self.preprocess.shape, max(12, min(self.preprocess.shape) // 10)
        first = []                                                  # row and column of pixels that the crop begins with
        for number, side, positions in zip(divmod(place, grid[1]), shape, grid, strict=True):
            centre = (number + 0.5) * side / positions
            first.append(int(min(max(centre - half, 0), side - 2 * half)))
        top, left = first
        return figures.to_rgb(image[:, top:top + 2 * half, left:left + 2 * half])

    def figure(self, index: int) -> figures.Figure:
        """Picture, anomaly map, nearest bank patches, stage times of this picture."""
        sample = self.category.test[index]
        image = load_image(sample.path, self.preprocess)[None]
        times = measure(self.detector, [image], warmup=0, repeats=3).stage_ms    # after a first pass
        heat = self.predictions[index].full_map(self.preprocess.shape)[0].numpy()
        return figures.inspection(sample, heat, self.scores[index], times, self.nearest(index), self.preprocess)

    def curve(self, index: int, threshold: float) -> figures.Figure:
        """Scores of all test pictures and their ROC with the operating point."""
        labels, scores = self.category.labels, self.scores
        both = 0 < labels.mean() < 1
        title = f"AUROC {100 * metrics.image_auroc(labels, scores):.1f} %" if both else f"{len(scores)} pictures"
        drawn = figures.distributions({f"{self.category.name}, {title}": (labels, scores)}, threshold, scores[index])
        drawn.trim = False
        return drawn

    def verdict(self, index: int, threshold: float) -> str:
        """What the threshold says of this picture, and what it does to all of them, in one line."""
        alarms, labels = self.scores >= threshold, self.category.labels
        effects = []
        for label, verb, what in ((1, "finds", "of the anomalous pictures"), (0, "raises", "false alarms")):
            if (labels == label).any():
                effects.append(f"{verb} {100 * alarms[labels == label].mean():.0f} % {what}")
        return (f"score {self.scores[index]:.3f}: {'anomalous' if alarms[index] else 'nominal'} at threshold "
                f"{threshold:.3f}, which {' and '.join(effects)}")


@lru_cache(maxsize=8)
def _fitted(method: type[Detector], parameters: tuple, category: Category, preprocess: Preprocess) -> View:
    return View(method(**dict(parameters)).fit(Pictures(category.train, preprocess)), category, preprocess)


def view_of(detector: Detector, category: Category, preprocess: Preprocess) -> View:
    """A detector of these parameters, fitted once for each category. DataError when there is nothing to look at."""
    if not category.test:
        raise DataError(f"{category.train[0].path.parents[2]}: no test pictures; those to look at belong into "
                             "test/good and test/defect (any name)")
    method, parameters = type(detector), tuple(detector.parameters().items())
    # A class can be hashed; mypy takes it for one of its objects, which cannot.
    return _fitted(method, parameters, category, preprocess.decided(category.train))        # type: ignore[arg-type]


def show(detector: Detector, root: Path, category: Category, preprocess: Preprocess,
         backbones: Sequence[str] = (), first: View | None = None) -> None:
    """Display a category of the folder `root` as the detector sees it, with widgets where somebody watches.

    backbones: networks that can be chosen there beside the usual ones. first: shown until something else is chosen, as
    a detector from a file, which should not be fitted again.
    """
    if progress.watched():
        display(panel(detector, root, category, preprocess, backbones, first))
        return
    view = first or view_of(detector, category, preprocess)
    chosen = np.flatnonzero(view.category.labels == view.category.labels.max())     # anomalous ones where there are any
    index = int(chosen[np.argsort(view.scores[chosen])[len(chosen) // 2]])
    print(view.verdict(index, view.usual))
    display(view.figure(index))
    display(view.curve(index, view.usual))


@dataclass
class _Shown:
    """What the widgets are about: a folder of categories, and the view on one of them while it may be drawn."""

    root: Path
    view: View | None = None


def panel(detector: Detector, root: Path, category: Category, preprocess: Preprocess,
          backbones: Sequence[str] = (), first: View | None = None) -> "VBox":
    """Widgets: folder, category, parameters of the detector, picture, threshold. A new detector is fitted before it is
    shown, but for `first`.
    """
    import ipywidgets as w
    folder = w.Text(str(root), description="folder", continuous_update=False, layout={"width": "40em"})
    chosen = w.Dropdown(options=categories(root), value=category.name, description="category")
    options = {name: w.Dropdown(options=values, value=getattr(detector, name), description=name)
               for name, values in _choices(detector, backbones).items()}
    picture = w.Dropdown(description="picture")
    threshold = w.FloatSlider(description="threshold", readout_format=".3f", continuous_update=False,
                              layout={"width": "40em"})
    message, drawn, curve = w.HTML(), w.Output(), w.Output()
    shown = _Shown(Path(root))

    def refit(_: object = None) -> None:
        message.value = "fitting ..."
        before, shown.view = shown.view, None
        try:
            wanted = replace(detector, **{name: option.value for name, option in options.items()})
            given = (shown.root, chosen.value) == (Path(root), category.name)
            other = scan(shown.root, chosen.value) if not given else category
            if first and given and wanted == detector:
                view = first
            else:       # another category may come from another camera
                view = view_of(wanted, other, preprocess if given else replace(preprocess, levels="auto"))
            scores = view.scores
        except (ThesisError, OSError) as error:     # a level without weights, a picture that is none, ...
            if (line := user_message(error)) is None:
                raise
            message.value = f"<b>{escape(line)}</b>"
            for output in (drawn, curve):
                output.clear_output()
            return
        if not before or before.category.test != view.category.test:    # else the same picture by another detector
            picture.options = [(f"{sample.defect}/{sample.path.stem}", index)
                               for index, sample in enumerate(view.category.test)]
            picture.value = int(np.argmax(scores))
        low, high = float(scores.min()), float(scores.max())
        threshold.max = max(threshold.min, high)        # a lower end above the upper one is refused
        threshold.min, threshold.max = low, high
        threshold.step, threshold.value = (high - low) / 100 or 1.0, view.usual
        shown.view = view
        look()

    def look(_: object = None) -> None:
        if shown.view:
            move()
            with drawn:
                drawn.clear_output(wait=True)
                display(shown.view.figure(picture.value))

    def move(_: object = None) -> None:
        if shown.view:
            message.value = shown.view.verdict(picture.value, threshold.value)
            with curve:
                curve.clear_output(wait=True)
                display(shown.view.curve(picture.value, threshold.value))

    def enter(_: object = None) -> None:
        try:
            names = some_categories(folder.value)
        except (ThesisError, OSError) as error:     # what is shown stays
            if (line := user_message(error)) is None:
                raise
            message.value = f"<b>{escape(line)}</b>"
            return
        shown.root = resolve(folder.value)
        chosen.unobserve(refit, "value")        # the first name may be the same as before
        chosen.options = names
        chosen.observe(refit, "value")
        refit()

    folder.observe(enter, "value")
    for widget in (chosen, *options.values()):
        widget.observe(refit, "value")
    picture.observe(look, "value")
    threshold.observe(move, "value")
    refit()
    rows = [[folder, chosen], list(options.values()), [picture, threshold]]
    return w.VBox([*(w.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows), message, drawn, curve])


def _choices(detector: Detector, backbones: Sequence[str] = ()) -> dict[str, list[tuple[str, Any]]]:
    """Parameters of this method that can be chosen, as (text, value): the given one first. What does not fit the others
    as they are is left out, but for `backbones`: they may need other levels or weights.
    """
    levels = [levels for count in (1, 2, 3) for levels in combinations((1, 2, 3), count)]
    wanted: dict[str, list[Any]] = {
        "layers": levels, "backbone": ["resnet18", "resnet34", "pdn_small"],
        "weights": ["bundled", "imagenet", "random"],
        "score": list(scoring.RULES) if isinstance(detector, PatchCore) else []}
    choices = {}
    for name, values in wanted.items():
        if name not in detector.parameters():
            continue
        possible = [getattr(detector, name)]
        for value in values:
            with suppress(ThesisError):
                replace(detector, **{name: value})
                possible.append(value)
        if name == "backbone":
            possible += backbones
        possible = list(dict.fromkeys(possible))                    # each once, in this order
        texts = [",".join(map(str, value)) if isinstance(value, tuple) else value for value in possible]
        if len(possible) > 1:
            choices[name] = list(zip(texts, possible, strict=True))
    return choices
