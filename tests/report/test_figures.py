"""Figures hold the bars, lines and words of what they were given, and draw."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot

from thesis_lib.data.pictures import load_image
from thesis_lib.networks import quantize
from thesis_lib.report import figures


@pytest.fixture
def drawn():
    """Draw a figure and hand it back; no pyplot state may know it, and a notebook can show it."""
    def draw(figure):
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert pyplot.get_fignums() == []
        return figure
    return draw


def texts(artists):
    return [artist.get_text() for artist in artists]


def with_label(figure, xlabel):
    return [axis for axis in figure.axes if axis.get_xlabel() == xlabel]


def widths(axis):
    return [[bar.get_width() for bar in bars] for bars in axis.containers]


def test_stage_bars_stack_and_say_their_numbers(drawn):
    times = {"extraction": [10.0, 20], "embedding": [1.0, 2], "search": [3.0, 4], "score": [0.5, 0.5]}
    aurocs = {"AUROC thesis": [98.7, 97.1], "AUROC measured": [91.2, np.nan]}
    table = pd.DataFrame(times | aurocs, index=["bar A", "bar B"])
    figure = drawn(figures.stage_bars({"one": table, "two": table.iloc[:1]}))
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["one", "two"]
    stages, aurocs = (with_label(figure, label)[0] for label in ("milliseconds per picture", "AUROC in %"))
    assert texts(stages.get_yticklabels()) == ["bar A", "bar B"]
    lefts = [[bar.get_x() for bar in bars] for bars in stages.containers]
    assert lefts == [[0, 0], [10, 20], [11, 22], [14, 26]]
    assert widths(stages) == [[10, 20], [1, 2], [3, 4], [0.5, 0.5]]
    assert texts(stages.texts) == ["14.5 ms", "26.5 ms"]
    assert texts(aurocs.texts) == ["98.7 %", "97.1 %", "91.2 %", "needs ImageNet weights"]
    assert widths(aurocs)[0] == [98.7, 97.1]
    assert aurocs.get_xlim() == (80, 100)
    assert texts(stages.get_legend().get_texts()) == list(table.columns)


def test_stage_bars_without_auroc(drawn):
    table = pd.DataFrame({"extraction": [1.0], "score": [2.0]}, index=["a"])
    figure = drawn(figures.stage_bars({"times": table}))
    assert texts(with_label(figure, "milliseconds per picture")[0].texts) == ["3.0 ms"]
    assert not with_label(figure, "AUROC in %"), "an empty axis would ask what it is for"
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["times"]


def test_stage_bars_without_any_auroc_measured(drawn):
    table = pd.DataFrame({"extraction": [1.0, 2.0], "AUROC pad": [np.nan, np.nan]}, index=["a", "b"])
    axis = with_label(drawn(figures.stage_bars({"times": table})), "AUROC in %")[0]
    assert texts(axis.texts) == ["needs ImageNet weights"] * 2


def test_heat_has_one_scale_for_all_tables(drawn):
    one = pd.DataFrame([[90.0, 95.0], [np.nan, 97.0]], index=pd.Index([3, 5], name="k"), columns=[1, 2])
    figure = drawn(figures.heat({"avg": one, "max": one - 20, "third": one, "fourth": one}))
    shown = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in shown] == ["avg", "max", "third", "fourth"]
    assert texts(shown[1].texts) == ["70.0", "75.0", "77.0"]
    assert {axis.collections[0].get_clim() for axis in shown} == {(70.0, 97.0)}


def test_pareto_names_the_front(drawn):
    table = pd.DataFrame({"ms": [1.0, 2, 3], "AUROC": [80.0, 90, 85], "kind": ["avg", "max", "avg"]}, index=list("abc"))
    axis = drawn(figures.pareto(table, table.iloc[:2], "ms", "AUROC", "kind")).axes[0]
    assert texts(axis.texts) == ["1", "2"]
    assert texts(axis.figure.legends[0].get_texts()) == ["1  a", "2  b"]
    assert sorted(axis.collections[0].get_offsets().tolist()) == [[1, 80], [2, 90], [3, 85]]


def test_left_out_has_a_panel_for_each_engine(drawn):
    table = pd.DataFrame({"engine": ["a", "a", "b"], "network": ["resnet18", "vgg13", "resnet18"],
                          "ms": [10.0, 100.0, 20.0], "ratio": [0.9, 1.5, 1.1]})
    figure = drawn(figures.left_out(table, ["resnet18"]))
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("a, n = 2", "b, n = 1")
    assert texts(figure.legends[0].get_texts()) == ["resnet18"]
    places = [tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in first.lines[1:]]
    assert places == [((100.0, 1.5),), ((10.0, 0.9),)]


def test_roc_goes_through_the_points(drawn):
    curves = {"perfect": ([0, 0, 1, 1], [1, 2, 3, 4]), "half": ([0, 1, 0, 1], [1, 2, 3, 4])}
    axis = drawn(figures.roc(curves)).axes[0]
    assert texts(axis.get_legend().get_texts()) == ["perfect", "half"]
    (curve,) = [line for line in axis.lines if line.get_label() == "half"]
    points = {tuple(point) for point in curve.get_xydata().tolist()}
    assert points == {(0, 0), (0, .5), (.5, .5), (.5, 1), (1, 1)}


def test_distributions_count_both_classes(drawn):
    case = [0, 0, 0, 1, 1], [1, 1, 2.6, 2, 3]
    figure = drawn(figures.distributions({"first": case, "second": case}, threshold=2.5))
    tops, bottoms = with_label(figure, "anomaly score"), with_label(figure, "false positive rate")
    assert [axis.get_title() for axis in tops] == ["first", "second"]
    assert [sum(bar.get_height() for bar in bars) for bars in tops[0].containers] == [3, 2]
    assert texts(tops[0].get_legend().get_texts()) == ["nominal", "anomalous"]
    assert list(tops[0].lines[0].get_xdata()) == [2.5, 2.5]
    (point,) = [line for line in bottoms[0].lines if line.get_marker() == "o"]
    assert point.get_xydata().tolist() == [[1 / 3, 1 / 2]]


def test_matrix_writes_the_counts(drawn):
    counts = np.array([[3, 1], [0, 7]])
    axis = drawn(figures.matrix(counts, ["good", "bad"], ["accepted", "rejected"])).axes[0]
    assert texts(axis.texts) == ["3", "1", "0", "7"]
    assert texts(axis.get_xticklabels()) == ["accepted", "rejected"]
    assert texts(axis.get_yticklabels()) == ["good", "bad"]


def test_lines_hold_the_frames(drawn):
    frame = pd.DataFrame({"a": [1.0, 2], "b": [3.0, 5]}, index=pd.Index([10, 20], name="rows"))
    figure = drawn(figures.lines({"left": frame, "right": frame[["b"]]}, ["ms", "%"]))
    seen = [(axis.get_title(), axis.get_ylabel(), axis.get_xlabel(), len(axis.lines)) for axis in figure.axes]
    assert seen == [("left", "ms", "rows", 2), ("right", "%", "rows", 1)]
    assert figure.axes[0].lines[1].get_xydata().tolist() == [[10, 3], [20, 5]]


def test_pictures_with_outlines(drawn, pad, small):
    figure = drawn(figures.pictures(pad.test, small, columns=4))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["good/000", "good/001", "good/002", "hole/000", "hole/001", "hole/002", "", ""]
    assert [len(axis.images) for axis in figure.axes] == [1] * 6 + [0] * 2
    assert [bool(axis.collections) for axis in figure.axes] == [False] * 3 + [True] * 3 + [False] * 2


@pytest.mark.parametrize(("limits", "expected"), [(None, (0, 5)), ((1, 2), (1, 2))])
def test_maps_share_their_colours(drawn, pad, small, limits, expected):
    heat = np.stack([np.zeros((64, 64)), np.full((64, 64), 5.0)])
    figure = drawn(figures.maps([pad.test[0], pad.test[-1]], heat, [0.25, 1.5], small, limits=limits))
    upper, lower = figure.axes[:2], figure.axes[2:4]
    assert [axis.get_title() for axis in upper] == ["good/000", "hole/002"]
    assert [axis.get_title() for axis in lower] == ["score 0.25", "score 1.50"]
    assert [axis.images[1].get_clim() for axis in lower] == [expected] * 2
    assert [bool(axis.collections) for axis in (*upper, *lower)] == [False, True, False, True]


def test_to_rgb_undoes_the_normalisation(pad, small):
    pixels = figures.to_rgb(load_image(pad.test[-1].path, small))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[small.mask(pad.test[-1])] == 255).all()
    assert figures.to_rgb(torch.full((3, 2, 2), 99.0)).max() == 255


def test_rounding_marks_the_ranges_and_counts_every_error_within_half_a_step(drawn):
    values = np.linspace(-1, 3, 1001, dtype=np.float32)
    maps = {"whole": quantize.affine(values), "cut": quantize.affine(values, quantile=0.1)}
    figure = drawn(figures.rounding({"one": (values, maps), "two": (2 * values, maps)}))
    top, bottom = figure.axes[0], figure.axes[2]          # row by row
    assert top.get_title() == "one"
    ends = [line.get_xdata()[0] for line in top.lines]
    assert ends == pytest.approx([*maps["whole"].range, *maps["cut"].range])
    assert len(top.get_legend().get_texts()) == 2
    inside = sum(bar.get_height() for bar in bottom.patches if abs(bar.get_x() + bar.get_width() / 2) < 0.5)
    assert inside >= 1000, "but for one at the edge of a bin"
