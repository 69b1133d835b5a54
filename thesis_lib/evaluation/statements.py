"""What the thesis states of configurations, as data: `reference/statements.yaml` goes in, sides to measure come out.

A statement holds pairs of sides; a side is a configuration without weights. What was measured of them decides whether
a statement holds: `evaluation.verdicts`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import yaml

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.thesis import bars_of
from thesis_lib.methods.base import Detector
from thesis_lib.methods.registry import METHODS

KINDS = ("direction", "equality", "always")
MARGIN = 1.0            # points of AUROC of an equality where the thesis names none


@dataclass(frozen=True)
class Side:
    """A configuration whose weights are still to be given; what is not named has the default of its method.

    >>> Side("patchcore", {"layers": (2,)}).id == Side("patchcore", {"layers": [2], "bank": "1000"}).id
    True
    """

    method: str
    parameters: Mapping[str, Any]
    preprocess: Preprocess = field(default_factory=Preprocess)

    def __post_init__(self) -> None:
        unknown = set(self.parameters) - {f.name for f in fields(METHODS[self.method])}
        if unknown:
            raise ThesisError(f"{self.method} has no parameter {', '.join(sorted(unknown))}")

    def detector(self, weights: str, seed: int = 0) -> Detector:
        """Unfitted; weights as in `backbones.load`."""
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in self.parameters.items()}
        return METHODS[self.method](**given, weights=weights, seed=seed)

    @property
    def backbone(self) -> str:
        """Name of the network whose weights are needed."""
        return self.detector("random").backbone

    @cached_property
    def id(self) -> str:
        """The same for a side and for rows of it, with whatever weights these were measured."""
        return id_of(Configuration.of(self.detector("random"), self.preprocess))


@dataclass(frozen=True)
class Pair:
    """`points`: AUROC of one minus that of two in the thesis, of which it says nothing where it is None."""

    one: Side
    two: Side
    points: float | None = None

    def __str__(self) -> str:
        """What the two sides differ in, "layers 2 | layers 1"; before it the levels where both have the same."""
        levels = self.one.parameters.get("layers")
        both = f"{differing(self.one, self.two)} | {differing(self.two, self.one)}"
        return f"layers {_text(levels)}: {both}" if levels and levels == self.two.parameters.get("layers") else both


@dataclass(frozen=True)
class Statement:
    """`margin` in points of an equality; sets: names of categories, () for all; `wrong`: what the thesis' own numbers
    say against it.
    """

    id: str
    section: str
    text: str
    kind: str
    pairs: tuple[Pair, ...]
    margin: float = MARGIN
    sets: tuple[str, ...] = ()
    wrong: str = ""


def differing(side: Side, other: Side) -> str:
    """What a side has otherwise than another one, in words; of the parameters those that one of both names.

    >>> differing(Side("patchcore", {"bank": 9}, Preprocess(crop=224)), Side("patchcore", {"layers": (2, 3)}))
    'layers 2, bank 9, crop 224'
    """
    named = {"method", *side.parameters, *other.parameters}
    given, compared = ({"method": one.method} | one.detector("random").parameters() | asdict(one.preprocess)
                       for one in (side, other))
    named |= set(asdict(side.preprocess))
    return ", ".join(f"{name} {_text(value)}" for name, value in given.items()
                     if name in named and (name not in compared or value != compared[name]))


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def id_of(configuration: Configuration) -> str:
    """Id of a configuration whatever its weights."""
    return replace(configuration, weights=None).id


def statements() -> list[Statement]:
    """Those of chapters 2 and 3, in the order of the thesis. ThesisError names one that is not as it should be."""
    file = paths.reference() / "statements.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [parse(given, content["defaults"]) for given in content["statements"]]


def parse(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Statement:
    """One entry of the file; of the defaults each side takes those that its method has."""
    try:
        named = {name: given[name] for name in ("margin", "wrong") if name in given}
        if given["kind"] not in KINDS:
            raise ThesisError(f"kind={given['kind']!r}: needs one of {', '.join(KINDS)}")
        common = given.get("common", {})
        pairs = tuple(Pair(side(defaults, common | pair["one"]), side(defaults, common | pair["two"]), _points(pair))
                      for pair in given["pairs"])
        return Statement(given["id"], str(given["section"]), given["text"], given["kind"], pairs,
                         sets=tuple(given.get("sets", ())), **named)
    except (KeyError, TypeError, ThesisError) as error:
        raise ThesisError(f"statement {given.get('id')}: {error}") from error


def side(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Side:
    """Of what is given, and of those defaults that the method has."""
    method = given.get("method", defaults["method"])
    if method not in METHODS:
        raise ThesisError(f"method={method!r}: needs one of {', '.join(METHODS)}")
    known = {f.name for f in fields(METHODS[method])}
    usual = {name: value for name, value in defaults.items() if name in known}
    return Side(method, usual | {name: value for name, value in given.items() if name != "method"})


def _points(pair: Mapping[str, Any]) -> float | None:
    if "bars" not in pair:
        return pair.get("points")
    one, two = (bars_of(figure).drop_duplicates("label").set_index("label").loc[label, "auroc_mvtec_pct"]
                for figure, label in pair["bars"])
    return float(one) - float(two)
