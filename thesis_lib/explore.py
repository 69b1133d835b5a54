"""The interactive end of a notebook: one picture after the other through a detector, with every part of its answer.

Widgets appear where somebody watches; the batch and rendered pages get the same view of one picture instead.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from IPython.display import display

from thesis_lib import data, figures, progress, scoring, timing
from thesis_lib.data import Category, Pictures, Preprocess
from thesis_lib.methods import Detector, PatchCore, Prediction

SHOWN = 3               # nearest bank patches


@dataclass(frozen=True)
class View:
    """A fitted detector on a category, with what it says of every test picture."""

    detector: Detector
    category: Category
    preprocess: Preprocess

    @cached_property
    def predictions(self) -> list[Prediction]:
        batches = Pictures(self.category.test, self.preprocess, batch_size=1)
        return [self.detector.predict(image) for image in progress.track(batches, len(batches), "test pictures")]

    @cached_property
    def scores(self) -> np.ndarray:
        """(n,) of the test pictures."""
        return torch.cat([prediction.score for prediction in self.predictions]).double().numpy()

    @property
    def usual(self) -> float:
        """A threshold that one in twenty nominal test pictures exceeds."""
        return float(np.quantile(self.scores[self.category.labels == 0], 0.95))

    def nearest(self, index: int) -> list[np.ndarray]:
        """Crops (S, S, 3): the farthest patch of the picture, then the bank patches nearest to it (PatchCore only)."""
        if not isinstance(self.detector, PatchCore):
            return []
        image, stages = self.preprocess.image(self.category.test[index].path), self.detector.stages
        patches = stages["embedding"](stages["extraction"](image[None]))
        worst = int(stages["search"](patches).distances[0, :, 0].argmax())
        count = min(SHOWN, len(self.detector.bank_))
        rows = self.detector.search_.query(patches.vectors[0, worst:worst + 1], count)[1][0]
        crops = [self._crop(image, worst, patches.grid)]
        for row in self.detector.rows_[rows.numpy()]:
            number, place = divmod(int(row), patches.grid[0] * patches.grid[1])
            crops.append(self._crop(self.preprocess.image(self.category.train[number].path), place, patches.grid))
        return crops

    def _crop(self, image: torch.Tensor, place: int, grid: tuple[int, int]) -> np.ndarray:
        side, half = self.preprocess.side, max(12, self.preprocess.side // 10)
        y, x = ((place // grid[1] + 0.5) * side / grid[0], (place % grid[1] + 0.5) * side / grid[1])
        top, left = (int(min(max(at - half, 0), side - 2 * half)) for at in (y, x))
        return figures.to_rgb(image[:, top:top + 2 * half, left:left + 2 * half])

    def figure(self, index: int, threshold: float) -> figures.Figure:
        """Picture, anomaly map, ROC with the operating point, stage times of this picture, nearest bank patches."""
        sample = self.category.test[index]
        image = self.preprocess.image(sample.path)[None]
        times = timing.measure(self.detector, [image], warmup=1, repeats=3).stage_ms
        heat = self.predictions[index].full_map(self.preprocess.side)[0].numpy()
        return figures.inspection(sample, heat, self.category.labels, self.scores, index, threshold, times,
                                  self.nearest(index), self.preprocess)

    def verdict(self, index: int, threshold: float) -> str:
        alarms = self.scores >= threshold
        good, bad = self.category.labels == 0, self.category.labels == 1
        return (f"score {self.scores[index]:.3f}: {'anomalous' if alarms[index] else 'nominal'} at threshold "
                f"{threshold:.3f}, which finds {100 * alarms[bad].mean():.0f} % of the anomalous pictures and raises "
                f"{100 * alarms[good].mean():.0f} % false alarms")


@lru_cache(maxsize=8)
def _fitted(method: type[Detector], parameters: tuple, category: Category, preprocess: Preprocess) -> View:
    return View(method(**dict(parameters)).fit(Pictures(category.train, preprocess)), category, preprocess)


def view_of(detector: Detector, category: Category, preprocess: Preprocess) -> View:
    """A detector of these parameters, fitted once for each category."""
    return _fitted(type(detector), tuple(detector.parameters().items()), category, preprocess)


def show(detector: Detector, root: Path, category: Category, preprocess: Preprocess) -> None:
    """Display a category of the folder `root` as the detector sees it, with widgets where somebody watches."""
    if progress.watched():
        display(panel(detector, root, category, preprocess))
        return
    view = view_of(detector, category, preprocess)
    anomalous = np.flatnonzero(view.category.labels)
    index = int(anomalous[np.argsort(view.scores[anomalous])[len(anomalous) // 2]])
    print(view.verdict(index, view.usual))
    display(view.figure(index, view.usual))


def panel(detector: Detector, root: Path, category: Category, preprocess: Preprocess):
    """Widgets: folder, category, parameters of the detector, picture, threshold. A new detector is fitted first."""
    import ipywidgets as w
    folder = w.Text(str(root), description="folder", continuous_update=False)
    chosen = w.Dropdown(options=data.categories(root), value=category.name, description="category")
    options = {name: w.Dropdown(options=values, value=getattr(detector, name), description=name)
               for name, values in _choices(detector).items()}
    picture = w.Dropdown(description="picture")
    threshold = w.FloatSlider(description="threshold", readout_format=".3f", continuous_update=False)
    told, drawn = w.HTML(), w.Output()
    current = {}

    def refit(_=None) -> None:
        told.value = "fitting ..."
        wanted = replace(detector, **{name: option.value for name, option in options.items()})
        try:
            given = folder.value == str(root) and chosen.value == category.name
            pictures = category if given else data.scan(Path(folder.value), chosen.value)
            view = view_of(wanted, pictures, preprocess)
            scores = view.scores
        except ValueError as error:             # a level without weights, a picture that is none, ...
            told.value = f"<b>{error}</b>"
            return
        current.clear()                         # no drawing while the widgets change
        picture.options = [(f"{sample.defect}/{sample.path.stem}", index)
                           for index, sample in enumerate(view.category.test)]
        low, high = float(scores.min()), float(scores.max())
        threshold.max = max(threshold.min, high)        # a lower end above the upper one is refused
        threshold.min, threshold.max = low, high
        threshold.step, threshold.value = (high - low) / 100 or 1.0, view.usual
        picture.value = int(np.argmax(scores))
        current["view"] = view
        draw()

    def draw(_=None) -> None:
        if view := current.get("view"):
            told.value = view.verdict(picture.value, threshold.value)
            with drawn:
                drawn.clear_output(wait=True)
                display(view.figure(picture.value, threshold.value))

    def enter(_=None) -> None:
        try:
            names = data.categories(data.resolve(folder.value))
        except ValueError as error:
            told.value = f"<b>{error}</b>"
            return
        if names:
            folder.value = str(data.resolve(folder.value))
            chosen.options = names              # its new value fits anew
        else:
            told.value = f"<b>{folder.value}: holds no category; needs folders with train/good</b>"

    folder.observe(enter, "value")
    for widget in (chosen, *options.values()):
        widget.observe(refit, "value")
    for widget in (picture, threshold):
        widget.observe(draw, "value")
    refit()
    return w.VBox([w.HBox([folder, chosen]), w.HBox(list(options.values())), w.HBox([picture, threshold]), told, drawn])


def _choices(detector: Detector) -> dict[str, list]:
    """Parameters of this method that can be chosen, as (text, value): the given one first, impossible ones left out."""
    levels = [levels for count in (1, 2, 3) for levels in combinations((1, 2, 3), count)]
    wanted = {"layers": levels, "backbone": ["resnet18", "resnet34", "pdn_small"],
              "score": list(scoring.RULES) if isinstance(detector, PatchCore) else []}
    choices = {}
    for name, values in wanted.items():
        if not hasattr(detector, name):
            continue
        possible = [getattr(detector, name)]
        for value in values:
            with suppress(ValueError):
                replace(detector, **{name: value})
                possible += [value] * (value not in possible)
        texts = [",".join(map(str, value)) if isinstance(value, tuple) else value for value in possible]
        if len(possible) > 1:
            choices[name] = list(zip(texts, possible, strict=True))
    return choices
