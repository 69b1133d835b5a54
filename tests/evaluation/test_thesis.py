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
