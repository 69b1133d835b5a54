"""Figures of a study, drawn small so that they can be read on a phone: a `Study` goes in, a Figure comes out."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from thesis_lib.core.preprocess import DataError, Preprocess
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation.examined import Seen
from thesis_lib.evaluation.lines import Line
from thesis_lib.evaluation.study import Study
from thesis_lib.evaluation.thresholds import Promise, percent
from thesis_lib.evaluation.wins import Wins
from thesis_lib.report.figures import BAD, GOOD, HEAT, Figure, to_rgb

COLOURS = {"patchcore": GOOD, "padim": "#e0a03b", "spade": "#8a8a8a", "simplenet": "#7a4fa3", "efficientad": "#2f7d4f",
           "uninformed_students": "#a3624f"}
FOUND, TRUE = "#35d0e6", "#4be04b"      # outline of what the map points at, and of the mask


def front(lines: tuple[Line, ...]) -> list[Line]:
    """Lines that no cheaper one reaches in AUROC, the cheapest first."""
    kept: list[Line] = []
    for line in sorted((line for line in lines if not math.isnan(line.ms)), key=lambda line: (line.ms, -line.auroc)):
        if not kept or line.auroc > kept[-1].auroc:
            kept.append(line)
    return kept


def tradeoff(study: Study) -> Figure:
    """AUROC with its interval against milliseconds; the front is joined, the budget drawn, the recommended one ringed.
    Numbers are those of the table.
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained", dpi=150)
    axis = figure.subplots()
    for method in dict.fromkeys(line.rung.detector.name for line in study.lines):
        own = [line for line in study.lines if line.rung.detector.name == method and not math.isnan(line.ms)]
        auroc = np.array([line.auroc for line in own])
        ends = np.array([[line.auroc - line.low, line.high - line.auroc] for line in own]).reshape(-1, 2).T
        axis.errorbar([line.ms for line in own], 100 * auroc, 100 * np.nan_to_num(ends).clip(0), fmt="o",
                      color=COLOURS[method], ms=5, lw=1, label=own[0].rung.name.split(" level")[0].split(" at ")[0]
                      if own else None)
    joined = front(study.lines)
    axis.step([line.ms for line in joined], [100 * line.auroc for line in joined], where="post", color="0.4", lw=1)
    if study.chosen is not None:
        axis.plot(study.chosen.ms, 100 * study.chosen.auroc, "o", ms=14, mfc="none", mec="black")
    if study.budget_ms is not None:
        axis.axvline(study.budget_ms, color=BAD, lw=1.2, ls="--", label=f"budget {study.budget_ms:g} ms")
    where = "predicted for a Raspberry Pi 4B" if study.device == "pi4" else "measured on this machine"
    axis.set(xscale="log", xlabel=f"milliseconds a picture, {where}", ylabel="image AUROC in %, 95 % interval")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    _number(figure, axis, {number: (line.ms, 100 * line.auroc) for number, line in enumerate(study.lines, 1)
                           if not math.isnan(line.ms)})
    return figure


def _number(figure: Figure, axis: Axes, places: dict[int, tuple[float, float]]) -> None:
    """A number beside each place, where it covers no other number and no place, if there is such room around it."""
    figure.draw_without_rendering()             # the layout decides where a place is
    points = {number: axis.transData.transform(place) for number, place in places.items()}
    unit = figure.dpi / 72                      # pixels of a point
    taken = list(points.values())
    for number, point in points.items():
        around = [np.array([radius * np.cos(angle), radius * np.sin(angle)]) for radius in (10, 15, 21)
                  for angle in np.radians([40, 140, 320, 220, 0, 180, 90, 270])]
        others = [other for other in taken if other is not point]
        away = max(around, key=lambda offset: min(
            (min(np.hypot(*(point + unit * offset - other)) / unit, 10) for other in others), default=10))
        taken.append(point + unit * away)
        axis.annotate(str(number), places[number], tuple(away), textcoords="offset points", fontsize=9, ha="center",
                      va="center")


def operating(study: Study) -> Figure:
    """ROC of the configuration looked at, with the point of each threshold of the table."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained", dpi=150)
    axis = figure.subplots()
    close, won = study.examined, study.looked_at.won
    if len(close.good):
        won = Wins.of(close.good, close.bad)
    assert won is not None
    alarms, found = won.roc()
    axis.step([0, *alarms], [0, *found], where="post", color="black", lw=1.3)       # up from nothing, where points lie
    axis.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
    nominal = close.good if len(close.good) else close.nominal
    at: dict[tuple[float, float], list[str]] = {}
    for rate, promised in close.promises().items():
        if isinstance(promised, Promise):
            place = float((nominal > promised.threshold).mean()), float((close.bad > promised.threshold).mean())
            at.setdefault(place, []).append(percent(rate))
    for (place, rates), marker in zip(at.items(), "Dosv^", strict=False):
        axis.plot(*place, marker, ms=7, color=BAD, mfc="none", mew=1.6,
                  label=f"threshold for {', '.join(rates)} false alarms")
    axis.set(xlabel="good pictures flagged, share", ylabel="defective pictures found, share", xlim=(-0.02, 1.02),
             ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="lower right")
    return figure


def seen(one: Seen, preprocess: Preprocess, limits: tuple[float, float]) -> tuple[Figure, str]:
    """A picture and its map, and in words what of it could not be drawn, or nothing. The region that the map points at
    is outlined in blue, the mask, if any, in green.
    """
    image = load_image(one.sample.path, preprocess)
    rgb, (height, width) = to_rgb(image), image.shape[-2:]
    counted = np.isfinite(one.heat)
    heat = np.ma.masked_where(~counted, one.heat)
    tall = height >= width
    size = 1.9 * min(1.0, width / height), 1.9 * min(1.0, height / width)
    figure = Figure(figsize=(2 * size[0] + 0.06, size[1]) if tall else (size[0], 2 * size[1] + 0.06), dpi=150)
    axes = figure.subplots(1, 2) if tall else figure.subplots(2, 1)
    figure.subplots_adjust(0, 0, 1, 1, 0.03, 0.03)
    axes[0].imshow(rgb)
    axes[1].imshow(rgb.mean(axis=2), cmap="gray")
    axes[1].imshow(heat, cmap=HEAT, alpha=0.65, vmin=limits[0], vmax=limits[1])
    for axis in axes:
        axis.set_axis_off()
    lacking = ""
    try:
        mask = preprocess.mask(one.sample)
    except DataError as error:
        mask, lacking = np.zeros((height, width), dtype=bool), f"without its true outline: {error}"
    for outlined, colour in ((region(one.heat), FOUND), (mask, TRUE)):
        if outlined.any():
            axes[0].contour(outlined, levels=[0.5], colors=colour, linewidths=1.1)
    return figure, lacking


def region(heat: np.ndarray) -> np.ndarray:
    """(H, W) bool: where a map is above the middle between its median and its highest value."""
    counted = heat[np.isfinite(heat)]
    return heat > (np.median(counted) + counted.max()) / 2


def limits(pictures: tuple[Seen, ...]) -> tuple[float, float]:
    """Ends of the colours, common to all maps, so that they compare."""
    values = np.concatenate([one.heat[np.isfinite(one.heat)] for one in pictures])
    return float(np.quantile(values, 0.05)), float(np.quantile(values, 0.998))
