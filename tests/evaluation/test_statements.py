"""The statements of the thesis as data: each can be read, is in a part that is measured, says what bars say."""

from collections import Counter
from pathlib import Path

import pytest

from thesis_lib.core.errors import ThesisError
from thesis_lib.data import Preprocess
from thesis_lib.evaluation import reproduction, statements
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.statements import Side, id_of, parse, side
from thesis_lib.methods import PatchCore

DEFAULTS = {"method": "patchcore", "layers": [2], "bank": 1000}
WHOLE = {"id": "one", "section": "3.5", "text": "t", "kind": "direction", "pairs": [{"one": {}, "two": {"bank": 10}}]}


def test_all_statements():
    found = statements.statements()
    assert len(found) >= 20 and {one.kind for one in found} == set(statements.KINDS)
    assert max(Counter(one.id for one in found).values()) == 1
    assert all(pair.one.id != pair.two.id for one in found for pair in one.pairs)
    by_id = {one.id: one for one in found}
    # Bars of the thesis: 96.9862 and 92.4969 %; what its text says stands where there is no bar.
    assert by_id["level_2_over_1"].pairs[0].points == pytest.approx(4.4893)
    assert by_id["padim_100_channels"].pairs[0].points == -0.4
    assert by_id["resnet34_always_better"].pairs[0].points == pytest.approx(-0.7563)        # false in its own numbers


def test_what_decides_them_is_measured():
    measured = {one.id for part in reproduction.parts().values() for one in part.sides}
    lacking = [one.id for one in statements.statements() for pair in one.pairs for side in (pair.one, pair.two)
               if side.id not in measured]
    assert not lacking


def test_a_side_is_a_configuration_whatever_its_weights(small):
    wanted = Side("patchcore", {"layers": [2], "bank": "60"}, small)
    for weights in ("random", "bundled"):
        assert id_of(Configuration.of(PatchCore(layers=(2,), bank=60, weights=weights), small)) == wanted.id
    assert wanted.id != Side("patchcore", {"layers": [2], "bank": 60}, Preprocess(image_size=65)).id
    assert wanted.detector("random", 3) == PatchCore(layers=(2,), bank=60, weights="random", seed=3)


def test_of_the_defaults_a_side_takes_what_its_method_has():
    assert side(DEFAULTS, {"method": "padim"}).parameters == {"layers": [2]}
    assert side(DEFAULTS, {"bank": 5}).parameters == {"layers": [2], "bank": 5}


@pytest.mark.parametrize("changes, message", [
    ({"kind": "rumour"}, "statement one: kind='rumour': needs one of direction, equality, always"),
    ({"pairs": [{"one": {}, "two": {"banks": 5}}]}, "statement one: patchcore has no parameter banks"),
    ({"pairs": [{"one": {}, "two": {"method": "x"}}]}, "statement one: method='x': needs one of patchcore"),
    ({"pairs": [{"one": {}}]}, "statement one: 'two'")])
def test_a_wrong_statement_is_named(changes, message):
    with pytest.raises(ThesisError, match=message):
        parse(WHOLE | changes, DEFAULTS)


def test_weights_are_found_by_the_name_of_the_network(tmp_path):
    (tmp_path / "resnet18_some.safetensors").touch()
    weights = reproduction.weights_of(Path(tmp_path))
    assert weights("resnet18") == str(tmp_path / "resnet18_some.safetensors")
    with pytest.raises(ThesisError, match=r"needs one file resnet34_\*.safetensors, has none"):
        weights("resnet34")


def test_measured_once_and_resumable(pad, small, monkeypatch):
    """What is interrupted between two configurations goes on there; seeds of one that are there are not measured."""
    sides = tuple(Side("patchcore", {"layers": [1], "bank": bank, "embedding": "identity"}, small) for bank in (5, 9))
    parts = {"one": reproduction.Part("f", sides), "two": reproduction.Part("f", sides[:1])}
    monkeypatch.setattr(reproduction, "parts", lambda: parts)
    tasks = reproduction.tasks([pad])
    assert [task.part for task in tasks] == ["one", "one"]              # what two parts have is measured once
    assert [task.part for task in reproduction.tasks([pad], ["two"])] == ["two"]
    with pytest.raises(ThesisError, match="part three: there are one, two"):
        reproduction.tasks([pad], ["three"])

    def weights(network):
        return "random"

    # The network sees the pictures once: a second configuration costs less than two alone.
    one, other = (reproduction.seconds([task]) for task in tasks)
    assert max(one, other) < reproduction.seconds(tasks) < one + other
    measuring = reproduction.reproduce(tasks, weights, seeds=2)
    task, rows, processor, clock = next(measuring)
    assert task is tasks[0] and len(rows) == 2 and processor > 0 and clock > 0
    measuring.close()
    assert [len(reproduction.stored(task, weights, seeds=2)) for task in tasks] == [2, 0]
    assert not reproduction.stored(tasks[0], weights, seeds=3)
    list(reproduction.reproduce(tasks[1:], weights, seeds=2))
    assert all(reproduction.stored(task, weights, seeds=2) for task in tasks)
