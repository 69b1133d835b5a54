"""All figures and their only style: tables, scores and maps go in, a Figure comes out that no pyplot state knows.

Seaborn and scikit-learn take a second to import, so only the figures that need them do.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike
from PIL import Image

from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Sample, size_of
from thesis_lib.data.pictures import load_image
from thesis_lib.report.tables import NEEDED

if TYPE_CHECKING:       # a page without integers should not depend on them
    from thesis_lib.networks.quantize import Affine

STAGE_COLOURS = {"extraction": "#3b6ea5", "embedding": "#7fb2d9", "search": "#e0a03b", "score": "#8a8a8a"}
AUROC_COLOURS = ("#2f7d4f", "#94c9a0")
GOOD, BAD = "#3b6ea5", "#c0392b"
HEAT = "inferno"


class Figure(_Figure):
    """A figure that a notebook shows as its cell's value, whether pyplot was imported or not."""

    trim = True         # white margins cut off; to know them it is drawn twice

    def _repr_png_(self) -> bytes:
        drawn, small = BytesIO(), BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight" if self.trim else None)
        # 256 colours: a page of pictures must stay small enough to be read on a code host.
        Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        return small.getvalue()


def stage_bars(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Stacked stage times with AUROC bars on a second axis, as the thesis draws its results; one panel per entry.

    Each frame: index = bar labels, columns = stages in ms and one or more "AUROC ..." columns in %.
    """
    longest = max(len(table) for table in panels.values())
    figure = Figure(figsize=(6.2 * len(panels), 1.8 + 0.5 * longest), layout="constrained", dpi=100)
    for axis, (title, table) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        _stage_panel(axis, title, table)
    return figure


def _stage_panel(axis: Axes, title: str, table: pd.DataFrame) -> None:
    """Two bars a row: its stages side by side on the lower axis, and below it its AUROCs on the upper one."""
    columns = [str(column) for column in table]
    aurocs = [column for column in columns if column.startswith("AUROC")]
    stages = [column for column in columns if column not in aurocs]
    rows, above = np.arange(len(table)), 0.2 if aurocs else 0
    totals = np.zeros(len(table))
    for stage in stages:
        axis.barh(rows - above, table[stage], 0.36, left=totals, label=stage, color=STAGE_COLOURS[stage])
        totals += table[stage].to_numpy()
    for row, total in enumerate(totals):
        axis.annotate(f"{total:.1f} ms", (total, row - above), (3, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axis.set(yticks=rows, yticklabels=table.index, xlabel="milliseconds per picture", xlim=(0, totals.max() * 1.25),
             ylim=(len(table) - 0.5, -0.5))
    second = axis.twiny()
    height = 0.36 / max(len(aurocs), 1)
    for number, column in enumerate(aurocs):
        offset = 0.02 + height * (number + 0.5)
        second.barh(rows + offset, table[column], height * 0.9, label=column, color=AUROC_COLOURS[number])
        for row, value in enumerate(table[column]):
            if np.isfinite(value):
                second.annotate(f"{value:.1f} %", (value, row + offset), (-3, 0), textcoords="offset points",
                                va="center", ha="right", fontsize=7, color="white" if number == 0 else "black")
            else:
                second.annotate(NEEDED, (0, row + offset), (3, 0), xycoords=second.get_yaxis_transform(),
                                textcoords="offset points", va="center", fontsize=7, color=AUROC_COLOURS[number])
    # The AUROC axis starts below the lowest bar, so that differences show; its ticks say so.
    if aurocs:
        lowest = np.nanmin(table[aurocs].to_numpy(), initial=100)
        second.set_xlim(max(0, 10 * np.floor(lowest / 10) - 10), 100)
        second.set_xlabel("AUROC in %", fontsize=9)
    else:
        second.set_axis_off()
    second.set_title(title, fontsize=11)
    second.tick_params(labelsize=8)
    for ax in (axis, second):
        ax.spines[["right"]].set_visible(False)
    handles = [item for ax in (axis, second) for item in ax.get_legend_handles_labels()[0]]
    below = ScaledTranslation(0, -0.5, axis.figure.dpi_scale_trans)    # inches, whatever the height: under the label
    axis.legend(handles, [*stages, *aurocs], fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0),
                bbox_transform=axis.transAxes + below)


def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """ROC curves in one picture; each entry maps a name to labels (n,) and scores (n,)."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained", dpi=100)
    axis = figure.subplots()
    for name, (labels, scores) in curves.items():
        _roc(axis, labels, scores, label=name)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def distributions(cases: Mapping[str, tuple[ArrayLike, ArrayLike]], threshold: float | None = None,
                  marked: float | None = None) -> Figure:
    """Per case the histogram of the scores of both classes, and the ROC curve (Fig. 2.2) where there are both.

    cases map a title to labels (n,) and scores (n,); the threshold is a line above and a point below. marked: score of
    a picture that is pointed at.
    """
    alone = len(cases) == 1             # then side by side
    figure = Figure(figsize=(6.6, 2.9) if alone else (3.0 * len(cases), 5.4), layout="constrained", dpi=90)
    axes = figure.subplots(1, 2, squeeze=False) if alone else figure.subplots(2, len(cases)).T
    for (top, bottom), (title, case) in zip(axes, cases.items(), strict=True):
        labels, scores = np.asarray(case[0]), np.asarray(case[1], dtype=float)
        bins = np.linspace(scores.min(), scores.max(), 30)
        for value, name, colour in ((0, "nominal", GOOD), (1, "anomalous", BAD)):
            if (labels == value).any():
                top.hist(scores[labels == value], bins, alpha=0.65, color=colour, label=name)
        if marked is not None:
            top.plot(marked, 0, "^", color="black", clip_on=False, label="this picture")
        if threshold is not None:
            top.axvline(threshold, color="black", lw=1, ls="--")
        top.set(title=title, xlabel="anomaly score", ylabel="pictures")
        top.legend(fontsize=7)
        if len(np.unique(labels)) < 2:
            bottom.set_axis_off()
            bottom.text(0.5, 0.5, "a ROC curve needs good and\ndefective test pictures", ha="center", va="center")
            continue
        _roc(bottom, labels, scores, color="black")
        if threshold is not None:
            positive = scores >= threshold
            bottom.plot(positive[labels == 0].mean(), positive[labels == 1].mean(), "o", color=BAD)
    return figure


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Table of counts as a heat map, e.g. a confusion matrix."""
    import seaborn as sns

    figure = Figure(figsize=(1.6 + 1.2 * len(columns), 1.0 + 0.8 * len(rows)), layout="constrained", dpi=90)
    axis = figure.subplots()
    sns.heatmap(counts, annot=True, fmt="d", cmap="Blues", cbar=False, ax=axis, xticklabels=columns, yticklabels=rows)
    axis.tick_params(axis="y", rotation=0)
    return figure


def heat(panels: Mapping[str, pd.DataFrame], columns: int = 3) -> Figure:
    """Tables of numbers as heat maps with one common colour scale; empty cells are left white."""
    import seaborn as sns

    values = np.concatenate([table.to_numpy(dtype=float).ravel() for table in panels.values()])
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.9 * rows), layout="constrained", dpi=90)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    for axis, (title, table) in zip(axes, panels.items(), strict=False):
        sns.heatmap(table.astype(float), annot=True, fmt=".1f", vmin=np.nanmin(values), vmax=np.nanmax(values),
                    cmap="viridis", cbar=False, ax=axis)
        axis.set_title(title, fontsize=10)
    return figure


def pareto(table: pd.DataFrame, front: pd.DataFrame, cost: str, gain: str, group: str) -> Figure:
    """Every row a point at (cost, gain), coloured by `group`; the rows of the front joined and numbered, their index
    beside: names at points that lie close together would hide each other.
    """
    import seaborn as sns

    figure = Figure(figsize=(9.6, 4.4), layout="constrained", dpi=100)
    axis = figure.subplots()
    sns.scatterplot(table, x=cost, y=gain, hue=group, s=26, ax=axis)
    axis.step(front[cost], front[gain], where="post", color="0.3", lw=1)
    for number, (_, row) in enumerate(front.iterrows(), 1):        # above left of its point the front has no line
        axis.annotate(str(number), (row[cost], row[gain]), (-3, 3), textcoords="offset points", ha="right", fontsize=8)
    names = [f"{number}  {name}" for number, name in enumerate(front.index, 1)]
    figure.legend([Line2D([], [], ls="none") for _ in names], names, loc="outside right upper", fontsize=7,
                  handlelength=0, handletextpad=0, title="the front", alignment="left")
    return figure


def left_out(table: pd.DataFrame, named: Sequence[str] = ()) -> Figure:
    """Predicted / published of networks that were left out, against milliseconds: a panel for each `engine`.

    table: columns engine, network, ms, ratio; the named networks have colours of their own. The band reaches from the
    lowest to the highest.
    """
    engines = list(dict.fromkeys(table["engine"]))
    figure = Figure(figsize=(9.6, 5.4), layout="constrained", dpi=100)
    axes = figure.subplots(-(-len(engines) // 3), min(3, len(engines)), sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(engines):]:
        axis.set_axis_off()
    seen = dict.fromkeys(named)
    for axis, (engine, points) in zip(axes, table.groupby("engine", sort=False), strict=False):
        axis.axhspan(points["ratio"].min(), points["ratio"].max(), color=GOOD, alpha=0.1, lw=0)
        axis.axhline(1, color="0.3", lw=1)
        rest = points[~points["network"].isin(named)]
        axis.plot(rest["ms"], rest["ratio"], "o", color="0.55", ms=4)
        for number, name in enumerate(named):
            own = points[points["network"] == name]
            if len(own):
                (seen[name],) = axis.plot(own["ms"], own["ratio"], "o", color=f"C{number}", ms=6, label=name)
        axis.set_title(f"{engine}, n = {len(points)}", fontsize=10)
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_locator(FixedLocator([0.3, 0.5, 0.7, 1, 1.5, 2, 3]))
        for of in (axis.xaxis, axis.yaxis):
            of.set_major_formatter(StrMethodFormatter("{x:g}"))
            of.set_minor_formatter(NullFormatter())
    figure.supxlabel("milliseconds, published", fontsize=10)
    figure.supylabel("predicted / published", fontsize=10)
    handles = [handle for handle in seen.values() if handle is not None]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    return figure


def lines(panels: Mapping[str, pd.DataFrame], ylabels: Sequence[str]) -> Figure:
    """One panel per frame, a line per column against its index."""
    figure = Figure(figsize=(4.6 * len(panels), 3.2), layout="constrained", dpi=90)
    for axis, (title, frame), ylabel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), ylabels,
                                            strict=True):
        frame.plot(ax=axis, title=title, ylabel=ylabel, xlabel=str(frame.index.name or ""))
    return figure


def rounding(panels: "Mapping[str, tuple[np.ndarray, Mapping[str, Affine]]]") -> Figure:
    """Per entry the histogram of its values with the range of each map, and below it the error of the first map.

    The error is in steps S: within the range it must fill -1/2 to 1/2 evenly and go no further.
    """
    figure = Figure(figsize=(4.6 * len(panels), 5.0), layout="constrained", dpi=90)
    for (top, bottom), (title, (values, maps)) in zip(figure.subplots(2, len(panels), squeeze=False).T, panels.items(),
                                                      strict=True):
        top.hist(values, 200, color="0.6", log=True)
        for (name, affine), colour in zip(maps.items(), (GOOD, BAD), strict=False):
            for end in affine.range:
                top.axvline(end, color=colour, lw=1.2, ls="--", label=f"{name}, S = {affine.scale:.4f}")
        handles = dict(zip(*top.get_legend_handles_labels()[::-1], strict=True))      # one entry for both ends
        top.legend(handles.values(), handles, fontsize=7, loc="upper center")
        top.set(title=title, xlabel="value", ylabel="how many", ylim=(0.6, 12 * top.get_ylim()[1]))     # room for it
        name, affine = next(iter(maps.items()))
        errors = (affine.dequantize(affine.quantize(values)) - values) / affine.scale
        bottom.hist(errors, np.linspace(-1, 1, 81), color=GOOD)
        for half in (-0.5, 0.5):
            bottom.axvline(half, color="black", lw=1, ls="--")
        bottom.set(xlabel=f"error of {name}, in steps S", ylabel="how many", xticks=[-1, -0.5, 0, 0.5, 1])
    return figure


def _roc(axis: Axes, labels: ArrayLike, scores: ArrayLike, **style: Any) -> None:
    """One curve, with the diagonal of a guess; style is that of the line."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(labels, scores)
    axis.plot(fpr, tpr, **style)
    axis.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_aspect("equal")


def pictures(samples: Sequence[Sample], preprocess: Preprocess, columns: int = 6) -> Figure:
    """Pictures as the network sees them, the outline of the mask in red where there is one."""
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows), layout="constrained", dpi=90)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, sample in zip(axes, samples, strict=False):
        axis.imshow(to_rgb(load_image(sample.path, preprocess)))
        if sample.mask:
            axis.contour(preprocess.mask(sample), levels=[0.5], colors="red", linewidths=0.9)
        axis.set_title(f"{sample.defect}/{sample.path.stem}", fontsize=8)
    return figure


def maps(samples: Sequence[Sample], full_maps: np.ndarray, scores: Sequence[float], preprocess: Preprocess,
         limits: tuple[float, float] | None = None) -> Figure:
    """Per sample one column: picture with the mask's outline, anomaly map over the picture.

    full_maps (n, H, W); limits fix the colours for all maps (default: their common range), so that they compare.
    """
    shown = [_inside(heat, sample, preprocess) for heat, sample in zip(full_maps, samples, strict=True)]
    low, high = limits or (float(np.min([heat.min() for heat in shown])), float(np.max([heat.max() for heat in shown])))
    columns = len(samples)
    figure = Figure(figsize=(1.9 * columns + 0.6, 4.1), layout="constrained", dpi=90)
    axes = figure.subplots(2, columns, squeeze=False)
    for column, (sample, heat, score) in enumerate(zip(samples, shown, scores, strict=True)):
        rgb, mask = to_rgb(load_image(sample.path, preprocess)), preprocess.mask(sample)
        axes[0, column].imshow(rgb)
        axes[0, column].set_title(f"{sample.defect}/{sample.path.stem}", fontsize=8)
        axes[1, column].imshow(rgb.mean(axis=2), cmap="gray")
        drawn = axes[1, column].imshow(heat, cmap=HEAT, alpha=0.65, vmin=low, vmax=high)
        axes[1, column].set_title(f"score {score:.2f}", fontsize=8)
        for axis in axes[:, column]:
            axis.set_axis_off()
            if mask.any():
                axis.contour(mask, levels=[0.5], colors="#4be04b", linewidths=0.9)
    figure.colorbar(drawn, ax=axes[1, :], fraction=0.03, label="anomaly score")
    return figure


def inspection(sample: Sample, heat: np.ndarray, score: float, times: Mapping[str, float], crops: Sequence[np.ndarray],
               preprocess: Preprocess) -> Figure:
    """One picture through a detector: picture, map (H, W), crops, stage times in ms.

    crops: the farthest patch of the picture, then the nominal patches nearest to it; may be empty.
    """
    figure = Figure(figsize=(11, 2.9), layout="constrained", dpi=90)
    figure.trim = False
    named = {f"crop {number}": crop for number, crop in enumerate(crops)}
    columns = np.resize(list(named), (2, -(-len(named) // 2))).tolist() if named else [[], []]
    axes = figure.subplot_mosaic([["picture", "map", *row, "times"] for row in columns],
                                 width_ratios=[2.1, 2.1, *[1] * len(columns[0]), 1.7])
    rgb, mask = to_rgb(load_image(sample.path, preprocess)), preprocess.mask(sample)
    axes["picture"].imshow(rgb)
    axes["map"].imshow(rgb.mean(axis=2), cmap="gray")
    axes["map"].imshow(_inside(heat, sample, preprocess), cmap=HEAT, alpha=0.65)
    for name, title in (("picture", f"{sample.defect}/{sample.path.stem}"), ("map", f"score {score:.3f}")):
        axes[name].set_axis_off()
        axes[name].set_title(title, fontsize=9)
        if mask.any():
            axes[name].contour(mask, levels=[0.5], colors="#4be04b", linewidths=0.9)
    for number, (name, crop) in enumerate(named.items()):
        axes[name].imshow(crop)
        axes[name].set_title(f"nominal, {number}. nearest" if number else "its farthest patch", fontsize=8)
        axes[name].set_axis_off()
    bars = axes["times"]
    bars.barh(list(times), list(times.values()), color=[STAGE_COLOURS[stage] for stage in times])
    bars.invert_yaxis()
    bars.set_title(f"{sum(times.values()):.1f} ms", fontsize=9)
    bars.set_xlabel("milliseconds")
    for row, ms in enumerate(times.values()):
        bars.annotate(f"{ms:.1f}", (ms, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    bars.set_xlim(0, 1.3 * max(times.values()))
    return figure


def _inside(heat: np.ndarray, sample: Sample, preprocess: Preprocess) -> np.ndarray:
    """A map (H, W), masked where the picture does not count, so that nothing is drawn there."""
    return np.ma.masked_where(~preprocess.inside(size_of(sample.path)), heat) if preprocess.masked else heat


def to_rgb(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) normalised tensor, a fourth channel is left out -> (H, W, 3) uint8."""
    pixels = image[:3].numpy().transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
