"""Tables of the thesis as they are read; that they are typed off rightly is checked by their sums."""

import pytest

from thesis_lib.evaluation import thesis


def test_pictures_are_those_of_table_2_1():
    pictures = thesis.mvtec_pictures()
    assert len(pictures) == 15 and pictures["screw"] == (320, 160)
    assert [sum(numbers) for numbers in zip(*pictures.values(), strict=True)] == [3629, 467 + 1258]


def test_times_of_table_2_4_are_of_whole_networks_and_three_machines():
    times = thesis.network_times()
    assert tuple(times.index) == thesis.TIMED_NETWORKS
    ratios = times.rdiv(times["raspberry_pi_4b_ms"], axis=0).mean()         # the thesis prints 61 and 602
    assert ratios[["ryzen_5600x_ms", "rtx_3060ti_ms"]].tolist() == pytest.approx([60.9, 601.8], abs=0.05)
    assert times["raspberry_pi_4b_ms"].tolist() == [820, 1450, 3000]


def test_a_figure_without_bars_is_named():
    assert list(thesis.bars_of("3.2")["figure"].unique()) == ["3.2"]
    with pytest.raises(KeyError, match=r"figure '9\.9' has no bars; there are 3\.2, 3\.3, .* 3\.9, 3\.11, .* 4\.5"):
        thesis.bars_of("9.9")


def test_a_bank_of_1000_rows_is_more_than_one_per_cent_of_one_category():
    """Patches of level 2, 28 x 28 of a picture cropped to 224 pixels: the size of the file has no part in it."""
    share = {name: 1000 / (784 * train) for name, (train, _) in thesis.mvtec_pictures().items()}
    assert {name for name, value in share.items() if value > 0.01} == {"toothbrush"}
    assert share["toothbrush"] == pytest.approx(0.0213, abs=5e-5)
    assert sum(share.values()) / len(share) == pytest.approx(0.0062, abs=5e-5)      # the 0.6 % of the thesis
    assert sum(784 / 1024 * value for value in share.values()) / len(share) == pytest.approx(0.0048, abs=5e-5)


@pytest.mark.parametrize(("figure", "label", "bar"), [
    ("3.4", "Layer 2", 96.986), ("3.5", "Layer 1 & 2 & 3", 97.367), ("3.5", "Layer 2 & 3", 97.517),
    ("3.8", "Layer 2 & 3", 97.785), ("3.9", "RN18 Layer 2 & 3", 97.517), ("3.20", "Avg.-P. k=3 s=1 p=1", 97.763),
    ("3.21", "Avg.-P. k=3 s=1 p=1", 97.517)])
def test_bars_count_where_a_later_label_differs(figure, label, bar):
    """The later state prints other labels, by 0.1, over bars that did not change."""
    assert thesis.bars_of(figure).set_index("label").loc[label, "auroc_mvtec_pct"] == pytest.approx(bar, abs=1e-3)
