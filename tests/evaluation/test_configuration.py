"""A configuration has one identity, rebuilds its detector, and the thesis' bars are configurations."""

import dataclasses
import json

import pytest

from thesis_lib.core import paths, results
from thesis_lib.core.parameters import parameter
from thesis_lib.data import Preprocess
from thesis_lib.evaluation import scores
from thesis_lib.evaluation.bars import thesis_bars
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.thesis import bars_of
from thesis_lib.methods import METHODS, PatchCore

FIGURES = ["3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "3.11", "3.12", "3.13",
           *(f"3.{i}" for i in range(14, 26))]


@pytest.mark.parametrize("method", METHODS)
def test_it_rebuilds_the_detector(method):
    layers = {"efficientad": {}, "uninformed_students": {"layers": (1,)}}.get(method, {"layers": (1, 2)})
    detector = METHODS[method](weights="random", **layers)
    configuration = Configuration.of(detector, Preprocess())
    assert configuration.detector("random").parameters() == detector.parameters()
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.method = "other"


def test_its_id_changes_with_everything_that_can_change_a_result_and_with_nothing_else():
    def identity(preprocess=None, **parameters):
        return Configuration.of(PatchCore(**{"weights": "random"} | parameters), preprocess or Preprocess()).id

    assert len({identity(), identity(bank=30), identity(layers=(1,)), identity(weights="bundled"),
                identity(preprocess=Preprocess(crop=224)), identity(tap="preactivation")}) == 6
    assert identity() == identity(seed=3) == identity(search_threads=2) == identity(bank="1000")


@pytest.mark.parametrize(("method", "neutral"), [
    ("patchcore", ("tap", "activation", "scaling", "projection")), ("simplenet", ("torch_device",)),
    ("uninformed_students", ("torch_device",)), ("efficientad", ("torch_device",))])
def test_a_neutral_parameter_may_be_missing(method, neutral):
    """A row that was stored before there was one of them has the same configuration."""
    detector = METHODS[method](weights="random", **{"uninformed_students": {"layers": (1,)}}.get(method, {}))
    whole = Configuration.of(detector, Preprocess())
    row = {"id": "1", "method": method, "parameters": whole.parameters, "weights": whole.weights,
           "preprocess": {"image_size": 256, "crop": None, "resize": "square", "interpolation": "bilinear"}}
    assert Configuration.from_row(row).id == whole.id
    for missing in (*((name,) for name in neutral), neutral):
        fewer = {name: value for name, value in whole.parameters.items() if name not in missing}
        assert len(fewer) == len(whole.parameters) - len(missing)
        assert Configuration.from_row(row | {"parameters": fewer}).id == whole.id
        assert Configuration.from_row(row | {"parameters": fewer | {missing[0]: "other"}}).id != whole.id
    assert Configuration.from_row(row | {"preprocess": {"image_size": 256, "interpolation": "bilinear"}}).id == whole.id
    deciding = {name: value for name, value in whole.parameters.items() if name != "backbone"}
    assert Configuration.from_row(row | {"parameters": deciding}).id != whole.id, "only neutral ones may be missing"


def test_an_older_row_of_simplenet_has_the_running_statistics():
    """It names no `batch_norm`, and today's default is another one."""
    whole = Configuration.of(METHODS["simplenet"](weights="random", batch_norm="running"), Preprocess())
    older = {name: value for name, value in whole.parameters.items() if name != "batch_norm"}
    row = Configuration(whole.method, older, whole.weights, whole.preprocess)
    assert row.detector("random").batch_norm == "running"
    assert row.id == whole.id != Configuration.of(METHODS["simplenet"](weights="random"), Preprocess()).id


def test_a_neutral_parameter_may_be_added(monkeypatch):
    @dataclasses.dataclass(kw_only=True)
    class Later(PatchCore):
        gain: int = parameter(1, "a factor that came later", neutral=True)
        offset: int = parameter(0, "one that is not neutral")

    before = Configuration.of(PatchCore(weights="random"), Preprocess())
    monkeypatch.setitem(METHODS, "patchcore", Later)
    now = {(gain, offset): Configuration.of(Later(weights="random", gain=gain, offset=offset), Preprocess())
           for gain in (1, 2) for offset in (0, 1)}
    assert len({before.id, *(found.id for found in now.values())}) == 5, "offset is always part of it"
    for (gain, _), found in now.items():
        without = {name: value for name, value in found.parameters.items() if name != "offset"}
        assert (dataclasses.replace(found, parameters=without).id == before.id) == (gain == 1)


def test_row_and_configuration_are_one(pad, small):
    detector = PatchCore(weights="random", layers=(1,), bank=20)
    rows = scores.evaluate(detector, pad, small, seeds=2)
    stored = json.loads(next(paths.results().glob("auroc-*.json")).read_text())
    found = Configuration.from_row(stored)
    assert found == Configuration.of(detector, small.decided(pad.train))
    assert found.id == Configuration.of(detector, small).id         # 8 bits: nothing to decide
    assert set(rows["configuration"]) == {found.id}
    again = scores.evaluate(found.detector("random"), pad, small, seeds=2)
    assert again["id"].tolist() == rows["id"].tolist()
    with pytest.raises(ValueError, match=r"weights='bundled': are .* measured with .*random"):
        found.detector("bundled")
    with pytest.raises(ValueError, match="patchcore has no parameter colour"):
        Configuration.from_row(stored | {"parameters": {"colour": 1}})


@pytest.mark.parametrize("figure", FIGURES)
def test_every_bar_of_the_study_is_a_detector(figure):
    bars, table = thesis_bars(figure, "random", bank=500), bars_of(figure).set_index("label")
    assert list(bars) == list(table.index)
    for label, detector in bars.items():
        assert "+".join(map(str, detector.layers)) == (table["layers"].fillna("1")[label]), "a PDN has one"
        assert detector.bank == 500
    made = [Configuration.of(detector, Preprocess()).id for detector in bars.values()]
    assert len(set(made)) == (1 if figure == "3.2" else len(made)), "in 3.2 only the bank differs"


def test_bars_carry_what_the_thesis_measured():
    assert {detector.tap for detector in thesis_bars("3.12", "random").values()} == {"branch"}
    bar = thesis_bars("3.25", "random")["Leaky ReLU, N, W"]
    assert (bar.backbone, bar.layers, bar.tap, bar.activation, bar.scaling) == (
        "resnet34", (2, 3), "preactivation", "leaky_relu", "normalise_weight")
    assert thesis_bars("3.3", "random")["cdist d=384 (2)"].embedding == "original_d384"
    assert (bar := thesis_bars("3.9", "random")["PDN M"]).backbone == "pdn_medium" and bar.embedding == "identity"


def test_published_rows_keep_their_identity():
    """They were measured before levels could be left to the network: the resolved ones are stored, as ever."""
    lines = (paths.published() / "levels_imagenet.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[::7]):
        known = Configuration.from_row(row)
        rebuilt = PatchCore(**{key: tuple(value) if isinstance(value, list) else value
                               for key, value in known.parameters.items()}).parameters(identity_only=True)
        assert {key: rebuilt[key] for key in known.parameters} == known.parameters | {"layers": rebuilt["layers"]}
        assert list(rebuilt["layers"]) == known.parameters["layers"] and known.id == row["configuration"]
    known = Configuration.of(PatchCore(weights="random", search="faiss"), Preprocess())
    assert known.id == "647a72a14dd3", "rows that were measured with it would no longer be found"
    assert PatchCore().layers == (2,) and PatchCore(backbone="pdn_small").layers == (1,)


def test_published_rows_carry_the_id_of_their_configuration():
    """All of them, also those that were measured before some of the neutral parameters were there."""
    rows = [row for file in sorted(paths.published().glob("*.jsonl")) for row in results.read(file)]
    assert len(rows) > 700
    assert [row["id"] for row in rows if Configuration.from_row(row).id != row["configuration"]] == []
