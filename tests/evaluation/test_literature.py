"""Published values beside made-up measurements, and the setting that a gap is due to."""

import numpy as np
import pandas as pd
import pytest

from thesis_lib.evaluation import literature, reproduction
from thesis_lib.evaluation.statements import differing

IMAGE = literature.METRICS["image_auroc"]


def found(**values):
    """What `measured` gives: points of PatchCore on transistor by what is otherwise, "" for the usual one."""
    return {(literature.like("patchcore", ours).id, "transistor"):
            pd.Series({IMAGE: value, "pixel AUROC %": np.nan, "PRO %": np.nan}) for ours, value in values.items()}


def test_the_values_are_whole():
    values = literature.values()
    assert set(values["method"]) == set(reproduction.usual()) and values[IMAGE].between(50, 100).all()
    assert values["source"].str.contains("/.+@[0-9a-f]{7}:|#").all() and values.isna().sum().sum() > 0
    assert not values.duplicated(["method", "network", "who", "setting", "category"]).any()
    # Two that the thesis' text and other tables quote: anomalib's PatchCore, and a re-implementation of PaDiM.
    by = values.set_index(["method", "network", "who", "category"])[IMAGE]
    assert by["patchcore", "ResNet-18", "anomalib", "transistor"] == 99.6
    assert by["padim", "ResNet-18", "xiahaifeng1995", "screw"] == 74.5


def test_settings_of_others_and_all_experiments_are_measured():
    measured = {side.id for part in reproduction.parts().values() for side in part.sides}
    values = literature.values()
    assert all(literature.like(method, ours).id in measured
               for method, ours in values[["method", "ours"]].drop_duplicates().itertuples(index=False))
    for method, usual in reproduction.usual().items():
        assert usual.id in measured
        told = [differing(side, usual) for side in literature._experiments(method)]
        assert "" not in told and len(set(told)) == len(told)
    assert {"crop 224", "bank 1%", "bank 10%", "embedding original_d1024", "interpolation lanczos", "engine int8",
            "image_size 320"} <= {differing(side, reproduction.usual()["patchcore"])
                                  for side in literature._experiments("patchcore")}


def test_a_gap_names_the_setting_that_closes_it():
    """99.6 % are published; 97.5 here, 99.5 cropped and 98.4 with a larger bank: the crop explains it."""
    measured = found(**{"": 97.5, "crop=224": 99.5, "bank=1%": 98.4})
    gap, = literature.gaps(measured).to_dict("records")
    assert (gap["category"], gap["who"], gap["nearest"], gap["tried"]) == ("transistor", "anomalib", "crop 224", 2)
    assert (gap["gap"], gap["closes"]) == pytest.approx((2.1, 2.0)) and np.isnan(gap["as theirs"])
    change = literature.experiments(measured)["transistor"]["patchcore"]
    assert change["bank 1%"] == pytest.approx(0.9) and np.isnan(change["bank 10%"])
    assert literature.gaps(found(**{"": 98.0})).empty                   # less than two points
    both = found(**{"": 97.0, "crop=224 bank=10% score=reweighted neighbours=9": 99.0})
    assert literature.gaps(both)["as theirs"][0] == pytest.approx(2.0)


def test_ours_stand_first_and_what_others_do_not_tell_is_left_out():
    table = literature.beside(found(**{"": 97.5}))
    assert table.index[0] == ("patchcore", "ResNet-18", literature.HERE, "usual here")
    assert table.loc[table.index[0], (IMAGE, "transistor")] == 97.5
    assert set(table.columns.get_level_values(0)) == {IMAGE}            # no pixel metrics of ours, so of nobody
    assert table[IMAGE].loc["padim"].index[0][1] == literature.HERE
