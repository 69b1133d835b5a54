"""What is measured, as data: method, parameters, weights, preprocessing. Pictures and seed come on top of it.

Notebooks, batch, command line and result rows share it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from thesis_lib.core import files, parameters
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.methods.base import Detector
from thesis_lib.methods.registry import METHODS
from thesis_lib.networks import weightfiles


@dataclass(frozen=True)
class Configuration:
    """`parameters` are those that can change a result, in JSON's types; `weights` is what `weightfiles.record` says."""

    method: str
    parameters: Mapping[str, Any]
    weights: Mapping[str, Any] | None
    preprocess: Preprocess

    @classmethod
    def of(cls, detector: Detector, preprocess: Preprocess) -> "Configuration":
        """What decides the numbers of a detector on pictures that are prepared so."""
        given = detector.parameters(identity_only=True)
        del given["seed"]
        weights = given.pop("weights", None)            # the path of a file is not its identity, its hash is
        record = weightfiles.record(detector.backbone, weights) if weights else None
        return cls(detector.name, json.loads(json.dumps(given)), record, preprocess)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Configuration":
        """Of a result row as its file holds it; ThesisError where this version lacks one of its parameters."""
        unknown = set(row["parameters"]) - set(vars(METHODS[row["method"]]()))
        if unknown:
            raise ThesisError(f"row {row['id']}: {row['method']} has no parameter {', '.join(sorted(unknown))}")
        return cls(row["method"], row["parameters"], row["weights"], Preprocess(**row["preprocess"]))

    @property
    def id(self) -> str:
        """Hash of all of it, the same on every machine and in every version of the library.

        Neutral parameters at their default are left out, so that one that is added later changes no id.
        """
        named = parameters.deciding(METHODS.get(self.method, Detector), self.parameters)
        prepared = parameters.deciding(self.preprocess, asdict(self.preprocess))
        deciding = {"method": self.method, "parameters": named, "weights": self.weights, "preprocess": prepared}
        return files.digest(json.dumps(deciding, sort_keys=True))[:12]

    def detector(self, weights: str, seed: int = 0) -> Detector:
        """Unfitted. `weights` as in `backbones.load`; ThesisError when they are not those of the configuration."""
        record = weightfiles.record(self.parameters["backbone"], weights)
        if record != self.weights:
            raise ThesisError(f"weights={weights!r}: are {record}, the configuration was measured with {self.weights}")
        # What an older row does not name had the value that changes nothing; a later default may be another.
        before = {f.name: f.metadata["neutral"][0] for f in fields(METHODS[self.method]) if f.metadata.get("neutral")}
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value        # JSON has no tuples
                                 for key, value in (before | dict(self.parameters)).items()}
        return METHODS[self.method](**given, weights=weights, seed=seed)
