"""What is measured, as data: method, parameters, weights, preprocessing. Pictures and seed come on top of it.

Notebooks, batch, command line and result rows share it, and the bars of the thesis' figures are read as such.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from thesis_lib import backbones, tables, weightfiles
from thesis_lib.data import Preprocess
from thesis_lib.methods import METHODS, Detector

NETWORKS = {"ResNet18": "resnet18", "ResNet34": "resnet34", "WideResNet50": "wide_resnet50_2",
            "ConvNeXt-XS": "convnext_tiny", "ConvNeXt-S": "convnext_small", "ConvNeXt-M": "convnext_base",
            "ConvNeXt-L": "convnext_large", "PDN-S": "pdn_small", "PDN-M": "pdn_medium"}
ACTIVATIONS = {"ReLU": "relu", "Leaky ReLU": "leaky_relu", "Identität": "identity", "Sigmoid": "sigmoid",
               "SoftMin": "softmin"}
SCALINGS = {"": "none", "N": "normalise", "N, W": "normalise_weight"}


@dataclass(frozen=True)
class Configuration:
    """`parameters` are those that can change a result, in JSON's types; `weights` is what `weightfiles.record` says."""

    method: str
    parameters: Mapping[str, Any]
    weights: Mapping[str, Any] | None
    preprocess: Preprocess

    @classmethod
    def of(cls, detector: Detector, preprocess: Preprocess) -> "Configuration":
        parameters = detector.parameters(identity_only=True)
        del parameters["seed"]
        weights = parameters.pop("weights", None)       # the path of a file is not its identity, its hash is
        record = weightfiles.record(detector.backbone, weights) if weights else None
        return cls(detector.name, json.loads(json.dumps(parameters)), record, preprocess)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Configuration":
        """Of a result row as its file holds it; ValueError where this version lacks one of its parameters."""
        unknown = set(row["parameters"]) - set(vars(METHODS[row["method"]]()))
        if unknown:
            raise ValueError(f"row {row['id']}: {row['method']} has no parameter {', '.join(sorted(unknown))}")
        return cls(row["method"], row["parameters"], row["weights"], Preprocess(**row["preprocess"]))

    @property
    def id(self) -> str:
        """Hash of all of it, the same on every machine and in every version of the library."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def detector(self, weights: str, seed: int = 0) -> Detector:
        """Unfitted. `weights` as in `backbones.load`; ValueError when they are not those of the configuration."""
        found = weightfiles.record(self.parameters["backbone"], weights)
        if found != self.weights:
            raise ValueError(f"weights={weights!r}: are {found}, the configuration was measured with {self.weights}")
        parameters = {key: tuple(value) if isinstance(value, list) else value for key, value in self.parameters.items()}
        return METHODS[self.method](**parameters, weights=weights, seed=seed)


def thesis_bars(figure: str, weights: str, **changes: Any) -> dict[str, Detector]:
    """One PatchCore per bar of a figure of chapter 3.5 of the thesis, by its label; `changes` apply to all of them.

    The ConvNeXt bars take the inner branch of the last block, as the thesis measured them.
    """
    detectors = {}
    for label, bar in tables.thesis(figure).set_index("label").iterrows():
        if bar["backbone"] not in NETWORKS:
            raise ValueError(f"figure {figure}, bar {label}: network {bar['backbone']} is not one of "
                             f"{', '.join(NETWORKS)}")
        network = NETWORKS[bar["backbone"]]
        levels = None if network in backbones.PDNS else tuple(int(level) for level in bar["layers"].split("+"))
        embeddings = {"patchcore": f"original_d{bar['feature_dim']}", "none": "identity"}
        parameters = {
            "backbone": network, "layers": levels, "weights": weights,
            "embedding": embeddings.get(bar["pooling"], bar["pooling"]),
            "bank": bar["bank"], "search": bar["search"]}
        if network in backbones.CONVNEXTS:
            parameters["tap"] = "branch"
        if "channel transform" in bar["notes"]:
            function, _, scaling = label.removesuffix(" (default)").partition(", ")
            parameters |= {"tap": "preactivation", "activation": ACTIVATIONS[function], "scaling": SCALINGS[scaling]}
        detectors[label] = METHODS["patchcore"](**parameters | changes)
    return detectors
