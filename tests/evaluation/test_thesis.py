"""Tables of the thesis as they are read; that they are typed off rightly is checked by their sums."""

import pytest

from thesis_lib.evaluation import thesis


def test_pictures_are_those_of_table_2_1():
    pictures = thesis.mvtec_pictures()
    assert len(pictures) == 15 and pictures["screw"] == (320, 160)
    assert [sum(numbers) for numbers in zip(*pictures.values(), strict=True)] == [3629, 467 + 1258]


def test_times_of_table_2_4_are_of_whole_networks_and_three_machines():
    times = thesis.network_times()
    assert tuple(times.index) == thesis.TIMED_NETWORKS and times.notna().all(axis=None)
    assert (times["raspberry_pi_4b_ms"] > times["ryzen_5600x_ms"]).all()
    assert all(times[machine].is_monotonic_increasing for machine in times)


def test_a_figure_without_bars_is_named():
    assert list(thesis.bars_of("3.2")["figure"].unique()) == ["3.2"]
    with pytest.raises(KeyError, match=r"figure '9\.9' has no bars; there are 3\.2, 3\.3, .* 3\.9, 3\.11, .* 4\.5"):
        thesis.bars_of("9.9")
