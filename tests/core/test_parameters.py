"""Parameters say what they decide, and a value that cannot be is refused with the name and what it needs."""

from dataclasses import dataclass

import pytest

from thesis_lib.core import parameters
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import parameter
from thesis_lib.core.preprocess import Preprocess


@dataclass
class Recipe:
    steps: int = parameter(10, "how many")
    dropout: float = parameter(0.0, "share that is left out", neutral=True)
    crop: int | None = parameter(None, "side, or none", neutral=True)


@pytest.mark.parametrize(("given", "deciding"), [
    ({}, {"steps": 10}), ({"steps": 20}, {"steps": 20}), ({"dropout": 0.5}, {"steps": 10, "dropout": 0.5}),
    ({"crop": 224}, {"steps": 10, "crop": 224}), ({"crop": 0}, {"steps": 10, "crop": 0})])
def test_a_neutral_parameter_decides_only_at_another_value(given, deciding):
    """One that is not neutral always counts, at its default, too."""
    recipe = Recipe(**given)
    assert parameters.values(recipe) == {"steps": 10, "dropout": 0.0, "crop": None} | given
    assert parameters.deciding(Recipe, parameters.values(recipe)) == deciding
    assert parameters.deciding(recipe, parameters.values(recipe)) == deciding


def test_a_neutral_parameter_that_comes_later_changes_no_identity():
    """A row that does not know it decides as one with its default."""
    older = {"steps": 10}
    assert parameters.deciding(Recipe, older) == parameters.deciding(Recipe, parameters.values(Recipe()))


def test_preprocessing_without_a_crop_does_not_mention_it():
    plain, cropped = (parameters.deciding(Preprocess, parameters.values(Preprocess(crop=crop))) for crop in (None, 224))
    assert plain == {"image_size": 256, "interpolation": "bilinear"}
    assert cropped == plain | {"crop": 224}


def test_one_of_lists_what_is_known():
    parameters.one_of("score", "max", ("max", "mean"))
    with pytest.raises(ThesisError, match=r"^score='min': needs one of max, mean$"):
        parameters.one_of("score", "min", {"max": 1, "mean": 2})


@dataclass
class Numbers:
    fine: float = 1
    wrong: float = 0


@pytest.mark.parametrize(("check", "values", "message"), [
    (lambda record: parameters.at_least(record, 1, "fine", "wrong"), (0.99, -1, float("nan"), -float("inf")),
     "needs at least 1"),
    (lambda record: parameters.above(record, 0, "fine", "wrong"), (0, 0.0, -1, float("nan")),
     "needs a number above 0")])
def test_bounds_name_the_parameter_and_refuse_what_is_no_number(check, values, message):
    check(Numbers(fine=1, wrong=1))
    check(Numbers(fine=1, wrong=float("inf")))
    for value in values:
        with pytest.raises(ThesisError) as told:
            check(Numbers(wrong=value))
        assert str(told.value) == f"wrong={value}: {message}"


@pytest.mark.parametrize("value", [-0.01, 1, 1.0, 7, float("nan"), float("inf")])
def test_a_share_is_below_one(value):
    for fine in (0, 0.0, 0.5, 0.999):
        parameters.share(Numbers(fine=fine), "fine")
    with pytest.raises(ThesisError) as told:
        parameters.share(Numbers(fine=0.5, wrong=value), "fine", "wrong")
    assert str(told.value) == f"wrong={value}: needs 0 up to less than 1"


def test_the_first_wrong_parameter_is_named():
    with pytest.raises(ThesisError, match=r"^fine=-1: "):
        parameters.at_least(Numbers(fine=-1, wrong=-2), 0, "fine", "wrong")
